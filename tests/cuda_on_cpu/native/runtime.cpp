// The rest of the emulated GPU: its state, what it complains of, CUDA's runtime library, and what Python asks of it.
#include <cstdio>
#include <utility>

#include "machine.h"

namespace cuda_on_cpu {
namespace {

constexpr long kMostMessages = 10;  // of one kind

}  // namespace

Machine the_machine;

bool Machine::is_shared(std::uintptr_t at) const {
  const auto first = reinterpret_cast<std::uintptr_t>(dynamic.get());
  if (at >= first && at < first + dynamic_bytes) return true;
  const auto next = statics.upper_bound(at);
  if (next == statics.begin()) return false;
  const auto& [begin, n_bytes] = *std::prev(next);
  return at < begin + n_bytes;
}

void complain(const char* kind, const std::string& detail) {
  Machine& m = the_machine;
  ++m.counts.complaints;
  if (++m.complaints[kind] > kMostMessages) return;
  std::fprintf(stderr, "cuda_on_cpu: %s: %s (launch %u, block %u, thread %u)\n", kind, detail.c_str(), m.launch,
               blockIdx.x, threadIdx.x);
}

void expect_aligned(const void* at, std::size_t n_bytes) {
  if (reinterpret_cast<std::uintptr_t>(at) % n_bytes == 0) return;
  char text[80];
  std::snprintf(text, sizeof text, "%zu bytes at %p", n_bytes, at);
  complain("misaligned access", text);
}

unsigned drawn_up_to(unsigned n) {
  if (the_machine.in_order) return n;
  return 1 + static_cast<unsigned>(the_machine.random() % n);
}

std::int64_t most_blocks() {
  const unsigned drawn = drawn_up_to(4);
  return drawn < 4 ? drawn : 0x7fffffff;
}

}  // namespace cuda_on_cpu

using cuda_on_cpu::the_machine;

// -- CUDA's runtime library -------------------------------------------------------------------------------------------

const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "no error";
    case cudaErrorInvalidConfiguration:
      return "invalid configuration argument";
    case cudaErrorInvalidDevice:
      return "invalid device ordinal";
    default:
      return "invalid argument";
  }
}
cudaError_t cudaGetLastError() {
  return std::exchange(the_machine.last_error, cudaSuccess);
}
cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int device) {
  return device == 0 ? cudaSuccess : cudaErrorInvalidDevice;
}
cudaError_t cudaGetDeviceCount(int* n) {
  *n = 1;
  return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int) {
  std::strcpy(properties->name, "emulated");
  properties->major = 9;
  properties->minor = 0;
  properties->totalGlobalMem = std::size_t{1} << 30;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) {
  *value = static_cast<int>(cuda_on_cpu::drawn_up_to(3));
  return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int* version) {
  *version = 13000;
  return cudaSuccess;
}
cudaError_t cudaDriverGetVersion(int* version) {
  *version = 13000;
  return cudaSuccess;
}

// -- For Python -------------------------------------------------------------------------------------------------------

extern "C" {

[[gnu::visibility("default")]] const cuda_on_cpu::Counts* cuda_on_cpu_counts() {
  return &the_machine.counts;
}

// Draws from this seed from now on; 0: nothing is drawn, all comes in order.
[[gnu::visibility("default")]] void cuda_on_cpu_seed(unsigned seed) {
  the_machine.in_order = seed == 0;
  the_machine.random.state = (seed + 1ull) * 0x9e3779b97f4a7c15ull;
}
}
