// AVX2 + FMA + F16C: eight floats. The NF4 table takes two registers and a blend; many codes at once
// are restored byte by byte instead, see Planes.
#pragma once
#include <immintrin.h>

#include "nf4.hpp"

namespace graftlm {
namespace {

// Byte b of every level, twice, one table for each half of a register: one byte shuffle looks it up
// for 32 codes. Four of them and eight interleavings make 32 floats, where a permutation and a blend
// take three operations for eight: nearly twice as fast (measured on Zen 3).
struct Planes {
  alignas(32) uint8_t byte[4][32] = {};
  constexpr Planes() {
    for (int b = 0; b < 4; b++)
      for (int i = 0; i < 32; i++)
        byte[b][i] = uint8_t(__builtin_bit_cast(uint32_t, kLevels[i & 15]) >> (8 * b));
  }
};
constexpr Planes kPlanes;

// The bytes of `one` times every level, rounded, each twice like those of Planes.
template <int one>
struct WholeLevels {
  alignas(32) uint8_t byte[2][32] = {};
  constexpr WholeLevels() {
    for (int i = 0; i < 32; i++) {
      const float x = kLevels[i & 15] * float(one);
      const int q = x < 0 ? -int(0.5f - x) : int(x + 0.5f);
      for (int b = 0; b < 2; b++) byte[b][i] = uint8_t(q >> (8 * b));
    }
  }
};

struct Simd {
  static constexpr const char* name = "avx2";
  static constexpr int width = 8;
  static constexpr int micro_rows = 6, micro_vectors = 2;
  using F = __m256;
  using I = __m256i;

