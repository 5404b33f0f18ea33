#include "../kernels/compose_factors.h"

#include "arrays.h"
#include "ops.h"

namespace py = pybind11;

namespace lorahub_edge::bindings {
namespace {

constexpr const char* kOp = "compose_factors";

void compose_factors(const py::object& stack, const py::object& coefficients, const py::object& out,
                     index_t n_threads) {
  const Array stack_array(stack, {kOp, "stack"}, Access::read);
  const Array coefficients_array(coefficients, {kOp, "coefficients"}, Access::read);
  const Array out_array(out, {kOp, "out"}, Access::write);
  stack_array.expect_dims(2);
  coefficients_array.expect_dims(2);
  const index_t n_modules = stack_array.shape()[0];
  const index_t n_values = stack_array.shape()[1];
  const index_t n_candidates = coefficients_array.shape()[0];
  coefficients_array.expect_shape({n_candidates, n_modules});
  out_array.expect_shape({n_candidates, n_values});

  const ComposeFactorsArgs args{stack_array.data(),
                                coefficients_array.float_data(),
                                out_array.mutable_float_data(),
                                stack_array.dtype(),
                                n_candidates,
                                n_modules,
                                n_values};
  py::gil_scoped_release no_gil;
  cpu::compose_factors(args, n_threads);
}

}  // namespace

void register_compose_factors(py::module_& module) {
  module.def(kOp, &compose_factors, py::arg("stack"), py::arg("coefficients"), py::arg("out"), py::arg("n_threads"),
             "Write the modules' weighted sums into `out`; see lorahub_edge.kernels.ops.compose_factors.");
}

}  // namespace lorahub_edge::bindings
