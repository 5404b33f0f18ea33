// Lets torch believe in devices of type CUDA: a build without CUDA refuses their very name, one with CUDA asks the
// driver. device.py makes the tensors.
#include <c10/core/impl/FakeGuardImpl.h>

C10_REGISTER_GUARD_IMPL(CUDA, c10::impl::FakeGuardImpl<c10::DeviceType::CUDA>)
