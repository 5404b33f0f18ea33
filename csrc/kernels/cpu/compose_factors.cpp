// compose_factors on the CPU: picks the instruction set, shares the columns out to threads. The loops are in
// compose_factors.isa.cpp.
#include "../compose_factors.h"

#include <algorithm>

#include "../../dispatch.h"
#include "../../parallel.h"
#include "compose_factors_range.h"
#include "isa.h"

namespace lorahub_edge::cpu {
namespace {

// Multiply-adds that take some hundred microseconds: below this a thread costs more than it saves.
constexpr index_t kMinWorkPerThread = index_t{1} << 20;

template <typename T>
ComposeFactorsRange<T> range_kernel(Isa isa) {
  switch (isa) {
#define LORAHUB_EDGE_PICK(isa) \
  case Isa::isa:               \
    return isa::compose_factors_range<T>;
    LORAHUB_EDGE_FOR_EACH_ISA(LORAHUB_EDGE_PICK)
#undef LORAHUB_EDGE_PICK
  }
  throw std::runtime_error("compose_factors: no kernel for this instruction set");
}

}  // namespace

void compose_factors(const ComposeFactorsArgs& args, index_t n_threads) {
  // Threads get whole tiles, so an element is computed by the same instructions whoever computes it.
  const index_t n_tiles = (args.n_values + kTileValues - 1) / kTileValues;
  const index_t work_per_tile = kTileValues * std::max<index_t>(1, args.n_candidates * args.n_modules);
  const index_t min_tiles = (kMinWorkPerThread + work_per_tile - 1) / work_per_tile;
  dispatch_stack_dtype("compose_factors", args.stack_dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    const auto kernel = range_kernel<T>(active_isa());
    parallel_for(n_tiles, n_threads, min_tiles, [&](index_t first_tile, index_t last_tile) {
      kernel(args, first_tile * kTileValues, std::min(last_tile * kTileValues, args.n_values));
    });
  });
}

}  // namespace lorahub_edge::cpu
