// What the kernels call in place of the GPU. One launch at a time; a block's threads are fibers of one CPU thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

namespace cuda_on_cpu {

// A place in a kernel's source.
struct Site {
  const char* file;
  int line;
};

// Runs `thread` once for each thread of the grid.
void launch(dim3 grid, dim3 block, std::size_t shared_bytes, void* stream, const std::function<void()>& thread);

// The launch's shared memory, filled with garbage for each block.
void* dynamic_shared();

// Says that an array is shared memory; the first thread of a block that comes here fills it with garbage.
void declare_shared(void* at, std::size_t n_bytes);

void barrier(Site site);
unsigned shuffle_xor(unsigned mask, int distance, unsigned value, Site site);

// What a lane offers to the others of its warp.
struct Offered {
  unsigned words[6];
};

// What all 32 lanes offer, in order. They come here together.
void exchange(const Offered& mine, Offered (&all)[32], Site site);

// 16 bytes on their way into shared memory, or zeros.
struct Copy {
  void* to;
  const void* from;
  bool inside;
};

// Whether the next copy is made as late as it may be; drawn from the seed.
bool is_late();
void keep_copy(const Copy& copy);

// Ends a group of this thread's copies.
void commit_copies();

// The oldest kept copy of all but the last n groups of this thread; false where there is none.
bool take_copy(int n_newer, Copy& copy);

// Complains unless the address is a multiple of the access's size.
void expect_aligned(const void* at, std::size_t n_bytes);

// 1 to n, drawn from the seed; n in runs whose order is not drawn.
unsigned drawn_up_to(unsigned n);

// The largest grid of the next launch: few blocks, so that kernels have to walk in strides, or as many as CUDA takes.
std::int64_t most_blocks();

}  // namespace cuda_on_cpu
