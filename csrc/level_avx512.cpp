#include "simd_avx512.hpp"
#include "level.inl"

namespace graftlm {

const Level& avx512_level() {
  static constexpr Level table = make_level();
  return table;
}

}  // namespace graftlm
