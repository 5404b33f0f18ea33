#include "devices.h"

#include "launch.cuh"

namespace lorahub_edge::cuda {
namespace {

constexpr const char* kOp = "devices";

__global__ void probe_kernel() {}

std::string problem_on_current_device() {
  cudaFuncAttributes attributes;
  const cudaError_t error = cudaFuncGetAttributes(&attributes, probe_kernel);
  cudaGetLastError();  // the answer is reported below; it must not look like a later launch's error
  return error == cudaSuccess ? "" : cudaGetErrorString(error);
}

Device device_of(int index) {
  cudaDeviceProp properties;
  check_cuda(cudaGetDeviceProperties(&properties, index), kOp);
  Device device{
      index, properties.name, properties.major, properties.minor, static_cast<index_t>(properties.totalGlobalMem), ""};
  try {
    const DeviceGuard guard(index, kOp);
    device.problem = problem_on_current_device();
  } catch (const std::runtime_error& error) {  // a device that is busy or broken is no reason to hide the others
    device.problem = error.what();
  }
  return device;
}

}  // namespace

int runtime_version() {
  int version = 0;
  check_cuda(cudaRuntimeGetVersion(&version), kOp);
  return version;
}

int driver_version() {
  int version = 0;
  check_cuda(cudaDriverGetVersion(&version), kOp);
  return version;
}

std::vector<Device> devices() {
  int n_devices = 0;
  const cudaError_t error = cudaGetDeviceCount(&n_devices);
  if (error != cudaSuccess) throw std::runtime_error(cudaGetErrorString(error));
  std::vector<Device> found;
  for (int index = 0; index < n_devices; ++index) found.push_back(device_of(index));
  return found;
}

}  // namespace lorahub_edge::cuda
