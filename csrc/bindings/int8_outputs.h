// The arguments that int8_epilogue and int8_linear share: what becomes of their products.
#pragma once

#include <optional>

#include "../kernels/int8_epilogue.h"
#include "arrays.h"

namespace lorahub_edge::bindings {

class OutputArrays {
 public:
  OutputArrays(const char* op, const pybind11::object& row_scale, const pybind11::object& bias,
               const pybind11::object& side, const pybind11::object& B, const pybind11::object& out)
      : op_(op), row_scale_(row_scale, {op, "row_scale"}, Access::read), out_(out, {op, "out"}, Access::write) {
    if (!bias.is_none()) bias_.emplace(bias, ArrayName{op, "bias"}, Access::read);
    if (side.is_none()) return;
    side_.emplace(side, ArrayName{op, "side"}, Access::read);
    B_.emplace(B, ArrayName{op, "B"}, Access::read);
  }

  // All but x_scale; throws if a shape does not fit.
  void fill(Int8Outputs& args, index_t n_rows, index_t out_features) const {
    row_scale_.expect_shape({out_features});
    out_.expect_shape({n_rows, out_features});
    args.row_scale = row_scale_.data_of<float>();
    args.out = out_.data();
    args.out_dtype = out_.dtype();
    args.n_rows = n_rows;
    args.out_features = out_features;
    args.rows_per_group = n_rows > 0 ? n_rows : 1;
    if (bias_) {
      bias_->expect_shape({out_features});
      args.bias = bias_->data_of<float>();
    }
    if (side_ && n_rows > 0) fill_side(args);
  }

 private:
  void fill_side(Int8Outputs& args) const {
    side_->expect_dims(2);
    B_->expect_dims(3);
    const index_t rank = side_->shape()[1];
    const index_t n_groups = B_->shape()[0];
    side_->expect_shape({args.n_rows, rank});
    B_->expect_shape({n_groups, args.out_features, rank});
    check(n_groups > 0 && args.n_rows % n_groups == 0, std::string(op_) + ": B: expected groups that divide the rows");
    args.side = side_->data_of<float>();
    args.B = B_->data_of<float>();
    args.rank = rank;
    args.rows_per_group = args.n_rows / n_groups;
  }

  const char* op_;
  const Array row_scale_;
  const Array out_;
  std::optional<Array> bias_;
  std::optional<Array> side_;
  std::optional<Array> B_;
};

}  // namespace lorahub_edge::bindings
