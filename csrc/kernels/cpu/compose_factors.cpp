// compose_factors on the CPU: shares the blocks of the stack out to threads. The loops are in compose_factors.isa.cpp.
#include "../compose_factors.h"

#include <algorithm>
#include <vector>

#include "../../dispatch.h"
#include "../../parallel.h"
#include "aligned.h"
#include "isa_kernels.h"

namespace lorahub_edge::cpu {
namespace {

// Multiply-adds that take some hundred microseconds: below this waking a thread costs more than it saves.
constexpr index_t kMinWorkPerThread = index_t{1} << 20;

// Outputs above this do not stay in a core's caches, so they are written past them.
constexpr index_t kStreamBytes = index_t{4} << 20;

std::vector<float> transposed(const ComposeFactorsArgs& args) {
  std::vector<float> by_module(static_cast<std::size_t>(args.n_modules * args.n_candidates + kMostLanes));
  for (index_t c = 0; c < args.n_candidates; ++c) {
    for (index_t k = 0; k < args.n_modules; ++k) {
      by_module[static_cast<std::size_t>(k * args.n_candidates + c)] = args.coefficients[c * args.n_modules + k];
    }
  }
  return by_module;
}

// Blocks that keep the alignment keep it in every row too.
bool may_stream(const ComposeFactorsArgs& args) {
  const index_t block_bytes = args.block * static_cast<index_t>(sizeof(float));
  return fills_lines(args.out, block_bytes) && args.n_blocks * block_bytes * args.n_candidates >= kStreamBytes;
}

}  // namespace

void compose_factors(const ComposeFactorsArgs& args, Where where) {
  const std::vector<float> by_module = transposed(args);
  const ComposeRange range{args, by_module.data(), may_stream(args)};
  const index_t work_per_block = std::max<index_t>(1, args.block * args.n_candidates * args.n_modules);
  const index_t min_blocks = (kMinWorkPerThread + work_per_block - 1) / work_per_block;
  dispatch_dtype<float, bfloat16, std::int8_t>("compose_factors", "stack", args.stack_dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    parallel_for(args.n_blocks, where.n_threads, min_blocks, [&](index_t first, index_t last) {
      std::vector<float> scaled(sizeof(T) == 1 ? by_module.size() : 0);
      on_active_isa([&](auto isa) { decltype(isa)::template compose_blocks<T>(range, first, last, scaled.data()); });
    });
  });
}

}  // namespace lorahub_edge::cpu
