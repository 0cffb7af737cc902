// The two products with a frozen weight, which is stored in 4 bits or dense.
//
// Up to 8 rows, forward: straight from the 4-bit codes (gemv in level.inl), or from the dense
// weight, which is as fast as either can be read. Otherwise W is packed tile by tile, by way of
// float32 or as it is stored (gemm.hpp), into a panel that stays in the second-level cache, multiplied
// there by all rows, and forgotten:
//
//     forward    yᵀ = W xᵀ    A = a tile of rows of W,       B = xᵀ, packed once;  yᵀ is turned on output
//     backward   dx = dy W    A = dy, packed once,           B = a tile of columns of W
//
// Both walk the stored weight along its rows, so that no code is ever transposed. Each element of
// the result is summed in the same order whatever the number of threads.
//
// A low-rank update rides along. Its first factor multiplies the input that is packed already, for
// rank / w.rows of the cost, and its second is a few more columns of depth in the same sums:
//
//     forward    uᵀ = A xᵀ,  yᵀ = [W  B] [xᵀ; s uᵀ]        backward   v = s dy B,  dx = [dy  v] [W; A]
//
// Measured and rejected: dequantising a panel and calling PyTorch's own product on it. It is within a
// few per cent for hundreds of rows, but slower for tens, its sums depend on the number of threads,
// and it needs a float32 copy of the panel that is read back from memory.
#include <algorithm>
#include <cstring>

#include "buffer.hpp"
#include "operators.hpp"
#include "threads.hpp"
#include "tiles.hpp"

