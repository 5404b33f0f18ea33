// Weights packed for ARM's smmla, which multiplies two rows with two columns over eight features. Only
// int8_linear.isa.cpp includes this.
//
// The panel is [block, in_features / 8 of it, column, 8]: one vector is the same eight features of two columns.
#pragma once

#include "panel.h"

#if defined(__ARM_FEATURE_MATMUL_INT8)

namespace lorahub_edge::cpu {
namespace {

class MatrixPanel {
 public:
  static constexpr int kRows = 6, kVectors = 4;
  static constexpr int kTileRows = 48;

  MatrixPanel(const Int8LinearArgs& args, Room& room)
      : args_(args),
        block_features_(args.in_features / args.n_blocks),
        block_steps_((block_features_ + 7) / 8),
        codes_(room.take<std::int8_t>(args.n_blocks * block_steps_ * kStepBytes)) {}

  void read_inputs() {}

  void pack(index_t column) {
    const index_t n_columns = smaller(kOutputColumns, args_.out_features - column);
    for (index_t step = 0; step < args_.n_blocks * block_steps_; ++step) {
      const index_t in_block = step % block_steps_ * 8;
      const std::int8_t* from = args_.w + column * args_.in_features + step / block_steps_ * block_features_ + in_block;
      std::int8_t* to = codes_ + step * kStepBytes;
      for (index_t c = 0; c < n_columns; ++c, from += args_.in_features) store_eight(to + 8 * c, from, in_block);
    }
  }

  // As Panel::dot.
  template <int R, int V>
  void dot(index_t b, index_t row, int at, Sums<R, V>& sums) const {
    constexpr int kPairs = (R + 1) / 2;
    int32x4_t squares[kPairs][V][2] = {};
    const std::int8_t* codes = codes_ + b * block_steps_ * kStepBytes + at * 4 * 8;
    for (index_t i = 0; i < block_features_; i += 8, codes += kStepBytes) {
      int8x16_t x[kPairs];
#pragma GCC unroll 3
      for (int p = 0; p < kPairs; ++p) x[p] = two_rows<R>(row + 2 * p, b * block_features_ + i, block_features_ - i);
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) {
#pragma GCC unroll 2
        for (int half = 0; half < 2; ++half) {
          const int8x16_t w = vld1q_s8(codes + v * 32 + half * 16);
#pragma GCC unroll 3
          for (int p = 0; p < kPairs; ++p) squares[p][v][half] = vmmlaq_s32(squares[p][v][half], x[p], w);
        }
      }
    }
    // a square is [row, row + 1] by [column, column + 1]
#pragma GCC unroll 6
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) {
        const int64x2_t left = vreinterpretq_s64_s32(squares[r / 2][v][0]);
        const int64x2_t right = vreinterpretq_s64_s32(squares[r / 2][v][1]);
        const int64x2_t line = r % 2 == 0 ? vzip1q_s64(left, right) : vzip2q_s64(left, right);
        sums[r][v] = reinterpret_cast<Ints>(line);
      }
    }
  }

  template <typename P>
  void complete(index_t, index_t, P*) const {}

 private:
  static constexpr index_t kStepBytes = 8 * kOutputColumns;

  // Eight features, or those that the block still has, and zeros.
  void store_eight(std::int8_t* to, const std::int8_t* from, index_t in_block) const {
    std::int64_t eight = 0;
    std::memcpy(&eight, from, static_cast<std::size_t>(smaller(8, block_features_ - in_block)));
    std::memcpy(to, &eight, sizeof(eight));
  }

  static int8x8_t eight_codes(const std::int8_t* from, index_t n) {
    std::int64_t eight = 0;
    if (n >= 8) {
      std::memcpy(&eight, from, 8);
    } else {
      std::memcpy(&eight, from, static_cast<std::size_t>(n));
    }
    return vcreate_s8(static_cast<std::uint64_t>(eight));
  }

  // Eight features of two rows of x, n of them in the block; with a single row it stands in for the other.
  template <int R>
  int8x16_t two_rows(index_t row, index_t feature, index_t n) const {
    const std::int8_t* from = args_.x + row * args_.in_features + feature;
    return vcombine_s8(eight_codes(from, n), eight_codes(R == 1 ? from : from + args_.in_features, n));
  }

  const Int8LinearArgs& args_;
  index_t block_features_;
  index_t block_steps_;
  std::int8_t* codes_;
};

}  // namespace
}  // namespace lorahub_edge::cpu

#endif
