// Cutting a product into tiles, and reading a tile of an input of any type.
#pragma once
#include <algorithm>
#include <cstdint>

#include "buffer.hpp"
#include "level.hpp"

namespace graftlm {

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Cuts `total` into equal tiles of at most `most`, as many for each thread, in steps of `step`.
inline int64_t even_tile(int64_t total, int64_t most, int64_t step, int threads) {
  const int64_t share = ceil_div(total, threads), tiles = threads * ceil_div(share, most);
  return Gemm::up(ceil_div(total, tiles), step);
}

struct Input {
  const void* data;
  DType type;
  int64_t cols;

  // Rows [r, r + rows), columns [c, c + cols) in float32: in place if they are, else converted.
  const float* tile(int64_t r, int64_t rows, int64_t c, int64_t cols_, Buffer& space,
                    int64_t& ld) const {
    const char* from = static_cast<const char*>(data) + (r * cols + c) * int64_t(size_of(type));
    if (type == DType::f32) {
      ld = cols;
      return reinterpret_cast<const float*>(from);
    }
    ld = cols_;
    float* to = space.floats(rows * cols_);
    for (int64_t i = 0; i < rows; i++)
      level().to_float(from + i * cols * int64_t(size_of(type)), type, cols_, to + i * cols_);
    return to;
  }
};

}  // namespace graftlm
