// int8_linear on CUDA. A block of threads has a tile of the output. Tiles of x and w come through shared memory, some
// steps ahead of the tensor cores that multiply them; the int32 sums stay in registers, where they become the output:
// no product is written to memory. A tile may have rows of several candidates: the side path is added candidate by
// candidate.
#include "../int8_linear.h"

#include "../../dispatch.h"
#include "launch.cuh"
#include "mma.cuh"
#include "reduce.cuh"
#include "values.cuh"

namespace lorahub_edge::cuda {
namespace {

constexpr const char* kOp = "int8_linear";
constexpr int kThreads = 256;
constexpr int kWarpsDown = 2, kWarpsAcross = 4;
constexpr int kDepth = 64;  // features of a step
constexpr int kSteps = 3;   // in shared memory at once
constexpr int kChunk = 16;  // bytes of one copy
constexpr int kChunks = kDepth / kChunk;
constexpr int kSideDepth = 16;  // of the side path in shared memory

// Where a tile lies.
struct Tile {
  index_t first_row;
  index_t first_column;
  int n_rows;
  int n_columns;
};

// -- Product ----------------------------------------------------------------------------------------------------------

// kDepth features of so many rows of x or w. A row's chunks stand in an order of their own, so that a warp that reads
// one chunk of eight rows meets eight different banks.
template <int kRows>
struct Step {
  alignas(kChunk) std::int8_t rows[kRows][kDepth];

  __device__ std::int8_t* chunk(int row, int number) { return &rows[row][(number ^ (row >> 1 & 3)) * kChunk]; }

  // Sends for features from `first` on; what is outside becomes zeros.
  __device__ void fetch(const std::int8_t* from, index_t in_features, int n_rows, index_t first) {
    for (int i = threadIdx.x; i < kRows * kChunks; i += kThreads) {
      const int row = i / kChunks, number = i % kChunks;
      const index_t feature = first + number * kChunk;
      const bool inside = row < n_rows && feature < in_features;
      copy_async(chunk(row, number), inside ? from + row * in_features + feature : from, inside);
    }
  }
};

// A warp's part of the tile: kDown x kAcross matrices of 16 x 8 sums.
template <int kTileRows, int kTileColumns>
struct Sums {
  static constexpr int kRows = kTileRows / kWarpsDown, kColumns = kTileColumns / kWarpsAcross;
  static constexpr int kDown = kRows / 16, kAcross = kColumns / 8;

  int of[kDown][kAcross][4] = {};

  __device__ static int lane() { return threadIdx.x % kWarp; }
  __device__ static int first_row() { return threadIdx.x / kWarp / kWarpsAcross * kRows; }
  __device__ static int first_column() { return threadIdx.x / kWarp % kWarpsAcross * kColumns; }

  // Rows and columns of a thread's sums: row r of 2 * kDown, column c of 2 * kAcross.
  __device__ static int row(int r) { return first_row() + r * 8 + lane() / 4; }
  __device__ static int column(int c) { return first_column() + c / 2 * 8 + lane() % 4 * 2 + c % 2; }
  __device__ int at(int r, int c) const { return of[r / 2][c / 2][r % 2 * 2 + c % 2]; }

  __device__ void multiply(Step<kTileRows>& x, Step<kTileColumns>& w) {
#pragma unroll
    for (int half = 0; half < kChunks; half += 2) {
      unsigned of_x[kDown][4], of_w[kAcross / 2][4];
#pragma unroll
      for (int i = 0; i < kDown; ++i) {
        load_matrices(x.chunk(first_row() + i * 16 + lane() % 16, half + lane() / 16), of_x[i]);
      }
#pragma unroll
      for (int j = 0; j < kAcross / 2; ++j) {
        const int row_of_w = first_column() + j * 16 + lane() / 16 * 8 + lane() % 8;
        load_matrices(w.chunk(row_of_w, half + lane() / 8 % 2), of_w[j]);
      }
#pragma unroll
      for (int i = 0; i < kDown; ++i) {
#pragma unroll
        for (int j = 0; j < kAcross; ++j) {
          multiply_add(of_x[i], of_w[j / 2][j % 2 * 2], of_w[j / 2][j % 2 * 2 + 1], of[i][j]);
        }
      }
    }
  }
};

template <int kTileRows, int kTileColumns>
struct Steps {
  Step<kTileRows> x[kSteps];
  Step<kTileColumns> w[kSteps];

