"""One GPU, measured: kernels, and training beside PEFT, PEFT + bitsandbytes and Unsloth, in turn.

    python benchmarks/bench_gpu.py [--device cuda] [--models 270m,1b,8b,30b-a3b-8-layers]
                                   [--steps 20] [--repeats 3] [--out DIR] [--quick]

It needs no network: the weights are random, drawn here in the shapes of known models (written once
into --out), and so are the rows. It works from a copied folder: `PYTHONPATH=src`.

- kernels: each against its reference in PyTorch, bitsandbytes and Liger where installed; the share
  of the card's bandwidth or arithmetic, by its data sheet; the error against float64.
- training: tokens/s, peak memory and loss of each side on the same rows. Each run is a process of
  its own; the sides alternate, so that a card that slows down treats all alike.
- plan: the predicted peak beside the measured one.

Prints Markdown; writes CSV into --out. `--quick --device cpu` tries the script itself anywhere.
"""

from __future__ import annotations

import argparse
import csv
import functools
import importlib.util
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

MODELS: dict[str, dict[str, int]] = {
    "tiny": {"hidden": 64, "inner": 128, "layers": 2, "heads": 4, "groups": 2, "words": 512},
    "270m": {"hidden": 640, "inner": 2048, "layers": 18, "heads": 4, "groups": 1, "words": 262144},
    "1b": {"hidden": 2048, "inner": 8192, "layers": 16, "heads": 32, "groups": 8, "words": 128256},
    "8b": {"hidden": 4096, "inner": 14336, "layers": 32, "heads": 32, "groups": 8, "words": 128256},
    "30b-a3b-8-layers": {
        "hidden": 2048,
        "inner": 768,
        "layers": 8,
        "heads": 32,
        "groups": 4,
        "words": 151936,
        "experts": 128,
    },
}
"""The shapes of Gemma-3-270M, Llama-3.2-1B and Llama-3.1-8B, with random weights, and of 8 layers
of Qwen3-30B-A3B, whose 48 would be 61 GB to write."""
SIDES = (
    "graftlm-qlora",
    "graftlm-lora",
    "graftlm-compiled",
    "peft-qlora",
    "peft-lora",
    "unsloth-qlora",
)
FIELDS = ("model", "side", "repeat", "tokens_per_second", "peak_gb", "first_loss", "last_loss")


# ---------------------------------------------------------------------------------- kernels


def kernels(device: str) -> list[dict[str, Any]]:
    """A row for each case of each operator, and for what other libraries offer."""
    from graftlm.kernels import operators, selfcheck

    rows = selfcheck(device)
    found = [row for row in rows if row["device"] == device and device != "cpu"]
    missing = sorted(set(operators()) - {row["operator"] for row in found})
    if device != "cpu" and missing:
        print(f"no kernel of ours on {device}: {', '.join(missing)}", file=sys.stderr)
    return found or rows


def layer(device: str) -> Iterator[dict[str, Any]]:
    """Times of the parts of one layer of Llama-3.1-8B, beside other libraries."""
    from graftlm.frozen.nf4.frozen_nf4 import FrozenNF4
    from graftlm.frozen.weight import WeightSettings
    from graftlm.system.cards import card_named
    from graftlm.system.placement import Placement

    card = None if device == "cpu" else card_named(Placement.on(device).name)
    shape = MODELS["tiny" if device == "cpu" else "8b"]
    dtype = torch.bfloat16 if card is None or card.bfloat16 else torch.float16
    weight = torch.randn(shape["inner"], shape["hidden"], device=device, dtype=dtype) / 64
    frozen = FrozenNF4.quantize(weight, WeightSettings())
    for rows in (1, 8, 2048):
        x = torch.randn(rows, shape["hidden"], device=device, dtype=dtype)
        sides: dict[str, Callable[[], Any]] = {
            "graftlm": functools.partial(frozen.product, x),
            "dense 16 bits": functools.partial(torch.nn.functional.linear, x, weight),
        }
        if importlib.util.find_spec("bitsandbytes") is not None:
            import bitsandbytes.functional as bnb

            codes, state = bnb.quantize_4bit(weight, quant_type="nf4", compress_statistics=True)
            sides["bitsandbytes"] = functools.partial(_bitsandbytes, x, codes, state)
        truth = x.double() @ frozen.dequantize(torch.float32).double().T
        for side, call in sides.items():
            with torch.no_grad():
                seconds = timed(call, device)
                error = float((call().double() - truth).norm() / truth.norm())
            nbytes = (frozen.nbytes if side != "dense 16 bits" else weight.nbytes) + 2.0 * (
                x.numel() + rows * shape["inner"]
            )
            flops = 2.0 * rows * weight.numel()
            yield {
                "part": f"product with {rows} rows",
                "side": side,
                "us": round(1e6 * seconds, 1),
                "relative_error": float(f"{error:.1e}"),
                "of_bandwidth": _share(nbytes / seconds, card and card.bandwidth),
                "of_arithmetic": _share(flops / seconds, card and card.narrow),
            }
    yield from _norms(device, dtype, shape, card)


