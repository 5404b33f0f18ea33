#include "isa.h"

#include <cstdlib>

#include "../../core.h"

#if defined(LORAHUB_EDGE_ARM_ISAS) && defined(__APPLE__)
#include <sys/sysctl.h>
#elif defined(LORAHUB_EDGE_ARM_ISAS)
#include <sys/auxv.h>
#endif

namespace lorahub_edge::cpu {
namespace {

#if defined(LORAHUB_EDGE_ARM_ISAS) && defined(__APPLE__)
bool has(const char* feature) {
  int value = 0;
  std::size_t size = sizeof(value);
  return sysctlbyname(feature, &value, &size, nullptr, 0) == 0 && value != 0;
}
const bool kDotprod = has("hw.optional.arm.FEAT_DotProd"), kI8mm = has("hw.optional.arm.FEAT_I8MM");
#elif defined(LORAHUB_EDGE_ARM_ISAS)
// bits of the Linux kernel's arch/arm64/include/uapi/asm/hwcap.h: HWCAP_ASIMDDP, HWCAP2_I8MM
const bool kDotprod = (getauxval(AT_HWCAP) >> 20 & 1) != 0, kI8mm = (getauxval(AT_HWCAP2) >> 13 & 1) != 0;
#endif

// The features here are those of the compiler flags in CMakeLists.txt, one for one.
bool machine_runs(Isa isa) {
  switch (isa) {
#if defined(LORAHUB_EDGE_ARM_ISAS)
    case Isa::neon:
      return true;
    case Isa::dotprod:
      return kDotprod;
    case Isa::i8mm:
      return kDotprod && kI8mm;
#else
    case Isa::baseline:
      return true;
#endif
#if defined(LORAHUB_EDGE_X86_ISAS)
    case Isa::avx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#if defined(LORAHUB_EDGE_HAS_AVXVNNI)
    case Isa::avxvnni:
      return machine_runs(Isa::avx2) && __builtin_cpu_supports("avxvnni");
#endif
    case Isa::avx512:
      return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni") &&
             __builtin_cpu_supports("fma");
#endif
  }
  return false;
}

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
