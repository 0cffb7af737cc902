"""Runs a model whose weights stay on the disk: each module reads its own while it is called.

    model = transformers' classes, every parameter a view of one NaN: no memory
    before a module's forward    its parameters are read
    after it                     they are forgotten

Peak memory is one module's weights and the activations, whatever the size of the model. All
arithmetic is in float32, so that two runs differ by their weights alone. A module that is never
given its weights computes NaN, so a weight cannot be left out silently. Some models read weights of
modules that they do not call (`dt_proj` of Mamba). Where a pass gives NaN, the module around such a
one gives it its weights in the next.

The logits are not computed by the model. `StreamedModel.run` returns the hidden states that enter
the output layer, and `StreamedModel.logits` multiplies as many of them as the caller has room for.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from graftlm.errors import ModelError
from graftlm.frozen.experts import DenseExperts
from graftlm.models.lazy import LazyTensor
from graftlm.models.output_head import head_settings
from graftlm.models.probing import calls_of
from graftlm.models.readers import add_readers
from graftlm.models.without_values import has_no_values, without_values

__all__ = ["Before", "Reader", "StreamedModel", "decoder_layers"]

Reader = Callable[[str], Tensor]
"""Reads a parameter or buffer by its name in the model, in any floating-point type."""
Before = Callable[[str, nn.Module, Tensor], Callable[[Tensor], Tensor] | None]
"""Called with the name of a module, the module and its input, when the module has its weights. It
may put another parameter in the place of one, and return what changes the module's output."""
_Given = list[tuple[nn.Module, str, nn.Parameter]]
"""The parameters that have values for a call: their holder, their name there, what stood there."""
VOCABULARY_ROWS = 2048


