// Weights packed for products with many rows. Only int8_linear.isa.cpp includes this.
//
// A panel holds kOutputColumns rows of a weight as [in_features / 4, column, 4]: one vector is the same four features
// of kLanes columns, and lanes become outputs without a sum over them.
#pragma once

#include "excess.h"

namespace lorahub_edge::cpu {
namespace {

constexpr index_t kPanelBytes = 4 * kOutputColumns;  // of four features

// Sums of R rows and V vectors of columns.
template <int R, int V>
using Sums = Ints[R][V];

#if defined(__AVX2__)
// lanes[i] becomes [lanes[0][i], lanes[1][i] ...], of 8 by 8.
inline void turn_eight(__m256i (&lanes)[8]) {
  __m256i pairs[8], fours[8];
  for (int i = 0; i < 8; i += 2) {
    pairs[i] = _mm256_unpacklo_epi32(lanes[i], lanes[i + 1]);
    pairs[i + 1] = _mm256_unpackhi_epi32(lanes[i], lanes[i + 1]);
  }
  for (int i = 0; i < 8; i += 4) {
    for (int j = 0; j < 2; ++j) {
      fours[i + 2 * j] = _mm256_unpacklo_epi64(pairs[i + j], pairs[i + 2 + j]);
      fours[i + 2 * j + 1] = _mm256_unpackhi_epi64(pairs[i + j], pairs[i + 2 + j]);
    }
  }
  for (int j = 0; j < 4; ++j) {
    lanes[j] = _mm256_permute2x128_si256(fours[j], fours[4 + j], 0x20);
    lanes[4 + j] = _mm256_permute2x128_si256(fours[j], fours[4 + j], 0x31);
  }
}
#endif

#if defined(__AVX512F__)
// rows[i] becomes [rows[0][i], rows[1][i] ...]: of rows of a weight, vectors of four features.
inline void turn_square(Ints (&rows)[kLanes]) {
  __m512i pairs[16], fours[16];
  for (int i = 0; i < 16; i += 2) {
    const __m512i even = reinterpret_cast<__m512i>(rows[i]), odd = reinterpret_cast<__m512i>(rows[i + 1]);
    pairs[i] = _mm512_unpacklo_epi32(even, odd);
    pairs[i + 1] = _mm512_unpackhi_epi32(even, odd);
  }
  // fours[4q + j]: in its quarter L, four features number 4L + j of the rows 4q to 4q + 3
  for (int i = 0; i < 16; i += 4) {
    for (int j = 0; j < 2; ++j) {
      fours[i + 2 * j] = _mm512_unpacklo_epi64(pairs[i + j], pairs[i + 2 + j]);
      fours[i + 2 * j + 1] = _mm512_unpackhi_epi64(pairs[i + j], pairs[i + 2 + j]);
    }
  }
  for (int j = 0; j < 4; ++j) {
    const __m512i low_even = _mm512_shuffle_i32x4(fours[j], fours[4 + j], 0x88);
    const __m512i low_odd = _mm512_shuffle_i32x4(fours[j], fours[4 + j], 0xdd);
    const __m512i high_even = _mm512_shuffle_i32x4(fours[8 + j], fours[12 + j], 0x88);
    const __m512i high_odd = _mm512_shuffle_i32x4(fours[8 + j], fours[12 + j], 0xdd);
    rows[j] = reinterpret_cast<Ints>(_mm512_shuffle_i32x4(low_even, high_even, 0x88));
    rows[4 + j] = reinterpret_cast<Ints>(_mm512_shuffle_i32x4(low_odd, high_odd, 0x88));
    rows[8 + j] = reinterpret_cast<Ints>(_mm512_shuffle_i32x4(low_even, high_even, 0xdd));
    rows[12 + j] = reinterpret_cast<Ints>(_mm512_shuffle_i32x4(low_odd, high_odd, 0xdd));
  }
}
#elif defined(__AVX2__)
inline void turn_square(Ints (&rows)[kLanes]) {
  __m256i lanes[8];
  for (int i = 0; i < 8; ++i) lanes[i] = reinterpret_cast<__m256i>(rows[i]);
  turn_eight(lanes);
  for (int i = 0; i < 8; ++i) rows[i] = reinterpret_cast<Ints>(lanes[i]);
}
#else
inline void turn_square(Ints (&rows)[kLanes]) {
  Ints turned[kLanes];
  for (int i = 0; i < kLanes; ++i) {
    for (int lane = 0; lane < kLanes; ++lane) turned[i][lane] = rows[lane][i];
  }
  for (int i = 0; i < kLanes; ++i) rows[i] = turned[i];
}
#endif

// Rows first to first + kLanes - 1 of a weight, features i to i + kVectorBytes - 1, in vectors of four features;
// zero behind the last row and feature.
inline void read_square(const Int8LinearArgs& args, index_t first, index_t i, Ints (&square)[kLanes]) {
  const index_t n = args.in_features - i;
  for (int row = 0; row < kLanes; ++row) {
    const std::int8_t* from = args.w + (first + row) * args.in_features + i;
    if (first + row >= args.out_features) {
      square[row] = Ints{};
    } else {
      square[row] = n >= kVectorBytes ? load_codes<false>(from, 0) : load_codes<true>(from, n);
    }
  }
  turn_square(square);
}

// Products by `add_dots`.
class Panel {
 public:
  // Rows and vectors of columns whose sums are in registers together.
#if defined(__AVX512F__) || defined(__ARM_FEATURE_DOTPROD)
  static constexpr int kRows = 6, kVectors = 4;
#elif defined(__AVXVNNI__)
  static constexpr int kRows = 6, kVectors = 2;
#elif defined(__aarch64__)
  static constexpr int kRows = 4, kVectors = 4;
#elif defined(__AVX2__)
  static constexpr int kRows = 4, kVectors = 2;
#else
  static constexpr int kRows = 2, kVectors = 2;
#endif
  static constexpr int kTileRows = 48;

