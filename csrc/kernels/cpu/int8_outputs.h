// From a tile of products to outputs: what int8_epilogue and int8_linear share. Only <op>.isa.cpp files include this.
//
// Some rows at a time are scaled, get their side path while they are in registers, and are written once.
#pragma once

#include <type_traits>

#include "gates.h"
#include "isa_kernels.h"

namespace lorahub_edge::cpu {
namespace {

// Rows whose side path is summed together; they share the reads of the turned B.
constexpr int kOutputRows = 4;

constexpr int kTileVectors = static_cast<int>(kOutputColumns) / kLanes;
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kMostVectors = 4;
#else
constexpr int kMostVectors = 2;
#endif

// Products of some rows with kOutputColumns columns or fewer. P: std::int32_t, or float where x_scale is in them
// already.
template <typename P>
struct Tile {
  const P* products;  // of the first row and column
  index_t stride;     // from row to row
  index_t first_row;
  index_t first_column;
  index_t n_columns;
  const float* B_turned;  // [rank, kOutputColumns] of the rows' group, anything behind n_columns
  bool stream;            // write past the caches: float32 without a gate, in whole lines
};

// B[o, k] of one group and a tile's columns as [k, column of the tile].
inline void turn_B(const Int8Outputs& args, index_t group, index_t first_column, index_t n_columns, float* turned) {
  const float* B = args.B + (group * args.out_features + first_column) * args.rank;
  for (index_t o = 0; o < n_columns; ++o) {
    for (index_t k = 0; k < args.rank; ++k) turned[k * kOutputColumns + o] = B[o * args.rank + k];
  }
}

template <bool kPart>
inline Vector scaled(const std::int32_t* products, index_t n, float x_scale) {
  return load_columns<kPart>(products, n) * x_scale;
}

template <bool kPart>
inline Vector scaled(const float* products, index_t n, float) {
  return load_columns<kPart>(products, n);
}

inline Vector gated_by(const Int8Outputs& args, Vector gate, Vector y) {
  return args.activation == Activation::silu ? gated<Activation::silu>(gate, y) : gated<Activation::gelu_tanh>(gate, y);
}

// R rows by V vectors of columns, from column `at` of the tile on; kPart: only n columns of a single vector; kGated:
// there is a gate.
template <int R, int V, bool kPart, bool kGated, typename T, typename P>
inline void output_vectors(const Int8Outputs& args, const Tile<P>& tile, index_t row, index_t at, index_t n) {
  const index_t column = tile.first_column + at;
  Vector y[R][V];
  for (int v = 0; v < V; ++v) {
    const Vector row_scale = load_columns<kPart>(args.row_scale + column + v * kLanes, n);
    const Vector bias = args.bias == nullptr ? Vector{} : load_columns<kPart>(args.bias + column + v * kLanes, n);
    for (int r = 0; r < R; ++r) {
      const P* products = tile.products + (row + r - tile.first_row) * tile.stride + at + v * kLanes;
      y[r][v] = scaled<kPart>(products, n, args.x_scale[row + r]) * row_scale;
      if (args.bias != nullptr) y[r][v] += bias;
    }
  }
  if (args.side != nullptr) {
    const float* B_turned = tile.B_turned + at;
    const float* side = args.side + row * args.rank;
    for (index_t k = 0; k < args.rank; ++k, B_turned += kOutputColumns) {
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
    if constexpr (kGated) {
      const T* gate = static_cast<const T*>(args.gate) + (row + r) * args.out_features + column;
      for (int v = 0; v < V; ++v) y[r][v] = gated_by(args, load_columns<kPart>(gate + v * kLanes, n), y[r][v]);
    }
    if constexpr (!kPart && !kGated && std::is_same_v<T, float>) {
      if (tile.stream) {
        for (int v = 0; v < V; ++v) stream(out + v * kLanes, y[r][v]);
        continue;
      }
    }
    for (int v = 0; v < V; ++v) store_columns<kPart>(out + v * kLanes, y[r][v], n);
  }
}

template <int R, bool kGated, typename T, typename P>
inline void output_rows(const Int8Outputs& args, const Tile<P>& tile, index_t row) {
  constexpr int V = kTileVectors < kMostVectors ? kTileVectors : kMostVectors;
  index_t at = 0;
  for (; at + V * kLanes <= tile.n_columns; at += V * kLanes)
    output_vectors<R, V, false, kGated, T>(args, tile, row, at, 0);
  for (; at + kLanes <= tile.n_columns; at += kLanes) output_vectors<R, 1, false, kGated, T>(args, tile, row, at, 0);
  if (at < tile.n_columns) output_vectors<R, 1, true, kGated, T>(args, tile, row, at, tile.n_columns - at);
}

template <bool kGated, typename T, typename P>
void output_range(const Int8Outputs& args, const Tile<P>& tile, index_t first_row, index_t last_row) {
  index_t row = first_row;
  for (; row + kOutputRows <= last_row; row += kOutputRows) output_rows<kOutputRows, kGated, T>(args, tile, row);
  for (; row < last_row; ++row) output_rows<1, kGated, T>(args, tile, row);
}

// Rows of one group.
template <typename T, typename P>
void output_tile(const Int8Outputs& args, const Tile<P>& tile, index_t first_row, index_t last_row) {
  if (args.gate == nullptr) return output_range<false, T>(args, tile, first_row, last_row);
  output_range<true, T>(args, tile, first_row, last_row);
}

}  // namespace
}  // namespace lorahub_edge::cpu
