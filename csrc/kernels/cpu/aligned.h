// Working memory of one thread.
#pragma once

#include <memory>

#include "../../core.h"

namespace lorahub_edge::cpu {

// Room for n values from a cache line's beginning on.
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
  static constexpr std::size_t kCacheLine = 64;

  std::size_t space_;
  std::unique_ptr<char[]> room_;
};

}  // namespace lorahub_edge::cpu
