"""Count the bits in which graftlm's NF4 and bitsandbytes' differ.

    python benchmarks/bitidentity.py [--tensors 300] [--seed 0]

Prints one line for each kind of weight and a total; exit code 1 if anything differs. Compared are
codes, block maxima, double-quantised maxima, their own maxima and the offset, then the dense weight
in the type of the original.
"""

from __future__ import annotations

import argparse
import collections
import sys
from importlib.metadata import version
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from graftlm.kernels.nf4 import dequantize, quantize
from tests.oracles import nf4_oracle as oracle


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tensors", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    tensors, weights = collections.Counter(), collections.Counter()
    mismatches = collections.Counter()
    for case in oracle.cases(options.tensors, options.seed):
        ours = quantize(case.weight, case.block_size, case.double_quant)
        theirs = oracle.bnb_quantize(case.weight, case.block_size, case.double_quant)
        parts = oracle.differing_parts(ours, theirs)
        # On CPUs with AVX512-BF16 bitsandbytes flushes bfloat16 below 1.2e-38 to zero.
        machine_dependent = case.kind == "tiny" and case.weight.dtype == torch.bfloat16
        dense = oracle.bnb_dequantize(theirs, case.weight.dtype)
        if not machine_dependent and not oracle.same_bits(dequantize(ours), dense):
            parts.append("dense")
        tensors[case.kind] += 1
        weights[case.kind] += case.weight.numel()
        mismatches[case.kind] += bool(parts)
        if parts:
            print(f"MISMATCH in {', '.join(parts)}: {case}")
    for kind in tensors:
        print(
            f"{kind:12} {tensors[kind]:4} tensors {weights[kind]:9,} weights, "
            f"mismatches {mismatches[kind]}"
        )
    print(
        f"bitsandbytes {version('bitsandbytes')}, torch {version('torch')}: "
        f"{tensors.total()} tensors compared, mismatches {mismatches.total()}"
    )
    return int(mismatches.total() > 0)


if __name__ == "__main__":
    sys.exit(main())
