// Types and checks shared by every native file.
//
// Kernels compiled for several instruction sets include this header too, so it holds only plain types and functions
// that such a file does not call: an inline function emitted there could be merged with the portable copy and then
// run an instruction that the machine lacks.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

namespace lorahub_edge {

// Sizes and offsets: signed, so that differences are safe, and 64 bits, so that a large stack cannot overflow.
using index_t = std::int64_t;

// A bfloat16 as it lies in memory: the upper half of a float32.
struct bfloat16 {
  std::uint16_t bits;
};

// Largest code: the range is symmetric, -128 is never used.
constexpr int kMaxCode = 127;

enum class DType { float32, bfloat16, int8, int32 };

inline const char* name_of(DType dtype) {
  switch (dtype) {
    case DType::float32:
      return "float32";
    case DType::bfloat16:
      return "bfloat16";
    case DType::int8:
      return "int8";
    case DType::int32:
      return "int32";
  }
  return "unknown";
}

constexpr index_t bytes_of(DType dtype) {
  return dtype == DType::int8 ? 1 : dtype == DType::bfloat16 ? 2 : 4;
}

// Where an op runs: the trailing argument of every kernel.
namespace cpu {
struct Where {
  index_t n_threads;
};
}  // namespace cpu

namespace cuda {
struct Where {
  int device;
  void* stream;  // a cudaStream_t of that device
};
}  // namespace cuda

// Guards what would be memory-unsafe. Messages for users are made in kernels/, above the native code.
inline void check(bool condition, const std::string& message) {
  if (!condition) throw std::invalid_argument(message);
}

}  // namespace lorahub_edge
