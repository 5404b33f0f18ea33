// What the <op>.cpp files and their variants per instruction set, <op>.isa.cpp, agree on: for each op a function that
// does a range of the work in the calling thread.
#pragma once

#include "../attention.h"
#include "../compose_factors.h"
#include "../gated_activation.h"
#include "../inject_delta.h"
#include "../int8_epilogue.h"
#include "../int8_linear.h"
#include "../int8_rows.h"
#include "isa.h"

namespace lorahub_edge::cpu {

// Lanes of the widest vector of floats.
constexpr index_t kMostLanes = 16;

struct ComposeRange {
  ComposeFactorsArgs args;
  const float* coefficients_by_module;  // [n_modules, n_candidates], and kMostLanes more
  bool stream;                          // write past the caches
};

// Rows of a layer that inject_delta computes together: A is read from the cache once for all of them.
constexpr index_t kInjectRows = 4;

// Output columns of an int8 layer that are computed together.
constexpr index_t kOutputColumns = 64;

// Queries that attention takes through its keys together, and columns of its panels.
constexpr int kAttentionRows = 6;
constexpr index_t kAttentionColumns = 64;

// Working memory of one thread of attention, aligned to cache lines.
struct AttentionScratch {
  float* keys;    // [n_keys / kAttentionColumns, rounded up; head_features, kAttentionColumns]
  float* values;  // [head_features / kAttentionColumns, rounded up; n_keys, kAttentionColumns]
  float* scores;  // [kAttentionRows, score_stride]
  index_t score_stride;
};

// One struct per instruction set, OpKernels<Isa::avx2> and so on; its members are defined in the <op>.isa.cpp files.
// T is the type of the op's float argument: of the stack, of the values, of the output.
template <Isa isa>
struct OpKernels {
  // scaled: of an int8 stack, float of the size of coefficients_by_module, of this thread.
  template <typename T>
  static void compose_blocks(const ComposeRange& range, index_t first_block, index_t last_block, float* scaled);

  // rows: float [kInjectRows, in_features] of this thread.
  template <typename T>
  static void inject_rows(const InjectDeltaArgs& args, index_t first_row, index_t last_row, float* rows);

  template <typename T>
  static void quantize_row_range(const QuantizeRowsArgs& args, index_t first_row, index_t last_row);

  template <typename T>
  static void dequantize_row_range(const DequantizeRowsArgs& args, index_t first_row, index_t last_row);

  // B_turned: float [rank * out_features rounded up to kOutputColumns] of this thread.
  template <typename T>
  static void epilogue_rows(const Int8EpilogueArgs& args, index_t first_row, index_t last_row, float* B_turned);

  template <typename T>
  static void gate_values(const GatedActivationArgs& args, index_t first, index_t last);

  // Key heads first to last - 1, counted through all examples.
  static void attend(const AttentionArgs& args, index_t first, index_t last, const AttentionScratch& scratch);
};

// int8_linear, which every instruction set multiplies in its own way.
template <Isa isa>
struct LinearKernels {
  // Working memory of one thread.
  static index_t linear_scratch_bytes(const Int8LinearArgs& args);

  // A panel: the weights of kOutputColumns columns of the output. scratch: from a cache line's beginning on; stream:
  // see Tile.
  template <typename T>
  static void linear_panels(const Int8LinearArgs& args, index_t first_panel, index_t last_panel, std::uint8_t* scratch,
                            bool stream);
};

// The instruction set whose OpKernels one uses: some only have instructions for int8 products.
constexpr Isa others_of(Isa isa) {
#define LORAHUB_EDGE_OTHERS(linear, others) \
  if (isa == Isa::linear) return Isa::others;
  LORAHUB_EDGE_FOR_EACH_LINEAR_ISA(LORAHUB_EDGE_OTHERS)
#undef LORAHUB_EDGE_OTHERS
  return isa;
}

template <Isa isa>
struct IsaKernels : OpKernels<others_of(isa)>, LinearKernels<isa> {};

// Calls f with the IsaKernels of the instruction set in use.
template <typename F>
void on_active_isa(const F& f) {
  switch (active_isa()) {
#define LORAHUB_EDGE_CASE(isa) \
  case Isa::isa:               \
    return f(IsaKernels<Isa::isa>{});
    LORAHUB_EDGE_FOR_EACH_ISA(LORAHUB_EDGE_CASE)
#undef LORAHUB_EDGE_CASE
  }
}

}  // namespace lorahub_edge::cpu
