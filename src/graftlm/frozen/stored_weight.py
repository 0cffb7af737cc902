"""A module that holds a frozen weight, so that its tensors move, save and shard with a model."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from graftlm._compat.torch_objects import buffers_of, parameters_of
from graftlm.frozen.keeps_types import KeepsTypes
from graftlm.frozen.weight import FrozenWeight

__all__ = ["StoredWeight"]

RESERVED = ("weight", "bias", "in_features", "out_features")


class StoredWeight(KeepsTypes):
    """Holds the tensors of a `FrozenWeight` as buffers of the same names.

    They move with `.to(device)` and appear in `state_dict()`. Their types are part of the format:
    `.half()` and `.to(torch.bfloat16)` do not change them.

    Raises:
        TypeError: a tensor has a name that the module uses itself.
    """

    def __init__(self, weight: FrozenWeight) -> None:
        super().__init__()
        tensors = weight.tensors()
        for name, tensor in tensors.items():
            if name in RESERVED or hasattr(type(self), name) or hasattr(self, name):
                raise TypeError(
                    f"format {weight.format!r} names a tensor {name!r}, which is an attribute of "
                    f"{type(self).__name__}: rename it in {type(weight).__name__}.tensors()"
                )
            self.register_buffer(name, tensor)
        self._frozen = weight
        self._held: dict[str, Tensor | None] = {**tensors}

    @property
    def frozen(self) -> FrozenWeight:
        """The weight over the buffers as they are now; nothing is copied."""
        buffers, parameters = buffers_of(self), parameters_of(self)
        for name, tensor in self._held.items():
            if (buffers[name] if name in buffers else parameters[name]) is not tensor:
                self._held = {n: buffers[n] if n in buffers else parameters[n] for n in self._held}
                self._frozen = self._frozen.with_tensors(self._held)  # type: ignore[arg-type]
                break
        return self._frozen

    def hold_as_parameters(self) -> None:
        """Make the tensors frozen parameters, which an engine can shard; single numbers stay."""
        buffers = buffers_of(self)
        for name, tensor in self._held.items():
            if tensor is not None and tensor.ndim > 0 and name in buffers:
                delattr(self, name)
                self.register_parameter(name, nn.Parameter(tensor, requires_grad=False))

    def forward(self, ids: Tensor) -> Tensor:
        """Rows (..., in_features) of the weight for ``ids`` (...), in float32."""
        return self.frozen.rows(ids)

    def moved(self, move: Callable[[Tensor], Tensor]) -> None:
        """Release the tensors from before the move, which would otherwise stay in memory."""
        self._frozen = self.frozen
