// The walk with AVX2 and FMA: eight tokens a vector.
#include <immintrin.h>

#include "cross_entropy_walk.hpp"

namespace graftlm::cross_entropy {
namespace {

struct Eight {
  static constexpr int width = 8;
  __m256 v;

  static Eight set(float x) { return {_mm256_set1_ps(x)}; }
  static Eight load(const float* p) { return {_mm256_loadu_ps(p)}; }
  static Eight load_bf16(const uint16_t* p) {
    const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16))};
  }
  void store(float* p) const { _mm256_storeu_ps(p, v); }
  static Eight fma(Eight a, Eight b, Eight c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
  static Eight max(Eight a, Eight b) { return {_mm256_max_ps(a.v, b.v)}; }  // b where either is NaN
  static uint32_t greater(Eight a, Eight b) {
    return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(a.v, b.v, _CMP_GT_OQ)));
  }
  static bool any_greater(Eight a, Eight b) { return greater(a, b) != 0; }
  static size_t append_greater(Eight a, Eight b, uint32_t key, uint32_t step, uint32_t* keys,
                               float* values) {
    uint32_t mask = greater(a, b);
    if (mask == 0) return 0;
    alignas(32) float lanes[8];
    _mm256_store_ps(lanes, a.v);
    size_t count = 0;
    for (; mask; mask &= mask - 1, ++count) {
      const uint32_t lane = static_cast<uint32_t>(__builtin_ctz(mask));
      keys[count] = key + lane * step;
      values[count] = lanes[lane];
    }
    return count;
  }
  Eight fraction() const { return {_mm256_sub_ps(v, _mm256_floor_ps(v))}; }
  Eight times_power_of_two(Eight t) const {
    const __m256i n = _mm256_cvtps_epi32(_mm256_floor_ps(t.v));
    const __m256i bits = _mm256_slli_epi32(_mm256_add_epi32(n, _mm256_set1_epi32(127)), 23);
    return {_mm256_mul_ps(v, _mm256_castsi256_ps(bits))};
  }
  Eight abs() const { return {_mm256_andnot_ps(_mm256_set1_ps(-0.0f), v)}; }
  Eight with_sign_of(Eight x) const {
    return {_mm256_or_ps(v, _mm256_and_ps(_mm256_set1_ps(-0.0f), x.v))};  // v is not negative
  }
  float sum() const {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
  }
  friend Eight operator+(Eight a, Eight b) { return {_mm256_add_ps(a.v, b.v)}; }
  friend Eight operator-(Eight a, Eight b) { return {_mm256_sub_ps(a.v, b.v)}; }
  friend Eight operator*(Eight a, Eight b) { return {_mm256_mul_ps(a.v, b.v)}; }
  friend Eight operator/(Eight a, Eight b) { return {_mm256_div_ps(a.v, b.v)}; }
};

}  // namespace

const Kernels* avx2_kernels() {
  static const Kernels kernels = float32_kernels<Eight, 6, 2>("avx2");
  return &kernels;
}

}  // namespace graftlm::cross_entropy
