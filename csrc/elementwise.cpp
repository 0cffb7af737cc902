// What a transformer does between its products, in one pass each instead of one a sub-expression:
//
//     RMS norm       y = x · rstd · w,   rstd = 1 / √(mean(x²) + ε)
//     gated unit     y = act(g) · u
//
// Sums and intermediate values are float32 whatever the type of the input; only results are rounded.
#include <algorithm>

#include "buffer.hpp"
#include "operators.hpp"
#include "threads.hpp"

namespace graftlm {
namespace {

constexpr int64_t kTaskElements = 1 << 14;

// The weight in float32 with the constant some models add to it.
const float* shifted(const void* weight, DType type, float shift, int64_t dim, Buffer& space) {
  float* w = space.floats(dim);
  level().to_float(weight, type, dim, w);
  for (int64_t i = 0; i < dim; i++) w[i] += shift;
  return w;
}

// body(first, count) over `total` units of `size` elements
template <class Body>
void in_tasks(int64_t total, int64_t size, int threads, Body&& body) {
  const int64_t each = std::max<int64_t>(1, kTaskElements / std::max<int64_t>(1, size));
  const int64_t tasks = (total + each - 1) / each;
  parallel_for(tasks, threads, [&](int64_t task) {
    body(task * each, std::min(each, total - task * each));
  });
}

}  // namespace

void rms_norm(const void* x, DType type, int64_t rows, int64_t dim, const void* weight,
              DType weight_type, float shift, float eps, void* y, float* rstd, int threads) {
  Buffer space;
  const float* w = shifted(weight, weight_type, shift, dim, space);
  const int64_t row = dim * int64_t(size_of(type));
  in_tasks(rows, dim, threads, [&](int64_t first, int64_t count) {
    level().rms_norm(static_cast<const char*>(x) + first * row, type, count, dim, w, eps,
                     static_cast<char*>(y) + first * row, rstd + first);
  });
}

void rms_norm_backward(const void* dy, const void* x, DType type, int64_t rows, int64_t dim,
                       const void* weight, DType weight_type, float shift, const float* rstd,
                       void* dx, int threads) {
  Buffer space;
  const float* w = shifted(weight, weight_type, shift, dim, space);
  const int64_t row = dim * int64_t(size_of(type));
  in_tasks(rows, dim, threads, [&](int64_t first, int64_t count) {
    level().rms_norm_backward(static_cast<const char*>(dy) + first * row,
                              static_cast<const char*>(x) + first * row, type, count, dim, w,
                              rstd + first, static_cast<char*>(dx) + first * row);
  });
}

void gated(const void* g, const void* u, DType type, int64_t numel, Gate gate, void* y,
           int threads) {
  const auto size = int64_t(size_of(type));
  in_tasks(numel, 1, threads, [&](int64_t first, int64_t count) {
    level().gated(static_cast<const char*>(g) + first * size,
                  static_cast<const char*>(u) + first * size, type, count, gate,
                  static_cast<char*>(y) + first * size);
  });
}

void gated_backward(const void* dy, const void* g, const void* u, DType type, int64_t numel,
                    Gate gate, void* dg, void* du, int threads) {
  const auto size = int64_t(size_of(type));
  in_tasks(numel, 1, threads, [&](int64_t first, int64_t count) {
    const int64_t at = first * size;
    level().gated_backward(static_cast<const char*>(dy) + at, static_cast<const char*>(g) + at,
                           static_cast<const char*>(u) + at, type, count, gate,
                           static_cast<char*>(dg) + at, static_cast<char*>(du) + at);
  });
}

}  // namespace graftlm
