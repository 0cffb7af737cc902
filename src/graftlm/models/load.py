"""Opening a model: build it empty, then fill it tensor by tensor, in a weight format if given."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from graftlm._compat.base_name import set_base_name
from graftlm.errors import ModelError
from graftlm.frozen.formats import DEFAULT_FORMAT, format_named
from graftlm.frozen.weight import WeightSettings
from graftlm.models.assemble import REPLACEMENTS, assemble, empty_model
from graftlm.models.base_files import remember_folder, remember_tokenizer
from graftlm.models.config_file import require_possible
from graftlm.models.kind_of_model import require_causal
from graftlm.models.loading_report import captured_messages, require_complete
from graftlm.models.quiet import without_progress_bars
from graftlm.models.safetensors_file import Checkpoint
from graftlm.models.source import resolve
from graftlm.models.unquantised import report_unquantised
from graftlm.system.placement import Placement, placement_for

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from graftlm.models.prequantized import StoredAs
    from graftlm.models.shares import Shares
    from graftlm.models.streaming import StreamingConfig

__all__ = [
    "empty_model",
    "load_config",
    "load_model",
    "load_tokenizer",
    "load_weights",
    "pick_dtype",
    "tokenizer_in",
]


def load_model(
    name: str | Path,
    *,
    quantize: str | None = DEFAULT_FORMAT,
    dtype: str | torch.dtype = "auto",
    block_size: int = 64,
    double_quant: bool = True,
    embeddings: Literal["keep", "int8"] = "keep",
    replacements: Sequence[str] = REPLACEMENTS,
    trust_remote_code: bool = False,
    device: str = "auto",
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a causal language model and its tokenizer.

    Each tensor goes to the device when it is read, and is quantised there. Peak memory is the
    loaded model plus one tensor; with ``embeddings="int8"``, plus the table and the head in the
    model's own type. A folder that is already quantised (written by `quantize_folder`, or by
    transformers with bitsandbytes) opens memory-mapped and unchanged. It ignores ``quantize``,
    ``block_size`` and ``double_quant``; its 16-bit layers stay in 16 bits.

    Args:
        name: a folder, a Hub id, a `.gguf` file or a built-in name.
        quantize: the weight format of every linear layer except the output head: ``"nf4"``
            (4 bits), or one registered by `graftlm.extend.register_format`. Each layer is
            quantised when it is read. ``None`` keeps the checkpoint's type.
        dtype: type of the unquantised weights; ``"auto"`` keeps the checkpoint's.
        block_size: weights that share one scale.
        double_quant: whether the scales themselves are stored in 8 bits.
        embeddings: ``"int8"`` stores embedding table and output head in 8 bits, a scale per row.
        replacements: modules that faster ones of graftlm may replace, as `model.replacements`;
            `graftlm.models.assembly_report` lists what was replaced.
        trust_remote_code: run Python code from the model folder.
        device: ``cpu``, ``cuda``, ``cuda:1``, ``xpu``, ``mps``, or ``auto``: an accelerator with
            room for the weights, else the CPU.

    Returns:
        The model in evaluation mode, and its tokenizer.

    Raises:
        ConfigError: ``quantize`` names no registered format, or the format refuses its settings.
        ModelError: the model is not found, corrupt, incomplete, or of another type.
    """
    tokenizer = load_tokenizer(name, trust_remote_code=trust_remote_code)
    model = load_weights(
        name,
        quantize=quantize,
        dtype=dtype,
        block_size=block_size,
        double_quant=double_quant,
        embeddings=embeddings,
        replacements=replacements,
        trust_remote_code=trust_remote_code,
        device=device,
    )
    return model, tokenizer


def load_weights(
    name: str | Path,
    *,
    quantize: str | None = DEFAULT_FORMAT,
    dtype: str | torch.dtype = "auto",
    block_size: int = 64,
    double_quant: bool = True,
    embeddings: Literal["keep", "int8"] = "keep",
    replacements: Sequence[str] = REPLACEMENTS,
    trust_remote_code: bool = False,
    device: str = "auto",
    shares: Shares | None = None,
) -> PreTrainedModel:
    """Load a model without its tokenizer; arguments, memory and errors as for `load_model`.

    With ``shares`` it is for one of several processes, and large tensors get no values.
    """
    from graftlm.models.prequantized import take_quantization
    from graftlm.models.streaming import StreamingConfig

    format = None if quantize is None else format_named(quantize)
    if embeddings not in ("keep", "int8"):
        raise ModelError(f"embeddings={embeddings!r}: expected 'keep' or 'int8'")
    source = resolve(name, trust_remote_code=trust_remote_code)
    config = load_config(source.path, trust_remote_code)
    checkpoint = Checkpoint(source.path)
    if (already := take_quantization(config, str(name))) is not None:
        format = None  # the 16-bit layers of such a folder stay as they are
    placement = placement_for(device, needed=sum(stored.nbytes for stored in checkpoint.values()))
    weights_dtype = pick_dtype(dtype, config, checkpoint, placement)

    settings = WeightSettings(block_size, double_quant)

    def fill(empty: PreTrainedModel) -> PreTrainedModel:
        return _fill(
            empty,
            checkpoint,
            reader=already,
            streaming=StreamingConfig(format, settings, placement.first, shares),
            dtype=weights_dtype,
        )

    model = assemble(
        config,
        fill,
        replacements=replacements,
        embeddings=embeddings,
        trust_remote_code=trust_remote_code,
    )
    if embeddings == "int8":
        checkpoint.forget()  # free the mapped pages of the 16-bit rows
    set_base_name(model, source.name)
    remember_folder(model, source.path)
    return model