def _bitsandbytes(x: Any, codes: Any, state: Any) -> Any:
    import bitsandbytes as bnb

    return bnb.matmul_4bit(x, codes.t(), quant_state=state)


def _norms(device: str, dtype: Any, shape: dict[str, int], card: Any) -> Iterator[dict[str, Any]]:
    from graftlm.kernels.gated_unit import SILU, gated_unit
    from graftlm.kernels.rms_norm import rms_norm
    from graftlm.kernels.rotary import rotary

    x = torch.randn(2048, shape["hidden"], device=device, dtype=dtype)
    weight = torch.ones(shape["hidden"], device=device, dtype=dtype)
    g, u = (torch.randn(2048, shape["inner"], device=device, dtype=dtype) for _ in range(2))
    size = shape["hidden"] // shape["heads"]
    heads = x.view(1, 2048, shape["heads"], size).transpose(1, 2)
    cos, sin = torch.randn(2, 1, 2048, size, device=device, dtype=dtype)
    sides: dict[tuple[str, str], tuple[Callable[[], Any], float]] = {
        ("rotary embedding", "graftlm"): (lambda: rotary(heads, cos, sin), 2 * x.nbytes),
        ("rotary embedding", "torch"): (lambda: _rotary(heads, cos, sin), 2 * x.nbytes),
        ("RMS norm", "graftlm"): (lambda: rms_norm(x, weight, 0.0, 1e-6), 2 * x.nbytes),
        ("RMS norm", "torch"): (
            lambda: torch.nn.functional.rms_norm(x, weight.shape, weight, 1e-6),
            2 * x.nbytes,
        ),
        ("gated unit", "graftlm"): (lambda: gated_unit(g, u, SILU), 3 * g.nbytes),
        ("gated unit", "torch"): (lambda: torch.nn.functional.silu(g) * u, 3 * g.nbytes),
    }
    if device != "cpu" and importlib.util.find_spec("liger_kernel") is not None:
        from liger_kernel.ops.rms_norm import LigerRMSNormFunction
        from liger_kernel.ops.swiglu import LigerSiLUMulFunction

        sides["RMS norm", "Liger"] = (
            lambda: LigerRMSNormFunction.apply(x, weight, 1e-6),
            2 * x.nbytes,
        )
        sides["gated unit", "Liger"] = (lambda: LigerSiLUMulFunction.apply(g, u), 3 * g.nbytes)
    for (part, side), (call, nbytes) in sides.items():
        with torch.no_grad():
            seconds = timed(call, device)
        yield {
            "part": part,
            "side": side,
            "us": round(1e6 * seconds, 1),
            "of_bandwidth": _share(nbytes / seconds, card and card.bandwidth),
        }


def _rotary(x: Any, cos: Any, sin: Any) -> Any:
    """As transformers computes it."""
    left, right = x.chunk(2, -1)
    return x * cos[:, None] + torch.cat((-right, left), -1) * sin[:, None]


def _share(rate: float, most: float | None) -> str:
    return "–" if not most else f"{rate / most:.0%}"


def timed(call: Callable[[], Any], device: str, budget: float = 0.3) -> float:
    """The median of calls that fill the budget, after a first one, in seconds."""
    call()
    _wait(device)
    times: list[float] = []
    deadline = time.perf_counter() + budget
    while len(times) < 5 or time.perf_counter() < deadline:
        started = time.perf_counter()
        call()
        _wait(device)
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def _wait(device: str) -> None:
    if device != "cpu":
        torch.accelerator.synchronize()


