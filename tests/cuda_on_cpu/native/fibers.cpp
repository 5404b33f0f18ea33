// A fiber is entered once by makecontext and never given up: its loop runs one body after the other. From then on it is
// switched to and from by the compiler's own setjmp and longjmp, which cost no system call. This file is compiled
// without sanitizers: they are told of switches, and must not see them as jumps.
#include "fibers.h"

#ifdef CUDA_ON_CPU_ASAN
#include <sanitizer/common_interface_defs.h>
#endif

namespace cuda_on_cpu {
namespace {

Fiber* running = nullptr;
const std::function<void()>* running_body = nullptr;
void* scheduler[5];
const void* scheduler_stack = nullptr;
std::size_t scheduler_stack_bytes = 0;

void before_switch(void** fake_stack, const void* stack, std::size_t n_bytes) {
#ifdef CUDA_ON_CPU_ASAN
  __sanitizer_start_switch_fiber(fake_stack, stack, n_bytes);
#else
  (void)fake_stack, (void)stack, (void)n_bytes;
#endif
}

void after_switch(void* fake_stack, const void** stack, std::size_t* n_bytes) {
#ifdef CUDA_ON_CPU_ASAN
  __sanitizer_finish_switch_fiber(fake_stack, stack, n_bytes);
#else
  (void)fake_stack, (void)stack, (void)n_bytes;
#endif
}

// A function that calls the compiler's longjmp must not be part of one that calls its setjmp.
[[gnu::noinline]] void jump_to_scheduler() {
  __builtin_longjmp(scheduler, 1);
}

}  // namespace

Fiber::Fiber() : stack_(new char[kStackBytes]) {
  getcontext(&beginning_);
  beginning_.uc_stack.ss_sp = stack_.get();
  // stacks that begin at different places of their pages are not in each other's way in the caches
  static unsigned number = 0;
  beginning_.uc_stack.ss_size = kStackBytes - 448 * (number++ % 64);
  beginning_.uc_link = nullptr;
  makecontext(&beginning_, &Fiber::run, 0);
}

[[gnu::noinline]] void Fiber::go_in() {
  if (entered_) __builtin_longjmp(left_at_, 1);
  entered_ = true;
  setcontext(&beginning_);
}

[[gnu::noinline]] bool Fiber::resume(const std::function<void()>& body) {
  running = this;
  running_body = &body;
  void* fake_stack = nullptr;
  before_switch(&fake_stack, stack_.get(), kStackBytes);
  if (__builtin_setjmp(scheduler) == 0) running->go_in();
  after_switch(fake_stack, nullptr, nullptr);
  const bool ended = running->ended_;
  running = nullptr;
  return ended;
}

[[gnu::noinline]] void Fiber::leave() {
  before_switch(&running->fake_stack_, scheduler_stack, scheduler_stack_bytes);
  if (__builtin_setjmp(running->left_at_) == 0) jump_to_scheduler();
  after_switch(running->fake_stack_, &scheduler_stack, &scheduler_stack_bytes);
}

void Fiber::run() {
  after_switch(nullptr, &scheduler_stack, &scheduler_stack_bytes);
  for (;;) {
    running->ended_ = false;
    (*running_body)();
    running->ended_ = true;
    leave();
  }
}

}  // namespace cuda_on_cpu
