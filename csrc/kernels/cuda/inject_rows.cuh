// Rows of a layer with their delta added, as inject_delta.cu and inject_layers.cu share them. A warp has four rows; the
// warps of a block share what they read of A. They go twice over the columns: first for the largest value of each row,
// then, with the scales known, for rounding and report. Both times they compute the deltas: those cost less than a
// buffer of rows would. Sums are taken in a fixed order, so equal inputs give equal bytes.
#pragma once

#include "../inject_delta.h"
#include "random.cuh"
#include "reduce.cuh"
#include "values.cuh"

namespace lorahub_edge::cuda::inject {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;
constexpr int kRows = 4;  // of a warp
constexpr int kBlockRows = kWarps * kRows;

// Columns of a thread at a time, where addresses allow.
constexpr int kColumns = 4;

// k that are staged at a time.
constexpr int kDepth = 16;

// The rows of a warp. Behind the last row the last one is read again; what is written goes by `has`.
struct Rows {
  index_t first;
  index_t last;

  __device__ index_t operator[](int r) const { return first + r < last ? first + r : last; }
  __device__ bool has(int r) const { return first + r <= last; }
};

// -- Deltas -----------------------------------------------------------------------------------------------------------

// scaling * B[i, k] of a warp's rows for one k.
struct alignas(16) RowsOfB {
  float of[kRows];
};

// What a block reads of A and B for kDepth k and one tile of columns, in shared memory.
template <int W>
struct Staged {
  alignas(16) float A[kDepth][kWarp * W];
  RowsOfB B[kDepth][kWarps];

  __device__ __forceinline__ void stage(const InjectDeltaArgs& args, index_t first_row, index_t first_column,
                                        index_t first_k, int depth) {
    for (int i = threadIdx.x; i < depth * kWarp; i += kThreads) {
      const int k = i / kWarp, at = i % kWarp * W;
      float columns[W] = {};  // zeros where they are outside
      if (first_column + at < args.in_features) {
        load(args.A + (first_k + k) * args.in_features + first_column + at, columns);
      }
#pragma unroll
      for (int w = 0; w < W; ++w) A[k][at + w] = columns[w];
    }
    for (int i = threadIdx.x; i < kBlockRows * kDepth; i += kThreads) {
      const int row = i / kDepth, k = i % kDepth;
      if (k >= depth) continue;
      const index_t at = (first_row + row) * args.rank + first_k + k - args.B_skipped;
      const bool inside = first_row + row < args.out_features;
      B[k][row / kRows].of[row % kRows] = inside ? __fmul_rn(args.scaling, __ldg(args.B + at)) : 0.0f;
    }
  }
};

// W columns of a warp's rows: their codes, and the deltas. Both passes get the same bits from it.
template <int W>
struct Columns {
  Pack<std::int8_t, W> codes[kRows] = {};
  float row_scale[kRows] = {};
  float delta[kRows][W] = {};

  // Of the tile of columns that begins at first_column. All threads of the block come here together, also those whose
  // columns are outside.
  __device__ __forceinline__ Columns(const InjectDeltaArgs& args, index_t first_row, const Rows& rows,
                                     index_t first_column, Staged<W>& staged) {
    if (first_column + threadIdx.x % kWarp * W < args.in_features) {
      read_base(args, rows, first_column + threadIdx.x % kWarp * W);
    }
    for (index_t k = 0; k < args.rank; k += kDepth) {
      const int depth = static_cast<int>(args.rank - k < kDepth ? args.rank - k : kDepth);
      __syncthreads();  // until here others may still read what was staged before
      staged.stage(args, first_row, first_column, k, depth);
      __syncthreads();
      add_deltas(staged, depth);
    }
  }

  __device__ __forceinline__ void read_base(const InjectDeltaArgs& args, const Rows& rows, index_t column) {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      codes[r] = load_pack<W>(args.codes + rows[r] * args.in_features + column);
      row_scale[r] = __ldg(args.row_scale + rows[r]);
    }
  }

