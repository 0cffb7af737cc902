"""Forward + backward of each variant beside LoRA, on the layers of Gemma-3-270M.

    python benchmarks/bench_variants.py [--tokens 512] [--rounds 5] [--format dense|nf4]

The linear layers of one block, of random weights in bfloat16, are run one after the other. LoRA and
the variants take turns, and each round gives a ratio; a line shows the median for one variant. A
start that is subtracted (PiSSA, OLoRA) has its own line; the other starts change values only.
Memory is what autograd keeps for the backward pass, counted by `saved_tensors_hooks`: the layers'
inputs included, weights and factors left out.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from torch import Tensor, nn

from graftlm.adapters import adapter_classes
from graftlm.adapters.adapter import Adapter
from graftlm.adapters.lora_linear import LoRALinear
from graftlm.frozen.formats import format_named
from graftlm.frozen.linear import FrozenLinear

SHAPES = [(1024, 640), (256, 640), (256, 640), (640, 1024), (2048, 640), (2048, 640), (640, 2048)]
"""(out, in) of q, k, v, o, gate, up and down."""
VARIANTS = ("dora", "pissa", "frozen_A")
"""DoRA; LoRA with a start that is subtracted; LoRA-FA."""


def layers(variant: str, rank: int, storage: str) -> list[Adapter]:
    """Adapters of one block, all of the same values for the same seed."""
    torch.manual_seed(0)
    made = []
    for rows, columns in SHAPES:
        linear: nn.Module = nn.Linear(columns, rows, bias=False, dtype=torch.bfloat16)
        if storage != "dense":
            assert isinstance(linear, nn.Linear)
            linear = FrozenLinear.of(linear, format_named(storage))
        cls = adapter_classes("dora" if variant == "dora" else "lora")[0]
        adapter = cls(linear.requires_grad_(False), rank, 2 * rank)
        assert isinstance(adapter, LoRALinear)
        made.append(adapter)
        nn.init.normal_(adapter.lora_B, std=0.01)
        if variant == "pissa":
            adapter.begin_from(adapter.lora_A.detach(), adapter.lora_B.detach(), taken=True)
        adapter.lora_A.requires_grad_(variant != "frozen_A")
    return made


def step(block: list[Adapter], inputs: list[Tensor]) -> float:
    """Seconds of a forward and backward pass through every layer."""
    begin = time.perf_counter()
    for layer, x in zip(block, inputs, strict=True):
        layer(x).sum().backward()
    return time.perf_counter() - begin


def kept(block: list[Adapter], inputs: list[Tensor]) -> int:
    """Bytes that autograd keeps of what depends on the tokens."""
    seen: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        if tensor.ndim and tensor.shape[0] == inputs[0].shape[0]:
            seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        outputs = [layer(x) for layer, x in zip(block, inputs, strict=True)]
    del outputs
    return sum(seen.values())


def main() -> None:
    """Print one line of CSV for each storage."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--format", nargs="+", default=["dense", "nf4"])
    options = parser.parse_args()
    print("storage,tokens,rank,threads,lora_ms,variant,variant_ms,time_ratio,memory_ratio")
    for storage in options.format:
        blocks = {name: layers(name, options.rank, storage) for name in ("lora", *VARIANTS)}
        inputs = [
            torch.randn(options.tokens, columns, dtype=torch.bfloat16).requires_grad_()
            for _, columns in SHAPES
        ]
        seconds: dict[str, list[float]] = {name: [] for name in blocks}
        for _ in range(options.rounds + 1):
            for name, block in blocks.items():
                seconds[name].append(step(block, inputs))
        lora = seconds["lora"][1:]  # the first warms up
        for name in VARIANTS:
            own = seconds[name][1:]
            ratio = statistics.median(d / one for d, one in zip(own, lora, strict=True))
            memory = kept(blocks[name], inputs) / kept(blocks["lora"], inputs)
            print(
                f"{storage},{options.tokens},{options.rank},{torch.get_num_threads()},"
                f"{1e3 * statistics.median(lora):.1f},{name},{1e3 * statistics.median(own):.1f},"
                f"{ratio:.2f},{memory:.2f}"
            )


if __name__ == "__main__":
    main()
