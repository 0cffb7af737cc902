// Tile products of 16-bit whole numbers, over `Simd`.
//
// One instruction multiplies sixteen pairs of them and adds neighbouring products, one more adds to
// the sum: two for sixteen products, as of float32, but the second runs where no product could, and
// factors take half the bytes (measured on Zen 3: 1.1 to 1.3 times as fast). Each line of a factor,
// a row of A or a column of B, is cut along the depth into blocks of 64 numbers that share a scale:
//
//     x ≈ q s,   |q| ≤ 5792: 64 products of such numbers fit 32 bits,   s the least such power of two
//     c += s_a s_b Σ q_a q_b          the sum is exact, a block at a time
//
// A bfloat16 number of at least a sixteenth of the largest in its block is exact, and so are codes of
// 8 bits. Others are off by up to s / 2, 1 / 5792 of the largest. Taken where factors may be rounded
// to bfloat16 (`Compute::bf16`), which costs a sum of like float32 factors eight times as much; but one
// number that dwarfs its block takes bits from the other 63, as bfloat16 does not.
//
//     A   rows:                 [depth / 64] blocks of [64 numbers][scale]
//     B   panels of columns:    [depth / 64] blocks of [32 pairs][columns][2] and [columns] scales
//
// A frozen weight is taken as it is stored where that is shorter. NF4 levels become whole numbers by a
// table. Along a row that is all, for a block of 64 has one maximum already; down the rows its blocks
// have a maximum each, and the greatest of 64 is what they share:
//
//     q = round(5792 level)   s = maximum / 5792        q = round(5792 level · maximum / greatest)
//
// The second is a product of two rounded factors and off by up to s, 1 / 5792 of the greatest.
//
// A block that is not finite has a scale that is not, and so is all that is made of it; the sign of an
// infinity is lost.

namespace graftlm {
namespace {

template <class S>
struct Int16Product {
  using F = typename S::F;
  using I = typename S::I;
  static constexpr int kDeep = 64, kPairs = kDeep / 2;
  static constexpr int kMost = 5792;
  static constexpr int kLeast = -112;  // a block of a scale below two to this counts as zeros
  static constexpr int64_t kScaleAt = 2 * kDeep, kLine = kScaleAt + 4;  // bytes of a block of a line

  static constexpr int64_t blocks(int64_t depth) { return (depth + kDeep - 1) / kDeep; }
  static constexpr int64_t line_bytes(int64_t depth) { return blocks(depth) * kLine; }

  static void put_scale(char* block, float scale) {
    __builtin_memcpy(block + kScaleAt, &scale, sizeof scale);
  }

  // Up to 64 numbers → 64 whole numbers; gives their scale.
  static float round_block(const float* x, int64_t n, char* q) {
    alignas(64) float padded[kDeep];
    if (n < kDeep) {
      for (int64_t i = 0; i < kDeep; i++) padded[i] = i < n ? x[i] : 0.0f;
      x = padded;
    }
    I bits = S::magnitude_bits(S::load(x));
    for (int i = W; i < kDeep; i += W) bits = S::larger_bits(bits, S::magnitude_bits(S::load(x + i)));
    F factor;
    const F scale = S::template int16_scale<kMost, kLeast>(S::largest_bits(bits), factor);
    for (int i = 0; i < kDeep; i += 2 * W)
      S::store_rounded(q + 2 * i, S::mul(S::load(x + i), factor), S::mul(S::load(x + i + W), factor));
    return S::first(scale);
  }

  static void pack_a(const float* src, int64_t ld, int64_t rows, int64_t depth, void* a) {
    char* to = static_cast<char*>(a);
    for (int64_t r = 0; r < rows; r++)
      for (int64_t k = 0; k < depth; k += kDeep, to += kLine) {
        put_scale(to, round_block(src + r * ld + k, smaller(kDeep, depth - k), to));
      }
  }

  static float round_whole(const uint16_t* x, char* q) {  // 64 bfloat16
    F factor;
    const F scale = S::template int16_scale<kMost, kLeast>(S::largest_bits_of_64(x), factor);
    for (int i = 0; i < kDeep; i += 2 * W) S::store_rounded(q + 2 * i, x + i, factor);
    return S::first(scale);
  }
  static float round_whole(const int8_t* x, char* q) {  // whole numbers already
    for (int i = 0; i < kDeep; i += 2 * W) S::store_rounded(q + 2 * i, x + i);
    return 1.0f;
  }

