"""Checks that a config is of a causal language model, the only kind that graftlm trains.

A model of text together with images counts too, if a causal language model is its text side: it is
loaded whole, so that the names of its modules are those of the whole model, and reads text rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from graftlm.errors import ModelError

if TYPE_CHECKING:
    from transformers import PretrainedConfig

__all__ = ["auto_class", "require_causal"]

ENCODER = "an encoder, which sees the tokens that it would have to predict"
HEADS = {
    "Classification": "a classifier",
    "QuestionAnswering": "a model that marks answers in a text",
    "MultipleChoice": "a classifier",
    "RewardModel": "a reward model",
    "ForMaskedLM": ENCODER,
}
"""Endings of the class name in config.json, and the kind of model that each means."""


def require_causal(config: PretrainedConfig, where: object) -> None:
    """Refuse a config that is not of a causal language model.

    Raises:
        ModelError: the message says in one sentence what kind of model it is.
    """
    kind = _other_kind(config)
    if kind is not None:
        raise ModelError(
            f"{where} holds {kind} ({config.model_type}); graftlm trains causal language models, "
            "which predict each token from those before it, such as gemma-3-270m."
        )


def auto_class(config: Any) -> Any:
    """The class of transformers that builds the whole model of ``config``."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    return AutoModelForImageTextToText if _sees_images(config) else AutoModelForCausalLM


def _sees_images(config: Any) -> bool:
    """Whether the class for images and text builds the model, around a causal text side.

    Some kinds have a causal class for the text side alone as well (Llama 4): then the class that
    config.json names decides, because a checkpoint of the whole model does not fit the other.
    """
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

    whole = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING.get(type(config), None)
    named = getattr(whole, "__name__", "") in (getattr(config, "architectures", None) or ())
    if (
        (type(config) in MODEL_FOR_CAUSAL_LM_MAPPING and not named)
        or whole is None
        or "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
    ):
        return False
    text, vision = getattr(config, "text_config", None), getattr(config, "vision_config", None)
    if None in (text, vision) or hasattr(config, "qformer_config"):  # it reads no text alone
        return False
    return not getattr(text, "is_encoder_decoder", False)


def _other_kind(config: Any) -> str | None:
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    if getattr(config, "is_encoder_decoder", False):
        return "a sequence-to-sequence model, with an encoder and a decoder"
    for name in getattr(config, "architectures", None) or ():
        for ending, kind in HEADS.items():
            if name.endswith(ending):
                return kind
    if "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {}):
        return None  # defined by code in the folder
    if _sees_images(config):
        return None
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        return _without_causal_class(config)
    return ENCODER if _sees_what_follows(config) else None


def _sees_what_follows(config: Any) -> bool:
    """Whether this config makes an encoder of a family that can also be a decoder."""
    from transformers import MODEL_FOR_MASKED_LM_MAPPING

    if config.model_type == "xlm":
        return not config.causal
    encoders = type(config) in MODEL_FOR_MASKED_LM_MAPPING or config.model_type == "bert-generation"
    return encoders and not getattr(config, "is_decoder", True)


def _without_causal_class(config: Any) -> str:
    parts = {name for name in ("vision_config", "audio_config") if hasattr(config, name)}
    if parts and hasattr(config, "text_config"):
        return "a model of text together with images or sound"
    if hasattr(config, "image_size") or hasattr(config, "num_channels"):
        return "a model of images"
    return "a model that is not a causal language model"
