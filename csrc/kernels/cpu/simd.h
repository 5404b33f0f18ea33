// Vectors of the instruction set that a source is compiled for. Only files named <op>.isa.cpp include this.
//
// `Vector` is the compiler's own vector type (GCC and Clang), so sums and products read as such, and one source serves
// SSE2, AVX2, AVX-512 and NEON. What the compiler does badly by itself is written with intrinsics, with a portable loop
// beside it. Nothing from the C++ library is used here, and everything has internal linkage: see core.h.
#pragma once

#include <cstring>

#include "../../core.h"
#include "isa.h"

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

#ifndef LORAHUB_EDGE_ISA
#error "compile with -DLORAHUB_EDGE_ISA=<entry of LORAHUB_EDGE_FOR_EACH_ISA>"
#endif

namespace lorahub_edge::cpu {
namespace {

constexpr Isa kIsa = Isa::LORAHUB_EDGE_ISA;

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif
constexpr int kLanes = kVectorBytes / static_cast<int>(sizeof(float));

typedef float Vector __attribute__((vector_size(kVectorBytes)));
typedef std::int32_t Ints __attribute__((vector_size(kVectorBytes)));
typedef std::uint32_t Bits __attribute__((vector_size(kVectorBytes)));
typedef std::uint16_t HalfBits __attribute__((vector_size(kVectorBytes / 2)));

inline index_t smaller(index_t a, index_t b) {
  return a < b ? a : b;
}

inline Vector broadcast(float value) {
#if defined(__AVX512F__)
  return reinterpret_cast<Vector>(_mm512_set1_ps(value));
#elif defined(__AVX2__)
  return reinterpret_cast<Vector>(_mm256_set1_ps(value));
#else
  return value - Vector{};
#endif
}

// -- Memory -----------------------------------------------------------------------------------------------------------

inline Vector load(const float* from) {
  Vector vector;
  std::memcpy(&vector, from, sizeof(vector));
  return vector;
}

inline Vector load(const bfloat16* from) {
  HalfBits bits;
  std::memcpy(&bits, from, sizeof(bits));
  return reinterpret_cast<Vector>(__builtin_convertvector(bits, Bits) << 16);
}

inline Vector load(const std::int32_t* from) {
  Ints ints;
  std::memcpy(&ints, from, sizeof(ints));
  return __builtin_convertvector(ints, Vector);
}

inline Vector load(const std::int8_t* from) {
#if defined(__AVX512F__)
  return reinterpret_cast<Vector>(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)from))));
#elif defined(__AVX2__)
  return reinterpret_cast<Vector>(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)from))));
#elif defined(__SSE2__)
  std::int32_t codes;
  std::memcpy(&codes, from, sizeof(codes));
  const __m128i twice = _mm_unpacklo_epi8(_mm_cvtsi32_si128(codes), _mm_cvtsi32_si128(codes));
  return reinterpret_cast<Vector>(_mm_cvtepi32_ps(_mm_srai_epi32(_mm_unpacklo_epi16(twice, twice), 24)));
#elif defined(__ARM_NEON)
  std::uint32_t codes;
  std::memcpy(&codes, from, sizeof(codes));
  const int16x4_t words = vget_low_s16(vmovl_s8(vreinterpret_s8_u32(vdup_n_u32(codes))));
  return reinterpret_cast<Vector>(vcvtq_f32_s32(vmovl_s16(words)));
#else
  Vector vector;
  for (int lane = 0; lane < kLanes; ++lane) vector[lane] = from[lane];
  return vector;
#endif
}

inline void store(float* to, Vector vector) {
  std::memcpy(to, &vector, sizeof(vector));
}

// Rounds half to even. A NaN keeps its sign and upper bits, with a quiet bit set so that it stays one.
inline void store(bfloat16* to, Vector vector) {
  const Bits bits = reinterpret_cast<Bits>(vector);
  const Bits rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const Bits is_nan = reinterpret_cast<Bits>(vector != vector);
  const HalfBits halves = __builtin_convertvector((is_nan & ((bits >> 16) | 0x40u)) | (~is_nan & rounded), HalfBits);
  std::memcpy(to, &halves, sizeof(halves));
}

