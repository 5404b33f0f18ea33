// What inject_delta and inject_layers take of one layer.
#pragma once

#include <string>

#include "../kernels/inject_delta.h"
#include "arrays.h"

namespace lorahub_edge::bindings {

inline Rounding rounding_named(const char* op, const std::string& name) {
  check(name == "nearest" || name == "stochastic",
        std::string(op) + ": rounding: expected nearest or stochastic, received " + name);
  return name == "nearest" ? Rounding::nearest : Rounding::stochastic;
}

// The arrays that every form of the op has.
struct InjectLayerArrays {
  const Array codes, row_scale, values, new_scale, report;

  InjectLayerArrays(const char* op, const pybind11::object& codes_object, const pybind11::object& row_scale_object,
                    const pybind11::object& values_object, const pybind11::object& new_scale_object,
                    const pybind11::object& report_object)
      : codes(codes_object, {op, "codes"}, Access::read),
        row_scale(row_scale_object, {op, "row_scale"}, Access::read),
        values(values_object, {op, "values"}, Access::write),
        new_scale(new_scale_object, {op, "new_scale"}, Access::write),
        report(report_object, {op, "report"}, Access::write) {
    codes.expect_dims(2);
    row_scale.expect_shape({out_features()});
    values.expect_shape({out_features(), in_features()});
    new_scale.expect_shape({out_features()});
    report.expect_shape({4, out_features()});
  }

  index_t out_features() const { return codes.shape()[0]; }
  index_t in_features() const { return codes.shape()[1]; }

  InjectDeltaArgs args(const char* op, float scaling, const std::string& rounding, std::uint64_t seed,
                       index_t rank) const {
    InjectDeltaArgs args{};
    args.codes = codes.data_of<std::int8_t>();
    args.row_scale = row_scale.data_of<float>();
    args.values = values.data();
    args.values_dtype = values.dtype();
    args.new_scale = new_scale.data_of<float>();
    args.report = report.data_of<float>();
    args.rounding = rounding_named(op, rounding);
    args.seed = seed;
    args.scaling = scaling;
    args.out_features = out_features();
    args.in_features = in_features();
    args.rank = rank;
    return args;
  }
};

}  // namespace lorahub_edge::bindings
