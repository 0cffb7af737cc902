"""What one architecture is asked: each stage ends equal, refused in a sentence, or as a fault."""

from __future__ import annotations

import copy
import gc
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

import graftlm
from benchmarks.sweep_model import (
    DifferentError,
    NotTinyError,
    OneModel,
    close,
    experts,
    linears,
    short,
)
from benchmarks.sweep_training import (
    stage_checkpointing,
    stage_plan,
    stage_qlora,
    stage_save,
    stage_train,
)
from graftlm.adapters.adapted import lora_modules
from graftlm.adapters.layers import stores_transposed
from graftlm.data.batch import collate
from graftlm.data.example import Example
from graftlm.errors import GraftLMError
from graftlm.frozen.experts import FrozenExperts
from graftlm.frozen.linear import FrozenLinear
from graftlm.frozen.modules import stored_weights
from graftlm.models.capabilities import capabilities, require_packable
from graftlm.models.quantize import quantize_folder

__all__ = ["QUICK", "STAGES", "NotTinyError", "sweep"]

INT8 = 0.1
"""Mean difference of logits, in their spread, where embeddings are held in 8 bits."""


def stage_load(one: OneModel) -> str:
    """Logits as transformers'."""
    return close(one.logits(one.load()), one.expected)


def stage_nf4(one: OneModel) -> str:
    """Logits as transformers' with the dequantised weights; the share that is in 4 bits."""
    model = one.load("nf4")
    dense, stored = copy.deepcopy(one.oracle), 0
    for name, module in model.named_modules():
        if isinstance(module, FrozenLinear):
            layer = dense.get_submodule(name)
            values = module.frozen.dequantize(torch.float32)
            layer.weight.data = values.t().contiguous() if stores_transposed(layer) else values
            stored += values.numel()
        elif isinstance(module, FrozenExperts):
            dense.get_parameter(name).data = module.dequantize(torch.float32)
    every = sum(module.weight.numel() for module in linears(one.oracle).values())
    said = f"{stored / max(every, 1):.0%} of linear parameters"
    if fused := sum(weight.numel() for weight in experts(one.oracle).values()):
        others = sum(_size(weight) for weight in stored_weights(model)) - stored
        said += f", {others / fused:.0%} of the experts'"
    return f"{said}; {close(one.logits(model), one.logits(dense))}"


def _size(weight: Any) -> int:
    size = 1
    for side in weight.shape:
        size *= side
    return size


def stage_int8(one: OneModel) -> str:
    """Logits near transformers' with the table and the head in 8 bits."""
    logits = one.logits(one.load(embeddings="int8"))
    error = float((logits - one.expected).abs().mean() / one.expected.std())
    if not error < INT8:
        raise DifferentError(f"{error:.2g} of the logits' spread on average")
    return f"{error:.1g}"


def stage_adapt(one: OneModel) -> str:
    """Every adapter has a gradient; the share of linear weights that are adapted."""
    model = one.adapted()
    alive = {key for key, gradient in one.gradients(model).items() if gradient.abs().max() > 0}
    modules = lora_modules(model)
    dead = [
        name
        for name, module in modules.items()
        if not any(f"{name}.{key}" in alive for key in module.peft_state())
    ]
    if dead:
        raise DifferentError(f"{len(dead)} of {len(modules)} adapters never train, {dead[0]} first")
    every = {name: module.weight.numel() for name, module in linears(one.oracle).items()}
    reached = sum(every.get(name, 0) for name in modules)
    said = f"{reached / max(sum(every.values()), 1):.0%} of linear parameters"
    if fused := {name: weight.numel() for name, weight in experts(one.oracle).items()}:
        places = {name.rpartition(".")[0] for name in modules} | set(modules)
        share = sum(
            size
            for name, size in fused.items()
            if name in places or name.rpartition(".")[0] in places
        )
        said += f", {share / sum(fused.values()):.0%} of the experts'"
    return said


def stage_loss(one: OneModel) -> str:
    """The loss is that of transformers' logits."""
    batch = one.batch()
    with torch.no_grad():
        ours = one.loss(one.load())
        logits = one.oracle(input_ids=batch.input_ids, use_cache=False).logits[:, :-1].float()
        targets = batch.labels[:, 1:]
        theirs = F.cross_entropy(logits.transpose(1, 2), targets, ignore_index=-100)
    return close(ours, theirs, spread=float(theirs))


def stage_packing(one: OneModel) -> str:
    """Packed rows give the logits of each alone."""
    model = one.load()
    require_packable(model)
    assert capabilities(model).keeps_sequences_apart
    parts = [collate([row], 0) for row in one.rows()]
    ids = torch.cat([part.input_ids[0][:12] for part in parts])
    supervised = [False, *[True] * (len(ids) - 1)]
    packed = Example(ids.numpy().astype("int32"), supervised, lengths=(12,) * 4)
    batch = collate([packed], 0)
    with torch.no_grad():
        together = model(
            input_ids=batch.input_ids[:, :48],
            position_ids=batch.position_ids[:, :48],
            use_cache=False,
        ).logits
        alone = one.oracle(input_ids=ids.view(4, 12), use_cache=False).logits
    return close(together.float().view(4, 12, -1), alone.float())


