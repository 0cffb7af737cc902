"""On paper: QLoRA of a 70B Llama on 8 and 64 H100 under FSDP2. Nothing of this was run on a GPU.

    python benchmarks/simulate_cluster.py [--rank 16] [--rows 64] [--length 2048]

The sizes are those of the real model class on the meta device, in the groups in which
`graftlm.distributed.sharded` gathers them. A micro-batch gathers each layer twice, before its
forward and before its backward pass, and the outermost group once:

    bytes into a GPU      b = (2 Σ layers + rest) (N - 1) / N           a micro-batch
                          g = 2 · 4 · trained (N - 1) / N               a step: adding up gradients
    time on the links     inside a node b / NVLink; between nodes the bytes enter a node once, by
                          all its network cards: b / (cards · rate). The slower of both.
    time to compute       6 · P · tokens / (0.6 · peak): forward, recomputed, backward to the inputs

Published rates: H100 SXM 989 TFLOPS in bfloat16, NVLink 450 GB/s in one direction; a DGX H100 has 8
network cards of 400 Gbit/s (NDR InfiniBand). 0.6 of the peak is what `graftlm plan` assumes too.
Latency, decoding of the codes and the optimiser are left out, so the times are lower bounds. With
the gathering of the next layer behind the computing of this one, a step takes the larger of both
times; "share" is computing as a part of it.
"""

from __future__ import annotations

import argparse
from typing import NamedTuple

GPUS_A_NODE = 8
NVLINK = 450e9
PEAK, USED = 989e12, 0.6
CARDS = {"NDR InfiniBand, 8 × 400 Gbit/s": 400e9, "Ethernet, 1 × 100 Gbit/s": 12.5e9}
"""Bytes a second into a node."""


class Sizes(NamedTuple):
    """Bytes of the frozen groups, and the numbers of parameters."""

    layers: list[int]
    rest: int
    parameters: int
    trained: int


def sizes_of(rank: int) -> Sizes:
    """The sizes of Llama 3 70B in NF4 with adapters on all linear layers."""
    import torch
    from transformers import LlamaConfig

    from graftlm.adapters.layers import linear_shape
    from graftlm.config import RunConfig
    from graftlm.distributed.groups import group_sizes
    from graftlm.frozen.linear import FrozenLinear
    from graftlm.planning.fake_model import without_tensors

    architecture = LlamaConfig(
        vocab_size=128256,
        hidden_size=8192,
        intermediate_size=28672,
        num_hidden_layers=80,
        num_attention_heads=64,
        num_key_value_heads=8,
        tie_word_embeddings=False,
    )
    model = without_tensors(architecture, RunConfig(method="qlora"), torch.bfloat16)
    *layers, table, outermost = group_sizes(model, torch.bfloat16)
    shapes = [linear_shape(m) for m in model.modules() if isinstance(m, FrozenLinear)]
    linears = [shape for shape in shapes if shape is not None]
    dense = sum(p.numel() for p in model.parameters())
    return Sizes(
        layers=layers,
        rest=table + outermost,
        parameters=dense + sum(out * inner for out, inner in linears),
        trained=rank * sum(out + inner for out, inner in linears),
    )


def seconds_on_links(nbytes: float, gpus: int, network: float) -> float:
    """The time for ``nbytes`` to reach every GPU."""
    nodes = -(-gpus // GPUS_A_NODE)
    inside = nbytes * (gpus - 1) / gpus / NVLINK
    between = nbytes * (nodes - 1) / nodes / network
    return max(inside, between)


def computing(sizes: Sizes, tokens: float) -> float:
    """The time for so many tokens on one GPU. The rows of the table are looked up."""
    table = 128256 * 8192
    return 6 * (sizes.parameters - table) * tokens / (USED * PEAK)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--rows", type=int, default=64, help="rows of a step, over all GPUs")
    parser.add_argument("--length", type=int, default=2048)
    options = parser.parse_args()
    sizes = sizes_of(options.rank)
    frozen = sum(sizes.layers) + sizes.rest
    gathered = 2 * sum(sizes.layers) + sizes.rest
    gradients = 2 * 4 * sizes.trained
    print(
        f"frozen weights {frozen / 1e9:.1f} GB, a layer {max(sizes.layers) / 1e9:.2f} GB, "
        f"table and head {sizes.rest / 1e9:.1f} GB; "
        f"{sizes.trained / 1e6:.0f} million trained parameters\n"
    )
    print(
        f"A step of {options.rows} rows of {options.length} tokens, one row a micro-batch:\n\n"
        "| GPUs | between nodes | frozen, GB a GPU | micro-batches | gathered, GB | "
        "gradients, GB | links, s | computing, s | share |\n|---|---|---|---|---|---|---|---|---|"
    )
    for gpus in (8, 64):
        for name, network in CARDS.items() if gpus > GPUS_A_NODE else [("–", NVLINK)]:
            passes = -(-options.rows // gpus)
            moved = passes * gathered * (gpus - 1) / gpus
            summed = gradients * (gpus - 1) / gpus
            links = passes * seconds_on_links(gathered, gpus, network)
            links += seconds_on_links(gradients, gpus, network)
            work = computing(sizes, passes * options.length)
            print(
                f"| {gpus} | {name} | {frozen / gpus / 1e9:.1f} | {passes} | {moved / 1e9:.0f} | "
                f"{summed / 1e9:.1f} | {links:.2f} | {work:.2f} | {work / max(work, links):.0%} |"
            )
    print(
        "\nTokens of a micro-batch on a GPU below which the links take longer than computing:\n\n"
        "| GPUs | between nodes | FSDP2 | DDP, one micro-batch a step |\n|---|---|---|---|"
    )
    a_token = computing(sizes, 1)
    for gpus in (8, 16, 64, 512):
        for name, network in CARDS.items() if gpus > GPUS_A_NODE else [("–", NVLINK)]:
            shared = seconds_on_links(gathered + gradients, gpus, network) / a_token
            replicas = seconds_on_links(gradients, gpus, network) / a_token
            print(f"| {gpus} | {name} | {shared:.0f} | {replicas:.0f} |")


if __name__ == "__main__":
    main()
