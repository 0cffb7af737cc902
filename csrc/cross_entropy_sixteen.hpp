// Sixteen float32 lanes: the vector type of the AVX-512 and AMX levels.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace graftlm::cross_entropy {
namespace {

struct Sixteen {
  static constexpr int width = 16;
  __m512 v;

  static Sixteen set(float x) { return {_mm512_set1_ps(x)}; }
  static Sixteen load(const float* p) { return {_mm512_loadu_ps(p)}; }
  static Sixteen load_bf16(const uint16_t* p) {
    const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16))};
  }
  void store(float* p) const { _mm512_storeu_ps(p, v); }
  static Sixteen fma(Sixteen a, Sixteen b, Sixteen c) {
    return {_mm512_fmadd_ps(a.v, b.v, c.v)};
  }
  static Sixteen max(Sixteen a, Sixteen b) {
    return {_mm512_max_ps(a.v, b.v)};  // b where either is NaN
  }
  static bool any_greater(Sixteen a, Sixteen b) {
    return _mm512_cmp_ps_mask(a.v, b.v, _CMP_GT_OQ) != 0;
  }
  // Append the lanes with a > b, each with its key; the memory past them is overwritten.
  static size_t append_greater(Sixteen a, Sixteen b, uint32_t key, uint32_t step, uint32_t* keys,
                               float* values) {
    const __mmask16 mask = _mm512_cmp_ps_mask(a.v, b.v, _CMP_GT_OQ);
    const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512i all = _mm512_add_epi32(
        _mm512_set1_epi32(static_cast<int>(key)),
        _mm512_mullo_epi32(lanes, _mm512_set1_epi32(static_cast<int>(step))));
    _mm512_storeu_si512(keys, _mm512_maskz_compress_epi32(mask, all));
    _mm512_storeu_ps(values, _mm512_maskz_compress_ps(mask, a.v));
    return static_cast<size_t>(__builtin_popcount(mask));
  }
  Sixteen fraction() const { return {_mm512_reduce_ps(v, 0x09)}; }  // t − ⌊t⌋
  Sixteen times_power_of_two(Sixteen t) const { return {_mm512_scalef_ps(v, t.v)}; }
  Sixteen abs() const { return {_mm512_abs_ps(v)}; }
  Sixteen with_sign_of(Sixteen x) const {
    const __m512 sign = _mm512_and_ps(_mm512_set1_ps(-0.0f), x.v);
    return {_mm512_or_ps(v, sign)};  // v is not negative
  }
  float sum() const { return _mm512_reduce_add_ps(v); }
  friend Sixteen operator+(Sixteen a, Sixteen b) { return {_mm512_add_ps(a.v, b.v)}; }
  friend Sixteen operator-(Sixteen a, Sixteen b) { return {_mm512_sub_ps(a.v, b.v)}; }
  friend Sixteen operator*(Sixteen a, Sixteen b) { return {_mm512_mul_ps(a.v, b.v)}; }
  friend Sixteen operator/(Sixteen a, Sixteen b) { return {_mm512_div_ps(a.v, b.v)}; }
};

}  // namespace
}  // namespace graftlm::cross_entropy
