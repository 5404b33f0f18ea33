// Which instruction set the CPU kernels use.
//
// Every file named <op>.isa.cpp is compiled once per entry of LORAHUB_EDGE_FOR_EACH_ISA, each time into a namespace of
// that name; <op>.cpp, compiled once, picks among them by cpu::active_isa(). The choice is made once per process: the
// widest that the machine runs, or the one that the environment variable LORAHUB_EDGE_ISA names.
#pragma once

#include <string>
#include <vector>

// LORAHUB_EDGE_X86_VARIANTS comes from CMakeLists.txt, where the same list has its compiler flags.
#ifdef LORAHUB_EDGE_X86_VARIANTS
#define LORAHUB_EDGE_FOR_EACH_ISA(X) X(baseline) X(avx2) X(avx512)
#else
#define LORAHUB_EDGE_FOR_EACH_ISA(X) X(baseline)
#endif

namespace lorahub_edge::cpu {

#define LORAHUB_EDGE_ENUMERATE(isa) isa,
enum class Isa { LORAHUB_EDGE_FOR_EACH_ISA(LORAHUB_EDGE_ENUMERATE) };
#undef LORAHUB_EDGE_ENUMERATE

const char* name_of(Isa isa);

// The variants in this build that this machine can run, narrowest first.
std::vector<Isa> runnable_isas();

// The variant in use. Throws std::invalid_argument if LORAHUB_EDGE_ISA names none of runnable_isas().
Isa active_isa();

}  // namespace lorahub_edge::cpu
