// Which level runs: the best this CPU has, unless GRAFTLM_CPU names another.
#pragma once
#include <string>
#include <vector>

#include "kernels.hpp"

namespace graftlm {

// The arithmetic of a tile product. What the machine has no instructions for is done in float32,
// which is at least as accurate.
enum class Compute : int { f32 = 0, bf16 = 1, bf16x3 = 2 };

const Level& level();
const Gemm& gemm(Compute compute);
bool multiplies_bf16();  // whether the bf16 computations differ from float32 here

const char* level_name();
std::vector<std::string> level_names();     // those this CPU can run, best first
void use_level(const std::string& name);    // for tests: no kernel may be running

}  // namespace graftlm
