"""Loading for one of several processes: of each large frozen tensor it reads only its part.

    Unread    a tensor of a checkpoint that the loader passes on without reading it
    Shares    the parts that this process holds, by the name of their parameter

The model keeps a tensor of the whole shape on the meta device in the place of each; an engine that
shards puts the parts in (`graftlm.distributed.sharded`). Small tensors (norms, biases) are read
whole.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from graftlm.frozen.experts import FrozenExperts
from graftlm.frozen.share import Share, ShareOfWeight, chunk, cut
from graftlm.frozen.weight import FrozenWeight
from graftlm.models.safetensors_file import Checkpoint

if TYPE_CHECKING:
    from typing import Self  # Python 3.11; not imported when the package runs

__all__ = ["Shares", "Unread", "move_values", "read_now"]


@dataclasses.dataclass(frozen=True)
class Unread:
    """A tensor of a checkpoint of which nothing is read; a `DenseSource` if it is a matrix.

    Attributes:
        checkpoint: the files.
        name: its key in them.
        dtype: the type in which it is read.
    """

    checkpoint: Checkpoint
    name: str
    dtype: torch.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape in the file."""
        return self.checkpoint[self.name].shape

    def to(self, device: Any = None, dtype: torch.dtype | None = None) -> Unread:
        """The same in another type. The device is chosen when a part is read."""
        return self if dtype is None else dataclasses.replace(self, dtype=dtype)

    def elements(self, start: int, stop: int) -> Tensor:
        """The elements [start, stop), flattened by rows, copied from the file."""
        return self.checkpoint.elements(self.name, start, stop).to(self.dtype)

    def whole(self) -> Tensor:
        """The whole tensor."""
        return self.checkpoint.read(self.name).to(self.dtype)


def read_now(tensor: Any) -> Any:
    """A tensor that may be unread, read."""
    return tensor.whole() if isinstance(tensor, Unread) else tensor


def move_values(model: nn.Module, device: torch.device) -> None:
    """Move what has values to ``device``; a tensor without values waits for its part."""
    moved: dict[int, nn.Parameter] = {}  # a parameter of two modules stays one
    for module in model.modules():
        for name, old in list(module.named_parameters(recurse=False)):
            if not old.is_meta:
                new = moved.get(id(old)) or nn.Parameter(old.detach().to(device), old.requires_grad)
                moved[id(old)] = new
                setattr(module, name, new)
        for name, buffer in list(module.named_buffers(recurse=False)):
            if not buffer.is_meta:
                setattr(module, name, buffer.to(device))


class Shares:
    """The parts of the frozen tensors that one process holds.

    Args:
        share: which process it is.

    Attributes:
        parts: the part (rows, …) of each parameter, by its name in the loaded model.
        wanted: the parameters that are read in parts; the loader's plug-in sets them.
    """

    def __init__(self, share: Share) -> None:
        self.share = share
        self.parts: dict[str, Tensor] = {}
        self.wanted: frozenset[str] = frozenset()

    def __deepcopy__(self, _: Mapping[int, Any]) -> Self:
        """The same object: transformers copies the settings of its loader."""
        return self

    def take_rows(self, name: str, tensor: Tensor | Unread, device: torch.device) -> None:
        """Keep the rows of the dense parameter ``name`` that this process holds."""
        if isinstance(tensor, Tensor):  # made of several tensors of the checkpoint
            self.parts[name] = cut(tensor, self.share).clone()
            return
        rows, *others = tensor.shape
        start, stop = chunk(rows, self.share)
        width = math.prod(others)
        part = tensor.elements(start * width, stop * width).view(stop - start, *others)
        self.parts[name] = part.to(device)

    def take(self, path: str, shared: ShareOfWeight) -> FrozenWeight:
        """Keep the parts of the weight of the module ``path``; the stored form without values."""
        self.parts |= {f"{path}.{name}": part for name, part in shared.parts.items()}
        return shared.weight

    def take_experts(self, name: str, stack: FrozenExperts) -> None:
        """Keep the experts of the fused parameter ``name`` that this process holds."""
        parts = stack.leave_share(self.share)
        self.parts |= {f"{name}.{leaf}": part for leaf, part in parts.items()}
