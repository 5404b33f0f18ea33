// The loops of compose_factors, compiled once per instruction set (see isa.h).
//
// Blocks of the stack are read in memory order, each once: for as many candidates as registers hold sums for, all
// modules are added up over a few vectors of columns, and the sums are written once. More candidates than that pass
// over the block again, which is in the cache by then. A block of codes differs from one of floats only in that the
// coefficients are multiplied by its scales before.
#include "isa_kernels.h"
#include "simd.h"

namespace lorahub_edge::cpu {
namespace {

// Of 32 registers with AVX-512 and NEON, of 16 otherwise; the rest hold values and a coefficient.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kSumRegisters = 26;
#else
constexpr int kSumRegisters = 12;
#endif
constexpr int kMostCandidates = kSumRegisters / 2;

// Reads of at least so many columns at a time the processor foresees by itself.
constexpr int kStreamedColumns = 128;

// Vectors of columns at a time: as many sums as registers hold, and no more than a block of 128 values has. With one
// candidate, and with two on AVX-512, reads are then one sequential stream.
template <int C>
constexpr int vectors_for() {
  constexpr int fit = kSumRegisters / C;
  return fit >= 8 ? 8 : fit >= 4 ? 4 : 2;
}

// Asks for the same place of the block after next: with several candidates the reads of a block are no stream, and
// the processor does not foresee them. Into the second-level cache; the first is full of this block.
template <typename T>
inline void prefetch_ahead(const T* from, index_t distance, int n_bytes) {
  const char* address = reinterpret_cast<const char*>(from + distance);
  for (int offset = 0; offset < n_bytes; offset += 64) __builtin_prefetch(address + offset, 0, 2);
}

// Where the candidates of one group read and write.
struct Group {
  const float* coefficients;  // of module 0; module k's are `stride` further on each
  index_t stride;
  float* out;
  index_t out_stride;
  bool stream;
};

// V vectors of columns of one block, C candidates, all modules. kPart: only the first n_columns of a single vector.
template <int C, int V, bool kPart, typename T>
inline void compose_vectors(const T* values, index_t block, index_t n_modules, const Group& group, index_t column,
                            index_t n_columns) {
  Vector sums[C][V] = {};
  const T* row = values + column;
  const float* coefficients = group.coefficients;
  const index_t ahead = 2 * n_modules * block;
  for (index_t k = 0; k < n_modules; ++k) {
    if (!kPart && V * kLanes < kStreamedColumns) prefetch_ahead(row, ahead, V * kLanes * static_cast<int>(sizeof(T)));
    Vector columns[V];
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) columns[v] = load_columns<kPart>(row + v * kLanes, n_columns);
#pragma GCC unroll 16
    for (int c = 0; c < C; ++c) {
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) sums[c][v] = multiply_add(broadcast(coefficients[c]), columns[v], sums[c][v]);
    }
    row += block;
    coefficients += group.stride;
  }
  for (int c = 0; c < C; ++c) {
    float* out = group.out + c * group.out_stride + column;
    for (int v = 0; v < V; ++v) {
      if (!kPart && group.stream) {
        stream(out + v * kLanes, sums[c][v]);
      } else {
        store_columns<kPart>(out + v * kLanes, sums[c][v], n_columns);
      }
    }
  }
}

template <int C, typename T>
void compose_block(const T* values, index_t block, index_t n_modules, const Group& group) {
  constexpr int V = vectors_for<C>();
  index_t column = 0;
  for (; column + V * kLanes <= block; column += V * kLanes) {
    compose_vectors<C, V, false>(values, block, n_modules, group, column, 0);
  }
  for (; column + kLanes <= block; column += kLanes) {
    compose_vectors<C, 1, false>(values, block, n_modules, group, column, 0);
  }
  if (column < block) compose_vectors<C, 1, true>(values, block, n_modules, group, column, block - column);
}

// Turns the number of candidates into a compile-time constant.
template <int C, typename T>
inline void compose_block_for(index_t n_candidates, const T* values, index_t block, index_t n_modules,
                              const Group& group) {
  if (n_candidates == C) return compose_block<C>(values, block, n_modules, group);
  if constexpr (C > 1) compose_block_for<C - 1>(n_candidates, values, block, n_modules, group);
}

// The coefficients of all modules and candidates times the scales of one block. In whole vectors: what a module's last
// one writes behind its candidates, the next module's first writes over.
inline void scale_coefficients(const ComposeRange& range, index_t block, float* scaled) {
  static_assert(kLanes <= kMostLanes);
  const index_t n_candidates = range.args.n_candidates;
  const float* coefficients = range.coefficients_by_module;
  const float* scales = range.args.scales + block * range.args.n_modules;
  for (index_t k = 0; k < range.args.n_modules; ++k) {
    const Vector scale = broadcast(scales[k]);
    for (index_t c = 0; c < n_candidates; c += kLanes) store(scaled + c, load(coefficients + c) * scale);
    coefficients += n_candidates;
    scaled += n_candidates;
  }
}

}  // namespace

template <>
template <typename T>
void OpKernels<kIsa>::compose_blocks(const ComposeRange& range, index_t first_block, index_t last_block,
                                     float* scaled) {
  const ComposeFactorsArgs& args = range.args;
  const float* coefficients = sizeof(T) == 1 ? scaled : range.coefficients_by_module;
  const index_t n_values = args.n_blocks * args.block;
  const index_t n_groups = (args.n_candidates + kMostCandidates - 1) / kMostCandidates;
  for (index_t b = first_block; b < last_block; ++b) {
    const T* values = static_cast<const T*>(args.stack) + b * args.n_modules * args.block;
    if constexpr (sizeof(T) == 1) scale_coefficients(range, b, scaled);
    index_t done = 0;
    for (index_t left = n_groups; left > 0; --left) {
      const index_t size = (args.n_candidates - done + left - 1) / left;
      const Group group{coefficients + done, args.n_candidates, args.out + done * n_values + b * args.block, n_values,
                        range.stream};
      compose_block_for<kMostCandidates>(size, values, args.block, args.n_modules, group);
      done += size;
    }
  }
  if (range.stream) finish_streams();
}

template void OpKernels<kIsa>::compose_blocks<float>(const ComposeRange&, index_t, index_t, float*);
template void OpKernels<kIsa>::compose_blocks<bfloat16>(const ComposeRange&, index_t, index_t, float*);
template void OpKernels<kIsa>::compose_blocks<std::int8_t>(const ComposeRange&, index_t, index_t, float*);

}  // namespace lorahub_edge::cpu
