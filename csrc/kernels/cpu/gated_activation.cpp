// gated_activation on the CPU: shares the values out to threads. The loop is in gated_activation.isa.cpp.
#include "../gated_activation.h"

#include "../../dispatch.h"
#include "../../parallel.h"
#include "isa_kernels.h"

namespace lorahub_edge::cpu {
namespace {

// Values that take some ten microseconds: below this waking a thread costs more than it saves.
constexpr index_t kMinValuesPerThread = index_t{1} << 15;

}  // namespace

void gated_activation(const GatedActivationArgs& args, Where where) {
  dispatch_dtype<float, bfloat16>("gated_activation", "gate", args.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    parallel_for(args.n, where.n_threads, kMinValuesPerThread, [&](index_t first, index_t last) {
      on_active_isa([&](auto isa) { decltype(isa)::template gate_values<T>(args, first, last); });
    });
  });
}

}  // namespace lorahub_edge::cpu
