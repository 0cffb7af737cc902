#include <algorithm>

#include "operators.hpp"
#include "threads.hpp"

namespace graftlm {
namespace {

constexpr int64_t kTaskElements = 1 << 16;

}  // namespace

void quantize(const void* src, DType type, int64_t numel, int64_t block, uint8_t* codes,
              float* absmax, int threads) {
  const Level& kernels = level();
  const int64_t blocks = (numel + block - 1) / block, a_task = std::max<int64_t>(1, kTaskElements / block);
  parallel_for((blocks + a_task - 1) / a_task, threads, [&](int64_t task) {
    const int64_t first = task * a_task;
    kernels.quantize(src, type, numel, first, std::min(blocks, first + a_task), block, codes, absmax);
  });
}

void dequantize(const Weight& w, void* dst, DType type, int threads) {
  const Level& kernels = level();
  const int64_t numel = w.size();
  parallel_for((numel + kTaskElements - 1) / kTaskElements, threads, [&](int64_t task) {
    const int64_t start = task * kTaskElements;
    kernels.dequantize(w, start, std::min(kTaskElements, numel - start),
                       static_cast<char*>(dst) + start * int64_t(size_of(type)), type);
  });
}

}  // namespace graftlm
