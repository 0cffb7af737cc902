// What an instruction-set level provides. One table a level; the drivers (convert.cpp,
// linear.cpp and others) choose tiles and threads and are the same for all of them.
#pragma once
#include <cstddef>
#include <cstdint>

#include "elementwise.hpp"
#include "gemm.hpp"
#include "nf4.hpp"

namespace graftlm {

struct Candidates;  // see cross_entropy.hpp
struct Head;
struct WalkState;

// i8: whole numbers, of a dense weight only, whose rows have a scale each.
enum class DType : int { f32 = 0, bf16 = 1, f16 = 2, i8 = 3 };

inline size_t size_of(DType type) {
  return type == DType::f32 ? 4 : type == DType::i8 ? 1 : 2;
}

struct Level {
  const char* name;

  // Blocks [first, last) of the `numel` elements at src → their codes and maxima.
  void (*quantize)(const void* src, DType type, int64_t numel, int64_t first, int64_t last,
                   int64_t block, uint8_t* codes, float* absmax);

  // Elements [start, start + count) of the flattened weight, written past the cache.
  void (*dequantize)(const Weight& w, int64_t start, int64_t count, void* dst, DType type);

  // The same in float32, into a tile that is about to be used.
  void (*dequantize_tile)(const Weight& w, int64_t start, int64_t count, float* dst);

  // y[m][n] = x[m] · W[n] for n in [first, last) and up to 8 rows of x, straight from the codes.
  // x is packed by gemv_pack, `stride` floats a row; needs whole blocks a row.
  void (*gemv)(const Weight& w, int64_t first, int64_t last, const float* x, int64_t stride,
               int rows, float* y, int64_t ldy);
  int64_t (*gemv_stride)(int64_t cols);
  void (*gemv_pack)(const float* x, int64_t cols, float* packed);

  // The same for rows of a dense weight; x is contiguous.
  void (*dense_gemv)(const void* w, DType type, int64_t first, int64_t last, int64_t cols,
                     const float* x, int rows, float* y, int64_t ldy);
  float (*dot)(const float* a, const float* b, int64_t n);

  void (*to_float)(const void* src, DType type, int64_t n, float* dst);
  void (*from_float)(const float* src, int64_t n, void* dst, DType type);

  // dst[j][i] = src[i][j]
  void (*transpose)(const float* src, int64_t ld_src, int64_t rows, int64_t cols, float* dst,
                    int64_t ld_dst);

  // Linear cross-entropy: a block of logits into the walk, and out += Σ factor · w_row.
  void (*absorb_logits)(const Head& head, int64_t row, int64_t rows, int64_t token, int64_t lanes,
                        float* z, const WalkState& state, Candidates& out);
  void (*gather_rows)(const Head& head, const uint32_t* rows, const float* factors, int64_t count,
                      float* out);

  // Rows of `dim` elements: their norm, and its gradient. weight is float32.
  void (*rms_norm)(const void* x, DType type, int64_t rows, int64_t dim, const float* weight,
                   float eps, void* y, float* rstd);
  void (*rms_norm_backward)(const void* dy, const void* x, DType type, int64_t rows, int64_t dim,
                            const float* weight, const float* rstd, void* dx);

  // y = act(g) u, and its gradients.
  void (*gated)(const void* g, const void* u, DType type, int64_t count, Gate gate, void* y);
  void (*gated_backward)(const void* dy, const void* g, const void* u, DType type, int64_t count,
                         Gate gate, void* dg, void* du);

  // Softmax of rows of scores, in steps, and its gradient; `cols` are whole vectors. See attention.inl.
  void (*row_peaks)(const float* s, int64_t rows, int64_t cols, float* peak);
  void (*exp_rows)(float* s, int64_t rows, int64_t cols, const float* shift, float* sum);
  void (*softmax_slopes)(const float* p, const float* delta, int64_t rows, int64_t cols, float* d);

  Gemm f32;
  Gemm rounded;  // factors rounded to less than float32 where that is faster, else f32 again
};

constexpr int kGemvRows = 8;

// The levels in this build. One may be called only on a CPU that has it: see level.hpp.
const Level& scalar_level();
#if defined(GRAFTLM_X86)
const Level& avx2_level();
const Level& avx512_level();
const Gemm& amx_bf16();    // one product of bfloat16 factors
const Gemm& amx_bf16x3();  // three, of factors split in two: nearly float32
#elif defined(GRAFTLM_NEON)
const Level& neon_level();
#endif

}  // namespace graftlm
