// The driver of the linear cross-entropy: groups of tokens, partitions of the vocabulary, threads.
#include "cross_entropy.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <numeric>
#include <vector>

#include "buffer.hpp"
#include "level.hpp"
#include "threads.hpp"

namespace graftlm {
namespace {

constexpr int64_t kSliceTokens = 64;         // one task where tasks are tokens
constexpr int64_t kRowsBytes = 512 << 10;    // of W at a time, as prepared, and ...
constexpr int64_t kTokensBytes = 512 << 10;  // ... of hidden states: together they fit an L2
constexpr int64_t kGatherRows = 2048;        // gathered from before the next tokens' turn
// A partition gives up a token that keeps more than this share of its logits: that bounds memory, and
// the exact product is then about as fast. A token's own logits decide, so that its gradient does not
// depend on the tokens beside it. The first partition, the common words of most vocabularies, keeps
// several times the share of the others, and tells flat tokens before those are walked. If it is the
// only one, it may keep all.
constexpr double kMostFirst = 7.0 / 8, kMost = 1.0 / 2;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

// An array that keeps its contents when it grows, and does not initialise.
template <class T>
struct Growing {
  std::unique_ptr<T[]> data;
  size_t capacity = 0;

  T* room(size_t used, size_t wanted) {
    if (wanted > capacity) {
      capacity = std::max(wanted, used + used / 2);
      std::unique_ptr<T[]> larger(new T[capacity]);
      if (used) std::memcpy(larger.get(), data.get(), used * sizeof(T));
      data = std::move(larger);
    }
    return data.get();
  }
};

int64_t divide_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit; }

// As many units as fit the budget, at least one.
int64_t units(int64_t budget, int64_t bytes, int64_t unit) {
  return std::max<int64_t>(budget / bytes, 1) * unit;
}

Walk chosen_walk(const CrossEntropy& request) {
#if defined(GRAFTLM_X86)
  if (has_bf16_tiles()) return amx_walk();
#endif
  const bool of_few_bits = request.head.type == DType::bf16 || request.head.type == DType::i8;
  return tile_walk(request.exact_bf16 && of_few_bits);
}

// One task's walk: rows of one partition for some tokens, with its own state and candidates.
class Part {
 public:
  void walk(const CrossEntropy& request, const void* hidden, const float* bound, int64_t row,
            int64_t row_end, int64_t token, int64_t token_end) {
    const Walk kernels = chosen_walk(request);
    const Head& head = request.head;
    const size_t tokens = static_cast<size_t>(token_end - token);
    row_ = row;
    first_ = token;
    peak_.assign(tokens, -kInfinity);
    sum_.assign(tokens, 0.0f);
    counts_.assign(tokens, 0);
    bound_.assign(bound + token, bound + token_end);
    const double share = row ? kMost : row_end < head.vocabulary ? kMostFirst : 1.0;
    const auto most = static_cast<int64_t>(share * static_cast<double>(row_end - row));
    const WalkState state = {peak_.data() - token, sum_.data() - token, bound_.data() - token,
                             std::log(request.tolerance)};
    const int64_t rows = units(kRowsBytes, kernels.prepared_bytes(kernels.rows, head.dim),
                               kernels.rows);
    const int64_t step = units(kTokensBytes, kernels.packed_bytes(kernels.panel, head.dim, false),
                               kernels.panel);
    Buffer prepared;
    prepared.bytes(kernels.prepared_bytes(rows, head.dim));
    for (; row < row_end; row += rows) {
      const int64_t end = std::min(row + rows, row_end);
      void* at = prepared.bytes(0);
      kernels.prepare(head, row, end, at);
      for (int64_t t = token; t < token_end; t += step) {
        const int64_t t_end = std::min(t + step, token_end);
        const size_t room = size_ + static_cast<size_t>((end - row) * (t_end - t) + kWidestVector);
        Candidates found = {keys_.room(size_, room), logits_.room(size_, room), size_};
        kernels.walk({&head, row, end, at, hidden, t, t_end, request.exact_bf16, state}, found);
        for (; size_ < found.count; size_++) count(size_, most);
      }
    }
  }

  bool flat(int64_t token) const { return bound_[token - first_] == kInfinity; }
  float peak(int64_t token) const { return peak_[token - first_]; }
  float sum(int64_t token) const { return sum_[token - first_]; }
  int64_t& counter(int64_t token) { return counts_[token - first_]; }

  // Keep the candidates above the tolerance now that lse is known; count them by token.
  void filter(const float* lse, const uint8_t* flat, float tolerance) {
    std::fill(counts_.begin(), counts_.end(), 0);
    const size_t found = size_;
    size_ = 0;
    for (size_t i = 0; i < found; i++) {
      const int64_t token = token_of(i);
      const float logit = logits_.data[i];
      if (flat[token] || !(std::exp(logit - lse[token]) > tolerance)) continue;
      counts_[token - first_]++;
      keys_.data[size_] = keys_.data[i];
      logits_.data[size_++] = logit;
    }
  }

