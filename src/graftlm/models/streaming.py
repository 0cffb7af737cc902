"""Filling a model tensor by tensor, quantising on the way: a plug-in for `from_pretrained`.

Which tensor of a checkpoint becomes which parameter of a model is transformers' own knowledge (key
renamings, fused experts, tied weights, non-persistent buffers). So its loader drives, and calls
back here: `LazyTensor` stands for a tensor that is not read yet, `StreamingQuantizer` says which
parameters are stored in a weight format, and `Quantize` takes each of those as it arrives. At no
time is more than one of them in memory in full. The layers change places at the end, since a
model's own initialisation of what it lacks may look at its linear layers.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from graftlm._compat.loader import ConversionOps, LoaderPlugin, forget_quantized, mark_filled
from graftlm.errors import GraftLMError, ModelError
from graftlm.frozen.linear import FrozenLinear
from graftlm.frozen.weight import FrozenWeight, StorageSettings, WeightSettings
from graftlm.models.safetensors_file import Checkpoint

__all__ = [
    "Abort",
    "LazyTensor",
    "Stored",
    "StreamingConfig",
    "StreamingQuantizer",
    "copied_tensors",
    "linear_layers",
    "register",
    "unquantized_names",
]

METHOD = "graftlm"


class Abort(BaseException):
    """Carries an error out through transformers' loader, which would otherwise log and go on."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


class Stored:
    """A weight that arrives in its format. The loader may move it; its types are fixed."""

    def __init__(self, weight: FrozenWeight) -> None:
        self.weight = weight

    def to(self, device: Any = None, dtype: torch.dtype | None = None) -> Stored:
        """The same weight on ``device``; ``dtype`` is ignored."""
        return self if device is None else Stored(self.weight.to(device))


class LazyTensor:
    """What transformers' loader takes for a safetensors slice: read when indexed.

    Args:
        read: reads it.
        stored: whether it arrives as `Stored`.
    """

    def __init__(self, read: Callable[[], Tensor | Stored], stored: bool = False) -> None:
        self._read = read
        self.stored = stored

    def __getitem__(self, _: Any) -> Tensor | Stored:
        try:
            return self._read()
        except Exception as error:
            raise Abort(error) from error


def copied_tensors(checkpoint: Checkpoint) -> dict[str, LazyTensor]:
    """The checkpoint by name; each tensor is copied out of its file when it is asked for."""
    return {name: LazyTensor(functools.partial(checkpoint.read, name)) for name in checkpoint}


@functools.cache
def register() -> None:
    """Make the plug-in known to transformers, once a process."""
    register_quantization_config(METHOD)(StreamingConfig)
    register_quantizer(METHOD)(StreamingQuantizer)


class StreamingConfig(QuantizationConfigMixin):
    """Settings of `StreamingQuantizer`, in the form `from_pretrained` takes.

    Args:
        format: the format that linear layers are stored in; ``None`` leaves them as they arrive.
            Layers that arrive in a format keep it either way.
        settings: what the format is asked for.
    """

    def __init__(
        self,
        format: type[FrozenWeight] | None,
        settings: StorageSettings = WeightSettings(),  # noqa: B008 (it is immutable)
    ) -> None:
        self.quant_method = METHOD  # type: ignore[assignment]
        self.format = format
        self.settings = settings


class StreamingQuantizer(LoaderPlugin):
    """Tells transformers' loader what to hand to `Quantize`, and leaves no trace on the model."""

    quantization_config: StreamingConfig

    def before_loading(self, model: PreTrainedModel) -> None:
        """Find what is to be stored in the format."""
        self.linears = linear_layers(model)
        self.kept = unquantized_names(model)
        self.arrived: dict[str, FrozenWeight] = {}

    def param_needs_quantization(self, model: PreTrainedModel, param_name: str, **_: Any) -> bool:
        """Whether `Quantize` handles this parameter (and its shape)."""
        module, _dot, leaf = param_name.rpartition(".")
        return leaf == "weight" and module in self.linears

    def get_quantize_ops(self) -> ConversionOps:
        """The operation that runs on each such parameter."""
        return Quantize(self)

    def after_loading(self, model: PreTrainedModel) -> None:
        """Put the stored layers in their places."""
        for path, weight in self.arrived.items():
            model.set_submodule(path, FrozenLinear(weight, self.linears[path].bias))
        self.linears, self.arrived = {}, {}
        self.remove_quantization_config(model)  # type: ignore[no-untyped-call]
        forget_quantized(model)

    @property
    def is_trainable(self) -> bool:
        """The stored weights are not, but adapters on them are."""
        return True

    def is_serializable(self) -> bool:
        """Not through transformers: see `graftlm.models.quantize_folder`."""
        return False


class Quantize(ConversionOps):
    """Take the weights of linear layers out of the loader's hands, quantised."""

    def __init__(self, quantizer: StreamingQuantizer) -> None:
        self.quantizer = quantizer

    def convert(
        self,
        input_dict: dict[str, Any],
        source_patterns: list[str],
        target_patterns: list[str],
        **context: Any,
    ) -> dict[str, Any]:
        """Keep what is stored in a format; return the rest, which the loader places itself."""
        rest = {}
        for name, value in input_dict.items():
            tensor = value[0] if isinstance(value, list) else value
            path = name.rpartition(".")[0]
            try:
                weight = self._quantize(path, tensor)
            except GraftLMError as error:
                raise Abort(type(error)(f"{name}: {error}")) from error
            except Exception as error:
                raise Abort(error) from error
            if weight is None:
                rest[name] = tensor
                continue
            self.quantizer.arrived[path] = weight
            mark_filled(self.quantizer.linears[path].weight)
            context["missing_keys"].discard(name)
        return rest

    def _quantize(self, path: str, tensor: Tensor | Stored) -> FrozenWeight | None:
        layer, config = self.quantizer.linears[path], self.quantizer.quantization_config
        transposed = isinstance(layer, Conv1D)
        out_by_in = tuple(layer.weight.shape)[::-1] if transposed else tuple(layer.weight.shape)
        shape: tuple[int, ...]
        if isinstance(tensor, Stored):
            shape, expected = tensor.weight.shape, out_by_in
        else:
            shape, expected = tuple(tensor.shape), tuple(layer.weight.shape)
        if shape != expected:
            raise ModelError(
                f"the checkpoint holds {list(shape)}, the model of its config.json has "
                f"{list(expected)}. Weights and config.json are of different models."
            )
        if isinstance(tensor, Stored):
            return tensor.weight
        if config.format is None or path in self.quantizer.kept:
            return None
        weight = tensor.t().contiguous() if transposed else tensor
        return config.format.quantize(weight, config.settings)


def linear_layers(model: nn.Module) -> dict[str, Any]:
    """Every layer that computes `x Wᵀ + b` and nothing else, by name.

    Exact types only, since a subclass of `nn.Linear` may compute something else; `FalconLinear`
    does not, and is named.
    """
    return {
        name: module
        for name, module in model.named_modules()
        if type(module) in (nn.Linear, Conv1D) or type(module).__name__ == "FalconLinear"
    }


def unquantized_names(model: PreTrainedModel) -> set[str]:
    """The output head and whatever shares its weight: kept as they are."""
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    names = {name for name, module in model.named_modules() if module is head}
    tied = getattr(model, "all_tied_weights_keys", None) or {}
    return names | {key.removesuffix(".weight") for pair in tied.items() for key in pair}
