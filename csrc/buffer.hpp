// Scratch memory on cache lines, freed with its scope.
#pragma once
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>

namespace graftlm {

class Buffer {
 public:
  Buffer() = default;
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() { std::free(memory_); }

  // Space for `count`, which replaces what was there.
  char* bytes(int64_t count) {
    if (count > size_ || !memory_) {
      std::free(memory_);
      size_ = 0;
      memory_ = std::malloc(static_cast<size_t>(count + kLine));
      if (!memory_) throw std::bad_alloc();
      size_ = count;
    }
    auto address = (reinterpret_cast<uintptr_t>(memory_) + kLine - 1) / kLine * kLine;
    return reinterpret_cast<char*>(address);
  }
  float* floats(int64_t count) { return reinterpret_cast<float*>(bytes(count * 4)); }
  float* zeros(int64_t count) {
    return static_cast<float*>(std::memset(bytes(count * 4), 0, static_cast<size_t>(count) * 4));
  }

 private:
  static constexpr int64_t kLine = 64;
  void* memory_ = nullptr;
  int64_t size_ = 0;
};

}  // namespace graftlm
