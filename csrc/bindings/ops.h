// One function per op: adds it to the extension module. Each has its own file in this folder.
#pragma once

#include <pybind11/pybind11.h>

namespace lorahub_edge::bindings {

void register_compose_factors(pybind11::module_& module);

}  // namespace lorahub_edge::bindings
