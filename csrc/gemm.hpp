// A reusable tile product: C += A B, with A and B packed for the micro-kernel of one level.
//
//     A   rows x depth     B   depth x cols     C   float32, rows x cols, row-major
//
// Packing takes float32 rows, or a frozen weight as it is stored, and pads with zeros up to row_step, panel and depth_step; B may be
// given as its rows (pack_b) or as its columns (pack_bt: the other operand of an A Bᵀ product). Each
// call of `multiply` sums its `depth` products from zero, all at once or some 64 at a time, and adds
// the sums to C: a two-level sum, whose order never depends on the number of threads.
//
//     a = aligned(gemm.bytes(rows, depth, gemm.row_step))     offset of row r: a + gemm.at(r, depth)
//     b = aligned(gemm.bytes(cols, depth, gemm.panel))        offset of column c, c % panel == 0
#pragma once
#include <cstddef>
#include <cstdint>

namespace graftlm {

struct Weight;
enum class DType : int;

struct Gemm {
  const char* name;
  int64_t row_step;     // rows of A (and C) are padded to a multiple of this
  int64_t panel;        // columns of B (and C) are padded to a multiple of this
  int64_t depth_step;   // and the depth of each packed block to a multiple of this
  int64_t step_bytes;   // packed bytes of a line for each depth_step, all planes together
  int64_t depth_block;  // depth to give one call, a multiple of 64: a panel of B in the first cache
  bool plain_a;         // A is rows x depth floats as they are: they may be written in place
  int64_t row_tile;     // rows of A worth handing to one task
  int64_t col_tile;     // columns of B worth handing to one task

  void (*pack_a)(const float* src, int64_t ld, int64_t rows, int64_t depth, void* a);
  // Rows [first, first + count) of B: whole multiples of depth_step both, but for the last rows.
  void (*pack_b)(const float* src, int64_t ld, int64_t first, int64_t count, int64_t depth,
                 int64_t cols, void* b);
  void (*pack_bt)(const float* src, int64_t ld, int64_t cols, int64_t depth, void* b);

  // From what a frozen weight is stored in, with no float32 between; null where that is no shorter.
  // A stored one has whole blocks a row, of `direct_block` or more elements. `start`, an element, lies
  // on a multiple of that; `col` and `cols` are multiples of two panels, which share a block. Otherwise
  // as pack_a and pack_b.
  static constexpr int64_t direct_block = 64;
  void (*pack_a_stored)(const Weight& w, int64_t start, int64_t rows, int64_t depth, void* a);
  void (*pack_b_stored)(const Weight& w, int64_t row, int64_t col, int64_t first, int64_t count,
                        int64_t depth, int64_t cols, void* b);
  // Rows of a dense weight of any type; float16 is widened a block at a time.
  void (*pack_a_dense)(const void* src, DType type, int64_t ld, int64_t rows, int64_t depth, void* a);
  // ldc >= cols padded to panel; C has rows padded to row_step.
  void (*multiply)(int64_t rows, int64_t cols, int64_t depth, const void* a, const void* b,
                   float* c, int64_t ldc);

  static int64_t up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }
  int64_t at(int64_t line, int64_t depth) const {
    return line * (up(depth, depth_step) / depth_step) * step_bytes;
  }
  int64_t bytes(int64_t lines, int64_t depth, int64_t step) const {
    return at(up(lines, step), depth);
  }
};

}  // namespace graftlm