  static F zero() { return _mm256_setzero_ps(); }
  static F set1(float x) { return _mm256_set1_ps(x); }
  static F load(const float* p) { return _mm256_loadu_ps(p); }
  static void store(float* p, F x) { _mm256_storeu_ps(p, x); }
  static F add(F a, F b) { return _mm256_add_ps(a, b); }
  static F sub(F a, F b) { return _mm256_sub_ps(a, b); }
  static F mul(F a, F b) { return _mm256_mul_ps(a, b); }
  static F div(F a, F b) { return _mm256_div_ps(a, b); }
  static F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
  static F floor(F x) { return _mm256_floor_ps(x); }
  static F scale2(F x, F n) {  // x 2^n; n a whole number, -126 to 127
    __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
    return _mm256_mul_ps(x, _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23)));
  }
  static bool any_above(F a, F b) {
    return _mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GT_OQ)) != 0;
  }
  static float sum(F x) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
  }
  static void fence() { _mm_sfence(); }

  static F load_bf16(const uint16_t* p) {
    __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
  }
  static F load_f16(const uint16_t* p) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static F load_i8(const int8_t* p) {
    return _mm256_cvtepi32_ps(
        _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
  }
  static __m128i bf16(F x) {  // nearest even; NaN stays NaN
    __m256i u = _mm256_castps_si256(x);
    __m256i odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
    __m256i r = _mm256_add_epi32(u, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
    r = _mm256_srli_epi32(_mm256_blendv_epi8(r, _mm256_set1_epi32(0x7fc00000), nan), 16);
    r = _mm256_permute4x64_epi64(_mm256_packus_epi32(r, r), 0x08);
    return _mm256_castsi256_si128(r);
  }
  static __m128i f16(F x) { return _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT); }
  static void store_bf16(uint16_t* p, F x) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), bf16(x));
  }
  static void store_f16(uint16_t* p, F x) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), f16(x));
  }
  // Past the cache; p is aligned to the vector.
  static void stream(float* p, F x) { _mm256_stream_ps(p, x); }
  static void stream_bf16(uint16_t* p, F x) {
    _mm_stream_si128(reinterpret_cast<__m128i*>(p), bf16(x));
  }
  static void stream_f16(uint16_t* p, F x) {
    _mm_stream_si128(reinterpret_cast<__m128i*>(p), f16(x));
  }

  // The level of the low four bits of each lane; the rest of the lane is ignored.
  static F lookup(I x) {
    F low = _mm256_permutevar8x32_ps(_mm256_load_ps(kLevels), x);
    F high = _mm256_permutevar8x32_ps(_mm256_load_ps(kLevels + 8), x);
    return _mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32(x, 28)));
  }
  // Eight codes of four bytes, in order, in the low bits of the lanes.
  static I codes(const uint8_t* p) {
    int word;
    __builtin_memcpy(&word, p, 4);
    return _mm256_srlv_epi32(_mm256_set1_epi32(word),
                             _mm256_setr_epi32(4, 0, 12, 8, 20, 16, 28, 24));
  }
  static I words(const uint8_t* p) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  }

  static constexpr bool has_planes = true;
  // The levels of 32 codes, one a byte. Lane l of v[q] is byte 16 (l / 4) + 4 q + l % 4.
  static void by_planes(I codes, F* v) {
    I b[4];
    for (int i = 0; i < 4; i++) {
      b[i] = _mm256_load_si256(reinterpret_cast<const __m256i*>(kPlanes.byte[i]));
      b[i] = _mm256_shuffle_epi8(b[i], codes);
    }
    const I low[2] = {_mm256_unpacklo_epi8(b[0], b[1]), _mm256_unpackhi_epi8(b[0], b[1])};
    const I high[2] = {_mm256_unpacklo_epi8(b[2], b[3]), _mm256_unpackhi_epi8(b[2], b[3])};
    for (int i = 0; i < 2; i++) {
      v[2 * i] = _mm256_castsi256_ps(_mm256_unpacklo_epi16(low[i], high[i]));
      v[2 * i + 1] = _mm256_castsi256_ps(_mm256_unpackhi_epi16(low[i], high[i]));
    }
  }
  // Half of a group: the high nibbles of its bytes, then the low ones.
  template <int half>
  static void levels(I words, F* v) {
    by_planes(_mm256_and_si256(half ? words : _mm256_srli_epi16(words, 4), _mm256_set1_epi8(15)), v);
  }
  static constexpr int place(int j, int lane) {
    return 2 * (16 * (lane / 4) + 4 * (j % 4) + lane % 4) + j / 4;
  }
  // The levels of the 32 codes of sixteen bytes, in order.
  static void restore(const uint8_t* p, F* v) {
    const I bytes = _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    const I twice = _mm256_setr_epi8(0, 0, 1, 1, 4, 4, 5, 5, 8, 8, 9, 9, 12, 12, 13, 13,  //
                                     2, 2, 3, 3, 6, 6, 7, 7, 10, 10, 11, 11, 14, 14, 15, 15);
    const I pairs = _mm256_shuffle_epi8(bytes, twice);
    const I high = _mm256_and_si256(_mm256_srli_epi16(pairs, 4), _mm256_set1_epi16(0x000f));
    by_planes(_mm256_or_si256(high, _mm256_and_si256(pairs, _mm256_set1_epi16(0x0f00))), v);
  }

  static I index(const int* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
  static F pick(const float* table, I index) {  // reads 8 floats
    return _mm256_permutevar8x32_ps(_mm256_loadu_ps(table), index);
  }

  // Products of whole numbers of 16 bits: see gemm_int16.inl.
  static constexpr bool multiplies_int16 = true;
  static I pair(const char* p) {  // two of them in every lane
    int word;
    __builtin_memcpy(&word, p, 4);
    return _mm256_set1_epi32(word);
  }
  static void add_products(I& sum, I a, I b) {
    sum = _mm256_add_epi32(sum, _mm256_madd_epi16(a, b));
    asm("" : "+x"(sum));  // or the compiler loads all factors before, and runs out of registers
  }
  static F to_float(I x) { return _mm256_cvtepi32_ps(x); }
  static F as_float(I bits) { return _mm256_castsi256_ps(bits); }
  // Magnitudes compare as their bits do, with what is not finite above all else.
  static I magnitude_bits(F x) { return _mm256_castps_si256(magnitude(x)); }
  static I larger_bits(I a, I b) { return _mm256_max_epi32(a, b); }
  static I largest_bits(I x) {  // in every lane
    x = larger_bits(x, _mm256_permute2x128_si256(x, x, 1));
    x = larger_bits(x, _mm256_shuffle_epi32(x, 0x4e));
    return larger_bits(x, _mm256_shuffle_epi32(x, 0xb1));
  }
  static float first(F x) { return _mm256_cvtss_f32(x); }
  // The least power of two s with x ≤ most s, from the bits of x ≥ 0, and 1 / s. Both are 0 where s
  // would be below 2^least; where x is not finite, s is x, and 1 / s is 0. Without a division: the
  // exponent of s is that of x less that of most, and one more if x has the larger fraction.
  template <int most, int least>
  static F int16_scale(I x, F& inverse) {
    constexpr int log2 = 31 - __builtin_clz(most), fraction = most << (23 - log2) & 0x007fffff;
    const I up = _mm256_add_epi32(x, _mm256_set1_epi32(0x007fffff - fraction));
    const I power = _mm256_and_si256(up, _mm256_set1_epi32(0x7f800000));
    const I scale = _mm256_sub_epi32(power, _mm256_set1_epi32(log2 << 23));
    const I large = _mm256_cmpgt_epi32(scale, _mm256_set1_epi32(((least + 127) << 23) - 1));
    const I infinite = _mm256_cmpgt_epi32(x, _mm256_set1_epi32(0x7f7fffff));
    const I one_over = _mm256_sub_epi32(_mm256_set1_epi32(254 << 23), scale);
    inverse = as_float(_mm256_andnot_si256(infinite, _mm256_and_si256(large, one_over)));
    return as_float(_mm256_blendv_epi8(_mm256_and_si256(large, scale), x, infinite));
  }
  static void store_rounded(char* p, F low, F high) {
    I both = _mm256_packs_epi32(_mm256_cvtps_epi32(low), _mm256_cvtps_epi32(high));
    both = _mm256_permute4x64_epi64(both, 0xd8);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), both);
  }
  // Sixteen numbers of a narrower type, multiplied first where they have fractions.
  static void store_rounded(char* q, const uint16_t* bf16, F factor) {
    const I x = words(reinterpret_cast<const uint8_t*>(bf16)), zero = _mm256_setzero_si256();
    const F low = mul(as_float(_mm256_unpacklo_epi16(zero, x)), factor);
    const F high = mul(as_float(_mm256_unpackhi_epi16(zero, x)), factor);
    const I both = _mm256_packs_epi32(_mm256_cvtps_epi32(low), _mm256_cvtps_epi32(high));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(q), both);
  }
  static void store_rounded(char* q, const int8_t* x) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(x));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(q), _mm256_cvtepi8_epi16(bytes));
  }
  // `largest_bits` of 64 bfloat16.
  static I largest_bits_of_64(const uint16_t* x) {
    const auto* bytes = reinterpret_cast<const uint8_t*>(x);
    const I magnitude = _mm256_set1_epi16(0x7fff);
    I m = _mm256_and_si256(words(bytes), magnitude);
    for (int i = 32; i < 128; i += 32)
      m = _mm256_max_epi16(m, _mm256_and_si256(words(bytes + i), magnitude));
    const __m128i half = _mm_max_epi16(_mm256_castsi256_si128(m), _mm256_extracti128_si256(m, 1));
    const __m128i least = _mm_minpos_epu16(_mm_xor_si128(half, _mm_set1_epi16(-1)));
    return _mm256_set1_epi32(int(~uint32_t(_mm_cvtsi128_si32(least)) << 16));
  }

  // Codes of sixteen bytes, one a byte; the first eight and the third eight in the lower half.
  static I codes_for_whole(const uint8_t* p) {
    const I bytes = _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    const I twice = _mm256_setr_epi8(0, 0, 1, 1, 2, 2, 3, 3, 8, 8, 9, 9, 10, 10, 11, 11,  //
                                     4, 4, 5, 5, 6, 6, 7, 7, 12, 12, 13, 13, 14, 14, 15, 15);
    const I pairs = _mm256_shuffle_epi8(bytes, twice);
    const I high = _mm256_and_si256(_mm256_srli_epi16(pairs, 4), _mm256_set1_epi16(0x000f));
    return _mm256_or_si256(high, _mm256_and_si256(pairs, _mm256_set1_epi16(0x0f00)));
  }
  // 32 levels times `one`: sixteen and the next sixteen.
  template <int one>
  static void whole_levels(I codes, I& first, I& second) {
    static constexpr WholeLevels<one> levels;
    I b[2];
    for (int i = 0; i < 2; i++)
      b[i] = _mm256_shuffle_epi8(
          _mm256_load_si256(reinterpret_cast<const __m256i*>(levels.byte[i])), codes);
    first = _mm256_unpacklo_epi8(b[0], b[1]);
    second = _mm256_unpackhi_epi8(b[0], b[1]);
  }
  template <int most>
  static void store_levels(char* to, const uint8_t* codes) {  // 32 numbers
    I first, second;
    whole_levels<most>(codes_for_whole(codes), first, second);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), first);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to) + 1, second);
  }

  // q = round(most level share), by the instruction that gives (a b + 2^14) >> 15: a is level times
  // kLevelOne, b the share times most and kShareOne.
  static constexpr int kLevelOne = 16384, kShareOne = 32768 / kLevelOne;
  static I shares(float even, float odd) {
    const int low = _mm_cvtss_si32(_mm_set_ss(even)), high = _mm_cvtss_si32(_mm_set_ss(odd));
    return _mm256_set1_epi32(int(uint32_t(high) << 16 | (uint32_t(low) & 0xffff)));
  }
  // 32 columns of two rows, pair by pair, sixteen to each panel.
  static void store_level_pairs(char* first, char* second, const uint8_t* even, const uint8_t* odd,
                                I shares) {
    I a[2], b[2];
    whole_levels<kLevelOne>(codes_for_whole(even), a[0], a[1]);
    whole_levels<kLevelOne>(codes_for_whole(odd), b[0], b[1]);
    for (int i = 0; i < 2; i++) {
      const I low = _mm256_mulhrs_epi16(_mm256_unpacklo_epi16(a[i], b[i]), shares);
      const I high = _mm256_mulhrs_epi16(_mm256_unpackhi_epi16(a[i], b[i]), shares);
      auto* to = reinterpret_cast<__m256i*>(i ? second : first);
      _mm256_storeu_si256(to, _mm256_permute2x128_si256(low, high, 0x20));
      _mm256_storeu_si256(to + 1, _mm256_permute2x128_si256(low, high, 0x31));
    }
  }
  static void store_pairs(char* p, F even, F odd) {
    I high = _mm256_slli_epi32(_mm256_cvtps_epi32(odd), 16);
    I words = _mm256_blend_epi16(_mm256_cvtps_epi32(even), high, 0xaa);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), words);
  }

  static F magnitude(F x) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), x); }
  // b where either is NaN
  static F max(F a, F b) { return _mm256_max_ps(a, b); }
  static float largest(F x) {
    __m128 s = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    s = _mm_max_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_max_ss(s, _mm_movehdup_ps(s)));
  }
  static bool any_nan(F x) { return _mm256_movemask_ps(_mm256_cmp_ps(x, x, _CMP_UNORD_Q)) != 0; }

  static constexpr bool has_bins = false;  // see simd_avx512.hpp
  // 2 * q + (x > table[q]), for tables of so many entries; four are in reach of a cheaper permute.
  template <int entries>
  static I descend(I q, F x, const float* table) {
    F bound = _mm256_set1_ps(table[0]);
    if (entries > 4) bound = _mm256_permutevar8x32_ps(_mm256_load_ps(table), q);
    else if (entries > 1)
      bound = _mm256_permutevar_ps(_mm256_broadcast_ps(reinterpret_cast<const __m128*>(table)), q);
    I above = _mm256_castps_si256(_mm256_cmp_ps(x, bound, _CMP_GT_OQ));  // -1 where above
    return _mm256_sub_epi32(_mm256_add_epi32(q, q), above);
  }
  static I zero_index() { return _mm256_setzero_si256(); }
  static void store_codes(uint8_t* p, I q) {  // four bytes
    __m256i pair = _mm256_or_si256(_mm256_slli_epi64(q, 4), _mm256_srli_epi64(q, 32));
    const __m256i first = _mm256_setr_epi8(0, 8, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1,
                                           -1, -1, 0, 8, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1,
                                           -1, -1, -1, -1);
    pair = _mm256_shuffle_epi8(pair, first);
    int low = _mm_cvtsi128_si32(_mm256_castsi256_si128(pair));
    int high = _mm_cvtsi128_si32(_mm256_extracti128_si256(pair, 1));
    int both = low | (high << 16);
    __builtin_memcpy(p, &both, 4);
  }

  static constexpr bool stores_four = true;
  static void store_codes(uint8_t* p, I a, I b, I c, I d) {  // sixteen bytes
    // Bytes of the four, lane by lane; then pairs of them make one, the first in its high half.
    I bytes = _mm256_packus_epi16(_mm256_packus_epi32(a, b), _mm256_packus_epi32(c, d));
    I pairs = _mm256_maddubs_epi16(bytes, _mm256_set1_epi16(0x0110));
    pairs = _mm256_packus_epi16(pairs, pairs);
    __m128i lanes = _mm_unpacklo_epi16(_mm256_castsi256_si128(pairs),
                                       _mm256_extracti128_si256(pairs, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), lanes);
  }

  // dst[j][i] = src[i][j], 8 x 8.
  static void transpose(const float* src, int64_t ls, float* dst, int64_t ld) {
    __m256 r[8], t[8];
    for (int i = 0; i < 8; i++) r[i] = _mm256_loadu_ps(src + i * ls);
    for (int i = 0; i < 8; i += 2) {
      t[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
      t[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
    }
    for (int i = 0; i < 8; i += 4) {
      for (int k = 0; k < 2; k++) {
        r[i + 2 * k] = _mm256_shuffle_ps(t[i + k], t[i + 2 + k], 0x44);
        r[i + 2 * k + 1] = _mm256_shuffle_ps(t[i + k], t[i + 2 + k], 0xee);
      }
    }
    for (int k = 0; k < 4; k++) {
      _mm256_storeu_ps(dst + k * ld, _mm256_permute2f128_ps(r[k], r[k + 4], 0x20));
      _mm256_storeu_ps(dst + (k + 4) * ld, _mm256_permute2f128_ps(r[k], r[k + 4], 0x31));
    }
  }
};

}  // namespace
}  // namespace graftlm
