// The race detector. Kernels of this build are compiled with -fsanitize=thread, whose calls before each access end here
// instead of in ThreadSanitizer's runtime. Every byte remembers who wrote and who read it last, and since which
// barrier: two threads that touch a byte without a barrier between, one of them writing, are found in whatever order
// they ran.
#include <dlfcn.h>

#include <algorithm>
#include <cstdio>
#include <unordered_map>

#include "machine.h"

namespace cuda_on_cpu {

#ifndef CUDA_ON_CPU_RACES

void begin_shared(const void*, std::size_t) {}
void end_shared(const void*, std::size_t) {}

#else
namespace {

constexpr std::uint16_t kAny = 0xffff;  // as a thread: several; as an epoch: several blocks
constexpr std::uintptr_t kPage = 4096;

// Who touched a byte last. Blocks are counted over all launches, so those of earlier launches have smaller numbers.
struct Access {
  std::uint32_t block = 0;
  std::uint16_t epoch = 0;
  std::uint16_t thread = 0;

  bool is_of_this_launch() const { return block >= the_machine.first_block; }

  // Whether nothing orders the two: launches follow each other, blocks do not, a block's barriers order its threads.
  bool races_with(const Access& now) const {
    if (!is_of_this_launch()) return false;
    return block != now.block || epoch == kAny || (epoch == now.epoch && thread != now.thread);
  }
};

constexpr Access kNobodyYet{0, 0, 1};  // wrote this shared memory

struct Byte {
  Access write, read;

  bool is_unwritten() const { return write.block == 0 && write.thread == kNobodyYet.thread; }

  // Who read it since the last barrier; who read it before cannot race with the block any more.
  void note_read(const Access& now) {
    if (!read.is_of_this_launch()) {
      read = now;
    } else if (read.block != now.block) {
      read.epoch = kAny;
    } else if (read.epoch != kAny && read.epoch != now.epoch) {
      read = now;
    } else if (read.thread != now.thread) {
      read.thread = kAny;
    }
  }
};

struct Page {
  Byte bytes[kPage];
};

Page& page_of(std::uintptr_t at) {
  static auto* const pages = new std::unordered_map<std::uintptr_t, std::unique_ptr<Page> >;
  static std::uintptr_t last_number = 0;
  static Page* last = nullptr;
  if (last == nullptr || at / kPage != last_number) {
    std::unique_ptr<Page>& page = (*pages)[at / kPage];
    if (page == nullptr) page.reset(new Page);
    last = page.get();
    last_number = at / kPage;
  }
  return *last;
}

// Calls f with the shadow of each byte.
template <typename F>
void for_each_byte(std::uintptr_t at, std::size_t n_bytes, F f) {
  while (n_bytes > 0) {
    const std::size_t here = std::min<std::size_t>(n_bytes, kPage - at % kPage);
    Byte* bytes = page_of(at).bytes + at % kPage;
    for (std::size_t i = 0; i < here; ++i) f(bytes[i]);
    at += here;
    n_bytes -= here;
  }
}

// "file:line" of an instruction, where addr2line is installed.
std::string place_of(const void* code) {
  static long n_asked = 0;
  if (++n_asked > 20) return "";  // it takes a while, and more is not printed
  Dl_info info{};
  dladdr(code, &info);
  char command[4200], line[500] = "";
  std::snprintf(command, sizeof command, "addr2line -e '%s' %#zx 2>/dev/null", info.dli_fname,
                reinterpret_cast<std::size_t>(code) - reinterpret_cast<std::size_t>(info.dli_fbase) - 1);
  if (std::FILE* answer = popen(command, "r")) {
    if (std::fgets(line, sizeof line, answer) == nullptr) line[0] = '\0';
    pclose(answer);
  }
  const std::string text = line;
  return text.substr(text.rfind('/') + 1, text.find('\n') - text.rfind('/') - 1);
}

void report(const char* what, bool shared, const void* code, const Access& other) {
  const std::string thread = other.thread == kAny ? "several threads" : "thread " + std::to_string(other.thread);
  complain(shared ? "race in shared memory" : "race in global memory", place_of(code) + " " + what + " by " + thread);
}

// Complains of an access that is out of order; whether it was.
bool is_wrong(const Byte& byte, const Access& now, bool writes, std::uintptr_t at, const void* code) {
  if (byte.write.races_with(now)) {
    report(writes ? "writes after a write" : "reads after a write", the_machine.is_shared(at), code, byte.write);
  } else if (writes && byte.read.races_with(now)) {
    report("writes after a read", the_machine.is_shared(at), code, byte.read);
  } else if (!writes && byte.is_unwritten()) {
    complain("read of shared memory that nobody wrote", place_of(code));
  } else {
    return false;
  }
  return true;
}

void access(const void* address, std::size_t n_bytes, bool writes, const void* code) {
  static bool inside = false;  // the standard library's functions in this file may be the watched copies
  Machine& m = the_machine;
  const auto at = reinterpret_cast<std::uintptr_t>(address);
  if (inside || m.running == nullptr || m.running->fiber.is_on_stack(at)) return;
  inside = true;
  const Access now{m.block, static_cast<std::uint16_t>(m.epoch), static_cast<std::uint16_t>(m.running->index)};
  bool wrong = false;  // one complaint for an access
  for_each_byte(at, n_bytes, [&](Byte& byte) {
    wrong = wrong || is_wrong(byte, now, writes, at, code);
    if (writes) {
      byte.write = now;
    } else {
      byte.note_read(now);
    }
  });
  ++m.counts.accesses;
  inside = false;
}

}  // namespace

void begin_shared(const void* at, std::size_t n_bytes) {
  for_each_byte(reinterpret_cast<std::uintptr_t>(at), n_bytes, [](Byte& byte) { byte = {kNobodyYet, {}}; });
}

void end_shared(const void* at, std::size_t n_bytes) {
  for_each_byte(reinterpret_cast<std::uintptr_t>(at), n_bytes, [](Byte& byte) { byte = {}; });
}

#endif

}  // namespace cuda_on_cpu

