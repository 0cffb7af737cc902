// One float at a time: conversions to and from 16 bits, for tails and for the scalar level.
// Internal linkage, so that no copy compiled for a newer CPU can be linked into an older path.
#pragma once
#include <cstdint>

namespace graftlm {
namespace {

inline uint32_t bits_of(float x) {
  uint32_t u;
  __builtin_memcpy(&u, &x, 4);
  return u;
}
inline float float_of(uint32_t u) {
  float x;
  __builtin_memcpy(&x, &u, 4);
  return x;
}

inline float from_bf16(uint16_t h) { return float_of(uint32_t(h) << 16); }

inline uint16_t to_bf16(float x) {  // nearest even; NaN stays NaN
  if (x != x) return 0x7fc0;
  uint32_t u = bits_of(x);
  return uint16_t((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}

inline float from_f16(uint16_t h) {
  uint32_t sign = uint32_t(h & 0x8000) << 16, magnitude = h & 0x7fff;
  if (magnitude >= 0x7c00) return float_of(sign | 0x7f800000 | (magnitude & 0x3ff) << 13);
  if (magnitude >= 0x400) return float_of(sign | ((magnitude << 13) + (112u << 23)));
  float subnormal = float(magnitude) * 5.9604644775390625e-8f;  // 2^-24
  return float_of(sign | bits_of(subnormal));
}

inline uint16_t to_f16(float x) {  // nearest even
  uint32_t u = bits_of(x);
  uint16_t sign = uint16_t((u >> 16) & 0x8000);
  uint32_t magnitude = u & 0x7fffffff;
  if (magnitude > 0x7f800000) return sign | 0x7e00;
  if (magnitude >= 0x477ff000) return sign | 0x7c00;  // rounds past 65504
  if (magnitude < 0x38800000) {                       // subnormal: let the adder round it
    float shifted = float_of(magnitude) + 0.5f;       // the last bit of [0.5, 1) is 2^-24
    return uint16_t(sign | (bits_of(shifted) - 0x3f000000));
  }
  magnitude += 0xfff + ((magnitude >> 13) & 1);
  return uint16_t(sign | ((magnitude - (112u << 23)) >> 13));
}

}  // namespace
}  // namespace graftlm
