// int8_epilogue on CUDA. A block of threads has a tile of the output, a warp some of its rows, a thread the same few
// columns in each of them. The side path's factors come through shared memory, some k at a time, while the sums stay in
// registers; the output is written once.
#include "../int8_epilogue.h"

#include "../../dispatch.h"
#include "launch.cuh"
#include "reduce.cuh"
#include "values.cuh"

namespace lorahub_edge::cuda {
namespace {

constexpr const char* kOp = "int8_epilogue";
constexpr int kThreads = 256;
constexpr int kColumns = 4;  // of a thread, where addresses allow
constexpr int kRows = 4;     // of a thread
constexpr int kTileRows = kThreads / kWarp * kRows;
constexpr int kDepth = 32;  // of the side path in shared memory

// Where a tile lies. Its rows are of one group.
struct Tile {
  index_t group;
  index_t first_row;
  index_t first_column;
  int n_rows;
  int n_columns;
};

// Tiles go along the columns first, then down the rows of a group, then to the next group.
struct Tiling {
  int tile_columns;
  index_t across;
  index_t down;  // in one group
  index_t n_groups;

  __host__ __device__ Tiling(const Int8EpilogueArgs& args, int tile_columns)
      : tile_columns(tile_columns),
        across((args.out_features + tile_columns - 1) / tile_columns),
        down((args.rows_per_group + kTileRows - 1) / kTileRows),
        n_groups(args.n_rows / args.rows_per_group) {}

  __host__ __device__ index_t n_tiles() const { return across * down * n_groups; }

  __device__ Tile operator()(const Int8EpilogueArgs& args, index_t number) const {
    const index_t line = number / across;
    const index_t group = line / down;
    const index_t row = (line - group * down) * kTileRows;
    const index_t column = (number - line * across) * tile_columns;
    return {group, group * args.rows_per_group + row, column,
            static_cast<int>(min(static_cast<index_t>(kTileRows), args.rows_per_group - row)),
            static_cast<int>(min(static_cast<index_t>(tile_columns), args.out_features - column))};
  }
};

// Up to kDepth of the side path for one tile. Rows of B are 16 bytes longer than they need be: turning them then meets
// fewer busy banks.
template <int W>
struct Side {
  static constexpr int kTileColumns = kWarp * W;

  alignas(16) float B[kDepth][kTileColumns + 4];
  float inner[kTileRows][kDepth];

  // Fills in k from first_k on. Where a thread's rows end outside the tile, zeros stand for the rest of them; what lies
  // beyond stays as it was, and nobody reads it.
  __device__ void stage(const Int8EpilogueArgs& args, const Tile& tile, index_t first_k, int depth) {
    const float* from_B = args.B + (tile.group * args.out_features + tile.first_column) * args.rank + first_k;
    for (int i = threadIdx.x; i < tile.n_columns * kDepth; i += kThreads) {
      const int column = i / kDepth, k = i % kDepth;
      if (k < depth) B[k][column] = __ldg(from_B + column * args.rank + k);
    }
    const float* from_inner = args.side + tile.first_row * args.rank + first_k;
    const int n_rows = (tile.n_rows + kRows - 1) / kRows * kRows;
    for (int i = threadIdx.x; i < n_rows * kDepth; i += kThreads) {
      const int row = i / kDepth, k = i % kDepth;
      if (k < depth) inner[row][k] = row < tile.n_rows ? __ldg(from_inner + row * args.rank + k) : 0.0f;
    }
  }
};

// A thread's part of a tile: W columns of n_rows rows; none where it lies outside the tile.
template <int W>
struct Part {
  index_t column;
  index_t first_row;
  int n_rows;

