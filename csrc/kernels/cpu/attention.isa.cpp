// The loops of attention, compiled once per instruction set (see isa.h).
//
// Per key head its keys, turned, and its values are packed into panels of columns. Then scores and outputs are the same
// product, of a few rows of floats with panels; the rows' scores stay in the cache between the two.
#include "isa_kernels.h"
#include "simd.h"

namespace lorahub_edge::cpu {
namespace {

// The first n lanes of the vector, and `other` in the rest.
inline Vector first_lanes(Vector vector, index_t n, float other) {
  Ints is_first;
  for (int lane = 0; lane < kLanes; ++lane) is_first[lane] = lane < n ? -1 : 0;
  return reinterpret_cast<Vector>((is_first & reinterpret_cast<Ints>(vector)) |
                                  (~is_first & reinterpret_cast<Ints>(broadcast(other))));
}

// All lanes made one, halves first: combine(a, b) of two floats.
template <typename Combine>
inline float fold(Vector vector, const Combine& combine) {
  float lanes[kLanes];
  store(lanes, vector);
#pragma GCC unroll 4
  for (int half = kLanes / 2; half > 0; half /= 2) {
#pragma GCC unroll 8
    for (int lane = 0; lane < half; ++lane) lanes[lane] = combine(lanes[lane], lanes[lane + half]);
  }
  return lanes[0];
}

// Vectors of columns whose sums are in registers together, for kAttentionRows rows.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kVectors = 4;
#else
constexpr int kVectors = 2;
#endif
constexpr index_t kGroup = kVectors * kLanes;  // of columns
static_assert(kAttentionColumns % kGroup == 0);

// A matrix [n_rows, columns] as [panel, n_rows, kAttentionColumns]; anything behind its last column.
struct Panels {
  const float* values;
  index_t n_rows;

  const float* at(index_t column) const {
    return values + column / kAttentionColumns * n_rows * kAttentionColumns + column % kAttentionColumns;
  }
};

struct Rows {
  float* values;
  index_t stride;

  float* operator[](index_t row) const { return values + row * stride; }
};

// out[r][c] = factors[r] * sum_i(rows[r][i] * columns[i][c]) over i < n, for V vectors of columns; kPart: for the first
// n_columns of one vector.
template <int R, int V, bool kPart>
inline void multiply_vectors(Rows rows, index_t n, const float* columns, const float* factors, Rows out,
                             index_t n_columns) {
  Vector sums[R][V];
#pragma GCC unroll 6
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) sums[r][v] = Vector{};
  }
  for (index_t i = 0; i < n; ++i, columns += kAttentionColumns) {
    Vector column[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) column[v] = load(columns + v * kLanes);
#pragma GCC unroll 6
    for (int r = 0; r < R; ++r) {
      const Vector value = broadcast(rows[r][i]);
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) sums[r][v] = multiply_add(value, column[v], sums[r][v]);
    }
  }
#pragma GCC unroll 6
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) store_columns<kPart>(out[r] + v * kLanes, sums[r][v] * factors[r], n_columns);
  }
}

// The same for n_columns columns.
template <int R>
void multiply(Rows rows, index_t n, Panels columns, index_t n_columns, const float* factors, Rows out) {
  index_t c = 0;
  for (; c + kGroup <= n_columns; c += kGroup) {
    multiply_vectors<R, kVectors, false>(rows, n, columns.at(c), factors, {out[0] + c, out.stride}, kGroup);
  }
  for (; c + kLanes <= n_columns; c += kLanes) {
    multiply_vectors<R, 1, false>(rows, n, columns.at(c), factors, {out[0] + c, out.stride}, kLanes);
  }
  if (c < n_columns) {
    multiply_vectors<R, 1, true>(rows, n, columns.at(c), factors, {out[0] + c, out.stride}, n_columns - c);
  }
}

// Scores of a query become weights: exp(score + bias - the largest) for the first n, and zero up to n_all. The room for
// them ends with a whole vector. Returns the weights' sum.
inline float weigh(float* scores, const float* bias, index_t n, index_t n_all) {
  Vector most = broadcast(-__builtin_inff());
  const auto add_bias = [&](index_t j, Vector biased) {
    store(scores + j, biased);
    most = larger(most, biased);
  };
  index_t j = 0;
  for (; j + kLanes <= n; j += kLanes) {
    add_bias(j, bias == nullptr ? load(scores + j) : load(scores + j) + load(bias + j));
  }
  if (j < n) {
    const Vector rest = bias == nullptr ? load(scores + j) : load(scores + j) + load_part(bias + j, n - j);
    add_bias(j, first_lanes(rest, n - j, -__builtin_inff()));
  }
  const Vector largest = broadcast(fold(most, [](float a, float b) { return a > b ? a : b; }));
  Vector weights{};
  for (j = 0; j < n; j += kLanes) {
    const Vector weight = exponential(larger(broadcast(-87.0f), load(scores + j) - largest));
    store(scores + j, weight);
    weights += weight;  // those behind n are below 2^-125, and the sum is at least 1
  }
  for (j = n; j < n_all; ++j) scores[j] = 0;
  return fold(weights, [](float a, float b) { return a + b; });
}

// Where one head of one example begins.
struct Head {
  Rows query;
  const float* bias;
  Rows out;
};

