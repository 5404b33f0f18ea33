// Stands in for csrc/kernels/cuda/mma.cuh, whose instructions are PTX: the same functions, on the emulated GPU.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace lorahub_edge::cuda {

// Copies are made at once or when the thread waits for them, as the seed decides: between the two a kernel must neither
// count on them nor still need what they overwrite.
inline void copy_now(const cuda_on_cpu::Copy& copy) {
  cuda_on_cpu::expect_aligned(copy.to, 16);
  cuda_on_cpu::expect_aligned(copy.from, 16);
  *static_cast<uint4*>(copy.to) = copy.inside ? *static_cast<const uint4*>(copy.from) : uint4{};
}

inline void copy_async(void* to_shared, const void* from, bool inside) {
  const cuda_on_cpu::Copy copy{to_shared, from, inside};
  if (cuda_on_cpu::is_late()) {
    cuda_on_cpu::keep_copy(copy);
  } else {
    copy_now(copy);
  }
}

inline void commit_copies() {
  cuda_on_cpu::commit_copies();
}

template <int kNewer>
inline void wait_for_copies() {
  cuda_on_cpu::Copy copy;
  while (cuda_on_cpu::take_copy(kNewer, copy)) copy_now(copy);
}

inline void load_matrices(const void* row_in_shared, unsigned (&words)[4], const char* file = __builtin_FILE(),
                          int line = __builtin_LINE()) {
  cuda_on_cpu::expect_aligned(row_in_shared, 16);
  cuda_on_cpu::Offered mine{}, all[32];
  std::memcpy(mine.words, &row_in_shared, sizeof row_in_shared);
  cuda_on_cpu::exchange(mine, all, {file, line});
  const unsigned lane = threadIdx.x % 32;
  for (unsigned i = 0; i < 4; ++i) {
    const unsigned* row;
    std::memcpy(&row, all[i * 8 + lane / 4].words, sizeof row);
    words[i] = row[lane % 4];
  }
}

inline int dot(unsigned x, unsigned w) {
  int sum = 0;
  for (int shift = 0; shift < 32; shift += 8) {
    sum += static_cast<std::int8_t>(x >> shift) * static_cast<std::int8_t>(w >> shift);
  }
  return sum;
}

inline void multiply_add(const unsigned (&x)[4], unsigned w0, unsigned w1, int (&sums)[4],
                         const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  cuda_on_cpu::Offered all[32];
  cuda_on_cpu::exchange({{x[0], x[1], x[2], x[3], w0, w1}}, all, {file, line});
  const unsigned lane = threadIdx.x % 32;
  for (unsigned i = 0; i < 4; ++i) {
    const unsigned lower = i / 2, column = lane % 4 * 2 + i % 2;  // lower: whether the row is among the second eight
    for (unsigned word = 0; word < 4; ++word) {
      const unsigned (&of_x)[6] = all[lane / 4 * 4 + word].words;
      const unsigned (&of_w)[6] = all[column * 4 + word].words;
      sums[i] += dot(of_x[lower], of_w[4]) + dot(of_x[2 + lower], of_w[5]);
    }
  }
}

}  // namespace lorahub_edge::cuda
