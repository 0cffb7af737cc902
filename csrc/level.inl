// The kernels of one level, written once over `Simd` and compiled once for each instruction set.
// Everything is internal to the including file and uses nothing from the standard library: a
// template shared with another file could be linked from the copy that needs the newer CPU.
#include "cross_entropy.inl"
#include "kernels.hpp"
#include "scalar.hpp"

namespace graftlm {
namespace {

using F = Simd::F;
using I = Simd::I;
constexpr int W = Simd::width;

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

// ---------------------------------------------------------------- 16-bit types

struct Float32 {
  using type = float;
  static float get(float x) { return x; }
  static float put(float x) { return x; }
  static F load(const float* p) { return Simd::load(p); }
  static void store(float* p, F x) { Simd::store(p, x); }
  static void stream(float* p, F x) { Simd::stream(p, x); }
};
struct BFloat16 {
  using type = uint16_t;
  static float get(uint16_t x) { return from_bf16(x); }
  static uint16_t put(float x) { return to_bf16(x); }
  static F load(const uint16_t* p) { return Simd::load_bf16(p); }
  static void store(uint16_t* p, F x) { Simd::store_bf16(p, x); }
  static void stream(uint16_t* p, F x) { Simd::stream_bf16(p, x); }
};
struct Float16 {
  using type = uint16_t;
  static float get(uint16_t x) { return from_f16(x); }
  static uint16_t put(float x) { return to_f16(x); }
  static F load(const uint16_t* p) { return Simd::load_f16(p); }
  static void store(uint16_t* p, F x) { Simd::store_f16(p, x); }
  static void stream(uint16_t* p, F x) { Simd::stream_f16(p, x); }
};

struct Int8 {
  using type = int8_t;
  static float get(int8_t x) { return x; }
  static F load(const int8_t* p) { return Simd::load_i8(p); }
};

template <class T>
void to_float_as(const void* src, int64_t n, float* dst) {
  const auto* s = static_cast<const typename T::type*>(src);
  int64_t i = 0;
  for (; i + W <= n; i += W) Simd::store(dst + i, T::load(s + i));
  for (; i < n; i++) dst[i] = T::get(s[i]);
}

template <class T>
void from_float_as(const float* src, int64_t n, void* dst) {
  auto* d = static_cast<typename T::type*>(dst);
  int64_t i = 0;
  for (; i + W <= n; i += W) T::store(d + i, Simd::load(src + i));
  for (; i < n; i++) d[i] = T::put(src[i]);
}

void to_float(const void* src, DType type, int64_t n, float* dst) {
  if (type == DType::f32) return to_float_as<Float32>(src, n, dst);
  if (type == DType::bf16) return to_float_as<BFloat16>(src, n, dst);
  if (type == DType::i8) return to_float_as<Int8>(src, n, dst);
  to_float_as<Float16>(src, n, dst);
}

void from_float(const float* src, int64_t n, void* dst, DType type) {
  if (type == DType::f32) return from_float_as<Float32>(src, n, dst);
  if (type == DType::bf16) return from_float_as<BFloat16>(src, n, dst);
  from_float_as<Float16>(src, n, dst);
}

void transpose(const float* src, int64_t ls, int64_t rows, int64_t cols, float* dst, int64_t ld) {
  const int64_t R = rows / W * W, C = cols / W * W;
  for (int64_t i = 0; i < R; i += W)
    for (int64_t j = 0; j < C; j += W) Simd::transpose(src + i * ls + j, ls, dst + j * ld + i, ld);
  for (int64_t i = 0; i < rows; i++)
    for (int64_t j = i < R ? C : 0; j < cols; j++) dst[j * ld + i] = src[i * ls + j];
}

// ---------------------------------------------------------------- quantise

// The code of a scaled value by four comparisons: each table holds the thresholds that halve what
// the comparisons before it have left.
struct Thresholds {
  alignas(32) float step[4][8] = {};
  constexpr Thresholds() {
    for (int depth = 0; depth < 4; depth++)
      for (int q = 0; q < (1 << depth); q++)
        step[depth][q] = threshold((16 >> depth) * q + (8 >> depth) - 1);
  }
};
constexpr Thresholds kThresholds;

inline int code_of(float scaled) {
  int q = 0;
  for (const auto& table : kThresholds.step) q = 2 * q + (scaled > table[q]);
  return q;
}

template <class S>  // a template, for the way not taken is not compiled then
inline typename S::I codes_of(typename S::F v) {
  if constexpr (S::has_bins) {
    return S::code_by_bin(v);
  } else {
    auto q = S::zero_index();
    q = S::template descend<1>(q, v, kThresholds.step[0]);
    q = S::template descend<2>(q, v, kThresholds.step[1]);
    q = S::template descend<4>(q, v, kThresholds.step[2]);
    return S::template descend<8>(q, v, kThresholds.step[3]);
  }
}

// Stores as many codes as can be in large pieces; gives the first one left.
template <class S, class Code>
inline int64_t store_many(uint8_t* codes, int64_t n, Code code) {
  int64_t i = 0;
  if constexpr (S::stores_four)
    for (; i + 4 * W <= n; i += 4 * W)
      S::store_codes(codes + i / 2, code(i), code(i + W), code(i + 2 * W), code(i + 3 * W));
  return i;
}

template <class T>
void quantize_block(const typename T::type* x, int64_t n, bool whole, uint8_t* codes,
                    float* absmax) {
  F peak = Simd::zero(), nan = Simd::zero();
  int64_t i = 0;
  for (; i + W <= n; i += W) {
    F v = Simd::magnitude(T::load(x + i));
    peak = Simd::max(peak, v);
    nan = Simd::add(nan, v);  // NaN if any is; an infinity is found in the maximum
  }
  float m = Simd::any_nan(nan) ? __builtin_nanf("") : Simd::largest(peak);
  for (int64_t j = i; j < n; j++) {
    float v = __builtin_fabsf(T::get(x[j]));
    if (!(v <= m)) m = v;
  }
  float held = m < kSmallestAbsmax ? kSmallestAbsmax : m;
  *absmax = whole ? m : held;
  // bitsandbytes multiplies a whole block by the reciprocal and divides a short last one.
  float factor = 1.0f / held;
  auto code = [&](int64_t at) {
    const F v = T::load(x + at);
    return codes_of<Simd>(whole ? Simd::mul(v, Simd::set1(factor)) : Simd::div(v, Simd::set1(held)));
  };
  for (i = store_many<Simd>(codes, n, code); i + W <= n; i += W) Simd::store_codes(codes + i / 2, code(i));
  for (; i < n; i += 2) {
    float a = T::get(x[i]), b = i + 1 < n ? T::get(x[i + 1]) : 0.0f;
    int high = code_of(whole ? a * factor : a / held);
    int low = i + 1 < n ? code_of(whole ? b * factor : b / held) : kZeroCode;
    codes[i / 2] = uint8_t(high << 4 | low);
  }
}

constexpr int64_t kQuantizeAhead = 2048;  // bytes

template <class T>
void quantize_as(const void* src, int64_t numel, int64_t first, int64_t last, int64_t block,
                 uint8_t* codes, float* absmax) {
  const auto* x = static_cast<const typename T::type*>(src);
  for (int64_t b = first; b < last; b++) {
    int64_t start = b * block, n = smaller(block, numel - start);
    // The second look at a block finds it in the cache, the first one waits: ask for it in time.
    const char* ahead = reinterpret_cast<const char*>(x + start) + kQuantizeAhead;
    for (int64_t i = 0; i < block * int64_t(sizeof(*x)); i += 64) __builtin_prefetch(ahead + i);
    quantize_block<T>(x + start, n, n == block, codes + start / 2, absmax + b);
  }
}

void quantize(const void* src, DType type, int64_t numel, int64_t first, int64_t last,
              int64_t block, uint8_t* codes, float* absmax) {
  if (type == DType::f32) return quantize_as<Float32>(src, numel, first, last, block, codes, absmax);
  if (type == DType::bf16)
    return quantize_as<BFloat16>(src, numel, first, last, block, codes, absmax);
  quantize_as<Float16>(src, numel, first, last, block, codes, absmax);
}

// ---------------------------------------------------------------- dequantise

// Restores as many codes from [i, stop) as can be in large pieces; gives the first one left.
template <class S, class Put>  // a template, for the way not taken is not compiled then
inline int64_t restore_many(const uint8_t* codes, int64_t i, int64_t stop, Put put) {
  if constexpr (S::has_planes) {
    for (; i + 4 * W <= stop; i += 4 * W) {
      typename S::F v[4];
      S::restore(codes + (i >> 1), v);
      for (auto level : v) put(level);
    }
  }
  return i;
}

// Elements [i, stop) of one block. An odd start splits a byte, so it goes alone.
template <class T, bool streaming>
void dequantize_run(const Weight& w, int64_t i, int64_t stop, float scale, typename T::type* dst) {
  if (i < stop && (i & 1)) *dst++ = T::put(kLevels[w.code(i++)] * scale);
  const F s = Simd::set1(scale);
  auto put = [&](F level) {
    const F v = Simd::mul(level, s);
    if constexpr (streaming) T::stream(dst, v);
    else T::store(dst, v);
    dst += W;
  };
  i = restore_many<Simd>(w.codes, i, stop, put);
  for (; i + W <= stop; i += W) put(Simd::lookup(Simd::codes(w.codes + (i >> 1))));
  for (; i < stop; i++) *dst++ = T::put(kLevels[w.code(i)] * scale);
}

template <class T, bool streaming>
void dequantize_range(const Weight& w, int64_t start, int64_t count, typename T::type* dst) {
  const int64_t end = start + count;
  for (int64_t i = start; i < end;) {
    int64_t b = i >> w.block_shift, stop = smaller(end, (b + 1) << w.block_shift);
    dequantize_run<T, streaming>(w, i, stop, w.scale(b), dst + (i - start));
    i = stop;
  }
}

template <class T>
void dequantize_as(const Weight& w, int64_t start, int64_t count, void* dst) {
  auto* d = static_cast<typename T::type*>(dst);
  // Blocks are whole vectors, so that a start on a block keeps every vector of it aligned.
  constexpr uintptr_t vector = sizeof(typename T::type) * W;
  bool aligned = reinterpret_cast<uintptr_t>(d) % vector == 0 && start % w.block() == 0;
  if (!aligned) return dequantize_range<T, false>(w, start, count, d);
  dequantize_range<T, true>(w, start, count, d);
  Simd::fence();
}

void dequantize(const Weight& w, int64_t start, int64_t count, void* dst, DType type) {
  if (type == DType::f32) return dequantize_as<Float32>(w, start, count, dst);
  if (type == DType::bf16) return dequantize_as<BFloat16>(w, start, count, dst);
  dequantize_as<Float16>(w, start, count, dst);
}

void dequantize_tile(const Weight& w, int64_t start, int64_t count, float* dst) {
  dequantize_range<Float32, false>(w, start, count, dst);
}

// ---------------------------------------------------------------- a few rows: straight from codes
//
// A group is one vector of codes, 8 W of them, and becomes eight vectors of levels, in whatever order
// is cheapest; x is put in that order beforehand. Commonly: shifting the codes' 32-bit words by 4 j
// bits leaves the j-th nibble of each in the low bits, where the lookup wants it, so that no code is
// moved between lanes. Lane l then holds element 8 l + (j ^ 1) of the group (the high nibble comes
// first). A block's scale multiplies the sum over its lanes, not each weight.

constexpr int kGroup = 8 * W;

template <class S>
constexpr int group_place(int j, int lane) {
  if constexpr (S::has_planes) return S::place(j, lane);
  else return 8 * lane + (j ^ 1);
}

template <class S, int half>
inline void group_levels(typename S::I words, typename S::F* v) {
  if constexpr (S::has_planes) {
    S::template levels<half>(words, v);
  } else {
    v[0] = S::lookup(S::template shift<16 * half>(words));
    v[1] = S::lookup(S::template shift<16 * half + 4>(words));
    v[2] = S::lookup(S::template shift<16 * half + 8>(words));
    v[3] = S::lookup(S::template shift<16 * half + 12>(words));
  }
}

int64_t gemv_stride(int64_t cols) { return (cols + kGroup - 1) / kGroup * kGroup; }

void gemv_pack(const float* x, int64_t cols, float* packed) {
  for (int64_t g = 0; g < cols; g += kGroup)
    for (int j = 0; j < 8; j++)
      for (int l = 0; l < W; l++) {
        int64_t k = g + group_place<Simd>(j, l);
        *packed++ = k < cols ? x[k] : 0.0f;
      }
}

template <int M, int half>
inline void gemv_half(I words, const float* x, int64_t stride, F* part) {
  F v[4];
  group_levels<Simd, half>(words, v);
  for (int j = 0; j < 4; j++)
    for (int m = 0; m < M; m++)
      part[m] = Simd::fma(v[j], Simd::load(x + m * stride + (4 * half + j) * W), part[m]);
}

template <int M>
inline void gemv_group(I words, F scale, const float* x, int64_t stride, F* total) {
  F part[M];
  for (int m = 0; m < M; m++) part[m] = Simd::zero();
  gemv_half<M, 0>(words, x, stride, part);
  if constexpr (M <= 2) {  // registers are left for a second chain of sums: one would be waited for
    F more[M];
    for (int m = 0; m < M; m++) more[m] = Simd::zero();
    gemv_half<M, 1>(words, x, stride, more);
    for (int m = 0; m < M; m++) part[m] = Simd::add(part[m], more[m]);
  } else {
    gemv_half<M, 1>(words, x, stride, part);
  }
  for (int m = 0; m < M; m++) total[m] = Simd::fma(part[m], scale, total[m]);
}

// x is taken in pieces that stay in the nearer caches while all rows of the tile pass by.
constexpr int64_t kGemvBytes = 65536;
constexpr int64_t kGemvAhead = 2048;  // bytes of codes asked for before they are used

template <int M>
void gemv_rows(const Weight& w, int64_t first, int64_t last, const float* x, int64_t stride,
               float* y, int64_t ldy) {
  constexpr int64_t chunk = kGemvBytes / (4 * M) / kGroup * kGroup;
  float scales[kGemvBytes / 4 / 32 + W];
  int lane_block[W];
  for (int l = 0; l < W; l++) lane_block[l] = group_place<Simd>(0, l) >> w.block_shift;
  const I lanes = Simd::index(lane_block);
  const bool one_scale = w.block() >= kGroup;
  for (int64_t k0 = 0; k0 < w.cols; k0 += chunk) {
    const int64_t k1 = smaller(w.cols, k0 + chunk);
    for (int64_t n = first; n < last; n++) {
      const int64_t start = n * w.cols + k0, b0 = start >> w.block_shift;
      const int64_t blocks = ((n * w.cols + k1 - 1) >> w.block_shift) - b0 + 1;
      for (int64_t b = 0; b < blocks; b++) scales[b] = w.scale(b0 + b);
      for (int i = 0; i < W; i++) scales[blocks + i] = 0.0f;
      const uint8_t* codes = w.codes + (start >> 1);
      const int64_t inside = start & (w.block() - 1);  // a block may be longer than a chunk
      F total[M];
      for (int m = 0; m < M; m++) total[m] = Simd::zero();
      int64_t k = 0;
      for (; k + kGroup <= k1 - k0; k += kGroup) {
        __builtin_prefetch(codes + (k >> 1) + kGemvAhead);
        const float* s = scales + ((inside + k) >> w.block_shift);
        F scale = one_scale ? Simd::set1(*s) : Simd::pick(s, lanes);
        gemv_group<M>(Simd::words(codes + (k >> 1)), scale, x + k0 + k, stride, total);
      }
      if (k < k1 - k0) {
        uint8_t rest[kGroup / 2] = {};
        for (int64_t i = 0; i < (k1 - k0 - k) / 2; i++) rest[i] = codes[(k >> 1) + i];
        F scale = Simd::pick(scales + ((inside + k) >> w.block_shift), lanes);
        gemv_group<M>(Simd::words(rest), scale, x + k0 + k, stride, total);
      }
      for (int m = 0; m < M; m++) {
        float sum = Simd::sum(total[m]);
        float* out = y + m * ldy + n;
        *out = k0 ? *out + sum : sum;
      }
    }
  }
}

void gemv(const Weight& w, int64_t first, int64_t last, const float* x, int64_t stride, int rows,
          float* y, int64_t ldy) {
  switch (rows) {
    case 1: return gemv_rows<1>(w, first, last, x, stride, y, ldy);
    case 2: return gemv_rows<2>(w, first, last, x, stride, y, ldy);
    case 3: return gemv_rows<3>(w, first, last, x, stride, y, ldy);
    case 4: return gemv_rows<4>(w, first, last, x, stride, y, ldy);
    case 5: return gemv_rows<5>(w, first, last, x, stride, y, ldy);
    case 6: return gemv_rows<6>(w, first, last, x, stride, y, ldy);
    case 7: return gemv_rows<7>(w, first, last, x, stride, y, ldy);
    default: return gemv_rows<8>(w, first, last, x, stride, y, ldy);
  }
}

// y[m][n] = x[m] · w[n] for rows [first, last) of a dense weight.
template <class T, int M>
void dense_rows(const void* w_, int64_t first, int64_t last, int64_t cols, const float* x, float* y,
                int64_t ldy) {
  for (int64_t n = first; n < last; n++) {
    const auto* w = static_cast<const typename T::type*>(w_) + n * cols;
    F total[M];
    for (F& sum : total) sum = Simd::zero();
    int64_t k = 0;
    for (; k + W <= cols; k += W) {
      const F v = T::load(w + k);
      for (int m = 0; m < M; m++) total[m] = Simd::fma(v, Simd::load(x + m * cols + k), total[m]);
    }
    for (int m = 0; m < M; m++) {
      float sum = Simd::sum(total[m]);
      for (int64_t i = k; i < cols; i++) sum += T::get(w[i]) * x[m * cols + i];
      y[m * ldy + n] = sum;
    }
  }
}

template <class T>
void dense_gemv_as(const void* w, int64_t first, int64_t last, int64_t cols, const float* x,
                   int rows, float* y, int64_t ldy) {
  for (; rows >= 8; rows -= 8, x += 8 * cols, y += 8 * ldy)
    dense_rows<T, 8>(w, first, last, cols, x, y, ldy);
  if (rows >= 4) {
    dense_rows<T, 4>(w, first, last, cols, x, y, ldy);
    rows -= 4, x += 4 * cols, y += 4 * ldy;
  }
  for (; rows; rows--, x += cols, y += ldy) dense_rows<T, 1>(w, first, last, cols, x, y, ldy);
}

void dense_gemv(const void* w, DType type, int64_t first, int64_t last, int64_t cols,
                const float* x, int rows, float* y, int64_t ldy) {
  switch (type) {
    case DType::f32: return dense_gemv_as<Float32>(w, first, last, cols, x, rows, y, ldy);
    case DType::bf16: return dense_gemv_as<BFloat16>(w, first, last, cols, x, rows, y, ldy);
    case DType::f16: return dense_gemv_as<Float16>(w, first, last, cols, x, rows, y, ldy);
    case DType::i8: return dense_gemv_as<Int8>(w, first, last, cols, x, rows, y, ldy);
  }
}

float dot(const float* a, const float* b, int64_t n) {
  F total = Simd::zero();
  int64_t i = 0;
  for (; i + W <= n; i += W) total = Simd::fma(Simd::load(a + i), Simd::load(b + i), total);
  float sum = Simd::sum(total);
  for (; i < n; i++) sum += a[i] * b[i];
  return sum;
}

// ---------------------------------------------------------------- tile product
//
// A stays row-major, its elements broadcast; B is cut into panels of `panel` columns, each panel
// contiguous by depth; C of one panel and `micro_rows` rows stays in registers. What is float32's
// alone is here, what is of rounded factors in gemm_int16.inl.

constexpr int kPanel = Simd::micro_vectors * W;

void pack_a(const float* src, int64_t ld, int64_t rows, int64_t depth, void* a) {
  float* dst = static_cast<float*>(a);
  for (int64_t r = 0; r < rows; r++) to_float_as<Float32>(src + r * ld, depth, dst + r * depth);
}

void pack_b(const float* src, int64_t ld, int64_t first, int64_t count, int64_t depth, int64_t cols,
            void* b) {
  for (int64_t c = 0; c < cols; c += kPanel) {
    float* dst = static_cast<float*>(b) + c * depth + first * kPanel;
    for (int64_t p = 0; p < count; p++, dst += kPanel) {
      const float* s = src + p * ld + c;
      if (c + kPanel <= cols) {
        for (int v = 0; v < kPanel; v += W) Simd::store(dst + v, Simd::load(s + v));
      } else {
        for (int j = 0; j < kPanel; j++) dst[j] = c + j < cols ? s[j] : 0.0f;
      }
    }
  }
}

void pack_bt(const float* src, int64_t ld, int64_t cols, int64_t depth, void* b) {
  for (int64_t c = 0; c < cols; c += kPanel) {
    float* dst = static_cast<float*>(b) + c * depth;
    const int64_t width = smaller(kPanel, cols - c);
    transpose(src + c * ld, ld, width, depth, dst, kPanel);
    for (int64_t p = 0; width < kPanel && p < depth; p++)
      for (int64_t j = width; j < kPanel; j++) dst[p * kPanel + j] = 0.0f;
  }
}

struct Float32Product {
  static constexpr int64_t line_bytes(int64_t depth) { return 4 * depth; }

