// The walk with AVX-512: sixteen tokens a vector, 24 accumulators.
#include "cross_entropy_sixteen.hpp"
#include "cross_entropy_walk.hpp"

namespace graftlm::cross_entropy {

const Kernels* avx512_kernels() {
  static const Kernels kernels = float32_kernels<Sixteen, 12, 2>("avx512");
  return &kernels;
}

}  // namespace graftlm::cross_entropy
