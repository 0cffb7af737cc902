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
        activation: the only activation of its feed-forward layers.
        square: whether heads · head size must be the hidden size.
        window_period: every so many layers, one attends to all positions; 0: all layers do.
    """

    name: str
    pairs: bool = False
    norm_offset: float = 0.0
    window_period: int = 0
    activation: str = "silu"
    square: bool = False


ARCHITECTURES = {
    "llama": Architecture("llama", pairs=True),
    "mistral": Architecture("llama", pairs=True),
    "qwen2": Architecture("qwen2", square=True),
    "qwen3": Architecture("qwen3"),
    "phi3": Architecture("phi3", square=True),
    "gemma2": Architecture("gemma2", False, 1.0, 2, "gelu_pytorch_tanh"),
    "gemma3_text": Architecture("gemma3", False, 1.0, 6, "gelu_pytorch_tanh"),
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
    problems += _of_layers(config, architecture)
    if architecture.window_period:
        problems += _of_gemma(config, architecture)
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


def _of_layers(config: Any, architecture: Architecture) -> list[str]:
    problems = []
    gemma = bool(architecture.window_period)
    activation = config.hidden_activation if gemma else config.hidden_act
    if activation != architecture.activation:
        problems.append(
            f"the model's activation is {activation}; llama.cpp computes {architecture.activation}"
        )
    heads = config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    if architecture.square and heads * size != config.hidden_size:
        problems.append(
            f"llama.cpp expects heads · head size = hidden size for this architecture; "
            f"{heads} · {size} is not {config.hidden_size}"
        )
    return problems


def _of_gemma(config: Any, architecture: Architecture) -> list[str]:
    problems, period = [], architecture.window_period
    layers = list(getattr(config, "layer_types", None) or [])
    expected = [
        "sliding_attention" if (i + 1) % period else "full_attention" for i in range(len(layers))
    ]
    if layers != expected:
        problems.append(
            f"llama.cpp expects full attention in every {period}th layer; layer_types differs"
        )
    # llama.cpp knows the two largest models by their number of layers and scales them otherwise.
    largest = config.num_hidden_layers == {2: 46, 6: 62}[period]
    scale = config.hidden_size // config.num_attention_heads if largest else config.head_dim
    if config.query_pre_attn_scalar != scale:
        problems.append(
            f"query_pre_attn_scalar is {config.query_pre_attn_scalar}; llama.cpp takes {scale}"
        )
    if config.attention_bias:
        problems.append("llama.cpp has no attention biases for Gemma")
    if getattr(config, "use_bidirectional_attention", False):
        problems.append("the model attends to later tokens (use_bidirectional_attention)")
    if bool(config.attn_logit_softcapping) != (period == 2):
        problems.append(
            "llama.cpp caps the attention logits of Gemma 2 and not those of Gemma 3; "
            f"attn_logit_softcapping is {config.attn_logit_softcapping}"
        )
    inner = (config.rope_parameters.get("sliding_attention") or {}).get("rope_type", "default")
    if inner != "default":
        problems.append(f"llama.cpp does not scale the positions of windowed layers ({inner})")
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
        settings["rope.dimension_count"] = _rotated(config, head_size)
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
    windowed = config.rope_parameters.get("sliding_attention")
    if windowed and config.model_type == "gemma3_text":
        settings["rope.freq_base_swa"] = float(windowed["rope_theta"])
    kind = rope.get("rope_type", "default")
    original = rope.get("original_max_position_embeddings")
    if kind in ("linear", "yarn"):
        settings["rope.scaling.type"] = kind
        settings["rope.scaling.factor"] = float(rope["factor"])
        if original:
            settings["rope.scaling.original_context_length"] = original
        names = ("attention_factor", "beta_fast", "beta_slow")
        for name in names if kind == "yarn" else ():
            if rope.get(name) is not None:
                key = name.replace("attention", "attn")
                settings[f"rope.scaling.yarn_{key}"] = float(rope[name])
    if kind == "llama3":
        return settings, {"rope_freqs": _llama3_factors(rope, _rotated(config, head_size))}
    if kind == "longrope":
        first = original or config.original_max_position_embeddings
        scale = config.max_position_embeddings / first
        attention = rope.get("attention_factor") or (
            math.sqrt(1 + math.log(scale) / math.log(first)) if scale > 1 else 1.0
        )
        settings["rope.scaling.type"] = "longrope"
        settings["rope.scaling.original_context_length"] = first
        settings["rope.scaling.attn_factor"] = float(attention)
        return settings, {
            "rope_factors_long": [float(x) for x in rope["long_factor"]],
            "rope_factors_short": [float(x) for x in rope["short_factor"]],
        }
    return settings, {}


def _rotated(config: Any, head_size: int) -> int:
    """How many elements of a head are rotated."""
    return int(head_size * (_full_rope(config).get("partial_rotary_factor") or 1.0))


def _llama3_factors(rope: dict[str, Any], rotated: int) -> list[float]:
    """What divides each rotary frequency: 1 for short wavelengths, ``factor`` for long ones."""
    low, high = float(rope["low_freq_factor"]), float(rope["high_freq_factor"])
    factor, length = float(rope["factor"]), float(rope["original_max_position_embeddings"])
    factors = []
    for i in range(0, rotated, 2):
        wavelength = 2 * math.pi * float(rope["rope_theta"]) ** (i / rotated)
        smooth = (length / wavelength - low) / (high - low)
        smooth = min(1.0, max(0.0, smooth))
        factors.append(1 / ((1 - smooth) / factor + smooth))
    return factors
