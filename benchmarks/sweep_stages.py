"""What one architecture is asked: each stage ends equal, refused in a sentence, or as a fault.

Nothing here is compared with graftlm itself: the oracles are transformers' own model of the same
folder, torch's cross-entropy, and PEFT. Everything is computed in float32.
"""

from __future__ import annotations

import copy
import gc
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import graftlm
from graftlm.adapters.adapted import lora_modules, lora_parameters, output_head
from graftlm.adapters.layers import linear_shape, stores_transposed
from graftlm.config import LoRAConfig, ModelConfig, RunConfig, TrainConfig
from graftlm.data.batch import collate
from graftlm.data.example import Example
from graftlm.errors import GraftLMError
from graftlm.models.capabilities import capabilities, require_packable
from graftlm.planning.plan import make_plan
from graftlm.training.next_token import next_token_loss
from tests.oracles.tiny_architectures import tiny_model

__all__ = ["QUICK", "STAGES", "NotTinyError", "sweep"]

ROUNDING = 2e-3
"""Logits and losses may differ by this share of their spread; a forgotten part moves them more."""
INT8 = 0.1
"""The same where embeddings are held in 8 bits, for the mean difference."""


class NotTinyError(Exception):
    """The architecture cannot be built tiny, or transformers itself does not run it."""


class DifferentError(Exception):
    """A result that is not the oracle's."""


class Sweep:
    """One architecture in one folder; what a stage made, later ones use."""

    def __init__(self, model_type: str, folder: Path, tokenizer: Any) -> None:
        self.folder, self.work = folder / "model", folder
        generator = torch.Generator().manual_seed(1)
        self.ids = torch.randint(1, 250, (2, 24), generator=generator)
        try:
            model = tiny_model(model_type)
            model.save_pretrained(self.folder)
            tokenizer.save_pretrained(self.folder)
            self.oracle = self.from_transformers(self.folder)
            self.expected = self.logits(self.oracle)
            if not self.expected.isfinite().all():
                raise ValueError("its logits are not finite")
        except Exception as error:
            raise NotTinyError(_short(error)) from error

    def from_transformers(self, folder: Path) -> Any:
        from transformers import AutoModelForCausalLM

        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    def logits(self, model: Any) -> Tensor:
        with torch.no_grad():
            result: Tensor = model(input_ids=self.ids, use_cache=False).logits
        return result.float()

    def load(self, quantize: str | None = None, **other: Any) -> Any:
        model, self.tokenizer = graftlm.load_model(self.folder, quantize=quantize, **other)
        return model

    def adapted(self, quantize: str | None = None, strength: float = 0.05) -> Any:
        """The model with adapters whose update is not zero."""
        model = self.load(quantize)
        torch.manual_seed(0)
        self.report = graftlm.add_lora(model, LoRAConfig())
        with torch.no_grad():
            for _, parameter in lora_parameters(model):
                parameter.normal_(std=strength)
        return model

    def rows(self) -> list[Example]:
        supervised = [False, *[True] * 11]
        return [Example(self.ids[i % 2, i : i + 12].tolist(), supervised) for i in range(4)]

    # Stages: each returns what to say beside "equal", or raises.

    def stage_load(self) -> str:
        return _close(self.logits(self.load()), self.expected)

    def stage_nf4(self) -> str:
        model = self.load("nf4")
        dense, stored, every = copy.deepcopy(self.oracle), 0, 0
        for name, module in model.named_modules():
            frozen = getattr(module, "frozen", None)
            if frozen is not None and linear_shape(module) is not None:
                layer = dense.get_submodule(name)
                values = frozen.dequantize(torch.float32)
                layer.weight.data = values.t().contiguous() if stores_transposed(layer) else values
                stored += values.numel()
        for module in _linears(self.oracle):
            every += module.weight.numel()
        share = f"{stored / max(every, 1):.0%} of linear parameters"
        return f"{share}; {_close(self.logits(model), self.logits(dense))}"

    def stage_int8(self) -> str:
        logits = self.logits(self.load(embeddings="int8"))
        error = float((logits - self.expected).abs().mean() / self.expected.std())
        if not error < INT8:
            raise DifferentError(f"{error:.2g} of the logits' spread on average")
        return f"{error:.1g}"

    def stage_adapt(self) -> str:
        """Every adapter trains: it has a gradient, and it changes the logits."""
        model = self.adapted()
        model.train()
        self.loss(model).backward()
        dead = [
            name
            for name, adapter in lora_modules(model).items()
            if not any(
                p.grad is not None and float(p.grad.abs().max()) > 0
                for p in adapter.adapter_parameters().values()
            )
        ]
        every = sum(module.weight.numel() for module in _linears(self.oracle))
        shapes = [linear_shape(m.base) for m in lora_modules(model).values()]
        share = f"{sum(s[0] * s[1] for s in shapes if s) / max(every, 1):.0%} of linear parameters"
        if dead:
            raise DifferentError(
                f"{len(dead)} of {len(shapes)} adapters never train, {dead[0]} first"
            )
        return share

    def loss(self, model: Any) -> Tensor:
        batch = collate(self.rows(), 0)
        total, count = next_token_loss(model, batch)
        return total / count

    def stage_loss(self) -> str:
        """The loss is that of transformers' logits."""
        with torch.no_grad():
            ours = self.loss(self.load())
            batch = collate(self.rows(), 0)
            logits = self.oracle(input_ids=batch.input_ids, use_cache=False).logits[:, :-1].float()
            targets = batch.labels[:, 1:]
            theirs = F.cross_entropy(logits.transpose(1, 2), targets, ignore_index=-100)
        return _close(ours, theirs, spread=float(theirs))

    def stage_train(self, checkpointing: bool = False) -> list[float]:
        for method in ("lora",) if checkpointing else ("lora", "nf4"):
            model = self.load("nf4" if method == "nf4" else None)
            torch.manual_seed(0)
            graftlm.add_lora(model, LoRAConfig())
            before = float(self.loss(model))
            graftlm.train(
                model,
                self.tokenizer,
                self.rows(),
                TrainConfig(
                    steps=6,
                    batch_size=4,
                    learning_rate=1e-2,
                    gradient_checkpointing=checkpointing,
                ),
                out=self.work / f"run-{method}-{checkpointing}",
                progress=False,
            )
            model.eval()
            after = float(self.loss(model))
            if not after < before:
                raise DifferentError(f"the loss went from {before:.3f} to {after:.3f} ({method})")
            if method == "lora":
                self.__dict__["trained", checkpointing] = losses = [before, after]
        return losses

    def stage_checkpointing(self) -> str:
        """Training that recomputes activations ends where training that keeps them ends."""
        plain = self.__dict__.get(("trained", False)) or self.stage_train()
        again = self.stage_train(checkpointing=True)
        return _close(torch.tensor(again), torch.tensor(plain), spread=plain[0])

    def stage_packing(self) -> str:
        model = self.load()
        require_packable(model)
        assert capabilities(model).keeps_sequences_apart
        parts = [collate([row], 0) for row in self.rows()]
        ids = torch.cat([part.input_ids[0][:12] for part in parts])
        packed = Example(
            ids.numpy().astype("int32"), [False, *[True] * (len(ids) - 1)], lengths=(12,) * 4
        )
        batch = collate([packed], 0)
        with torch.no_grad():
            together = model(
                input_ids=batch.input_ids[:, :48],
                position_ids=batch.position_ids[:, :48],
                use_cache=False,
            ).logits
            alone = self.oracle(input_ids=ids.view(4, 12), use_cache=False).logits
        return _close(together.float().view(4, 12, -1), alone.float())

    def stage_peft(self) -> str:
        import peft

        model = self.adapted()
        graftlm.save_adapter(model, self.work / "adapter", base_name=str(self.folder))
        self.adapter_logits = self.logits(model)
        theirs = peft.PeftModel.from_pretrained(copy.deepcopy(self.oracle), self.work / "adapter")
        return _close(self.adapter_logits, self.logits(theirs.eval()))

    def stage_merge(self) -> str:
        if not (self.work / "adapter").exists():
            model = self.adapted()
            graftlm.save_adapter(model, self.work / "adapter", base_name=str(self.folder))
            self.adapter_logits = self.logits(model)
        graftlm.merge_to_folder(self.work / "adapter", self.work / "merged")
        merged = self.logits(self.from_transformers(self.work / "merged"))
        return _close(merged, self.adapter_logits)

    def stage_plan(self) -> str:
        config = RunConfig(model=ModelConfig(name=str(self.folder)))
        config = config.model_copy(
            update={
                "data": config.data.model_copy(update={"max_length": 32}),
                "train": config.train.model_copy(update={"batch_size": 2}),
            }
        )
        plan = make_plan(config, memory="4GB", methods=("qlora",))
        return f"{plan.recommendation.option.predicted_peak_bytes / 1e6:.0f} MB"


