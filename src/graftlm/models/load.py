"""Opening a model: build it empty, then fill it tensor by tensor, in 4 bits where asked."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from graftlm.errors import ModelError
from graftlm.models.assemble import REPLACEMENTS, assemble, empty_model
from graftlm.models.safetensors_file import Checkpoint
from graftlm.models.source import resolve

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from graftlm.models.streaming import StreamingConfig

__all__ = [
    "empty_model",
    "load_config",
    "load_model",
    "load_tokenizer",
    "load_weights",
    "pick_dtype",
    "take_quantization",
    "tokenizer_in",
]

logger = logging.getLogger("graftlm")


def load_model(
    name: str | Path,
    *,
    quantize: Literal["nf4"] | None = "nf4",
    dtype: str | torch.dtype = "auto",
    block_size: int = 64,
    double_quant: bool = True,
    embeddings: Literal["keep", "int8"] = "keep",
    replacements: Sequence[str] = REPLACEMENTS,
    trust_remote_code: bool = False,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a causal language model and its tokenizer.

    Peak memory is the loaded model plus one tensor; with ``embeddings="int8"``, plus the table and
    the head in the model's own type. A folder that is in NF4 already (written by `quantize_folder`,
    or by transformers with bitsandbytes) opens memory-mapped, as it is, whatever ``quantize``,
    ``block_size`` and ``double_quant`` say.

    Args:
        name: a folder, a Hub id, a `.gguf` file or a built-in name.
        quantize: ``"nf4"`` stores every linear layer in 4 bits as it arrives, except the output
            head; ``None`` keeps the checkpoint's type.
        dtype: type of the unquantised weights; ``"auto"`` keeps the checkpoint's.
        block_size: weights that share one NF4 scale.
        double_quant: whether the scales themselves are stored in 8 bits.
        embeddings: ``"int8"`` stores embedding table and output head in 8 bits, a scale a row.
        replacements: modules that quicker ones of graftlm may stand for, as `model.replacements`;
            `graftlm.models.assembly_report` says what became of it.
        trust_remote_code: run Python code the model folder brings along.

    Returns:
        The model in evaluation mode, and its tokenizer.

    Raises:
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
    )
    return model, tokenizer


def load_weights(
    name: str | Path,
    *,
    quantize: Literal["nf4"] | None = "nf4",
    dtype: str | torch.dtype = "auto",
    block_size: int = 64,
    double_quant: bool = True,
    embeddings: Literal["keep", "int8"] = "keep",
    replacements: Sequence[str] = REPLACEMENTS,
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """Load a model without its tokenizer; arguments, memory and errors as for `load_model`."""
    from graftlm.models.streaming import StreamingConfig

    if quantize not in ("nf4", None):
        raise ModelError(f"quantize={quantize!r}: expected 'nf4' or None")
    if embeddings not in ("keep", "int8"):
        raise ModelError(f"embeddings={embeddings!r}: expected 'keep' or 'int8'")
    source = resolve(name, trust_remote_code=trust_remote_code)
    config = load_config(source.path, trust_remote_code)
    checkpoint = Checkpoint(source.path)
    already_nf4 = take_quantization(config, str(name))
    weights_dtype = pick_dtype(dtype, config, checkpoint)

    def fill(empty: PreTrainedModel) -> PreTrainedModel:
        return _fill(
            empty,
            checkpoint,
            already_nf4=already_nf4,
            streaming=StreamingConfig(quantize == "nf4", block_size, double_quant),
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
        checkpoint.forget()  # the 16-bit rows, where the file is mapped
    model.name_or_path = model.config._name_or_path = source.name
    return model


def load_tokenizer(name: str | Path, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """Load only the tokenizer of a model; ``name`` as for `load_model`."""
    source = resolve(name, trust_remote_code=trust_remote_code)
    return tokenizer_in(source.path, trust_remote_code)


def load_config(folder: Path, trust_remote_code: bool = False) -> PretrainedConfig:
    """Read config.json of a model folder."""
    from transformers import AutoConfig

    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(
            folder, trust_remote_code=trust_remote_code, local_files_only=True
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"cannot use {folder / 'config.json'}: {error}. Expected the config of a causal "
            "language model that the installed transformers knows."
        ) from error
    return config


def _fill(
    skeleton: PreTrainedModel,
    checkpoint: Checkpoint,
    *,
    already_nf4: bool,
    streaming: StreamingConfig,
    dtype: torch.dtype,
) -> PreTrainedModel:
    from graftlm.models.prequantized import mapped_tensors
    from graftlm.models.streaming import Abort, copied_tensors, register

    register()
    tensors = mapped_tensors(checkpoint) if already_nf4 else copied_tensors(checkpoint)
    try:
        with _captured_report() as messages:
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
    _require_complete(checkpoint.folder, loaded[1])
    _report_experts(model)
    return model


def _require_complete(folder: Path, report: dict[str, Any]) -> None:
    problems = []
    for key, meaning in (
        ("missing_keys", "the model needs weights that the checkpoint lacks"),
        ("unexpected_keys", "the checkpoint holds weights that the model has no place for"),
        ("mismatched_keys", "the checkpoint holds weights of another shape"),
    ):
        names = sorted(str(entry) for entry in report[key])
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            problems.append(f"{meaning}: {', '.join(names[:3])}{more}")
    if problems:
        raise ModelError(
            f"{folder}: {'; '.join(problems)}. Its config.json and its weights do not belong "
            "together, or the folder is incomplete."
        )


def _report_experts(model: PreTrainedModel) -> None:
    """Say what 4-bit storage left out: experts fused into one parameter, not linear layers."""
    from graftlm.frozen.nf4.linear import NF4Linear

    if not any(isinstance(module, NF4Linear) for module in model.modules()):
        return
    fused = [parameter for parameter in model.parameters() if parameter.dim() == 3]
    if fused:
        size = sum(parameter.nbytes for parameter in fused)
        logger.warning(
            "%d fused expert tensors (%.2f GB) are not linear layers and stay unquantised",
            len(fused),
            size / 1e9,
        )


def take_quantization(config: PretrainedConfig, name: str) -> bool:
    """Remove `quantization_config`, which transformers would act on; return whether it says NF4.

    Raises:
        ModelError: the model is quantised in a way graftlm does not read.
    """
    from graftlm.models.prequantized import is_nf4

    settings = None
    for part in {id(c): c for c in (config, config.get_text_config())}.values():
        settings = part.__dict__.pop("quantization_config", None) or settings
    return is_nf4(settings, name)


def pick_dtype(
    dtype: str | torch.dtype, config: PretrainedConfig, checkpoint: Checkpoint
) -> torch.dtype:
    """The type a name stands for; ``"auto"`` is the config's, else that of most of the weights."""
    if dtype == "auto":
        dtype = config.get_text_config().dtype or config.dtype or checkpoint.dtype
    if isinstance(dtype, str):
        dtype = getattr(torch, dtype, dtype)
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise ModelError(f"dtype {dtype}: expected auto, float32, bfloat16 or float16")
    assert isinstance(dtype, torch.dtype)
    return dtype


def _generation_config(folder: Path) -> Any:
    from transformers import GenerationConfig

    if not (folder / "generation_config.json").exists():
        return None
    return GenerationConfig.from_pretrained(folder)


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
    return tokenizer


@contextlib.contextmanager
def _captured_report() -> Iterator[list[str]]:
    """Take transformers' table of missing weights off the log: here it becomes an error."""
    messages: list[str] = []

    def capture(record: logging.LogRecord) -> bool:
        messages.append(record.getMessage())
        return False

    noisy = logging.getLogger("transformers.modeling_utils")
    noisy.addFilter(capture)
    try:
        yield messages
    finally:
        noisy.removeFilter(capture)
