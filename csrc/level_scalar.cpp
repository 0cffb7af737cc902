#include "simd_scalar.hpp"
#include "level.inl"

namespace graftlm {

const Level& scalar_level() {
  static constexpr Level table = make_level();
  return table;
}

}  // namespace graftlm
