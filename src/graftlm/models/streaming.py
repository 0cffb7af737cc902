"""Fills a model tensor by tensor and quantises each one: a plug-in for `from_pretrained`.

transformers knows which tensor of a checkpoint becomes which parameter (key renamings, fused
experts, tied weights, non-persistent buffers). So its loader runs and calls this module:
`LazyTensor` (`lazy.py`) represents a tensor that is not read yet, `StreamingQuantizer` selects the
parameters that are stored in a weight format, and `Quantize` converts each of them when it is read.
At most one of them is in memory unquantised. The layers are replaced at the end, because a model's
initialisation of missing weights may access its linear layers.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from graftlm._compat.dense_layers import dense_layers
from graftlm._compat.loader import ConversionOps, LoaderPlugin, forget_quantized, mark_filled
from graftlm.errors import GraftLMError, ModelError
from graftlm.frozen.experts import FrozenExperts
from graftlm.frozen.linear import FrozenLinear
from graftlm.frozen.share import whole_first
from graftlm.frozen.weight import FrozenWeight, StorageSettings, WeightSettings
from graftlm.models.experts import expert_weights, hold
from graftlm.models.lazy import Abort, Stored
from graftlm.models.shares import Shares, Unread, move_values, read_now

__all__ = [
    "StreamingConfig",
    "StreamingQuantizer",
    "linear_layers",
    "register",
    "unquantized_names",
]

METHOD = "graftlm"
CPU = torch.device("cpu")


@functools.cache
def register() -> None:
    """Register the plug-in with transformers, once per process."""
    register_quantization_config(METHOD)(StreamingConfig)
    register_quantizer(METHOD)(StreamingQuantizer)


class StreamingConfig(QuantizationConfigMixin):
    """Settings of `StreamingQuantizer`, in the form `from_pretrained` takes.

    Args:
        format: the format of the linear layers; ``None`` keeps them as they are in the checkpoint.
            Layers that are in a format in the checkpoint keep it in both cases.
        settings: the settings of the format.
        device: where each tensor goes when it is read; a layer is quantised there.
        shares: takes the parts that this process holds of the large tensors, if it is one of
            several; the model is then left without their values.
    """

    def __init__(
        self,
        format: type[FrozenWeight] | None,
        settings: StorageSettings = WeightSettings(),  # noqa: B008 (it is immutable)
        device: torch.device = CPU,
        shares: Shares | None = None,
    ) -> None:
        self.quant_method = METHOD  # type: ignore[assignment]
        self.format = format
        self.settings = settings
        self.device = device
        self.shares = shares


class StreamingQuantizer(LoaderPlugin):
    """Selects the parameters that transformers' loader passes to `Quantize`."""

    quantization_config: StreamingConfig

    def before_loading(self, model: PreTrainedModel) -> None:
        """Find the layers that will be stored in the format."""
        self.linears = linear_layers(model)
        self.experts = expert_weights(model)
        self.arrived_experts: dict[str, FrozenExperts] = {}
        self.kept = unquantized_names(model)
        self.dtype = model.dtype
        self.arrived: dict[str, FrozenWeight] = {}
        config = self.quantization_config
        large = config.device != CPU or config.shares is not None
        self.moved = _large(model) if large else {}
        if config.shares is not None:
            linears = {f"{name}.weight" for name in self.linears}
            config.shares.wanted = frozenset(linears | self.moved.keys())

    def param_needs_quantization(self, model: PreTrainedModel, param_name: str, **_: Any) -> bool:
        """Whether `Quantize` handles this parameter (and its shape).

        On another device than the CPU it handles all matrices, so that none waits in host memory
        until the last one is read.
        """
        return param_name in self.moved or self.stores(param_name)

    def stores(self, param_name: str) -> bool:
        """Whether this is the weight of a linear layer, or those of the experts of a layer."""
        module, _dot, leaf = param_name.rpartition(".")
        return (leaf == "weight" and module in self.linears) or param_name in self.experts

    def get_quantize_ops(self) -> ConversionOps:
        """The operation that runs on each such parameter."""
        return Quantize(self)

    def after_loading(self, model: PreTrainedModel) -> None:
        """Put the stored layers into the model."""
        for path, weight in self.arrived.items():
            model.set_submodule(path, FrozenLinear(weight, self.linears[path].bias))
        for path, experts in self.experts.items():  # in the model's order
            if path in self.arrived_experts:
                hold(experts, self.arrived_experts[path])
        config = self.quantization_config
        if config.device != CPU and config.shares is None:
            model.to(config.device)  # type: ignore[arg-type]
        elif config.device != CPU:
            move_values(model, config.device)
        self.linears, self.arrived, self.moved = {}, {}, {}
        self.experts, self.arrived_experts = {}, {}
        self.remove_quantization_config(model)  # type: ignore[no-untyped-call]
        forget_quantized(model)

    @property
    def is_trainable(self) -> bool:
        """True: the stored weights are not trainable, but adapters on them are."""
        return True

    def is_serializable(self) -> bool:
        """False: transformers cannot save it; see `graftlm.models.quantize_folder`."""
        return False


