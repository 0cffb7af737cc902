#include "cross_entropy.hpp"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <memory>
#include <new>
#include <vector>

#include "threads.hpp"

namespace graftlm::cross_entropy {
namespace {

constexpr int64_t kGroupTokens = 512;     // tokens walked together: bounds every buffer
constexpr int64_t kSliceTokens = 64;      // tokens of one task where tasks are tokens
constexpr int64_t kRowsBytes = 512 << 10;    // of W at a time, as prepared, and ...
constexpr int64_t kTokensBytes = 512 << 10;  // ... of hidden states: together they fit an L2
constexpr size_t kWidest = 16;  // lanes of the widest vector
constexpr float kInfinity = std::numeric_limits<float>::infinity();

struct Free {
  void operator()(void* p) const { std::free(p); }
};

// Uninitialised memory on a cache line, grown by copying.
template <class T>
class Buffer {
 public:
  explicit Buffer(size_t capacity = 0) { reserve(0, capacity); }
  T* data() { return static_cast<T*>(memory_.get()); }
  T& operator[](size_t i) { return data()[i]; }
  void reserve(size_t used, size_t capacity) {
    if (capacity <= capacity_) return;
    capacity = std::max(capacity, used + used / 2);
    const size_t bytes = (capacity * sizeof(T) + 63) / 64 * 64;
    std::unique_ptr<void, Free> larger(std::aligned_alloc(64, bytes));
    if (!larger) throw std::bad_alloc();
    if (used) std::copy_n(data(), used, static_cast<T*>(larger.get()));
    memory_ = std::move(larger);
    capacity_ = capacity;
  }

 private:
  std::unique_ptr<void, Free> memory_;
  size_t capacity_ = 0;
};

int64_t round_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

// As many units as fit the budget, at least one.
int64_t units(int64_t budget, size_t bytes, int64_t unit) {
  return std::max<int64_t>(budget / static_cast<int64_t>(bytes), 1) * unit;
}

// One task's walk over its rows for its tokens, with its own running state and candidates.
class Part {
 public:
  void walk(const Kernels& kernels, const Request& request, const void* hidden,
            const float* bound, int64_t row, int64_t row_end, int64_t token, int64_t token_end) {
    const Head& head = request.head;
    first_ = token;
    row_ = row;
    const size_t tokens = static_cast<size_t>(token_end - token);
    peak_.assign(tokens, -kInfinity);
    sum_.assign(tokens, 0.0f);
    counts_.assign(tokens, 0);
    bound_.assign(bound + token, bound + token_end);
    const int64_t limit = row == 0 ? kPartitionRows / 2 : kPartitionRows / 4;
    const State state = {peak_.data() - token, sum_.data() - token, bound_.data() - token};
    const float log_tolerance = std::log(request.tolerance);
    const int64_t chunk = units(kRowsBytes, kernels.prepared_bytes(kernels.rows, head.dim),
                                kernels.rows);
    const int64_t step = units(kTokensBytes, kernels.packed_bytes(kernels.panel, head.dim, false),
                               kernels.panel);
    Buffer<uint8_t> prepared(kernels.prepared_bytes(chunk, head.dim));
    kernels.enter();
    for (; row < row_end; row += chunk) {
      const int64_t end = std::min(row + chunk, row_end);
      kernels.prepare(head, row, end, prepared.data());
      for (int64_t t = token; t < token_end; t += step) {
        const int64_t t_end = std::min(t + step, token_end);
        const size_t before = size_;
        const size_t room = size_ + static_cast<size_t>((end - row) * (t_end - t)) + kWidest;
        keys_.reserve(size_, room);
        logits_.reserve(size_, room);
        size_ = kernels.walk({&head, row, end, hidden, t, t_end, state, log_tolerance,
                              prepared.data(), {keys_.data(), logits_.data(), size_}},
                             request.exact_bf16);
        count(before, limit);
      }
    }
    kernels.leave();
  }

  bool flat(int64_t token) const { return bound_[token - first_] == kInfinity; }
  float peak(int64_t token) const { return peak_[token - first_]; }
  float sum(int64_t token) const { return sum_[token - first_]; }
  int64_t& counter(int64_t token) { return counts_[token - first_]; }

