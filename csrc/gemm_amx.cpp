// Tile products on AMX: bfloat16 factors, float32 sums, sixteen rows by sixteen columns by 32 deep an
// instruction.
//
//     A   groups of 16 rows:     [plane][depth / 32][16 rows][32]          one tile is 1 KB
//     B   groups of 16 columns:  [plane][depth / 32][16 pairs][16 columns][2]
//
// One plane holds factors rounded to bfloat16. Two planes hold x = high + low, both bfloat16, which
// keeps 16 bits of the mantissa; the product is then high·high + high·low + low·high, and what is
// dropped is below 2^-16 of each term. Two by two tiles of C stay in registers.
#include <immintrin.h>

#include "gemm.hpp"
#include "kernels.hpp"

namespace graftlm {
namespace {

constexpr int64_t kTile = 512;  // bfloat16 elements of a tile
constexpr int kRows = 16, kDeep = 32;

struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// The tiles may be another library's on this thread (oneDNN's): leave its shape as it was.
struct Tiles {
  TileConfig before;
  Tiles() {
    static constexpr TileConfig ours;
    _tile_storeconfig(&before);
    _tile_loadconfig(&ours);
  }
  ~Tiles() {
    if (before.palette) _tile_loadconfig(&before);
    else _tile_release();
  }
};

inline __m512i round2(__m512 low, __m512 high) {  // 32 bfloat16, `low` first
  return (__m512i)_mm512_cvtne2ps_pbh(high, low);
}
inline __m512 widen_low(__m512i x) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm512_castsi512_si256(x)), 16));
}
inline __m512 widen_high(__m512i x) {
  return _mm512_castsi512_ps(
      _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(x, 1)), 16));
}

// Up to 32 floats, zeros beyond `n`, as bfloat16; `rest` gets what the rounding left off.
template <int planes>
inline void split(const float* src, int64_t n, __m512i (&out)[planes]) {
  const uint32_t mask = n >= kDeep ? 0xffffffffu : n <= 0 ? 0u : (1u << n) - 1;
  __m512 low = _mm512_maskz_loadu_ps(__mmask16(mask), src);
  __m512 high = _mm512_maskz_loadu_ps(__mmask16(mask >> 16), src + 16);
  out[0] = round2(low, high);
  if constexpr (planes == 2)
    out[1] = round2(_mm512_sub_ps(low, widen_low(out[0])), _mm512_sub_ps(high, widen_high(out[0])));
}

inline int64_t steps_of(int64_t depth) { return (depth + kDeep - 1) / kDeep; }

template <int planes>
void pack_a(const float* src, int64_t ld, int64_t rows, int64_t depth, void* a) {
  const int64_t steps = steps_of(depth), plane = steps * kTile;
  for (int64_t r0 = 0; r0 < rows; r0 += kRows) {
    uint16_t* group = static_cast<uint16_t*>(a) + r0 / kRows * planes * plane;
    for (int r = 0; r < kRows; r++)
      for (int64_t s = 0; s < steps; s++) {
        __m512i v[planes] = {};
        if (r0 + r < rows) split(src + (r0 + r) * ld + s * kDeep, depth - s * kDeep, v);
        for (int p = 0; p < planes; p++)
          _mm512_store_si512(group + p * plane + s * kTile + r * kDeep, v[p]);
      }
  }
}

