#include "cpu_features.hpp"

#include <cstdint>

#if defined(GRAFTLM_X86)
#if defined(_MSC_VER)
#include <intrin.h>
#else
#include <cpuid.h>
#endif
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

namespace graftlm {
namespace {

#if defined(GRAFTLM_X86)

struct Registers {
  unsigned a = 0, b = 0, c = 0, d = 0;
};

Registers cpuid(unsigned leaf, unsigned sub) {
  Registers r;
#if defined(_MSC_VER)
  int v[4];
  __cpuidex(v, int(leaf), int(sub));
  r = {unsigned(v[0]), unsigned(v[1]), unsigned(v[2]), unsigned(v[3])};
#else
  __get_cpuid_count(leaf, sub, &r.a, &r.b, &r.c, &r.d);
#endif
  return r;
}

uint64_t saved_state() {  // XCR0: the register files the operating system saves
#if defined(_MSC_VER)
  return _xgetbv(0);
#else
  unsigned low, high;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return uint64_t(high) << 32 | low;
#endif
}

// Linux hands the 8 KB of tile registers only to processes that ask; the grant is for all threads.
bool tiles_permitted() {
#if defined(__linux__) && defined(SYS_arch_prctl)
  constexpr int kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

CpuFeatures detect() {
  CpuFeatures f;
  auto bit = [](unsigned word, int i) { return (word >> i & 1) != 0; };
  const Registers one = cpuid(1, 0);
  if (!bit(one.c, 27)) return f;  // OSXSAVE
  const uint64_t state = saved_state();
  const bool ymm = (state & 0x6) == 0x6, zmm = (state & 0xe6) == 0xe6;
  const bool tiles = (state & 0x60000) == 0x60000;
  const Registers seven = cpuid(7, 0), more = cpuid(7, 1);
  f.avx2 = ymm && bit(seven.b, 5) && bit(one.c, 12) && bit(one.c, 29);
  f.avx512 = f.avx2 && zmm && bit(seven.b, 16) && bit(seven.b, 30) && bit(seven.b, 17) &&
             bit(seven.b, 31);
  f.amx = f.avx512 && tiles && bit(seven.d, 24) && bit(seven.d, 22) && bit(more.a, 5) &&
          tiles_permitted();
  return f;
}

#else
CpuFeatures detect() { return {}; }
#endif

}  // namespace

const CpuFeatures& cpu_features() {
  static const CpuFeatures features = detect();
  return features;
}

}  // namespace graftlm
