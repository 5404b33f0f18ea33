// Dot products of int8 codes, four at a time per lane of a vector. Only int8_linear.isa.cpp includes this.
//
// Every sum is exact, whatever the instruction set: w may be any code, x is within -127 and 127.
#pragma once

#include "simd.h"

namespace lorahub_edge::cpu {
namespace {

typedef std::int32_t Quad __attribute__((vector_size(16)));
typedef std::uint32_t QuadBits __attribute__((vector_size(16)));

#if defined(__AVX512VNNI__) || defined(__AVXVNNI__)
// What these instructions multiply is unsigned by signed: `add_dots` takes w with this added to each code, and sums
// then hold as many times the sum of x's codes too much.
constexpr int kOffset = 128;
#else
constexpr int kOffset = 0;
#endif

// Codes of w as `add_dots` takes them.
inline Ints with_offset(Ints w) {
  return kOffset == 0 ? w : w ^ static_cast<std::int32_t>(0x80808080u);
}

// sum[lane] + the dot product of the lane's four codes of w, with their offset, and of x.
inline Ints add_dots(Ints sum, Ints w, Ints x) {
#if defined(__AVX512VNNI__)
  return reinterpret_cast<Ints>(
      _mm512_dpbusd_epi32(reinterpret_cast<__m512i>(sum), reinterpret_cast<__m512i>(w), reinterpret_cast<__m512i>(x)));
#elif defined(__AVXVNNI__)
  return reinterpret_cast<Ints>(_mm256_dpbusd_avx_epi32(reinterpret_cast<__m256i>(sum), reinterpret_cast<__m256i>(w),
                                                        reinterpret_cast<__m256i>(x)));
#elif defined(__AVX2__)
  // two products of abs(w) and x with w's sign are at most 2 * 128 * 127: 16 bits hold them
  const __m256i signed_x = _mm256_sign_epi8(reinterpret_cast<__m256i>(x), reinterpret_cast<__m256i>(w));
  const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(reinterpret_cast<__m256i>(w)), signed_x);
  return sum + reinterpret_cast<Ints>(_mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
#elif defined(__SSE2__)
  const __m128i w_codes = reinterpret_cast<__m128i>(w), x_codes = reinterpret_cast<__m128i>(x);
  const __m128i w_low = _mm_srai_epi16(_mm_unpacklo_epi8(w_codes, w_codes), 8);
  const __m128i w_high = _mm_srai_epi16(_mm_unpackhi_epi8(w_codes, w_codes), 8);
  const __m128i x_low = _mm_srai_epi16(_mm_unpacklo_epi8(x_codes, x_codes), 8);
  const __m128i x_high = _mm_srai_epi16(_mm_unpackhi_epi8(x_codes, x_codes), 8);
  const __m128 low = _mm_castsi128_ps(_mm_madd_epi16(w_low, x_low));
  const __m128 high = _mm_castsi128_ps(_mm_madd_epi16(w_high, x_high));
  return sum + reinterpret_cast<Ints>(_mm_shuffle_ps(low, high, 0x88)) +
         reinterpret_cast<Ints>(_mm_shuffle_ps(low, high, 0xdd));
#elif defined(__ARM_FEATURE_DOTPROD)
  return reinterpret_cast<Ints>(
      vdotq_s32(reinterpret_cast<int32x4_t>(sum), reinterpret_cast<int8x16_t>(w), reinterpret_cast<int8x16_t>(x)));
#elif defined(__ARM_NEON)
  const int8x16_t w_codes = reinterpret_cast<int8x16_t>(w), x_codes = reinterpret_cast<int8x16_t>(x);
  const int16x8_t low = vmull_s8(vget_low_s8(w_codes), vget_low_s8(x_codes));
  const int16x8_t high = vmull_s8(vget_high_s8(w_codes), vget_high_s8(x_codes));
  return reinterpret_cast<Ints>(vpadalq_s16(reinterpret_cast<int32x4_t>(sum), vpaddq_s16(low, high)));
#else
  typedef std::int8_t Bytes __attribute__((vector_size(kVectorBytes)));
  const Bytes w_codes = reinterpret_cast<Bytes>(w), x_codes = reinterpret_cast<Bytes>(x);
  for (int i = 0; i < kVectorBytes; ++i) sum[i / 4] += w_codes[i] * x_codes[i];
  return sum;
#endif
}

// A vector of codes; kPart: the first n of them, the others zero.
template <bool kPart>
inline Ints load_codes(const std::int8_t* from, index_t n) {
  Ints codes = {};
#if defined(__AVX512BW__)
  if constexpr (kPart) return reinterpret_cast<Ints>(_mm512_maskz_loadu_epi8((__mmask64{1} << n) - 1, from));
#endif
  std::memcpy(&codes, from, kPart ? static_cast<std::size_t>(n) : sizeof(codes));
  return codes;
}

// The same four codes in every lane; kPart: the first n of them, the others zero.
template <bool kPart>
inline Ints broadcast_codes(const std::int8_t* from, index_t n) {
  std::int32_t codes = 0;
  std::memcpy(&codes, from, kPart ? static_cast<std::size_t>(n) : sizeof(codes));
  return codes - Ints{};
}

// The sums over the lanes of four vectors.
inline Quad lane_sums(Ints a, Ints b, Ints c, Ints d) {
#if defined(__AVX2__)
#if defined(__AVX512F__)
  const auto halves = [](Ints vector) {
    const __m512i whole = reinterpret_cast<__m512i>(vector);
    return _mm256_add_epi32(_mm512_castsi512_si256(whole), _mm512_extracti64x4_epi64(whole, 1));
  };
#else
  const auto halves = [](Ints vector) { return reinterpret_cast<__m256i>(vector); };
#endif
  const __m256i pairs = _mm256_hadd_epi32(halves(a), halves(b)), more = _mm256_hadd_epi32(halves(c), halves(d));
  const __m256i fours = _mm256_hadd_epi32(pairs, more);
  return reinterpret_cast<Quad>(_mm_add_epi32(_mm256_castsi256_si128(fours), _mm256_extracti128_si256(fours, 1)));
#elif defined(__aarch64__)
  const int32x4_t pairs = vpaddq_s32(reinterpret_cast<int32x4_t>(a), reinterpret_cast<int32x4_t>(b));
  const int32x4_t more = vpaddq_s32(reinterpret_cast<int32x4_t>(c), reinterpret_cast<int32x4_t>(d));
  return reinterpret_cast<Quad>(vpaddq_s32(pairs, more));
#else
  Quad sums = {};
  for (int lane = 0; lane < kLanes; ++lane) sums += Quad{a[lane], b[lane], c[lane], d[lane]};
  return sums;
#endif
}

// The sum of n codes.
inline std::int32_t sum_codes(const std::int8_t* codes, index_t n) {
  const Ints ones = 0x01010101 - Ints{};
  Ints sums = {};
  index_t i = 0;
  for (; i + kVectorBytes <= n; i += kVectorBytes) sums = add_dots(sums, ones, load_codes<false>(codes + i, 0));
  if (i < n) sums = add_dots(sums, ones, load_codes<true>(codes + i, n - i));
  return lane_sums(sums, sums, sums, sums)[0];
}

}  // namespace
}  // namespace lorahub_edge::cpu
