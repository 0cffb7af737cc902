// The parts of the walk that every instruction set shares, over a vector type V with V::width
// lanes. Included once by each cross_entropy_<level>.cpp, which is compiled for its own
// instructions: everything here has internal linkage and uses no library templates, so that no
// code for a newer CPU can be linked into another level.
#pragma once

#include <cmath>
#include <cstring>

#include "cross_entropy.hpp"

namespace graftlm::cross_entropy {
namespace {

constexpr float kLog2E = 1.44269504088896341f;

// 2^t for t ≤ 0, clamped at 2^−126; relative error below 2e-7 (minimax polynomial on [0, 1)).
// NaN stays NaN.
template <class V>
inline V exp2_nonpositive(V t) {
  t = V::max(V::set(-126.0f), t);
  const V f = t.fraction();
  V p = V::set(1.877572769e-3f);
  p = V::fma(p, f, V::set(8.989344701e-3f));
  p = V::fma(p, f, V::set(5.582631919e-2f));
  p = V::fma(p, f, V::set(2.401536143e-1f));
  p = V::fma(p, f, V::set(6.931530740e-1f));
  p = V::fma(p, f, V::set(1.0f));
  return p.times_power_of_two(t);
}

// bias, scale and softcap, in place; z[row][lane] with `stride` floats a row.
template <class V>
inline void finish(const Head& head, int64_t row, int rows, float* z, int lanes) {
  for (int r = 0; r < rows; ++r) {
    const V bias = V::set(head.bias ? head.bias[row + r] : 0.0f);
    for (int c = 0; c < lanes; c += V::width) {
      V a = (V::load(z + r * lanes + c) + bias) * V::set(head.scale);
      if (head.softcap > 0) {
        // tanh |x| = (1 − e) / (1 + e), e = exp(−2 |x|)
        const V x = a * V::set(1.0f / head.softcap);
        const V e = exp2_nonpositive<V>(x.abs() * V::set(-2.0f * kLog2E));
        const V t = (V::set(1.0f) - e) / (V::set(1.0f) + e);
        a = t.with_sign_of(x) * V::set(head.softcap);
      }
      a.store(z + r * lanes + c);
    }
  }
}

// Absorb z[rows][lanes] into the state of tokens [token, token + lanes); append candidates.
template <class V>
inline void absorb(const float* z, int rows, int lanes, int64_t token, int64_t row,
                   const State& state, float log_tolerance, Candidates& out) {
  for (int c = 0; c < lanes; c += V::width, token += V::width) {
    const V before = V::load(state.peak + token);
    V m0 = V::load(z + c), m1 = m0;
    int r = 1;
    for (; r + 1 < rows; r += 2) {
      m0 = V::max(m0, V::load(z + r * lanes + c));
      m1 = V::max(m1, V::load(z + (r + 1) * lanes + c));
    }
    if (r < rows) m0 = V::max(m0, V::load(z + r * lanes + c));
    const V high = V::max(m0, m1);
    const V peak = V::max(before, high);
    const V offset = peak * V::set(-kLog2E);
    const V limit = V::max(V::load(state.bound + token), peak) + V::set(log_tolerance);
    const bool any = V::any_greater(high, limit);

    V s0 = V::set(0.0f), s1 = s0;
    for (r = 0; r + 1 < rows; r += 2) {
      s0 = s0 + exp2_nonpositive<V>(V::fma(V::load(z + r * lanes + c), V::set(kLog2E), offset));
      s1 = s1 +
           exp2_nonpositive<V>(V::fma(V::load(z + (r + 1) * lanes + c), V::set(kLog2E), offset));
    }
    if (r < rows)
      s0 = s0 + exp2_nonpositive<V>(V::fma(V::load(z + r * lanes + c), V::set(kLog2E), offset));
    const V shrink = exp2_nonpositive<V>((before - peak) * V::set(kLog2E));  // 1 if unchanged
    V::fma(V::load(state.sum + token), shrink, s0 + s1).store(state.sum + token);
    peak.store(state.peak + token);

    if (!any) continue;
    for (r = 0; r < rows; ++r)
      out.count += V::append_greater(V::load(z + r * lanes + c), limit, key(token, row + r),
                                     key(1, 0), out.keys + out.count, out.logits + out.count);
  }
}

template <class V>
inline V load_weight(const Head& head, int64_t index) {
  return head.element == Element::bfloat16
             ? V::load_bf16(static_cast<const uint16_t*>(head.weight) + index)
             : V::load(static_cast<const float*>(head.weight) + index);
}

inline float weight_at(const Head& head, int64_t index) {
  if (head.element == Element::float32) return static_cast<const float*>(head.weight)[index];
  const uint32_t bits = static_cast<const uint16_t*>(head.weight)[index];
  const uint32_t wide = bits << 16;
  float value;
  std::memcpy(&value, &wide, 4);
  return value;
}

// One logit in float32.
template <class V>
float logit(const Head& head, const float* hidden, int64_t row) {
  const int64_t base = row * head.dim;
  V s = V::set(0.0f);
  int64_t d = 0;
  for (; d + V::width <= head.dim; d += V::width)
    s = V::fma(V::load(hidden + d), load_weight<V>(head, base + d), s);
  float z = s.sum();
  for (; d < head.dim; ++d) z += hidden[d] * weight_at(head, base + d);
  z = (z + (head.bias ? head.bias[row] : 0.0f)) * head.scale;
  return head.softcap > 0 ? head.softcap * std::tanh(z / head.softcap) : z;
}

// out[dim] += Σ factor · w_row for N rows; fetches the N rows after them meanwhile: they lie anywhere.
template <class V, int N>
inline void gather_few(const Head& head, const uint32_t* rows, const float* factors, int64_t ahead,
                       float* out) {
  const int64_t size = head.element == Element::bfloat16 ? 2 : 4;
  int64_t base[N];
  const char* next[N];
  V factor[N];
  for (int i = 0; i < N; ++i) {
    base[i] = static_cast<int64_t>(rows[i]) * head.dim;
    factor[i] = V::set(factors[i]);
    next[i] = static_cast<const char*>(head.weight) +
              static_cast<int64_t>(rows[i < ahead ? N + i : i]) * head.dim * size;
  }
  int64_t d = 0;
  for (; d + V::width <= head.dim; d += V::width) {
    V sum = V::load(out + d);
    for (int i = 0; i < N; ++i) {
      __builtin_prefetch(next[i] + d * size);
      sum = V::fma(factor[i], load_weight<V>(head, base[i] + d), sum);
    }
    sum.store(out + d);
  }
  for (; d < head.dim; ++d)
    for (int i = 0; i < N; ++i) out[d] += factors[i] * weight_at(head, base[i] + d);
}

template <class V>
void gather(const Head& head, const uint32_t* rows, const float* factors, int64_t count,
            float* out) {
  int64_t i = 0;
  for (; i + 4 <= count; i += 4)
    gather_few<V, 4>(head, rows + i, factors + i, count - i - 4, out);
  for (; i < count; ++i) gather_few<V, 1>(head, rows + i, factors + i, count - i - 1, out);
}

inline bool plain(const Head& head) {
  return head.bias == nullptr && head.scale == 1.0f && head.softcap == 0.0f;
}

// The float32 walk: blocks of 2 R rows × C vectors of tokens, accumulators in registers.
//   hidden    [panel][dim][C · width]
//   prepared  [row group][dim][R], float32, rows past the end zero
template <class V, int R, int C>
struct Float32Walk {
  static constexpr int kLanes = C * V::width;
  static constexpr int kGroups = 2;

