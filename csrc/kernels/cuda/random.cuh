// Random numbers of stochastic rounding: a hash of seed, row and column, the same as on the CPU and in the NumPy twin.
#pragma once

#include <cuda_runtime.h>

#include "../../core.h"

namespace lorahub_edge::cuda {

// 32 bits from 32 bits, each bit of the result a mix of all. Constants: C. Wellons, hash-prospector, "lowbias32".
__device__ inline unsigned mixed(unsigned x) {
  x ^= x >> 16;
  x *= 0x7feb352du;
  x ^= x >> 15;
  x *= 0x846ca68bu;
  return x ^ (x >> 16);
}

__device__ inline unsigned key_of_row(std::uint64_t seed, index_t row) {
  const unsigned key = mixed(mixed(static_cast<unsigned>(seed)) ^ static_cast<unsigned>(seed >> 32));
  return mixed(key ^ static_cast<unsigned>(row));
}

// Uniform in [0, 1), 24 bits, a function of the row's key and the column alone.
__device__ inline float uniform(unsigned key, index_t column) {
  return static_cast<float>(mixed(key ^ static_cast<unsigned>(column)) >> 8) * 0x1p-24f;
}

}  // namespace lorahub_edge::cuda
