#include <algorithm>
#include <cmath>

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

// The same bits as graftlm/kernels/nf4/double_quant.py.
void double_quantize(const float* absmax, int64_t blocks, float mean, const uint8_t* grid,
                     int64_t points, uint8_t* codes, float* nested, int threads) {
  constexpr int group = 1 << kGroupShift, lanes = 8;
  parallel_for((blocks + group - 1) / group, threads, [&](int64_t g) {
    const int64_t start = g * group;
    const int count = int(std::min<int64_t>(group, blocks - start));
    float rest[group] = {}, peaks[lanes] = {};  // the next loops are for whole vectors
    int32_t point[group];
    for (int i = 0; i < count; i++) rest[i] = absmax[start + i] - mean;
    for (int i = 0; i < group; i += lanes)
      for (int j = 0; j < lanes; j++) peaks[j] = std::max(peaks[j], std::fabs(rest[i + j]));
    const float peak = *std::max_element(peaks, peaks + lanes), factor = 1.0f / peak;
    for (int i = 0; i < group; i++) {
      // 0 / 0 in a group without spread is NaN, of which std::max makes -1: the first point.
      const float scaled = std::min(1.0f, std::max(-1.0f, rest[i] * factor));
      point[i] = int32_t((scaled + 1.0f) * 0.5f * float(points - 1) + 0.5f);
    }
    for (int i = 0; i < count; i++) codes[start + i] = grid[point[i]];
    nested[g] = peak;
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