class StreamedModel:
    """A causal language model over weights that are read when they are needed.

    Args:
        empty: the model on the meta device.
        read: reads a weight.
        fused: tensors by checkpoint key that transformers joins into one parameter (experts). They
            are read at once and stay in memory.
        joined: the parameters that they are joined into.
        release: gives back the memory of mapped tables after each use; they stay readable.
        read_by: for each module, those whose weights it reads without calling them; filled here.
    """

    def __init__(
        self,
        empty: PreTrainedModel,
        read: Reader,
        fused: Mapping[str, LazyTensor] | None = None,
        joined: frozenset[str] = frozenset(),
        release: Callable[[], None] = lambda: None,
        read_by: dict[str, list[str]] | None = None,
    ) -> None:
        self.read, self._release = read, release
        self._read_by = {} if read_by is None else read_by
        self.model = without_values(empty, read, fused or {}, joined)
        self._places = {
            module: {
                key: f"{name}.{key}" if name else key
                for key, parameter in module.named_parameters(recurse=False)
                if has_no_values(parameter)
            }
            for name, module in self.model.named_modules()
        }
        head = self.model.get_output_embeddings()  # type: ignore[no-untyped-call]
        if head is None:
            raise ModelError(f"{type(self.model).__name__} names no output layer: expected one")
        self._head: nn.Module = head
        self._head_name = next(n for n, m in self.model.named_modules() if m is head)
        self._scale, self._softcap = head_settings(self.model.config)
        self._head_weight: Tensor | None = None

    @torch.no_grad()
    def run(
        self,
        ids: Tensor,
        mask: Tensor | None = None,
        *,
        before: Before | None = None,
        keep_layers: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """One forward pass.

        Args:
            ids: token ids (B, L), padded on the right.
            mask: false on padding.
            before: called before a module with weights; see `Before`.
            keep_layers: at which positions, as indices into the B·L of ``ids``, the outputs of the
                decoder layers are returned; at none by default.

        Returns:
            The hidden states (B, L, D) that enter the output layer, and the output of each
            decoder layer by its name, at the positions to keep.

        Raises:
            ModelError: the model reads weights in a way that cannot be followed.
        """
        if before is not None and not self._read_by:  # which shall not see NaN
            self._pass(ids[:1, :2], None, None, None)
        hidden, shown, outputs = self._pass(ids, mask, before, keep_layers)
        self._require_same(shown, hidden[:1, :1])
        return hidden, outputs

    def _pass(
        self, ids: Tensor, mask: Tensor | None, before: Before | None, keep_layers: Tensor | None
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Hidden states, the model's own logits of one token, and the layers' outputs."""
        outputs: dict[str, Tensor] = {}
        entered: list[Tensor] = []
        model = self.model.train(False)
        with contextlib.ExitStack() as hooks:
            called = hooks.enter_context(calls_of(model.named_modules()))
            for name, module in model.named_modules():
                self._hook(hooks, name, module, before)
            if keep_layers is not None:
                for name in decoder_layers(model):
                    keep = functools.partial(_keep, outputs, name, keep_layers)
                    hooks.callback(model.get_submodule(name).register_forward_hook(keep).remove)
            self._head = model.get_submodule(self._head_name)  # perhaps adapted since
            model.set_submodule(self._head_name, _Entry(entered, self._raw))
            hooks.callback(model.set_submodule, self._head_name, self._head)
            shown = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        if len(entered) != 1:
            raise ModelError(f"{type(model).__name__} called its output layer {len(entered)} times")
        (hidden,) = entered
        if not hidden[:1, :1].isfinite().all():
            needy = {name for name, m in model.named_modules() if self._needed(name, m)}
            needy -= {self._head_name}
            if add_readers(self._read_by, model, called, needy):
                return self._pass(ids, mask, before, keep_layers)
        self._read_by.setdefault("", [])  # so that it is not tried again
        return hidden, shown, outputs

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., D) → (..., V) in float32."""
        return torch.cat(list(self.logits_in_parts(hidden)), dim=-1)

    def logits_in_parts(self, hidden: Tensor) -> Iterator[Tensor]:
        """The logits (..., V) in order, some tokens of the vocabulary at a time.

        An adapted output layer computes them all at once.
        """
        for raw in self._raw_in_parts(hidden):
            scaled, cap = self._scale * raw, self._softcap
            yield scaled if cap is None else cap * torch.tanh(scaled / cap)

    @property
    def adapted_head(self) -> bool:
        """Whether the output layer has an adapter."""
        return type(self._head) is not nn.Linear

    def _raw(self, hidden: Tensor) -> Tensor:
        return torch.cat(list(self._raw_in_parts(hidden)), dim=-1)

    def _raw_in_parts(self, hidden: Tensor) -> Iterator[Tensor]:
        head = self._head
        if type(head) is not nn.Linear:  # an adapter on it
            with contextlib.ExitStack() as hooks:
                for name, module in head.named_modules(prefix=self._head_name):
                    self._hook(hooks, name, module, None)
                with torch.no_grad():
                    raw: Tensor = head(hidden)
            yield from torch.split(raw, VOCABULARY_ROWS, dim=-1)
            return
        if self._head_weight is None:
            self._head_weight = self.read(f"{self._head_name}.weight")
        bias: Tensor | None = None
        if head.bias is not None:
            bias = self.read(f"{self._head_name}.bias").float()
        for start in range(0, len(self._head_weight), VOCABULARY_ROWS):
            rows = slice(start, start + VOCABULARY_ROWS)
            part = hidden @ self._head_weight[rows].float().T
            self._release()
            yield part if bias is None else part + bias[rows]

    def _require_same(self, shown: Tensor, hidden: Tensor) -> None:
        """Compare the model's own logits of one token with those of `logits`."""
        ours = self.logits(hidden)
        if not torch.isfinite(ours).all():
            raise ModelError(
                f"{type(self.model).__name__} computes NaN or infinity from the disk: its weights "
                "hold such numbers, or it reads weights of modules that it does not call"
            )
        if ours.shape != shown.shape or not torch.allclose(ours, shown, rtol=1e-3, atol=1e-3):
            raise ModelError(
                f"{type(self.model).__name__} computes its logits in a way of its own, so it "
                "cannot run from the disk"
            )

    def _hook(
        self,
        hooks: contextlib.ExitStack,
        name: str,
        module: nn.Module,
        before: Before | None,
    ) -> None:
        """Give ``module`` its weights for the time of its call."""
        own = self._needed(name, module)
        others = [
            one
            for other in self._read_by.get(name, ())
            for one in self._needed(other, self.model.get_submodule(other))
        ]
        if not own and not others:
            return
        stack: list[tuple[_Given, Callable[[Tensor], Tensor] | None]] = []

        def fill(_: nn.Module, args: tuple[Any, ...]) -> None:
            given = []
            for holder, key, place in own + others:
                empty: nn.Parameter = getattr(holder, key)
                if has_no_values(empty):
                    value = self._value(place, holder)
                    setattr(holder, key, nn.Parameter(value, requires_grad=False))
                    given.append((holder, key, empty))
            change = None
            if before is not None and own and args and args[0].is_floating_point():
                change = before(name, module, args[0])
            stack.append((given, change))

        def forget(_: nn.Module, __: Any, result: Any) -> Any:
            given, change = stack.pop()
            for holder, key, empty in given:
                setattr(holder, key, empty)
            self._release()
            if not (isinstance(result, Tensor) and result.is_floating_point()):
                return None
            return result.float() if change is None else change(result.float())

        hooks.callback(module.register_forward_pre_hook(fill).remove)
        hooks.callback(module.register_forward_hook(forget).remove)

    def _needed(self, name: str, module: nn.Module) -> list[tuple[nn.Module, str, str]]:
        """What a module needs to run: the holder of each parameter, its name there and in full."""
        return [  # an adapter reads the weight of its base
            (holder, key, place)
            for holder in (module, getattr(module, "base", None))
            if isinstance(holder, nn.Module)
            for key, place in self._places_of(holder, name).items()
        ]

    def _places_of(self, holder: nn.Module, name: str) -> Mapping[str, str]:
        """The names of the weights of ``holder``, which is at ``name`` or the base there."""
        if isinstance(holder, DenseExperts):  # since an adapter was put on them
            return {"weight": name.removesuffix(".base")}
        own = dict(holder.named_parameters(recurse=False))
        return {key: place for key, place in self._places.get(holder, {}).items() if key in own}

    def _value(self, name: str, holder: nn.Module) -> Tensor:
        """The weight of a module; a table stays as it is stored, because few rows are read."""
        value = self.read(name)
        return value if isinstance(holder, nn.Embedding) else value.float()


def decoder_layers(model: PreTrainedModel) -> list[str]:
    """The names of the decoder layers, in order; empty if the config does not count them."""
    count = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return [f"{name}.{index}" for index in range(len(module))]
    return []


class _Entry(nn.Module):
    """Stands for the output layer: keeps its input and computes the logits of one token."""

    def __init__(self, entered: list[Tensor], raw: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self._entered, self._raw = entered, raw
        self.weight = torch.empty(0)  # a model may ask for its type

    def forward(self, hidden: Tensor) -> Tensor:
        """(B, L, D) → (1, 1, V)."""
        self._entered.append(hidden)
        return self._raw(hidden[:1, :1])


def _keep(
    outputs: dict[str, Tensor], name: str, places: Tensor, _: nn.Module, __: Any, result: Any
) -> None:
    hidden: Tensor = result if isinstance(result, Tensor) else result[0]
    outputs[name] = hidden.flatten(0, -2)[places]
