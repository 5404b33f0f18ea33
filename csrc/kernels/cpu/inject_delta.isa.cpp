// The loops of inject_delta, compiled once per instruction set (see isa.h).
//
// kInjectRows rows at a time, twice over the columns: first the deltas, with the sums over the rank in registers, into
// a float32 buffer, and the largest value of each row on the way; then, with the scales known, rounding and report.
#include <cmath>

#include "isa_kernels.h"
#include "simd.h"

namespace lorahub_edge::cpu {
namespace {

// Largest whole number not above x, for abs(x) < 2^22.
inline Vector floor_whole(Vector vector) {
  const Vector rounded = round_half_even(vector);
  return rounded > vector ? rounded - 1.0f : rounded;
}

#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kColumnVectors = 4;  // times kInjectRows: sums in registers
#else
constexpr int kColumnVectors = 2;
#endif

// What the first pass finds about one row.
struct RowFacts {
  Ints largest_value = {};  // abs bits, per lane
  Ints any_delta = {};      // bits set where a delta is not zero
};

// -- First pass: deltas -----------------------------------------------------------------------------------------------

// R rows by V vectors of columns; kPart: only n columns of a single vector.
template <int R, int V, bool kPart>
inline void delta_vectors(const InjectDeltaArgs& args, index_t row, index_t column, index_t n, float* rows,
                          RowFacts (&facts)[R]) {
  Vector deltas[R][V] = {};
  const float* A = args.A + column;
  const float* B = args.B + (row * args.rank - args.B_skipped);
  for (index_t k = 0; k < args.rank; ++k, A += args.in_features) {
    Vector columns[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) columns[v] = load_columns<kPart>(A + v * kLanes, n);
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      const Vector b = broadcast(args.scaling * B[r * args.rank + k]);
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) deltas[r][v] = multiply_add(b, columns[v], deltas[r][v]);
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) {
    const std::int8_t* codes = args.codes + (row + r) * args.in_features + column;
    const float row_scale = args.row_scale[row + r];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      const Vector value = load_columns<kPart>(codes + v * kLanes, n) * row_scale + deltas[r][v];
      facts[r].largest_value = larger(facts[r].largest_value, abs_bits(value));
      facts[r].any_delta |= abs_bits(deltas[r][v]);
      store_columns<kPart>(rows + r * args.in_features + column + v * kLanes, deltas[r][v], n);
    }
  }
}

template <int R>
inline void delta_rows(const InjectDeltaArgs& args, index_t row, float* rows, RowFacts (&facts)[R]) {
  constexpr int V = kColumnVectors;
  const index_t n = args.in_features;
  index_t column = 0;
  for (; column + V * kLanes <= n; column += V * kLanes) delta_vectors<R, V, false>(args, row, column, 0, rows, facts);
  for (; column + kLanes <= n; column += kLanes) delta_vectors<R, 1, false>(args, row, column, 0, rows, facts);
  if (column < n) delta_vectors<R, 1, true>(args, row, column, n - column, rows, facts);
}

// -- Second pass: rounding --------------------------------------------------------------------------------------------

// 32 bits from 32 bits, each bit of the result a mix of all. Constants: C. Wellons, hash-prospector, "lowbias32".
template <typename U>
inline U mixed(U x) {
  x ^= x >> 16;
  x *= 0x7feb352du;
  x ^= x >> 15;
  x *= 0x846ca68bu;
  return x ^ (x >> 16);
}

inline std::uint32_t key_of_row(std::uint64_t seed, index_t row) {
  const std::uint32_t key = mixed(mixed(static_cast<std::uint32_t>(seed)) ^ static_cast<std::uint32_t>(seed >> 32));
  return mixed(key ^ static_cast<std::uint32_t>(row));
}

// Uniform in [0, 1), 24 bits, a function of the row's key and the column alone.
inline Vector uniform(std::uint32_t key, index_t column) {
  Bits columns;
  for (int lane = 0; lane < kLanes; ++lane) columns[lane] = static_cast<std::uint32_t>(column) + lane;
  const Ints random = reinterpret_cast<Ints>(mixed(columns ^ key) >> 8);
  return __builtin_convertvector(random, Vector) * 0x1p-24f;
}

// How a row's values become what is stored; `steps` are values in units of the new scale.
struct Rounder {
  Rounding rounding;
  std::uint32_t key;

  Vector operator()(Vector steps, index_t column) const {
    if (rounding == Rounding::nearest) return round_half_even(steps);
    const Vector below = floor_whole(steps);
    return uniform(key, column) < steps - below ? below + 1.0f : below;
  }
};

// Sums over a row, per lane, in units of the new scale.
struct Sums {
  Vector delta_squared = {};
  Vector error_squared = {};
  Vector error_times_delta = {};
};

// A row's new scale, and the factor that turns values into steps where the last bit does not matter.
struct Scale {
  float step;
  float inverse;

  explicit Scale(float new_scale) : step(new_scale), inverse(1 / new_scale < 0x1p127f ? 1 / new_scale : 0x1p127f) {}
};

