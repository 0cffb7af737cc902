"""Peak memory and time of opening a model in 4 bits, against transformers + bitsandbytes.

    python benchmarks/bench_load.py [--layers 16] [--folder DIR]

A random Llama in bfloat16 shards is written (16 layers: 1.1 billion parameters), then each way of
opening it runs in a process of its own. Prints one CSV row a run:

- `peak_rss`: the most memory the process ever held in RAM, mapped file pages included (Linux's
  VmHWM: ru_maxrss is the same, except that a child inherits its parent's);
- `peak_anonymous`: the most that was not backed by a file, and so could not be evicted;
- `model_bytes`: what the loaded model itself takes;
- `baseline_rss`: the process after its imports, before loading.

All in MB. The files are in the page cache in all runs (they were just written).
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from random_llama import write_llama

SHARD_LAYERS = 4


def open_here(folder: str) -> Any:
    from graftlm.models import load_model

    return load_model(folder, quantize="nf4")[0]


def open_bitsandbytes(folder: str) -> Any:
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    settings = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    return AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=settings, device_map="cpu"
    )


def open_quantized_bitsandbytes(folder: str) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, device_map="cpu")


def write_quantized(folder: str) -> None:
    from graftlm.models import quantize_folder

    quantize_folder(folder, f"{folder}-nf4")


# name: (what runs, suffix of the folder it opens)
RUNS: dict[str, tuple[Callable[[str], Any], str]] = {
    "bfloat16 shards, graftlm": (open_here, ""),
    "bfloat16 shards, transformers + bitsandbytes": (open_bitsandbytes, ""),
    "bfloat16 shards, graftlm quantize to disk": (write_quantized, ""),
    "NF4 folder, graftlm": (open_here, "-nf4"),
    "NF4 folder, transformers + bitsandbytes": (open_quantized_bitsandbytes, "-nf4"),
}


def measure(name: str, folder: str) -> dict[str, Any]:
    """Run one way in this process, after its imports."""
    import bitsandbytes
    import transformers
    from transformers import AutoModelForCausalLM, LlamaForCausalLM

    import graftlm.models

    del bitsandbytes, transformers, AutoModelForCausalLM, LlamaForCausalLM, graftlm
    run, suffix = RUNS[name]
    baseline, peak, stop = status("VmRSS"), [status("RssAnon")], threading.Event()

    def watch() -> None:
        while not stop.wait(0.002):
            peak[0] = max(peak[0], status("RssAnon"))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    start = time.perf_counter()
    model = run(folder + suffix)
    seconds = time.perf_counter() - start
    stop.set()
    watcher.join()
    gc.collect()
    return {
        "seconds": round(seconds, 2),
        "peak_rss": status("VmHWM") // 1_000_000,
        "peak_anonymous": peak[0] // 1_000_000,
        "baseline_rss": baseline // 1_000_000,
        "model_bytes": 0 if model is None else model_bytes(model) // 1_000_000,
    }


def model_bytes(model: Any) -> int:
    storages = {}
    for tensor in [*model.parameters(), *model.buffers()]:
        storages[tensor.data_ptr()] = tensor.nbytes
        state = getattr(tensor, "quant_state", None)
        if state is not None:
            nested = state.state2.absmax.nbytes + state.state2.code.nbytes if state.nested else 0
            storages[tensor.data_ptr()] += state.absmax.nbytes + nested
    return sum(storages.values())


def status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise KeyError(field)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--folder", help="where the model is written (default: a temporary one)")
    parser.add_argument("--run", choices=RUNS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        print(json.dumps(measure(options.run, options.folder)))
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
        folder = Path(temporary) / "llama"
        folder.mkdir()
        write_llama(
            folder,
            SHARD_LAYERS,
            hidden_size=2048,
            intermediate_size=8192,
            num_hidden_layers=options.layers,
            num_attention_heads=32,
            num_key_value_heads=8,
        )
        columns = None
        for name in RUNS:
            command = [sys.executable, __file__, "--run", name, "--folder", str(folder)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            row = json.loads(done.stdout.splitlines()[-1])
            if columns is None:
                columns = list(row)
                print(f"# {machine()}")
                print("run", *columns, sep=",")
            print(f'"{name}"', *row.values(), sep=",", flush=True)


def machine() -> str:
    import importlib.metadata

    import torch

    packages = ["torch", "transformers", "bitsandbytes", "graftlm"]
    found = [f"{name} {version(importlib.metadata, name)}" for name in packages]
    return f"{torch.get_num_threads()} threads; {'; '.join(found)}"


def version(metadata: Any, name: str) -> str:
    try:
        return str(metadata.version(name))
    except metadata.PackageNotFoundError:
        return "(source)"


if __name__ == "__main__":
    main()
