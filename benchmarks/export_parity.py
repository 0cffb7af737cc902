"""Does llama.cpp say what graftlm says? Exported files beside the live adapter, greedily.

    python benchmarks/export_parity.py --out DIR [--adapter RUN] [--prompts 50] [--tokens 64]

Without ``--adapter`` it trains LoRA on the demo's rows first; ``--tiny llama qwen3 phi3`` does so
on random models of these families, two layers each, and compares them one after another. Each form
is exported, opened by llama.cpp (`llama-cpp-python`) and asked the held-out rows' prompts. One
CSV row a form on stdout and in DIR/parity.csv (DIR/FAMILY/parity.csv); what the columns are,
`graftlm.exporting.llama_cpp` says.
"""

from __future__ import annotations

import argparse
import csv
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from graftlm.adapters.adapter_folder import base_of
from graftlm.demo.requests import generate_rows
from graftlm.demo.stages import write_rows
from graftlm.exporting import export
from graftlm.exporting.llama_cpp import LiveAnswers, base_file_of, compare_with, live_answers
from tests.oracles.merging_tokenizer import bpe_tokenizer
from tests.oracles.model_families import COMMON, FAMILIES

FORMS = ("gguf:f32", "gguf:bf16", "gguf:f16", "gguf:q8_0", "gguf:q4_0", "gguf-adapter:f32")
COLUMNS = (
    *("form", "agreement", "kl", "same_answers", "same_tokens", "stopped_live", "stopped_llama"),
    *("prompts", "positions", "tokens_equal", "kept", "megabytes", "seconds"),
)


def main() -> None:
    """Train if asked, export each form, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", default="gemma-3-270m")
    parser.add_argument("--adapter", type=Path)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--prompts", type=int, default=50)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--forms", nargs="+", default=FORMS)
    parser.add_argument("--tiny", nargs="+", default=[], help="random models of these families")
    a = parser.parse_args()
    a.out.mkdir(parents=True, exist_ok=True)
    out = a.out
    for family in a.tiny:
        a.out = out / family
        a.out.mkdir(exist_ok=True)
        a.model = str(random_base(family, a.out / "base"))
        compare(a)
    if not a.tiny:
        compare(a)


def compare(a: argparse.Namespace) -> None:
    """All forms of one adapter: print a row each and write them to the folder."""
    adapter = a.adapter or trained(a.out, a.model, a.steps, a.prompts)
    base = base_of(adapter)
    import llama_cpp

    machine = f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    print(f"# {machine}, llama-cpp-python {llama_cpp.__version__}; {adapter} on {base}")
    print(",".join(COLUMNS), flush=True)
    rows: list[dict[str, Any]] = []
    live: dict[str, LiveAnswers] = {}
    for form in a.forms:
        rows.append(measured(form, adapter, base, live, a))
        print(",".join(str(value) for value in rows[-1].values()), flush=True)
    with (a.out / "parity.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)


def measured(
    form: str, adapter: Path, base: str, live: dict[str, LiveAnswers], a: argparse.Namespace
) -> dict[str, Any]:
    """Export one form and compare it; the live adapter is asked once a form of its base."""
    to, _, kind = form.partition(":")
    file = a.out / f"{to}-{kind}.gguf"
    file.unlink(missing_ok=True)
    started = time.perf_counter()
    report = export(adapter, to, file, base=base, quantization=kind)
    onto = report.get("onto", "original")
    if onto not in live:
        live[onto] = live_answers(adapter, base, onto, a.prompts, a.tokens)
    as_adapter = to == "gguf-adapter"
    with base_file_of(adapter, base, as_adapter) as base_file:
        proof = compare_with(live[onto], base_file or file, file if as_adapter else None)
    stopped, llama = proof.figures.pop("stopped")
    kept = report.get("proof", {}).get("kept")
    found = {
        "form": form,
        **proof.figures,
        "stopped_live": stopped,
        "stopped_llama": llama,
        "kept": kept,
        "megabytes": round(file.stat().st_size / 1e6, 1),
        "seconds": round(time.perf_counter() - started),
    }
    return {name: found[name] for name in COLUMNS}


def random_base(family: str, folder: Path) -> Path:
    """A random model of two layers with a tokenizer that GGUF holds."""
    if (folder / "config.json").exists():
        return folder
    import transformers

    name, own = FAMILIES[family]
    sizes = {
        "vocab_size": 400,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "max_position_embeddings": 512,
    }
    own = own | ({"head_dim": 128} if family == "qwen3" else {})  # the reader's default
    torch.manual_seed(0)
    config = getattr(transformers, name)(**(COMMON | own | sizes))
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    bpe_tokenizer().save_pretrained(folder)
    return folder


def trained(out: Path, model: str, steps: int, held: int) -> Path:
    """A LoRA run on the demo's rows."""
    run = out / "run"
    if (run / "summary.json").exists():
        return run
    write_rows(out / "train.jsonl", generate_rows("train", 400))
    write_rows(out / "held.jsonl", generate_rows("heldout", held))
    words: list[object] = ["train", "--model", model, "--method", "lora", "--out", run]
    words += ["--data", out / "train.jsonl", "--eval-data", out / "held.jsonl", "--steps", steps]
    words += ["--set", "train.batch_size=2", "--device", "cpu"]
    subprocess.run([sys.executable, "-m", "graftlm", *map(str, words)], check=True)
    return run


if __name__ == "__main__":
    main()