  __device__ void fetch(const Int8LinearArgs& args, const Tile& tile, index_t number) {
    const int place = static_cast<int>(number % kSteps);
    x[place].fetch(args.x + tile.first_row * args.in_features, args.in_features, tile.n_rows, number * kDepth);
    w[place].fetch(args.w + tile.first_column * args.in_features, args.in_features, tile.n_columns, number * kDepth);
  }
};

template <int kTileRows, int kTileColumns>
__device__ void multiply(const Int8LinearArgs& args, const Tile& tile, Steps<kTileRows, kTileColumns>& steps,
                         Sums<kTileRows, kTileColumns>& sums) {
  const index_t n_steps = (args.in_features + kDepth - 1) / kDepth;
  for (index_t ahead = 0; ahead < kSteps - 1; ++ahead) {
    if (ahead < n_steps) steps.fetch(args, tile, ahead);
    commit_copies();
  }
  for (index_t number = 0; number < n_steps; ++number) {
    wait_for_copies<kSteps - 2>();
    __syncthreads();  // the step is there for all, and all have read the one whose place is filled next
    if (number + kSteps - 1 < n_steps) steps.fetch(args, tile, number + kSteps - 1);
    commit_copies();
    const int place = static_cast<int>(number % kSteps);
    sums.multiply(steps.x[place], steps.w[place]);
  }
  wait_for_copies<0>();
}

// -- Output -----------------------------------------------------------------------------------------------------------

// A thread's outputs, as float32.
template <int kTileRows, int kTileColumns>
struct Outputs {
  using Of = Sums<kTileRows, kTileColumns>;
  static constexpr int kRows = 2 * Of::kDown, kColumns = 2 * Of::kAcross;

  float y[kRows][kColumns];

  __device__ Outputs(const Int8LinearArgs& args, const Tile& tile, const Of& sums) {
    float x_scale[kRows], row_scale[kColumns], bias[kColumns];
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      x_scale[r] = Of::row(r) < tile.n_rows ? __ldg(args.x_scale + tile.first_row + Of::row(r)) : 0.0f;
    }
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      const bool inside = Of::column(c) < tile.n_columns;
      const index_t column = tile.first_column + Of::column(c);
      row_scale[c] = inside ? __ldg(args.row_scale + column) : 0.0f;
      bias[c] = inside && args.bias != nullptr ? __ldg(args.bias + column) : 0.0f;
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
#pragma unroll
      for (int c = 0; c < kColumns; ++c) {
        y[r][c] = __fmul_rn(__fmul_rn(widened(sums.at(r, c)), x_scale[r]), row_scale[c]);
        if (args.bias != nullptr) y[r][c] = __fadd_rn(y[r][c], bias[c]);
      }
    }
  }

  // Adds some k of one candidate's side path to its rows of the tile.
  template <typename Side>
  __device__ void add(const Side& side, int depth, index_t begin, index_t end) {
    for (int k = 0; k < depth; ++k) {
      float b[kColumns];
#pragma unroll
      for (int c = 0; c < kColumns; ++c) b[c] = side.B[k][Of::column(c)];
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        if (Of::row(r) < begin || Of::row(r) >= end) continue;
        const float inner = side.inner[Of::row(r)][k];
#pragma unroll
        for (int c = 0; c < kColumns; ++c) y[r][c] = fmaf(inner, b[c], y[r][c]);
      }
    }
  }

  template <typename T>
  __device__ void store_all(const Int8LinearArgs& args, const Tile& tile, bool in_pairs) const {
    T* out = static_cast<T*>(args.out) + tile.first_row * args.out_features + tile.first_column;
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      if (Of::row(r) >= tile.n_rows) continue;
#pragma unroll
      for (int c = 0; c < kColumns; c += 2) {
        T* to = out + Of::row(r) * args.out_features + Of::column(c);
        if (in_pairs && Of::column(c) < tile.n_columns) {
          const float pair[2] = {y[r][c], y[r][c + 1]};
          store(to, pair);
        } else {
          if (Of::column(c) < tile.n_columns) to[0] = narrowed<T>(y[r][c]);
          if (Of::column(c + 1) < tile.n_columns) to[1] = narrowed<T>(y[r][c + 1]);
        }
      }
    }
  }
};

// Up to kSideDepth of the side path. A row is one float longer than it need be: eight of them then meet eight banks.
template <int kTileRows, int kTileColumns>
struct Side {
  float inner[kTileRows][kSideDepth + 1];
  float B[kSideDepth][kTileColumns + 1];

  __device__ void stage_inner(const Int8LinearArgs& args, const Tile& tile, index_t first_k, int depth) {
    for (int i = threadIdx.x; i < kTileRows * kSideDepth; i += kThreads) {
      const int row = i / kSideDepth, k = i % kSideDepth;
      if (k < depth && row < tile.n_rows) {
        inner[row][k] = __ldg(args.side + (tile.first_row + row) * args.rank + first_k + k);
      }
    }
  }

