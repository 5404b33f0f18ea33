// inject_delta on CUDA. A block of threads has four rows of the layer and goes twice over their columns: first for the
// largest value of each row, then, with the scales known, for rounding and report. It computes the deltas both times:
// they cost less than a buffer of rows would. Sums are taken in a fixed order, so equal inputs give equal bytes.
#include "../inject_delta.h"

#include "../../dispatch.h"
#include "launch.cuh"
#include "random.cuh"
#include "reduce.cuh"
#include "values.cuh"

namespace lorahub_edge::cuda {
namespace {

constexpr const char* kOp = "inject_delta";
constexpr int kThreads = 256;

// Rows of a block of threads: they share the reads of A.
constexpr int kRows = 4;

// Columns of a thread at a time, where addresses allow.
constexpr int kColumns = 4;

// So that the rows' B fits into shared memory, 16 bytes for each k.
constexpr index_t kMostRank = 2048;

// scaling * B[i, k] of the block's rows for one k.
struct alignas(16) RowsOfB {
  float of[kRows];
};

// The rows of one block of threads. Behind the last row the last one is repeated: a thread then writes the same bytes
// to the same places again.
struct Rows {
  index_t first;
  index_t last;

  __device__ index_t operator[](int r) const { return first + r < last ? first + r : last; }
};

// -- First pass: deltas -----------------------------------------------------------------------------------------------

__device__ void stage_B(const InjectDeltaArgs& args, const Rows& rows, RowsOfB* to) {
  const int n_values = static_cast<int>(args.rank) * kRows;
  for (int i = threadIdx.x; i < n_values; i += kThreads) {
    const index_t at = rows[i % kRows] * args.rank + i / kRows - args.B_skipped;
    to[i / kRows].of[i % kRows] = __fmul_rn(args.scaling, args.B[at]);
  }
}

// W columns of the block's rows: base = codes * row_scale, and the delta. Both passes get the same bits from it.
template <int W>
struct Columns {
  float base[kRows][W];
  float delta[kRows][W] = {};

  __device__ Columns(const InjectDeltaArgs& args, const Rows& rows, const RowsOfB* B, index_t column) {
    Pack<std::int8_t, W> codes[kRows];  // on their way while the deltas are summed
#pragma unroll
    for (int r = 0; r < kRows; ++r) codes[r] = load_pack<W>(args.codes + rows[r] * args.in_features + column);
    sum_deltas(args, B, column);
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      widen(codes[r], base[r]);
      const float row_scale = __ldg(args.row_scale + rows[r]);
#pragma unroll
      for (int w = 0; w < W; ++w) base[r][w] = __fmul_rn(base[r][w], row_scale);
    }
  }

  __device__ void sum_deltas(const InjectDeltaArgs& args, const RowsOfB* B, index_t column) {
    const float* A = args.A + column;
    const int rank = static_cast<int>(args.rank);
#pragma unroll 4
    for (int k = 0; k < rank; ++k) {
      float row_of_A[W];
      load(A + k * args.in_features, row_of_A);
      const RowsOfB b = B[k];
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
#pragma unroll
        for (int w = 0; w < W; ++w) delta[r][w] = fmaf(b.of[r], row_of_A[w], delta[r][w]);
      }
    }
  }

  __device__ float value(int r, int w) const { return __fadd_rn(base[r][w], delta[r][w]); }
};

// What the first pass finds about each row, as bits of absolute values: the largest value and the largest delta.
struct Facts {
  int largest[2 * kRows] = {};

  __device__ float value(int r) const { return __int_as_float(largest[r]); }
  __device__ bool has_delta(int r) const { return largest[kRows + r] != 0; }
};

template <int W>
__device__ Facts facts_of(const InjectDeltaArgs& args, const Rows& rows, const RowsOfB* B) {
  const Larger larger;
  Facts facts;
  for (index_t column = threadIdx.x * W; column < args.in_features; column += kThreads * W) {
    const Columns<W> columns(args, rows, B, column);
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
#pragma unroll
      for (int w = 0; w < W; ++w) {
        facts.largest[r] = larger(facts.largest[r], abs_bits(columns.value(r, w)));
        facts.largest[kRows + r] = larger(facts.largest[kRows + r], abs_bits(columns.delta[r][w]));
      }
    }
  }
  reduce_over_block<kThreads, Larger>(facts.largest);
  return facts;
}

