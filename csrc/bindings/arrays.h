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

// A borrowed C-contiguous array in the memory that this extension module computes in: the CPU's, or a CUDA device's
// (kDeviceType, device.h). Holds the producer's tensor and gives it back exactly once; construct and destroy it with
// the GIL held. Refused, with what was expected and what came: another kind of memory, strides, an address that is not
// a multiple of the element size, a read-only array where one is written.
class Array {
 public:
  Array(const pybind11::object& producer, ArrayName name, Access access);
  ~Array();
  Array(const Array&) = delete;
  Array& operator=(const Array&) = delete;

  const std::vector<index_t>& shape() const { return shape_; }

  // The array's dtype; throws if it is none that kernels know.
  DType dtype() const;

  // The CUDA device; 0 on the CPU.
  int device() const { return device_; }

  // The data as T (float, bfloat16, std::int8_t, std::int32_t); throws if it is another dtype.
  template <typename T>
  T* data_of() const {
    expect_dtype(dtype_named<T>());
    return static_cast<T*>(data_);
  }

  void* data() const { return data_; }

  // Throw unless the shape is as given.
  void expect_shape(const std::vector<index_t>& expected) const;
  void expect_dims(std::size_t n_dims) const;

 private:
  template <typename T>
  static constexpr DType dtype_named();

  void take(const pybind11::capsule& capsule, Access access);
  void read(const dlpack::Tensor& tensor);
  void release() noexcept;
  void expect_dtype(DType dtype) const;
  [[noreturn]] void refuse(const std::string& expected, const std::string& received) const;

  ArrayName name_;
  std::vector<index_t> shape_;
  dlpack::DataType dtype_{};
  int device_ = 0;
  void* data_ = nullptr;
  dlpack::ManagedTensor* legacy_ = nullptr;
  dlpack::ManagedTensorVersioned* versioned_ = nullptr;
};

template <>
constexpr DType Array::dtype_named<float>() {
  return DType::float32;
}
template <>
constexpr DType Array::dtype_named<bfloat16>() {
  return DType::bfloat16;
}
template <>
constexpr DType Array::dtype_named<std::int8_t>() {
  return DType::int8;
}
template <>
constexpr DType Array::dtype_named<std::int32_t>() {
  return DType::int32;
}

}  // namespace lorahub_edge::bindings
