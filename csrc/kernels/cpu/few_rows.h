// Products of a few rows with weights as they lie in memory. Only int8_linear.isa.cpp includes this.
//
// Packing a panel costs as much as multiplying some dozens of rows with it, and a decoder's layers see fewer: a step of
// generation has one row per sequence. Here the features of one row fill a vector, so a product needs no packing, and
// the sum over lanes at its end costs little beside the row.
#pragma once

#include "isa_kernels.h"
#include "simd.h"

namespace lorahub_edge::cpu {
namespace {

#if defined(__AVX512VNNI__)

// Up to which packing costs more (docs/log.md).
constexpr index_t kFewRows = 16;
static_assert(kFewRows <= kLinearRows);

// Rows of x that are multiplied together: with as many sums as registers hold.
constexpr int kMostFew = 4;

// Weight rows that are multiplied together; `lane_sums` takes so many.
constexpr int kFewColumns = 4;

// How far ahead weights are asked for: what the processor fetches by itself ends with each page, after a few rows.
constexpr index_t kRowsAhead = 32;

// The sums over the lanes of four vectors.
inline __m128i lane_sums(__m512i a, __m512i b, __m512i c, __m512i d) {
  const __m512i ab = _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
  const __m512i cd = _mm512_add_epi32(_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
  const __m512i quarters = _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
  const __m256i halves = _mm256_add_epi32(_mm512_castsi512_si256(quarters), _mm512_extracti64x4_epi64(quarters, 1));
  return _mm_add_epi32(_mm256_castsi256_si128(halves), _mm256_extracti128_si256(halves, 1));
}

template <bool kPart>
inline __m512i load_codes(const std::int8_t* from, index_t n) {
  if constexpr (kPart) return _mm512_maskz_loadu_epi8((__mmask64{1} << n) - 1, from);
  return _mm512_loadu_si512(from);
}

template <int R>
struct FewSums {
  __m512i of[R][kFewColumns];
};

// sums += products of 64 features of R rows of x and of the weight's rows w[0 ... 3]; kPart: of the first n of them.
// The instruction multiplies unsigned by signed, so the codes of w get 128 more.
template <int R, bool kPart>
inline void add_few(const std::int8_t* x, const std::int8_t* w, index_t stride, index_t n, FewSums<R>& sums) {
  __m512i codes[kFewColumns];
#pragma GCC unroll 4
  for (int c = 0; c < kFewColumns; ++c) {
    codes[c] = _mm512_xor_si512(load_codes<kPart>(w + c * stride, n), _mm512_set1_epi8(-128));
  }
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) {
    const __m512i x_codes = load_codes<kPart>(x + r * stride, n);
#pragma GCC unroll 4
    for (int c = 0; c < kFewColumns; ++c) {
      sums.of[r][c] = _mm512_dpbusd_epi32(sums.of[r][c], codes[c], x_codes);
    }
  }
}

// products[r, 0 ... 3] = dot products of R rows of x with the weight's rows w[0 ... 3].
template <int R>
inline void dot_few(const Int8LinearArgs& args, index_t row, const std::int8_t* w, const std::int32_t* x_sums,
                    std::int32_t* products) {
  const index_t stride = args.in_features;
  const std::int8_t* x = args.x + row * stride;
  FewSums<R> sums;
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int c = 0; c < kFewColumns; ++c) sums.of[r][c] = _mm512_setzero_si512();
  }
  index_t i = 0;
  for (; i + 64 <= stride; i += 64) add_few<R, false>(x + i, w + i, stride, 64, sums);
  if (i < stride) add_few<R, true>(x + i, w + i, stride, stride - i, sums);
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) {
    const __m128i dots = lane_sums(sums.of[r][0], sums.of[r][1], sums.of[r][2], sums.of[r][3]);
    const __m128i excess = _mm_set1_epi32(128 * x_sums[row + r]);
    _mm_storeu_si128((__m128i*)(products + r * kOutputColumns), _mm_sub_epi32(dots, excess));
  }
}

// The same for n rows of x, R at most.
template <int R>
inline void dot_up_to(const Int8LinearArgs& args, index_t row, index_t n, const std::int8_t* w,
                      const std::int32_t* x_sums, std::int32_t* products) {
  if (n >= R) return dot_few<R>(args, row, w, x_sums, products);
  if constexpr (R > 1) dot_up_to<R - 1>(args, row, n, w, x_sums, products);
}

// Whether `product_few` is the way: for codes without blocks, and columns by the four.
inline bool has_few_rows(const Int8LinearArgs& args) {
  return args.n_blocks == 1 && args.n_rows <= kFewRows && args.out_features % kFewColumns == 0;
}

// Products of all rows of x with a panel's columns.
inline void product_few(const Int8LinearArgs& args, index_t column, const std::int32_t* x_sums,
                        std::int32_t* products) {
  for (index_t at = 0; at < smaller(kOutputColumns, args.out_features - column); at += kFewColumns) {
    const std::int8_t* w = args.w + (column + at) * args.in_features;
    for (index_t i = 0; i < kFewColumns * args.in_features; i += 64) {
      __builtin_prefetch(w + kRowsAhead * args.in_features + i, 0, 2);
    }
    for (index_t row = 0; row < args.n_rows; row += kMostFew) {
      dot_up_to<kMostFew>(args, row, args.n_rows - row, w, x_sums, products + row * kOutputColumns + at);
    }
  }
}

#else

// Rows are always multiplied with packed panels.
inline bool has_few_rows(const Int8LinearArgs&) {
  return false;
}
inline void product_few(const Int8LinearArgs&, index_t, const std::int32_t*, std::int32_t*) {}

#endif

}  // namespace
}  // namespace lorahub_edge::cpu
