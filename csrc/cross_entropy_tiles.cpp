// The walk with a tile product of the level: of float32, or of rounded factors.
#include "buffer.hpp"
#include "cross_entropy.hpp"
#include "level.hpp"

namespace graftlm {
namespace {

constexpr int64_t kBlockRows = 48;     // a multiple of every level's micro-kernel
constexpr int64_t kWidestPanel = 32;

template <Compute compute>
int64_t packed_bytes(int64_t tokens, int64_t dim, bool) {
  const Gemm& product = gemm(compute);
  return product.bytes(tokens, dim, product.panel);
}

template <Compute compute>
void pack(const float* hidden, int64_t tokens, int64_t dim, bool, void* packed) {
  gemm(compute).pack_bt(hidden, dim, tokens, dim, packed);
}

template <Compute compute>
int64_t prepared_bytes(int64_t rows, int64_t dim) {
  return gemm(compute).at(rows, dim);
}

template <Compute compute>
void prepare(const Head& head, int64_t row, int64_t row_end, void* prepared) {
  const Gemm& product = gemm(compute);
  if (product.plain_a)
    return level().to_float(head.row(row), head.type, (row_end - row) * head.dim,
                            static_cast<float*>(prepared));
  // Never null: without AMX, whose walk is another, what does not take floats packs any type.
  product.pack_a_dense(head.row(row), head.type, head.dim, row_end - row, head.dim, prepared);
}

template <Compute compute>
float dot(const Head& head, int64_t row, const void* packed, int64_t token) {
  const Gemm& product = gemm(compute);
  static thread_local Buffer prepared;
  void* a = prepared.bytes(prepared_bytes<compute>(1, head.dim));
  prepare<compute>(head, row, row + 1, a);
  alignas(64) float z[kWidestPanel] = {};
  const int64_t lane = token % product.panel;
  product.multiply(1, product.panel, head.dim, a,
                   static_cast<const char*>(packed) + product.at(token - lane, head.dim), z,
                   product.panel);
  return z[lane];
}

template <Compute compute>
void walk(const WalkPiece& piece, Candidates& out) {
  const Gemm& product = gemm(compute);
  const int64_t dim = piece.head->dim;
  alignas(64) float z[kBlockRows * kWidestPanel];
  for (int64_t token = piece.token; token < piece.token_end; token += product.panel) {
    const char* panel = static_cast<const char*>(piece.hidden) + product.at(token, dim);
    for (int64_t row = piece.row; row < piece.row_end; row += kBlockRows) {
      const int64_t left = piece.row_end - row, rows = left < kBlockRows ? left : kBlockRows;
      for (int64_t i = 0; i < rows * product.panel; i++) z[i] = 0.0f;
      product.multiply(rows, product.panel, dim,
                       static_cast<const char*>(piece.prepared) + product.at(row - piece.row, dim),
                       panel, z, product.panel);
      level().absorb_logits(*piece.head, row, rows, token, product.panel, z, piece.state, out);
    }
  }
}

template <Compute compute>
Walk walk_with() {
  return {gemm(compute).panel, kBlockRows, packed_bytes<compute>, pack<compute>,
          prepared_bytes<compute>, prepare<compute>, dot<compute>, walk<compute>};
}

}  // namespace

Walk tile_walk(bool rounded) {
  return rounded ? walk_with<Compute::bf16>() : walk_with<Compute::f32>();
}

}  // namespace graftlm
