// Which level runs: the best this CPU has, unless GRAFTLM_CPU asks for a lesser one.
#pragma once
#include "kernels.hpp"

namespace graftlm {

// The arithmetic of a tile product. What the machine has no instructions for is done in float32,
// which is at least as accurate.
enum class Compute : int { f32 = 0, bf16 = 1, bf16x3 = 2 };

const char* level_name();
const Level& level();
const Gemm& gemm(Compute compute);
bool multiplies_bf16();

}  // namespace graftlm