// -- Second pass: rounding --------------------------------------------------------------------------------------------

// One row's way from values to what is stored.
struct Rounder {
  bool keep;     // no delta: the base, unchanged
  bool nearest;  // or stochastic, with the row's key
  unsigned key;
  float step;     // the row's new scale
  float inverse;  // turns values into steps where the last bit does not matter

  __device__ Rounder(const InjectDeltaArgs& args, index_t row, const Facts& facts, int r)
      : keep(!facts.has_delta(r)),
        nearest(args.rounding == Rounding::nearest),
        key(nearest ? 0 : key_of_row(args.seed, row)),
        step(keep ? __ldg(args.row_scale + row) : row_scale_of(facts.value(r))) {
    const float reciprocal = __fdiv_rn(1.0f, step);
    inverse = reciprocal < 0x1p127f ? reciprocal : 0x1p127f;
  }

  __device__ float whole(float steps, index_t column) const {
    if (nearest) return rintf(steps);
    const float below = floorf(steps);
    return uniform(key, column) < steps - below ? below + 1.0f : below;
  }
};

// Sums over each row, in units of its new scale.
struct Sums {
  float of[4 * kRows] = {};

  __device__ float& delta_squared(int r) { return of[r]; }
  __device__ float& error_squared(int r) { return of[kRows + r]; }
  __device__ float& error_times_delta(int r) { return of[2 * kRows + r]; }
  __device__ float& n_clipped(int r) { return of[3 * kRows + r]; }
};

// One element: what is stored for it. The error is the stored value less the exact one, in steps.
template <typename T>
__device__ inline float rounded(const Rounder& rounder, float value, index_t column, float& error, float& n_clipped) {
  if constexpr (sizeof(T) == 1) {
    const float steps = __fdiv_rn(value, rounder.step);
    const float whole = rounder.whole(steps, column);
    const float code = clamped(whole);
    n_clipped += fabsf(steps) > kMaxCode + 0.5f ? 1.0f : 0.0f;
    error = code - steps;
    return code;
  } else {
    const float stored = widened(narrowed<T>(value));
    error = (stored - value) * rounder.inverse;
    return stored;
  }
}

// W columns of row r: stored, and added to the sums.
template <typename T, int W>
__device__ inline void round_row(const Columns<W>& columns, int r, const Rounder& rounder, index_t column, T* values,
                                 Sums& sums) {
  float stored[W];
#pragma unroll
  for (int w = 0; w < W; ++w) {
    float error;
    stored[w] = rounded<T>(rounder, columns.value(r, w), column + w, error, sums.n_clipped(r));
    const float delta = columns.delta[r][w] * rounder.inverse;
    sums.delta_squared(r) = fmaf(delta, delta, sums.delta_squared(r));
    sums.error_squared(r) = fmaf(error, error, sums.error_squared(r));
    sums.error_times_delta(r) = fmaf(error, delta, sums.error_times_delta(r));
  }
  store(values, stored);
}

// W columns of a row without a delta.
template <typename T, int W>
__device__ inline void keep_row(const InjectDeltaArgs& args, const Columns<W>& columns, int r, index_t at) {
  T* values = static_cast<T*>(args.values) + at;
  if constexpr (sizeof(T) == 1) {
    store_pack(values, load_pack<W>(args.codes + at));
  } else {
    store(values, columns.base[r]);
  }
}

__device__ inline void write_report(const InjectDeltaArgs& args, index_t row, const Rounder& rounder, Sums& sums,
                                    int r) {
  const float delta = sums.delta_squared(r);
  float report[4] = {0, 1, 0, sums.n_clipped(r)};  // not zero, but too small for its square
  if (delta != 0) {
    report[0] = sqrtf(delta / static_cast<float>(args.in_features));
    report[1] = sqrtf(sums.error_squared(r) / delta);
    report[2] = 1 + sums.error_times_delta(r) / delta;
  }
  const float unchanged[4] = {0, 0, 1, 0};
  for (int i = 0; i < 4; ++i) args.report[i * args.out_features + row] = rounder.keep ? unchanged[i] : report[i];
  args.new_scale[row] = rounder.step;
}

