// Which level runs: the best this CPU has, unless GRAFTLM_CPU names another.
#pragma once
#include <string>
#include <vector>

#include "kernels.hpp"

namespace graftlm {

// The arithmetic of a tile product. bf16 says that factors may be rounded to bfloat16: they are where
// there are tiles for it (AMX), and more finely where that is faster than float32 (Level::rounded).
enum class Compute : int { f32 = 0, bf16 = 1, bf16x3 = 2 };

const Level& level();
const Gemm& gemm(Compute compute);
bool has_bf16_tiles();  // AMX

const char* level_name();
std::vector<std::string> level_names();     // those this CPU can run, best first
void use_level(const std::string& name);    // for tests: no kernel may be running

}  // namespace graftlm
