// Attention by blocks of the mask, in float32, and its gradient.
//
//     P = softmax(s q kᵀ)            y = P v
//     dV = Pᵀ dy      dS = P ∘ (dy vᵀ − δ),  δ = rowsum(dy ∘ y)      dq = s dS k      dk = s dSᵀ q
//
// A head of a block is one task, or in the forward pass several where threads are many: keys and values
// are widened and packed, then a tile of queries after the other is multiplied by those of them that it
// sees, a chunk at a time. Nothing of the size of positions × positions is stored: P is made again from
// the log-sum-exp of each row. Several heads of q may share one of k and v; their gradients are added in
// order, so that results do not depend on the number of threads.
//
// As separate operations on tensors, cast, spread to all heads, multiplied, gathered and cast again, the
// short products of sequences of 50 positions took half as long again (benchmarks/bench_attention.py).
#include "attention.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <utility>

#include "buffer.hpp"
#include "threads.hpp"
#include "tiles.hpp"

namespace graftlm {
namespace {

constexpr int64_t kChunk = 192;  // keys at a time: what is made of them stays in the nearer caches
constexpr float kInfinity = std::numeric_limits<float>::infinity();

struct Chunk {
  int64_t first, count, padded;
};

// One head of one block of positions.
class Task {
 public:
  Task(const Attention& a, int64_t batch, int64_t head, const AttentionBlock& block)
      : a_(a),
        b_(batch),
        h_(head),
        g_(head / (a.heads / a.groups)),
        start_(block.start),
        queries_(std::min(block.stop, a.queries) - block.start),
        keys_(std::min(block.stop, a.keys) - block.start),
        causal_(block.causal),
        wide_(Gemm::up(a.size, gemm_.panel)) {
    if (kChunk % gemm_.panel) throw std::logic_error("a chunk of keys is whole panels");
  }

  int64_t tiles() const { return ceil_div(queries_, kQueryTile); }

  void forward(int64_t tile, int64_t tile_end) {
    Buffer keys, values, scores;  // as long as the block: not kept
    static thread_local Buffer query, out;
    const char* k = pack(a_.k, g_, true, keys);
    const char* v = pack(a_.v, g_, false, values);
    for (; tile < tile_end; tile++) {
      const int64_t i = tile * kQueryTile, rows = std::min(kQueryTile, queries_ - i);
      const float* q = queries(a_.q, i, rows, a_.scale, query);
      float* p = scores.floats(rows * padded(keys_));
      float* o = out.zeros(rows * wide_);
      float peak[kQueryTile], sum[kQueryTile] = {};
      std::fill_n(peak, kQueryTile, -kInfinity);
      const auto [from, to] = seen(i, rows);
      over(from, to, [&](Chunk c) {
        float* s = multiply_keys(q, rows, k, c, p + rows * c.first);
        hide(s, rows, c, i, -kInfinity);
        kernels_.row_peaks(s, rows, c.padded, peak);
      });
      for (float& x : peak) x = std::max(x, std::numeric_limits<float>::lowest());
      over(from, to, [&](Chunk c) {
        float* s = p + rows * c.first;
        kernels_.exp_rows(s, rows, c.padded, peak, sum);
        hide(s, rows, c, i, 0.0f);
        gemm_.multiply(rows, a_.size, c.padded, s, v + at(c), o, wide_);
      });
      for (int64_t r = 0; r < rows; r++) {
        const bool blind = peak[r] == std::numeric_limits<float>::lowest();  // sees nothing: y is 0
        const float factor = blind ? 0.0f : 1.0f / sum[r];
        lse(i)[r] = blind ? kInfinity : peak[r] + std::log(sum[r]);
        for (int64_t d = 0; d < a_.size; d++) o[r * wide_ + d] *= factor;
        put(o + r * wide_, a_.y, h_, i + r);
      }
    }
  }

