// compose_factors on CUDA. A thread has a few neighbouring columns of one block of the stack and the sums of up to 16
// candidates for them in registers: it walks over the modules once and writes each sum once. A warp reads one block of
// 128 values of each module as a whole. More candidates follow while those values are in the cache.
#include "../compose_factors.h"

#include "../../dispatch.h"
#include "launch.cuh"
#include "values.cuh"

namespace lorahub_edge::cuda {
namespace {

constexpr const char* kOp = "compose_factors";
constexpr int kThreads = 128;

// Candidates of one group: as many as registers hold sums for.
constexpr int kMostSums = 16;

// Candidates and modules of one launch: their coefficients, at most 32 KB, lie in shared memory. Further modules are
// added to what is in `out` by then, so an element's sum is the same chain of additions however many launches there
// are.
constexpr index_t kMostCandidates = 2 * kMostSums;
constexpr index_t kMostModules = 256;

// Columns of a thread. Four, not the eight bfloat16 values of a 16-byte read: the writes are float32, 16 bytes each and
// side by side, and half as many sums leave room for twice as many threads.
constexpr int kColumns = 4;

// The part of the op that one launch does.
struct Part {
  ComposeFactorsArgs args;
  index_t first_candidate;
  index_t n_candidates;
  index_t first_module;
  index_t n_modules;
};

// The coefficients of one module for the C candidates of a group.
template <int C>
struct alignas(C < 4 ? 4 * C : 16) Coefficients {
  float of[C];
};

// Fills `to` [n_groups, n_modules]; zeros stand for candidates behind the last.
template <int C>
__device__ void stage(const Part& part, int n_groups, Coefficients<C>* to) {
  const int n_modules = static_cast<int>(part.n_modules);
  const int n_values = n_groups * n_modules * C;
  const float* from = part.args.coefficients + part.first_candidate * part.args.n_modules + part.first_module;
  for (int i = threadIdx.x; i < n_values; i += kThreads) {
    const int k = i / C % n_modules;
    const int candidate = i / C / n_modules * C + i % C;
    const bool there = candidate < part.n_candidates;
    to[i / C].of[i % C] = there ? from[candidate * part.args.n_modules + k] : 0.0f;
  }
}

// The coefficients of one module as its values are multiplied by them: for codes, times the scale of their block. Each
// thread makes this product for itself, once for the W columns that it has: one operation beside W multiply-adds, in a
// kernel that waits for memory.
template <typename T, int C>
__device__ inline Coefficients<C> scaled(Coefficients<C> coefficients, const float* scale) {
  if constexpr (sizeof(T) == 1) {
    const float factor = __ldg(scale);
#pragma unroll
    for (int c = 0; c < C; ++c) coefficients.of[c] = __fmul_rn(coefficients.of[c], factor);
  }
  return coefficients;
}

// Adds all modules of the part, in order: sums[c][w] += coefficient * value.
template <int W, int C, typename T>
__device__ inline void add_modules(const T* values, const float* scales, index_t stride, int n_modules,
                                   const Coefficients<C>* coefficients, float (&sums)[C][W]) {
#pragma unroll 4
  for (int k = 0; k < n_modules; ++k) {
    float columns[W];
    load(values + k * stride, columns);
    const Coefficients<C> coefficient = scaled<T>(coefficients[k], scales + k);
#pragma unroll
    for (int c = 0; c < C; ++c) {
#pragma unroll
      for (int w = 0; w < W; ++w) sums[c][w] = fmaf(coefficient.of[c], columns[w], sums[c][w]);
    }
  }
}

// The candidates of one group for W columns, whose values of the part's first module are at `values`, and their scale,
// where they are codes, at `scales`.
template <int W, int C, typename T>
__device__ inline void compose_group(const Part& part, const T* values, const float* scales,
                                     const Coefficients<C>* coefficients, int n_candidates, float* out) {
  const index_t n_values = part.args.n_blocks * part.args.block;
  float sums[C][W] = {};
  if (part.first_module > 0) {
#pragma unroll
    for (int c = 0; c < C; ++c) {
      if (c < n_candidates) load_own(out + c * n_values, sums[c]);
    }
  }
  add_modules<W, C>(values, scales, part.args.block, static_cast<int>(part.n_modules), coefficients, sums);
#pragma unroll
  for (int c = 0; c < C; ++c) {
    if (c < n_candidates) store_streaming(out + c * n_values, sums[c]);
  }
}

template <typename T, int W, int C>
__global__ void __launch_bounds__(kThreads) compose_kernel(Part part) {
  extern __shared__ float4 shared[];  // float4: aligned for every C
  Coefficients<C>* coefficients = reinterpret_cast<Coefficients<C>*>(shared);
  const int n_candidates = static_cast<int>(part.n_candidates);
  const int n_groups = (n_candidates + C - 1) / C;
  stage<C>(part, n_groups, coefficients);
  __syncthreads();
  const ComposeFactorsArgs& args = part.args;
  const index_t chunks_per_block = args.block / W;
  const index_t n_chunks = args.n_blocks * chunks_per_block;
  const index_t step = static_cast<index_t>(gridDim.x) * kThreads;
  for (index_t chunk = static_cast<index_t>(blockIdx.x) * kThreads + threadIdx.x; chunk < n_chunks; chunk += step) {
    const index_t block = chunk / chunks_per_block;
    const index_t column = (chunk - block * chunks_per_block) * W;
    const index_t row = block * args.n_modules + part.first_module;
    const T* values = static_cast<const T*>(args.stack) + row * args.block;
    for (int group = 0; group < n_groups; ++group) {
      const int first = group * C;
      float* out = args.out + (part.first_candidate + first) * args.n_blocks * args.block + block * args.block;
      compose_group<W, C>(part, values + column, args.scales + row, coefficients + group * part.n_modules,
                          n_candidates - first, out + column);
    }
  }
}

template <typename T, int W, int C>
void launch_part(const Part& part, Where where) {
  const index_t n_chunks = part.args.n_blocks * (part.args.block / W);
  const index_t n_groups = divided_up(part.n_candidates, C);
  Launch how{kOp, where, divided_up(n_chunks, kThreads), kThreads,
             n_groups * part.n_modules * static_cast<index_t>(sizeof(Coefficients<C>))};
  // all at once, and each as often through its loop as the others: none has a last round to itself
  const index_t n_rounds = divided_up(how.n_blocks, resident_blocks(how, compose_kernel<T, W, C>));
  how.n_blocks = divided_up(how.n_blocks, n_rounds);
  launch(how, compose_kernel<T, W, C>, part);
}

// Turns the size of a group into a compile-time constant: the smallest of 1, 2, 4, 8, 16 that takes all candidates.
template <typename T, int W>
void launch_for_candidates(const Part& part, Where where) {
  if (part.n_candidates <= 1) return launch_part<T, W, 1>(part, where);
  if (part.n_candidates <= 2) return launch_part<T, W, 2>(part, where);
  if (part.n_candidates <= 4) return launch_part<T, W, 4>(part, where);
  if (part.n_candidates <= 8) return launch_part<T, W, 8>(part, where);
  launch_part<T, W, kMostSums>(part, where);
}

// A stack whose blocks or addresses do not fit wide accesses goes column by column.
template <typename T>
void launch_for_layout(const Part& part, Where where) {
  const ComposeFactorsArgs& args = part.args;
  const bool wide = rows_aligned<kColumns>(static_cast<const T*>(args.stack), args.block) &&
                    rows_aligned<kColumns>(args.out, args.block);
  wide ? launch_for_candidates<T, kColumns>(part, where) : launch_for_candidates<T, 1>(part, where);
}

}  // namespace

void compose_factors(const ComposeFactorsArgs& args, Where where) {
  if (args.n_candidates == 0 || args.n_blocks == 0 || args.block == 0) return;
  const DeviceGuard guard(where.device, kOp);
  dispatch_dtype<float, bfloat16, std::int8_t>(kOp, "stack", args.stack_dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    for (index_t c = 0; c < args.n_candidates; c += kMostCandidates) {
      index_t k = 0;
      do {  // at least once: without modules the sums are zero
        const Part part{args, c, std::min(kMostCandidates, args.n_candidates - c), k,
                        std::min(kMostModules, args.n_modules - k)};
        launch_for_layout<T>(part, where);
        k += kMostModules;
      } while (k < args.n_modules);
    }
  });
}

}  // namespace lorahub_edge::cuda