// One vector of columns of one row: stores the new values and adds to the sums. Lanes behind n are zero throughout.
template <typename T, bool kPart>
inline void round_vector(Vector base, Vector delta, const Scale& scale, const Rounder& rounder, index_t column,
                         index_t n, T* values, Sums& sums) {
  const Vector value = base + delta;
  Vector error;
  if constexpr (sizeof(T) == 1) {
    const Vector steps = value / scale.step;
    const Vector rounded = rounder(steps, column);
    const Vector code = clamp(rounded, kMaxCode);
    store_columns<kPart>(values, code, n);
    error = code - steps;
  } else {
    T stored[kLanes];
    store(stored, value);
    store_columns<kPart>(values, value, n);
    error = (load(stored) - value) * scale.inverse;
  }
  const Vector delta_steps = delta * scale.inverse;
  sums.delta_squared = multiply_add(delta_steps, delta_steps, sums.delta_squared);
  sums.error_squared = multiply_add(error, error, sums.error_squared);
  sums.error_times_delta = multiply_add(error, delta_steps, sums.error_times_delta);
}

struct Report {
  float delta_rms;
  float error;
  float survived;
  float n_clipped;
};

inline Report report_of(const Sums& sums, index_t n) {
  const float delta = sum(sums.delta_squared);
  if (delta == 0) return {0, 1, 0, 0};  // not zero, but too small for its square
  return {std::sqrt(delta / static_cast<float>(n)), std::sqrt(sum(sums.error_squared) / delta),
          1 + sum(sums.error_times_delta) / delta, 0};
}

// Values that lie more than half a step outside the range of codes.
inline float count_clipped(const InjectDeltaArgs& args, index_t row, const float* deltas, float new_scale) {
  float n_clipped = 0;
  for (index_t j = 0; j < args.in_features; ++j) {
    const float value = args.codes[row * args.in_features + j] * args.row_scale[row] + deltas[j];
    n_clipped += std::fabs(value / new_scale) > kMaxCode + 0.5f;
  }
  return n_clipped;
}

template <typename T>
inline Report round_row(const InjectDeltaArgs& args, index_t row, const float* deltas, float new_scale) {
  const index_t n = args.in_features;
  const std::int8_t* codes = args.codes + row * n;
  T* values = static_cast<T*>(args.values) + row * n;
  const float row_scale = args.row_scale[row];
  const Scale scale(new_scale);
  const Rounder rounder{args.rounding, key_of_row(args.seed, row)};
  Sums sums;
  index_t j = 0;
  for (; j + kLanes <= n; j += kLanes) {
    round_vector<T, false>(load(codes + j) * row_scale, load(deltas + j), scale, rounder, j, 0, values + j, sums);
  }
  if (j < n) {
    round_vector<T, true>(load_part(codes + j, n - j) * row_scale, load_part(deltas + j, n - j), scale, rounder, j,
                          n - j, values + j, sums);
  }
  return report_of(sums, n);
}

// A row without a delta: the base, unchanged.
template <typename T>
inline void keep_row(const InjectDeltaArgs& args, index_t row) {
  const index_t n = args.in_features;
  const std::int8_t* codes = args.codes + row * n;
  T* values = static_cast<T*>(args.values) + row * n;
  if constexpr (sizeof(T) == 1) {
    if (n > 0) std::memcpy(values, codes, static_cast<std::size_t>(n));  // an empty array may have no address
  } else {
    const float row_scale = args.row_scale[row];
    index_t j = 0;
    for (; j + kLanes <= n; j += kLanes) store(values + j, load(codes + j) * row_scale);
    if (j < n) store_part(values + j, load_part(codes + j, n - j) * row_scale, n - j);
  }
}

template <typename T>
inline void finish_row(const InjectDeltaArgs& args, index_t row, const float* deltas, const RowFacts& facts) {
  Report report{0, 0, 1, 0};
  if (largest(facts.any_delta) == 0) {
    keep_row<T>(args, row);
    args.new_scale[row] = args.row_scale[row];
  } else {
    const float absmax = largest(facts.largest_value);
    const float new_scale = row_scale_of(absmax);
    args.new_scale[row] = new_scale;
    report = round_row<T>(args, row, deltas, new_scale);
    const bool is_clipped = sizeof(T) == 1 && !(absmax / new_scale <= kMaxCode + 0.5f);
    if (is_clipped) report.n_clipped = count_clipped(args, row, deltas, new_scale);
  }
  args.report[row] = report.delta_rms;
  args.report[args.out_features + row] = report.error;
  args.report[2 * args.out_features + row] = report.survived;
  args.report[3 * args.out_features + row] = report.n_clipped;
}

template <typename T, int R>
inline void inject_some_rows(const InjectDeltaArgs& args, index_t row, float* rows) {
  RowFacts facts[R];
  delta_rows<R>(args, row, rows, facts);
  for (int r = 0; r < R; ++r) finish_row<T>(args, row + r, rows + r * args.in_features, facts[r]);
}

}  // namespace

template <>
template <typename T>
void OpKernels<kIsa>::inject_rows(const InjectDeltaArgs& args, index_t first_row, index_t last_row, float* rows) {
  index_t row = first_row;
  for (; row + kInjectRows <= last_row; row += kInjectRows) inject_some_rows<T, kInjectRows>(args, row, rows);
  for (; row < last_row; ++row) inject_some_rows<T, 1>(args, row, rows);
}

template void OpKernels<kIsa>::inject_rows<std::int8_t>(const InjectDeltaArgs&, index_t, index_t, float*);
template void OpKernels<kIsa>::inject_rows<bfloat16>(const InjectDeltaArgs&, index_t, index_t, float*);
template void OpKernels<kIsa>::inject_rows<float>(const InjectDeltaArgs&, index_t, index_t, float*);

}  // namespace lorahub_edge::cpu