// Values must be whole and within int8.
inline void store(std::int8_t* to, Vector vector) {
#if defined(__AVX512F__)
  _mm_storeu_si128((__m128i*)to, _mm512_cvtepi32_epi8(_mm512_cvttps_epi32(reinterpret_cast<__m512>(vector))));
#elif defined(__AVX2__)
  const __m256i ints = _mm256_cvttps_epi32(reinterpret_cast<__m256>(vector));
  const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(ints), _mm256_extracti128_si256(ints, 1));
  _mm_storel_epi64((__m128i*)to, _mm_packs_epi16(words, words));
#elif defined(__ARM_NEON)
  const int16x4_t words = vmovn_s32(vcvtq_s32_f32(reinterpret_cast<float32x4_t>(vector)));
  const int8x8_t codes = vmovn_s16(vcombine_s16(words, words));
  std::memcpy(to, &codes, kLanes);
#else
  for (int lane = 0; lane < kLanes; ++lane) to[lane] = static_cast<std::int8_t>(vector[lane]);
#endif
}

// Past the caches, for outputs larger than they are; `to` must be aligned to a vector. See `finish_streams`.
inline void stream(float* to, Vector vector) {
#if defined(__AVX512F__)
  _mm512_stream_ps(to, reinterpret_cast<__m512>(vector));
#elif defined(__AVX2__)
  _mm256_stream_ps(to, reinterpret_cast<__m256>(vector));
#elif defined(__SSE2__)
  _mm_stream_ps(to, reinterpret_cast<__m128>(vector));
#else
  store(to, vector);
#endif
}

// Makes streamed values visible to other threads; once per thread, after its last `stream`.
inline void finish_streams() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

// The first n < kLanes values, the rest zero.
template <typename T>
inline Vector load_part(const T* from, index_t n) {
  T padded[kLanes] = {};
  std::memcpy(padded, from, static_cast<std::size_t>(n) * sizeof(T));
  return load(padded);
}

template <typename T>
inline void store_part(T* to, Vector vector, index_t n) {
  T padded[kLanes];
  store(padded, vector);
  std::memcpy(to, padded, static_cast<std::size_t>(n) * sizeof(T));
}

#if defined(__AVX512F__)
inline Vector load_part(const float* from, index_t n) {
  return reinterpret_cast<Vector>(_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << n) - 1), from));
}

inline void store_part(float* to, Vector vector, index_t n) {
  _mm512_mask_storeu_ps(to, static_cast<__mmask16>((1u << n) - 1), reinterpret_cast<__m512>(vector));
}
#endif

// A whole vector, or with kPart its first n values.
template <bool kPart, typename T>
inline Vector load_columns(const T* from, index_t n) {
  if constexpr (kPart) return load_part(from, n);
  return load(from);
}

template <bool kPart, typename T>
inline void store_columns(T* to, Vector vector, index_t n) {
  if constexpr (kPart) return store_part(to, vector, n);
  store(to, vector);
}

// -- Arithmetic -------------------------------------------------------------------------------------------------------

// a * b + c, rounded once where the instruction set has a fused multiply-add. The compiler itself never fuses (see
// CMakeLists.txt): it would do so in one instance of a loop and not in another, and equal rows would differ.
inline Vector multiply_add(Vector a, Vector b, Vector c) {
#if defined(__AVX512F__)
  return reinterpret_cast<Vector>(
      _mm512_fmadd_ps(reinterpret_cast<__m512>(a), reinterpret_cast<__m512>(b), reinterpret_cast<__m512>(c)));
#elif defined(__AVX2__)
  return reinterpret_cast<Vector>(
      _mm256_fmadd_ps(reinterpret_cast<__m256>(a), reinterpret_cast<__m256>(b), reinterpret_cast<__m256>(c)));
#elif defined(LORAHUB_EDGE_ARM_ISAS)
  return reinterpret_cast<Vector>(
      vfmaq_f32(reinterpret_cast<float32x4_t>(c), reinterpret_cast<float32x4_t>(a), reinterpret_cast<float32x4_t>(b)));
#else
  return a * b + c;
#endif
}

