// The gradient of one factor of a low-rank update: a thin and a wide matrix, summed over their rows.
//
//     G = s tᵀ x        t (rows, rank),  x (rows, cols)        G (rank, cols), or turned, (cols, rank)
//
// tᵀ is packed once, x is read once, a tile of columns at a time. Each element is summed in the same
// order whatever the number of threads.
#include "operators.hpp"
#include "threads.hpp"
#include "tiles.hpp"

namespace graftlm {
namespace {

constexpr int64_t kColumns = 256, kSlice = 32;  // of x: a tile; rows converted at a time

// All of tᵀ, one block of depth after another.
const char* pack_upright(const Gemm& product, const Input& thin, int64_t rows, Buffer& packed) {
  const int64_t rank = thin.cols, lines = Gemm::up(rank, product.row_step);
  Buffer converted, turned;
  int64_t ld;
  const float* t = thin.tile(0, rows, 0, rank, converted, ld);
  float* upright = turned.floats(rank * rows);
  level().transpose(t, ld, rows, rank, upright, rows);
  char* to = packed.bytes(product.at(lines, rows));
  for (int64_t k = 0; k < rows; k += product.depth_block)
    product.pack_a(upright + k, rows, rank, std::min(product.depth_block, rows - k),
                   to + product.at(lines, k));
  return to;
}

}  // namespace

void factor_gradient(const void* t, const void* x, DType type, int64_t rows, int64_t rank,
                     int64_t cols, float scaling, bool turned, float* out, Compute compute,
                     int threads) {
  if (rank == 0 || cols == 0) return;
  // In float32 without bfloat16 tiles: blocks of whole numbers would be of 64 tokens, which may differ
  // in size by orders of magnitude; and for so few rows of tᵀ, packing x so costs what it saves.
  const Gemm& product = gemm(has_bf16_tiles() ? compute : Compute::f32);
  const Input thin{t, type, rank}, wide{x, type, cols};
  const int64_t lines = Gemm::up(rank, product.row_step);
  Buffer packed;
  const char* a = pack_upright(product, thin, rows, packed);
  const int64_t tile = even_tile(cols, kColumns, product.panel, threads);
  parallel_for(ceil_div(cols, tile), threads, [&](int64_t task) {
    const int64_t c0 = task * tile, count = std::min(tile, cols - c0);
    const int64_t ldc = Gemm::up(count, product.panel);
    static thread_local Buffer sums, panel, converted;
    float* c = sums.zeros(lines * ldc);
    char* b = panel.bytes(product.bytes(count, product.depth_block, product.panel));
    for (int64_t k = 0; k < rows; k += product.depth_block) {
      const int64_t depth = std::min(product.depth_block, rows - k);
      for (int64_t p = 0; p < depth; p += kSlice) {
        const int64_t some = std::min(kSlice, depth - p);
        int64_t ld;
        const float* from = wide.tile(k + p, some, c0, count, converted, ld);
        product.pack_b(from, ld, p, some, depth, count, b);
      }
      product.multiply(rank, count, depth, a + product.at(lines, k), b, c, ldc);
    }
    for (int64_t i = 0; i < rank * ldc; i++) c[i] *= scaling;
    if (turned) return level().transpose(c, ldc, rank, count, out + c0 * rank, rank);
    for (int64_t i = 0; i < rank; i++)
      std::copy_n(c + i * ldc, count, out + i * cols + c0);
  });
}

}  // namespace graftlm
