// Tensor cores and the copies that feed them, as PTX has them from compute capability 8.0 on. On older GPUs a kernel
// that comes here stops: the host does not launch it there.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace lorahub_edge::cuda {

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
#define LORAHUB_EDGE_PTX_80(...) asm volatile(__VA_ARGS__)
#else
#define LORAHUB_EDGE_PTX_80(...) __trap()
#endif

// 16 bytes of an array into shared memory, or zeros; they are there after `wait_for_copies` and a barrier. Both
// addresses are multiples of 16.
__device__ inline void copy_async(void* to_shared, const void* from, bool inside) {
  [[maybe_unused]] const unsigned to = static_cast<unsigned>(__cvta_generic_to_shared(to_shared));
  [[maybe_unused]] const int n_bytes = inside ? 16 : 0;
  LORAHUB_EDGE_PTX_80("cp.async.cg.shared.global [%0], [%1], 16, %2;" : : "r"(to), "l"(from), "r"(n_bytes) : "memory");
}

// Ends a group of copies.
__device__ inline void commit_copies() {
  LORAHUB_EDGE_PTX_80("cp.async.commit_group;" : : : "memory");
}

// Until all but the last kNewer groups of this thread have arrived.
template <int kNewer>
__device__ inline void wait_for_copies() {
  LORAHUB_EDGE_PTX_80("cp.async.wait_group %0;" : : "n"(kNewer) : "memory");
}

// Four matrices of 8 rows of 16 bytes: lane i names row i % 8 of matrix i / 8 and gets word i % 4 of row i / 4 of each.
__device__ inline void load_matrices(const void* row_in_shared, unsigned (&words)[4]) {
  [[maybe_unused]] const unsigned from = static_cast<unsigned>(__cvta_generic_to_shared(row_in_shared));
  LORAHUB_EDGE_PTX_80("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];" : "=r"(words[0]),
                      "=r"(words[1]), "=r"(words[2]), "=r"(words[3]) : "r"(from) : "memory");
}

// sums (16 rows, 8 columns) += x (16, 32) times w (8, 32) transposed, int8 in int32, by the 32 lanes of a warp. Lane i
// has in x[0] and x[1] bytes 4 * (i % 4) to + 3 of rows i / 4 and i / 4 + 8, in x[2] and x[3] those 16 further on; in
// w[0] and w[1] the same of row i / 4 of w; in sums the columns 2 * (i % 4) and + 1 of row i / 4, then of row i / 4
// + 8.
__device__ inline void multiply_add(const unsigned (&x)[4], unsigned w0, unsigned w1, int (&sums)[4]) {
  LORAHUB_EDGE_PTX_80(
      "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
      "%3};" : "+r"(sums[0]),
      "+r"(sums[1]), "+r"(sums[2]), "+r"(sums[3]) : "r"(x[0]), "r"(x[1]), "r"(x[2]), "r"(x[3]), "r"(w0), "r"(w1));
}

#undef LORAHUB_EDGE_PTX_80

}  // namespace lorahub_edge::cuda
