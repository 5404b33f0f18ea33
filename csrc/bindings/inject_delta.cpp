#include "../kernels/inject_delta.h"

#include "arrays.h"
#include "device.h"
#include "inject_layer.h"
#include "ops.h"
#include "stack_scales.h"

namespace py = pybind11;

namespace lorahub_edge::bindings {
namespace {

constexpr const char* kOp = "inject_delta";

void inject_delta(const py::object& codes, const py::object& row_scale, const py::object& A, const py::object& B,
                  const py::object& values, const py::object& new_scale, const py::object& report, float scaling,
                  const std::string& rounding, std::uint64_t seed, std::int64_t where) {
  const InjectLayerArrays layer(kOp, codes, row_scale, values, new_scale, report);
  const Array A_array(A, {kOp, "A"}, Access::read);
  const Array B_array(B, {kOp, "B"}, Access::read);
  A_array.expect_dims(2);
  const index_t rank = A_array.shape()[0];
  A_array.expect_shape({rank, layer.in_features()});
  B_array.expect_shape({layer.out_features(), rank});

  InjectDeltaArgs args = layer.args(kOp, scaling, rounding, seed, rank);
  args.A = A_array.data_of<float>();
  args.B = B_array.data_of<float>();
  const here::Where place = where_of(where, layer.codes.device());
  py::gil_scoped_release no_gil;
  here::inject_delta(args, place);
}

void inject_delta_from_stack(const py::object& codes, const py::object& row_scale, const py::object& A_stack,
                             const py::object& B_stack, const py::object& coefficients, const py::object& A_scales,
                             const py::object& B_scales, const py::object& workspace, const py::object& values,
                             const py::object& new_scale, const py::object& report, index_t rank, float scaling,
                             const std::string& rounding, std::uint64_t seed, std::int64_t where) {
  const InjectLayerArrays layer(kOp, codes, row_scale, values, new_scale, report);
  const Array A(A_stack, {kOp, "A_stack"}, Access::read);
  const Array B(B_stack, {kOp, "B_stack"}, Access::read);
  const Array c(coefficients, {kOp, "coefficients"}, Access::read);
  const Array space(workspace, {kOp, "workspace"}, Access::write);
  A.expect_dims(3);
  B.expect_dims(3);
  c.expect_dims(1);
  const index_t n_modules = c.shape()[0];
  const index_t block = A.shape()[2];
  const index_t n_blocks_A = A.shape()[0];
  const index_t n_blocks_B = B.shape()[0];
  A.expect_shape({n_blocks_A, n_modules, block});
  B.expect_shape({n_blocks_B, n_modules, block});
  check(rank >= 0 && rank * layer.in_features() <= n_blocks_A * block, "inject_delta: A_stack: too few blocks");
  check(rank * layer.out_features() <= n_blocks_B * block, "inject_delta: B_stack: too few blocks");
  check(A.dtype() == B.dtype(), "inject_delta: A_stack and B_stack: expected one dtype");
  const StackScales scales_of_A(A_scales, {kOp, "A_scales"}, A);
  const StackScales scales_of_B(B_scales, {kOp, "B_scales"}, B);
  space.expect_shape({kDeviceType == dlpack::kCuda ? (n_blocks_A + n_blocks_B) * block : 0});

  const StackedFactors factors{A.data(),
                               B.data(),
                               scales_of_A.data(),
                               scales_of_B.data(),
                               c.data_of<float>(),
                               space.data_of<float>(),
                               A.dtype(),
                               n_modules,
                               n_blocks_A,
                               n_blocks_B,
                               block};
  const InjectDeltaArgs args = layer.args(kOp, scaling, rounding, seed, rank);
  const here::Where place = where_of(where, layer.codes.device());
  py::gil_scoped_release no_gil;
  here::inject_delta_from_stack(args, factors, place);
}

}  // namespace

void register_inject_delta(py::module_& module) {
  module.def("inject_delta", &inject_delta, py::arg("codes"), py::arg("row_scale"), py::arg("A"), py::arg("B"),
             py::arg("values"), py::arg("new_scale"), py::arg("report"), py::arg("scaling"), py::arg("rounding"),
             py::arg("seed"), py::arg(kWhereName),
             "Write a layer with its delta added; see lorahub_edge.kernels.ops.inject_delta.");
  module.def("inject_delta_from_stack", &inject_delta_from_stack, py::arg("codes"), py::arg("row_scale"),
             py::arg("A_stack"), py::arg("B_stack"), py::arg("coefficients"), py::arg("A_scales"), py::arg("B_scales"),
             py::arg("workspace"), py::arg("values"), py::arg("new_scale"), py::arg("report"), py::arg("rank"),
             py::arg("scaling"), py::arg("rounding"), py::arg("seed"), py::arg(kWhereName),
             "Write a layer with its delta added; see lorahub_edge.kernels.ops.inject_delta_from_stack.");
}

}  // namespace lorahub_edge::bindings
