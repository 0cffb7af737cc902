// AVX-512 (F, BW, DQ, VL): sixteen floats; a whole NF4 table fits one register.
#pragma once
#include <immintrin.h>

#include "nf4.hpp"

namespace graftlm {
namespace {

// x in [-1, 1] falls in bin round(scale x + scale) of 32. For each bin: how many thresholds lie below
// it, and the one inside it, or what no x exceeds.
struct Bins {
  static constexpr float scale = 15.5f;
  alignas(64) float bound[32] = {};
  alignas(64) int below[32] = {};
  bool fits = true;  // one threshold a bin at most, none so near an edge that rounding could move it

  constexpr Bins() {
    for (int bin = 0; bin < 32; bin++) {
      const float low = (float(bin) - 0.5f) / scale - 1, high = (float(bin) + 0.5f) / scale - 1;
      int inside = 0;
      bound[bin] = 2.0f;
      for (int i = 0; i < 15; i++) {
        const float t = threshold(i);
        if (t < low) below[bin]++;
        if (t > low && t < high) inside++, bound[bin] = t;
        if ((t - low) * (t - low) < 1e-8f) fits = false;
      }
      if (inside > 1) fits = false;
    }
  }
};
constexpr Bins kBins;
static_assert(kBins.fits);

struct Simd {
  static constexpr const char* name = "avx512";
  static constexpr int width = 16;
  static constexpr int micro_rows = 12, micro_vectors = 2;
  using F = __m512;
  using I = __m512i;

  static F zero() { return _mm512_setzero_ps(); }
  static F set1(float x) { return _mm512_set1_ps(x); }
  static F load(const float* p) { return _mm512_loadu_ps(p); }
  static void store(float* p, F x) { _mm512_storeu_ps(p, x); }
  static F add(F a, F b) { return _mm512_add_ps(a, b); }
  static F sub(F a, F b) { return _mm512_sub_ps(a, b); }
  static F mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static F div(F a, F b) { return _mm512_div_ps(a, b); }
  static F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  static F floor(F x) { return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC); }
  static F scale2(F x, F n) { return _mm512_scalef_ps(x, n); }  // x 2^n; n a whole number
  static bool any_above(F a, F b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ) != 0; }
  static float sum(F x) { return _mm512_reduce_add_ps(x); }
  static void fence() { _mm_sfence(); }