// 16 x 16 words, in place.
inline void transpose(__m512i (&r)[16]) {
  __m512i t[16];
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
  }
  for (int i = 0; i < 16; i += 4)
    for (int k = 0; k < 2; k++) {
      r[i + 2 * k] = _mm512_unpacklo_epi64(t[i + k], t[i + 2 + k]);
      r[i + 2 * k + 1] = _mm512_unpackhi_epi64(t[i + k], t[i + 2 + k]);
    }
  for (int k = 0; k < 4; k++) {
    t[k] = _mm512_shuffle_i32x4(r[k], r[k + 4], 0x88);
    t[k + 4] = _mm512_shuffle_i32x4(r[k], r[k + 4], 0xdd);
    t[k + 8] = _mm512_shuffle_i32x4(r[k + 8], r[k + 12], 0x88);
    t[k + 12] = _mm512_shuffle_i32x4(r[k + 8], r[k + 12], 0xdd);
  }
  for (int k = 0; k < 8; k++) {
    r[k] = _mm512_shuffle_i32x4(t[k], t[k + 8], 0x88);
    r[k + 8] = _mm512_shuffle_i32x4(t[k], t[k + 8], 0xdd);
  }
}

template <int planes>
void pack_bt(const float* src, int64_t ld, int64_t cols, int64_t depth, void* b) {
  const int64_t steps = steps_of(depth), plane = steps * kTile;
  for (int64_t c0 = 0; c0 < cols; c0 += kRows) {
    uint16_t* group = static_cast<uint16_t*>(b) + c0 / kRows * planes * plane;
    for (int64_t s = 0; s < steps; s++) {
      __m512i words[planes][16] = {};
      for (int c = 0; c < kRows && c0 + c < cols; c++) {
        __m512i v[planes];
        split(src + (c0 + c) * ld + s * kDeep, depth - s * kDeep, v);
        for (int p = 0; p < planes; p++) words[p][c] = v[p];
      }
      for (int p = 0; p < planes; p++) {
        transpose(words[p]);
        for (int i = 0; i < 16; i++)
          _mm512_store_si512(group + p * plane + s * kTile + i * kDeep, words[p][i]);
      }
    }
  }
}

