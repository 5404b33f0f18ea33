// Stacks that a single CPU thread switches between.
#pragma once

#include <ucontext.h>

#include <cstdint>
#include <functional>
#include <memory>

namespace cuda_on_cpu {

constexpr std::size_t kStackBytes = 256 << 10;

class Fiber {
 public:
  Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // Runs `body` from its beginning or from where it left, until it leaves or ends; whether it has ended.
  bool resume(const std::function<void()>& body);

  // Goes back to who resumed the running fiber.
  static void leave();

  bool is_on_stack(std::uintptr_t at) const {
    const auto begin = reinterpret_cast<std::uintptr_t>(stack_.get());
    return at >= begin && at < begin + kStackBytes;
  }

 private:
  static void run();
  void go_in();

  std::unique_ptr<char[]> stack_;
  ucontext_t beginning_;
  void* left_at_[5];
  bool entered_ = false;
  bool ended_ = true;
  void* fake_stack_ = nullptr;  // AddressSanitizer's
};

}  // namespace cuda_on_cpu
