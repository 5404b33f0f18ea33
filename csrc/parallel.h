// Static partition of a range over a small pool of std::threads.
//
// No OpenMP: torch wheels bundle their own OpenMP runtime, and a second one in the process means two thread pools and
// large slowdowns.
#pragma once

#include <algorithm>
#include <functional>

#include "core.h"

namespace lorahub_edge {

// Calls run(part) once for every part in [0, n_parts); the last one runs in the caller. Returns when all are done and
// rethrows the first exception of a part. While another thread's call has the pool, the caller runs all parts itself.
void run_parts(index_t n_parts, const std::function<void(index_t)>& run);

// Calls body(begin, end) on parts that cover [0, n) once, at most n_threads of them and none below min_per_thread
// unless it is the only one.
template <typename F>
void parallel_for(index_t n, index_t n_threads, index_t min_per_thread, const F& body) {
  if (n <= 0) return;
  const index_t most_parts = std::max<index_t>(1, n / std::max<index_t>(1, min_per_thread));
  const index_t n_parts = std::max<index_t>(1, std::min(n_threads, most_parts));
  if (n_parts == 1) return body(index_t{0}, n);
  const auto begin_of = [&](index_t part) { return n / n_parts * part + std::min(part, n % n_parts); };
  run_parts(n_parts, [&](index_t part) { body(begin_of(part), begin_of(part + 1)); });
}

}  // namespace lorahub_edge
