// What stands around every kernel on CUDA: the arrays' device made current, the launch on the caller's stream, and the
// question whether it failed. The only place where kernels are launched.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>

#include "../../core.h"

namespace lorahub_edge::cuda {

// Largest number of thread blocks in one launch; kernels walk on in strides where there is more to do.
constexpr index_t kMostBlocks = (index_t{1} << 31) - 1;

inline index_t divided_up(index_t a, index_t b) {
  return (a + b - 1) / b;
}

// Throws std::runtime_error unless a call into the CUDA runtime succeeded.
inline void check_cuda(cudaError_t error, const char* op) {
  if (error == cudaSuccess) return;
  throw std::runtime_error(std::string(op) + ": expected CUDA to run it, received error " + std::to_string(error) +
                           " (" + cudaGetErrorString(error) +
                           "); `lorahub-edge doctor` says what this build needs and what this machine has");
}

// Makes a device current for the calling thread, and the one that was before again at the end.
class DeviceGuard {
 public:
  DeviceGuard(int device, const char* op) : device_(device) {
    check_cuda(cudaGetDevice(&before_), op);
    if (before_ != device_) check_cuda(cudaSetDevice(device_), op);
  }
  ~DeviceGuard() {
    if (before_ != device_) cudaSetDevice(before_);
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int device_;
  int before_ = 0;
};

// How a kernel is launched.
struct Launch {
  const char* op;
  Where where;
  index_t n_blocks;  // those that have work; at least 1
  int threads;       // per block
  index_t shared_bytes = 0;
};

template <typename... Parameters>
void launch(const Launch& how, void (*kernel)(Parameters...), const Parameters&... arguments) {
  const dim3 grid(static_cast<unsigned>(std::min(how.n_blocks, kMostBlocks)));
  const std::size_t shared_bytes = static_cast<std::size_t>(how.shared_bytes);
  kernel<<<grid, how.threads, shared_bytes, static_cast<cudaStream_t>(how.where.stream)>>>(arguments...);
  check_cuda(cudaGetLastError(), how.op);
}

// Blocks of a kernel that the whole device holds at once: so many of them, each walking through its share of the work,
// leave no multiprocessor idle at the end.
template <typename... Parameters>
index_t resident_blocks(const Launch& how, void (*kernel)(Parameters...)) {
  int per_multiprocessor = 0, multiprocessors = 0;
  check_cuda(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&per_multiprocessor, kernel, how.threads,
                                                           static_cast<std::size_t>(how.shared_bytes)),
             how.op);
  check_cuda(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, how.where.device), how.op);
  return std::max<index_t>(1, index_t{per_multiprocessor} * multiprocessors);
}

}  // namespace lorahub_edge::cuda
