// The loops of compose_factors, compiled once per instruction set (see isa.h).
//
// Per tile of columns, some modules at a time: the rows are widened to float32 into a small packed buffer, in one
// sequential read of each; then blocks of candidates run over the buffer with their sums held in registers. The packed
// copy matters: rows of a stack are often a large power of two apart, and would otherwise evict each other from every
// cache between two blocks. Candidates that fit in one block read the rows once, in place.
//
// Vectors are the compiler's own vector type (GCC and Clang), so the source is the same for SSE2, AVX2, AVX-512, NEON.
// Nothing from the C++ library is used here: see core.h.
#include <cstring>

#include "compose_factors_range.h"

#ifndef LORAHUB_EDGE_ISA_NAMESPACE
#error "compile with -DLORAHUB_EDGE_ISA_NAMESPACE=<entry of LORAHUB_EDGE_FOR_EACH_ISA>"
#endif

namespace lorahub_edge::cpu {
namespace LORAHUB_EDGE_ISA_NAMESPACE {
namespace {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
constexpr int kSumRegisters = 24;  // of 32
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
constexpr int kSumRegisters = 12;  // of 16
#else
constexpr int kVectorBytes = 16;
constexpr int kSumRegisters = 12;  // of 16
#endif
constexpr int kLanes = kVectorBytes / static_cast<int>(sizeof(float));
constexpr int kBlockCandidates = kSumRegisters / 2;

// Modules taken at a time. Rows read in place: as many streams as a cache set has ways. Packed: 128 KiB on the stack.
constexpr index_t kInPlaceModules = 8;
constexpr index_t kPackedModules = 32;

typedef float Vector __attribute__((vector_size(kVectorBytes)));
typedef std::uint16_t HalfBits __attribute__((vector_size(kVectorBytes / 2)));
typedef std::uint32_t Bits __attribute__((vector_size(kVectorBytes)));

inline Vector load(const float* from) {
  Vector vector;
  std::memcpy(&vector, from, sizeof(vector));
  return vector;
}

inline Vector load(const bfloat16* from) {
  HalfBits bits;
  std::memcpy(&bits, from, sizeof(bits));
  return reinterpret_cast<Vector>(__builtin_convertvector(bits, Bits) << 16);
}

inline void store(float* to, Vector vector) {
  std::memcpy(to, &vector, sizeof(vector));
}

inline index_t smaller(index_t a, index_t b) {
  return a < b ? a : b;
}

// Rows of values at `values`, `stride` apart, that stand for consecutive modules.
template <typename T>
struct Rows {
  const T* values;
  index_t stride;
  index_t n_modules;
};

// Sums of C candidates over V vectors of columns. `sums` holds what earlier chunks of modules gave.
template <int C, int V, typename T>
inline void accumulate(const Rows<T>& rows, const float* coefficients, index_t coefficients_stride,
                       Vector (&sums)[C][V]) {
  for (index_t k = 0; k < rows.n_modules; ++k) {
    const T* row = rows.values + k * rows.stride;
    Vector values[V];
    for (int v = 0; v < V; ++v) values[v] = load(row + v * kLanes);
    for (int c = 0; c < C; ++c) {
      const float coefficient = coefficients[c * coefficients_stride + k];
      for (int v = 0; v < V; ++v) sums[c][v] += coefficient * values[v];
    }
  }
}

// A block of C candidates of one tile: where their coefficients and their part of the output lie.
struct Block {
  const float* coefficients;
  index_t coefficients_stride;
  float* out;
  index_t out_stride;
  bool is_first_chunk;
};

// V whole vectors of columns.
template <int C, int V, typename T>
inline void compose_vectors(const Rows<T>& rows, const Block& block, index_t column) {
  Vector sums[C][V] = {};
  float* out = block.out + column;
  if (!block.is_first_chunk) {
    for (int c = 0; c < C; ++c) {
      for (int v = 0; v < V; ++v) sums[c][v] = load(out + c * block.out_stride + v * kLanes);
    }
  }
  accumulate<C, V>(Rows<T>{rows.values + column, rows.stride, rows.n_modules}, block.coefficients,
                   block.coefficients_stride, sums);
  for (int c = 0; c < C; ++c) {
    for (int v = 0; v < V; ++v) store(out + c * block.out_stride + v * kLanes, sums[c][v]);
  }
}

// The last columns, fewer than a vector, by the same vector operations: the packed rows are padded, the output is not.
template <int C, typename T>
inline void compose_remainder(const Rows<T>& rows, const Block& block, index_t column, index_t n_columns) {
  const std::size_t n_bytes = static_cast<std::size_t>(n_columns) * sizeof(float);
  float padded[C * kLanes] = {};
  float* out = block.out + column;
  for (int c = 0; c < C; ++c) std::memcpy(padded + c * kLanes, out + c * block.out_stride, n_bytes);
  const Block inner{block.coefficients, block.coefficients_stride, padded, kLanes, block.is_first_chunk};
  compose_vectors<C, 1>(Rows<T>{rows.values + column, rows.stride, rows.n_modules}, inner, 0);
  for (int c = 0; c < C; ++c) std::memcpy(out + c * block.out_stride, padded + c * kLanes, n_bytes);
}

template <int C, typename T>
void compose_block(const Rows<T>& rows, const Block& block, index_t width) {
  // Few candidates take more columns at once, to have enough independent sums; the counts divide a tile.
  constexpr int V = C == 1 ? 8 : C == 2 ? 4 : 2;
  index_t column = 0;
  for (; column + V * kLanes <= width; column += V * kLanes) compose_vectors<C, V>(rows, block, column);
  for (; column + kLanes <= width; column += kLanes) compose_vectors<C, 1>(rows, block, column);
  if (column < width) compose_remainder<C>(rows, block, column, width - column);
}

// Turns the number of candidates into a compile-time constant.
template <int C, typename T>
inline void compose_block_of(index_t n_candidates, const Rows<T>& rows, const Block& block, index_t width) {
  if (n_candidates == C) return compose_block<C>(rows, block, width);
  if constexpr (C > 1) compose_block_of<C - 1>(n_candidates, rows, block, width);
}

// One row's part of a tile as float32, padded with zeros to whole vectors.
template <typename T>
inline void pack_row(const T* row, index_t width, float* packed) {
  index_t column = 0;
  for (; column + kLanes <= width; column += kLanes) store(packed + column, load(row + column));
  if (column < width) {
    T padded[kLanes] = {};
    std::memcpy(padded, row + column, static_cast<std::size_t>(width - column) * sizeof(T));
    store(packed + column, load(padded));
  }
}

// All candidates of one tile, from rows that stand for some of the modules.
template <typename T>
inline void compose_blocks(const ComposeFactorsArgs& args, const Rows<T>& rows, index_t first_module, index_t begin,
                           index_t width) {
  const index_t n_blocks = (args.n_candidates + kBlockCandidates - 1) / kBlockCandidates;
  index_t done = 0;
  for (index_t left = n_blocks; left > 0; --left) {
    const index_t size = (args.n_candidates - done + left - 1) / left;
    const Block block{args.coefficients + done * args.n_modules + first_module, args.n_modules,
                      args.out + done * args.n_values + begin, args.n_values, first_module == 0};
    compose_block_of<kBlockCandidates>(size, rows, block, width);
    done += size;
  }
}

// One tile of columns: all modules, all candidates. Each loop runs once also without modules: the sums are then zero.
template <typename T>
void compose_tile(const ComposeFactorsArgs& args, index_t begin, index_t width) {
  const T* stack = static_cast<const T*>(args.stack) + begin;
  const bool in_place = args.n_candidates <= kBlockCandidates && width == kTileValues;
  alignas(64) float packed[kPackedModules * kTileValues];
  index_t first_module = 0;
  do {
    const index_t n_modules = smaller(in_place ? kInPlaceModules : kPackedModules, args.n_modules - first_module);
    const T* chunk = stack + first_module * args.n_values;
    if (in_place) {
      compose_blocks<T>(args, {chunk, args.n_values, n_modules}, first_module, begin, width);
    } else {
      for (index_t k = 0; k < n_modules; ++k) pack_row(chunk + k * args.n_values, width, packed + k * kTileValues);
      compose_blocks<float>(args, {packed, kTileValues, n_modules}, first_module, begin, width);
    }
    first_module += n_modules;
  } while (first_module < args.n_modules);
}

}  // namespace

template <typename T>
void compose_factors_range(const ComposeFactorsArgs& args, index_t begin, index_t end) {
  for (index_t column = begin; column < end; column += kTileValues) {
    compose_tile<T>(args, column, smaller(kTileValues, end - column));
  }
}

template void compose_factors_range<float>(const ComposeFactorsArgs&, index_t, index_t);
template void compose_factors_range<bfloat16>(const ComposeFactorsArgs&, index_t, index_t);

}  // namespace LORAHUB_EDGE_ISA_NAMESPACE
}  // namespace lorahub_edge::cpu
