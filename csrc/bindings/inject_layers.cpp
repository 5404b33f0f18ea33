#include "../kernels/inject_layers.h"

#include <pybind11/stl.h>

#include <tuple>
#include <vector>

#include "arrays.h"
#include "device.h"
#include "inject_layer.h"
#include "ops.h"

namespace py = pybind11;

namespace lorahub_edge::bindings {
namespace {

constexpr const char* kOp = "inject_layers";

// codes, row_scale, A, B, values, new_scale, report, scaling
using LayerObjects =
    std::tuple<py::object, py::object, py::object, py::object, py::object, py::object, py::object, float>;

InjectDeltaArgs args_of(const LayerObjects& objects, const std::string& rounding, std::uint64_t seed) {
  const auto& [codes, row_scale, A_object, B_object, values, new_scale, report, scaling] = objects;
  const InjectLayerArrays layer(kOp, codes, row_scale, values, new_scale, report);
  const Array A(A_object, {kOp, "A"}, Access::read);
  const Array B(B_object, {kOp, "B"}, Access::read);
  A.expect_dims(2);
  const index_t rank = A.shape()[0];
  A.expect_shape({rank, layer.in_features()});
  B.expect_shape({layer.out_features(), rank});
  InjectDeltaArgs args = layer.args(kOp, scaling, rounding, seed, rank);
  args.A = A.data_of<float>();
  args.B = B.data_of<float>();
  return args;
}

cuda::InjectTable table_of(const std::vector<LayerObjects>& layers, const std::string& rounding, std::uint64_t seed) {
  std::vector<InjectDeltaArgs> all;
  for (const LayerObjects& layer : layers) {
    all.push_back(args_of(layer, rounding, seed));
    check(all.back().values_dtype == all[0].values_dtype, "inject_layers: values: expected one dtype for all layers");
  }
  return cuda::InjectTable(all);
}

void inject_layers(const cuda::InjectTable& table, const py::object& place, std::int64_t stream) {
  const Array at(place, {kOp, "place"}, Access::read);
  at.expect_shape({static_cast<index_t>(table.bytes.size())});
  const cuda::Where where = where_of(stream, at.device());
  const void* bytes = at.data_of<std::int8_t>();
  py::gil_scoped_release no_gil;
  cuda::inject_layers(table, bytes, where);
}

}  // namespace

void register_inject_layers(py::module_& module) {
  py::class_<cuda::InjectTable>(module, "InjectTable", "The layers of lorahub_edge.kernels.ops.InjectLayers.")
      .def(py::init(&table_of), py::arg("layers"), py::arg("rounding"), py::arg("seed"))
      .def_property_readonly(
          "bytes",
          [](const cuda::InjectTable& table) {
            return py::bytes(reinterpret_cast<const char*>(table.bytes.data()), table.bytes.size());
          },
          "What has to lie in the GPU's memory.");
  module.def(kOp, &inject_layers, py::arg("table"), py::arg("place"), py::arg(kWhereName),
             "Write all layers with their deltas added; see lorahub_edge.kernels.ops.InjectLayers.");
}

}  // namespace lorahub_edge::bindings
