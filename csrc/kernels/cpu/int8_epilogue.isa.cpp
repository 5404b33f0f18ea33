// The loops of int8_epilogue, compiled once per instruction set (see isa.h).
//
// Per group of rows, B is turned once so that its columns lie together. Then some rows at a time, tile by tile of
// output columns, are scaled, get their side path while they are in registers, and are written once.
#include "isa_kernels.h"
#include "simd.h"

namespace lorahub_edge::cpu {
namespace {

// Rows whose side path is summed together; they share the reads of the turned B.
constexpr int kRows = 4;

// Rows that go through a tile of columns before the next: enough to keep the tile's part of B in the first-level cache,
// few enough that their pages all stay in the first-level address cache.
constexpr index_t kBlockRows = 16;
constexpr int kTileVectors = static_cast<int>(kEpilogueColumns) / kLanes;
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kMostVectors = 4;
#else
constexpr int kMostVectors = 2;
#endif

// Columns of one tile: the part of each array that belongs to them.
struct Tile {
  index_t first_column;
  index_t n_columns;
  const float* B_turned;  // [rank, kEpilogueColumns], anything behind n_columns
};

// The group's B[o, k] as [tile, k, column of the tile].
void turn_B(const Int8EpilogueArgs& args, index_t group, float* turned) {
  const float* B = args.B + group * args.out_features * args.rank;
  for (index_t o = 0; o < args.out_features; ++o) {
    float* to = turned + o / kEpilogueColumns * args.rank * kEpilogueColumns + o % kEpilogueColumns;
    for (index_t k = 0; k < args.rank; ++k) to[k * kEpilogueColumns] = B[o * args.rank + k];
  }
}

// R rows by V vectors of columns, from column `at` of the tile on; kPart: only n columns of a single vector.
template <int R, int V, bool kPart, typename T>
inline void epilogue_vectors(const Int8EpilogueArgs& args, const Tile& tile, index_t row, index_t at, index_t n) {
  const index_t column = tile.first_column + at;
  Vector y[R][V];
  for (int v = 0; v < V; ++v) {
    const Vector row_scale = load_columns<kPart>(args.row_scale + column + v * kLanes, n);
    const Vector bias = args.bias == nullptr ? Vector{} : load_columns<kPart>(args.bias + column + v * kLanes, n);
    for (int r = 0; r < R; ++r) {
      const std::int32_t* product = args.product + (row + r) * args.out_features + column + v * kLanes;
      y[r][v] = load_columns<kPart>(product, n) * args.x_scale[row + r] * row_scale;
      if (args.bias != nullptr) y[r][v] += bias;
    }
  }
  if (args.side != nullptr) {
    const float* B_turned = tile.B_turned + at;
    const float* side = args.side + row * args.rank;
    for (index_t k = 0; k < args.rank; ++k, B_turned += kEpilogueColumns) {
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) {
          y[r][v] = multiply_add(broadcast(side[r * args.rank + k]), load(B_turned + v * kLanes), y[r][v]);
        }
      }
    }
  }
  for (int r = 0; r < R; ++r) {
    T* out = static_cast<T*>(args.out) + (row + r) * args.out_features + column;
    for (int v = 0; v < V; ++v) store_columns<kPart>(out + v * kLanes, y[r][v], n);
  }
}

template <int R, typename T>
inline void epilogue_tile_rows(const Int8EpilogueArgs& args, const Tile& tile, index_t row) {
  constexpr int V = kTileVectors < kMostVectors ? kTileVectors : kMostVectors;
  index_t at = 0;
  for (; at + V * kLanes <= tile.n_columns; at += V * kLanes) epilogue_vectors<R, V, false, T>(args, tile, row, at, 0);
  for (; at + kLanes <= tile.n_columns; at += kLanes) epilogue_vectors<R, 1, false, T>(args, tile, row, at, 0);
  if (at < tile.n_columns) epilogue_vectors<R, 1, true, T>(args, tile, row, at, tile.n_columns - at);
}

// Some rows of one group.
template <typename T>
void epilogue_block(const Int8EpilogueArgs& args, index_t first_row, index_t last_row, const float* B_turned) {
  for (index_t column = 0; column < args.out_features; column += kEpilogueColumns) {
    const Tile tile{column, smaller(kEpilogueColumns, args.out_features - column), B_turned + column * args.rank};
    index_t row = first_row;
    for (; row + kRows <= last_row; row += kRows) epilogue_tile_rows<kRows, T>(args, tile, row);
    for (; row < last_row; ++row) epilogue_tile_rows<1, T>(args, tile, row);
  }
}

}  // namespace

template <>
template <typename T>
void IsaKernels<kIsa>::epilogue_rows(const Int8EpilogueArgs& args, index_t first_row, index_t last_row,
                                     float* B_turned) {
  for (index_t row = first_row; row < last_row;) {
    const index_t group = row / args.rows_per_group;
    const index_t end = smaller(last_row, (group + 1) * args.rows_per_group);
    if (args.side != nullptr) turn_B(args, group, B_turned);
    for (; row < end; row += kBlockRows) epilogue_block<T>(args, row, smaller(row + kBlockRows, end), B_turned);
    row = end;
  }
}

template void IsaKernels<kIsa>::epilogue_rows<float>(const Int8EpilogueArgs&, index_t, index_t, float*);
template void IsaKernels<kIsa>::epilogue_rows<bfloat16>(const Int8EpilogueArgs&, index_t, index_t, float*);

}  // namespace lorahub_edge::cpu
