// The activations that kernels know, by name.
#pragma once

#include <pybind11/pybind11.h>

#include <string>

#include "../kernels/gated_activation.h"

namespace lorahub_edge::bindings {

inline Activation activation_named(const char* op, const std::string& name) {
  if (name == "silu") return Activation::silu;
  if (name == "gelu_tanh") return Activation::gelu_tanh;
  throw pybind11::value_error(std::string(op) + ": activation: expected 'silu' or 'gelu_tanh', received '" + name +
                              "'");
}

}  // namespace lorahub_edge::bindings
