#include "arrays.h"

#include <cstdint>

#include "device.h"

namespace py = pybind11;

namespace lorahub_edge::bindings {
namespace {

std::string text_of(const std::vector<index_t>& numbers) {
  std::string text = "(";
  for (std::size_t i = 0; i < numbers.size(); ++i) text += (i ? ", " : "") + std::to_string(numbers[i]);
  return text + (numbers.size() == 1 ? ",)" : ")");
}

std::string text_of(dlpack::DataType dtype) {
  const char* kind = dtype.code == dlpack::kInt      ? "int"
                     : dtype.code == 1               ? "uint"
                     : dtype.code == dlpack::kFloat  ? "float"
                     : dtype.code == dlpack::kBfloat ? "bfloat"
                                                     : "other";
  return kind + std::to_string(dtype.bits);
}

// Producers older than DLPack 1.0 know no max_version and answer with a legacy capsule. On CUDA the kernel runs in the
// producer's own current stream (ops.py passes it), so the producer has nothing to wait for: stream -1 says so.
py::capsule capsule_of(const py::object& producer) {
  const py::object export_ = producer.attr("__dlpack__");
  py::dict arguments;
  if (kDeviceType == dlpack::kCuda) arguments["stream"] = -1;
  py::dict versioned(**arguments);
  versioned["max_version"] = py::make_tuple(dlpack::kMajorVersion, 0);
  try {
    return export_(**versioned);
  } catch (py::error_already_set& error) {
    if (!error.matches(PyExc_TypeError)) throw;
  }
  return export_(**arguments);
}

struct DTypeFacts {
  DType dtype;
  std::uint8_t code;
  std::uint8_t bits;
};

constexpr DTypeFacts kDTypes[] = {{DType::float32, dlpack::kFloat, 32},
                                  {DType::bfloat16, dlpack::kBfloat, 16},
                                  {DType::int8, dlpack::kInt, 8},
                                  {DType::int32, dlpack::kInt, 32}};

bool is_contiguous(const dlpack::Tensor& tensor) {
  if (tensor.strides == nullptr) return true;
  std::int64_t expected = 1;
  bool contiguous = true;
  for (std::int32_t i = tensor.ndim - 1; i >= 0; --i) {
    if (tensor.shape[i] == 0) return true;
    if (tensor.shape[i] != 1 && tensor.strides[i] != expected) contiguous = false;
    expected *= tensor.shape[i];
  }
  return contiguous;
}

}  // namespace

Array::Array(const py::object& producer, ArrayName name, Access access) : name_(name) {
  if (!py::hasattr(producer, "__dlpack__")) refuse("an array that speaks DLPack", py::str(py::type::of(producer)));
  try {
    take(capsule_of(producer), access);
  } catch (...) {
    release();  // the destructor of a half-made object does not run
    throw;
  }
}

Array::~Array() {
  release();
}

void Array::release() noexcept {
  if (legacy_ != nullptr && legacy_->deleter != nullptr) legacy_->deleter(legacy_);
  if (versioned_ != nullptr && versioned_->deleter != nullptr) versioned_->deleter(versioned_);
  legacy_ = nullptr;
  versioned_ = nullptr;
}

// From the renaming on, the tensor is ours to delete; before it, the capsule's own destructor does it.
void Array::take(const py::capsule& capsule, Access access) {
  const char* capsule_name = PyCapsule_GetName(capsule.ptr());
  const std::string name = capsule_name == nullptr ? "" : capsule_name;
  if (name == "dltensor_versioned") {
    auto* managed = static_cast<dlpack::ManagedTensorVersioned*>(PyCapsule_GetPointer(capsule.ptr(), capsule_name));
    if (managed->version.major != dlpack::kMajorVersion) {
      refuse("DLPack major version 1", std::to_string(managed->version.major));
    }
    if (PyCapsule_SetName(capsule.ptr(), "used_dltensor_versioned") != 0) throw py::error_already_set();
    versioned_ = managed;
    if (access == Access::write && (managed->flags & dlpack::kReadOnly) != 0) {
      refuse("a writable array", "a read-only one");
    }
    read(managed->tensor);
  } else if (name == "dltensor") {
    // A legacy tensor has no read-only flag: its producer refuses to export read-only memory.
    auto* managed = static_cast<dlpack::ManagedTensor*>(PyCapsule_GetPointer(capsule.ptr(), capsule_name));
    if (PyCapsule_SetName(capsule.ptr(), "used_dltensor") != 0) throw py::error_already_set();
    legacy_ = managed;
    read(managed->tensor);
  } else {
    refuse("a DLPack capsule that nobody has used", "one named '" + name + "'");
  }
}

void Array::read(const dlpack::Tensor& tensor) {
  shape_.assign(tensor.shape, tensor.shape + tensor.ndim);
  dtype_ = tensor.dtype;
  device_ = tensor.device.device_id;
  if (tensor.device.device_type != kDeviceType) {
    refuse(kMemory, "DLPack device type " + std::to_string(tensor.device.device_type));
  }
  if (!is_contiguous(tensor)) {
    const std::vector<index_t> strides(tensor.strides, tensor.strides + tensor.ndim);
    refuse("a C-contiguous array", "strides " + text_of(strides) + " for shape " + text_of(shape_));
  }
  data_ = static_cast<char*>(tensor.data) + tensor.byte_offset;
  const std::uintptr_t element_bytes = dtype_.bits / 8;
  if (element_bytes > 1 && reinterpret_cast<std::uintptr_t>(data_) % element_bytes != 0) {
    refuse("an address that is a multiple of " + std::to_string(element_bytes), "a misaligned one");
  }
}

DType Array::dtype() const {
  for (const DTypeFacts& facts : kDTypes) {
    if (dtype_.lanes == 1 && dtype_.code == facts.code && dtype_.bits == facts.bits) return facts.dtype;
  }
  refuse("float32, bfloat16, int8 or int32", text_of(dtype_));
}

void Array::expect_dtype(DType expected) const {
  for (const DTypeFacts& facts : kDTypes) {
    if (facts.dtype == expected && dtype_.lanes == 1 && dtype_.code == facts.code && dtype_.bits == facts.bits) return;
  }
  refuse(name_of(expected), text_of(dtype_));
}

void Array::expect_dims(std::size_t n_dims) const {
  if (shape_.size() != n_dims) refuse(std::to_string(n_dims) + " dimensions", "shape " + text_of(shape_));
}

void Array::expect_shape(const std::vector<index_t>& expected) const {
  if (shape_ != expected) refuse("shape " + text_of(expected), "shape " + text_of(shape_));
}

void Array::refuse(const std::string& expected, const std::string& received) const {
  throw std::invalid_argument(std::string(name_.op) + ": " + name_.argument + ": expected " + expected + ", received " +
                              received);
}

}  // namespace lorahub_edge::bindings