def stage_peft(one: OneModel) -> str:
    """An adapter saved here: logits and gradients in PEFT."""
    import peft

    folder = one.saved_adapter()
    theirs = peft.PeftModel.from_pretrained(copy.deepcopy(one.oracle), folder, is_trainable=True)
    said = close(one.kept["adapter logits"], one.logits(theirs))
    batch = one.batch()
    logits = theirs(input_ids=batch.input_ids, use_cache=False).logits[:, :-1].float()
    F.cross_entropy(logits.transpose(1, 2), batch.labels[:, 1:], ignore_index=-100).backward()
    by_key = {
        name.removeprefix("base_model.model.").replace(".default", ""): parameter.grad
        for name, parameter in theirs.named_parameters()
        if parameter.grad is not None
    }
    compared = [(g, by_key[key]) for key, g in one.kept["gradients"].items() if key in by_key]
    if not compared:
        return f"{said}, gradients under other names"
    spread = max(float(gradient.abs().max()) for _, gradient in compared)
    every = [close(mine, other, spread=spread) for mine, other in compared]
    return f"{said}, {len(every)} gradients {max(every, key=float)}"


def stage_merge(one: OneModel) -> str:
    """The merged folder in transformers, as the adapter on its base."""
    graftlm.merge_to_folder(one.saved_adapter(), one.work / "merged")
    merged = one.logits(one.by_transformers(one.work / "merged"))
    return close(merged, one.kept["adapter logits"])


def stage_quantized(one: OneModel) -> str:
    """A folder in NF4, written here, is read alike here and by transformers + bitsandbytes."""
    quantize_folder(one.folder, one.work / "quantized")
    model = one.load(folder=one.work / "quantized")
    ours = one.logits(model)
    if experts(one.oracle):
        said = close(ours, one.logits(one.load("nf4")))
        return f"as QLoRA holds it, {said}; transformers reads no experts in 4 bits"
    try:
        other = one.by_transformers(one.work / "quantized")
        misread = _replace_misread(other, model)
        theirs = one.logits(other)
    except Exception:
        if failure := _fails_in_bitsandbytes(one):
            return f"read here; bitsandbytes itself does not run this architecture: {failure}"
        raise
    said = close(ours, theirs, rounding=1e-2)
    return f"{said}; said that bitsandbytes misreads {misread} layers" if misread else said


def _replace_misread(theirs: Any, ours: Any) -> int:
    """Put dense weights where a row is no multiple of a block, which `quantize_folder` warns of.

    bitsandbytes on a CPU with AVX-512 reads such layers wrongly.
    """
    odd = {
        name: module
        for name, module in ours.named_modules()
        if isinstance(module, FrozenLinear) and module.in_features % 64
    }
    for name, module in odd.items():
        layer = torch.nn.Linear(module.in_features, module.out_features, module.bias is not None)
        layer.weight.data = module.frozen.dequantize(torch.float32)
        if module.bias is not None:
            layer.bias.data = module.bias.data.float()
        theirs.set_submodule(name, layer)
    return len(odd)


def _fails_in_bitsandbytes(one: OneModel) -> str:
    """The error of transformers and bitsandbytes on a folder of their own; empty if none."""
    import transformers

    settings = transformers.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True
    )
    try:
        model = transformers.AutoModelForCausalLM.from_pretrained(
            one.folder, dtype=torch.float32, quantization_config=settings
        )
        model.save_pretrained(one.work / "theirs")
        one.logits(one.by_transformers(one.work / "theirs"))
    except Exception as error:
        return f"{type(error).__name__}: {short(error, 120)}"
    return ""


STAGES: dict[str, Callable[[OneModel], str]] = {
    "load": stage_load,
    "nf4": stage_nf4,
    "int8": stage_int8,
    "adapt": stage_adapt,
    "loss": stage_loss,
    "train": stage_train,
    "qlora": stage_qlora,
    "checkpointing": stage_checkpointing,
    "packing": stage_packing,
    "save": stage_save,
    "peft": stage_peft,
    "merge": stage_merge,
    "quantized": stage_quantized,
    "plan": stage_plan,
}
QUICK = ("load", "nf4", "adapt", "loss", "packing", "peft", "merge")


def sweep(
    model_type: str, folder: Path, tokenizer: Any, stages: tuple[str, ...] = tuple(STAGES)
) -> Iterator[tuple[str, str]]:
    """``(stage, outcome)`` of each stage, one after the other.

    A model that `load` refuses is asked no further. Raises `NotTinyError`.
    """
    one = OneModel(model_type, folder, tokenizer)
    for stage in stages:
        outcome = _outcome(STAGES[stage], one)
        yield stage, outcome
        if stage == "load" and outcome.startswith("refused"):
            return
        gc.collect()


def _outcome(stage: Callable[[OneModel], str], one: OneModel) -> str:
    try:
        return f"equal ({stage(one)})"
    except GraftLMError as error:
        return f"refused: {short(error)}"
    except DifferentError as error:
        return f"DIFFERENT: {error}"
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(frame.filename).name}:{frame.lineno}"
        return f"TRACEBACK {type(error).__name__} at {where}: {short(error)}"
