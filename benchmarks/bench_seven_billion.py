"""A QLoRA step on a model of Llama-2-7B's shape: opening time, peak memory, time.

    python benchmarks/bench_seven_billion.py [--layers 32] [--length 512] [--keep FOLDER]

Random bfloat16 shards (13.5 GB; every layer has the same numbers) are written, quantised to an NF4
folder by `graftlm quantize`'s own code, and deleted. Then, in a process of its own: open the folder
(memory-mapped), put rank-16 adapters on all linear layers, and take two steps of one row with
gradient checkpointing. Prints opening time, the second step's time, tokens/s, peak resident memory
(mapped pages included), and the floor: the step's matrix products at the machine's float32 rate.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from random_llama import write_llama

LIMIT_GB = 6.0
"""The QLoRA paper's figure for seven billion parameters."""


def worker(folder: str, length: int) -> None:
    """Open, adapt, train two steps; prints JSON."""
    import torch

    import graftlm
    from graftlm.data.batch import Batch
    from graftlm.system import peak_resident, return_freed_memory
    from graftlm.training.next_token import NextToken
    from graftlm.training.recompute import recompute_activations
    from graftlm.training.step import train_step

    return_freed_memory()
    start = time.perf_counter()
    model, _ = graftlm.load_model(folder)
    opened, opened_peak = time.perf_counter() - start, peak_resident()
    report = graftlm.add_lora(model, graftlm.LoRAConfig(rank=16, alpha=32))
    recompute_activations(model)
    model.train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-5, fused=True)
    ids = torch.randint(0, 32000, (1, length))
    batch = Batch(ids, ids.clone(), None, None, length)
    objective = NextToken(graftlm.TrainConfig())
    times = []
    for _ in range(2):
        start = time.perf_counter()
        result = train_step(model, [batch], optimizer, parameters, 1.0, objective)
        times.append(time.perf_counter() - start)
    found = {
        "open_seconds": opened,
        "open_peak_gb": opened_peak / 1e9,
        "step_seconds": times[-1],
        "tokens_per_second": length / times[-1],
        "peak_memory_gb": peak_resident() / 1e9,
        "loss": result.loss,
        "trainable_parameters": report.trainable_parameters,
    }
    print(json.dumps(found))


def float32_rate() -> float:
    """Operations a second of a large float32 product."""
    import torch

    a, b = torch.randn(512, 4096), torch.randn(4096, 4096)
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - start)
    return 2 * 512 * 4096 * 4096 / best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--keep", type=Path, help="where the NF4 folder is kept for the next time")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        worker(options.worker, options.length)
        return
    from graftlm.models import quantize_folder

    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary) / "nf4"
        if not folder.exists():
            dense = Path(temporary) / "dense"
            dense.mkdir()
            write_llama(
                dense,
                layers_a_shard=1,
                alike=True,
                hidden_size=4096,
                intermediate_size=11008,
                num_hidden_layers=options.layers,
                num_attention_heads=32,
            )
            quantize_folder(dense, folder)
            shutil.rmtree(dense)
        size = sum(f.stat().st_size for f in folder.iterdir())
        command = [sys.executable, __file__, "--worker", str(folder), "--length"]
        done = subprocess.run([*command, str(options.length)], check=True, stdout=subprocess.PIPE)
        found = json.loads(done.stdout.splitlines()[-1])
    # forward, again for checkpointing, and the gradient for the input: two operations a weight each
    per_layer = 4 * 4096 * 4096 + 3 * 4096 * 11008
    flops = 3 * 2 * options.length * per_layer * options.layers
    floor = flops / float32_rate()
    print(f"NF4 folder of {size / 1e9:.2f} GB, {options.layers} layers, {options.length} tokens")
    for name, value in found.items():
        print(f"{name:22} {value:,.2f}")
    print(
        f"{'float32 floor':22} {floor:.2f} s; the step takes {found['step_seconds'] / floor:.2f}x"
    )
    verdict = "under" if found["peak_memory_gb"] < LIMIT_GB else "NOT under"
    print(f"peak memory is {verdict} {LIMIT_GB:g} GB")


if __name__ == "__main__":
    main()
