// Which instruction set the CPU kernels use.
//
// Every file named <op>.isa.cpp is compiled once per entry of LORAHUB_EDGE_FOR_EACH_ISA, each time into a namespace of
// that name; <op>.cpp, compiled once, picks among them by cpu::active_isa(). The choice is made once per process: the
// widest that the machine runs, or the one that the environment variable LORAHUB_EDGE_ISA names.
#pragma once

#include <string>
#include <vector>

// Which there are comes from CMakeLists.txt, where each has its compiler flags: on x86-64 and ARM64 those that the
// compiler knows, elsewhere only what it compiles for by default. LINEAR_ISA(X): X(isa, others) for those that compile
// int8_linear alone and take everything else from others.
#if defined(LORAHUB_EDGE_X86_ISAS) && defined(LORAHUB_EDGE_HAS_AVXVNNI)
#define LORAHUB_EDGE_FOR_EACH_ISA(X) X(baseline) X(avx2) X(avxvnni) X(avx512)
#define LORAHUB_EDGE_FOR_EACH_LINEAR_ISA(X) X(avxvnni, avx2)
#elif defined(LORAHUB_EDGE_X86_ISAS)
#define LORAHUB_EDGE_FOR_EACH_ISA(X) X(baseline) X(avx2) X(avx512)
#define LORAHUB_EDGE_FOR_EACH_LINEAR_ISA(X)
#elif defined(LORAHUB_EDGE_ARM_ISAS)
#define LORAHUB_EDGE_FOR_EACH_ISA(X) X(neon) X(dotprod) X(i8mm)
#define LORAHUB_EDGE_FOR_EACH_LINEAR_ISA(X) X(dotprod, neon) X(i8mm, neon)
#else
#define LORAHUB_EDGE_FOR_EACH_ISA(X) X(baseline)
#define LORAHUB_EDGE_FOR_EACH_LINEAR_ISA(X)
#endif

namespace lorahub_edge::cpu {

#define LORAHUB_EDGE_ENUMERATE(isa) isa,
enum class Isa { LORAHUB_EDGE_FOR_EACH_ISA(LORAHUB_EDGE_ENUMERATE) };
#undef LORAHUB_EDGE_ENUMERATE

inline const char* name_of(Isa isa) {
  switch (isa) {
#define LORAHUB_EDGE_NAME(isa) \
  case Isa::isa:               \
    return #isa;
    LORAHUB_EDGE_FOR_EACH_ISA(LORAHUB_EDGE_NAME)
#undef LORAHUB_EDGE_NAME
  }
  return "unknown";
}

// The variants in this build that this machine can run, narrowest first.
std::vector<Isa> runnable_isas();

// The variant in use. Throws std::invalid_argument if LORAHUB_EDGE_ISA names none of runnable_isas().
Isa active_isa();

}  // namespace lorahub_edge::cpu