template <typename T, int W>
__device__ void round_rows(const InjectDeltaArgs& args, const Rows& rows, const RowsOfB* B, const Facts& facts) {
  const Rounder rounders[kRows] = {
      {args, rows[0], facts, 0}, {args, rows[1], facts, 1}, {args, rows[2], facts, 2}, {args, rows[3], facts, 3}};
  Sums sums;
  for (index_t column = threadIdx.x * W; column < args.in_features; column += kThreads * W) {
    const Columns<W> columns(args, rows, B, column);
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const index_t at = rows[r] * args.in_features + column;
      if (rounders[r].keep) {
        keep_row<T>(args, columns, r, at);
      } else {
        round_row(columns, r, rounders[r], column, static_cast<T*>(args.values) + at, sums);
      }
    }
  }
  reduce_over_block<kThreads, Plus>(sums.of);
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    if (threadIdx.x == r) write_report(args, rows[r], rounders[r], sums, r);
  }
}

template <typename T, int W>
__global__ void __launch_bounds__(kThreads) inject_kernel(InjectDeltaArgs args) {
  extern __shared__ RowsOfB B[];
  for (index_t group = blockIdx.x; group * kRows < args.out_features; group += gridDim.x) {
    const Rows rows{group * kRows, args.out_features - 1};
    stage_B(args, rows, B);  // all have read the B of the rows before: their last reduction waited for that
    __syncthreads();
    round_rows<T, W>(args, rows, B, facts_of<W>(args, rows, B));
  }
}

template <typename T, int W>
void launch_rows(const InjectDeltaArgs& args, Where where) {
  const Launch how{kOp, where, divided_up(args.out_features, kRows), kThreads,
                   args.rank * static_cast<index_t>(sizeof(RowsOfB))};
  launch(how, inject_kernel<T, W>, args);
}

template <typename T>
void inject_rows(const InjectDeltaArgs& args, Where where) {
  const bool wide = rows_aligned<kColumns>(args.A, args.in_features) &&
                    rows_aligned<kColumns>(args.codes, args.in_features) &&
                    rows_aligned<kColumns>(static_cast<T*>(args.values), args.in_features);
  wide ? launch_rows<T, kColumns>(args, where) : launch_rows<T, 1>(args, where);
}

// Whether B, and where there are any its scales, lie right behind those of A.
bool is_one_stack(const StackedFactors& factors) {
  const index_t n_rows = factors.n_blocks_A * factors.n_modules;
  const char* end_of_A = static_cast<const char*>(factors.A) + n_rows * factors.block * bytes_of(factors.dtype);
  return end_of_A == factors.B && (factors.A_scales == nullptr || factors.A_scales + n_rows == factors.B_scales);
}

}  // namespace

void inject_delta(const InjectDeltaArgs& args, Where where) {
  if (args.out_features == 0) return;
  check(args.rank <= kMostRank, "inject_delta: rank: expected at most " + std::to_string(kMostRank) +
                                    " on CUDA, received " + std::to_string(args.rank));
  const DeviceGuard guard(where.device, kOp);
  dispatch_dtype<std::int8_t, bfloat16, float>(kOp, "values", args.values_dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    inject_rows<T>(args, where);
  });
}

void inject_delta_from_stack(const InjectDeltaArgs& args, const StackedFactors& factors, Where where) {
  float* A = factors.workspace;
  float* B = A + factors.n_blocks_A * factors.block;
  const auto compose = [&](const void* stack, const float* scales, index_t n_blocks, float* out) {
    compose_factors(
        {stack, scales, factors.coefficients, out, factors.dtype, 1, factors.n_modules, n_blocks, factors.block},
        where);
  };
  const bool together = is_one_stack(factors);  // as in a module stack: one launch for both
  compose(factors.A, factors.A_scales, factors.n_blocks_A + (together ? factors.n_blocks_B : 0), A);
  if (!together) compose(factors.B, factors.B_scales, factors.n_blocks_B, B);
  InjectDeltaArgs composed = args;
  composed.A = A;
  composed.B = B;
  inject_delta(composed, where);
}

}  // namespace lorahub_edge::cuda
