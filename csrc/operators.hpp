// The operators: what the bindings call. Each cuts its work into tiles and hands them to threads.
#pragma once
#include <cstdint>

#include "cross_entropy.hpp"
#include "level.hpp"

namespace graftlm {

void quantize(const void* src, DType type, int64_t numel, int64_t block, uint8_t* codes,
              float* absmax, int threads);

void dequantize(const Weight& w, void* dst, DType type, int threads);

// y (rows, w.rows) = x (rows, w.cols) Wᵀ + bias; bias is float32 or null.
void linear(const Weight& w, const void* x, DType type, int64_t rows, const float* bias, void* y,
            Compute compute, int threads);

// dx (rows, w.cols) = dy (rows, w.rows) W
void linear_backward(const Weight& w, const void* dy, DType type, int64_t rows, void* dx,
                     Compute compute, int threads);

}  // namespace graftlm
