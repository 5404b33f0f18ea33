// Static partition of a range over scoped std::threads.
//
// No OpenMP: torch wheels bundle their own OpenMP runtime, and a second one in the process means two thread pools and
// large slowdowns. Threads live for one call, so there is nothing to tear down at exit and nothing to lose in a fork;
// starting one costs some ten microseconds, which `min_per_thread` keeps small beside the work.
#pragma once

#include <algorithm>
#include <exception>
#include <system_error>
#include <thread>
#include <vector>

#include "core.h"

namespace lorahub_edge {

// Calls body(begin, end) on parts that cover [0, n) once, at most n_threads of them and none below min_per_thread
// unless it is the only one. The last part runs in the caller. The first exception of a part is rethrown here.
template <typename F>
void parallel_for(index_t n, index_t n_threads, index_t min_per_thread, const F& body) {
  if (n <= 0) return;
  const index_t most_parts = std::max<index_t>(1, n / std::max<index_t>(1, min_per_thread));
  const index_t n_parts = std::max<index_t>(1, std::min(n_threads, most_parts));
  const auto begin_of = [&](index_t part) { return n / n_parts * part + std::min(part, n % n_parts); };

  std::vector<std::exception_ptr> errors(static_cast<std::size_t>(n_parts));
  const auto run = [&](index_t part) {
    try {
      body(begin_of(part), begin_of(part + 1));
    } catch (...) {
      errors[static_cast<std::size_t>(part)] = std::current_exception();
    }
  };

  std::vector<std::thread> threads;
  threads.reserve(static_cast<std::size_t>(n_parts));
  for (index_t part = 0; part + 1 < n_parts; ++part) {
    try {
      threads.emplace_back(run, part);
    } catch (const std::system_error&) {
      run(part);  // the system gives no more threads: the caller does this part itself
    }
  }
  run(n_parts - 1);
  for (auto& thread : threads) thread.join();
  for (const auto& error : errors) {
    if (error) std::rethrow_exception(error);
  }
}

}  // namespace lorahub_edge
