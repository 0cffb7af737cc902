#include "simd_neon.hpp"
#include "level.inl"

namespace graftlm {

const Level& neon_level() {
  static constexpr Level table = make_level();
  return table;
}

}  // namespace graftlm