def load_tokenizer(name: str | Path, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """Load only the tokenizer of a model; ``name`` as for `load_model`."""
    source = resolve(name, trust_remote_code=trust_remote_code)
    load_config(source.path, trust_remote_code)  # otherwise its faults look like the tokenizer's
    return tokenizer_in(source.path, trust_remote_code)


def load_config(folder: Path, trust_remote_code: bool = False) -> PretrainedConfig:
    """Read config.json of a model folder.

    Raises:
        ModelError: it is not of a causal language model, or its values are impossible.
    """
    from transformers import AutoConfig

    require_possible(folder)
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(
            folder, trust_remote_code=trust_remote_code, local_files_only=True
        )
    except Exception as error:  # the classes of configs check their values in many ways
        why = " ".join(str(error).split())[:400]
        raise ModelError(
            f"cannot use {folder / 'config.json'}: {why}. Expected the config of a causal "
            "language model that the installed transformers knows."
        ) from error
    require_causal(config, folder)
    return config


def _fill(
    skeleton: PreTrainedModel,
    checkpoint: Checkpoint,
    *,
    reader: StoredAs | None,
    streaming: StreamingConfig,
    dtype: torch.dtype,
) -> PreTrainedModel:
    from graftlm.models.experts import expert_weights
    from graftlm.models.lazy import Abort, loaded_tensors, unread_tensors
    from graftlm.models.prequantized import mapped_tensors
    from graftlm.models.streaming import register

    register()
    tensors = loaded_tensors(checkpoint, streaming.format, streaming.device)
    if reader is not None:
        tensors = mapped_tensors(checkpoint, reader, expert_weights(skeleton))
    if streaming.shares is not None:
        tensors |= unread_tensors(skeleton, checkpoint, tensors, streaming.shares)
    try:
        with without_progress_bars(), captured_messages() as messages:
            loaded: Any = type(skeleton).from_pretrained(
                None,
                config=skeleton.config,
                state_dict=tensors,
                quantization_config=streaming,
                generation_config=_generation_config(checkpoint.folder),
                dtype=dtype,
                ignore_mismatched_sizes=True,  # reported, and refused below with the names
                output_loading_info=True,
            )
    except Abort as abort:
        raise abort.error from abort.error.__cause__
    except RuntimeError as error:
        details = "\n".join([str(error), *messages])
        raise ModelError(f"cannot load {checkpoint.folder}: {details}") from error
    model: PreTrainedModel = loaded[0]
    require_complete(
        checkpoint.folder,
        loaded[1],
        "Its config.json and its weights do not belong together, or the folder is incomplete.",
    )
    report_unquantised(model)
    return model


def pick_dtype(
    dtype: str | torch.dtype,
    config: PretrainedConfig,
    checkpoint: Checkpoint,
    placement: Placement | None = None,
) -> torch.dtype:
    """The type of this name; ``"auto"``: the config's type, else the type of most weights.

    Where the device of ``placement`` does not multiply bfloat16, ``"auto"`` takes float16 for it.
    """
    if dtype == "auto":
        dtype = config.get_text_config().dtype or config.dtype or checkpoint.dtype
        if placement is not None and isinstance(dtype, torch.dtype):
            dtype = placement.trains_in(dtype)
    if isinstance(dtype, str):
        dtype = getattr(torch, dtype, dtype)
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise ModelError(f"dtype {dtype}: expected auto, float32, bfloat16 or float16")
    assert isinstance(dtype, torch.dtype)
    return dtype


def _generation_config(folder: Path) -> Any:
    from transformers import GenerationConfig

    there = (folder / "generation_config.json").exists()
    return GenerationConfig.from_pretrained(folder) if there else None


def tokenizer_in(folder: Path, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """Read the tokenizer that lies in ``folder``."""
    from transformers import AutoTokenizer

    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            folder, trust_remote_code=trust_remote_code, local_files_only=True
        )
    except Exception as error:  # the tokenizers library raises bare Exception
        raise ModelError(
            f"cannot load a tokenizer from {folder}: {error}. Expected tokenizer.json beside the "
            "weights; copy the tokenizer files of the original model there."
        ) from error
    remember_tokenizer(tokenizer, folder)
    return tokenizer
