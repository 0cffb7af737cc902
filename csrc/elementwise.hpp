// The elementwise operators between the products, each in one pass over its input.
#pragma once

namespace graftlm {

// act(g) = g σ(slope (g + cubic g³)):  SiLU has (1, 0), tanh-approximated GELU (2 √(2/π), 0.044715)
struct Gate {
  float slope;
  float cubic;
};

}  // namespace graftlm
