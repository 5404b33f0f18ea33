// Products of a few rows with weights as they lie in memory. Only int8_linear.isa.cpp includes this.
//
// Packing a panel costs as much as multiplying some dozens of rows with it, and a decoder's layers see fewer: a step of
// generation has one row per sequence. Here the features of one row fill a vector, so a product needs no packing, and
// the sum over lanes at its end costs little beside the row.
#pragma once

#include "excess.h"

namespace lorahub_edge::cpu {
namespace {

// Up to which packing costs more (docs/log.md).
#if defined(__AVX2__) && !defined(__AVX512F__)
constexpr index_t kFewRows = 48;
#else
constexpr index_t kFewRows = 16;
#endif

// Weight rows that are multiplied together; `lane_sums` takes so many.
constexpr int kFewColumns = 4;

// Rows of x that are multiplied together: with as many sums as registers hold.
#if defined(__AVX512VL__) || defined(__aarch64__)
constexpr int kMostFew = 4;
#else
constexpr int kMostFew = 2;
#endif

// How far ahead weights are asked for: what the processor fetches by itself ends with each page, after a few rows.
constexpr index_t kRowsAhead = 32;

class FewRows {
 public:
  FewRows(const Int8LinearArgs& args, Room& room) : args_(args), excess_(args, room) {}

  // Whether this is the way: for codes without blocks, and columns by the four.
  static bool suits(const Int8LinearArgs& args) {
    return args.n_blocks == 1 && args.n_rows <= kFewRows && args.out_features % kFewColumns == 0;
  }

  // What is needed of x, once for all columns.
  void read_inputs() { excess_.read_inputs(args_); }

  // Products of all rows of x with kOutputColumns columns, or as many as there are.
  void multiply(index_t column, std::int32_t* products) const {
    for (index_t at = 0; at < smaller(kOutputColumns, args_.out_features - column); at += kFewColumns) {
      const std::int8_t* w = args_.w + (column + at) * args_.in_features;
      for (index_t i = 0; i < kFewColumns * args_.in_features; i += 64) {
        __builtin_prefetch(w + kRowsAhead * args_.in_features + i, 0, 2);
      }
      for (index_t row = 0; row < args_.n_rows; row += kMostFew) {
        dot_up_to<kMostFew>(row, w, products + row * kOutputColumns + at);
      }
    }
  }

 private:
  template <int R>
  struct Sums {
    Ints of[R][kFewColumns];
  };

  // sums += products of a vector of features of R rows of x and of the weight's rows w[0 ... 3]; kPart: of the first n.
  template <int R, bool kPart>
  void add(const std::int8_t* x, const std::int8_t* w, index_t n, Sums<R>& sums) const {
    Ints codes[kFewColumns];
#pragma GCC unroll 4
    for (int c = 0; c < kFewColumns; ++c) codes[c] = with_offset(load_codes<kPart>(w + c * args_.in_features, n));
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      const Ints x_codes = load_codes<kPart>(x + r * args_.in_features, n);
#pragma GCC unroll 4
      for (int c = 0; c < kFewColumns; ++c) sums.of[r][c] = add_dots(sums.of[r][c], codes[c], x_codes);
    }
  }

  // products[r, 0 ... 3] = dot products of R rows of x with the weight's rows w[0 ... 3].
  template <int R>
  void dot(index_t row, const std::int8_t* w, std::int32_t* products) const {
    const index_t stride = args_.in_features;
    const std::int8_t* x = args_.x + row * stride;
    Sums<R> sums;
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
      for (int c = 0; c < kFewColumns; ++c) sums.of[r][c] = Ints{};
    }
    index_t i = 0;
    for (; i + kVectorBytes <= stride; i += kVectorBytes) add<R, false>(x + i, w + i, 0, sums);
    if (i < stride) add<R, true>(x + i, w + i, stride - i, sums);
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      const Quad sum = lane_sums(sums.of[r][0], sums.of[r][1], sums.of[r][2], sums.of[r][3]);
      const QuadBits dots = reinterpret_cast<QuadBits>(sum) - excess_.of(row + r, 0);
      std::memcpy(products + r * kOutputColumns, &dots, sizeof(dots));
    }
  }

  // The same for the rows that are left, R at most.
  template <int R>
  void dot_up_to(index_t row, const std::int8_t* w, std::int32_t* products) const {
    if (args_.n_rows - row >= R) return dot<R>(row, w, products);
    if constexpr (R > 1) dot_up_to<R - 1>(row, w, products);
  }

  const Int8LinearArgs& args_;
  Excess excess_;
};

}  // namespace
}  // namespace lorahub_edge::cpu