  // Keep the candidates above the tolerance now that lse is known; count them by token.
  void filter(const float* lse, const uint8_t* dense, float tolerance) {
    std::fill(counts_.begin(), counts_.end(), 0);
    size_t kept = 0;
    for (size_t i = 0; i < size_; ++i) {
      const int64_t token = token_of(i);
      if (dense[token] || !(std::exp(logits_[i] - lse[token]) > tolerance)) continue;
      ++counts_[token - first_];
      keys_[kept] = keys_[i];
      logits_[kept++] = logits_[i];
    }
    size_ = kept;
  }

  // Sort the kept candidates by token: `counter` holds where each token's next entry goes.
  void scatter(uint32_t* rows, float* logits) {
    for (size_t i = 0; i < size_; ++i) {
      const int64_t at = counts_[token_of(i) - first_]++;
      rows[at] = static_cast<uint32_t>(row_) + keys_[i] % kPartitionRows;
      logits[at] = logits_[i];
    }
  }

 private:
  // A token with candidates everywhere gains nothing from them: stop collecting its.
  void count(size_t i, int64_t limit) {
    for (; i < size_; ++i) {
      const size_t at = static_cast<size_t>(token_of(i) - first_);
      if (++counts_[at] > limit) bound_[at] = kInfinity;
    }
  }

  int64_t token_of(size_t i) { return keys_[i] / kPartitionRows; }

  int64_t first_ = 0, row_ = 0;
  std::vector<float> peak_, sum_, bound_;
  std::vector<int64_t> counts_;
  Buffer<uint32_t> keys_;
  Buffer<float> logits_;
  size_t size_ = 0;
};

// The tokens [first, first + tokens) of a request: walk, then gradient.
class Group {
 public:
  Group(const Kernels& kernels, const Request& request, const Result& result, int64_t first,
        int64_t tokens)
      : kernels_(kernels),
        request_(request),
        tokens_(tokens),
        padded_(round_up(tokens, kernels.panel)),
        hidden_(request.hidden + first * request.head.dim),
        targets_(request.targets + first),
        lse_(result.lse + first),
        target_logit_(result.target_logit + first),
        grad_(result.grad ? result.grad + first * request.head.dim : nullptr),
        dropped_(result.dropped + first),
        packed_(kernels.packed_bytes(padded_, request.head.dim, request.exact_bf16)),
        bound_(static_cast<size_t>(padded_), kInfinity),
        dense_(static_cast<size_t>(padded_), 0) {}

  int64_t run() {
    const int64_t slices = (padded_ + kSliceTokens - 1) / kSliceTokens;
    const int64_t vocabulary = request_.head.vocabulary;
    const int64_t partitions = (vocabulary + kPartitionRows - 1) / kPartitionRows;
    parts_.resize(static_cast<size_t>(slices + partitions - 1));
    parallel_for(slices, request_.threads, [&](int64_t slice) { open(slice); });
    parallel_for(partitions - 1, request_.threads, [&](int64_t i) {
      const int64_t row = (i + 1) * kPartitionRows;
      parts_[slices + i].walk(kernels_, request_, packed_.data(), bound_.data(), row,
                              std::min(row + kPartitionRows, vocabulary), 0, padded_);
    });
    slices_ = slices;
    for (int64_t t = 0; t < tokens_; ++t) close(t);
    return request_.want_grad ? gradient() : 0;
  }

 private:
  template <class Visit>
  void visit(int64_t token, const Visit& visit) {
    visit(parts_[token / kSliceTokens]);
    for (size_t i = slices_; i < parts_.size(); ++i) visit(parts_[i]);
  }

