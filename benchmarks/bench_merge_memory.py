"""Peak memory of a merge on a random 1B Llama: graftlm beside PEFT.

    python benchmarks/bench_merge_memory.py --out DIR

PEFT loads the model in bfloat16, calls `merge_and_unload` and `save_pretrained`. graftlm measures
every way to merge, writes the best and proves it. Each runs in a process of its own; the peak is
its resident set (`ru_maxrss`). One line of JSON a result on stdout.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

PEFT = """
import sys, torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.bfloat16)
PeftModel.from_pretrained(model, sys.argv[2]).merge_and_unload().save_pretrained(sys.argv[3])
"""


def main() -> None:
    """Make the model and an adapter, then merge by both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--to", default="16bit")
    a = parser.parse_args()
    base, adapter = a.out / "base", a.out / "adapter"
    if not adapter.exists():
        _make(base, adapter)
    graftlm = ["-m", "graftlm", "merge", str(adapter), "--base", str(base), "--to", a.to]
    for name, command in (
        ("graftlm", [*graftlm, "--out", str(a.out / "ours"), "--force", "--json"]),
        ("peft", ["-c", PEFT, str(base), str(adapter), str(a.out / "theirs")]),
    ):
        for folder in ("ours", "theirs"):
            shutil.rmtree(a.out / folder, ignore_errors=True)
        measuring = [sys.executable, __file__, "--", *command]
        said = subprocess.run(measuring, check=True, stdout=subprocess.PIPE, text=True).stdout
        print(json.dumps({"tool": name, **json.loads(said.splitlines()[-1])}), flush=True)


def _make(base: Path, adapter: Path) -> None:
    import torch
    from random_llama import ONE_BILLION, write_llama  # type: ignore[import-not-found]

    from graftlm.adapters import add_lora, lora_parameters
    from graftlm.adapters.peft_format import save_adapter
    from graftlm.config import LoRAConfig
    from graftlm.models import load_model

    base.mkdir(parents=True, exist_ok=True)
    write_llama(base, layers_a_shard=6, alike=True, **ONE_BILLION)
    model, _ = load_model(base, quantize=None)
    add_lora(model, LoRAConfig(rank=16))
    with torch.no_grad():
        for _, parameter in lora_parameters(model):
            parameter.normal_(std=0.02)
    save_adapter(model, adapter, base_name=str(base))


def _measured(command: list[str]) -> None:
    """Run ``command`` and say its time and peak."""
    began = time.perf_counter()
    subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    print(json.dumps({"peak_bytes": peak, "seconds": time.perf_counter() - began}))


if __name__ == "__main__":
    _measured(sys.argv[2:]) if sys.argv[1] == "--" else main()