  __device__ __forceinline__ void add_deltas(const Staged<W>& staged, int depth) {
    const int column = threadIdx.x % kWarp * W, warp = threadIdx.x / kWarp;
#pragma unroll 4
    for (int k = 0; k < depth; ++k) {
      const RowsOfB b = staged.B[k][warp];
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
#pragma unroll
        for (int w = 0; w < W; ++w) delta[r][w] = fmaf(b.of[r], staged.A[k][column + w], delta[r][w]);
      }
    }
  }

  __device__ float base(int r, int w) const { return __fmul_rn(widened(codes[r].at[w]), row_scale[r]); }
  __device__ float value(int r, int w) const { return __fadd_rn(base(r, w), delta[r][w]); }
};

// -- First pass: what is largest --------------------------------------------------------------------------------------

// Of each row, as bits of absolute values: the largest value and the largest delta.
struct Facts {
  int largest[2 * kRows] = {};

  template <int W>
  __device__ __forceinline__ void add(const Columns<W>& columns) {
    const Larger larger;
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
#pragma unroll
      for (int w = 0; w < W; ++w) {
        largest[r] = larger(largest[r], abs_bits(columns.value(r, w)));
        largest[kRows + r] = larger(largest[kRows + r], abs_bits(columns.delta[r][w]));
      }
    }
  }

  __device__ float value(int r) const { return __int_as_float(largest[r]); }
  __device__ bool has_delta(int r) const { return largest[kRows + r] != 0; }
};

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
    store_pack(values, columns.codes[r]);
  } else {
    float base[W];
#pragma unroll
    for (int w = 0; w < W; ++w) base[w] = columns.base(r, w);
    store(values, base);
  }
}

// W columns of all the warp's rows.
template <typename T, int W>
__device__ __forceinline__ void round_columns(const InjectDeltaArgs& args, const Rows& rows, const Columns<W>& columns,
                                              index_t column, const Rounder (&rounders)[kRows], Sums& sums) {
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    if (!rows.has(r)) continue;
    const index_t at = rows[r] * args.in_features + column;
    if (rounders[r].keep) {
      keep_row<T>(args, columns, r, at);
    } else {
      round_row(columns, r, rounders[r], column, static_cast<T*>(args.values) + at, sums);
    }
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

template <int W>
__device__ Facts facts_of(const InjectDeltaArgs& args, index_t first_row, const Rows& rows, Staged<W>& staged) {
  Facts facts;
  for (index_t first = 0; first < args.in_features; first += kWarp * W) {
    facts.add(Columns<W>(args, first_row, rows, first, staged));  // outside, all of them are zero
  }
  reduce_over_warp<Larger>(facts.largest);
  return facts;
}

// A block's rows, from the first on. All its threads come here together.
template <typename T, int W>
__device__ void inject_rows(const InjectDeltaArgs& args, index_t first_row, Staged<W>& staged) {
  const Rows rows{first_row + static_cast<index_t>(threadIdx.x) / kWarp * kRows, args.out_features - 1};
  const Facts facts = facts_of(args, first_row, rows, staged);
  const Rounder rounders[kRows] = {
      {args, rows[0], facts, 0}, {args, rows[1], facts, 1}, {args, rows[2], facts, 2}, {args, rows[3], facts, 3}};
  Sums sums;
  for (index_t first = 0; first < args.in_features; first += kWarp * W) {
    const Columns<W> columns(args, first_row, rows, first, staged);
    const index_t column = first + threadIdx.x % kWarp * W;
    if (column < args.in_features) round_columns<T>(args, rows, columns, column, rounders, sums);
  }
  reduce_over_warp<Plus>(sums.of);
  if (threadIdx.x % kWarp != 0) return;
#pragma unroll
  for (int r = 0; r < kRows; ++r) {  // by one lane: to index registers by lane would put them into memory
    if (rows.has(r)) write_report(args, rows[r], rounders[r], sums, r);
  }
}

// Whether W columns of every row can be moved at once.
template <typename T>
bool is_wide(const InjectDeltaArgs& args) {
  return rows_aligned<kColumns>(args.A, args.in_features) && rows_aligned<kColumns>(args.codes, args.in_features) &&
         rows_aligned<kColumns>(static_cast<T*>(args.values), args.in_features);
}

}  // namespace lorahub_edge::cuda::inject
