// NEON (AArch64): four floats; the NF4 table is 64 bytes, one table lookup.
// Written from the manual and compiled only on ARM; it has not been run yet.
#pragma once
#include <arm_neon.h>

#include "nf4.hpp"
#include "scalar.hpp"

namespace graftlm {
namespace {

struct Simd {
  static constexpr const char* name = "neon";
  static constexpr int width = 4;
  static constexpr int micro_rows = 8, micro_vectors = 2;
  using F = float32x4_t;
  using I = uint32x4_t;

  static F zero() { return vdupq_n_f32(0.0f); }
  static F set1(float x) { return vdupq_n_f32(x); }
  static F load(const float* p) { return vld1q_f32(p); }
  static void store(float* p, F x) { vst1q_f32(p, x); }
  static F add(F a, F b) { return vaddq_f32(a, b); }
  static F sub(F a, F b) { return vsubq_f32(a, b); }
  static F mul(F a, F b) { return vmulq_f32(a, b); }
  static F div(F a, F b) { return vdivq_f32(a, b); }
  static F fma(F a, F b, F c) { return vfmaq_f32(c, a, b); }
  static F floor(F x) { return vrndmq_f32(x); }
  static F scale2(F x, F n) {  // x 2^n; n a whole number, -126 to 127
    int32x4_t exponent = vaddq_s32(vcvtq_s32_f32(n), vdupq_n_s32(127));
    return vmulq_f32(x, vreinterpretq_f32_s32(vshlq_n_s32(exponent, 23)));
  }
  static bool any_above(F a, F b) { return vmaxvq_u32(vcgtq_f32(a, b)) != 0; }
  static float sum(F x) { return vaddvq_f32(x); }
  static void fence() {}

  static F load_bf16(const uint16_t* p) {
    return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p), 16));
  }
  static F load_f16(const uint16_t* p) {
    return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p)));
  }
  static F load_i8(const int8_t* p) {
    int32_t four;
    __builtin_memcpy(&four, p, 4);
    int16x8_t wide = vmovl_s8(vreinterpret_s8_s32(vdup_n_s32(four)));
    return vcvtq_f32_s32(vmovl_s16(vget_low_s16(wide)));
  }
  static void store_bf16(uint16_t* p, F x) {
    float v[4];
    vst1q_f32(v, x);
    for (int i = 0; i < 4; i++) p[i] = to_bf16(v[i]);
  }
  static void store_f16(uint16_t* p, F x) { vst1_u16(p, vreinterpret_u16_f16(vcvt_f16_f32(x))); }
  static void stream(float* p, F x) { store(p, x); }
  static void stream_bf16(uint16_t* p, F x) { store_bf16(p, x); }
  static void stream_f16(uint16_t* p, F x) { store_f16(p, x); }

  // The level of the low four bits of each lane; the rest of the lane is ignored.
  static F lookup(I x) {
    uint32x4_t byte = vmlaq_n_u32(vdupq_n_u32(0x03020100), vandq_u32(x, vdupq_n_u32(15)),
                                  0x04040404);
    uint8x16x4_t table = vld1q_u8_x4(reinterpret_cast<const uint8_t*>(kLevels));
    return vreinterpretq_f32_u8(vqtbl4q_u8(table, vreinterpretq_u8_u32(byte)));
  }
  static I codes(const uint8_t* p) {
    const uint32_t c[4] = {uint32_t(p[0] >> 4), p[0], uint32_t(p[1] >> 4), p[1]};
    return vld1q_u32(c);
  }
  static I words(const uint8_t* p) { return vreinterpretq_u32_u8(vld1q_u8(p)); }
  template <int bits>
  static I shift(I x) {
    if constexpr (bits == 0) return x;
    else return vshrq_n_u32(x, bits);
  }
  static constexpr bool multiplies_int16 = false;  // see gemm_int16.inl
  static constexpr bool has_planes = false;  // see simd_avx2.hpp
  static I index(const int* p) { return vreinterpretq_u32_s32(vld1q_s32(p)); }
  static F pick(const float* table, I) { return vdupq_n_f32(table[0]); }  // 32 codes: one block

  static F magnitude(F x) { return vabsq_f32(x); }
  static F max(F a, F b) { return vmaxq_f32(a, b); }
  static float largest(F x) { return vmaxvq_f32(x); }
  static bool any_nan(F x) { return vminvq_u32(vceqq_f32(x, x)) == 0; }

  static constexpr bool has_bins = false;  // see simd_avx512.hpp
  template <int>  // entries; see simd_avx2.hpp
  static I descend(I q, F x, const float* table) {
    uint32_t i[4];
    float v[4];
    vst1q_u32(i, q);
    vst1q_f32(v, x);
    for (int k = 0; k < 4; k++) i[k] = 2 * i[k] + (v[k] > table[i[k]]);
    return vld1q_u32(i);
  }
  static I zero_index() { return vdupq_n_u32(0); }
  static constexpr bool stores_four = false;  // see simd_avx2.hpp
  static void store_codes(uint8_t* p, I q) {
    p[0] = uint8_t(vgetq_lane_u32(q, 0) << 4 | vgetq_lane_u32(q, 1));
    p[1] = uint8_t(vgetq_lane_u32(q, 2) << 4 | vgetq_lane_u32(q, 3));
  }
  static void transpose(const float* src, int64_t ls, float* dst, int64_t ld) {
    float32x4x4_t r;
    for (int i = 0; i < 4; i++) r.val[i] = vld1q_f32(src + i * ls);
    float v[16];
    vst4q_f32(v, r);
    for (int i = 0; i < 4; i++) vst1q_f32(dst + i * ld, vld1q_f32(v + 4 * i));
  }
};

}  // namespace
}  // namespace graftlm
