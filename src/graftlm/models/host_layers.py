"""A base larger than the card: its layers stay in host memory and visit the card one by one.

    host    layer 0   layer 1   …   layer n-1           page-locked, one block of bytes a layer
                         │ copied while layer 0 computes
    card    slot 0: layer 0    slot 1: layer 1          two slots of the size of the largest layer

The first product of a layer asks for its slot (`HostLayers.use`). That starts the copy of the layer
that comes next, the one after it in a forward pass and the one before it in a backward pass, into
the other slot. The copy waits for all computing that was started, thus for all that read the slot.
A layer in use is never overwritten, so its tensors may be read at any time.

Only frozen matrices move. Adapters, norms, embeddings and the output head stay on the card. The
step must recompute activations (gradient checkpointing): without it autograd would keep each
layer's slot until the backward pass. Two times the bytes of all layers cross the link a pass.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from graftlm._compat.tracing import in_backward_pass
from graftlm.errors import ModelError
from graftlm.frozen.experts import FrozenExperts
from graftlm.frozen.stored_weight import StoredWeight
from graftlm.system.transfers import Transfers

__all__ = ["HostLayers", "host_layers", "layer_sizes", "layers_on_host"]

ALIGNED = 256
"""Bytes to which each tensor in a block is aligned, as torch's allocator does."""


@dataclasses.dataclass(frozen=True)
class _Place:
    """Where one tensor of a layer lies: in which module, and at which byte of the block."""

    module: nn.Module
    name: str
    start: int
    shape: torch.Size
    dtype: torch.dtype

    def put(self, block: Tensor) -> None:
        """Let the module read its tensor from ``block``, (bytes,) uint8."""
        size = math.prod(self.shape) * self.dtype.itemsize
        view = block[self.start : self.start + size].view(self.dtype).view(self.shape)
        is_parameter = isinstance(getattr(self.module, self.name), nn.Parameter)
        value = nn.Parameter(view, requires_grad=False) if is_parameter else view
        setattr(self.module, self.name, value)


class HostLayers:
    """The layers of a model, in host memory, and the two slots on the card.

    Args:
        layers: the layers in the order of the forward pass.
        device: the card, with its number.
    """

    def __init__(self, layers: list[nn.Module], device: torch.device) -> None:
        self._transfers = Transfers(device)
        self._places: list[list[_Place]] = []
        self._blocks: list[Tensor] = []
        for layer in layers:
            self._take(layer)
        largest = max(block.numel() for block in self._blocks)
        self._slots = [torch.empty(largest, dtype=torch.uint8, device=device) for _ in range(2)]
        self._held: list[int | None] = [None, None]
        self._events: list[Any] = [None, None]
        self._current: int | None = None
        for index, layer in enumerate(layers):
            for module in _readers(layer):
                module.register_forward_pre_hook(functools.partial(self._before, index))

    def use(self, index: int) -> None:
        """Put layer ``index`` on the card, and start the copy of the layer that comes next."""
        if index == self._current:
            return
        slot = self._fetch(index)
        self._transfers.wait(self._events[slot])
        if self._current is not None:
            self._install(self._current, self._blocks[self._current])
        self._install(index, self._slots[slot])
        self._current = index
        following = index - 1 if in_backward_pass() else index + 1
        if 0 <= following < len(self._blocks):
            self._fetch(following)

    def _before(self, index: int, *_: Any) -> None:
        self.use(index)

    def _fetch(self, index: int) -> int:
        """The slot of layer ``index``; its copy is started if it is in none."""
        if index in self._held:
            return self._held.index(index)
        slot = 1 if self._current is not None and self._held[0] == self._current else 0
        block = self._blocks[index]
        self._held[slot] = index
        self._events[slot] = self._transfers.start(self._slots[slot][: block.numel()], block)
        return slot

    def _install(self, index: int, block: Tensor) -> None:
        for place in self._places[index]:
            place.put(block)

    def _take(self, layer: nn.Module) -> None:
        """Move the frozen matrices of a layer into one block of host memory."""
        places, start = [], 0
        tensors = list(_frozen_tensors(layer))
        for module, name, tensor in tensors:
            places.append(_Place(module, name, start, tensor.shape, tensor.dtype))
            start += -(-tensor.nbytes // ALIGNED) * ALIGNED
        block = self._transfers.host_buffer(start)
        for place, (_, _, tensor) in zip(places, tensors, strict=True):
            flat = tensor.detach().contiguous().view(-1).view(torch.uint8)
            block[place.start : place.start + flat.numel()].copy_(flat)
            place.put(block)
        for module in {module for module, _, _ in tensors}:
            if isinstance(module, StoredWeight | FrozenExperts):
                module.moved(lambda tensor: tensor)  # it lets go of the tensors from before
        self._places.append(places)
        self._blocks.append(block)


def layers_on_host(model: nn.Module, device: torch.device) -> HostLayers:
    """Move a model from host memory to ``device``, its layers' frozen matrices excepted.

    Args:
        model: on the CPU, with its adapters; changed in place.
        device: the card, with its number.

    Raises:
        ModelError: the model has no layers that can be recomputed, or trains their matrices.
    """
    layers = host_layers(model)
    if not layers or not any(True for layer in layers for _ in _frozen_tensors(layer)):
        raise ModelError(
            f"model.offload=layers: {type(model).__name__} has no layers of frozen matrices that "
            "transformers can recompute. Use model.offload=none."
        )
    held = HostLayers(layers, device)
    stay = {(id(module), name) for layer in layers for module, name, _ in _frozen_tensors(layer)}
    moved: dict[int, Tensor] = {}  # a tensor of two modules stays one
    for module in model.modules():
        parameters = module.named_parameters(recurse=False, remove_duplicate=False)
        for name, tensor in [*parameters, *module.named_buffers(recurse=False)]:
            if (id(module), name) in stay:
                continue
            if id(tensor) not in moved:
                there = tensor.detach().to(device)
                if isinstance(tensor, nn.Parameter):
                    there = nn.Parameter(there, tensor.requires_grad)
                moved[id(tensor)] = there
            setattr(module, name, moved[id(tensor)])
    return held


def host_layers(model: nn.Module) -> list[nn.Module]:
    """The layers that are recomputed one by one, in the order of the modules."""
    found: list[nn.Module] = []
    inside: set[int] = set()
    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer) and id(module) not in inside:
            found.append(module)
            inside.update(map(id, module.modules()))
    return found


def layer_sizes(model: nn.Module) -> list[int]:
    """Bytes of the frozen matrices of each layer; the model may be on the meta device."""
    return [
        sum(tensor.nbytes for _, _, tensor in _frozen_tensors(layer))
        for layer in host_layers(model)
    ]


def _frozen_tensors(layer: nn.Module) -> Iterator[tuple[nn.Module, str, Tensor]]:
    """Each stored tensor and each frozen matrix of a layer, with its module and name."""
    for module in layer.modules():
        if isinstance(module, StoredWeight):
            for name, tensor in module.frozen.tensors().items():
                yield module, name, tensor
        elif isinstance(module, FrozenExperts):
            for name, tensor in module.named_buffers(recurse=False):
                yield module, name, tensor
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.ndim > 1 and not parameter.requires_grad:
                yield module, name, parameter


def _readers(layer: nn.Module) -> list[nn.Module]:
    """The modules inside a layer that hold a frozen matrix or contain one that does."""
    return [
        module
        for module in layer.modules()
        if module is not layer and any(True for _ in _frozen_tensors(module))
    ]
