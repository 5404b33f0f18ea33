#include "../kernels/compose_factors.h"

#include "arrays.h"
#include "device.h"
#include "ops.h"
#include "stack_scales.h"

namespace py = pybind11;

namespace lorahub_edge::bindings {
namespace {

constexpr const char* kOp = "compose_factors";

void compose_factors(const py::object& stack, const py::object& coefficients, const py::object& scales,
                     const py::object& out, std::int64_t where) {
  const Array stack_array(stack, {kOp, "stack"}, Access::read);
  const Array coefficients_array(coefficients, {kOp, "coefficients"}, Access::read);
  const Array out_array(out, {kOp, "out"}, Access::write);
  stack_array.expect_dims(3);
  coefficients_array.expect_dims(2);
  const index_t n_blocks = stack_array.shape()[0];
  const index_t n_modules = stack_array.shape()[1];
  const index_t block = stack_array.shape()[2];
  const index_t n_candidates = coefficients_array.shape()[0];
  coefficients_array.expect_shape({n_candidates, n_modules});
  out_array.expect_shape({n_candidates, n_blocks * block});
  const StackScales stack_scales(scales, {kOp, "scales"}, stack_array);

  const ComposeFactorsArgs args{stack_array.data(),
                                stack_scales.data(),
                                coefficients_array.data_of<float>(),
                                out_array.data_of<float>(),
                                stack_array.dtype(),
                                n_candidates,
                                n_modules,
                                n_blocks,
                                block};
  const here::Where place = where_of(where, stack_array.device());
  py::gil_scoped_release no_gil;
  here::compose_factors(args, place);
}

}  // namespace

void register_compose_factors(py::module_& module) {
  module.def(kOp, &compose_factors, py::arg("stack"), py::arg("coefficients"), py::arg("scales"), py::arg("out"),
             py::arg(kWhereName),
             "Write the modules' weighted sums into `out`; see lorahub_edge.kernels.ops.compose_factors.");
}

}  // namespace lorahub_edge::bindings
