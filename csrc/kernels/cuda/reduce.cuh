// Reductions over the threads of a block, in an order that depends on nothing: equal inputs give equal bits.
#pragma once

#include <cuda_runtime.h>

namespace lorahub_edge::cuda {

constexpr int kWarp = 32;

struct Larger {
  __device__ int operator()(int a, int b) const { return a > b ? a : b; }
};

struct Plus {
  __device__ float operator()(float a, float b) const { return a + b; }
};

// Replaces N values of each thread by their reduction over its warp, in every thread. All lanes must come here
// together. They meet in pairs at distance 16, 8, ... 1.
template <typename Join, int N, typename V>
__device__ inline void reduce_over_warp(V (&values)[N]) {
  const Join join;
#pragma unroll
  for (int i = 0; i < N; ++i) {
#pragma unroll
    for (int distance = kWarp / 2; distance > 0; distance /= 2) {
      values[i] = join(values[i], __shfl_xor_sync(0xffffffffu, values[i], distance));
    }
  }
}

// Replaces N values of each thread by their reduction over all kThreads threads of the block, in every thread. All
// threads must come here together. Warps are joined in order.
template <int kThreads, typename Join, int N, typename V>
__device__ inline void reduce_over_block(V (&values)[N]) {
  static_assert(kThreads % kWarp == 0, "whole warps");
  constexpr int kWarps = kThreads / kWarp;
  __shared__ V of_warp[kWarps][N];
  const Join join;
  reduce_over_warp<Join>(values);
  __syncthreads();  // until here others may still read what an earlier call left
#pragma unroll
  for (int i = 0; i < N; ++i) {
    if (threadIdx.x % kWarp == i % kWarp) of_warp[threadIdx.x / kWarp][i] = values[i];
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < N; ++i) {
    values[i] = of_warp[0][i];
#pragma unroll
    for (int warp = 1; warp < kWarps; ++warp) values[i] = join(values[i], of_warp[warp][i]);
  }
}

}  // namespace lorahub_edge::cuda