  // dk and dv: [keys][wide], of this head alone.
  void backward(float* dk, float* dv) {
    Buffer keys, values, rows_of_keys;  // as long as the block: not kept
    static thread_local Buffer query, slope, result, packed_q, packed_dy, first, second, turned, out;
    const char* k = pack(a_.k, g_, true, keys);
    const char* v = pack(a_.v, g_, true, values);
    const char* kr = pack(a_.k, g_, false, rows_of_keys);
    for (int64_t i = 0; i < queries_; i += kQueryTile) {
      const int64_t rows = std::min(kQueryTile, queries_ - i);
      const float* q = queries(a_.q, i, rows, a_.scale, query);
      const float* dy = queries(a_.dy, i, rows, 1.0f, slope);
      const float* y = queries(a_.y, i, rows, 1.0f, result);
      float delta[kQueryTile];
      for (int64_t r = 0; r < rows; r++)
        delta[r] = kernels_.dot(dy + r * a_.size, y + r * a_.size, a_.size);
      char* qb = packed_q.bytes(gemm_.bytes(a_.size, rows, gemm_.panel));
      char* dyb = packed_dy.bytes(gemm_.bytes(a_.size, rows, gemm_.panel));
      gemm_.pack_b(q, a_.size, 0, rows, rows, a_.size, qb);
      gemm_.pack_b(dy, a_.size, 0, rows, rows, a_.size, dyb);
      float* dq = out.zeros(rows * wide_);
      const auto [from, to] = seen(i, rows);
      over(from, to, [&](Chunk c) {
        float* p = multiply_keys(q, rows, k, c, first.floats(rows * c.padded));
        float unused[kQueryTile] = {};
        kernels_.exp_rows(p, rows, c.padded, lse(i), unused);
        hide(p, rows, c, i, 0.0f);
        float* ds = multiply_keys(dy, rows, v, c, second.floats(rows * c.padded));
        kernels_.softmax_slopes(p, delta, rows, c.padded, ds);
        float* t = turned.floats(rows * c.padded);
        kernels_.transpose(p, c.padded, rows, c.padded, t, rows);
        gemm_.multiply(c.count, a_.size, rows, t, dyb, dv + c.first * wide_, wide_);
        kernels_.transpose(ds, c.padded, rows, c.padded, t, rows);
        gemm_.multiply(c.count, a_.size, rows, t, qb, dk + c.first * wide_, wide_);
        gemm_.multiply(rows, a_.size, c.padded, ds, kr + at(c), dq, wide_);
      });
      for (int64_t r = 0; r < rows; r++) {
        for (int64_t d = 0; d < a_.size; d++) dq[r * wide_ + d] *= a_.scale;
        put(dq + r * wide_, a_.dq, h_, i + r);
      }
    }
  }

 private:
  int64_t padded(int64_t keys) const { return Gemm::up(keys, gemm_.panel); }

  // Bytes before a chunk of keys; each is packed by itself.
  int64_t at(Chunk c) const { return 4 * c.first * wide_; }

  template <class Body>
  void over(int64_t from, int64_t to, const Body& body) const {
    for (int64_t k = from / kChunk * kChunk; k < to; k += kChunk) {
      const int64_t count = std::min(kChunk, keys_ - k);
      body(Chunk{k, count, padded(count)});
    }
  }

  // All keys or values of a head: as columns to be multiplied with, or as rows.
  const char* pack(const Strided& of, int64_t head, bool as_columns, Buffer& space) const {
    static thread_local Buffer wide;
    char* to = space.bytes(4 * wide_ * padded(keys_));
    over(0, keys_, [&](Chunk c) {
      float* x = wide.floats(c.padded * a_.size);
      for (int64_t j = 0; j < c.count; j++)
        kernels_.to_float(of.at(b_, head, start_ + c.first + j, a_.type), a_.type, a_.size,
                          x + j * a_.size);
      std::fill_n(x + c.count * a_.size, (c.padded - c.count) * a_.size, 0.0f);
      if (as_columns) gemm_.pack_bt(x, a_.size, c.padded, a_.size, to + at(c));
      else gemm_.pack_b(x, a_.size, 0, c.padded, c.padded, a_.size, to + at(c));
    });
    return to;
  }

  const float* queries(const Strided& of, int64_t i, int64_t rows, float factor, Buffer& space) const {
    float* to = space.floats(rows * a_.size);
    for (int64_t r = 0; r < rows; r++)
      kernels_.to_float(of.at(b_, h_, start_ + i + r, a_.type), a_.type, a_.size, to + r * a_.size);
    if (factor != 1.0f)
      for (int64_t n = 0; n < rows * a_.size; n++) to[n] *= factor;
    return to;
  }

  float* multiply_keys(const float* x, int64_t rows, const char* packed, Chunk c, float* to) const {
    std::memset(to, 0, static_cast<size_t>(rows * c.padded) * 4);
    gemm_.multiply(rows, c.padded, a_.size, x, packed + at(c), to, c.padded);
    return to;
  }

