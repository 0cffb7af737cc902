// The NF4 storage format: levels, thresholds, and how an element of a stored weight is read.
//
// A weight is flattened row-major and cut into blocks of `block` elements. Each element is a 4-bit
// code; two codes share a byte, the first in the high nibble. An element is
//
//     level[code] * scale(block)          one float32 product, rounded once
//
// where the scale is stored in float32, or (double quantisation) restored from 8 bits:
//
//     scale(b) = map[absmax8[b]] * nested[b / 256] + offset        two roundings, no FMA
//
// The library is compiled with -ffp-contract=off so that this arithmetic is PyTorch's to the bit.
#pragma once
#include <cstdint>

namespace graftlm {

// Equal to graftlm.kernels.nf4.codebook.nf4_levels(), which derives them; a test compares the two.
alignas(64) constexpr float kLevels[16] = {
    -1.0f, -0.6961928009986877f, -0.5250730514526367f, -0.39491748809814453f,
    -0.28444138169288635f, -0.18477343022823334f, -0.09105003625154495f, 0.0f,
    0.07958029955625534f, 0.16093020141124725f, 0.24611230194568634f, 0.33791524171829224f,
    0.44070982933044434f, 0.5626170039176941f, 0.7229568362236023f, 1.0f};

constexpr int kZeroCode = 7;
constexpr float kSmallestAbsmax = 1e-38f;  // quotients by a smaller maximum are taken by this one
constexpr int64_t kSmallestBlock = 32, kLargestBlock = 4096;  // and powers of two between
constexpr int kGroupShift = 8;             // 256 block maxima share a nested maximum

// Halfway between neighbouring levels; the code of a value is the number of thresholds below it.
constexpr float threshold(int i) { return (kLevels[i] + kLevels[i + 1]) * 0.5f; }

struct Weight {
  const uint8_t* codes;
  const float* absmax;     // null when double-quantised
  const uint8_t* absmax8;  // null unless double-quantised, as are the next two
  const float* nested;
  const float* map;  // the 256 levels of the dynamic map
  float offset;
  int64_t rows, cols;
  int block_shift;  // log2 of the block size, a power of two from 32 to 4096

  int64_t block() const { return int64_t{1} << block_shift; }
  int64_t size() const { return rows * cols; }
  float scale(int64_t b) const {
    return absmax8 ? map[absmax8[b]] * nested[b >> kGroupShift] + offset : absmax[b];
  }
  int code(int64_t i) const { return (codes[i >> 1] >> (i & 1 ? 0 : 4)) & 15; }
};

}  // namespace graftlm