  // Sort the kept candidates by token: `counter` holds where each token's next entry goes.
  void scatter(uint32_t* rows, float* logits) {
    for (size_t i = 0; i < size_; i++) {
      const int64_t at = counts_[token_of(i) - first_]++;
      rows[at] = static_cast<uint32_t>(row_) + keys_.data[i] % kPartitionRows;
      logits[at] = logits_.data[i];
    }
  }

 private:
  int64_t token_of(size_t i) const { return keys_.data[i] / kPartitionRows; }

  void count(size_t i, int64_t most) {
    const int64_t at = token_of(i) - first_;
    if (++counts_[at] > most) bound_[at] = kInfinity;
  }

  int64_t first_ = 0, row_ = 0;
  std::vector<float> peak_, sum_, bound_;
  std::vector<int64_t> counts_;
  Growing<uint32_t> keys_;
  Growing<float> logits_;
  size_t size_ = 0;
};

// Tokens [first, first + tokens) of a request: walk, then gradient. Slices of tokens walk the first
// partition, whose log-sum-exps are the bounds that all other partitions start from.
class Group {
 public:
  Group(const CrossEntropy& request, int64_t first, int64_t tokens, int threads)
      : q_(request),
        threads_(threads),
        first_(first),
        tokens_(tokens),
        padded_(divide_up(tokens, chosen_walk(request).panel) * chosen_walk(request).panel),
        slices_(divide_up(padded_, kSliceTokens)),
        hidden_(request.hidden + first * request.head.dim),
        lse_(request.lse + first),
        target_logit_(request.target_logit + first),
        bound_(static_cast<size_t>(padded_), kInfinity),
        flat_(static_cast<size_t>(padded_), 0) {}

  int64_t run() {
    const Head& head = q_.head;
    const int64_t partitions = divide_up(head.vocabulary, kPartitionRows);
    parts_.resize(static_cast<size_t>(slices_ + partitions - 1));
    packed_.bytes(chosen_walk(q_).packed_bytes(padded_, head.dim, q_.exact_bf16));
    parallel_for(slices_, threads_, [&](int64_t slice) { open(slice); });
    parallel_for(partitions - 1, threads_, [&](int64_t i) {
      const int64_t row = (i + 1) * kPartitionRows;
      const int64_t end = std::min(row + kPartitionRows, head.vocabulary);
      parts_[slices_ + i].walk(q_, packed_.bytes(0), bound_.data(), row, end, 0, padded_);
    });
    for (int64_t t = 0; t < tokens_; t++) close(t);
    return q_.grad ? gradient() : 0;
  }

 private:
  template <class Visit>
  void visit(int64_t token, const Visit& visit) {
    visit(parts_[token / kSliceTokens]);
    for (size_t i = static_cast<size_t>(slices_); i < parts_.size(); i++) visit(parts_[i]);
  }

  void open(int64_t slice) {
    const Walk kernels = chosen_walk(q_);
    const Head& head = q_.head;
    const int64_t token = slice * kSliceTokens, padded = std::min(token + kSliceTokens, padded_);
    const int64_t end = std::min(padded, tokens_);
    const int64_t row_end = std::min(kPartitionRows, head.vocabulary);
    kernels.pack(hidden_ + token * head.dim, end - token, head.dim, q_.exact_bf16,
                 packed_.bytes(0) + kernels.packed_bytes(token, head.dim, q_.exact_bf16));
    for (int64_t t = token; t < end; t++) {
      const int64_t target = q_.targets[first_ + t];
      const float* hidden = hidden_ + t * head.dim;
      float a;
      if (kernels.dot) a = kernels.dot(head, target, packed_.bytes(0), t);
      else level().dense_gemv(head.row(target), head.type, 0, 1, head.dim, hidden, 1, &a, 1);
      a = a * head.scale_of(target) + (head.bias ? head.bias[target] : 0.0f);
      const float z = a * head.scale;
      target_logit_[t] = head.softcap > 0 ? head.softcap * std::tanh(z / head.softcap) : z;
      if (q_.grad) bound_[t] = target_logit_[t];
    }
    Part& part = parts_[slice];
    part.walk(q_, packed_.bytes(0), bound_.data(), 0, row_end, token, padded);
    for (int64_t t = token; t < end && q_.grad; t++)
      bound_[t] = part.flat(t) ? kInfinity
                               : std::max(bound_[t], part.peak(t) + std::log(part.sum(t)));
  }

  void close(int64_t token) {
    float peak = -kInfinity;
    visit(token, [&](const Part& part) {
      peak = std::max(peak, part.peak(token));
      flat_[token] |= part.flat(token);
    });
    double sum = 0;
    visit(token, [&](const Part& part) {
      sum += part.sum(token) * std::exp(static_cast<double>(part.peak(token)) - peak);
    });
    lse_[token] = static_cast<float>(peak + std::log(sum));
  }

