// The loop of gated_activation, compiled once per instruction set (see isa.h).
#include "gates.h"
#include "isa_kernels.h"

namespace lorahub_edge::cpu {
namespace {

template <Activation kActivation, typename T>
void gate_range(const GatedActivationArgs& args, index_t first, index_t last) {
  const T* gate = static_cast<const T*>(args.gate);
  const T* up = static_cast<const T*>(args.up);
  T* out = static_cast<T*>(args.out);
  index_t i = first;
  for (; i + kLanes <= last; i += kLanes) store(out + i, gated<kActivation>(load(gate + i), load(up + i)));
  if (i == last) return;
  const index_t n = last - i;
  store_part(out + i, gated<kActivation>(load_part(gate + i, n), load_part(up + i, n)), n);
}

}  // namespace

template <>
template <typename T>
void OpKernels<kIsa>::gate_values(const GatedActivationArgs& args, index_t first, index_t last) {
  switch (args.activation) {
    case Activation::silu:
      return gate_range<Activation::silu, T>(args, first, last);
    case Activation::gelu_tanh:
      return gate_range<Activation::gelu_tanh, T>(args, first, last);
  }
}

template void OpKernels<kIsa>::gate_values<float>(const GatedActivationArgs&, index_t, index_t);
template void OpKernels<kIsa>::gate_values<bfloat16>(const GatedActivationArgs&, index_t, index_t);

}  // namespace lorahub_edge::cpu