#ifdef CUDA_ON_CPU_RACES
#define CUDA_ON_CPU_ENTRY(name, size, writes)                              \
  extern "C" [[gnu::visibility("default")]] void __tsan_##name(void* at) { \
    cuda_on_cpu::access(at, size, writes, __builtin_return_address(0));    \
  }
#define CUDA_ON_CPU_ENTRIES(size)                      \
  CUDA_ON_CPU_ENTRY(read##size, size, false)           \
  CUDA_ON_CPU_ENTRY(write##size, size, true)           \
  CUDA_ON_CPU_ENTRY(unaligned_read##size, size, false) \
  CUDA_ON_CPU_ENTRY(unaligned_write##size, size, true)
CUDA_ON_CPU_ENTRIES(1)
CUDA_ON_CPU_ENTRIES(2)
CUDA_ON_CPU_ENTRIES(4)
CUDA_ON_CPU_ENTRIES(8)
CUDA_ON_CPU_ENTRIES(16)

extern "C" {
[[gnu::visibility("default")]] void __tsan_init() {}
[[gnu::visibility("default")]] void __tsan_func_entry(void*) {}
[[gnu::visibility("default")]] void __tsan_func_exit() {}
[[gnu::visibility("default")]] void __tsan_vptr_update(void**, void*) {}
[[gnu::visibility("default")]] void __tsan_read_range(void* at, std::size_t n_bytes) {
  cuda_on_cpu::access(at, n_bytes, false, __builtin_return_address(0));
}
[[gnu::visibility("default")]] void __tsan_write_range(void* at, std::size_t n_bytes) {
  cuda_on_cpu::access(at, n_bytes, true, __builtin_return_address(0));
}
}
#endif
