// The vector part of the linear cross-entropy, over `Simd`; see cross_entropy.hpp. Like level.inl,
// everything is internal to the including file.
#include "cross_entropy.hpp"
#include "scalar.hpp"

namespace graftlm {
namespace {

constexpr float kLog2E = 1.44269504088896341f;

// 2^t for t ≤ 126, at least 2^−126; relative error below 2e-7 (minimax on [0, 1)). NaN stays NaN.
inline Simd::F exp2_of(Simd::F t) {
  t = Simd::max(Simd::set1(-126.0f), t);
  const Simd::F whole = Simd::floor(t), f = Simd::sub(t, whole);
  Simd::F p = Simd::set1(1.877572769e-3f);
  p = Simd::fma(p, f, Simd::set1(8.989344701e-3f));
  p = Simd::fma(p, f, Simd::set1(5.582631919e-2f));
  p = Simd::fma(p, f, Simd::set1(2.401536143e-1f));
  p = Simd::fma(p, f, Simd::set1(6.931530740e-1f));
  p = Simd::fma(p, f, Simd::set1(1.0f));
  return Simd::scale2(p, whole);
}

// c tanh(a / c) = c − 2 c / (1 + exp(2 a / c))
inline Simd::F capped(Simd::F a, float cap) {
  const Simd::F t = Simd::mul(a, Simd::set1(-2.0f * kLog2E / cap));
  const Simd::F e = exp2_of(Simd::sub(Simd::zero(), Simd::max(Simd::set1(-64.0f), t)));
  const Simd::F half = Simd::div(Simd::set1(-2.0f * cap), Simd::add(e, Simd::set1(1.0f)));
  return Simd::add(half, Simd::set1(cap));
}

// Scale of the row, bias, scale and cap, in place: z[rows][lanes].
inline void finish_logits(const Head& head, int64_t row, int64_t rows, int64_t lanes, float* z) {
  for (int64_t r = 0; r < rows; r++) {
    const Simd::F bias = Simd::set1(head.bias ? head.bias[row + r] : 0.0f);
    const Simd::F of_row = Simd::set1(head.scale_of(row + r));
    for (int64_t c = 0; c < lanes; c += Simd::width, z += Simd::width) {
      Simd::F a = Simd::fma(Simd::load(z), of_row, bias);
      a = Simd::mul(a, Simd::set1(head.scale));
      Simd::store(z, head.softcap > 0 ? capped(a, head.softcap) : a);
    }
  }
}

// Append the lanes of `z` above `limit`; memory past the last one may be overwritten.
inline void append_above(Simd::F z, Simd::F limit, uint32_t key, Candidates& out) {
#if defined(__AVX512F__)
  const __mmask16 mask = _mm512_cmp_ps_mask(z, limit, _CMP_GT_OQ);
  const __m512i lanes = _mm512_slli_epi32(
      _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15), 12);
  static_assert(kPartitionRows == 1 << 12, "the shift above");
  const __m512i keys = _mm512_add_epi32(lanes, _mm512_set1_epi32(static_cast<int>(key)));
  _mm512_storeu_si512(out.keys + out.count, _mm512_maskz_compress_epi32(mask, keys));
  _mm512_storeu_ps(out.logits + out.count, _mm512_maskz_compress_ps(mask, z));
  out.count += static_cast<size_t>(__builtin_popcount(mask));
#else
  if (!Simd::any_above(z, limit)) return;
  float values[Simd::width], limits[Simd::width];
  Simd::store(values, z);
  Simd::store(limits, limit);
  for (int lane = 0; lane < Simd::width; lane++) {
    if (!(values[lane] > limits[lane])) continue;
    out.keys[out.count] = key + static_cast<uint32_t>(lane * kPartitionRows);
    out.logits[out.count++] = values[lane];
  }
#endif
}

// Absorb z[rows][lanes], logits of tokens [token, token + lanes), into the walk.
void absorb_logits(const Head& head, int64_t row, int64_t rows, int64_t token, int64_t lanes,
                   float* z, const WalkState& state, Candidates& out) {
  if (head.row_scale || head.bias || head.scale != 1.0f || head.softcap > 0)
    finish_logits(head, row, rows, lanes, z);
  const Simd::F log2e = Simd::set1(kLog2E);
  for (int64_t c = 0; c < lanes; c += Simd::width, token += Simd::width) {
    const float* column = z + c;
    Simd::F high[2] = {Simd::load(column), Simd::load(column)};
    for (int64_t r = 1; r < rows; r++) high[r % 2] = Simd::max(high[r % 2], Simd::load(column + r * lanes));
    const Simd::F highest = Simd::max(high[0], high[1]);
    const Simd::F before = Simd::load(state.peak + token);
    const Simd::F peak = Simd::max(before, highest);
    const Simd::F offset = Simd::mul(peak, Simd::set1(-kLog2E));

    Simd::F sum[2] = {Simd::zero(), Simd::zero()};
    for (int64_t r = 0; r < rows; r++) {
      const Simd::F t = Simd::fma(Simd::load(column + r * lanes), log2e, offset);
      sum[r % 2] = Simd::add(sum[r % 2], exp2_of(t));
    }
    const Simd::F shrink = exp2_of(Simd::mul(Simd::sub(before, peak), log2e));  // 1 if unchanged
    const Simd::F old = Simd::load(state.sum + token);
    Simd::store(state.sum + token, Simd::fma(old, shrink, Simd::add(sum[0], sum[1])));
    Simd::store(state.peak + token, peak);

    const Simd::F bound = Simd::max(Simd::load(state.bound + token), peak);
    const Simd::F limit = Simd::add(bound, Simd::set1(state.log_tolerance));
    if (!Simd::any_above(highest, limit)) continue;
    const uint32_t key = static_cast<uint32_t>(token * kPartitionRows + row % kPartitionRows);
    for (int64_t r = 0; r < rows; r++)
      append_above(Simd::load(column + r * lanes), limit, key + static_cast<uint32_t>(r), out);
  }
}

inline Simd::F load_weights(const float* p) { return Simd::load(p); }
struct BF16 { uint16_t bits; };
struct F16 { uint16_t bits; };
inline Simd::F load_weights(const BF16* p) { return Simd::load_bf16(&p->bits); }
inline Simd::F load_weights(const F16* p) { return Simd::load_f16(&p->bits); }
inline Simd::F load_weights(const int8_t* p) { return Simd::load_i8(p); }
inline float weight_of(float x) { return x; }
inline float weight_of(BF16 x) { return from_bf16(x.bits); }
inline float weight_of(F16 x) { return from_f16(x.bits); }
inline float weight_of(int8_t x) { return x; }

// out += Σ factor · w_row over N rows; brings the N after them nearer, which lie anywhere.
template <class T, int N>
inline void gather_few(const Head& head, const uint32_t* rows, const float* factors, int64_t left,
                       float* out) {
  const T* w[N];
  const T* next[N];
  float factor[N];
  for (int i = 0; i < N; i++) {
    w[i] = static_cast<const T*>(head.row(rows[i]));
    next[i] = static_cast<const T*>(head.row(rows[i + N < left ? i + N : i]));
    factor[i] = factors[i] * head.scale_of(rows[i]);
  }
  int64_t d = 0;
  for (; d + Simd::width <= head.dim; d += Simd::width) {
    Simd::F sum = Simd::load(out + d);
    for (int i = 0; i < N; i++) {
      __builtin_prefetch(next[i] + d);
      sum = Simd::fma(Simd::set1(factor[i]), load_weights(w[i] + d), sum);
    }
    Simd::store(out + d, sum);
  }
  for (; d < head.dim; d++)
    for (int i = 0; i < N; i++) out[d] += factor[i] * weight_of(w[i][d]);
}

template <class T>
void gather_as(const Head& head, const uint32_t* rows, const float* factors, int64_t count,
               float* out) {
  int64_t i = 0;
  for (; i + 4 <= count; i += 4) gather_few<T, 4>(head, rows + i, factors + i, count - i, out);
  for (; i < count; i++) gather_few<T, 1>(head, rows + i, factors + i, count - i, out);
}

[[maybe_unused]] void gather_rows(const Head& head, const uint32_t* rows, const float* factors, int64_t count,
                 float* out) {
  if (head.type == DType::f32) return gather_as<float>(head, rows, factors, count, out);
  if (head.type == DType::bf16) return gather_as<BF16>(head, rows, factors, count, out);
  if (head.type == DType::i8) return gather_as<int8_t>(head, rows, factors, count, out);
  gather_as<F16>(head, rows, factors, count, out);
}

}  // namespace
}  // namespace graftlm
