// Which level runs: the best this CPU has, unless GRAFTLM_CPU asks for a lesser one.
#include "level.hpp"

#include <cstdlib>
#include <stdexcept>
#include <string>

#include "cpu_features.hpp"

namespace graftlm {
namespace {

struct Choice {
  const char* name;
  const Level* level;
  bool amx;
};

Choice choose() {
  const char* variable = std::getenv("GRAFTLM_CPU");
  const std::string wanted = variable ? variable : "";
  std::string offered;
  auto takes = [&](const char* name, bool available) {
    if (!available) return false;
    offered += std::string(offered.empty() ? "" : ", ") + name;
    return wanted.empty() || wanted == name;
  };
#if defined(GRAFTLM_X86)
  const CpuFeatures& cpu = cpu_features();
  if (takes("amx", cpu.amx)) return {"amx", &avx512_level(), true};
  if (takes("avx512", cpu.avx512)) return {"avx512", &avx512_level(), false};
  if (takes("avx2", cpu.avx2)) return {"avx2", &avx2_level(), false};
#elif defined(GRAFTLM_NEON)
  if (takes("neon", true)) return {"neon", &neon_level(), false};
#endif
  if (takes("scalar", true)) return {"scalar", &scalar_level(), false};
  throw std::invalid_argument("GRAFTLM_CPU=" + wanted + ": expected one of " + offered +
                              " on this machine");
}

const Choice& choice() {
  static const Choice chosen = choose();
  return chosen;
}

}  // namespace

const char* level_name() { return choice().name; }

const Level& level() { return *choice().level; }

const Gemm& gemm(Compute compute) {
#if defined(GRAFTLM_X86)
  if (choice().amx && compute == Compute::bf16) return amx_bf16();
  if (choice().amx && compute == Compute::bf16x3) return amx_bf16x3();
#endif
  return level().f32;
}

bool multiplies_bf16() { return choice().amx; }

}  // namespace graftlm
