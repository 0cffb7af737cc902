// Scaled dot-product attention over blocks of positions, forward and backward; see attention.cpp.
#pragma once
#include <cstdint>

#include "kernels.hpp"

namespace graftlm {

// Vectors of `size` elements by batch, head and position: strides in elements, vectors contiguous.
struct Strided {
  void* data;
  int64_t batch, head, position;

  void* at(int64_t b, int64_t h, int64_t i, DType type) const {
    const int64_t element = b * batch + h * head + i * position;
    return static_cast<char*>(data) + element * int64_t(size_of(type));
  }
};

// Positions [start, stop) that see no others; causal: each sees all up to itself.
struct AttentionBlock {
  int64_t start, stop;
  bool causal;
};

constexpr int64_t kQueryTile = 48;  // queries at a time

struct Attention {
  int64_t batches, heads, groups, queries, keys, size;  // heads / groups heads share one of k and v
  DType type;
  Strided q, k, v;
  Strided mask;  // bytes, not 0 where a key is seen: its position is a query's, keys follow each other
  float scale;
  const AttentionBlock* blocks;  // all positions in turn; the mask is not read in a causal one
  int64_t block_count;

  Strided y;
  float* lse;  // [batches][heads][queries]

  Strided dy, dq, dk, dv;  // of the backward pass alone
};

void attention(const Attention& request, int threads);           // writes y and lse
void attention_backward(const Attention& request, int threads);  // writes dq, dk and dv

}  // namespace graftlm
