// Where an extension module computes. The same bindings are built twice: for _native (CPU) and, with
// LORAHUB_EDGE_BINDINGS_CUDA, for _native_cuda.
#pragma once

#include <cstdint>

#include "../core.h"
#include "dlpack.h"

namespace lorahub_edge::bindings {

#ifdef LORAHUB_EDGE_BINDINGS_CUDA
namespace here = cuda;
constexpr std::int32_t kDeviceType = dlpack::kCuda;
constexpr const char* kMemory = "an array in CUDA memory";
constexpr const char* kWhereName = "stream";
inline here::Where where_of(std::int64_t stream, int device) {
  return {device, reinterpret_cast<void*>(stream)};
}
#else
namespace here = cpu;
constexpr std::int32_t kDeviceType = dlpack::kCpu;
constexpr const char* kMemory = "an array in CPU memory";
constexpr const char* kWhereName = "n_threads";
inline here::Where where_of(std::int64_t n_threads, int) {
  return {n_threads};
}
#endif

}  // namespace lorahub_edge::bindings
