"""A few rows of an embedding table, or of an output head, that train alone.

    e_i = R[k]  if i = indices[k], else W[i]             R [K, dim]  `rows`, float32
    z_i = h · R[k] + b_i  if i = indices[k], else h · W[i] + b_i

PEFT's `trainable_token_indices`: R holds the rows themselves and not their distance from W, so that
new tokens have the same meaning on every copy of the base, whatever stands in their rows there.
Memory: 16 bytes a trained number, for K rows and not for the table.

A head that shares the table's weight follows the table: its rows are the same parameter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from graftlm.adapters.adapter import DEFAULT, Adapter
from graftlm.frozen.embedding import FrozenEmbedding, FrozenOutput

__all__ = ["TrainedTokens"]


class TrainedTokens(Adapter):
    """An embedding table or an output head with some trained rows.

    Args:
        base: an `nn.Embedding` or an `nn.Linear`.
        indices: the token ids.
        name: the adapter's name.
        leader: the one whose rows this one shares.
    """

    variant = "trained"
    beside = "token table or output head"
    peft_keys: ClassVar[Mapping[str, str]] = {"rows": "token_adapter.trainable_tokens_delta"}
    own_rows: nn.Parameter
    ids: Tensor
    order: Tensor
    sorted: Tensor

    def __init__(
        self,
        base: nn.Module,
        indices: Sequence[int],
        name: str = DEFAULT,
        leader: TrainedTokens | None = None,
    ) -> None:
        self.indices = tuple(indices)
        self._leader = [leader] if leader is not None else []  # a list, so that it is no submodule
        super().__init__(base, 0, 0.0, name=name)
        weight = _weight(base)
        ids = torch.tensor(self.indices, device=weight.device)
        self.register_buffer("ids", ids, persistent=False)
        ascending, order = ids.sort()
        self.register_buffer("sorted", ascending, persistent=False)
        self.register_buffer("order", order, persistent=False)

    @classmethod
    def adapts(cls, module: nn.Module) -> bool:
        """Tables and heads with a weight that is not stored in a format."""
        plain = isinstance(module, nn.Embedding | nn.Linear)
        return plain and not isinstance(module, FrozenEmbedding | FrozenOutput)

    @classmethod
    def shapes(cls, base: nn.Module, rank: int) -> dict[str, tuple[int, ...]]:
        """None: the rows are copied by `reset`."""
        return {}

    def reset(self) -> None:
        """Copy the rows of the frozen weight."""
        if self._leader:
            return
        frozen = _weight(self.base).detach()
        taken = frozen[torch.tensor(self.indices, device=frozen.device)]
        rows = torch.empty_like(taken, dtype=torch.float32).copy_(taken)
        self.register_parameter("own_rows", nn.Parameter(rows))

    @property
    def rows(self) -> nn.Parameter:
        """R [K, dim]."""
        if self._leader:
            return self._leader[0].rows
        return self.own_rows

    @property
    def follows(self) -> bool:
        """Whether its parameter is that of another module."""
        return bool(self._leader)

    def adapter_parameters(self) -> dict[str, nn.Parameter]:
        """The rows, unless they are another module's."""
        return {} if self._leader else {"own_rows": self.rows}

    def forward(self, x: Tensor) -> Tensor:
        """The base's output, with that of the trained rows."""
        if not self.enabled:
            y: Tensor = self.base(x)
            return y
        return self.product(self.base, x)

    def product(self, base: nn.Module, x: Tensor, *_: Any) -> Tensor:
        """The base's output, with that of the trained rows in the place of their old values."""
        return self._replaced_in(base, base(x), x)

    def added(self, base: nn.Module, y: Tensor, x: Tensor, *_: Any) -> Tensor:
        """``y`` with the output of the trained rows."""
        return self._replaced_in(base, y, x)

    def _replaced_in(self, base: nn.Module, y: Tensor, x: Tensor) -> Tensor:
        rows = self.rows.to(_weight(base).dtype)
        if isinstance(base, nn.Embedding):
            place = torch.searchsorted(self.sorted, x.contiguous()).clamp_(
                max=len(self.indices) - 1
            )
            known = self.sorted[place] == x
            padding = base.padding_idx
            at = self.indices.index(padding) if padding in self.indices else None
            looked_up = F.embedding(self.order[place], rows, at)
            scale = getattr(base, "embed_scale", None)
            if scale is not None:
                looked_up = looked_up * (scale.to(rows.dtype) if hasattr(scale, "to") else scale)
            return torch.where(known[..., None], looked_up.to(y.dtype), y)
        if not x.numel():
            return y
        bias = cast("nn.Linear", base).bias
        columns = F.linear(x, rows, None if bias is None else bias[self.ids])
        return y.index_copy(-1, self.ids, columns.to(y.dtype))

    def delta(self, weight: Tensor) -> Tensor:
        """The change of ``weight``."""
        return self.replaced("weight", weight) - weight.float()

    def replaced(self, part: str, tensor: Tensor) -> Tensor:
        """The weight with the trained rows."""
        rows, ids = self.rows.detach().float(), torch.tensor(self.indices, device=tensor.device)
        return tensor.float().index_copy(0, ids, rows.to(tensor.device))

    def describe(self) -> str:
        """What it trains, for a report."""
        return f"{len(self.indices)} rows"

    def peft_state(self) -> dict[str, Tensor]:
        """The rows; PEFT stores shared ones once, with the table."""
        return {} if self._leader else {self.peft_keys["rows"]: self.rows.detach()}

    @torch.no_grad()
    def load_peft_state(self, state: Mapping[str, Tensor]) -> None:
        """Copy in."""
        if self._leader:
            return
        value = state[self.peft_keys["rows"]]
        if self.rows.is_meta:
            self.own_rows = nn.Parameter(value.float())
        else:
            self.rows.copy_(value)

    @property
    def weight(self) -> Tensor:
        """The weight in use, for model code that reads it."""
        frozen = _weight(self.base)
        if not self.enabled:
            return frozen
        return frozen.index_copy(0, self.ids, self.rows.to(frozen.dtype))

    def __getattr__(self, name: str) -> Any:
        """Look up missing attributes in the base: sizes, ``bias``."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("base"), name)

    def extra_repr(self) -> str:
        """Shown by ``print(model)``."""
        return f"{self.name}: {len(self.indices)} trained rows"


def _weight(base: nn.Module) -> Tensor:
    weight: Tensor = base.weight  # type: ignore[assignment]
    return weight
