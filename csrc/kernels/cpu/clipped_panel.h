// Weights packed for AVX2 without VNNI, so that sums of two products fit 16 bits. Only int8_linear.isa.cpp includes
// this.
//
// vpmaddubsw multiplies unsigned by signed bytes and adds two products in 16 bits, or as much of them as fits. x + 128
// is unsigned and at most 255, so they fit while two neighbouring weights of one sign are 128 together at most. Of a
// normal distribution's int8 codes two pairs in a hundred are over: what is over is cut off one weight, and added
// behind the tile. Taking the sign of w to x instead, as Panel does, needs no cuts and one instruction in four more
// (docs/log.md).
#pragma once

#include "panel.h"

#if defined(__AVX2__) && !defined(__AVXVNNI__) && !defined(__AVX512F__)

namespace lorahub_edge::cpu {
namespace {

class ClippedPanel {
 public:
  static constexpr int kRows = 4, kVectors = 2;
  static constexpr int kTileRows = 64;

  ClippedPanel(const Int8LinearArgs& args, Room& room)
      : args_(args),
        features_((args.in_features + 31) / 32 * 32),
        codes_(room.take<std::int8_t>(features_ * kOutputColumns)),
        starts_(room.take<std::int32_t>(kOutputColumns)),
        shifted_(room.take<std::uint8_t>(args.n_rows * args.in_features + 8)),
        turned_(room.take<std::uint8_t>((args.n_rows + kTileRows - 1) / kTileRows * kTileRows * features_)),
        n_cut_(room.take<index_t>(kOutputColumns)),
        cut_(room.take<Cut>(kOutputColumns * most_cuts())) {}

  // x + 128, as it is and tile by tile as [in_features, kTileRows].
  void read_inputs() {
    const index_t n = args_.n_rows * args_.in_features;
    for (index_t i = 0; i < n; ++i) shifted_[i] = static_cast<std::uint8_t>(args_.x[i]) ^ 0x80;
    for (index_t row = 0; row < args_.n_rows; row += 8) {
      for (index_t i = 0; i < args_.in_features; i += 8) turn_inputs(row, i);
    }
  }

  // Packs the rows of w from `column` on, and cuts off what is over.
  void pack(index_t column) {
    for (index_t at = 0; at < kOutputColumns; at += kLanes) {
      for (int c = 0; c < kLanes; ++c) n_cut_[at + c] = 0;
      __m256i sums = _mm256_setzero_si256();
      for (index_t i = 0; i < args_.in_features; i += kVectorBytes) {
        Ints square[kLanes];
        read_square(args_, column + at, i, square);
        for (int j = 0; j < kLanes; ++j) {
          const __m256i w = reinterpret_cast<__m256i>(square[j]);
          sums = _mm256_add_epi32(sums, sum_fours(w));
          std::int8_t* to = codes_ + (i / 4 + j) * kPanelBytes + 4 * at;
          std::memcpy(to, &w, sizeof(w));
          for (std::uint32_t over = pairs_over(w); over != 0; over &= over - 1) {
            const int pair = __builtin_ctz(over) / 2;
            cut_pair(to + 2 * pair, at + pair / 2, i + 4 * j + pair % 2 * 2);
          }
        }
      }
      const __m256i starts = _mm256_mullo_epi32(sums, _mm256_set1_epi32(-128));
      std::memcpy(starts_ + at, &starts, sizeof(starts));
      for (int c = 0; c < kLanes; ++c) pad_cuts(at + c);
    }
  }

