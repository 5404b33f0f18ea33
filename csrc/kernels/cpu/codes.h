// Dot products of int8 codes, four at a time per lane, and weights packed for them. Only int8_linear.isa.cpp includes
// this.
//
// A panel holds kOutputColumns rows of a weight as [in_features / 4, column, 4]: one vector is the same four features
// of kLanes columns. What the instruction set multiplies is unsigned by signed, so with AVX-512 VNNI the panel holds
// code + 128, and every sum starts at -128 times the sum of the row's codes.
#pragma once

#include "isa_kernels.h"
#include "simd.h"

namespace lorahub_edge::cpu {
namespace {

constexpr index_t kPanelBytes = 4 * kOutputColumns;  // of four features

#if defined(__AVX512VNNI__)
constexpr int kPanelOffset = 128;
#else
constexpr int kPanelOffset = 0;
#endif

// Four codes of a row in every lane; kPart: the first n of them, the others zero.
template <bool kPart>
inline Ints broadcast_codes(const std::int8_t* from, index_t n) {
  std::int32_t codes = 0;
  std::memcpy(&codes, from, kPart ? static_cast<std::size_t>(n) : sizeof(codes));
  return codes - Ints{};
}

// sum[lane] + the dot product of the lane's four codes. x within -127 and 127.
inline Ints add_dots(Ints sum, Ints w, Ints x) {
#if defined(__AVX512VNNI__)
  return reinterpret_cast<Ints>(
      _mm512_dpbusd_epi32(reinterpret_cast<__m512i>(sum), reinterpret_cast<__m512i>(w), reinterpret_cast<__m512i>(x)));
#elif defined(__AVX2__)
  const __m256i signed_x = _mm256_sign_epi8(reinterpret_cast<__m256i>(x), reinterpret_cast<__m256i>(w));
  const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(reinterpret_cast<__m256i>(w)), signed_x);
  return sum + reinterpret_cast<Ints>(_mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
#elif defined(__SSE2__)
  const __m128i w_codes = reinterpret_cast<__m128i>(w), x_codes = reinterpret_cast<__m128i>(x);
  const __m128i w_low = _mm_srai_epi16(_mm_unpacklo_epi8(w_codes, w_codes), 8);
  const __m128i w_high = _mm_srai_epi16(_mm_unpackhi_epi8(w_codes, w_codes), 8);
  const __m128i x_words = _mm_srai_epi16(_mm_unpacklo_epi8(x_codes, x_codes), 8);
  const __m128 low = _mm_castsi128_ps(_mm_madd_epi16(w_low, x_words));
  const __m128 high = _mm_castsi128_ps(_mm_madd_epi16(w_high, x_words));
  return sum + reinterpret_cast<Ints>(_mm_shuffle_ps(low, high, 0x88)) +
         reinterpret_cast<Ints>(_mm_shuffle_ps(low, high, 0xdd));
#else
  typedef std::int8_t Bytes __attribute__((vector_size(kVectorBytes)));
  const Bytes w_codes = reinterpret_cast<Bytes>(w), x_codes = reinterpret_cast<Bytes>(x);
  for (int i = 0; i < kVectorBytes; ++i) sum[i / 4] += w_codes[i] * x_codes[i];
  return sum;
#endif
}

#if defined(__AVX512VNNI__)
// 16 rows of a weight by 64 features or fewer: a vector per row in, a vector per four features out.
inline void pack_square(const std::int8_t* w, index_t stride, index_t n_rows, index_t n_features, std::uint8_t* panel) {
  const __mmask64 mask = n_features >= 64 ? ~__mmask64{0} : (__mmask64{1} << n_features) - 1;
  __m512i in[16], pairs[16];
  for (int i = 0; i < 16; ++i) {
    const __m512i codes = i < n_rows ? _mm512_maskz_loadu_epi8(mask, w + i * stride) : _mm512_setzero_si512();
    in[i] = _mm512_xor_si512(codes, _mm512_set1_epi8(-128));
  }
  for (int i = 0; i < 16; i += 2) {
    pairs[i] = _mm512_unpacklo_epi32(in[i], in[i + 1]);
    pairs[i + 1] = _mm512_unpackhi_epi32(in[i], in[i + 1]);
  }
  // fours[4q + j]: in its quarter L, four features number 4L + j of the rows 4q to 4q + 3
  __m512i fours[16];
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
    _mm512_store_si512(panel + j * kPanelBytes, _mm512_shuffle_i32x4(low_even, high_even, 0x88));
    _mm512_store_si512(panel + (4 + j) * kPanelBytes, _mm512_shuffle_i32x4(low_odd, high_odd, 0x88));
    _mm512_store_si512(panel + (8 + j) * kPanelBytes, _mm512_shuffle_i32x4(low_even, high_even, 0xdd));
    _mm512_store_si512(panel + (12 + j) * kPanelBytes, _mm512_shuffle_i32x4(low_odd, high_odd, 0xdd));
  }
}

inline std::int32_t sum_codes(const std::int8_t* codes, index_t n) {
  __m512i sums = _mm512_setzero_si512();
  for (index_t i = 0; i < n; i += 64) {
    const __mmask64 mask = n - i >= 64 ? ~__mmask64{0} : (__mmask64{1} << (n - i)) - 1;
    sums = _mm512_dpbusd_epi32(sums, _mm512_set1_epi8(1), _mm512_maskz_loadu_epi8(mask, codes + i));
  }
  return _mm512_reduce_add_epi32(sums);
}

// The panel's rows of the weight, from first_row of out_features on. What is behind the last row or feature does not
// matter: nobody reads those columns, and x is zero there.
inline void pack_panel(const std::int8_t* w, index_t first_row, index_t out_features, index_t n, std::uint8_t* panel) {
  for (index_t column = 0; column < kOutputColumns; column += 16) {
    const index_t row = first_row + column;
    for (index_t i = 0; i < n; i += 64) {
      const std::int8_t* from = w + row * n + i;
      pack_square(from, n, out_features - row, n - i, panel + i / 4 * kPanelBytes + 4 * column);
    }
  }
}
#else
inline std::int32_t sum_codes(const std::int8_t* codes, index_t n) {
  std::int32_t sum = 0;
  for (index_t i = 0; i < n; ++i) sum += codes[i];
  return sum;
}

inline void pack_panel(const std::int8_t* w, index_t first_row, index_t out_features, index_t n, std::uint8_t* panel) {
  const index_t n_rows = smaller(kOutputColumns, out_features - first_row);
  for (index_t i = 0; i < n; i += 4, panel += kPanelBytes) {
    const std::int8_t* from = w + first_row * n + i;
    for (index_t row = 0; row < n_rows; ++row, from += n) {
      std::memcpy(panel + 4 * row, from, static_cast<std::size_t>(smaller(4, n - i)));
    }
  }
}
#endif

}  // namespace
}  // namespace lorahub_edge::cpu
