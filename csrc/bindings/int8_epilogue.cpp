#include "../kernels/int8_epilogue.h"

#include <optional>

#include "arrays.h"
#include "device.h"
#include "ops.h"

namespace py = pybind11;

namespace lorahub_edge::bindings {
namespace {

constexpr const char* kOp = "int8_epilogue";

// The side path's arrays, where there are any.
struct SidePath {
  const Array side;
  const Array B;

  SidePath(const py::object& side_object, const py::object& B_object, index_t n_rows, index_t out_features)
      : side(side_object, {kOp, "side"}, Access::read), B(B_object, {kOp, "B"}, Access::read) {
    side.expect_dims(2);
    B.expect_dims(3);
    side.expect_shape({n_rows, side.shape()[1]});
    B.expect_shape({B.shape()[0], out_features, side.shape()[1]});
    check(B.shape()[0] > 0 && n_rows % B.shape()[0] == 0, "int8_epilogue: B: expected groups that divide the rows");
  }
};

void int8_epilogue(const py::object& product, const py::object& x_scale, const py::object& row_scale,
                   const py::object& bias, const py::object& side, const py::object& B, const py::object& out,
                   std::int64_t where) {
  const Array product_array(product, {kOp, "product"}, Access::read);
  const Array x_scale_array(x_scale, {kOp, "x_scale"}, Access::read);
  const Array row_scale_array(row_scale, {kOp, "row_scale"}, Access::read);
  const Array out_array(out, {kOp, "out"}, Access::write);
  product_array.expect_dims(2);
  const index_t n_rows = product_array.shape()[0];
  const index_t out_features = product_array.shape()[1];
  x_scale_array.expect_shape({n_rows});
  row_scale_array.expect_shape({out_features});
  out_array.expect_shape({n_rows, out_features});

  Int8EpilogueArgs args{};
  args.product = product_array.data_of<std::int32_t>();
  args.x_scale = x_scale_array.data_of<float>();
  args.row_scale = row_scale_array.data_of<float>();
  args.out = out_array.data();
  args.out_dtype = out_array.dtype();
  args.n_rows = n_rows;
  args.out_features = out_features;
  args.rows_per_group = n_rows > 0 ? n_rows : 1;
  std::optional<Array> bias_array;
  if (!bias.is_none()) {
    bias_array.emplace(bias, ArrayName{kOp, "bias"}, Access::read);
    bias_array->expect_shape({out_features});
    args.bias = bias_array->data_of<float>();
  }
  std::optional<SidePath> path;
  if (!side.is_none() && n_rows > 0) {
    path.emplace(side, B, n_rows, out_features);
    args.side = path->side.data_of<float>();
    args.B = path->B.data_of<float>();
    args.rank = path->side.shape()[1];
    args.rows_per_group = n_rows / path->B.shape()[0];
  }
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
