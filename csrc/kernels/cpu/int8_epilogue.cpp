// int8_epilogue on the CPU: shares the rows out to threads. The loops are in int8_epilogue.isa.cpp.
#include "../int8_epilogue.h"

#include <algorithm>
#include <vector>

#include "../../dispatch.h"
#include "../../parallel.h"
#include "isa_kernels.h"

namespace lorahub_edge::cpu {
namespace {

// Multiply-adds that take some ten microseconds: below this waking a thread costs more than it saves.
constexpr index_t kMinWorkPerThread = index_t{1} << 17;

}  // namespace

void int8_epilogue(const Int8EpilogueArgs& args, Where where) {
  const index_t work_per_row = std::max<index_t>(1, args.out_features * (1 + args.rank));
  const index_t min_rows = (kMinWorkPerThread + work_per_row - 1) / work_per_row;
  dispatch_dtype<float, bfloat16>("int8_epilogue", "out", args.out_dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    parallel_for(args.n_rows, where.n_threads, min_rows, [&](index_t first, index_t last) {
      const index_t n_tiles = (args.out_features + kOutputColumns - 1) / kOutputColumns;
      std::vector<float> B_turned(static_cast<std::size_t>(args.rank * n_tiles * kOutputColumns));
      on_active_isa([&](auto isa) { decltype(isa)::template epilogue_rows<T>(args, first, last, B_turned.data()); });
    });
  });
}

}  // namespace lorahub_edge::cpu