  __device__ explicit Part(const Tile& tile)
      : column(tile.first_column + threadIdx.x % kWarp * W),
        first_row(tile.first_row + threadIdx.x / kWarp * kRows),
        n_rows(threadIdx.x % kWarp * W < tile.n_columns ? tile.n_rows - static_cast<int>(threadIdx.x / kWarp) * kRows
                                                        : 0) {}
};

// The output without the side path.
template <int W>
__device__ void scale_products(const Int8EpilogueArgs& args, const Part<W>& part, float (&y)[kRows][W]) {
  if (part.n_rows <= 0) return;
  float row_scale[W], bias[W] = {};
  load(args.row_scale + part.column, row_scale);
  if (args.bias != nullptr) load(args.bias + part.column, bias);
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    if (r >= part.n_rows) break;
    const index_t row = part.first_row + r;
    const float x_scale = __ldg(args.x_scale + row);
    load(args.product + row * args.out_features + part.column, y[r]);
#pragma unroll
    for (int w = 0; w < W; ++w) {
      y[r][w] = __fmul_rn(__fmul_rn(y[r][w], x_scale), row_scale[w]);
      if (args.bias != nullptr) y[r][w] = __fadd_rn(y[r][w], bias[w]);
    }
  }
}

// Adds the k that lie in shared memory. Threads that lie outside the tile have nothing to do; others add to all their
// rows: zeros where some are outside.
template <int W>
__device__ void add_side(const Side<W>& side, const Part<W>& part, int depth, float (&y)[kRows][W]) {
  if (part.n_rows <= 0) return;
  const int column = threadIdx.x % kWarp * W;
  const int row = threadIdx.x / kWarp * kRows;
  for (int k = 0; k < depth; ++k) {
    float b[W];
    load_own(&side.B[k][column], b);
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
#pragma unroll
      for (int w = 0; w < W; ++w) y[r][w] = fmaf(side.inner[row + r][k], b[w], y[r][w]);
    }
  }
}

template <typename T, int W>
__global__ void __launch_bounds__(kThreads) epilogue_kernel(Int8EpilogueArgs args) {
  __shared__ Side<W> side;
  const Tiling tiling(args, Side<W>::kTileColumns);
  const index_t rank = args.side == nullptr ? 0 : args.rank;
  for (index_t number = blockIdx.x; number < tiling.n_tiles(); number += gridDim.x) {
    const Tile tile = tiling(args, number);
    const Part<W> part(tile);
    float y[kRows][W] = {};
    scale_products(args, part, y);
    for (index_t first_k = 0; first_k < rank; first_k += kDepth) {
      const int depth = static_cast<int>(min(static_cast<index_t>(kDepth), rank - first_k));
      __syncthreads();  // until here others may still read what was staged before
      side.stage(args, tile, first_k, depth);
      __syncthreads();
      add_side(side, part, depth, y);
    }
    T* out = static_cast<T*>(args.out) + part.first_row * args.out_features + part.column;
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      if (r < part.n_rows) store(out + r * args.out_features, y[r]);
    }
  }
}

template <typename T, int W>
void launch_tiles(const Int8EpilogueArgs& args, Where where) {
  const Tiling tiling(args, Side<W>::kTileColumns);
  const Launch how{kOp, where, tiling.n_tiles(), kThreads};
  launch(how, epilogue_kernel<T, W>, args);
}

}  // namespace

void int8_epilogue(const Int8EpilogueArgs& args, Where where) {
  if (args.n_rows == 0 || args.out_features == 0) return;
  const DeviceGuard guard(where.device, kOp);
  dispatch_dtype<float, bfloat16>(kOp, "out", args.out_dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    const index_t n = args.out_features;
    const bool wide = rows_aligned<kColumns>(args.product, n) && rows_aligned<kColumns>(args.row_scale, n) &&
                      rows_aligned<kColumns>(args.bias, n) && rows_aligned<kColumns>(static_cast<T*>(args.out), n);
    wide ? launch_tiles<T, kColumns>(args, where) : launch_tiles<T, 1>(args, where);
  });
}

}  // namespace lorahub_edge::cuda
