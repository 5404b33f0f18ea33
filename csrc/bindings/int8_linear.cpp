#include "../kernels/int8_linear.h"

#include "activations.h"
#include "arrays.h"
#include "device.h"
#include "int8_outputs.h"
#include "ops.h"

namespace py = pybind11;

namespace lorahub_edge::bindings {
namespace {

constexpr const char* kOp = "int8_linear";

void int8_linear(const py::object& x, const py::object& x_scale, const py::object& w, const py::object& row_scale,
                 const py::object& bias, const py::object& side, const py::object& B, const py::object& gate,
                 const std::string& activation, const py::object& out, std::int64_t where) {
  const Array x_array(x, {kOp, "x"}, Access::read);
  const Array x_scale_array(x_scale, {kOp, "x_scale"}, Access::read);
  const Array w_array(w, {kOp, "w"}, Access::read);
  const OutputArrays outputs(kOp, row_scale, bias, side, B, out);
  x_array.expect_dims(2);
  w_array.expect_dims(2);
  x_scale_array.expect_dims(2);
  const index_t n_rows = x_array.shape()[0];
  const index_t in_features = x_array.shape()[1];
  const index_t n_blocks = x_scale_array.shape()[1];
  w_array.expect_shape({w_array.shape()[0], in_features});
  x_scale_array.expect_shape({n_rows, n_blocks});
  check(n_blocks == 1 || (n_blocks > 0 && in_features % (4 * n_blocks) == 0),
        "int8_linear: x_scale: expected blocks of a multiple of 4 features");

  Int8LinearArgs args{};
  args.x = x_array.data_of<std::int8_t>();
  args.x_scale = x_scale_array.data_of<float>();
  args.w = w_array.data_of<std::int8_t>();
  args.in_features = in_features;
  args.n_blocks = n_blocks;
  outputs.fill(args, n_rows, w_array.shape()[0]);
  std::optional<Array> gate_array;
  if (!gate.is_none()) {
    gate_array.emplace(gate, ArrayName{kOp, "gate"}, Access::read);
    gate_array->expect_shape({n_rows, args.out_features});
    check(gate_array->dtype() == args.out_dtype, "int8_linear: expected gate and out of one dtype");
    args.gate = gate_array->data();
    args.activation = activation_named(kOp, activation);
  }
  const here::Where place = where_of(where, x_array.device());
  py::gil_scoped_release no_gil;
  here::int8_linear(args, place);
}

}  // namespace

void register_int8_linear(py::module_& module) {
  module.def(kOp, &int8_linear, py::arg("x"), py::arg("x_scale"), py::arg("w"), py::arg("row_scale"), py::arg("bias"),
             py::arg("side"), py::arg("B"), py::arg("gate"), py::arg("activation"), py::arg("out"), py::arg(kWhereName),
             "Write an int8 layer's output; see lorahub_edge.kernels.ops.int8_linear.");
}

}  // namespace lorahub_edge::bindings