  // Keys from the first to the last that any of these queries sees.
  std::pair<int64_t, int64_t> seen(int64_t i, int64_t rows) const {
    if (causal_) return {0, std::min(i + rows, keys_)};
    if (!a_.mask.data) return {0, keys_};
    int64_t from = keys_, to = 0;
    for (int64_t r = i; r < i + rows; r++) {
      const uint8_t* m = mask(r);
      int64_t j = 0, end = keys_;
      while (j < from && !m[j]) j++;
      while (end > to && !m[end - 1]) end--;
      from = std::min(from, j);
      to = std::max(to, end);
    }
    return {from, to};
  }

  // Put `value` where a query does not see a key, and where there is none.
  void hide(float* s, int64_t rows, Chunk c, int64_t i, float value) const {
    for (int64_t r = 0; r < rows; r++, s += c.padded) {
      int64_t end = c.count;
      if (causal_) end = std::clamp<int64_t>(i + r + 1 - c.first, 0, c.count);
      else if (a_.mask.data) {
        const uint8_t* sees = mask(i + r) + c.first;
        for (int64_t j = 0; j < c.count; j++)
          if (!sees[j]) s[j] = value;
      }
      std::fill(s + end, s + c.padded, value);
    }
  }

  const uint8_t* mask(int64_t i) const {
    const auto* m = static_cast<const uint8_t*>(a_.mask.data);
    return m + b_ * a_.mask.batch + h_ * a_.mask.head + (start_ + i) * a_.mask.position + start_;
  }

  float* lse(int64_t i) const { return a_.lse + (b_ * a_.heads + h_) * a_.queries + start_ + i; }

  void put(const float* row, const Strided& to, int64_t head, int64_t i) const {
    kernels_.from_float(row, a_.size, to.at(b_, head, start_ + i, a_.type), a_.type);
  }

  const Level& kernels_ = level();
  const Gemm& gemm_ = gemm(Compute::f32);
  const Attention& a_;
  int64_t b_, h_, g_, start_, queries_, keys_;
  bool causal_;
  int64_t wide_;
};

}  // namespace

void attention(const Attention& a, int threads) {
  const int64_t heads = a.batches * a.heads * a.block_count;
  const int64_t parts = ceil_div(threads, std::max<int64_t>(heads, 1));  // of the queries of a head
  parallel_for(heads * parts, threads, [&](int64_t i) {
    const int64_t part = i % parts, block = i / parts % a.block_count;
    const int64_t head = i / parts / a.block_count;
    Task task(a, head / a.heads, head % a.heads, a.blocks[block]);
    const int64_t share = ceil_div(task.tiles(), parts);
    const int64_t first = part * share, last = std::min(task.tiles(), first + share);
    if (first < last) task.forward(first, last);
  });
}

void attention_backward(const Attention& a, int threads) {
  const int64_t wide = Gemm::up(a.size, gemm(Compute::f32).panel);
  const int64_t head_size = a.keys * wide, heads = a.batches * a.heads;
  Buffer first, second;
  float* dk = first.zeros(heads * head_size);
  float* dv = second.zeros(heads * head_size);
  parallel_for(heads * a.block_count, threads, [&](int64_t i) {
    const int64_t head = i / a.block_count;
    const AttentionBlock& block = a.blocks[i % a.block_count];
    const int64_t at = head * head_size + block.start * wide;
    Task(a, head / a.heads, head % a.heads, block).backward(dk + at, dv + at);
  });
  constexpr int64_t slice = 64;  // positions gathered by a task
  const int64_t shared = a.heads / a.groups, slices = ceil_div(a.keys, slice);
  parallel_for(a.batches * a.groups * slices, threads, [&](int64_t i) {
    const int64_t group = i / slices, from = i % slices * slice, to = std::min(from + slice, a.keys);
    for (float* all : {dk, dv}) {
      float* sum = all + group * shared * head_size;
      for (int64_t h = 1; h < shared; h++)
        for (int64_t n = from * wide; n < to * wide; n++) sum[n] += sum[h * head_size + n];
      const Strided& out = all == dk ? a.dk : a.dv;
      for (int64_t j = from; j < to; j++)
        level().from_float(sum + j * wide, a.size,
                           out.at(group / a.groups, group % a.groups, j, a.type), a.type);
    }
  });
}

}  // namespace graftlm
