// The operators: what the bindings call. Each cuts its work into tiles and hands them to threads.
#pragma once
#include <cstdint>

#include "cross_entropy.hpp"
#include "level.hpp"

namespace graftlm {

constexpr int64_t kRowChunk = 512;  // rows of x or dy that a product packs at a time

void quantize(const void* src, DType type, int64_t numel, int64_t block, uint8_t* codes,
              float* absmax, int threads);

// Block maxima less their mean, in 8 bits: `grid` holds the code of each of its `points`.
void double_quantize(const float* absmax, int64_t blocks, float mean, const uint8_t* grid,
                     int64_t points, uint8_t* codes, float* nested, int threads);

void dequantize(const Weight& w, void* dst, DType type, int threads);

// The frozen factor of a product: a stored weight, or a dense one, row-major, of any type.
struct Frozen {
  int64_t rows, cols;
  const void* dense;  // null for a stored one
  DType type;
  Weight stored;
};

// A trained update scaling B A beside a weight: A (rank, w.cols), B (w.rows, rank), float32. `thin`
// (rows, rank) receives the product with the first of the two factors, in the type of x or dy.
struct LowRank {
  const float* a;
  const float* b;
  int64_t rank;
  float scaling;
  void* thin;
};

// y (rows, w.rows) = x (rows, w.cols) Wᵀ + bias; bias is float32 or null.
// With an update: u = x Aᵀ is the thin one, and y gets scaling u Bᵀ besides.
void linear(const Frozen& w, const void* x, DType type, int64_t rows, const float* bias, void* y,
            const LowRank* update, Compute compute, int threads);

// dx (rows, w.cols) = dy (rows, w.rows) W
// With an update: v = scaling dy B is the thin one, and dx gets v A besides.
void linear_backward(const Frozen& w, const void* dy, DType type, int64_t rows, void* dx,
                     const LowRank* update, Compute compute, int threads);

// out (rank, cols) = scaling tᵀ x, or turned, (cols, rank); t (rows, rank) and x (rows, cols) of `type`.
void factor_gradient(const void* t, const void* x, DType type, int64_t rows, int64_t rank,
                     int64_t cols, float scaling, bool turned, float* out, Compute compute,
                     int threads);

// y (rows, out) = x (rows, cols) Wᵀ for few rows and a dense weight, which is read once; row n of it
// is row_scale[n] times what w holds, where there are scales.
void dense_linear(const void* w, DType weight_type, const float* row_scale, int64_t out,
                  int64_t cols, const void* x, DType type, int64_t rows, void* y, int threads);

// y = x rstd (weight + shift) for each row of `dim`; see elementwise.cpp.
void rms_norm(const void* x, DType type, int64_t rows, int64_t dim, const void* weight,
              DType weight_type, float shift, float eps, void* y, float* rstd, int threads);
void rms_norm_backward(const void* dy, const void* x, DType type, int64_t rows, int64_t dim,
                       const void* weight, DType weight_type, float shift, const float* rstd,
                       void* dx, int threads);

// y = act(g) u
void gated(const void* g, const void* u, DType type, int64_t numel, Gate gate, void* y, int threads);
void gated_backward(const void* dy, const void* g, const void* u, DType type, int64_t numel,
                    Gate gate, void* dg, void* du, int threads);

}  // namespace graftlm
