// int8_linear on the CPU: shares panels of output columns out to threads. The loops are in int8_linear.isa.cpp.
#include "../int8_linear.h"

#include <algorithm>

#include "../../dispatch.h"
#include "../../parallel.h"
#include "aligned.h"
#include "isa_kernels.h"

namespace lorahub_edge::cpu {
namespace {

// Multiply-adds of codes that take some ten microseconds: below this waking a thread costs more than it saves.
constexpr index_t kMinWorkPerThread = index_t{1} << 21;

// Outputs above this do not stay in a second-level cache, and would push out of it what is multiplied next. With a gate
// their lines are there already.
constexpr index_t kStreamBytes = index_t{1} << 20;

bool may_stream(const Int8LinearArgs& args) {
  const index_t row_bytes = args.out_features * static_cast<index_t>(sizeof(float));
  const bool is_large = args.n_rows * row_bytes >= kStreamBytes;
  return is_large && args.gate == nullptr && args.out_dtype == DType::float32 && fills_lines(args.out, row_bytes);
}

}  // namespace

void int8_linear(const Int8LinearArgs& args, Where where) {
  const index_t n_panels = (args.out_features + kOutputColumns - 1) / kOutputColumns;
  const index_t work_per_panel = std::max<index_t>(1, kOutputColumns * args.n_rows * (args.in_features + args.rank));
  const index_t min_panels = (kMinWorkPerThread + work_per_panel - 1) / work_per_panel;
  const bool stream = may_stream(args);
  dispatch_dtype<float, bfloat16>("int8_linear", "out", args.out_dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    on_active_isa([&](auto isa) {
      using Kernels = decltype(isa);
      parallel_for(n_panels, where.n_threads, min_panels, [&](index_t first, index_t last) {
        Aligned<std::uint8_t> scratch(Kernels::linear_scratch_bytes(args));
        Kernels::template linear_panels<T>(args, first, last, scratch.data(), stream);
      });
    });
  });
}

}  // namespace lorahub_edge::cpu
