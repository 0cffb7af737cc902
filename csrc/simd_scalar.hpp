// No vector instructions of its own: four floats in an array, for the compiler to make of what it
// can. The level that runs everywhere.
#pragma once
#include <cstdint>

#include "nf4.hpp"
#include "scalar.hpp"

namespace graftlm {
namespace {

struct Simd {
  static constexpr const char* name = "scalar";
  static constexpr int width = 4;
  static constexpr int micro_rows = 4, micro_vectors = 2;
  struct F {
    float v[4];
  };
  struct I {
    uint32_t v[4];
  };
  template <class Op>
  static F each(Op op) {
    F r;
    for (int i = 0; i < 4; i++) r.v[i] = op(i);
    return r;
  }

  static F zero() { return set1(0.0f); }
  static F set1(float x) {
    return each([&](int) { return x; });
  }
  static F load(const float* p) {
    return each([&](int i) { return p[i]; });
  }
  static void store(float* p, F x) {
    for (int i = 0; i < 4; i++) p[i] = x.v[i];
  }
  static F add(F a, F b) {
    return each([&](int i) { return a.v[i] + b.v[i]; });
  }
  static F sub(F a, F b) {
    return each([&](int i) { return a.v[i] - b.v[i]; });
  }
  static F mul(F a, F b) {
    return each([&](int i) { return a.v[i] * b.v[i]; });
  }
  static F div(F a, F b) {
    return each([&](int i) { return a.v[i] / b.v[i]; });
  }
  static F fma(F a, F b, F c) {
    return each([&](int i) { return a.v[i] * b.v[i] + c.v[i]; });
  }
  static F floor(F x) {
    return each([&](int i) { return __builtin_floorf(x.v[i]); });
  }
  static F scale2(F x, F n) {  // x 2^n; n a whole number, -126 to 127
    return each([&](int i) {
      return n.v[i] == n.v[i] ? x.v[i] * float_of(uint32_t(int(n.v[i]) + 127) << 23) : n.v[i];
    });
  }
  static bool any_above(F a, F b) {
    bool any = false;
    for (int i = 0; i < 4; i++) any |= a.v[i] > b.v[i];
    return any;
  }
  static float sum(F x) { return (x.v[0] + x.v[2]) + (x.v[1] + x.v[3]); }
  static void fence() {}

  static F load_bf16(const uint16_t* p) {
    return each([&](int i) { return from_bf16(p[i]); });
  }
  static F load_f16(const uint16_t* p) {
    return each([&](int i) { return from_f16(p[i]); });
  }
  static F load_i8(const int8_t* p) {
    return each([&](int i) { return float(p[i]); });
  }
  static void store_bf16(uint16_t* p, F x) {
    for (int i = 0; i < 4; i++) p[i] = to_bf16(x.v[i]);
  }
  static void store_f16(uint16_t* p, F x) {
    for (int i = 0; i < 4; i++) p[i] = to_f16(x.v[i]);
  }
  static void stream(float* p, F x) { store(p, x); }
  static void stream_bf16(uint16_t* p, F x) { store_bf16(p, x); }
  static void stream_f16(uint16_t* p, F x) { store_f16(p, x); }

  static F lookup(I x) {
    return each([&](int i) { return kLevels[x.v[i] & 15]; });
  }
  static I codes(const uint8_t* p) {
    return {{uint32_t(p[0] >> 4), uint32_t(p[0]), uint32_t(p[1] >> 4), uint32_t(p[1])}};
  }
  static I words(const uint8_t* p) {
    I r;
    __builtin_memcpy(&r, p, sizeof r);
    return r;
  }
  template <int bits>
  static I shift(I x) {
    for (uint32_t& v : x.v) v >>= bits;
    return x;
  }
  static constexpr bool multiplies_int16 = false;  // see gemm_int16.inl
  static constexpr bool has_planes = false;  // see simd_avx2.hpp
  static I index(const int* p) {
    return {{uint32_t(p[0]), uint32_t(p[1]), uint32_t(p[2]), uint32_t(p[3])}};
  }
  static F pick(const float* table, I index) {
    return each([&](int i) { return table[index.v[i]]; });
  }

  static F magnitude(F x) {
    return each([&](int i) { return __builtin_fabsf(x.v[i]); });
  }
  // b where either is NaN
  static F max(F a, F b) {
    return each([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
  }
  static float largest(F x) {
    float m = x.v[0];
    for (float v : x.v) m = v > m ? v : m;
    return m;
  }
  static bool any_nan(F x) {
    bool nan = false;
    for (float v : x.v) nan |= v != v;
    return nan;
  }
  static constexpr bool has_bins = false;  // see simd_avx512.hpp
  template <int>  // entries; see simd_avx2.hpp
  static I descend(I q, F x, const float* table) {
    for (int i = 0; i < 4; i++) q.v[i] = 2 * q.v[i] + (x.v[i] > table[q.v[i]]);
    return q;
  }
  static I zero_index() { return {{0, 0, 0, 0}}; }
  static constexpr bool stores_four = false;  // see simd_avx2.hpp
  static void store_codes(uint8_t* p, I q) {
    p[0] = uint8_t(q.v[0] << 4 | q.v[1]);
    p[1] = uint8_t(q.v[2] << 4 | q.v[3]);
  }
  static void transpose(const float* src, int64_t ls, float* dst, int64_t ld) {
    for (int i = 0; i < 4; i++)
      for (int j = 0; j < 4; j++) dst[j * ld + i] = src[i * ls + j];
  }
};

}  // namespace
}  // namespace graftlm
