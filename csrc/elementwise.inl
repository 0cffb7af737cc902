// The vector part of the fused elementwise operators, over `Simd`; see elementwise.cpp. Included by
// level.inl, whose 16-bit types and exp2_of it uses; internal to the including file.
#include "elementwise.hpp"

namespace graftlm {
namespace {

// The last few elements of a range take the same path, through a padded copy.
template <class Body>
inline void in_vectors(int64_t count, Body&& body) {
  int64_t i = 0;
  for (; i + W <= count; i += W) body(i, W);
  if (i < count) body(i, count - i);
}

template <class T>
inline F some(const typename T::type* p, int64_t n) {
  if (n == W) return T::load(p);
  float padded[W];
  for (int64_t i = 0; i < W; i++) padded[i] = i < n ? T::get(p[i]) : 0.0f;
  return Simd::load(padded);
}

template <class T>
inline void put_some(typename T::type* p, F x, int64_t n) {
  if (n == W) return T::store(p, x);
  float padded[W];
  Simd::store(padded, x);
  for (int64_t i = 0; i < W && i < n; i++) p[i] = T::put(padded[i]);
}

template <class T>
void rms_norm_as(const void* x_, int64_t rows, int64_t dim, const float* weight, float eps,
                 void* y_, float* rstd) {
  using E = typename T::type;
  for (int64_t r = 0; r < rows; r++) {
    const E* x = static_cast<const E*>(x_) + r * dim;
    E* y = static_cast<E*>(y_) + r * dim;
    F squares = Simd::zero();
    in_vectors(dim, [&](int64_t i, int64_t n) {
      const F a = some<T>(x + i, n);
      squares = Simd::fma(a, a, squares);
    });
    rstd[r] = 1.0f / __builtin_sqrtf(Simd::sum(squares) / float(dim) + eps);
    const F scale = Simd::set1(rstd[r]);
    in_vectors(dim, [&](int64_t i, int64_t n) {
      const F a = Simd::mul(some<T>(x + i, n), scale);
      put_some<T>(y + i, Simd::mul(a, some<Float32>(weight + i, n)), n);
    });
  }
}

// With g = dy w:  dx = rstd (g − x rstd² mean(g x))
template <class T>
void rms_norm_backward_as(const void* dy_, const void* x_, int64_t rows, int64_t dim,
                          const float* weight, const float* rstd, void* dx_) {
  using E = typename T::type;
  for (int64_t r = 0; r < rows; r++) {
    const E* dy = static_cast<const E*>(dy_) + r * dim;
    const E* x = static_cast<const E*>(x_) + r * dim;
    E* dx = static_cast<E*>(dx_) + r * dim;
    F along = Simd::zero();
    in_vectors(dim, [&](int64_t i, int64_t n) {
      const F g = Simd::mul(some<T>(dy + i, n), some<Float32>(weight + i, n));
      along = Simd::fma(g, some<T>(x + i, n), along);
    });
    const float s = rstd[r];
    const F scale = Simd::set1(s), back = Simd::set1(-Simd::sum(along) / float(dim) * s * s);
    in_vectors(dim, [&](int64_t i, int64_t n) {
      const F g = Simd::mul(some<T>(dy + i, n), some<Float32>(weight + i, n));
      put_some<T>(dx + i, Simd::mul(scale, Simd::fma(back, some<T>(x + i, n), g)), n);
    });
  }
}

// σ(k (g + a g³)), the gate's factor
inline F gate_of(F g, Gate gate) {
  F p = g;
  if (gate.cubic != 0) p = Simd::fma(Simd::set1(gate.cubic), Simd::mul(Simd::mul(g, g), g), g);
  p = Simd::mul(Simd::set1(gate.slope * kLog2E), p);
  const F e = exp2_of(Simd::sub(Simd::zero(), Simd::max(Simd::set1(-126.0f), p)));
  return Simd::div(Simd::set1(1.0f), Simd::add(Simd::set1(1.0f), e));
}

template <class T>
void gated_as(const void* g_, const void* u_, int64_t count, Gate gate, void* y_) {
  using E = typename T::type;
  const E *g = static_cast<const E*>(g_), *u = static_cast<const E*>(u_);
  E* y = static_cast<E*>(y_);
  in_vectors(count, [&](int64_t i, int64_t n) {
    const F a = some<T>(g + i, n);
    put_some<T>(y + i, Simd::mul(Simd::mul(a, gate_of(a, gate)), some<T>(u + i, n)), n);
  });
}

// y = g σ u:  du = dy g σ,  dg = dy u (σ + g σ (1 − σ) k (1 + 3 a g²))
template <class T>
void gated_backward_as(const void* dy_, const void* g_, const void* u_, int64_t count, Gate gate,
                       void* dg_, void* du_) {
  using E = typename T::type;
  const E *dy = static_cast<const E*>(dy_), *g = static_cast<const E*>(g_),
          *u = static_cast<const E*>(u_);
  E *dg = static_cast<E*>(dg_), *du = static_cast<E*>(du_);
  const F one = Simd::set1(1.0f), slope = Simd::set1(gate.slope);
  const F curve = Simd::set1(3.0f * gate.cubic);
  in_vectors(count, [&](int64_t i, int64_t n) {
    const F a = some<T>(g + i, n), b = some<T>(u + i, n), d = some<T>(dy + i, n);
    const F s = gate_of(a, gate), as = Simd::mul(a, s);
    F inner = slope;
    if (gate.cubic != 0) inner = Simd::mul(slope, Simd::fma(curve, Simd::mul(a, a), one));
    const F derivative = Simd::fma(Simd::mul(as, Simd::sub(one, s)), inner, s);
    put_some<T>(du + i, Simd::mul(d, as), n);
    put_some<T>(dg + i, Simd::mul(Simd::mul(d, b), derivative), n);
  });
}

#define GRAFTLM_BY_TYPE(function, ...)                              \
  switch (type) {                                                   \
    case DType::f32: return function<Float32>(__VA_ARGS__);         \
    case DType::bf16: return function<BFloat16>(__VA_ARGS__);       \
    case DType::f16: return function<Float16>(__VA_ARGS__);         \
    case DType::i8: return;                                         \
  }

void rms_norm(const void* x, DType type, int64_t rows, int64_t dim, const float* weight, float eps,
              void* y, float* rstd) {
  GRAFTLM_BY_TYPE(rms_norm_as, x, rows, dim, weight, eps, y, rstd)
}

void rms_norm_backward(const void* dy, const void* x, DType type, int64_t rows, int64_t dim,
                       const float* weight, const float* rstd, void* dx) {
  GRAFTLM_BY_TYPE(rms_norm_backward_as, dy, x, rows, dim, weight, rstd, dx)
}

void gated(const void* g, const void* u, DType type, int64_t count, Gate gate, void* y) {
  GRAFTLM_BY_TYPE(gated_as, g, u, count, gate, y)
}

void gated_backward(const void* dy, const void* g, const void* u, DType type, int64_t count,
                    Gate gate, void* dg, void* du) {
  GRAFTLM_BY_TYPE(gated_backward_as, dy, g, u, count, gate, dg, du)
}

#undef GRAFTLM_BY_TYPE

}  // namespace
}  // namespace graftlm
