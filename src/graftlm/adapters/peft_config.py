"""PEFT's adapter_config.json: writes it for all versions of PEFT, and reads all of its entries."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import pydantic
from torch import nn

from graftlm._compat.peft_experts import taken_for_experts
from graftlm.adapters.adapted import adaptable_modules, base_modules, lora_modules
from graftlm.adapters.adapter import variants
from graftlm.adapters.layer_index import in_layers
from graftlm.adapters.layers import stores_transposed
from graftlm.adapters.lora_router import is_router
from graftlm.adapters.names import fault, matching
from graftlm.adapters.peft_trained import trained_entries, whole_in_peft
from graftlm.adapters.quick_patterns import endless
from graftlm.adapters.settings import lora_config
from graftlm.adapters.targets import ALL_LINEAR, adaptable, all_linear
from graftlm.adapters.trained_parts import in_whole_modules
from graftlm.adapters.variant_of_file import marks, variant_of
from graftlm.config import shown
from graftlm.errors import ArtifactError
from graftlm.frozen.experts import ExpertStack
from graftlm.models.source import without_revision

__all__ = ["CONFIG_NAME", "AdapterConfig", "adapter_config", "read_config"]

CONFIG_NAME = "adapter_config.json"

# Keys that do not influence the output of an adapter.
HARMLESS = {
    "auto_mapping",
    "corda_config",
    "eva_config",
    "fan_in_fan_out",
    "inference_mode",
    "loftq_config",
    "lora_ga_config",
    "megatron_core",
    "qalora_group_size",
    "runtime_config",
    "task_type",
}
JUDGED = {"init_lora_weights", "peft_type"}
ValueT = TypeVar("ValueT")
LARGEST_ALPHA = 1e6
"""A larger one is a fault of the file: it multiplies the weights out of their type."""
Alpha = Annotated[float, pydantic.Field(allow_inf_nan=False, ge=-LARGEST_ALPHA, le=LARGEST_ALPHA)]

Index = Annotated[int, pydantic.Field(ge=0)]


class AdapterConfig(pydantic.BaseModel):
    """The meaning of an adapter's tensors; the fields are PEFT's."""

    model_config = pydantic.ConfigDict(frozen=True, strict=True)

    target_modules: str | list[str] | None = None
    target_parameters: list[str] = []
    r: int = pydantic.Field(8, ge=1)
    lora_alpha: Alpha = 8
    lora_dropout: float = pydantic.Field(0.0, ge=0, lt=1)
    use_rslora: bool = False
    rank_pattern: dict[str, Annotated[int, pydantic.Field(ge=1)]] = {}
    alpha_pattern: dict[str, Alpha] = {}
    exclude_modules: str | list[str] = []
    layers_to_transform: int | list[int] | None = None
    layers_pattern: str | list[str] = []
    modules_to_save: list[str] = []
    ensure_weight_tying: bool = False
    trainable_token_indices: list[Index] | dict[str, list[Index]] = []
    bias: Literal["none", "all", "lora_only"] = "none"
    lora_bias: bool = False
    base_model_name_or_path: str | None = None
    peft_version: str | None = None
    revision: str | None = None
    _variant: str = pydantic.PrivateAttr("lora")

    @property
    def variant(self) -> str:
        """The registered variant of adapters that the entries of the file identify."""
        return self._variant

    def targeted(self, model: nn.Module) -> list[str] | None:
        """Names of the modules that these settings adapt; ``None`` if they do not say."""
        if self.target_modules is None and not self.target_parameters:
            return None
        every = adaptable_modules(model)
        experts = set(self.targeted_experts(model))
        modules = {name: m for name, m in every.items() if not isinstance(m, ExpertStack)}
        by_weight = [entry.removesuffix(".weight") for entry in self.target_parameters]
        if self.target_modules is None:
            names = []
        elif str(self.target_modules).lower() == ALL_LINEAR:
            names = all_linear(model)
        else:
            names = matching(modules, self.target_modules)
        names = list(dict.fromkeys([*names, *matching(modules, by_weight)]))
        excluded = set(matching(names, self.exclude_modules)) if self.exclude_modules else set()
        excluded |= in_whole_modules(names, whole_in_peft(modules, self.modules_to_save))
        wanted = {
            name
            for name in names
            if name not in excluded
            and adaptable(modules[name], self.variant)
            and self._layer_wanted(name)
        }
        return [name for name in every if name in wanted or name in experts]

    def targeted_experts(self, model: nn.Module) -> dict[str, ExpertStack]:
        """The fused experts that these settings adapt, by the names of their parameters.

        As in PEFT, `exclude_modules` and `layers_to_transform` do not count for them.
        """
        stacks = {n: m for n, m in adaptable_modules(model).items() if isinstance(m, ExpertStack)}
        return {name: stacks[name] for name in matching(stacks, self.target_parameters)}

    def _layer_wanted(self, name: str) -> bool:
        """As in PEFT: an empty list means all layers, and a full name matches in any layer."""
        if self.layers_to_transform in (None, []) or isinstance(self.target_modules, str):
            return True
        if name in (self.target_modules or ()):
            return True
        layers = _listed(self.layers_to_transform)
        return in_layers(name, [i for i in layers if i is not None], _listed(self.layers_pattern))


def adapter_config(model: nn.Module, base_name: str, adapter: str | None = None) -> dict[str, Any]:
    """The settings of one adapter of ``model``, in keys that old versions of PEFT know."""
    settings = lora_config(model, adapter, as_saved=True)
    targets = settings.targets
    bases = base_modules(model)
    adapted = list(lora_modules(model, adapter))
    routers = [name for name in adapted if is_router(bases[name])]
    base_name, revision = without_revision(base_name)
    named = {*routers, *(name for name in adapted if isinstance(bases[name], ExpertStack))}
    layers = [name for name in adapted if name not in named]
    by_weight = taken_for_experts(getattr(model, "config", None), layers)
    config: dict[str, Any] = {
        "alpha_pattern": {key: _number(a) for key, a in settings.alpha_pattern.items()},
        "base_model_name_or_path": base_name,
        "fan_in_fan_out": any(stores_transposed(bases[name]) for name in layers),
        "inference_mode": True,
        "lora_alpha": _number(settings.alpha),
        "lora_dropout": settings.dropout,
        "r": settings.rank,
        "rank_pattern": settings.rank_pattern,
        "target_modules": targets if isinstance(targets, str) else sorted(targets),
        "task_type": "CAUSAL_LM" if hasattr(model, "prepare_inputs_for_generation") else None,
    }
    if settings.use_rslora:
        config["use_rslora"] = True
    if revision is not None:
        config["revision"] = revision
    if by_weight:
        config |= _named_by_weight(config, by_weight, layers)
    if routers and not by_weight:
        config |= _patterns_by_weight(config)
    if named:  # PEFT has no dropout for them
        parameters = [*config.get("target_parameters", []), *settings.target_parameters]
        config |= {"target_parameters": parameters, "lora_dropout": 0.0}
    return config | trained_entries(model, settings) | marks(settings.variant)


def _named_by_weight(
    config: dict[str, Any], by_weight: list[str], adapted: list[str]
) -> dict[str, Any]:
    """The entries that make PEFT adapt ``by_weight``; see `_compat/peft_experts.py`.

    PEFT matches patterns against the name of the weight there, and has no dropout for it.
    """
    others = [name for name in adapted if name not in set(by_weight)]
    return {
        "lora_dropout": 0.0,
        "target_modules": sorted(others),
        "target_parameters": [f"{name}.weight" for name in by_weight],
    } | _patterns_by_weight(config)


def _patterns_by_weight(config: dict[str, Any]) -> dict[str, Any]:
    """The patterns, in the form that matches the name of a weight too."""
    return {
        patterns: {rf"{key}(\.weight)?": value for key, value in config[patterns].items()}
        for patterns in ("rank_pattern", "alpha_pattern")
    }


def read_config(folder: Path) -> AdapterConfig:
    """Read and check adapter_config.json.

    Raises:
        ArtifactError: it is missing or malformed, or no registered variant supports it.
    """
    path = folder / CONFIG_NAME
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ArtifactError(
            f"cannot read {path}: {error.strerror}. Expected a PEFT adapter folder or a run folder."
        ) from error
    except ValueError as error:
        raise ArtifactError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(raw, dict):
        raise ArtifactError(f"{path}: expected a JSON object, found {type(raw).__name__}")
    given = {key: value for key, value in raw.items() if value is not None}
    variant = variant_of(given, folder)
    problems = list(_unsupported(given, variant))
    try:
        config = AdapterConfig.model_validate(given)
        config._variant = variant or "lora"
        problems += _faults(config)
    except pydantic.ValidationError as error:
        problems += [f"{e['loc'][0]}={e['input']!r}: {e['msg']}" for e in error.errors()]
    if problems:
        raise ArtifactError(f"{path}: " + "; ".join(problems))
    return config


def _unsupported(given: dict[str, Any], variant: str | None) -> Iterable[str]:
    own = marks(variant) if variant else {}
    if variant is None:
        types = sorted({str(marks(v).get("peft_type")) for v in variants()})
        yield f"peft_type is {given.get('peft_type')!r}; graftlm reads {', '.join(types)}"
    start = given.get("init_lora_weights", True)
    if start not in (True, False, "gaussian", "eva", "orthogonal"):
        yield (
            f"init_lora_weights={start!r} changes the base model too; convert the adapter with "
            "PEFT's save_pretrained(..., path_initial_model_for_weight_conversion=...)"
        )
    known = HARMLESS | JUDGED | AdapterConfig.model_fields.keys() | own.keys()
    for key in sorted(given.keys() - known):
        if given[key]:
            yield f"{key}={given[key]!r} is not supported; graftlm reads plain LoRA"


_USUAL_NAMES = (
    "model.language_model.layers.10.block_sparse_moe.experts.127.self_attn.q_proj",
    f"{'a' * 60}.{'0' * 30}!",
)
"""Names like those that the expressions are matched with."""


def _faults(config: AdapterConfig) -> Iterable[str]:
    """The errors in the regular expressions."""
    named = [config.target_modules, config.exclude_modules]
    expressions = [
        *(value for value in named if isinstance(value, str)),
        *config.rank_pattern,
        *config.alpha_pattern,
        *(value for value in _listed(config.layers_pattern) if isinstance(value, str)),
    ]
    wrong = [
        f"{one!r} is not a valid regular expression: {why}"
        for one in expressions
        if (why := fault(one))
    ]
    if not wrong and (slow := endless(expressions, _USUAL_NAMES)) is not None:
        wrong = [f"{shown(slow)!r} takes for ever to match: nest no repetitions"]
    yield from wrong


def _listed(value: ValueT | list[ValueT]) -> list[ValueT]:
    return value if isinstance(value, list) else [value]


def _number(value: float) -> int | float:
    """The value as an integer if it is whole, as PEFT's alpha is."""
    return int(value) if value == int(value) else value