  static F load_bf16(const uint16_t* p) {
    __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
  }
  static F load_f16(const uint16_t* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static F load_i8(const int8_t* p) {
    return _mm512_cvtepi32_ps(
        _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
  }
  static __m256i bf16(F x) {  // nearest even; NaN stays NaN
    __m512i u = _mm512_castps_si512(x);
    __m512i odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
    __m512i r = _mm512_add_epi32(u, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    r = _mm512_mask_mov_epi32(r, nan, _mm512_set1_epi32(0x7fc00000));
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(r, 16));
  }
  static __m256i f16(F x) { return _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT); }
  static void store_bf16(uint16_t* p, F x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), bf16(x));
  }
  static void store_f16(uint16_t* p, F x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), f16(x));
  }
  // Past the cache; p is aligned to the vector.
  static void stream(float* p, F x) { _mm512_stream_ps(p, x); }
  static void stream_bf16(uint16_t* p, F x) {
    _mm256_stream_si256(reinterpret_cast<__m256i*>(p), bf16(x));
  }
  static void stream_f16(uint16_t* p, F x) {
    _mm256_stream_si256(reinterpret_cast<__m256i*>(p), f16(x));
  }

  // The level of the low four bits of each lane; the rest of the lane is ignored.
  static F lookup(I x) { return _mm512_permutexvar_ps(x, _mm512_load_ps(kLevels)); }
  // Sixteen codes of eight bytes, in order, in the low bits of the lanes.
  static I codes(const uint8_t* p) {
    __m512i both = _mm512_broadcastd_epi32(_mm_loadu_si32(p));
    both = _mm512_mask_broadcastd_epi32(both, 0xff00, _mm_loadu_si32(p + 4));
    const __m512i shift =
        _mm512_setr_epi32(4, 0, 12, 8, 20, 16, 28, 24, 4, 0, 12, 8, 20, 16, 28, 24);
    return _mm512_srlv_epi32(both, shift);
  }
  static I words(const uint8_t* p) { return _mm512_loadu_si512(p); }
  template <int bits>
  static I shift(I x) {
    return _mm512_srli_epi32(x, bits);
  }

  static constexpr bool multiplies_int16 = false;  // see gemm_int16.inl
  static constexpr bool has_planes = false;  // see simd_avx2.hpp
  static I index(const int* p) { return _mm512_loadu_si512(p); }
  static F pick(const float* table, I index) {  // reads 16 floats
    return _mm512_permutexvar_ps(index, _mm512_loadu_ps(table));
  }

  static F magnitude(F x) { return _mm512_abs_ps(x); }
  // b where either is NaN
  static F max(F a, F b) { return _mm512_max_ps(a, b); }
  static float largest(F x) { return _mm512_reduce_max_ps(x); }
  static bool any_nan(F x) { return _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q) != 0; }

  // The codes of values scaled to [-1, 1]: a bin of them has at most one threshold, so that its
  // place and one comparison say the rest. Two table look-ups instead of four comparisons.
  static constexpr bool has_bins = true;
  static I code_by_bin(F x) {
    const F scale = _mm512_set1_ps(kBins.scale);
    const I bin = _mm512_cvtps_epi32(_mm512_fmadd_ps(x, scale, scale));
    const F bound = _mm512_permutex2var_ps(_mm512_load_ps(kBins.bound), bin,
                                           _mm512_load_ps(kBins.bound + 16));
    const I below = _mm512_permutex2var_epi32(_mm512_load_si512(kBins.below), bin,
                                              _mm512_load_si512(kBins.below + 16));
    return _mm512_mask_add_epi32(below, _mm512_cmp_ps_mask(x, bound, _CMP_GT_OQ), below,
                                 _mm512_set1_epi32(1));
  }
  static constexpr bool stores_four = false;  // see simd_avx2.hpp
  static void store_codes(uint8_t* p, I q) {  // eight bytes
    __m512i pair = _mm512_or_si512(_mm512_slli_epi64(q, 4), _mm512_srli_epi64(q, 32));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm512_cvtepi64_epi8(pair));
  }

  // dst[j][i] = src[i][j], 16 x 16.
  static void transpose(const float* src, int64_t ls, float* dst, int64_t ld) {
    __m512 r[16], t[16];
    for (int i = 0; i < 16; i++) r[i] = _mm512_loadu_ps(src + i * ls);
    for (int i = 0; i < 16; i += 2) {
      t[i] = _mm512_unpacklo_ps(r[i], r[i + 1]);
      t[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {  // r[i + k]: column k of each 4 x 4 block
      for (int k = 0; k < 2; k++) {
        __m512d a = _mm512_castps_pd(t[i + k]), b = _mm512_castps_pd(t[i + 2 + k]);
        r[i + 2 * k] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b));
        r[i + 2 * k + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, b));
      }
    }
    for (int k = 0; k < 4; k++) {
      __m512 a = _mm512_shuffle_f32x4(r[k], r[k + 4], 0x88);
      __m512 b = _mm512_shuffle_f32x4(r[k], r[k + 4], 0xdd);
      __m512 c = _mm512_shuffle_f32x4(r[k + 8], r[k + 12], 0x88);
      __m512 d = _mm512_shuffle_f32x4(r[k + 8], r[k + 12], 0xdd);
      _mm512_storeu_ps(dst + k * ld, _mm512_shuffle_f32x4(a, c, 0x88));
      _mm512_storeu_ps(dst + (k + 4) * ld, _mm512_shuffle_f32x4(b, d, 0x88));
      _mm512_storeu_ps(dst + (k + 8) * ld, _mm512_shuffle_f32x4(a, c, 0xdd));
      _mm512_storeu_ps(dst + (k + 12) * ld, _mm512_shuffle_f32x4(b, d, 0xdd));
    }
  }
};

}  // namespace
}  // namespace graftlm
