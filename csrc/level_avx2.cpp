#include "simd_avx2.hpp"
#include "level.inl"

namespace graftlm {

const Level& avx2_level() {
  static constexpr Level table = make_level();
  return table;
}

}  // namespace graftlm
