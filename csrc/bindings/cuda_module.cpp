// The extension module lorahub_edge._native_cuda. Only lorahub_edge/kernels/routes.py imports it. It needs no GPU and
// no driver to be imported: the CUDA runtime in it looks for one at the first call.
#include <pybind11/pybind11.h>

#include "../kernels/cuda/devices.h"
#include "ops.h"

namespace py = pybind11;

namespace {

// "13.0" of 13000.
std::string version_text(int version) {
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

py::list devices() {
  py::list list;
  for (const lorahub_edge::cuda::Device& device : lorahub_edge::cuda::devices()) {
    py::dict facts;
    facts["index"] = device.index;
    facts["name"] = device.name;
    facts["compute_capability"] = std::to_string(device.major) + "." + std::to_string(device.minor);
    facts["memory_bytes"] = device.memory_bytes;
    facts["problem"] = device.problem;
    list.append(facts);
  }
  return list;
}

}  // namespace

PYBIND11_MODULE(_native_cuda, module) {
  namespace cuda = lorahub_edge::cuda;
  module.doc() = "CUDA kernels of lorahub_edge; use them through lorahub_edge.kernels.ops.";
  // As CMake writes them: "90-real" is machine code for compute capability 9.0, "120" that and PTX for later ones.
  module.attr("architectures") = LORAHUB_EDGE_CUDA_ARCHITECTURES;
  module.def("runtime_version", [] { return version_text(cuda::runtime_version()); }, "CUDA version of this build.");
  module.def(
      "driver_version", [] { return version_text(cuda::driver_version()); },
      "Newest CUDA version that the driver supports; 0.0 without a driver.");
  module.def("devices", &devices,
             "The GPUs, and why kernels of this build do not run on one; see lorahub_edge.doctor.");
  lorahub_edge::bindings::register_ops(module);
  lorahub_edge::bindings::register_inject_layers(module);
}
