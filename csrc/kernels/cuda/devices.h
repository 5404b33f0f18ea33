// What `lorahub-edge doctor` asks of the CUDA build. Plain C++: the bindings include it.
#pragma once

#include <string>
#include <vector>

#include "../../core.h"

namespace lorahub_edge::cuda {

struct Device {
  int index;
  std::string name;
  int major;  // of the compute capability
  int minor;
  index_t memory_bytes;
  std::string problem;  // why kernels of this build do not run there; empty if they do
};

// The CUDA version of the runtime in this build and the newest that the driver supports, 0 without one:
// 1000 * major + 10 * minor.
int runtime_version();
int driver_version();

// The devices that the driver shows this process. Throws std::runtime_error if it shows none, with its reason. Asking
// whether kernels run makes a context on each device, some hundred MB of its memory, until the process ends.
std::vector<Device> devices();

}  // namespace lorahub_edge::cuda
