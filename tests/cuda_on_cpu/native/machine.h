// The state of the emulated GPU, shared by the scheduler, the race detector and the runtime library.
#pragma once

#include <deque>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "cuda_runtime.h"
#include "fibers.h"

namespace cuda_on_cpu {

enum class State { ready, at_barrier, at_shuffle, ended };

struct Thread {
  Fiber fiber;
  unsigned index = 0;
  State state = State::ended;
  Site site{"", 0};  // where it waits

  // What it offers to the other lanes of its warp. Two places: a lane may be one shuffle ahead of those that still
  // take.
  Offered offered[2];
  unsigned n_shuffles = 0;

  std::deque<std::vector<Copy>> copies{1};  // that are kept, by group; the last is not committed
};

// How often something happened, since the process began. Python knows the order.
struct Counts {
  long launches = 0, blocks = 0, barriers = 0, accesses = 0, complaints = 0;
};

// Xorshift. The state is never 0.
struct Random {
  std::uint64_t state = 1;

  std::uint64_t operator()() {
    state ^= state << 13;
    state ^= state >> 7;
    return state ^= state << 17;
  }
};

struct Machine {
  std::vector<std::unique_ptr<Thread>> threads;
  unsigned n_threads = 0;
  Thread* running = nullptr;

  std::unique_ptr<unsigned char[]> dynamic;
  std::size_t dynamic_bytes = 0;
  std::map<std::uintptr_t, std::size_t> statics;  // of this block

  unsigned launch = 0;       // counted from 1
  unsigned block = 0;        // counted over all launches, from 1
  unsigned first_block = 1;  // of this launch
  unsigned epoch = 0;        // barriers that the block has passed

  bool in_order = true;
  Random random;
  cudaError_t last_error = cudaSuccess;
  Counts counts;
  std::map<std::string, long> complaints;  // by kind

  bool is_shared(std::uintptr_t at) const;
};

extern Machine the_machine;

// Says on stderr what is wrong and where, for the first few of a kind, and counts it: any complaint fails the run.
void complain(const char* kind, const std::string& detail);

// For the race detector: from now on this is shared memory that nobody wrote; it is ordinary memory again.
void begin_shared(const void* at, std::size_t n_bytes);
void end_shared(const void* at, std::size_t n_bytes);

}  // namespace cuda_on_cpu
