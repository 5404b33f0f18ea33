// gated_activation: what a gated feed-forward layer hands to its last matrix. Per element, in float32, then rounded
// once to the values' dtype:
//
//   out[i] = gate[i] / (1 + exp(-z(gate[i]))) * up[i]
//
//   silu:       z(x) = x
//   gelu_tanh:  z(x) = 2 sqrt(2 / pi) (x + 0.044715 x^3), since 1 + tanh(z / 2) = 2 / (1 + exp(-z))
//
// z is taken within -87 and 87, where exp(-z) and its inverse are normal numbers.
#pragma once

#include "../core.h"

namespace lorahub_edge {

enum class Activation { silu, gelu_tanh };

struct GatedActivationArgs {
  const void* gate;  // [n], float32 or bfloat16
  const void* up;    // [n]
  void* out;         // [n]; may be gate or up
  DType dtype;       // of all three
  index_t n;
  Activation activation;
};

namespace cpu {
void gated_activation(const GatedActivationArgs& args, Where where);
}

}  // namespace lorahub_edge