// abs(x) as bits. As integers they order like the values, with infinity above every number and NaN above infinity.
inline Ints abs_bits(Vector vector) {
  return reinterpret_cast<Ints>(vector) & 0x7fffffff;
}

inline Ints larger(Ints a, Ints b) {
  return a > b ? a : b;
}

// The largest lane, as the float that its bits are.
inline float largest(Ints bits) {
  std::int32_t result = bits[0];
  for (int lane = 1; lane < kLanes; ++lane) result = bits[lane] > result ? bits[lane] : result;
  float value;
  std::memcpy(&value, &result, sizeof(value));
  return value;
}

inline float sum(Vector vector) {
  float result = 0;
  for (int lane = 0; lane < kLanes; ++lane) result += vector[lane];
  return result;
}

// Nearest whole number, half to even, for abs(x) < 2^22: the sum with 1.5 * 2^23 has no room for a fraction.
inline Vector round_half_even(Vector vector) {
  return (vector + 12582912.0f) - 12582912.0f;
}

// exp(x) for abs(x) <= 87, to a few units in the last place: 2^n exp(r) with abs(r) <= ln(2) / 2, where the series of
// exp(r) up to r^6 is off by 1.2e-7. ln(2) comes in two parts, the first so short that n times it is exact.
inline Vector exponential(Vector x) {
  const Vector n = round_half_even(x * 1.442695041f);
  const Vector r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  Vector series = broadcast(1.0f / 720);
  constexpr float kCoefficients[] = {1.0f / 120, 1.0f / 24, 1.0f / 6, 1.0f / 2, 1.0f, 1.0f};
  for (const float coefficient : kCoefficients) {
    series = multiply_add(series, r, broadcast(coefficient));
  }
  const Ints power_of_two = (__builtin_convertvector(n, Ints) + 127) << 23;
  return series * reinterpret_cast<Vector>(power_of_two);
}

// Into [-limit, limit]; a NaN becomes the limit.
inline Vector clamp(Vector vector, float limit) {
#if defined(__AVX512F__)
  const __m512 below = _mm512_min_ps(reinterpret_cast<__m512>(vector), _mm512_set1_ps(limit));
  return reinterpret_cast<Vector>(_mm512_max_ps(below, _mm512_set1_ps(-limit)));
#elif defined(__AVX2__)
  const __m256 below = _mm256_min_ps(reinterpret_cast<__m256>(vector), _mm256_set1_ps(limit));
  return reinterpret_cast<Vector>(_mm256_max_ps(below, _mm256_set1_ps(-limit)));
#else
  const Vector below = vector < limit ? vector : broadcast(limit);
  return below > -limit ? below : broadcast(-limit);
#endif
}

// Where either is NaN, b: larger(limit, x) keeps an x that is NaN.
inline Vector larger(Vector a, Vector b) {
#if defined(__AVX512F__)
  return reinterpret_cast<Vector>(_mm512_max_ps(reinterpret_cast<__m512>(a), reinterpret_cast<__m512>(b)));
#elif defined(__AVX2__)
  return reinterpret_cast<Vector>(_mm256_max_ps(reinterpret_cast<__m256>(a), reinterpret_cast<__m256>(b)));
#else
  return a > b ? a : b;
#endif
}

// absmax / 127, and 1 where that is 0.
inline float row_scale_of(float absmax) {
  const float row_scale = absmax / kMaxCode;
  return row_scale == 0 ? 1.0f : row_scale;
}

}  // namespace
}  // namespace lorahub_edge::cpu