STAGES = (
    *("load", "nf4", "int8", "adapt", "loss", "train", "checkpointing"),
    *("packing", "peft", "merge", "plan"),
)
QUICK = ("load", "nf4", "int8", "adapt", "loss", "packing", "peft", "merge")


def sweep(
    model_type: str, folder: Path, tokenizer: Any, stages: tuple[str, ...] = STAGES
) -> Iterator[tuple[str, str]]:
    """``(stage, outcome)`` of each stage, one after the other.

    A model that `load` refuses is asked no further. Raises `NotTinyError`.
    """
    one = Sweep(model_type, folder, tokenizer)
    for stage in stages:
        outcome = _outcome(getattr(one, f"stage_{stage}"))
        yield stage, outcome
        if stage == "load" and outcome.startswith("refused"):
            return
        gc.collect()


def _outcome(stage: Callable[[], Any]) -> str:
    try:
        said = stage()
    except GraftLMError as error:
        return f"refused: {_short(error)}"
    except DifferentError as error:
        return f"DIFFERENT: {error}"
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(frame.filename).name}:{frame.lineno}"
        return f"TRACEBACK {type(error).__name__} at {where}: {_short(error)}"
    return f"equal ({said})" if isinstance(said, str) else "equal"


def _close(ours: Tensor, theirs: Tensor, spread: float | None = None) -> str:
    difference = float((ours - theirs).abs().max())
    relative = difference / (spread or float(theirs.std()) + 1e-9)
    if not relative <= ROUNDING:
        raise DifferentError(f"{relative:.2g} of the spread")
    return f"{relative:.0e}"


def _linears(model: nn.Module) -> list[Any]:
    head = output_head(model)
    return [m for m in model.modules() if m is not head and linear_shape(m) is not None]


def _short(error: BaseException) -> str:
    return f"{' '.join(str(error).split())[:220]}" or type(error).__name__
