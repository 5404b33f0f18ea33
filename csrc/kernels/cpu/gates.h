// What a gate does to a vector of values: see gated_activation.h. Only <op>.isa.cpp files include this.
#pragma once

#include "../gated_activation.h"
#include "simd.h"

namespace lorahub_edge::cpu {
namespace {

constexpr float kGeluSlope = 1.595769122f;  // 2 sqrt(2 / pi)
constexpr float kGeluCubic = 0.044715f;
constexpr float kLargestZ = 87.0f;

template <Activation kActivation>
inline Vector gated(Vector gate, Vector up) {
  Vector z = gate;
  if constexpr (kActivation == Activation::gelu_tanh) {
    z = kGeluSlope * gate * multiply_add(kGeluCubic * gate, gate, broadcast(1.0f));
  }
  return gate / (1.0f + exponential(clamp(-z, kLargestZ))) * up;
}

}  // namespace
}  // namespace lorahub_edge::cpu