  static size_t packed_bytes(int64_t tokens, int64_t dim, bool) {
    return static_cast<size_t>((tokens + kLanes - 1) / kLanes * kLanes * dim) * sizeof(float);
  }

  static void pack(const float* hidden, int64_t tokens, int64_t dim, bool, void* packed) {
    float* to = static_cast<float*>(packed);
    for (int64_t t = 0; t < tokens; t += kLanes)
      for (int64_t d = 0; d < dim; ++d)
        for (int lane = 0; lane < kLanes; ++lane)
          *to++ = t + lane < tokens ? hidden[(t + lane) * dim + d] : 0.0f;
  }

  static size_t prepared_bytes(int64_t rows, int64_t dim) {
    return static_cast<size_t>((rows + R - 1) / R * R * dim) * sizeof(float);
  }

  static void prepare(const Head& head, int64_t row, int64_t row_end, void* prepared) {
    float* group = static_cast<float*>(prepared);
    for (; row < row_end; row += R, group += R * head.dim)
      for (int r = 0; r < R; ++r)
        for (int64_t d = 0; d < head.dim; ++d)
          group[d * R + r] = row + r < row_end ? weight_at(head, (row + r) * head.dim + d) : 0.0f;
  }

  static void product(const float* hidden, const float* group, int64_t dim, float* z) {
    V sum[R][C];
    for (int r = 0; r < R; ++r)
      for (int c = 0; c < C; ++c) sum[r][c] = V::set(0.0f);
    for (int64_t d = 0; d < dim; ++d, hidden += kLanes, group += R) {
      V h[C];
#pragma GCC unroll 4
      for (int c = 0; c < C; ++c) h[c] = V::load(hidden + c * V::width);
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) {
        const V w = V::set(group[r]);
#pragma GCC unroll 4
        for (int c = 0; c < C; ++c) sum[r][c] = V::fma(w, h[c], sum[r][c]);
      }
    }
    for (int r = 0; r < R; ++r)
      for (int c = 0; c < C; ++c) sum[r][c].store(z + r * kLanes + c * V::width);
  }

  static size_t walk(const Piece& piece, bool) {
    const Head& head = *piece.head;
    const float* hidden = static_cast<const float*>(piece.hidden);
    const float* groups = static_cast<const float*>(piece.prepared);
    const bool unfinished = !plain(head);
    alignas(64) float z[kGroups * R * kLanes];
    Candidates out = piece.out;
    for (int64_t token = piece.token; token < piece.token_end; token += kLanes) {
      const float* panel = hidden + token * head.dim;
      for (int64_t row = piece.row; row < piece.row_end; row += kGroups * R) {
        const int64_t left = piece.row_end - row;
        const int rows = static_cast<int>(left < kGroups * R ? left : kGroups * R);
        for (int r = 0; r < rows; r += R)
          product(panel, groups + (row - piece.row + r) * head.dim, head.dim, z + r * kLanes);
        if (unfinished) finish<V>(head, row, rows, z, kLanes);
        absorb<V>(z, rows, kLanes, token, row, piece.state, piece.log_tolerance, out);
      }
    }
    return out.count;
  }
};

inline void nothing() {}

template <class V, int R, int C>
inline Kernels float32_kernels(const char* name) {
  using Walk = Float32Walk<V, R, C>;
  return {name, Walk::kLanes, Walk::kGroups * R, Walk::packed_bytes, Walk::prepared_bytes,
          Walk::prepare, Walk::pack,           Walk::walk,         logit<V>,
          gather<V>,     nothing,              nothing};
}

}  // namespace
}  // namespace graftlm::cross_entropy
