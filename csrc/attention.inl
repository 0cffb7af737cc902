// The vector part of attention, over `Simd`; see attention.cpp. Included by level.inl, after
// cross_entropy.inl, whose exp2_of it uses. Rows are whole vectors, for keys are padded to panels.
namespace graftlm {
namespace {

// peak[r] = max(peak[r], max_c s[r][c])
void row_peaks(const float* s, int64_t rows, int64_t cols, float* peak) {
  for (int64_t r = 0; r < rows; r++, s += cols) {
    F high = Simd::set1(peak[r]);
    for (int64_t c = 0; c < cols; c += W) high = Simd::max(high, Simd::load(s + c));
    peak[r] = Simd::largest(high);
  }
}

// s[r][c] = exp(s[r][c] - shift[r]), and their sum is added to sum[r].
void exp_rows(float* s, int64_t rows, int64_t cols, const float* shift, float* sum) {
  const F log2e = Simd::set1(kLog2E);
  for (int64_t r = 0; r < rows; r++, s += cols) {
    const F by = Simd::set1(shift[r]);
    F total = Simd::zero();
    for (int64_t c = 0; c < cols; c += W) {
      const F p = exp2_of(Simd::mul(Simd::sub(Simd::load(s + c), by), log2e));
      Simd::store(s + c, p);
      total = Simd::add(total, p);
    }
    sum[r] += Simd::sum(total);
  }
}

// d[r][c] = p[r][c] (d[r][c] - delta[r])
void softmax_slopes(const float* p, const float* delta, int64_t rows, int64_t cols, float* d) {
  for (int64_t r = 0; r < rows; r++, p += cols, d += cols) {
    const F by = Simd::set1(delta[r]);
    for (int64_t c = 0; c < cols; c += W)
      Simd::store(d + c, Simd::mul(Simd::load(p + c), Simd::sub(Simd::load(d + c), by)));
  }
}

}  // namespace
}  // namespace graftlm
