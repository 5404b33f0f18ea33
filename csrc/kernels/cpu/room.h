// Working memory of one thread of an op, laid out by the loops that use it. Only <op>.isa.cpp files include this.
#pragma once

#include "../../core.h"

namespace lorahub_edge::cpu {
namespace {

// Hands out parts of a block, each from a cache line's beginning on. Over no block it only counts.
class Room {
 public:
  explicit Room(std::uint8_t* block) : begin_(reinterpret_cast<std::uintptr_t>(block)) {}

  template <typename T>
  T* take(index_t n) {
    T* part = reinterpret_cast<T*>(begin_ + used_);
    used_ += (static_cast<std::uintptr_t>(n) * sizeof(T) + 63) / 64 * 64;
    return part;
  }

  index_t used() const { return static_cast<index_t>(used_); }

 private:
  std::uintptr_t begin_;
  std::uintptr_t used_ = 0;
};

}  // namespace
}  // namespace lorahub_edge::cpu
