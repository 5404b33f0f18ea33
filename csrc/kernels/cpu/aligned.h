// Memory in whole cache lines.
#pragma once

#include <cstdint>
#include <memory>

#include "../../core.h"

namespace lorahub_edge::cpu {

constexpr std::size_t kCacheLine = 64;

// Whether rows of so many bytes each fill whole lines, as what is written past the caches must.
inline bool fills_lines(const void* rows, index_t row_bytes) {
  return reinterpret_cast<std::uintptr_t>(rows) % kCacheLine == 0 &&
         static_cast<std::size_t>(row_bytes) % kCacheLine == 0;
}

// Working memory of one thread: room for n values from a cache line's beginning on.
template <typename T>
class Aligned {
 public:
  explicit Aligned(index_t n) : space_(static_cast<std::size_t>(n) * sizeof(T) + kCacheLine), room_(new char[space_]) {}

  T* data() {
    void* begin = room_.get();
    std::size_t space = space_;
    return static_cast<T*>(std::align(kCacheLine, space_ - kCacheLine, begin, space));
  }

 private:
  std::size_t space_;
  std::unique_ptr<char[]> room_;
};

}  // namespace lorahub_edge::cpu