  __device__ void stage_B(const Int8LinearArgs& args, const Tile& tile, index_t group, index_t first_k, int depth) {
    const float* from = args.B + (group * args.out_features + tile.first_column) * args.rank + first_k;
    for (int i = threadIdx.x; i < kTileColumns * kSideDepth; i += kThreads) {
      const int column = i / kSideDepth, k = i % kSideDepth;
      if (k < depth) B[k][column] = column < tile.n_columns ? __ldg(from + column * args.rank + k) : 0.0f;
    }
  }
};

template <int kTileRows, int kTileColumns>
__device__ void add_side(const Int8LinearArgs& args, const Tile& tile, Side<kTileRows, kTileColumns>& side,
                         Outputs<kTileRows, kTileColumns>& outputs) {
  const index_t first_group = tile.first_row / args.rows_per_group;
  const index_t last_group = (tile.first_row + tile.n_rows - 1) / args.rows_per_group;
  for (index_t k = 0; k < args.rank; k += kSideDepth) {
    const int depth = static_cast<int>(min(static_cast<index_t>(kSideDepth), args.rank - k));
    for (index_t group = first_group; group <= last_group; ++group) {
      __syncthreads();  // until here others may still read what was in this memory
      if (group == first_group) side.stage_inner(args, tile, k, depth);
      side.stage_B(args, tile, group, k, depth);
      __syncthreads();
      const index_t begin = group * args.rows_per_group - tile.first_row;
      outputs.add(side, depth, begin, min(begin + args.rows_per_group, static_cast<index_t>(tile.n_rows)));
    }
  }
}

template <typename T, int kTileRows, int kTileColumns>
__global__ void __launch_bounds__(kThreads, kTileRows < 128 ? 3 : 2)
    linear_kernel(Int8LinearArgs args, index_t n_tiles_down, index_t n_tiles, bool in_pairs) {
  union Memory {
    Steps<kTileRows, kTileColumns> steps;
    Side<kTileRows, kTileColumns> side;
  };
  __shared__ Memory memory;
  for (index_t number = blockIdx.x; number < n_tiles; number += gridDim.x) {
    const index_t row = number % n_tiles_down * kTileRows, column = number / n_tiles_down * kTileColumns;
    const Tile tile{row, column, static_cast<int>(min(static_cast<index_t>(kTileRows), args.n_rows - row)),
                    static_cast<int>(min(static_cast<index_t>(kTileColumns), args.out_features - column))};
    Sums<kTileRows, kTileColumns> sums;
    __syncthreads();  // until here others may still read what was in this memory
    multiply(args, tile, memory.steps, sums);
    Outputs<kTileRows, kTileColumns> outputs(args, tile, sums);
    if (args.side != nullptr) add_side(args, tile, memory.side, outputs);
    outputs.template store_all<T>(args, tile, in_pairs);
  }
}

template <typename T, int kTileRows, int kTileColumns>
void launch_tiles(const Int8LinearArgs& args, Where where) {
  const index_t down = divided_up(args.n_rows, kTileRows), across = divided_up(args.out_features, kTileColumns);
  const bool in_pairs = rows_aligned<2>(static_cast<T*>(args.out), args.out_features);
  const Launch how{kOp, where, down * across, kThreads};
  launch(how, linear_kernel<T, kTileRows, kTileColumns>, args, down, down * across, in_pairs);
}

int n_multiprocessors(int device) {
  int n = 0;
  check_cuda(cudaDeviceGetAttribute(&n, cudaDevAttrMultiProcessorCount, device), kOp);
  return n;
}

}  // namespace

void int8_linear(const Int8LinearArgs& args, Where where) {
  if (args.n_rows == 0 || args.out_features == 0) return;
  check(args.n_blocks == 1 && args.gate == nullptr, "int8_linear: expected one block and no gate on CUDA");
  check(rows_aligned<kChunk>(args.x, args.in_features) && rows_aligned<kChunk>(args.w, args.in_features),
        "int8_linear: expected x and w with rows that begin at multiples of 16 bytes on CUDA");
  const DeviceGuard guard(where.device, kOp);
  // large tiles read less; small ones keep more multiprocessors at work
  const index_t n_large = divided_up(args.n_rows, 128) * divided_up(args.out_features, 128);
  const bool large = n_large >= n_multiprocessors(where.device);
  dispatch_dtype<float, bfloat16>(kOp, "out", args.out_dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    large ? launch_tiles<T, 128, 128>(args, where) : launch_tiles<T, 64, 64>(args, where);
  });
}

}  // namespace lorahub_edge::cuda