  template <class T>
  static void pack_a_as(const T* src, int64_t ld, int64_t rows, int64_t depth, char* to) {
    for (int64_t r = 0; r < rows; r++)
      for (int64_t k = 0; k < depth; k += kDeep, to += kLine) {
        const T* x = src + r * ld + k;
        T padded[kDeep] = {};
        if (depth - k < kDeep) {
          for (int64_t i = 0; i < depth - k; i++) padded[i] = x[i];
          x = padded;
        }
        put_scale(to, round_whole(x, to));
      }
  }

  static void pack_a_dense(const void* src, DType type, int64_t ld, int64_t rows, int64_t depth,
                           void* a) {
    char* to = static_cast<char*>(a);
    if (type == DType::f32) return pack_a(static_cast<const float*>(src), ld, rows, depth, a);
    if (type == DType::bf16)
      return pack_a_as(static_cast<const uint16_t*>(src), ld, rows, depth, to);
    if (type == DType::i8) return pack_a_as(static_cast<const int8_t*>(src), ld, rows, depth, to);
    const auto* x = static_cast<const uint16_t*>(src);
    for (int64_t r = 0; r < rows; r++)
      for (int64_t k = 0; k < depth; k += kDeep, to += kLine) {
        const int64_t n = smaller(kDeep, depth - k);
        alignas(64) float wide[kDeep];
        to_float(x + r * ld + k, type, n, wide);
        put_scale(to, round_block(wide, n, to));
      }
  }

  static void pack_a_stored(const Weight& w, int64_t start, int64_t rows, int64_t depth, void* a) {
    char* to = static_cast<char*>(a);
    for (int64_t r = 0; r < rows; r++)
      for (int64_t k = 0; k < depth; k += kDeep, to += kLine) {
        const int64_t at = start + r * w.cols + k;
        S::template store_levels<kMost>(to, w.codes + at / 2);
        S::template store_levels<kMost>(to + kDeep, w.codes + at / 2 + kDeep / 4);
        put_scale(to, w.scale(at >> w.block_shift) * (1.0f / kMost));
      }
  }

  static float* scales_of(char* block) {  // of a panel
    return reinterpret_cast<float*>(block + kPanel * kScaleAt);
  }

  static void pack_bt(const float* src, int64_t ld, int64_t cols, int64_t depth, void* b) {
    char* to = static_cast<char*>(b);
    for (int64_t c = 0; c < cols; c += kPanel)
      for (int64_t k = 0; k < depth; k += kDeep, to += kPanel * kLine) {
        alignas(64) float pairs[kPanel][kPairs];
        const int64_t deep = smaller(kDeep, depth - k);
        for (int64_t j = 0; j < kPanel; j++) {
          char* line = reinterpret_cast<char*>(pairs[j]);
          if (c + j >= cols) __builtin_memset(line, 0, sizeof pairs[j]);
          scales_of(to)[j] = c + j < cols ? round_block(src + (c + j) * ld + k, deep, line) : 0.0f;
        }
        transpose(pairs[0], kPairs, kPanel, kPairs, reinterpret_cast<float*>(to), kPanel);
      }
  }

  // One block of W columns, from rows of B.
  static void round_columns(const float* src, int64_t ld, int64_t rows, char* to, float* scales) {
    I bits = S::magnitude_bits(S::zero());
    for (int64_t p = 0; p < rows; p++)
      bits = S::larger_bits(bits, S::magnitude_bits(S::load(src + p * ld)));
    F factor;
    const F scale = S::template int16_scale<kMost, kLeast>(bits, factor);
    S::store(scales, scale);
    for (int64_t p = 0; p < kDeep; p += 2) {
      const F even = p < rows ? S::load(src + p * ld) : S::zero();
      const F odd = p + 1 < rows ? S::load(src + (p + 1) * ld) : S::zero();
      S::store_pairs(to + p / 2 * kPanel * 4, S::mul(even, factor), S::mul(odd, factor));
    }
  }

  static void pack_b(const float* src, int64_t ld, int64_t first, int64_t count, int64_t depth,
                     int64_t cols, void* b) {
    for (int64_t c = 0; c < cols; c += kPanel) {
      char* panel = static_cast<char*>(b) + c * line_bytes(depth);
      for (int64_t p = 0; p < count; p += kDeep) {
        char* to = panel + (first + p) / kDeep * kPanel * kLine;
        const int64_t rows = smaller(kDeep, count - p);
        const float* from = src + p * ld + c;
        int64_t from_ld = ld;
        float padded[kDeep * kPanel];
        if (c + kPanel > cols) {
          for (int64_t i = 0; i < rows; i++)
            for (int64_t j = 0; j < kPanel; j++)
              padded[i * kPanel + j] = c + j < cols ? from[i * ld + j] : 0.0f;
          from = padded;
          from_ld = kPanel;
        }
        for (int v = 0; v < kPanel; v += W)
          round_columns(from + v, from_ld, rows, to + 4 * v, scales_of(to) + v);
      }
    }
  }

