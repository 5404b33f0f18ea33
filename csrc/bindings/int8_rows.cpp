#include "../kernels/int8_rows.h"

#include "arrays.h"
#include "device.h"
#include "ops.h"

namespace py = pybind11;

namespace lorahub_edge::bindings {
namespace {

void quantize_rows(const py::object& values, const py::object& codes, const py::object& row_scale, std::int64_t where) {
  constexpr const char* op = "quantize_rows";
  const Array values_array(values, {op, "values"}, Access::read);
  const Array codes_array(codes, {op, "codes"}, Access::write);
  const Array row_scale_array(row_scale, {op, "row_scale"}, Access::write);
  values_array.expect_dims(2);
  const index_t n_rows = values_array.shape()[0];
  const index_t n_columns = values_array.shape()[1];
  codes_array.expect_shape({n_rows, n_columns});
  row_scale_array.expect_shape({n_rows});

  const QuantizeRowsArgs args{values_array.data(),
                              codes_array.data_of<std::int8_t>(),
                              row_scale_array.data_of<float>(),
                              values_array.dtype(),
                              n_rows,
                              n_columns};
  const here::Where place = where_of(where, values_array.device());
  py::gil_scoped_release no_gil;
  here::quantize_rows(args, place);
}

void dequantize_rows(const py::object& codes, const py::object& row_scale, const py::object& values,
                     std::int64_t where) {
  constexpr const char* op = "dequantize_rows";
  const Array codes_array(codes, {op, "codes"}, Access::read);
  const Array row_scale_array(row_scale, {op, "row_scale"}, Access::read);
  const Array values_array(values, {op, "values"}, Access::write);
  codes_array.expect_dims(2);
  const index_t n_rows = codes_array.shape()[0];
  const index_t n_columns = codes_array.shape()[1];
  row_scale_array.expect_shape({n_rows});
  values_array.expect_shape({n_rows, n_columns});

  const DequantizeRowsArgs args{codes_array.data_of<std::int8_t>(),
                                row_scale_array.data_of<float>(),
                                values_array.data(),
                                values_array.dtype(),
                                n_rows,
                                n_columns};
  const here::Where place = where_of(where, codes_array.device());
  py::gil_scoped_release no_gil;
  here::dequantize_rows(args, place);
}

}  // namespace

void register_int8_rows(py::module_& module) {
  module.def("quantize_rows", &quantize_rows, py::arg("values"), py::arg("codes"), py::arg("row_scale"),
             py::arg(kWhereName), "Write codes and scales; see lorahub_edge.kernels.ops.quantize_rows.");
  module.def("dequantize_rows", &dequantize_rows, py::arg("codes"), py::arg("row_scale"), py::arg("values"),
             py::arg(kWhereName), "Write the values of int8 rows; see lorahub_edge.kernels.ops.dequantize_rows.");
}

}  // namespace lorahub_edge::bindings
