// What the <op>.cpp files and their variants per instruction set, <op>.isa.cpp, agree on: for each op a function that
// does a range of the work in the calling thread.
#pragma once

#include "../compose_factors.h"
#include "../inject_delta.h"
#include "../int8_epilogue.h"
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

// Output columns that int8_epilogue computes together.
constexpr index_t kEpilogueColumns = 64;

// One struct per instruction set, IsaKernels<Isa::avx2> and so on; its members are defined in the <op>.isa.cpp files.
// T is the type of the op's float argument: of the stack, of the values, of the output.
template <Isa isa>
struct IsaKernels {
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

  // B_turned: float [rank * out_features rounded up to kEpilogueColumns] of this thread.
  template <typename T>
  static void epilogue_rows(const Int8EpilogueArgs& args, index_t first_row, index_t last_row, float* B_turned);
};

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
