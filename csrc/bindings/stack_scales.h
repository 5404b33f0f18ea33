// The scales of a module stack, which ops take beside it.
#pragma once

#include <optional>

#include "arrays.h"

namespace lorahub_edge::bindings {

// Borrows the scales of an int8 stack, [n_blocks, n_modules]; None of another.
class StackScales {
 public:
  StackScales(const pybind11::object& scales, ArrayName name, const Array& stack) {
    const bool has_scales = !scales.is_none();
    check(has_scales == (stack.dtype() == DType::int8),
          std::string(name.op) + ": " + name.argument + ": expected an array with an int8 stack, None with another");
    if (!has_scales) return;
    array_.emplace(scales, name, Access::read);
    array_->expect_shape({stack.shape()[0], stack.shape()[1]});
    data_ = array_->data_of<float>();
  }

  // Null where there are none.
  const float* data() const { return data_; }

 private:
  std::optional<Array> array_;
  const float* data_ = nullptr;
};

}  // namespace lorahub_edge::bindings
