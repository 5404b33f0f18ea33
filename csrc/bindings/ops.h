// One function per file of this folder that holds ops: adds them to the extension module.
#pragma once

#include <pybind11/pybind11.h>

namespace lorahub_edge::bindings {

void register_compose_factors(pybind11::module_& module);
void register_inject_delta(pybind11::module_& module);
void register_int8_rows(pybind11::module_& module);
void register_int8_epilogue(pybind11::module_& module);
void register_int8_linear(pybind11::module_& module);

// CUDA's module only.
void register_inject_layers(pybind11::module_& module);

// The CPU's module only.
void register_attention(pybind11::module_& module);
void register_gated_activation(pybind11::module_& module);

inline void register_ops(pybind11::module_& module) {
  register_compose_factors(module);
  register_inject_delta(module);
  register_int8_rows(module);
  register_int8_epilogue(module);
  register_int8_linear(module);
}

}  // namespace lorahub_edge::bindings
