// The extension module lorahub_edge._native. Only lorahub_edge/kernels/routes.py imports it.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "../kernels/cpu/isa.h"
#include "ops.h"

PYBIND11_MODULE(_native, module) {
  namespace cpu = lorahub_edge::cpu;
  module.doc() = "Native kernels of lorahub_edge; use them through lorahub_edge.kernels.ops.";
  module.def(
      "active_isa", [] { return cpu::name_of(cpu::active_isa()); },
      "The instruction set in use; see lorahub_edge.kernels.ops.isa.");
  module.def(
      "runnable_isas",
      [] {
        std::vector<std::string> names;
        for (const cpu::Isa isa : cpu::runnable_isas()) names.emplace_back(cpu::name_of(isa));
        return names;
      },
      "The instruction sets that this build has and this machine runs, narrowest first.");
  lorahub_edge::bindings::register_ops(module);
  lorahub_edge::bindings::register_attention(module);
  lorahub_edge::bindings::register_gated_activation(module);
}
