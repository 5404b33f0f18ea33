// A stand-in for CUDA's runtime header: with it a C++ compiler builds the kernels for the CPU. It has what the kernels
// of this project use, and nothing else. rewrite.py turns launches, shared memory and inline PTX into calls of
// emulator.h.
#pragma once

#include <math.h>

#include <cstring>

#include "emulator.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)

// -- Types ------------------------------------------------------------------------------------------------------------

struct uint3 {
  unsigned x, y, z;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(16) float4 {
  float x, y, z, w;
};

// Of the thread that runs; the scheduler sets them.
extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;

// -- Threads that meet ------------------------------------------------------------------------------------------------

inline void __syncthreads(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  cuda_on_cpu::barrier({file, line});
}

template <typename To, typename From>
inline To __bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

template <typename T>
inline T __shfl_xor_sync(unsigned mask, T value, int distance, const char* file = __builtin_FILE(),
                         int line = __builtin_LINE()) {
  return __bits_as<T>(cuda_on_cpu::shuffle_xor(mask, distance, __bits_as<unsigned>(value), {file, line}));
}

// -- Memory: a GPU faults where an address is not a multiple of the access's size
// ----------------------------------------

template <typename T>
inline T __ldg(const T* at) {
  cuda_on_cpu::expect_aligned(at, sizeof(T));
  return *at;
}
template <typename T>
inline void __stcs(T* at, T value) {
  cuda_on_cpu::expect_aligned(at, sizeof(T));
  *at = value;
}

// Inline PTX of the form st.global.vN.u32: one instruction, N words.
template <typename Word, typename... Words>
inline void store_words(Word* to, Words... words) {
  static_assert(sizeof(Word) == 4 * sizeof...(Words), "as many words as the instruction names");
  cuda_on_cpu::expect_aligned(to, sizeof(Word));
  *to = {words...};
}

// -- Arithmetic: rounded to nearest, never fused by the compiler
// --------------------------------------------------------

inline float __fmul_rn(float a, float b) {
  return a * b;
}
inline float __fadd_rn(float a, float b) {
  return a + b;
}
inline float __fdiv_rn(float a, float b) {
  return a / b;
}

inline float __uint_as_float(unsigned bits) {
  return __bits_as<float>(bits);
}
inline float __int_as_float(int bits) {
  return __bits_as<float>(bits);
}
inline unsigned __float_as_uint(float value) {
  return __bits_as<unsigned>(value);
}
inline int __float_as_int(float value) {
  return __bits_as<int>(value);
}

// Saturates; a NaN becomes 0.
inline int __float2int_rn(float value) {
  if (isnan(value)) return 0;
  const float whole = rintf(value);
  if (whole >= 0x1p31f) return 0x7fffffff;
  return whole < -0x1p31f ? -0x7fffffff - 1 : static_cast<int>(whole);
}

template <typename T>
inline T min(T a, T b) {
  return b < a ? b : a;
}
template <typename T>
inline T max(T a, T b) {
  return a < b ? b : a;
}

// -- The runtime library
// ------------------------------------------------------------------------------------------------

using cudaStream_t = void*;
enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorInvalidDevice = 101
};
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount };
struct cudaDeviceProp {
  char name[256];
  int major, minor;
  std::size_t totalGlobalMem;
};
struct cudaFuncAttributes {};

const char* cudaGetErrorString(cudaError_t error);
cudaError_t cudaGetLastError();
cudaError_t cudaGetDevice(int* device);
cudaError_t cudaSetDevice(int device);
cudaError_t cudaGetDeviceCount(int* n);
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device);
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device);
cudaError_t cudaRuntimeGetVersion(int* version);
cudaError_t cudaDriverGetVersion(int* version);

template <typename Kernel>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes*, Kernel) {
  return cudaSuccess;
}

template <typename Kernel>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* n, Kernel, int, std::size_t) {
  *n = static_cast<int>(cuda_on_cpu::drawn_up_to(3));
  return cudaSuccess;
}