class Quantize(ConversionOps):
    """Move each parameter to its device; quantise and keep the weights of linear layers."""

    def __init__(self, quantizer: StreamingQuantizer) -> None:
        self.quantizer = quantizer

    def convert(
        self,
        input_dict: dict[str, Any],
        source_patterns: list[str],
        target_patterns: list[str],
        **context: Any,
    ) -> dict[str, Any]:
        """Keep the weights in a format; return the rest, which the loader puts into the model."""
        rest = {}
        for name, value in input_dict.items():
            tensor = value[0] if isinstance(value, list) else value
            path = name.rpartition(".")[0]
            try:
                tensor = tensor.to(self.quantizer.quantization_config.device)
                if name in self.quantizer.experts:
                    tensor = read_now(tensor)
                    missing = context["missing_keys"]
                    if not self._keep_experts(name, tensor, missing) and not self._take_rows(
                        name, tensor, missing
                    ):
                        rest[name] = tensor
                    continue
                weight = None
                if self.quantizer.stores(name):
                    weight = self._quantize(path, tensor)
                if weight is None:
                    if self._take_rows(name, tensor, context["missing_keys"]):
                        continue
                    tensor = read_now(tensor)
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

    def _keep_experts(self, name: str, tensor: Tensor | Stored, missing: set[str]) -> bool:
        """Quantise and keep the experts of a layer; whether they are stored in the format."""
        config, weight = self.quantizer.quantization_config, self.quantizer.experts[name]
        parameter: nn.Parameter = getattr(weight.module, weight.leaf)
        if isinstance(tensor, Stored):
            assert isinstance(tensor.weight, FrozenExperts)
            stack = tensor.weight.of_type(self.quantizer.dtype)
        elif config.format is None or tensor.shape != parameter.shape:
            return False  # the loader reports another shape
        else:
            stack = FrozenExperts.of(tensor, weight.transposed, config.format, config.settings)
        self.quantizer.arrived_experts[name] = stack
        if config.shares is not None:
            config.shares.take_experts(name, stack)
        mark_filled(parameter)
        missing.discard(name)
        return True

    def _take_rows(self, name: str, tensor: Tensor | Stored | Unread, missing: set[str]) -> bool:
        """Keep the rows that this process holds of a dense tensor; whether it holds only a part."""
        config, parameter = self.quantizer.quantization_config, self.quantizer.moved.get(name)
        if config.shares is None or parameter is None or isinstance(tensor, Stored):
            return False
        if tuple(tensor.shape) != tuple(parameter.shape):
            return False  # the loader reports another shape
        config.shares.take_rows(name, tensor, config.device)
        mark_filled(parameter)
        missing.discard(name)
        return True

    def _quantize(self, path: str, tensor: Tensor | Stored | Unread) -> FrozenWeight | None:
        layer, config = self.quantizer.linears[path], self.quantizer.quantization_config
        transposed = isinstance(layer, Conv1D)
        out_by_in = tuple(layer.weight.shape)[::-1] if transposed else tuple(layer.weight.shape)
        shape: tuple[int, ...]
        if isinstance(tensor, Stored):
            shape, expected = tensor.matrix.shape, out_by_in
        else:
            shape, expected = tuple(tensor.shape), tuple(layer.weight.shape)
        if shape != expected:
            raise ModelError(
                f"the checkpoint holds {list(shape)}, the model of its config.json has "
                f"{list(expected)}. Weights and config.json are of different models."
            )
        shares, settings = config.shares, config.settings
        if isinstance(tensor, Stored):
            opened = tensor.matrix.of_type(self.quantizer.dtype)
            if shares is None:
                return opened
            mapped = config.device == CPU
            return shares.take(path, whole_first(opened, shares.share, mapped=mapped))
        if config.format is None or path in self.quantizer.kept:
            return None
        if shares is not None and isinstance(tensor, Unread) and not transposed:
            part = config.format.quantize_share(tensor, settings, shares.share, config.device)
            return shares.take(path, part)
        dense: Tensor = read_now(tensor).to(config.device)
        stored = config.format.quantize(dense.t().contiguous() if transposed else dense, settings)
        return stored if shares is None else shares.take(path, whole_first(stored, shares.share))


def _large(model: PreTrainedModel) -> dict[str, nn.Parameter]:
    """The matrices of the model's own type. The loader casts what a quantiser handles to it."""
    return {n: p for n, p in model.named_parameters() if p.ndim > 1 and p.dtype == model.dtype}


def linear_layers(model: nn.Module) -> dict[str, Any]:
    """Every layer that computes exactly `x Wᵀ + b`, by name.

    Only exact types count, because a subclass of `nn.Linear` may compute something else.
    `FalconLinear` does not, so it is listed.
    """
    return {
        name: module
        for name, module in model.named_modules()
        if type(module) in (nn.Linear, Conv1D) or type(module).__name__ == "FalconLinear"
    }


def unquantized_names(model: PreTrainedModel) -> set[str]:
    """The layers that are not quantised.

    They are the output head and the modules that share its weight, layers whose name ends like
    one of these (transformers and bitsandbytes leave them out too, such as the patcher's
    ``lm_head`` of BLT), and those whose weight has to be dense; see `_compat/dense_layers.py`.
    """
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    names = {name for name, module in model.named_modules() if module is head}
    tied = getattr(model, "all_tied_weights_keys", None) or {}
    names |= {key.removesuffix(".weight") for pair in tied.items() for key in pair}
    layers = linear_layers(model)
    names |= {layer for layer in layers if layer.endswith(tuple(names))}
    return names | dense_layers(model, layers)
