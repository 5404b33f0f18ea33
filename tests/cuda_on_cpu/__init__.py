"""The CUDA kernels on the CPU: their sources, a stand-in for CUDA, and the GPU's tests. `make emulate` runs it.

    rewrite.py   csrc/kernels/cuda as C++: launches, shared memory and inline PTX become calls
    build.py     the extension, once with address and undefined-behaviour sanitizers, once with the race detector
    native/      cuda_runtime.h that the sources include; a scheduler whose threads are fibers; races.cpp; the runtime
    device.py    a device "cuda:0" for torch, in CPU memory
    emulator.py  the built extension in the place of lorahub_edge._native_cuda
    plugin.py    for pytest: tests marked `needs_gpu` run
    fuzz.py      random cases, to the bits of the CPU's kernels
    planted.py   bugs put into copies of the kernels: each has to be found
    __main__.py  all of this, from one seed

What it shows: the kernels compute what they should, in any order of blocks and threads. No access is outside its
array, misaligned or unordered, and no shared memory is read before it is written. All threads reach their barriers and
shuffles. Everything above the kernels, up to `PopulationForward`, works with tensors of the device.

What it cannot show: speed and occupancy; what nvcc makes of the sources; the memory model of real hardware, beyond
what barriers order; launches that overlap on streams, and recordings as graphs; results of libraries that compute on a
GPU in another order than on a CPU, such as matrix products.

It needs Linux and GCC. The switch between fibers is the compiler's own, so the processor may be any.
"""