# --------------------------------------------------------------------------------- training


def random_model(name: str, folder: Path) -> Path:
    """A folder with random weights of this shape in bfloat16, and a byte tokenizer."""
    from transformers import AutoModelForCausalLM, LlamaConfig, Qwen3MoeConfig

    from graftlm.planning.baseline_memory import byte_tokenizer

    made, shape = folder / f"random-{name}", MODELS[name]
    if (made / "config.json").exists():
        return made
    torch.manual_seed(0)
    experts: dict[str, Any] = {}
    if "experts" in shape:
        experts = {
            "moe_intermediate_size": shape["inner"],
            "num_experts": shape["experts"],
            "num_experts_per_tok": 8,
            "head_dim": 128,
        }
    config = (Qwen3MoeConfig if experts else LlamaConfig)(
        vocab_size=shape["words"],
        hidden_size=shape["hidden"],
        intermediate_size=shape["inner"],
        num_hidden_layers=shape["layers"],
        num_attention_heads=shape["heads"],
        num_key_value_heads=shape["groups"],
        max_position_embeddings=8192,
        tie_word_embeddings=name in ("270m", "1b"),
        **experts,
    )
    previous = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        AutoModelForCausalLM.from_config(config).save_pretrained(made)
    finally:
        torch.set_default_dtype(previous)
    byte_tokenizer().save_pretrained(made)
    return made


def one_run(asked: dict[str, Any]) -> dict[str, Any]:
    """Train in this process: the same rows, batches and rate for all sides."""
    device, side, steps = asked["device"], asked["side"], asked["steps"]
    maker, method = side.split("-")
    torch.manual_seed(asked["seed"])
    make = {"graftlm": _ours, "peft": _peft, "unsloth": _unsloth}[maker]
    model = make(asked["model"], method, device)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=2e-4, fused=True)
    step = _our_step if maker == "graftlm" else _their_step
    draw = torch.Generator().manual_seed(asked["seed"])
    words = min(model.config.vocab_size, 200)
    losses, seconds = [], 0.0
    for number in range(steps):
        ids = torch.randint(3, words, (asked["batch"], asked["length"]), generator=draw)
        _wait(device)
        started = time.perf_counter()
        losses.append(step(model, ids, optimizer, trained))
        _wait(device)
        if number >= min(3, steps - 1):  # the first steps compile kernels
            seconds += time.perf_counter() - started
    from graftlm.system.placement import placement_of

    tokens = asked["batch"] * asked["length"] * (steps - min(3, steps - 1))
    return {
        "tokens_per_second": tokens / seconds,
        "peak_gb": placement_of(model).peak_memory() / 1e9,
        "first_loss": losses[0],
        "last_loss": losses[-1],
    }


def _ours(folder: str, method: str, device: str) -> Any:
    import graftlm

    quantize = None if method == "lora" else "nf4"
    model, _ = graftlm.load_model(folder, quantize=quantize, device=device)
    graftlm.add_lora(model, graftlm.LoRAConfig(rank=16, alpha=32))
    if method == "compiled":  # QLoRA with train.compile
        from graftlm.training.compilation import compile_layers

        compile_layers(model)
    return model.train()


def _peft(folder: str, method: str, device: str) -> Any:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    four_bits = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    stored: dict[str, Any] = {"quantization_config": four_bits} if method == "qlora" else {}
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.bfloat16, device_map={"": device}, **stored
    )
    config = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    return get_peft_model(model, config).train()


def _unsloth(folder: str, method: str, device: str) -> Any:
    from unsloth import FastLanguageModel

    model, _ = FastLanguageModel.from_pretrained(folder, load_in_4bit=True, dtype=torch.bfloat16)
    linears = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    made = FastLanguageModel.get_peft_model(model, r=16, lora_alpha=32, target_modules=linears)
    return made.train()


def _our_step(model: Any, ids: Any, optimizer: Any, trained: list[Any]) -> float:
    from graftlm.config import TrainConfig
    from graftlm.data.batch import Example
    from graftlm.training.batching import micro_batches
    from graftlm.training.next_token import NextToken
    from graftlm.training.step import train_step

    rows = [Example(row, [True] * len(row)) for row in ids.tolist()]
    objective = NextToken(TrainConfig())
    return train_step(model, micro_batches(model, rows), optimizer, trained, 1.0, objective).loss


