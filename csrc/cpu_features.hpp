// What this CPU and its operating system let us use.
#pragma once

namespace graftlm {

struct CpuFeatures {
  bool avx2 = false;    // with FMA and F16C
  bool avx512 = false;  // F, BW, DQ, VL
  bool amx = false;     // tiles and BF16, with AVX512-BF16, and permission from the kernel
};

// Read once. Registers that the operating system does not save count as absent.
const CpuFeatures& cpu_features();

}  // namespace graftlm
