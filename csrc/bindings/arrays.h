// The only place that turns a Python tensor into pointer + shape, by DLPack: torch and NumPy alike, never a copy.
#pragma once

#include <pybind11/pybind11.h>

#include <string>
#include <vector>

#include "../core.h"
#include "dlpack.h"

namespace lorahub_edge::bindings {

enum class Access { read, write };

// What a message calls an array: "compose_factors: expected stack ...".
struct ArrayName {
  const char* op;
  const char* argument;
};

// A borrowed C-contiguous CPU array. Holds the producer's tensor and gives it back exactly once; construct and destroy
// it with the GIL held. Refused, with what was expected and what came: another device, strides, an address that is
// not a multiple of the element size, a read-only array where one is written.
class Array {
 public:
  Array(const pybind11::object& producer, ArrayName name, Access access);
  ~Array();
  Array(const Array&) = delete;
  Array& operator=(const Array&) = delete;

  const std::vector<index_t>& shape() const { return shape_; }

  // The array's dtype; throws if it is none that kernels know.
  DType dtype() const;

  // Pointers to float32; throw if it is another dtype.
  const float* float_data() const;
  float* mutable_float_data() const;

  const void* data() const { return data_; }

  // Throws unless the shape is as given.
  void expect_shape(const std::vector<index_t>& expected) const;
  void expect_dims(std::size_t n_dims) const;

 private:
  void take(const pybind11::capsule& capsule, Access access);
  void read(const dlpack::Tensor& tensor);
  void release() noexcept;
  bool holds(DType dtype) const;
  [[noreturn]] void refuse(const std::string& expected, const std::string& received) const;

  ArrayName name_;
  std::vector<index_t> shape_;
  dlpack::DataType dtype_{};
  void* data_ = nullptr;
  dlpack::ManagedTensor* legacy_ = nullptr;
  dlpack::ManagedTensorVersioned* versioned_ = nullptr;
};

}  // namespace lorahub_edge::bindings