  template <int R, int V>
  static void micro(int64_t depth, const char* a_, const char* b_, float* c, int64_t ldc) {
    const auto* a = reinterpret_cast<const float*>(a_);
    const auto* b = reinterpret_cast<const float*>(b_);
    F acc[R][V];
    for (int r = 0; r < R; r++)
      for (int v = 0; v < V; v++) acc[r][v] = Simd::zero();
    for (int64_t p = 0; p < depth; p++, b += kPanel) {
      F column[V];
      for (int v = 0; v < V; v++) column[v] = Simd::load(b + v * W);
      for (int r = 0; r < R; r++) {
        F x = Simd::set1(a[r * depth + p]);
        for (int v = 0; v < V; v++) acc[r][v] = Simd::fma(x, column[v], acc[r][v]);
      }
    }
    for (int r = 0; r < R; r++)
      for (int v = 0; v < V; v++) {
        float* out = c + r * ldc + v * W;
        Simd::store(out, Simd::add(Simd::load(out), acc[r][v]));
      }
  }
};

// Bytes wanted soon, brought to the second-level cache a slice at a time between other work: what is
// first used from further away would otherwise hold up the products.
struct Ahead {
  const char* next;
  int64_t slice;
  void fetch() {
    for (int64_t i = 0; i < slice; i += 64) __builtin_prefetch(next + i, 0, 2);
    next += slice;
  }
};

template <class Product, int R, int V>
void micro_rows(int64_t rows, int64_t depth, const char* a, const char* b, float* c, int64_t ldc,
                Ahead panel, Ahead tile) {
  for (; rows >= R; rows -= R, a += R * Product::line_bytes(depth), c += R * ldc) {
    panel.fetch();
    tile.fetch();
    Product::template micro<R, V>(depth, a, b, c, ldc);
  }
  if constexpr (R > 1) {
    constexpr int fewer = R > 8 ? 8 : R > 4 ? 4 : R / 2;
    constexpr Ahead nothing{nullptr, 0};
    if (rows) micro_rows<Product, fewer, V>(rows, depth, a, b, c, ldc, nothing, nothing);
  }
}

// Panel by panel, all rows each; meanwhile the next panel, and with the first one the rows to come.
template <class Product>
void multiply(int64_t rows, int64_t cols, int64_t depth, const void* a, const void* b, float* c,
              int64_t ldc) {
  constexpr int R = Simd::micro_rows, V = Simd::micro_vectors;
  const char* tile = static_cast<const char*>(a);
  const int64_t line = Product::line_bytes(depth), panel_bytes = line * kPanel, step_bytes = line * R;
  for (int64_t j = 0; j < cols; j += kPanel) {
    const char* panel = static_cast<const char*>(b) + j * line;
    Ahead next{panel + panel_bytes, j + kPanel < cols ? panel_bytes * R / larger(rows, R) : 0};
    Ahead below{tile + step_bytes, j ? 0 : step_bytes};
    if (cols - j <= W) micro_rows<Product, R, 1>(rows, depth, tile, panel, c + j, ldc, next, below);
    else micro_rows<Product, R, V>(rows, depth, tile, panel, c + j, ldc, next, below);
  }
}

}  // namespace
}  // namespace graftlm

