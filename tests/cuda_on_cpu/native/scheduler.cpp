// Runs launches: blocks one after the other, and a block's warps each until it waits for the others. Which block, warp
// and thread comes next is drawn from the seed, so every run tries another order; with seed 0 they come in order.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <numeric>

#include "machine.h"

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace cuda_on_cpu {
namespace {

constexpr unsigned kWarp = 32;
constexpr unsigned kMostThreads = 1024;
constexpr std::size_t kMostShared = 48 << 10;  // more needs an attribute, which no kernel here sets
constexpr int kGarbage = 0xff;                 // floats are NaN, integers -1

std::vector<unsigned> drawn_order(unsigned n) {
  Machine& m = the_machine;
  std::vector<unsigned> order(n);
  std::iota(order.begin(), order.end(), 0u);
  if (m.in_order) return order;
  for (unsigned i = n; i > 1; --i) std::swap(order[i - 1], order[m.random() % i]);
  return order;
}

std::string text_of(Site site) {
  const std::string file = site.file;
  return file.substr(file.rfind('/') + 1) + ":" + std::to_string(site.line);
}

bool same(Site a, Site b) {
  return a.line == b.line && (a.file == b.file || std::strcmp(a.file, b.file) == 0);
}

// Lets threads [first, last) go on if all of them wait in this state; whether they did.
bool release(unsigned first, unsigned last, State state, const char* kind) {
  Machine& m = the_machine;
  for (unsigned t = first; t < last; ++t) {
    if (m.threads[t]->state != state) return false;
  }
  const Site site = m.threads[first]->site;
  for (unsigned t = first; t < last; ++t) {
    if (!same(m.threads[t]->site, site)) complain(kind, text_of(site) + " and " + text_of(m.threads[t]->site));
    m.threads[t]->state = State::ready;
  }
  return true;
}

bool release_barrier() {
  Machine& m = the_machine;
  if (!release(0, m.n_threads, State::at_barrier, "barriers that do not match")) return false;
  if (++m.epoch == 0xffff) complain("too many barriers", "the race detector counts 65,534 of a block");
  ++m.counts.barriers;
  return true;
}

void run_thread(unsigned index, const std::function<void()>& body) {
  Machine& m = the_machine;
  Thread& thread = *m.threads[index];
  m.running = &thread;
  threadIdx = {index, 0, 0};
  if (thread.fiber.resume(body)) thread.state = State::ended;
  m.running = nullptr;
}

// Runs a warp as far as it comes without the others; whether it could run at all.
bool run_warp(unsigned warp, const std::function<void()>& body) {
  Machine& m = the_machine;
  const unsigned first = warp * kWarp, last = std::min(first + kWarp, m.n_threads);
  const std::vector<unsigned> order = drawn_order(last - first);
  bool any = false;
  do {
    for (const unsigned lane : order) {
      if (m.threads[first + lane]->state != State::ready) continue;
      any = true;
      run_thread(first + lane, body);
    }
  } while (release(first, last, State::at_shuffle, "shuffles that do not match"));
  return any;
}

bool run_warps(const std::function<void()>& body) {
  bool any = false;
  for (const unsigned warp : drawn_order((the_machine.n_threads + kWarp - 1) / kWarp)) any |= run_warp(warp, body);
  return any;
}

// The fibers hang in the kernel and cannot be taken out of it, so this is the end of the process.
[[noreturn]] void give_up() {
  Machine& m = the_machine;
  std::string places;
  for (unsigned t = 0; t < m.n_threads; ++t) {
    const Thread& thread = *m.threads[t];
    if (thread.state == State::ended) continue;
    const std::string place = text_of(thread.site);
    if (places.find(place) == std::string::npos) places += " " + place;
  }
  complain("threads that wait for others that never come", "at" + places);
  std::_Exit(70);
}

void begin_block() {
  Machine& m = the_machine;
  ++m.block;
  m.epoch = 0;
  m.statics.clear();
  begin_shared(m.dynamic.get(), m.dynamic_bytes);
  std::memset(m.dynamic.get(), kGarbage, m.dynamic_bytes);
  for (unsigned t = 0; t < m.n_threads; ++t) {
    m.threads[t]->state = State::ready;
    m.threads[t]->n_shuffles = 0;
    m.threads[t]->copies.assign(1, {});
  }
}

void run_block(const std::function<void()>& body) {
  Machine& m = the_machine;
  begin_block();
  while (run_warps(body) || release_barrier()) {
  }
  const auto ended = [](const auto& thread) { return thread->state == State::ended; };
  if (!std::all_of(m.threads.begin(), m.threads.begin() + m.n_threads, ended)) give_up();
}

cudaError_t error_of(dim3 grid, dim3 block, std::size_t shared_bytes) {
  const bool flat = grid.y == 1 && grid.z == 1 && block.y == 1 && block.z == 1;
  if (!flat || grid.x == 0 || grid.x > 0x7fffffff || block.x == 0 || block.x > kMostThreads) {
    return cudaErrorInvalidConfiguration;
  }
  return shared_bytes > kMostShared ? cudaErrorInvalidValue : cudaSuccess;
}

}  // namespace

void launch(dim3 grid, dim3 block, std::size_t shared_bytes, void*, const std::function<void()>& thread) {
  Machine& m = the_machine;
  m.last_error = error_of(grid, block, shared_bytes);
  if (m.last_error != cudaSuccess) return;
  ++m.launch;
  m.first_block = m.block + 1;
  ++m.counts.launches;
  m.counts.blocks += grid.x;
  gridDim = grid;
  blockDim = block;
  m.n_threads = block.x;
  while (m.threads.size() < m.n_threads) {
    m.threads.emplace_back(new Thread);
    m.threads.back()->index = static_cast<unsigned>(m.threads.size()) - 1;
  }
  m.dynamic.reset(new unsigned char[shared_bytes]);  // for each launch: AddressSanitizer watches its end
  m.dynamic_bytes = shared_bytes;
  for (const unsigned b : drawn_order(grid.x)) {
    blockIdx = {b, 0, 0};
    run_block(thread);
  }
  end_shared(m.dynamic.get(), m.dynamic_bytes);
  m.dynamic.reset();
  m.dynamic_bytes = 0;
}

void* dynamic_shared() {
  return the_machine.dynamic.get();
}

void declare_shared(void* at, std::size_t n_bytes) {
  Machine& m = the_machine;
  if (!m.statics.emplace(reinterpret_cast<std::uintptr_t>(at), n_bytes).second) return;
  begin_shared(at, n_bytes);
  std::memset(at, kGarbage, n_bytes);
  std::size_t all = m.dynamic_bytes;
  for (const auto& [_, size] : m.statics) all += size;
  if (all > kMostShared) complain("too much shared memory", std::to_string(all) + " bytes");
}

void barrier(Site site) {
  Thread& thread = *the_machine.running;
  thread.site = site;
  thread.state = State::at_barrier;
  Fiber::leave();
}

void exchange(const Offered& mine, Offered (&all)[32], Site site) {
  Machine& m = the_machine;
  Thread& thread = *m.running;
  const unsigned turn = ++thread.n_shuffles % 2;
  thread.offered[turn] = mine;
  thread.site = site;
  thread.state = State::at_shuffle;
  Fiber::leave();
  const unsigned first = thread.index / kWarp * kWarp;
  for (unsigned lane = 0; lane < kWarp; ++lane) all[lane] = m.threads[first + lane]->offered[turn];
}

unsigned shuffle_xor(unsigned mask, int distance, unsigned value, Site site) {
  if (mask != 0xffffffffu) complain("a shuffle of less than a warp", text_of(site));
  Offered all[kWarp];
  exchange({{value}}, all, site);
  return all[(the_machine.running->index % kWarp) ^ static_cast<unsigned>(distance)].words[0];
}

bool is_late() {
  return the_machine.in_order || the_machine.random() % 2 == 0;
}

void keep_copy(const Copy& copy) {
  the_machine.running->copies.back().push_back(copy);
}

void commit_copies() {
  the_machine.running->copies.emplace_back();
}

bool take_copy(int n_newer, Copy& copy) {
  std::deque<std::vector<Copy>>& groups = the_machine.running->copies;
  while (groups.size() > static_cast<std::size_t>(n_newer) + 1) {
    std::vector<Copy>& oldest = groups.front();
    if (!oldest.empty()) {
      copy = oldest.back();
      oldest.pop_back();
      return true;
    }
    groups.pop_front();
  }
  return false;
}

}  // namespace cuda_on_cpu
