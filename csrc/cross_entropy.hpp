// Linear cross-entropy: losses and gradients of softmax(H Wᵀ) without storing H Wᵀ.
//
// One walk over the vocabulary. A block of logits, some rows of W times some tokens, is made in L1,
// absorbed into a running maximum and sum per token, and forgotten:
//
//     peak' = max(peak, max_j z_j)     sum' = sum · exp(peak − peak') + Σ_j exp(z_j − peak')
//
// The blocks are transposed, vocabulary down and tokens across, so that a SIMD lane is a token: no
// horizontal reductions, and a tile of W is a left operand straight from memory, never repacked
// where the matrix unit can read it (AMX, bfloat16).
//
// Gradient. ∂L/∂h = Σ_j p_j w_j − w_t needs p_j = exp(z_j − lse), and lse is known only at the end.
// But any partial log-sum-exp bounds lse from below, so a logit under that bound + log(tolerance)
// can be dropped at once. The few above it are kept as (token, row, logit), tested again when lse
// is known, and their rows of W are gathered. Over real text 1 % remain or fewer. What was dropped
// weighs 1 − Σ kept p: known, not estimated. A token with too many candidates, or with too much
// dropped, is flagged and left to the caller's dense product.
//
// Determinism. The vocabulary is cut into partitions of fixed size, each walked in order by one
// thread from the same starting bounds, and their results are added in order: any number of threads
// gives the same bits.
//
// Memory. Tokens are taken in groups of a fixed size, so no buffer grows with tokens × vocabulary.
//
// Precision. AMX multiplies bfloat16. Weights that are bfloat16 are exact there; hidden states (and
// float32 weights) are split into two bfloat16 terms, hi + lo, of which lo · lo is dropped: 16 bits
// of mantissa for twice the products, at several times the speed of float32 instructions.
#pragma once

#include <cstddef>
#include <cstdint>

namespace graftlm::cross_entropy {

enum class Element { float32, bfloat16 };

// z = softcap(scale · (h Wᵀ + bias))
struct Head {
  const void* weight;  // [vocabulary, dim]
  Element element;
  int64_t vocabulary;
  int64_t dim;
  const float* bias;  // [vocabulary] or null
  float scale;
  float softcap;  // 0: none
};

// Running state, one entry a token.
struct State {
  float* peak;
  float* sum;
  const float* bound;  // a lower bound of the log-sum-exp; +inf collects nothing
};

// Logits above the bound, each with its token and its row within the partition.
struct Candidates {
  uint32_t* keys;
  float* logits;
  size_t count;
};

constexpr int64_t kPartitionRows = 4096;  // the unit of work and of determinism

inline uint32_t key(int64_t token, int64_t row) {
  return static_cast<uint32_t>(token * kPartitionRows + row % kPartitionRows);
}

// One piece of the walk: rows [row, row_end) for tokens [token, token_end), both in cache.
struct Piece {
  const Head* head;
  int64_t row, row_end;
  const void* hidden;  // packed; of all tokens
  int64_t token, token_end;  // multiples of the kernel's panel
  State state;
  float log_tolerance;
  const void* prepared;  // what `prepare` made of these rows
  Candidates out;  // room for (row_end − row) · (token_end − token) more, and a vector
};

// What one instruction set provides.
struct Kernels {
  const char* name;
  int panel;  // tokens a packed panel holds
  int rows;   // vocabulary rows a block holds
  size_t (*packed_bytes)(int64_t tokens, int64_t dim, bool exact_bf16);
  size_t (*prepared_bytes)(int64_t rows, int64_t dim);
  void (*prepare)(const Head&, int64_t row, int64_t row_end, void* prepared);
  void (*pack)(const float* hidden, int64_t tokens, int64_t dim, bool exact_bf16, void* packed);
  size_t (*walk)(const Piece&, bool exact_bf16);  // returns the number of candidates written
  float (*logit)(const Head&, const float* hidden, int64_t row);
  void (*gather)(const Head&, const uint32_t* rows, const float* factors, int64_t count,
                 float* out);  // out[dim] += Σ factor · w_row
  void (*enter)();  // per thread, around the walk
  void (*leave)();
};

const Kernels* scalar_kernels();
const Kernels* avx2_kernels();
const Kernels* avx512_kernels();
const Kernels* amx_kernels();

struct Request {
  Head head;
  const float* hidden;  // [tokens, dim]
  const int64_t* targets;  // [tokens]
  int64_t tokens;
  bool exact_bf16;  // the hidden states are bfloat16 values: one product suffices
  bool want_grad;
  float label_weight;  // 1 − label smoothing: the share of the target
  float tolerance;
  float max_dropped;
  int threads;
};

constexpr float kNeedsDense = 2.0f;  // more than any probability

struct Result {
  float* lse;           // [tokens]
  float* target_logit;  // [tokens]
  float* grad;          // [tokens, dim] or null
  float* dropped;       // [tokens]; or kNeedsDense, and grad is not set
  int64_t kept;
};

void forward(const Kernels&, const Request&, Result&);

}  // namespace graftlm::cross_entropy
