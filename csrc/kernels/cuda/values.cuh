// Values in memory and in registers: several neighbours in one access, widened to float32 and back; and the arithmetic
// of int8 rows. The rules are those of cpu/simd.h. CMakeLists.txt forbids the compiler to fuse multiplications and
// additions by itself: they are fused where a source says fmaf, so every path of a kernel rounds alike.
#pragma once

#include <cuda_runtime.h>

#include "../../core.h"

namespace lorahub_edge::cuda {

// -- Memory -----------------------------------------------------------------------------------------------------------

// Values of T in the widest access of 16 bytes.
template <typename T>
constexpr int kWide = 16 / static_cast<int>(sizeof(T));

// An unsigned type of so many bytes, moved by one instruction.
template <int kBytes>
struct WordOf;
template <>
struct WordOf<1> {
  using type = unsigned char;
};
template <>
struct WordOf<2> {
  using type = unsigned short;
};
template <>
struct WordOf<4> {
  using type = unsigned int;
};
template <>
struct WordOf<8> {
  using type = uint2;
};
template <>
struct WordOf<16> {
  using type = uint4;
};

// W neighbours as they lie in memory.
template <typename T, int W>
struct Pack {
  using Word = typename WordOf<static_cast<int>(sizeof(T)) * W>::type;
  union {
    Word word;
    T at[W];
  };
};

__device__ inline float widened(float value) {
  return value;
}
__device__ inline float widened(bfloat16 value) {
  return __uint_as_float(static_cast<unsigned>(value.bits) << 16);
}
__device__ inline float widened(std::int8_t value) {
  return static_cast<float>(value);
}
__device__ inline float widened(std::int32_t value) {
  return static_cast<float>(value);  // to nearest, half to even
}

template <typename T>
__device__ T narrowed(float value);

template <>
__device__ inline float narrowed<float>(float value) {
  return value;
}

// Half to even. A NaN keeps its sign and upper bits, with a quiet bit set so that it stays one.
template <>
__device__ inline bfloat16 narrowed<bfloat16>(float value) {
  const unsigned bits = __float_as_uint(value);
  const unsigned rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  return {static_cast<std::uint16_t>(isnan(value) ? ((bits >> 16) | 0x40u) : rounded)};
}

// Values must be whole and within int8.
template <>
__device__ inline std::int8_t narrowed<std::int8_t>(float value) {
  return static_cast<std::int8_t>(__float2int_rn(value));
}

// W neighbours of an array that no kernel writes meanwhile; `from` is a multiple of their size.
template <int W, typename T>
__device__ inline Pack<T, W> load_pack(const T* from) {
  Pack<T, W> pack;
  pack.word = __ldg(reinterpret_cast<const typename Pack<T, W>::Word*>(from));
  return pack;
}

template <int W, typename T>
__device__ inline void widen(const Pack<T, W>& pack, float (&to)[W]) {
#pragma unroll
  for (int w = 0; w < W; ++w) to[w] = widened(pack.at[w]);
}

template <int W, typename T>
__device__ inline void load(const T* from, float (&to)[W]) {
  widen(load_pack<W>(from), to);
}

// `load` from an array that this kernel writes, where no other thread does.
template <int W, typename T>
__device__ inline void load_own(const T* from, float (&to)[W]) {
  Pack<T, W> pack;
  pack.word = *reinterpret_cast<const typename Pack<T, W>::Word*>(from);
  widen(pack, to);
}

template <int W, typename T>
__device__ inline Pack<T, W> narrow(const float (&values)[W]) {
  Pack<T, W> pack;
#pragma unroll
  for (int w = 0; w < W; ++w) pack.at[w] = narrowed<T>(values[w]);
  return pack;
}

// One instruction each: the compiler splits an assignment of several words where it loses sight of the alignment.
__device__ inline void store_word(uint4* to, uint4 word) {
  asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};"
               :
               : "l"(to), "r"(word.x), "r"(word.y), "r"(word.z), "r"(word.w)
               : "memory");
}
__device__ inline void store_word(uint2* to, uint2 word) {
  asm volatile("st.global.v2.u32 [%0], {%1, %2};" : : "l"(to), "r"(word.x), "r"(word.y) : "memory");
}
template <typename Word>
__device__ inline void store_word(Word* to, Word word) {
  *to = word;
}

template <int W, typename T>
__device__ inline void store_pack(T* to, const Pack<T, W>& pack) {
  store_word(reinterpret_cast<typename Pack<T, W>::Word*>(to), pack.word);
}

template <int W, typename T>
__device__ inline void store(T* to, const float (&values)[W]) {
  store_pack(to, narrow<W, T>(values));
}

// `store` for outputs that nobody reads soon: they leave the caches first.
template <int W, typename T>
__device__ inline void store_streaming(T* to, const float (&values)[W]) {
  __stcs(reinterpret_cast<typename Pack<T, W>::Word*>(to), narrow<W, T>(values).word);
}

// Whether accesses of W values are aligned in every row of n_columns values from `base` on; a null array always is.
template <int W, typename T>
bool rows_aligned(const T* base, index_t n_columns) {
  return n_columns % W == 0 && reinterpret_cast<std::uintptr_t>(base) % (sizeof(T) * W) == 0;
}

// -- Arithmetic -------------------------------------------------------------------------------------------------------

// abs(x) as bits. As integers they order like the values, with infinity above every number and NaN above infinity.
__device__ inline int abs_bits(float value) {
  return __float_as_int(value) & 0x7fffffff;
}

// absmax / 127, and 1 where that is 0.
__device__ inline float row_scale_of(float absmax) {
  const float row_scale = __fdiv_rn(absmax, static_cast<float>(kMaxCode));
  return row_scale == 0 ? 1.0f : row_scale;
}

// A NaN becomes the largest code.
__device__ inline float clamped(float value) {
  constexpr float limit = kMaxCode;
  return fmaxf(fminf(value, limit), -limit);
}

}  // namespace lorahub_edge::cuda
