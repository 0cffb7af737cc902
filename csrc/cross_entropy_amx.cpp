// The walk on AMX tiles: bfloat16 factors, float32 sums, 32 rows of W by 32 tokens a block.
//
//     W          16 rows of 32 values, as they lie in memory, are one tile
//     hidden     [panel of 32 tokens][dim / 32][part][2 tiles of 16 pairs × 16 tokens × 2]
//     prepared   [part][rows to 32][dim to 32], where W itself cannot be read in tiles
//
// The parts are high and low. Two by two tiles of logits stay in registers over the whole depth.
#include "simd_avx512.hpp"
#include "cross_entropy.inl"

namespace graftlm {
namespace {

constexpr int64_t kLanes = 32, kRows = 32, kDeep = 32;
constexpr int64_t kTile = 512;  // bfloat16 values of a tile

struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

inline int64_t up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

int64_t packed_bytes(int64_t tokens, int64_t dim, bool exact_bf16) {
  return up(tokens, kLanes) * up(dim, kDeep) * (exact_bf16 ? 2 : 4);
}

void pack(const float* hidden, int64_t tokens, int64_t dim, bool exact_bf16, void* packed) {
  uint16_t* to = static_cast<uint16_t*>(packed);
  const int64_t parts = exact_bf16 ? 1 : 2;
  for (int64_t t = 0; t < tokens; t += kLanes)
    for (int64_t d0 = 0; d0 < dim; d0 += kDeep, to += parts * 2 * kTile)
      for (int64_t lane = 0; lane < kLanes; lane++)
        for (int64_t d = 0; d < kDeep; d++) {
          const bool inside = t + lane < tokens && d0 + d < dim;
          const float x = inside ? hidden[(t + lane) * dim + d0 + d] : 0.0f;
          const int64_t at = lane / 16 * kTile + d / 2 * 32 + lane % 16 * 2 + d % 2;
          to[at] = to_bf16(x);
          if (!exact_bf16) to[2 * kTile + at] = to_bf16(x - from_bf16(to[at]));
        }
}

inline bool readable(const Head& head, int64_t rows) {
  return head.type == DType::bf16 && head.dim % kDeep == 0 && rows % kRows == 0;
}

int64_t prepared_bytes(int64_t rows, int64_t dim) { return 4 * up(rows, kRows) * up(dim, kDeep); }

template <class T>
void prepare_as(const Head& head, int64_t row, int64_t row_end, void* prepared) {
  const int64_t rows = up(row_end - row, kRows), depth = up(head.dim, kDeep);
  uint16_t* high = static_cast<uint16_t*>(prepared);
  uint16_t* low = high + rows * depth;
  for (int64_t r = 0; r < rows; r++)
    for (int64_t d = 0; d < depth; d++, high++, low++) {
      const bool inside = row + r < row_end && d < head.dim;
      const float x = inside ? weight_of(static_cast<const T*>(head.row(row + r))[d]) : 0.0f;
      *high = to_bf16(x);
      *low = to_bf16(x - from_bf16(*high));
    }
}

void prepare(const Head& head, int64_t row, int64_t row_end, void* prepared) {
  if (readable(head, row_end - row)) return;
  if (head.type == DType::f32) return prepare_as<float>(head, row, row_end, prepared);
  if (head.type == DType::bf16) return prepare_as<BF16>(head, row, row_end, prepared);
  if (head.type == DType::i8) return prepare_as<int8_t>(head, row, row_end, prepared);
  prepare_as<F16>(head, row, row_end, prepared);
}

// The four tiles of logits += one step of depth; A stays loaded for the low part of the tokens.
template <bool load_rows>
inline void add_products(const uint16_t* a, int64_t depth, const uint16_t* b) {
  if constexpr (load_rows) _tile_loadd(4, a, depth * 2);
  _tile_loadd(6, b, 64);
  _tile_dpbf16ps(0, 4, 6);
  _tile_loadd(7, b + kTile, 64);
  _tile_dpbf16ps(1, 4, 7);
  if constexpr (load_rows) _tile_loadd(5, a + 16 * depth, depth * 2);
  _tile_dpbf16ps(2, 5, 6);
  _tile_dpbf16ps(3, 5, 7);
}

// One block. Meanwhile `lines` cache lines from `next` on are brought nearer, so that the next rows
// of W wait in the second cache: the hardware stops fetching ahead at each page.
template <bool split_hidden, bool split_rows>
inline void multiply(const uint16_t* rows, const uint16_t* rows_low, const uint16_t* panel,
                     int64_t depth, const char* next, int64_t lines, float* z) {
  const int64_t lines_a_step = (lines * kDeep + depth - 1) / depth;
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int64_t d = 0; d < depth; d += kDeep, panel += (split_hidden ? 4 : 2) * kTile) {
    if constexpr (split_rows) add_products<true>(rows_low + d, depth, panel);
    add_products<true>(rows + d, depth, panel);
    if constexpr (split_hidden) add_products<false>(nullptr, 0, panel + 2 * kTile);
    for (int64_t i = 0; i < lines_a_step; i++, next += 64) _mm_prefetch(next, _MM_HINT_T1);
  }
  _tile_stored(0, z, kLanes * 4);
  _tile_stored(1, z + 16, kLanes * 4);
  _tile_stored(2, z + 16 * kLanes, kLanes * 4);
  _tile_stored(3, z + 16 * kLanes + 16, kLanes * 4);
}

template <bool split_hidden, bool split_rows>
void walk_parts(const WalkPiece& piece, Candidates& out) {
  const Head& head = *piece.head;
  const int64_t depth = up(head.dim, kDeep), panel = depth * kLanes * (split_hidden ? 2 : 1);
  const auto* hidden = static_cast<const uint16_t*>(piece.hidden);
  const auto* rows = static_cast<const uint16_t*>(piece.prepared);
  const uint16_t* low = rows + up(piece.row_end - piece.row, kRows) * depth;
  if (readable(head, piece.row_end - piece.row))
    rows = static_cast<const uint16_t*>(head.row(piece.row));
  const int64_t blocks = (piece.token_end - piece.token) / kLanes;
  const int64_t lines = (kRows * depth * 2 / 64 + blocks - 1) / blocks;
  alignas(64) float z[kRows * kLanes];
  for (int64_t row = piece.row; row < piece.row_end; row += kRows) {
    const int64_t left = piece.row_end - row, at = (row - piece.row) * depth;
    const char* next = reinterpret_cast<const char*>(rows + at + kRows * depth);
    for (int64_t token = piece.token; token < piece.token_end; token += kLanes) {
      multiply<split_hidden, split_rows>(rows + at, low + at, hidden + token / kLanes * panel,
                                         depth, next, lines, z);
      next += lines * 64;
      absorb_logits(head, row, left < kRows ? left : kRows, token, kLanes, z, piece.state, out);
    }
  }
}

void walk(const WalkPiece& piece, Candidates& out) {
  static constexpr TileConfig ours;
  TileConfig before;  // another library's on this thread (oneDNN's): leave it as it was
  _tile_storeconfig(&before);
  _tile_loadconfig(&ours);
  const DType type = piece.head->type;
  const bool split_rows = type != DType::bf16 && type != DType::i8;  // those are exact
  if (piece.exact_bf16) {
    if (split_rows) walk_parts<false, true>(piece, out);
    else walk_parts<false, false>(piece, out);
  } else if (split_rows) {
    walk_parts<true, true>(piece, out);
  } else {
    walk_parts<true, false>(piece, out);
  }
  if (before.palette) _tile_loadconfig(&before);
  else _tile_release();
}

}  // namespace

Walk amx_walk() {
  return {kLanes, kRows, packed_bytes, pack, prepared_bytes, prepare, nullptr, walk};
}

}  // namespace graftlm
