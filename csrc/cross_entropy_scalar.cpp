// The walk in portable C++: what runs where no vector level does, and what the others are tested on.
#include "cross_entropy_walk.hpp"

namespace graftlm::cross_entropy {
namespace {

struct One {
  static constexpr int width = 1;
  float v;

  static One set(float x) { return {x}; }
  static One load(const float* p) { return {*p}; }
  static One load_bf16(const uint16_t* p) {
    const uint32_t bits = static_cast<uint32_t>(*p) << 16;
    One one;
    std::memcpy(&one.v, &bits, 4);
    return one;
  }
  void store(float* p) const { *p = v; }
  static One fma(One a, One b, One c) { return {a.v * b.v + c.v}; }
  static One max(One a, One b) { return {a.v > b.v ? a.v : b.v}; }  // b where either is NaN
  static bool any_greater(One a, One b) { return a.v > b.v; }
  static size_t append_greater(One a, One b, uint32_t key, uint32_t, uint32_t* keys, float* values) {
    if (!(a.v > b.v)) return 0;
    *keys = key;
    *values = a.v;
    return 1;
  }
  One fraction() const { return {v - std::floor(v)}; }
  One times_power_of_two(One t) const { return {std::ldexp(v, static_cast<int>(std::floor(t.v)))}; }
  One abs() const { return {std::fabs(v)}; }
  One with_sign_of(One x) const { return {std::copysign(v, x.v)}; }
  float sum() const { return v; }
  friend One operator+(One a, One b) { return {a.v + b.v}; }
  friend One operator-(One a, One b) { return {a.v - b.v}; }
  friend One operator*(One a, One b) { return {a.v * b.v}; }
  friend One operator/(One a, One b) { return {a.v / b.v}; }
};

}  // namespace

const Kernels* scalar_kernels() {
  static const Kernels kernels = float32_kernels<One, 4, 4>("scalar");
  return &kernels;
}

}  // namespace graftlm::cross_entropy
