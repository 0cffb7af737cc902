// Linear cross-entropy: losses and gradients of softmax(H Wᵀ) without storing H Wᵀ.
//
// One walk over the vocabulary. A block of logits, some rows of W times some tokens, is made in L1,
// absorbed into a running maximum and sum per token, and forgotten:
//
//     peak' = max(peak, max_j z_j)     sum' = sum · exp(peak − peak') + Σ_j exp(z_j − peak')
//
// Blocks are transposed, vocabulary down and tokens across, so that a SIMD lane is a token: no
// horizontal reductions, and a tile of W is a left operand straight from memory, never repacked
// where the matrix unit can read it (AMX, bfloat16).
//
// Gradient. ∂L/∂h = Σ_j p_j w_j − w_t needs p_j = exp(z_j − lse), and lse is known only at the end.
// But any partial log-sum-exp bounds lse from below, so a logit under that bound + log(tolerance)
// can be dropped at once. The few above it are kept as (token, row, logit), tested again when lse
// is known, and their rows of W are gathered. Over real text about 1 % remain. What was dropped
// weighs 1 − Σ kept p, known and not estimated, and that weight is put on the mean row of W, which
// halves the error or better. A token with too many candidates, or too much dropped, gets no
// gradient: the caller asks again with a lower tolerance, or forms the dense product.
//
// Determinism. The vocabulary is cut into partitions of fixed size, each walked in order by one
// thread from the same starting bounds, and their results are added in order: any number of threads
// gives the same bits.
//
// Memory. Tokens are taken in groups of a fixed size, so no buffer grows with tokens × vocabulary.
//
// Precision. AMX multiplies bfloat16. Weights that are bfloat16 are exact there; hidden states (and
// float32 weights) are split in two, high + low, and low · low is dropped: 16 bits of mantissa for
// twice the products, at several times the speed of float32 instructions. Weights of 8 bits are exact
// there too: their scales are applied to the logits. A level without AMX may round factors of bfloat16
// and of 8 bits (gemm_int16.inl, where most of them are exact).
#pragma once
#include <cstddef>
#include <cstdint>

#include "kernels.hpp"

namespace graftlm {

// z = softcap(scale · (h Wᵀ + bias)); row r of W is row_scale[r] times what `weight` holds.
struct Head {
  const void* weight;  // [vocabulary][dim]
  DType type;
  int64_t vocabulary, dim;
  const float* bias;  // [vocabulary] or null
  float scale;
  float softcap;  // 0: none
  const float* row_scale;  // [vocabulary] or null

  float scale_of(int64_t r) const { return row_scale ? row_scale[r] : 1.0f; }

  const void* row(int64_t r) const {
    return static_cast<const char*>(weight) + r * dim * static_cast<int64_t>(size_of(type));
  }
};

constexpr int64_t kPartitionRows = 4096;  // the unit of work and of determinism
constexpr int64_t kGroupTokens = 512;     // walked together: bounds every buffer
constexpr int64_t kWidestVector = 16;

// Logits above the bound. A key is the token, times kPartitionRows, plus the row in its partition.
struct Candidates {
  uint32_t* keys;
  float* logits;
  size_t count;
};

// The running state of the walk, an entry a token.
struct WalkState {
  float* peak;
  float* sum;
  const float* bound;  // at most the log-sum-exp; +inf collects nothing
  float log_tolerance;
};

// One piece of the walk, in cache: rows [row, row_end) times tokens [token, token_end).
struct WalkPiece {
  const Head* head;
  int64_t row, row_end;
  const void* prepared;  // those rows, as `prepare` left them
  const void* hidden;    // all tokens, packed
  int64_t token, token_end;  // multiples of `panel`
  bool exact_bf16;
  WalkState state;
};

// How blocks of logits are made: with a tile product of the level, or with AMX. `exact_bf16` says
// that the hidden states are bfloat16 values, so that they need not be split.
struct Walk {
  int64_t panel;  // tokens packed together
  int64_t rows;   // rows of W in a block
  int64_t (*packed_bytes)(int64_t tokens, int64_t dim, bool exact_bf16);
  void (*pack)(const float* hidden, int64_t tokens, int64_t dim, bool exact_bf16, void* packed);
  int64_t (*prepared_bytes)(int64_t rows, int64_t dim);
  void (*prepare)(const Head&, int64_t row, int64_t row_end, void* prepared);
  // One product alone, rounded like those of the walk, for the loss is the difference of their
  // log-sum-exp and the target's logit. Null: in float32, which is as close or closer.
  float (*dot)(const Head&, int64_t row, const void* packed, int64_t token);
  // Room for a candidate an entry of the piece, and a vector more, is the caller's to give.
  void (*walk)(const WalkPiece&, Candidates&);
};

Walk tile_walk(bool rounded);
#if defined(GRAFTLM_X86)
Walk amx_walk();
#endif

struct CrossEntropy {
  Head head;
  const float* hidden;     // [tokens][dim]
  const int64_t* targets;  // [tokens]
  int64_t tokens;
  bool exact_bf16;
  float label_smoothing;  // without a softcap only
  float tolerance;        // probabilities up to it are dropped from the gradient
  float max_dropped;      // but no more than this in all: beyond, a token gets no gradient
  const float* mean_row;  // [dim]: see below; needed for grad

  float* lse;           // [tokens]
  float* target_logit;  // [tokens]
  float* grad;          // [tokens][dim] or null
  float* dropped;       // [tokens], with grad: the probability dropped, or kTooFlat
};

constexpr float kTooFlat = 2.0f;  // more than any probability: too many candidates, no gradient

// mean[dim]: the mean of the rows of W. Separate, for it is the same for every walk.
void mean_row(const Head& head, float* mean, int threads);

// Returns how many entries of the softmax the gradients were made of.
int64_t cross_entropy(const CrossEntropy& request, int threads);

}  // namespace graftlm
