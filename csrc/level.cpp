#include "level.hpp"

#include <cstdlib>
#include <stdexcept>

#include "cpu_features.hpp"

namespace graftlm {
namespace {

struct Choice {
  const char* name;
  const Level* level;
  bool amx;
};

// Best first.
std::vector<Choice> offered() {
  std::vector<Choice> choices;
#if defined(GRAFTLM_X86)
  const CpuFeatures& cpu = cpu_features();
  if (cpu.amx) choices.push_back({"amx", &avx512_level(), true});
  if (cpu.avx512) choices.push_back({"avx512", &avx512_level(), false});
  if (cpu.avx2) choices.push_back({"avx2", &avx2_level(), false});
#elif defined(GRAFTLM_NEON)
  choices.push_back({"neon", &neon_level(), false});
#endif
  choices.push_back({"scalar", &scalar_level(), false});
  return choices;
}

Choice find(const std::string& name) {
  std::string names;
  for (const Choice& choice : offered()) {
    if (name == choice.name) return choice;
    names += std::string(names.empty() ? "" : ", ") + choice.name;
  }
  throw std::invalid_argument("no kernels for the CPU level " + name + " (GRAFTLM_CPU): expected " +
                              names + " on this machine");
}

Choice& choice() {
  static Choice chosen = [] {
    const char* wanted = std::getenv("GRAFTLM_CPU");
    return wanted && *wanted ? find(wanted) : offered().front();
  }();
  return chosen;
}

}  // namespace

std::vector<std::string> level_names() {
  std::vector<std::string> names;
  for (const Choice& each : offered()) names.push_back(each.name);
  return names;
}

const char* level_name() { return choice().name; }

void use_level(const std::string& name) { choice() = find(name); }

const Level& level() { return *choice().level; }

const Gemm& gemm(Compute compute) {
#if defined(GRAFTLM_X86)
  if (choice().amx && compute == Compute::bf16) return amx_bf16();
  if (choice().amx && compute == Compute::bf16x3) return amx_bf16x3();
#endif
  return compute == Compute::bf16 ? level().rounded : level().f32;
}

bool has_bf16_tiles() { return choice().amx; }

}  // namespace graftlm