  Panel(const Int8LinearArgs& args, Room& room)
      : args_(args),
        block_features_(args.in_features / args.n_blocks),
        codes_(room.take<std::uint8_t>((args.in_features + 63) / 64 * 64 * kOutputColumns)),
        excess_(args, room) {}

  // What is needed of x, once for all columns.
  void read_inputs() { excess_.read_inputs(args_); }

  // Packs the rows of w from `column` on.
  void pack(index_t column) {
    for (index_t at = 0; at < kOutputColumns; at += kLanes) {
      for (index_t i = 0; i < args_.in_features; i += kVectorBytes) {
        Ints square[kLanes];
        read_square(args_, column + at, i, square);
        std::uint8_t* to = codes_ + i / 4 * kPanelBytes + 4 * at;
        for (int j = 0; j < kLanes; ++j) store_codes(to + j * kPanelBytes, with_offset(square[j]));
      }
    }
  }

  // sums = dot products of R rows of x with the panel's vectors of columns `at` to at + V - 1, over block b.
  template <int R, int V>
  void dot(index_t b, index_t row, int at, Sums<R, V>& sums) const {
#pragma GCC unroll 6
    for (int r = 0; r < R; ++r) {
      const std::int32_t start = static_cast<std::int32_t>(0 - excess_.of(row + r, b));
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) sums[r][v] = start - Ints{};
    }
    const index_t last = (b + 1) * block_features_;
    index_t i = b * block_features_;
    for (; i + 4 <= last; i += 4) add_features<R, V, false>(row, i, 4, at, sums);
    if (i < last) add_features<R, V, true>(row, i, last - i, at, sums);
  }

  // What the panel leaves out of products of rows first to last - 1: nothing.
  template <typename P>
  void complete(index_t, index_t, P*) const {}

 private:
  static void store_codes(std::uint8_t* to, Ints codes) { std::memcpy(to, &codes, sizeof(codes)); }

  // sums += products of the features i to i + 3; kPart: of the first n of them.
  template <int R, int V, bool kPart>
  void add_features(index_t row, index_t i, index_t n, int at, Sums<R, V>& sums) const {
    const std::uint8_t* codes = codes_ + i / 4 * kPanelBytes + at * kVectorBytes;
    Ints w[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) std::memcpy(&w[v], codes + v * kVectorBytes, sizeof(Ints));
#pragma GCC unroll 6
    for (int r = 0; r < R; ++r) {
      const Ints x = broadcast_codes<kPart>(args_.x + (row + r) * args_.in_features + i, n);
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) sums[r][v] = add_dots(sums[r][v], w[v], x);
    }
  }

  const Int8LinearArgs& args_;
  index_t block_features_;
  std::uint8_t* codes_;
  Excess excess_;
};

}  // namespace
}  // namespace lorahub_edge::cpu