#include "attention.inl"
#include "elementwise.inl"
#include "gemm_int16.inl"

namespace graftlm {
namespace {

constexpr Gemm float32_product() {
  return Gemm{Simd::name, 1, kPanel, 1, 4, 256, true, 384, 384, pack_a, pack_b, pack_bt,
              nullptr, nullptr, nullptr, multiply<Float32Product>};
}

template <class S>
constexpr Gemm rounded_product() {
  if constexpr (S::multiplies_int16) {
    using P = Int16Product<S>;
    return Gemm{"int16", 1, kPanel, P::kDeep, P::kLine, 512, false, 384, 384,
                P::pack_a, P::pack_b, P::pack_bt, P::pack_a_stored, P::pack_b_stored,
                P::pack_a_dense, multiply<P>};
  } else {
    return float32_product();
  }
}

constexpr Level make_level() {
  return Level{Simd::name, quantize,    dequantize, dequantize_tile, gemv,      gemv_stride,
               gemv_pack,  dense_gemv, dot,         to_float,   from_float,      transpose,
               absorb_logits, gather_rows, rms_norm, rms_norm_backward, gated, gated_backward,
               row_peaks, exp_rows, softmax_slopes,
               float32_product(), rounded_product<Simd>()};
}

}  // namespace
}  // namespace graftlm