  // Pack a slice of tokens and walk the first partition: its log-sum-exp and the target's logit
  // are the bounds that all other partitions start from.
  void open(int64_t slice) {
    const int64_t token = slice * kSliceTokens, end = std::min(token + kSliceTokens, padded_);
    const Head& head = request_.head;
    kernels_.pack(hidden_ + token * head.dim, std::min(end, tokens_) - token, head.dim,
                  request_.exact_bf16,
                  packed_.data() + kernels_.packed_bytes(token, head.dim, request_.exact_bf16));
    for (int64_t t = token; t < std::min(end, tokens_); ++t) {
      target_logit_[t] = kernels_.logit(head, hidden_ + t * head.dim, targets_[t]);
      if (request_.want_grad) bound_[t] = target_logit_[t];
    }
    Part& part = parts_[slice];
    part.walk(kernels_, request_, packed_.data(), bound_.data(), 0,
              std::min(kPartitionRows, head.vocabulary), token, end);
    for (int64_t t = token; t < std::min(end, tokens_); ++t)
      bound_[t] = part.flat(t) ? kInfinity
                               : std::max(bound_[t], part.peak(t) + std::log(part.sum(t)));
  }

  // lse of a token from its parts, in order.
  void close(int64_t token) {
    float peak = -kInfinity;
    visit(token, [&](const Part& part) {
      peak = std::max(peak, part.peak(token));
      dense_[token] |= part.flat(token);
    });
    double sum = 0;
    visit(token, [&](const Part& part) {
      sum += part.sum(token) * std::exp(static_cast<double>(part.peak(token)) - peak);
    });
    lse_[token] = static_cast<float>(peak + std::log(sum));
  }

  int64_t gradient() {
    parallel_for(static_cast<int64_t>(parts_.size()), request_.threads, [&](int64_t i) {
      parts_[i].filter(lse_, dense_.data(), request_.tolerance);
    });
    starts_.assign(1, 0);
    int64_t kept = 0;
    for (int64_t t = 0; t < tokens_; ++t) {
      visit(t, [&](Part& part) {
        const int64_t count = part.counter(t);
        part.counter(t) = kept;
        kept += count;
      });
      starts_.push_back(kept);
    }
    rows_.reserve(0, static_cast<size_t>(kept));
    factors_.reserve(0, static_cast<size_t>(kept));
    parallel_for(static_cast<int64_t>(parts_.size()), request_.threads,
         [&](int64_t i) { parts_[i].scatter(rows_.data(), factors_.data()); });
    parallel_for((tokens_ + 15) / 16, request_.threads, [&](int64_t i) {
      for (int64_t t = i * 16; t < std::min(i * 16 + 16, tokens_); ++t) gather(t);
    });
    return kept;
  }

  void gather(int64_t token) {
    const Head& head = request_.head;
    const int64_t begin = starts_[token], end = starts_[token + 1];
    double mass = 0;
    for (int64_t i = begin; i < end; ++i) {
      const float z = factors_[i], p = std::exp(z - lse_[token]);
      mass += p;
      factors_[i] = p * slope(z);
    }
    dropped_[token] = std::max(static_cast<float>(1 - mass), 0.0f);
    if (dense_[token] || !(dropped_[token] <= request_.max_dropped)) {
      dropped_[token] = kNeedsDense;
      return;
    }
    float* out = grad_ + token * head.dim;
    std::fill_n(out, head.dim, 0.0f);
    const uint32_t target = static_cast<uint32_t>(targets_[token]);
    const float push = -request_.label_weight * slope(target_logit_[token]);
    kernels_.gather(head, rows_.data() + begin, factors_.data() + begin, end - begin, out);
    kernels_.gather(head, &target, &push, 1, out);
  }

  float slope(float z) const {
    const float x = request_.head.softcap > 0 ? z / request_.head.softcap : 0.0f;
    return (1 - x * x) * request_.head.scale;
  }

  const Kernels& kernels_;
  const Request& request_;
  int64_t tokens_, padded_, slices_ = 0;
  const float* hidden_;
  const int64_t* targets_;
  float *lse_, *target_logit_, *grad_, *dropped_;
  Buffer<uint8_t> packed_;
  std::vector<float> bound_;
  std::vector<uint8_t> dense_;
  std::vector<Part> parts_;
  std::vector<int64_t> starts_;
  Buffer<uint32_t> rows_;
  Buffer<float> factors_;
};

}  // namespace

void forward(const Kernels& kernels, const Request& request, Result& result) {
  result.kept = 0;
  for (int64_t first = 0; first < request.tokens; first += kGroupTokens)
    result.kept += Group(kernels, request, result, first,
                         std::min(kGroupTokens, request.tokens - first))
                       .run();
}

}  // namespace graftlm::cross_entropy