  int64_t gradient() {
    const int64_t parts = static_cast<int64_t>(parts_.size());
    parallel_for(parts, threads_, [&](int64_t i) {
      parts_[i].filter(lse_, flat_.data(), q_.tolerance);
    });
    int64_t kept = 0;
    starts_.assign(1, 0);
    for (int64_t t = 0; t < tokens_; t++) {
      visit(t, [&](Part& part) {
        const int64_t count = part.counter(t);
        part.counter(t) = kept;
        kept += count;
      });
      starts_.push_back(kept);
    }
    rows_.reset(new uint32_t[static_cast<size_t>(kept)]);
    factors_.reset(new float[static_cast<size_t>(kept)]);
    parallel_for(parts, threads_,
                 [&](int64_t i) { parts_[i].scatter(rows_.get(), factors_.get()); });
    parallel_for(slices_, threads_, [&](int64_t slice) {
      gather(slice * kSliceTokens, std::min((slice + 1) * kSliceTokens, tokens_));
    });
    return kept;
  }

  // The kept rows of W into the gradients of some tokens, a stretch of the vocabulary at a time:
  // the tokens of a text have most of their candidates in common.
  void gather(int64_t token, int64_t token_end) {
    const Head& head = q_.head;
    int64_t next[kSliceTokens];
    for (int64_t t = token; t < token_end; t++)
      next[t - token] = weigh(t) ? starts_[t] : starts_[t + 1];
    for (int64_t row = 0; row < head.vocabulary; row += kGatherRows)
      for (int64_t t = token; t < token_end; t++) {
        const int64_t begin = next[t - token];
        int64_t& end = next[t - token];
        while (end < starts_[t + 1] && rows_[end] < row + kGatherRows) end++;
        level().gather_rows(head, &rows_[begin], &factors_[begin], end - begin, grad_of(t));
      }
  }

  // Turn a token's logits into factors p · ∂z/∂(h·w), and start its gradient with the terms of the
  // target and the mean row. False where too much is dropped.
  bool weigh(int64_t token) {
    const Head& head = q_.head;
    double mass = 0;
    for (int64_t i = starts_[token]; i < starts_[token + 1]; i++) {
      const float z = factors_[i], p = std::exp(z - lse_[token]);
      mass += p;
      factors_[i] = p * slope(z);
    }
    float& dropped = q_.dropped[first_ + token];
    dropped = std::max(static_cast<float>(1 - mass), 0.0f);
    if (flat_[token]) dropped = kTooFlat;
    if (!(dropped <= q_.max_dropped)) return false;
    float* grad = grad_of(token);
    const float mean = (dropped - q_.label_smoothing) * head.scale;
    for (int64_t d = 0; d < head.dim; d++) grad[d] = mean * q_.mean_row[d];
    const uint32_t target = static_cast<uint32_t>(q_.targets[first_ + token]);
    const float push = -(1 - q_.label_smoothing) * slope(target_logit_[token]);
    level().gather_rows(head, &target, &push, 1, grad);
    return true;
  }

  float* grad_of(int64_t token) const { return q_.grad + (first_ + token) * q_.head.dim; }

  float slope(float z) const {
    const float x = q_.head.softcap > 0 ? z / q_.head.softcap : 0.0f;
    return (1 - x * x) * q_.head.scale;
  }

  const CrossEntropy& q_;
  int threads_;
  int64_t first_, tokens_, padded_, slices_;
  const float* hidden_;
  float *lse_, *target_logit_;
  Buffer packed_;
  std::vector<float> bound_;
  std::vector<uint8_t> flat_;
  std::vector<Part> parts_;
  std::vector<int64_t> starts_;
  std::unique_ptr<uint32_t[]> rows_;
  std::unique_ptr<float[]> factors_;
};

}  // namespace

void mean_row(const Head& head, float* mean, int threads) {
  const int64_t partitions = divide_up(head.vocabulary, kPartitionRows);
  std::vector<std::vector<float>> sums(static_cast<size_t>(partitions));
  parallel_for(partitions, threads, [&](int64_t i) {
    const int64_t row = i * kPartitionRows, end = std::min(row + kPartitionRows, head.vocabulary);
    std::vector<uint32_t> rows(static_cast<size_t>(end - row));
    std::iota(rows.begin(), rows.end(), static_cast<uint32_t>(row));
    const std::vector<float> ones(rows.size(), 1.0f);
    sums[i].assign(static_cast<size_t>(head.dim), 0.0f);
    level().gather_rows(head, rows.data(), ones.data(), end - row, sums[i].data());
  });
  for (int64_t d = 0; d < head.dim; d++) {
    double sum = 0;
    for (const auto& part : sums) sum += part[d];
    mean[d] = static_cast<float>(sum / static_cast<double>(head.vocabulary));
  }
}

int64_t cross_entropy(const CrossEntropy& request, int threads) {
  int64_t kept = 0;
  for (int64_t first = 0; first < request.tokens; first += kGroupTokens)
    kept += Group(request, first, std::min(kGroupTokens, request.tokens - first), threads).run();
  return kept;
}

}  // namespace graftlm