  // As Panel::dot, without what was cut off; there is one block.
  template <int R, int V>
  void dot(index_t, index_t row, int at, Sums<R, V>& sums) const {
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) std::memcpy(sums[r], starts_ + at * kLanes, sizeof(sums[r]));
    const std::uint8_t* x = shifted_ + row * args_.in_features;
    const std::int8_t* codes = codes_ + at * kVectorBytes;
    // behind the last feature w is zero, and x anything
    for (index_t i = 0; i < args_.in_features; i += 4, codes += kPanelBytes) {
      __m256i w[V];
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) std::memcpy(&w[v], codes + v * kVectorBytes, kVectorBytes);
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        const __m256i four = broadcast_four(x + r * args_.in_features + i);
#pragma GCC unroll 2
        for (int v = 0; v < V; ++v) sums[r][v] = sum_of(sums[r][v], sum_products(four, w[v]));
      }
    }
  }

  // Adds what was cut off to the products of rows first to last - 1, which are in one tile.
  void complete(index_t first, index_t last, std::int32_t* products) const {
    for (int at = 0; at < kOutputColumns; at += kLanes) {
      for (int half = 0; half < kTileRows && first + half < last; half += 32) {
        __m256i sums[4][8];
        for (int c = 0; c < 8; ++c) sum_cuts(at + c, first, half, sums, c);
        for (int k = 0; k < 4; ++k) {
          turn_eight(sums[k]);
          for (int lane = 0; lane < 8; ++lane) {
            const index_t row = half + 4 * k + lane % 4 + lane / 4 * 16;
            if (first + row < last) add_to(products + row * kOutputColumns + at, sums[k][lane]);
          }
        }
      }
    }
  }

 private:
  // Four features of one column, as offsets in a tile of x, and how much of their weights was cut off; each at most 64
  // in size, so that two of them times x + 128 fit 16 bits.
  struct Cut {
    std::int32_t offset[4];
    std::int8_t excess[4];
  };
  static constexpr int kMostExcess = 64;

  // Of a column: two for a pair of features, and what pads the last four.
  index_t most_cuts() const { return features_ / 4 + 1; }

  static __m256i broadcast_four(const void* from) {
    return reinterpret_cast<__m256i>(broadcast_codes<false>(static_cast<const std::int8_t*>(from), 4));
  }

  // Per lane the sum of four products, of unsigned by signed codes.
  static __m256i sum_products(__m256i x, __m256i w) {
    return _mm256_madd_epi16(_mm256_maddubs_epi16(x, w), _mm256_set1_epi16(1));
  }
  static __m256i sum_fours(__m256i w) { return sum_products(_mm256_set1_epi8(1), w); }

  // Modulo 2^32: with x + 128 sums may wrap, and do so back again.
  static Ints sum_of(Ints sum, __m256i terms) {
    return reinterpret_cast<Ints>(_mm256_add_epi32(reinterpret_cast<__m256i>(sum), terms));
  }

  static void add_to(std::int32_t* products, __m256i terms) {
    Ints sums;
    std::memcpy(&sums, products, sizeof(sums));
    sums = sum_of(sums, terms);
    std::memcpy(products, &sums, sizeof(sums));
  }

  // A bit for the lower byte of each 16 bits whose two weights are over.
  static std::uint32_t pairs_over(__m256i w) {
    const __m256i none = _mm256_setzero_si256(), ones = _mm256_set1_epi8(1), most = _mm256_set1_epi16(128);
    const __m256i above = _mm256_maddubs_epi16(_mm256_max_epi8(w, none), ones);
    const __m256i below = _mm256_maddubs_epi16(_mm256_abs_epi8(_mm256_min_epi8(w, none)), ones);
    const __m256i over = _mm256_or_si256(_mm256_cmpgt_epi16(above, most), _mm256_cmpgt_epi16(below, most));
    return static_cast<std::uint32_t>(_mm256_movemask_epi8(over)) & 0x55555555u;
  }

  // Cuts two weights, of one sign and more than 128 together, down to that: the larger of them, which is always enough.
  void cut_pair(std::int8_t* w, index_t column, index_t feature) {
    const int sign = w[0] > 0 ? 1 : -1;
    const int size[2] = {sign * w[0], sign * w[1]};
    const int larger = size[1] > size[0] ? 1 : 0;
    const int excess = size[0] + size[1] - 128;
    w[larger] = static_cast<std::int8_t>(w[larger] - sign * excess);
    add_cut(column, feature + larger, sign * static_cast<int>(smaller(excess, kMostExcess)));
    if (excess > kMostExcess) add_cut(column, feature + larger, sign * (excess - kMostExcess));
  }

  void add_cut(index_t column, index_t feature, int excess) {
    const index_t n = n_cut_[column]++;
    Cut& cut = cut_[column * most_cuts() + n / 4];
    cut.offset[n % 4] = static_cast<std::int32_t>(feature * kTileRows);
    cut.excess[n % 4] = static_cast<std::int8_t>(excess);
  }

  void pad_cuts(index_t column) {
    while (n_cut_[column] % 4 != 0) add_cut(column, 0, 0);
  }

  // sums[k][c] = what was cut off `column` times x + 128, of 32 rows of the tile from `half` on: in the lanes of k
  // those that `complete` names.
  void sum_cuts(index_t column, index_t first_row, int half, __m256i (&sums)[4][8], int c) const {
    __m256i sum[4] = {};
    const std::uint8_t* x = turned_ + first_row * features_ + half;
    const Cut* cut = cut_ + column * most_cuts();
    for (index_t n = n_cut_[column]; n > 0; n -= 4, ++cut) {
      __m256i rows[4];
#pragma GCC unroll 4
      for (int k = 0; k < 4; ++k) std::memcpy(&rows[k], x + cut->offset[k], sizeof(rows[k]));
      const __m256i low[2] = {_mm256_unpacklo_epi8(rows[0], rows[1]), _mm256_unpacklo_epi8(rows[2], rows[3])};
      const __m256i high[2] = {_mm256_unpackhi_epi8(rows[0], rows[1]), _mm256_unpackhi_epi8(rows[2], rows[3])};
      const __m256i fours[4] = {_mm256_unpacklo_epi16(low[0], low[1]), _mm256_unpackhi_epi16(low[0], low[1]),
                                _mm256_unpacklo_epi16(high[0], high[1]), _mm256_unpackhi_epi16(high[0], high[1])};
      const __m256i excess = broadcast_four(cut->excess);
#pragma GCC unroll 4
      for (int k = 0; k < 4; ++k) sum[k] = _mm256_add_epi32(sum[k], sum_products(fours[k], excess));
    }
    for (int k = 0; k < 4; ++k) sums[k][c] = sum[k];
  }

  // Eight rows by eight features of x + 128; what is read behind the last feature or row goes where nobody reads.
  void turn_inputs(index_t row, index_t i) {
    __m128i lines[8];
    for (int r = 0; r < 8; ++r) {
      const index_t from = smaller(row + r, args_.n_rows - 1) * args_.in_features + i;
      lines[r] = _mm_loadl_epi64((const __m128i*)(shifted_ + from));
    }
    __m128i pairs[4], fours[4];
    for (int p = 0; p < 4; ++p) pairs[p] = _mm_unpacklo_epi8(lines[2 * p], lines[2 * p + 1]);
    for (int p = 0; p < 4; p += 2) {
      fours[p] = _mm_unpacklo_epi16(pairs[p], pairs[p + 1]);
      fours[p + 1] = _mm_unpackhi_epi16(pairs[p], pairs[p + 1]);
    }
    std::uint8_t* to = turned_ + row / kTileRows * kTileRows * features_ + i * kTileRows + row % kTileRows;
    for (int p = 0; p < 2; ++p) {
      const __m128i eights[2] = {_mm_unpacklo_epi32(fours[p], fours[2 + p]),
                                 _mm_unpackhi_epi32(fours[p], fours[2 + p])};
      for (int q = 0; q < 2; ++q) {
        _mm_storel_epi64((__m128i*)(to + (4 * p + 2 * q) * kTileRows), eights[q]);
        _mm_storel_epi64((__m128i*)(to + (4 * p + 2 * q + 1) * kTileRows), _mm_unpackhi_epi64(eights[q], eights[q]));
      }
    }
  }

  const Int8LinearArgs& args_;
  index_t features_;
  std::int8_t* codes_;
  std::int32_t* starts_;
  std::uint8_t* shifted_;
  std::uint8_t* turned_;
  index_t* n_cut_;
  Cut* cut_;
};

}  // namespace
}  // namespace lorahub_edge::cpu

#endif
