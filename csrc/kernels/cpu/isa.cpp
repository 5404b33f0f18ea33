#include "isa.h"

#include <cstdlib>

#include "../../core.h"

namespace lorahub_edge::cpu {
namespace {

#ifdef LORAHUB_EDGE_X86_VARIANTS
// The features here are those of the compiler flags in CMakeLists.txt, one for one.
bool machine_runs(Isa isa) {
  switch (isa) {
    case Isa::baseline:
      return true;
    case Isa::avx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    case Isa::avx512:
      return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni") &&
             __builtin_cpu_supports("fma");
  }
  return false;
}
#else
bool machine_runs(Isa) {
  return true;
}
#endif

Isa choose_isa() {
  const auto runnable = runnable_isas();
  const char* wanted = std::getenv("LORAHUB_EDGE_ISA");
  if (wanted == nullptr || *wanted == '\0') return runnable.back();
  std::string names;
  for (const Isa isa : runnable) {
    if (std::string(wanted) == name_of(isa)) return isa;
    names += std::string(names.empty() ? "" : ", ") + name_of(isa);
  }
  throw std::invalid_argument("LORAHUB_EDGE_ISA: expected one that this build and machine run (" + names +
                              "), received '" + wanted + "'");
}

}  // namespace

const char* name_of(Isa isa) {
  switch (isa) {
#define LORAHUB_EDGE_NAME(isa) \
  case Isa::isa:               \
    return #isa;
    LORAHUB_EDGE_FOR_EACH_ISA(LORAHUB_EDGE_NAME)
#undef LORAHUB_EDGE_NAME
  }
  return "unknown";
}

std::vector<Isa> runnable_isas() {
  std::vector<Isa> runnable;
#define LORAHUB_EDGE_ADD(isa) \
  if (machine_runs(Isa::isa)) runnable.push_back(Isa::isa);
  LORAHUB_EDGE_FOR_EACH_ISA(LORAHUB_EDGE_ADD)
#undef LORAHUB_EDGE_ADD
  return runnable;
}

Isa active_isa() {
  static const Isa isa = choose_isa();
  return isa;
}

}  // namespace lorahub_edge::cpu