  // One block of 64 rows or less, and two panels of columns, which lie in one block of each row.
  static void stored_columns(const Weight& w, int64_t row, int64_t rows, int64_t col, char* to,
                             int64_t next_panel) {
    float maxima[kDeep] = {}, greatest = 0.0f, poison = 0.0f;
    for (int64_t i = 0; i < rows; i++) {
      maxima[i] = w.scale(((row + i) * w.cols + col) >> w.block_shift);
      const float m = __builtin_fabsf(maxima[i]);
      greatest = m > greatest ? m : greatest;
      poison += 0.0f * m;  // NaN if any maximum is not finite
    }
    const float per_unit = greatest > 0.0f ? S::kShareOne * kMost / greatest : 0.0f;
    for (int v = 0; v < kPanel; v += W) {
      const F scale = S::set1(greatest * (1.0f / kMost) + poison);
      S::store(scales_of(to) + v, scale);
      S::store(scales_of(to + next_panel) + v, scale);
    }
    static_assert(S::micro_vectors * S::width == 16, "store_level_pairs fills two panels");
    uint8_t zeros[16];
    __builtin_memset(zeros, kZeroCode * 0x11, sizeof zeros);
    const uint8_t* codes = w.codes + (row * w.cols + col) / 2;
    for (int64_t p = 0; p < rows; p += 2, codes += w.cols) {
      const uint8_t* odd = p + 1 < rows ? codes + w.cols / 2 : zeros;
      const I shares = S::shares(maxima[p] * per_unit, maxima[p + 1] * per_unit);
      char* at = to + p / 2 * kPanel * 4;
      S::store_level_pairs(at, at + next_panel, codes, odd, shares);
    }
    for (int64_t p = (rows + 1) / 2; p < kPairs; p++)
      for (int v = 0; v < kPanel; v += W) {
        S::store(reinterpret_cast<float*>(to) + p * kPanel + v, S::zero());
        S::store(reinterpret_cast<float*>(to + next_panel) + p * kPanel + v, S::zero());
      }
  }

  static void pack_b_stored(const Weight& w, int64_t row, int64_t col, int64_t first, int64_t count,
                            int64_t depth, int64_t cols, void* b) {
    const int64_t next_panel = kPanel * line_bytes(depth);
    for (int64_t c = 0; c < cols; c += 2 * kPanel) {
      char* panel = static_cast<char*>(b) + c * line_bytes(depth);
      for (int64_t p = 0; p < count; p += kDeep) {
        char* to = panel + (first + p) / kDeep * kPanel * kLine;
        stored_columns(w, row + p, smaller(kDeep, count - p), col + c, to, next_panel);
      }
    }
  }

  template <int R, int V>
  static void micro(int64_t depth, const char* a, const char* b, float* c, int64_t ldc) {
    const int64_t lda = line_bytes(depth);
    for (int64_t k = 0; k < depth; k += kDeep, a += kLine, b += kPanel * kLine) {
      const int64_t pairs = smaller(kPairs, (depth - k + 1) / 2);  // the rest of a block is zeros
      I acc[R][V];
      for (int r = 0; r < R; r++)
        for (int v = 0; v < V; v++) acc[r][v] = S::zero_index();
      for (int64_t p = 0; p < pairs; p++) {
        I column[V];
        for (int v = 0; v < V; v++)
          column[v] = S::words(reinterpret_cast<const uint8_t*>(b) + (p * kPanel + v * W) * 4);
        for (int r = 0; r < R; r++) {
          const I x = S::pair(a + r * lda + 4 * p);
          for (int v = 0; v < V; v++) S::add_products(acc[r][v], x, column[v]);
        }
      }
      const float* scales = reinterpret_cast<const float*>(b + kPanel * kScaleAt);
      for (int r = 0; r < R; r++) {
        float scale;
        __builtin_memcpy(&scale, a + r * lda + kScaleAt, sizeof scale);
        for (int v = 0; v < V; v++) {
          float* out = c + r * ldc + v * W;
          const F s = S::mul(S::set1(scale), S::load(scales + v * W));
          S::store(out, S::fma(S::to_float(acc[r][v]), s, S::load(out)));
        }
      }
    }
  }
};

}  // namespace
}  // namespace graftlm