// Queries first to first + R - 1.
template <int R>
void attend_rows(const AttentionArgs& args, const Head& head, index_t first, const AttentionScratch& scratch) {
  const Rows scores{scratch.scores, scratch.score_stride};
  const index_t n_all = args.causal ? first + R + args.n_keys - args.n_queries : args.n_keys;
  float factors[R];
  for (int r = 0; r < R; ++r) factors[r] = args.scaling;
  const Rows query{head.query[first], head.query.stride};
  multiply<R>(query, args.head_features, {scratch.keys, args.head_features}, n_all, factors, scores);
  for (int r = 0; r < R; ++r) {
    const float* bias = head.bias == nullptr ? nullptr : head.bias + (first + r) * args.bias_query;
    factors[r] = 1.0f / weigh(scores[r], bias, args.causal ? n_all - (R - 1 - r) : n_all, n_all);
  }
  const Rows out{head.out[first], head.out.stride};
  multiply<R>(scores, n_all, {scratch.values, args.n_keys}, args.head_features, factors, out);
}

// Keys and values are asked for so many rows before they are packed.
constexpr index_t kRowsAhead = 8;

// Asks for a head's features of some rows: each is in a page of its own, where the processor's own prefetch does not
// go.
inline void prefetch_rows(const float* row, index_t stride, index_t n_rows, index_t n_features) {
  for (index_t j = 0; j < n_rows; ++j, row += stride) {
    for (index_t i = 0; i < n_features; i += 16) __builtin_prefetch(row + i, 0, 3);
  }
}

// Four rows of four floats, turned.
inline void turn_square(const float* from, index_t stride, float* to) {
#if defined(__SSE2__)
  __m128 a = _mm_loadu_ps(from), b = _mm_loadu_ps(from + stride);
  __m128 c = _mm_loadu_ps(from + 2 * stride), d = _mm_loadu_ps(from + 3 * stride);
  _MM_TRANSPOSE4_PS(a, b, c, d);
  _mm_storeu_ps(to, a);
  _mm_storeu_ps(to + kAttentionColumns, b);
  _mm_storeu_ps(to + 2 * kAttentionColumns, c);
  _mm_storeu_ps(to + 3 * kAttentionColumns, d);
#else
  for (int i = 0; i < 4; ++i) {
    for (int j = 0; j < 4; ++j) to[i * kAttentionColumns + j] = from[j * stride + i];
  }
#endif
}

// Keys become columns.
inline void pack_keys(const AttentionArgs& args, const float* key, float* panels) {
  const index_t stride = args.n_key_heads * args.head_features, n_features = args.head_features;
  for (index_t j = 0; j < args.n_keys; j += 4, key += 4 * stride) {
    float* to = panels + j / kAttentionColumns * n_features * kAttentionColumns + j % kAttentionColumns;
    const index_t n = smaller(4, args.n_keys - j);
    prefetch_rows(key + kRowsAhead * stride, stride, smaller(4, args.n_keys - j - kRowsAhead), n_features);
    index_t i = 0;
    for (; n == 4 && i + 4 <= n_features; i += 4) turn_square(key + i, stride, to + i * kAttentionColumns);
    for (; i < n_features; ++i) {
      for (index_t k = 0; k < n; ++k) to[i * kAttentionColumns + k] = key[k * stride + i];
    }
  }
}

inline void pack_values(const AttentionArgs& args, const float* value, float* panels) {
  const index_t stride = args.n_key_heads * args.head_features;
  for (index_t c = 0; c < args.head_features; c += kAttentionColumns) {
    const index_t n = smaller(kAttentionColumns, args.head_features - c);
    for (index_t j = 0; j < args.n_keys; ++j, panels += kAttentionColumns) {
      if (j + kRowsAhead < args.n_keys) prefetch_rows(value + (j + kRowsAhead) * stride + c, 0, 1, n);
      std::memcpy(panels, value + j * stride + c, static_cast<std::size_t>(n) * sizeof(float));
    }
  }
}

}  // namespace

template <>
void OpKernels<kIsa>::attend(const AttentionArgs& args, index_t first, index_t last, const AttentionScratch& scratch) {
  const index_t stride = args.n_heads * args.head_features, n_heads_each = args.n_heads / args.n_key_heads;
  for (index_t unit = first; unit < last; ++unit) {
    const index_t example = unit / args.n_key_heads, key_head = unit % args.n_key_heads;
    const index_t keys_at = (example * args.n_keys * args.n_key_heads + key_head) * args.head_features;
    pack_keys(args, args.key + keys_at, scratch.keys);
    pack_values(args, args.value + keys_at, scratch.values);
    for (index_t h = key_head * n_heads_each; h < (key_head + 1) * n_heads_each; ++h) {
      const index_t at = example * args.n_queries * stride + h * args.head_features;
      const float* bias = args.bias == nullptr ? nullptr : args.bias + h * args.bias_head;
      const Head head{{const_cast<float*>(args.query) + at, stride}, bias, {args.out + at, stride}};
      index_t i = 0;
      for (; i + kAttentionRows <= args.n_queries; i += kAttentionRows) {
        attend_rows<kAttentionRows>(args, head, i, scratch);
      }
      for (; i < args.n_queries; ++i) attend_rows<1>(args, head, i, scratch);
    }
  }
}

}  // namespace lorahub_edge::cpu