namespace graftlm {
namespace {

// Elements [start, start + count) of the flattened weight in float32.
void read(const Frozen& w, int64_t start, int64_t count, float* to) {
  if (!w.dense) return level().dequantize_tile(w.stored, start, count, to);
  const char* from = static_cast<const char*>(w.dense) + start * int64_t(size_of(w.type));
  level().to_float(from, w.type, count, to);
}

// Whether it can be packed as it is stored: see gemm.hpp.
bool direct(const Frozen& w, const Gemm& gemm) {
  if (w.dense || !gemm.pack_a_stored) return false;
  const int64_t block = w.stored.block();
  return block >= Gemm::direct_block && w.cols % block == 0;
}

// What a tile reads next is a few lines here and there, which no hardware foresees. Inlined by force:
// the compiler takes a function that only prefetches for one without effect, and drops the call.
[[gnu::always_inline]] inline void prefetch(const Frozen& w, int64_t start, int64_t count) {
  const int64_t bits = w.dense ? 8 * int64_t(size_of(w.type)) : 4;
  const char* from = w.dense ? static_cast<const char*>(w.dense)
                             : reinterpret_cast<const char*>(w.stored.codes);
  const int64_t end = std::min(start + count, w.rows * w.cols) * bits / 8;
  for (int64_t i = start * bits / 8; i < end; i += 64) __builtin_prefetch(from + i);
}

// `rows` lines of W from element `start` on, as rows of A.
void pack_rows(const Frozen& w, const Gemm& gemm, int64_t start, int64_t rows, int64_t depth, char* a) {
  for (int64_t i = 0; i < rows; i++) prefetch(w, start + i * w.cols + depth, gemm.depth_block);
  if (direct(w, gemm)) return gemm.pack_a_stored(w.stored, start, rows, depth, a);
  if (w.dense && gemm.pack_a_dense) {
    const char* from = static_cast<const char*>(w.dense) + start * int64_t(size_of(w.type));
    return gemm.pack_a_dense(from, w.type, w.cols, rows, depth, a);
  }
  static thread_local Buffer space;
  float* to = gemm.plain_a ? reinterpret_cast<float*>(a) : space.floats(rows * depth);
  for (int64_t i = 0; i < rows; i++) read(w, start + i * w.cols, depth, to + i * depth);
  if (!gemm.plain_a) gemm.pack_a(to, depth, rows, depth, a);
}

// Columns [col, col + cols) of `count` rows of W from `row` on, as rows of B from `first` on.
void pack_columns(const Frozen& w, const Gemm& gemm, int64_t row, int64_t col, int64_t first,
                  int64_t count, int64_t depth, int64_t cols, char* b) {
  const int64_t start = row * w.cols + col;
  for (int64_t i = 0; i < count; i++) prefetch(w, start + (count + i) * w.cols, cols);
  if (direct(w, gemm)) return gemm.pack_b_stored(w.stored, row, col, first, count, depth, cols, b);
  static thread_local Buffer space;
  float* to = space.floats(count * cols);
  for (int64_t i = 0; i < count; i++) read(w, start + i * w.cols, cols, to + i * cols);
  gemm.pack_b(to, cols, first, count, depth, cols, b);
}

void add_bias(const float* bias, int64_t n, float* y) {
  for (int64_t i = 0; bias && i < n; i++) y[i] += bias[i];
}

// ---------------------------------------------------------------- few rows

// y (rows, w.rows) in float32. Rows of W that do not start on a block are dequantised first.
void gemv(const Weight& w, const float* x, int64_t rows, float* y, int threads) {
  const Level& kernels = level();
  const bool whole = w.cols % w.block() == 0;
  const int64_t stride = whole ? kernels.gemv_stride(w.cols) : w.cols;
  Buffer packed;
  const float* in = x;
  if (whole) {
    float* to = packed.floats(rows * stride);
    for (int64_t m = 0; m < rows; m++) kernels.gemv_pack(x + m * w.cols, w.cols, to + m * stride);
    in = to;
  }
  // At least 32 K weights, which take a few microseconds, about what a hand-over to another thread
  // costs. All of x is fetched again for every task, so that more of it asks for longer ones, as long
  // as each thread has some.
  const int64_t few = (int64_t{1} << 15) / std::max<int64_t>(w.cols, 1);
  const int64_t share = ceil_div(w.rows, 4 * int64_t(threads));
  const int64_t longer = std::min(8 * rows + 16, share);
  const int64_t rows_a_task = std::clamp<int64_t>(std::max(few, longer), 1, w.rows);
  parallel_for(ceil_div(w.rows, rows_a_task), threads, [&](int64_t task) {
    const int64_t first = task * rows_a_task, last = std::min(w.rows, first + rows_a_task);
    if (whole) return kernels.gemv(w, first, last, in, stride, int(rows), y, w.rows);
    static thread_local Buffer row;
    float* weights = row.floats(w.cols);
    for (int64_t n = first; n < last; n++) {
      kernels.dequantize_tile(w, n * w.cols, w.cols, weights);
      for (int64_t m = 0; m < rows; m++) y[m * w.rows + n] = kernels.dot(in + m * stride, weights, w.cols);
    }
  });
}

// y += scaling (x Aᵀ) Bᵀ, all in float32.
void add_update(const LowRank& update, const Frozen& w, const float* x, DType type, int64_t rows,
                float* y) {
  Buffer first, second;
  float* u = first.floats(rows * update.rank);
  float* more = second.floats(rows * w.rows);
  level().dense_gemv(update.a, DType::f32, 0, update.rank, w.cols, x, int(rows), u, update.rank);
  level().from_float(u, rows * update.rank, update.thin, type);
  level().dense_gemv(update.b, DType::f32, 0, w.rows, update.rank, u, int(rows), more, w.rows);
  for (int64_t i = 0; i < rows * w.rows; i++) y[i] += update.scaling * more[i];
}

void linear_few(const Frozen& w, const Input& x, int64_t rows, const float* bias, void* y,
                const LowRank* update, int threads) {
  Buffer converted, result;
  int64_t ld;
  const float* in = x.tile(0, rows, 0, w.cols, converted, ld);
  float* out = x.type == DType::f32 ? static_cast<float*>(y) : result.floats(rows * w.rows);
  if (!w.dense) gemv(w.stored, in, rows, out, threads);
  else dense_linear(w.dense, w.type, nullptr, w.rows, w.cols, in, DType::f32, rows, out, threads);
  if (update) add_update(*update, w, in, x.type, rows, out);
  for (int64_t m = 0; m < rows; m++) add_bias(bias, w.rows, out + m * w.rows);
  if (x.type != DType::f32) level().from_float(out, rows * w.rows, y, x.type);
}

// ---------------------------------------------------------------- many rows

// Rows [r, r + rows) of x: all of xᵀ packed as B, one block of depth after another.
void pack_input(const Gemm& gemm, const Input& x, int64_t r, int64_t rows, bool as_columns,
                char* packed, int threads) {
  const int64_t step = as_columns ? gemm.panel : gemm.row_step, strip = Gemm::up(32, step);
  const int64_t blocks = ceil_div(x.cols, gemm.depth_block), strips = ceil_div(rows, strip);
  parallel_for(blocks * strips, threads, [&](int64_t task) {
    const int64_t k = task / strips * gemm.depth_block, s = task % strips * strip;
    const int64_t depth = std::min(gemm.depth_block, x.cols - k), lines = std::min(strip, rows - s);
    char* to = packed + gemm.bytes(rows, k, step) + gemm.at(s, depth);
    static thread_local Buffer space;
    int64_t ld;
    const float* from = x.tile(r + s, lines, k, depth, space, ld);
    if (as_columns) gemm.pack_bt(from, ld, lines, depth, to);
    else gemm.pack_a(from, ld, lines, depth, to);
  });
}

// y[r + m][n0 + n] = c[n][m] + bias: C is yᵀ.
void store_turned(const float* c, int64_t ldc, int64_t r, int64_t rows, int64_t n0, int64_t cols,
                  const float* bias, void* y, DType type, int64_t ldy) {
  const Level& kernels = level();
  static thread_local Buffer space;
  float* strip = space.floats(16 * cols);
  for (int64_t m = 0; m < rows; m += 16) {
    const int64_t lines = std::min<int64_t>(16, rows - m);
    kernels.transpose(c + m, ldc, cols, lines, strip, cols);
    for (int64_t i = 0; i < lines; i++) {
      if (bias) add_bias(bias + n0, cols, strip + i * cols);
      char* to = static_cast<char*>(y) + ((r + m + i) * ldy + n0) * int64_t(size_of(type));
      kernels.from_float(strip + i * cols, cols, to, type);
    }
  }
}

// Rows [r, r + rows) of the thin product from the packed input: written to update.thin, and packed
// for the second factor, scaled in both directions (v is scaled as it is, u only where it is packed).
void thin_product(const LowRank& update, const Gemm& gemm, const char* packed, int64_t depth_all,
                  bool forward, int64_t r, int64_t rows, DType type, char* out, int threads) {
  const int64_t rank = update.rank;
  const int64_t step = forward ? gemm.panel : gemm.row_step;
  const int64_t share = Gemm::up(ceil_div(rows, threads), step);
  Buffer factor;
  const int64_t lines = Gemm::up(rank, forward ? gemm.row_step : gemm.panel);
  // Blocks of depth are multiples of depth_step, all but the last one.
  char* thin = factor.bytes(gemm.bytes(lines, Gemm::up(depth_all, gemm.depth_step), 1));
  for (int64_t k = 0; k < depth_all; k += gemm.depth_block) {
    const int64_t depth = std::min(gemm.depth_block, depth_all - k);
    char* to = thin + gemm.at(lines, k);
    if (forward) gemm.pack_a(update.a + k, depth_all, rank, depth, to);
    else gemm.pack_b(update.b + k * rank, rank, 0, depth, depth, rank, to);
  }
  parallel_for(ceil_div(rows, share), threads, [&](int64_t task) {
    const int64_t m0 = task * share, count = std::min(share, rows - m0);
    static thread_local Buffer sums, turned;
    const int64_t ldc = forward ? Gemm::up(count, gemm.panel) : Gemm::up(rank, gemm.panel);
    const int64_t height = forward ? Gemm::up(rank, gemm.row_step) : Gemm::up(count, gemm.row_step);
    float* c = sums.zeros(height * ldc);
    for (int64_t k = 0; k < depth_all; k += gemm.depth_block) {
      const int64_t depth = std::min(gemm.depth_block, depth_all - k);
      const char* x = packed + gemm.bytes(rows, k, step) + gemm.at(m0, depth);
      const char* f = thin + gemm.at(lines, k);
      if (forward) gemm.multiply(rank, count, depth, f, x, c, ldc);
      else gemm.multiply(count, rank, depth, x, f, c, ldc);
    }
    float* t = turned.floats(count * rank);
    if (forward) level().transpose(c, ldc, rank, count, t, rank);
    else
      for (int64_t m = 0; m < count; m++)
        for (int64_t i = 0; i < rank; i++) t[m * rank + i] = update.scaling * c[m * ldc + i];
    level().from_float(t, count * rank,
                       static_cast<char*>(update.thin) + (r + m0) * rank * int64_t(size_of(type)), type);
    for (int64_t i = 0; forward && i < count * rank; i++) t[i] *= update.scaling;
    if (forward) gemm.pack_bt(t, rank, count, rank, out + gemm.at(m0, rank));
    else gemm.pack_a(t, rank, count, rank, out + gemm.at(m0, rank));
  });
}

void forward_chunk(const Frozen& w, const Gemm& gemm, const char* packed, int64_t r, int64_t rows,
                   const float* bias, void* y, DType type, const LowRank* update, const char* thin,
                   int threads) {
  const int64_t tile = even_tile(w.rows, gemm.row_tile, Gemm::up(4, gemm.row_step), threads);
  const int64_t ldc = Gemm::up(rows, gemm.panel);
  parallel_for(ceil_div(w.rows, tile), threads, [&](int64_t task) {
    const int64_t n0 = task * tile, lines = std::min(tile, w.rows - n0);
    static thread_local Buffer sums, panel;
    float* c = sums.zeros(Gemm::up(lines, gemm.row_step) * ldc);
    char* a = panel.bytes(gemm.bytes(lines, gemm.depth_block, gemm.row_step));
    for (int64_t k = 0; k < w.cols; k += gemm.depth_block) {
      const int64_t depth = std::min(gemm.depth_block, w.cols - k);
      for (int64_t n = 0; n < lines; n += gemm.row_step) {
        const int64_t group = std::min(gemm.row_step, lines - n);
        pack_rows(w, gemm, (n0 + n) * w.cols + k, group, depth, a + gemm.at(n, depth));
      }
      gemm.multiply(lines, rows, depth, a, packed + gemm.bytes(rows, k, gemm.panel), c, ldc);
    }
    if (update) {
      const int64_t rank = update->rank;
      a = panel.bytes(gemm.bytes(lines, rank, gemm.row_step));
      gemm.pack_a(update->b + n0 * rank, rank, lines, rank, a);
      gemm.multiply(lines, rows, rank, a, thin, c, ldc);
    }
    store_turned(c, ldc, r, rows, n0, lines, bias, y, type, w.rows);
  });
}

void backward_chunk(const Frozen& w, const Gemm& gemm, const char* packed, int64_t r, int64_t rows,
                    void* dx, DType type, const LowRank* update, const char* thin, int threads) {
  const int64_t tile = even_tile(w.cols, gemm.col_tile, 2 * gemm.panel, threads);
  const int64_t slice = std::max<int64_t>(32, gemm.depth_step);  // rows packed at a time
  parallel_for(ceil_div(w.cols, tile), threads, [&](int64_t task) {
    const int64_t k0 = task * tile, cols = std::min(tile, w.cols - k0), ldc = Gemm::up(cols, gemm.panel);
    static thread_local Buffer sums, panel;
    float* c = sums.zeros(Gemm::up(rows, gemm.row_step) * ldc);
    char* b = panel.bytes(gemm.bytes(cols, gemm.depth_block, gemm.panel));
    for (int64_t n = 0; n < w.rows; n += gemm.depth_block) {
      const int64_t depth = std::min(gemm.depth_block, w.rows - n);
      for (int64_t p = 0; p < depth; p += slice) {
        const int64_t count = std::min(slice, depth - p);
        pack_columns(w, gemm, n + p, k0, p, count, depth, cols, b);
      }
      gemm.multiply(rows, cols, depth, packed + gemm.bytes(rows, n, gemm.row_step), b, c, ldc);
    }
    if (update) {
      const int64_t rank = update->rank;
      b = panel.bytes(gemm.bytes(cols, rank, gemm.panel));
      gemm.pack_b(update->a + k0, w.cols, 0, rank, rank, cols, b);
      gemm.multiply(rows, cols, rank, thin, b, c, ldc);
    }
    for (int64_t m = 0; m < rows; m++) {
      char* to = static_cast<char*>(dx) + ((r + m) * w.cols + k0) * int64_t(size_of(type));
      level().from_float(c + m * ldc, cols, to, type);
    }
  });
}

}  // namespace

void linear(const Frozen& w, const void* x, DType type, int64_t rows, const float* bias, void* y,
            const LowRank* update, Compute compute, int threads) {
  if (rows == 0 || w.rows == 0) return;
  const Input input{x, type, w.cols};
  if (rows <= kGemvRows) return linear_few(w, input, rows, bias, y, update, threads);
  const Gemm& product = gemm(compute);
  static thread_local Buffer packed, thin;
  for (int64_t r = 0; r < rows; r += kRowChunk) {
    const int64_t count = std::min(kRowChunk, rows - r);
    char* b = packed.bytes(product.bytes(count, w.cols, product.panel));
    pack_input(product, input, r, count, true, b, threads);
    char* u = update ? thin.bytes(product.bytes(count, update->rank, product.panel)) : nullptr;
    if (update) thin_product(*update, product, b, w.cols, true, r, count, type, u, threads);
    forward_chunk(w, product, b, r, count, bias, y, type, update, u, threads);
  }
}

void linear_backward(const Frozen& w, const void* dy, DType type, int64_t rows, void* dx,
                     const LowRank* update, Compute compute, int threads) {
  if (rows == 0 || w.cols == 0) return;
  const Input input{dy, type, w.rows};
  const Gemm& product = gemm(compute);
  static thread_local Buffer packed, thin;
  for (int64_t r = 0; r < rows; r += kRowChunk) {
    const int64_t count = std::min(kRowChunk, rows - r);
    char* a = packed.bytes(product.bytes(count, w.rows, product.row_step));
    pack_input(product, input, r, count, false, a, threads);
    char* v = update ? thin.bytes(product.bytes(count, update->rank, product.row_step)) : nullptr;
    if (update) thin_product(*update, product, a, w.rows, false, r, count, type, v, threads);
    backward_chunk(w, product, a, r, count, dx, type, update, v, threads);
  }
}

// Tiles of W that stay in the second-level cache while all rows of x pass by.
void dense_linear(const void* w, DType weight_type, const float* row_scale, int64_t out,
                  int64_t cols, const void* x, DType type, int64_t rows, void* y, int threads) {
  if (rows == 0 || out == 0) return;
  constexpr int64_t kTileBytes = 1 << 16, kTask = 16;
  const int64_t tile = std::max<int64_t>(1, kTileBytes / (cols * int64_t(size_of(weight_type)) + 1));
  Buffer wide, result;
  float* in = wide.floats(rows * cols);
  level().to_float(x, type, rows * cols, in);
  float* to = type == DType::f32 ? static_cast<float*>(y) : result.floats(rows * out);
  parallel_for(ceil_div(out, tile * kTask), threads, [&](int64_t task) {
    const int64_t end = std::min(out, (task + 1) * tile * kTask);
    for (int64_t n = task * tile * kTask; n < end; n += tile)
      level().dense_gemv(w, weight_type, n, std::min(end, n + tile), cols, in, int(rows), to, out);
    for (int64_t m = 0; row_scale && m < rows; m++)
      for (int64_t n = task * tile * kTask; n < end; n++) to[m * out + n] *= row_scale[n];
  });
  if (type != DType::f32) level().from_float(to, rows * out, y, type);
}

}  // namespace graftlm
