// The walk on AMX tiles: products of bfloat16, sums in float32, 32 rows × 32 tokens a block.
//
// A tile register holds 16 rows of 64 bytes. TDPBF16PS adds to C[16 vocabulary rows][16 tokens] the
// product of A[16 rows][32 of dim], 16 rows of W as they lie in memory, and B[16 pairs of dim]
// [16 tokens][2], the packed hidden states. Four C, two A and two B fill the eight registers.
//
//   hidden    [panel of 32 tokens][dim / 32][part: hi, lo][2 tiles]; no lo when `exact_bf16`
//   prepared  [part: hi, lo][rows to 32][dim to 32], only where W itself cannot be read in tiles
#include "cross_entropy_sixteen.hpp"
#include "cross_entropy_walk.hpp"

namespace graftlm::cross_entropy {
namespace {

constexpr int kLanes = 32;
constexpr int kRows = 32;
constexpr int kDepth = 32;
constexpr int64_t kTile = 512;  // bfloat16 values in a tile

inline int64_t round_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

inline uint16_t to_bf16(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  if ((bits & 0x7fffffff) > 0x7f800000) return 0x7fc0;  // NaN
  return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

inline float from_bf16(uint16_t half) {
  const uint32_t bits = static_cast<uint32_t>(half) << 16;
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}

size_t packed_bytes(int64_t tokens, int64_t dim, bool exact_bf16) {
  const int64_t parts = exact_bf16 ? 1 : 2;
  return static_cast<size_t>(round_up(tokens, kLanes) * round_up(dim, kDepth) * parts) * 2;
}

void pack(const float* hidden, int64_t tokens, int64_t dim, bool exact_bf16, void* packed) {
  uint16_t* to = static_cast<uint16_t*>(packed);
  const int64_t parts = exact_bf16 ? 1 : 2;
  for (int64_t t0 = 0; t0 < tokens; t0 += kLanes)
    for (int64_t d0 = 0; d0 < dim; d0 += kDepth, to += parts * 2 * kTile)
      for (int lane = 0; lane < kLanes; ++lane)
        for (int d = 0; d < kDepth; ++d) {
          const bool inside = t0 + lane < tokens && d0 + d < dim;
          const float x = inside ? hidden[(t0 + lane) * dim + d0 + d] : 0.0f;
          const int64_t at = lane / 16 * kTile + d / 2 * 32 + lane % 16 * 2 + d % 2;
          const uint16_t hi = to_bf16(x);
          to[at] = hi;
          if (!exact_bf16) to[2 * kTile + at] = to_bf16(x - from_bf16(hi));
        }
}

// Rows of W that tiles can be loaded from where they are.
inline bool direct(const Head& head, int64_t rows) {
  return head.element == Element::bfloat16 && head.dim % kDepth == 0 && rows % kRows == 0;
}

size_t prepared_bytes(int64_t rows, int64_t dim) {
  return static_cast<size_t>(2 * round_up(rows, kRows) * round_up(dim, kDepth)) * 2;
}

void prepare(const Head& head, int64_t row, int64_t row_end, void* prepared) {
  if (direct(head, row_end - row)) return;
  const int64_t rows = round_up(row_end - row, kRows), depth = round_up(head.dim, kDepth);
  uint16_t* hi = static_cast<uint16_t*>(prepared);
  uint16_t* lo = hi + rows * depth;
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t d = 0; d < depth; ++d) {
      const bool inside = row + r < row_end && d < head.dim;
      const float x = inside ? weight_at(head, (row + r) * head.dim + d) : 0.0f;
      hi[r * depth + d] = to_bf16(x);
      lo[r * depth + d] = to_bf16(x - from_bf16(hi[r * depth + d]));
    }
}

inline void add_products(const uint16_t* a, int64_t row_length, const uint16_t* b) {
  _tile_loadd(4, a, row_length * 2);
  _tile_loadd(6, b, 64);
  _tile_dpbf16ps(0, 4, 6);
  _tile_loadd(7, b + kTile, 64);
  _tile_dpbf16ps(1, 4, 7);
  _tile_loadd(5, a + 16 * row_length, row_length * 2);
  _tile_dpbf16ps(2, 5, 6);
  _tile_dpbf16ps(3, 5, 7);
}

// Products with the second part of B, A still in its registers.
inline void add_products_again(const uint16_t* b) {
  _tile_loadd(6, b, 64);
  _tile_dpbf16ps(0, 4, 6);
  _tile_dpbf16ps(2, 5, 6);
  _tile_loadd(7, b + kTile, 64);
  _tile_dpbf16ps(1, 4, 7);
  _tile_dpbf16ps(3, 5, 7);
}

// z = one block. Meanwhile `lines` cache lines from `next` on are fetched, so that the next rows of W
// are in the second-level cache when their turn comes: mapped files defeat the hardware's prefetch.
template <bool SplitHidden, bool SplitWeight>
inline void product(const uint16_t* panel, const uint16_t* rows, const uint16_t* rows_lo,
                    int64_t depth, const char* next, int64_t lines, float* z) {
  const int64_t lines_a_step = (lines * kDepth + depth - 1) / depth;
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int64_t d = 0; d < depth; d += kDepth, panel += (SplitHidden ? 4 : 2) * kTile) {
    if (SplitWeight) add_products(rows_lo + d, depth, panel);
    add_products(rows + d, depth, panel);
    if (SplitHidden) add_products_again(panel + 2 * kTile);
    for (int64_t line = 0; line < lines_a_step; ++line, next += 64) if(0)_mm_prefetch(next, _MM_HINT_T1);
  }
  _tile_stored(0, z, kLanes * 4);
  _tile_stored(1, z + 16, kLanes * 4);
  _tile_stored(2, z + 16 * kLanes, kLanes * 4);
  _tile_stored(3, z + 16 * kLanes + 16, kLanes * 4);
}

template <bool SplitHidden, bool SplitWeight>
size_t walk_parts(const Piece& piece) {
  const Head& head = *piece.head;
  const int64_t depth = round_up(head.dim, kDepth);
  const int64_t panel_values = depth * kLanes * (SplitHidden ? 2 : 1);
  const uint16_t* hidden = static_cast<const uint16_t*>(piece.hidden);
  const uint16_t* rows = static_cast<const uint16_t*>(piece.prepared);
  const uint16_t* rows_lo = rows + round_up(piece.row_end - piece.row, kRows) * depth;
  if (direct(head, piece.row_end - piece.row))
    rows = static_cast<const uint16_t*>(head.weight) + piece.row * head.dim;
  const int64_t blocks = (piece.token_end - piece.token) / kLanes;
  const int64_t lines = (kRows * depth * 2 / 64 + blocks - 1) / blocks;
  const bool unfinished = !plain(head);
  alignas(64) float z[kRows * kLanes];
  Candidates out = piece.out;
  for (int64_t row = piece.row; row < piece.row_end; row += kRows) {
    const int64_t left = piece.row_end - row;
    const int valid = static_cast<int>(left < kRows ? left : kRows);
    const int64_t at = (row - piece.row) * depth;
    const char* next = reinterpret_cast<const char*>(rows + at + kRows * depth);
    for (int64_t token = piece.token; token < piece.token_end; token += kLanes) {
      const uint16_t* panel = hidden + token / kLanes * panel_values;
      product<SplitHidden, SplitWeight>(panel, rows + at, rows_lo + at, depth, next, lines, z);
      next += lines * 64;
      if (unfinished) finish<Sixteen>(head, row, valid, z, kLanes);
      absorb<Sixteen>(z, valid, kLanes, token, row, piece.state, piece.log_tolerance, out);
    }
  }
  return out.count;
}

size_t walk(const Piece& piece, bool exact_bf16) {
  const bool split_weight = piece.head->element == Element::float32;
  if (exact_bf16)
    return split_weight ? walk_parts<false, true>(piece) : walk_parts<false, false>(piece);
  return split_weight ? walk_parts<true, true>(piece) : walk_parts<true, false>(piece);
}

// All eight tiles: 16 rows of 64 bytes. (A constant: GCC does not see that the instruction reads it.)
struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
const TileConfig kTiles;

void enter() { _tile_loadconfig(&kTiles); }

void leave() { _tile_release(); }

}  // namespace

const Kernels* amx_kernels() {
  static const Kernels kernels = {"amx",   kLanes, kRows, packed_bytes, prepared_bytes,
                                  prepare, pack,          walk,         logit<Sixteen>,
                                  gather<Sixteen>, enter, leave};
  return &kernels;
}

}  // namespace graftlm::cross_entropy
