#include "../kernels/int8_epilogue.h"

#include "arrays.h"
#include "device.h"
#include "int8_outputs.h"
#include "ops.h"

namespace py = pybind11;

namespace lorahub_edge::bindings {
namespace {

constexpr const char* kOp = "int8_epilogue";

void int8_epilogue(const py::object& product, const py::object& x_scale, const py::object& row_scale,
                   const py::object& bias, const py::object& side, const py::object& B, const py::object& out,
                   std::int64_t where) {
  const Array product_array(product, {kOp, "product"}, Access::read);
  const Array x_scale_array(x_scale, {kOp, "x_scale"}, Access::read);
  const OutputArrays outputs(kOp, row_scale, bias, side, B, out);
  product_array.expect_dims(2);
  const index_t n_rows = product_array.shape()[0];
  x_scale_array.expect_shape({n_rows});

  Int8EpilogueArgs args{};
  args.product = product_array.data_of<std::int32_t>();
  args.x_scale = x_scale_array.data_of<float>();
  outputs.fill(args, n_rows, product_array.shape()[1]);
  const here::Where place = where_of(where, product_array.device());
  py::gil_scoped_release no_gil;
  here::int8_epilogue(args, place);
}

}  // namespace

void register_int8_epilogue(py::module_& module) {
  module.def(kOp, &int8_epilogue, py::arg("product"), py::arg("x_scale"), py::arg("row_scale"), py::arg("bias"),
             py::arg("side"), py::arg("B"), py::arg("out"), py::arg(kWhereName),
             "Write an int8 layer's output; see lorahub_edge.kernels.ops.int8_epilogue.");
}

}  // namespace lorahub_edge::bindings
