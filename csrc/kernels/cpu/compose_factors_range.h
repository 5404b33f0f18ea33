// What compose_factors.cpp and its variants per instruction set, compose_factors.isa.cpp, agree on.
#pragma once

#include "../compose_factors.h"
#include "isa.h"

namespace lorahub_edge::cpu {

// Columns that are composed together; ranges begin at a multiple of it.
constexpr index_t kTileValues = 1024;

// Composes the columns [begin, end) for all candidates. T is the stack's element type.
template <typename T>
using ComposeFactorsRange = void (*)(const ComposeFactorsArgs& args, index_t begin, index_t end);

#define LORAHUB_EDGE_DECLARE(isa)                                                         \
  namespace isa {                                                                         \
  template <typename T>                                                                   \
  void compose_factors_range(const ComposeFactorsArgs& args, index_t begin, index_t end); \
  }
LORAHUB_EDGE_FOR_EACH_ISA(LORAHUB_EDGE_DECLARE)
#undef LORAHUB_EDGE_DECLARE

}  // namespace lorahub_edge::cpu
