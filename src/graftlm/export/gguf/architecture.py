"""How a family of models is written as GGUF: its name there, its settings, its tensors.

llama.cpp computes some layers in another form than transformers. The weights are changed to match:

    Llama, Mistral   rotary pairs (i, i + d/2) become (2i, 2i + 1): the rows of W_q, W_k move
    Gemma            the norm is x · (1 + w): 1 is added to w

Source: the loaders of llama.cpp and its converter (github.com/ggml-org/llama.cpp), read in 2026.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from torch import Tensor

__all__ = ["ARCHITECTURES", "Architecture", "file_settings", "permuted", "problems_of"]


@dataclasses.dataclass(frozen=True)
class Architecture:
    """One family.

    Attributes:
        name: its name in GGUF.
        pairs: whether rotary pairs are neighbours, so that W_q and W_k are permuted.
        norm_offset: what is added to the weights of norms.
        window_period: every so many layers, one attends to all positions; 0: all layers do.
    """

    name: str
    pairs: bool = False
    norm_offset: float = 0.0
    window_period: int = 0


ARCHITECTURES = {
    "llama": Architecture("llama", pairs=True),
    "mistral": Architecture("llama", pairs=True),
    "qwen2": Architecture("qwen2"),
    "qwen3": Architecture("qwen3"),
    "phi3": Architecture("phi3"),
    "gemma2": Architecture("gemma2", norm_offset=1.0, window_period=2),
    "gemma3_text": Architecture("gemma3", norm_offset=1.0, window_period=6),
}
"""By ``model_type`` of transformers."""

SCALINGS = ("default", "linear", "yarn", "llama3", "longrope")


def permuted(weight: Tensor, heads: int) -> Tensor:
    """The rows of ``weight`` [out, …] reordered so that rotary pairs become neighbours.

    Args:
        weight: W_q or W_k, or their bias; out = heads · d.
        heads: the number of heads that it computes.
    """
    halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return halves.transpose(1, 2).reshape(weight.shape).contiguous()


def problems_of(config: Any) -> list[str]:
    """The settings of a model that its form in GGUF cannot express."""
    kind = str(getattr(config, "model_type", None))
    if kind not in ARCHITECTURES:
        known = ", ".join(sorted(ARCHITECTURES))
        return [f"models of type {kind!r} are not written as GGUF: expected one of {known}"]
    scalings = {str(rope.get("rope_type", "default")) for rope in _ropes(config)}
    problems = [
        f"llama.cpp has no rotary scaling {scaling!r} for this architecture"
        for scaling in sorted(scalings - set(SCALINGS))
    ]
    architecture = ARCHITECTURES[kind]
    if period := architecture.window_period:
        layers = list(getattr(config, "layer_types", None) or [])
        expected = [
            "sliding_attention" if (i + 1) % period else "full_attention"
            for i in range(len(layers))
        ]
        if layers != expected:
            problems.append(
                f"llama.cpp expects full attention in every {period}th layer; layer_types differs"
            )
        if config.query_pre_attn_scalar != config.head_dim:
            problems.append(
                f"query_pre_attn_scalar is {config.query_pre_attn_scalar} and the head size "
                f"{config.head_dim}: llama.cpp scales by the head size"
            )
    if kind.startswith("qwen") and getattr(config, "use_sliding_window", False):
        problems.append("llama.cpp does not read the sliding window of this architecture")
    if kind in ("llama", "mistral") and getattr(config, "sliding_window", None):
        window = config.sliding_window
        if window < config.max_position_embeddings:
            problems.append(
                f"llama.cpp ignores the sliding window of {window} positions. Set "
                f"sliding_window to null in the base's config.json to export without it"
            )
    return problems


def file_settings(config: Any) -> tuple[dict[str, Any], dict[str, list[float]]]:
    """The hyperparameters as GGUF names them, without the architecture's prefix.

    Returns:
        The settings, and further tensors by name: the factors of rotary scaling.
    """
    kind = config.model_type
    heads = config.num_attention_heads
    head_size = getattr(config, "head_dim", None) or config.hidden_size // heads
    settings: dict[str, Any] = {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "vocab_size": config.vocab_size,
        "attention.head_count": heads,
        "attention.head_count_kv": config.num_key_value_heads or heads,
        "attention.key_length": head_size,
        "attention.value_length": head_size,
        "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
    }
    if kind in ("llama", "mistral", "phi3"):
        settings["rope.dimension_count"] = int(
            head_size * (_full_rope(config).get("partial_rotary_factor") or 1.0)
        )
    if kind == "phi3":
        settings["attention.sliding_window"] = config.sliding_window or 0
    if ARCHITECTURES[kind].window_period:
        settings["attention.sliding_window"] = config.sliding_window
    if kind == "gemma2":
        settings["attn_logit_softcapping"] = float(config.attn_logit_softcapping)
    if kind.startswith("gemma") and config.final_logit_softcapping is not None:
        settings["final_logit_softcapping"] = float(config.final_logit_softcapping)
    scaling, factors = _rope(config, head_size)
    return settings | scaling, factors


def _ropes(config: Any) -> list[dict[str, Any]]:
    parameters = getattr(config, "rope_parameters", None) or {}
    nested = [value for value in parameters.values() if isinstance(value, dict)]
    return nested or [parameters]


def _full_rope(config: Any) -> dict[str, Any]:
    """The rotary settings of layers that attend to all positions."""
    parameters = config.rope_parameters
    found: dict[str, Any] = parameters.get("full_attention", parameters)
    return found


def _rope(config: Any, head_size: int) -> tuple[dict[str, Any], dict[str, list[float]]]:
    rope = _full_rope(config)
    settings: dict[str, Any] = {"rope.freq_base": float(rope["rope_theta"])}
    kind = rope.get("rope_type", "default")
    original = rope.get("original_max_position_embeddings")
    if kind in ("linear", "yarn"):
        settings["rope.scaling.type"] = kind
        settings["rope.scaling.factor"] = float(rope["factor"])
        if original:
            settings["rope.scaling.original_context_length"] = original
    if kind == "llama3":
        return settings, {"rope_freqs": _llama3_factors(rope, head_size)}
    if kind == "longrope":
        first = original or config.original_max_position_embeddings
        scale = config.max_position_embeddings / first
        attention = rope.get("attention_factor") or (
            math.sqrt(1 + math.log(scale) / math.log(first)) if scale > 1 else 1.0
        )
        settings["rope.scaling.original_context_length"] = first
        settings["rope.scaling.attn_factor"] = float(attention)
        return settings, {
            "rope_factors_long": [float(x) for x in rope["long_factor"]],
            "rope_factors_short": [float(x) for x in rope["short_factor"]],
        }
    return settings, {}


def _llama3_factors(rope: dict[str, Any], head_size: int) -> list[float]:
    """What divides each rotary frequency: 1 for short wavelengths, ``factor`` for long ones."""
    low, high = float(rope["low_freq_factor"]), float(rope["high_freq_factor"])
    factor, length = float(rope["factor"]), float(rope["original_max_position_embeddings"])
    factors = []
    for i in range(0, head_size, 2):
        wavelength = 2 * math.pi * float(rope["rope_theta"]) ** (i / head_size)
        smooth = (length / wavelength - low) / (high - low)
        smooth = min(1.0, max(0.0, smooth))
        factors.append(1 / ((1 - smooth) / factor + smooth))
    return factors
