// The walk with the level's float32 product.
#include "cross_entropy.hpp"
#include "level.hpp"

namespace graftlm {
namespace {

constexpr int64_t kBlockRows = 48;     // a multiple of every level's micro-kernel
constexpr int64_t kWidestPanel = 32;

int64_t packed_bytes(int64_t tokens, int64_t dim, bool) {
  const Gemm& gemm = level().f32;
  return gemm.bytes(tokens, dim, gemm.panel);
}

void pack(const float* hidden, int64_t tokens, int64_t dim, bool, void* packed) {
  level().f32.pack_bt(hidden, dim, tokens, dim, packed);
}

int64_t prepared_bytes(int64_t rows, int64_t dim) { return rows * dim * 4; }

void prepare(const Head& head, int64_t row, int64_t row_end, void* prepared) {
  level().to_float(head.row(row), head.type, (row_end - row) * head.dim,
                   static_cast<float*>(prepared));
}

void walk(const WalkPiece& piece, Candidates& out) {
  const Level& kernels = level();
  const Gemm& gemm = kernels.f32;
  const int64_t dim = piece.head->dim;
  alignas(64) float z[kBlockRows * kWidestPanel];
  for (int64_t token = piece.token; token < piece.token_end; token += gemm.panel) {
    const char* panel = static_cast<const char*>(piece.hidden) + gemm.at(token, dim);
    for (int64_t row = piece.row; row < piece.row_end; row += kBlockRows) {
      const int64_t left = piece.row_end - row, rows = left < kBlockRows ? left : kBlockRows;
      for (int64_t i = 0; i < rows * gemm.panel; i++) z[i] = 0.0f;
      gemm.multiply(rows, gemm.panel, dim,
                    static_cast<const float*>(piece.prepared) + (row - piece.row) * dim, panel, z,
                    gemm.panel);
      kernels.absorb_logits(*piece.head, row, rows, token, gemm.panel, z, piece.state, out);
    }
  }
}

}  // namespace

Walk float_walk() {
  return {level().f32.panel, kBlockRows, packed_bytes, pack, prepared_bytes, prepare, walk};
}

}  // namespace graftlm
