// Only in the CPU's module: CUDA computes it with torch.
#include "../kernels/gated_activation.h"

#include "activations.h"
#include "arrays.h"
#include "device.h"
#include "ops.h"

namespace py = pybind11;

namespace lorahub_edge::bindings {
namespace {

constexpr const char* kOp = "gated_activation";

void gated_activation(const py::object& gate, const py::object& up, const py::object& out,
                      const std::string& activation, std::int64_t n_threads) {
  const Array gate_array(gate, {kOp, "gate"}, Access::read);
  const Array up_array(up, {kOp, "up"}, Access::read);
  const Array out_array(out, {kOp, "out"}, Access::write);
  up_array.expect_shape(gate_array.shape());
  out_array.expect_shape(gate_array.shape());
  check(up_array.dtype() == gate_array.dtype() && out_array.dtype() == gate_array.dtype(),
        "gated_activation: expected gate, up and out of one dtype");
  index_t n = 1;
  for (const index_t size : gate_array.shape()) n *= size;

  const GatedActivationArgs args{
      gate_array.data(), up_array.data(), out_array.data(), gate_array.dtype(), n, activation_named(kOp, activation)};
  py::gil_scoped_release no_gil;
  cpu::gated_activation(args, {n_threads});
}

}  // namespace

void register_gated_activation(py::module_& module) {
  module.def(kOp, &gated_activation, py::arg("gate"), py::arg("up"), py::arg("out"), py::arg("activation"),
             py::arg("n_threads"), "Write activation(gate) * up; see lorahub_edge.kernels.ops.gated_activation.");
}

}  // namespace lorahub_edge::bindings