template <int planes>
void pack_b(const float* src, int64_t ld, int64_t first, int64_t count, int64_t depth, int64_t cols,
            void* b) {
  // Columns 0-15 of two rows become sixteen pairs.
  alignas(64) static constexpr uint16_t weave[32] = {
      0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23,
      8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  const __m512i order = _mm512_load_si512(weave);
  const int64_t plane = steps_of(depth) * kTile, padded = (count + kDeep - 1) / kDeep * kDeep;
  for (int64_t c0 = 0; c0 < cols; c0 += kRows) {
    uint16_t* group = static_cast<uint16_t*>(b) + c0 / kRows * planes * plane + first / kDeep * kTile;
    const auto mask = __mmask16(cols - c0 >= kRows ? 0xffff : (1u << (cols - c0)) - 1);
    for (int64_t p = 0; p < padded; p += 2) {
      const float* row = src + p * ld + c0;
      __m512 even = _mm512_maskz_loadu_ps(p < count ? mask : 0, p < count ? row : src);
      __m512 odd = _mm512_maskz_loadu_ps(p + 1 < count ? mask : 0, p + 1 < count ? row + ld : src);
      __m512i v = round2(even, odd);
      uint16_t* dst = group + p / kDeep * kTile + p % kDeep / 2 * kDeep;
      _mm512_store_si512(dst, _mm512_permutexvar_epi16(order, v));
      if constexpr (planes == 2) {
        v = round2(_mm512_sub_ps(even, widen_low(v)), _mm512_sub_ps(odd, widen_high(v)));
        _mm512_store_si512(dst + plane, _mm512_permutexvar_epi16(order, v));
      }
    }
  }
}

template <int R, int V>
inline void accumulate(int64_t steps, const uint16_t* a, int64_t next_a, const uint16_t* b,
                       int64_t next_b) {
  for (int64_t s = 0; s < steps; s++, a += kTile, b += kTile) {
    _tile_loadd(4, a, 64);
    _tile_loadd(6, b, 64);
    _tile_dpbf16ps(0, 4, 6);
    if constexpr (V == 2) {
      _tile_loadd(7, b + next_b, 64);
      _tile_dpbf16ps(1, 4, 7);
    }
    if constexpr (R == 2) {
      _tile_loadd(5, a + next_a, 64);
      _tile_dpbf16ps(2, 5, 6);
      if constexpr (V == 2) _tile_dpbf16ps(3, 5, 7);
    }
  }
}

inline void add_tile(const float* tile, float* c, int64_t ldc) {
  for (int r = 0; r < kRows; r++, tile += 16, c += ldc)
    _mm512_storeu_ps(c, _mm512_add_ps(_mm512_loadu_ps(c), _mm512_load_ps(tile)));
}

// R x V tiles of C; `planes` decides which products are summed.
template <int planes, int R, int V>
void micro(int64_t steps, const uint16_t* a, const uint16_t* b, float* c, int64_t ldc) {
  const int64_t plane = steps * kTile, next = planes * plane;
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  if constexpr (planes == 2) {
    accumulate<R, V>(steps, a + plane, next, b, next);
    accumulate<R, V>(steps, a, next, b + plane, next);
  }
  accumulate<R, V>(steps, a, next, b, next);
  alignas(64) float out[4][256];
  _tile_stored(0, out[0], 64);
  add_tile(out[0], c, ldc);
  if constexpr (V == 2) {
    _tile_stored(1, out[1], 64);
    add_tile(out[1], c + 16, ldc);
  }
  if constexpr (R == 2) {
    _tile_stored(2, out[2], 64);
    add_tile(out[2], c + 16 * ldc, ldc);
    if constexpr (V == 2) {
      _tile_stored(3, out[3], 64);
      add_tile(out[3], c + 16 * ldc + 16, ldc);
    }
  }
}

template <int planes>
void multiply(int64_t rows, int64_t cols, int64_t depth, const void* a, const void* b, float* c,
              int64_t ldc) {
  Tiles tiles;
  const int64_t steps = steps_of(depth), group = planes * steps * kTile, bytes = 2 * group * 2;
  for (int64_t j = 0; j < cols; j += 32) {
    const uint16_t* pb = static_cast<const uint16_t*>(b) + j / kRows * group;
    // The next panel is brought nearer a slice at a time, or its first use would wait for it.
    const char* next = reinterpret_cast<const char*>(pb) + bytes;
    const int64_t slice = j + 32 < cols ? (bytes * 32 / (rows + 31) + 63) / 64 * 64 : 0;
    for (int64_t i = 0; i < rows; i += 32, next += slice) {
      for (int64_t line = 0; line < slice; line += 64) __builtin_prefetch(next + line, 0, 2);
      const uint16_t* pa = static_cast<const uint16_t*>(a) + i / kRows * group;
      for (int64_t k = 0; j == 0 && k < 2 * group; k += 32)
        __builtin_prefetch(pa + 2 * group + k, 0, 2);
      float* pc = c + i * ldc + j;
      const bool two_rows = rows - i > kRows, two_cols = cols - j > kRows;
      if (two_rows && two_cols) micro<planes, 2, 2>(steps, pa, pb, pc, ldc);
      else if (two_rows) micro<planes, 2, 1>(steps, pa, pb, pc, ldc);
      else if (two_cols) micro<planes, 1, 2>(steps, pa, pb, pc, ldc);
      else micro<planes, 1, 1>(steps, pa, pb, pc, ldc);
    }
  }
}

template <int planes>
constexpr Gemm make_gemm(const char* name, int64_t depth_block) {
  return Gemm{name, kRows, kRows, kDeep, 2 * kDeep * planes, depth_block, false, 384, 384,
              pack_a<planes>, pack_b<planes>, pack_bt<planes>, nullptr, nullptr, nullptr,
              multiply<planes>};
}

}  // namespace

const Gemm& amx_bf16() {
  static constexpr Gemm gemm = make_gemm<1>("amx bf16", 384);
  return gemm;
}

const Gemm& amx_bf16x3() {
  static constexpr Gemm gemm = make_gemm<2>("amx bf16x3", 256);
  return gemm;
}

}  // namespace graftlm