def _their_step(model: Any, ids: Any, optimizer: Any, trained: list[Any]) -> float:
    ids = ids.to(next(model.parameters()).device)
    optimizer.zero_grad(set_to_none=True)
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(trained, 1.0)
    optimizer.step()
    return float(loss)


def planned(folder: Path, side: str, options: argparse.Namespace) -> float:
    """The peak that a plan predicts, in GB."""
    from graftlm.config import ModelConfig, RunConfig, TrainConfig
    from graftlm.planning import make_plan

    method = side.partition("-")[2].replace("compiled", "qlora")
    train = TrainConfig(batch_size=options.batch, micro_batch_tokens=0)
    config = RunConfig(model=ModelConfig(name=str(folder)), train=train)
    config = config.model_copy(
        update={"data": config.data.model_copy(update={"max_length": options.length})}
    )
    kind = options.device.partition(":")[0]
    plan = make_plan(config, device=kind, memory="1000GB", methods=[method])  # type: ignore[list-item]
    return plan.options[0].predicted_peak_bytes / 1e9


# ------------------------------------------------------------------------------------ report


def table(rows: list[dict[str, Any]], title: str, out: Path) -> None:
    """Print the rows as Markdown and write them as CSV."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    with (out / f"{title}.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)
    print(f"\n### {title}\n\n| {' | '.join(names)} |\n|{'---|' * len(names)}")
    for row in rows:
        cells = (row.get(name, "") for name in names)
        print(f"| {' | '.join(f'{c:.4g}' if isinstance(c, float) else str(c) for c in cells)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--models", default="270m,1b,8b,30b-a3b-8-layers")
    parser.add_argument("--sides", default=",".join(SIDES))
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--out", type=Path, default=Path("bench-gpu"))
    parser.add_argument("--quick", action="store_true", help="a tiny model, once")
    parser.add_argument("--run", help="one run, as JSON")
    options = parser.parse_args()
    if options.run:
        print(json.dumps(one_run(json.loads(options.run))))
        return
    if options.quick:
        options.models, options.repeats, options.steps = "tiny", 1, 4
        options.batch, options.length = 2, 64
    from graftlm.system import versions
    from graftlm.system.placement import placement_for

    placement = placement_for(options.device)  # fails loudly where there is no such device
    options.out.mkdir(parents=True, exist_ok=True)
    print(f"# {placement.name}\n\n{json.dumps(versions())}")
    table(kernels(str(placement.first)), "operators", options.out)
    table(list(layer(str(placement.first))), "layer", options.out)
    runs, plans = [], []
    for name in options.models.split(","):
        folder = random_model(name, options.out)
        measured: dict[str, list[float]] = {}
        for repeat in range(options.repeats):
            for side in options.sides.split(","):
                maker = side.partition("-")[0]
                if importlib.util.find_spec(maker) is None:
                    print(f"{side} is left out: {maker} is not installed", file=sys.stderr)
                    continue
                row = {"model": name, "side": side, "repeat": repeat}
                row |= _in_a_process(folder, side, repeat, options)
                runs.append(row)
                if "peak_gb" in row:
                    measured.setdefault(side, []).append(row["peak_gb"])
        for side, peaks in measured.items():
            if side.startswith("graftlm") and not placement.runs_on_cpu:
                said, real = planned(folder, side, options), max(peaks)
                row = {"model": name, "side": side, "planned_gb": said, "measured_gb": real}
                plans.append(row | {"error": said / real - 1})
    table(runs, "training", options.out)
    if plans:
        table(plans, "plan", options.out)


def _in_a_process(
    folder: Path, side: str, repeat: int, options: argparse.Namespace
) -> dict[str, Any]:
    asked = {
        "model": str(folder),
        "side": side,
        "seed": repeat,
        "device": options.device,
        "steps": options.steps,
        "batch": options.batch,
        "length": options.length,
    }
    done = subprocess.run(
        [sys.executable, __file__, "--run", json.dumps(asked)], capture_output=True, text=True
    )
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["failed"]
        return {"failed": said[-1][:200]}
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


if __name__ == "__main__":
    main()
