#include "parallel.h"

#include <condition_variable>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif

namespace lorahub_edge {
namespace {

// Threads that sleep between calls. Made as they are first needed and never ended: they hold nothing that a process
// would have to give back, and joining them while an interpreter exits can hang.
class Pool {
 public:
  // Runs the parts, or returns false where another call has the pool.
  bool try_run(index_t n_parts, const std::function<void(index_t)>& run) {
    std::unique_lock<std::mutex> owner(owner_, std::try_to_lock);
    if (!owner) return false;
    grow(n_parts - 1);
    {
      std::lock_guard<std::mutex> lock(state_);
      run_ = &run;
      n_parts_ = n_parts - 1;
      next_part_ = 0;
      n_unfinished_ = n_parts_;
      error_ = nullptr;
    }
    wake_.notify_all();
    take_part(run, n_parts - 1);
    std::unique_lock<std::mutex> lock(state_);
    help(lock);  // where the system gave fewer threads than asked for, or they are late
    done_.wait(lock, [&] { return n_unfinished_ == 0; });
    run_ = nullptr;
    if (error_) std::rethrow_exception(error_);
    return true;
  }

 private:
  void grow(index_t n_threads) {
    while (n_threads_ < n_threads) {
      try {
        std::thread([this] { work(); }).detach();
      } catch (const std::system_error&) {
        return;
      }
      ++n_threads_;
    }
  }

  [[noreturn]] void work() {
    std::unique_lock<std::mutex> lock(state_);
    while (true) {
      wake_.wait(lock, [&] { return run_ != nullptr && next_part_ < n_parts_; });
      help(lock);
    }
  }

  // Takes parts until none is left. Called and left with the lock held.
  void help(std::unique_lock<std::mutex>& lock) {
    while (next_part_ < n_parts_) {
      const index_t part = next_part_++;
      const auto& run = *run_;
      lock.unlock();
      take_part(run, part);
      lock.lock();
      if (--n_unfinished_ == 0) done_.notify_all();
    }
  }

  void take_part(const std::function<void(index_t)>& run, index_t part) {
    try {
      run(part);
    } catch (...) {
      std::lock_guard<std::mutex> lock(error_lock_);
      if (!error_) error_ = std::current_exception();
    }
  }

  std::mutex owner_;  // held by the call whose parts are being run
  std::mutex state_;  // guards what follows
  std::condition_variable wake_, done_;
  const std::function<void(index_t)>* run_ = nullptr;
  index_t n_parts_ = 0;
  index_t next_part_ = 0;
  index_t n_unfinished_ = 0;
  index_t n_threads_ = 0;
  std::mutex error_lock_;
  std::exception_ptr error_;
};

// A child process has none of its parent's threads, and perhaps their locks: it starts with a new pool.
Pool*& pool() {
  static Pool* instance = [] {
#if defined(__unix__) || defined(__APPLE__)
    pthread_atfork(nullptr, nullptr, [] { pool() = new Pool; });
#endif
    return new Pool;
  }();
  return instance;
}

}  // namespace

void run_parts(index_t n_parts, const std::function<void(index_t)>& run) {
  if (n_parts > 1 && pool()->try_run(n_parts, run)) return;
  for (index_t part = 0; part < n_parts; ++part) run(part);
}

}  // namespace lorahub_edge
