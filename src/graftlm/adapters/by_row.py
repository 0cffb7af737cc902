"""Each row of a batch with its own adapter, on one base.

    y_n = W x_n + update of the adapter of row n (x_n)

The base's product, which reads the large weight, is computed once for all rows; each adapter adds
its update to its own rows (S-LoRA, arXiv 2311.03285; Punica, 2310.18547). If all rows have the same
adapter, base and update are computed together, as with that adapter alone.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from graftlm.adapters.adapted import adapted_modules, adapter_names
from graftlm.adapters.adapter import Adapter
from graftlm.adapters.several import SeveralAdapters, adapters_at
from graftlm.errors import TargetError
from graftlm.models.capabilities import forget
from graftlm.models.probing import being_probed

__all__ = ["AdaptersByRow"]

log = logging.getLogger(__name__)
CLOSE = {torch.float32: 1e-3, torch.float64: 1e-3}
CLOSE_NARROW = 0.35
"""Largest root mean square of the difference between rows together and alone, in standard
deviations of the logits. In 16 bits the order of sums alone changes them by up to 0.2."""


class _Rows:
    """What the rows of the next pass use, shared by all adapted modules."""

    def __init__(self) -> None:
        self.names: Sequence[str | None] = ()
        self.tokens = 0


class _OtherRowsError(Exception):
    """A module was called with other rows than those of the batch, as an expert is."""


class _ByRow(SeveralAdapters):
    """The adapters of one module, chosen by row."""

    def __init__(self, there: Adapter | SeveralAdapters, rows: _Rows) -> None:
        nn.Module.__init__(self)
        every = adapters_at(there)
        self.training = there.training
        self.base = there.base if isinstance(there, SeveralAdapters) else every[0].release()
        self.adapters = nn.ModuleList(every)
        self.rows = rows

    def forward(self, x: Tensor, *routing: Any) -> Tensor:
        """(rows, tokens, …) → (rows, tokens, …)."""
        names = self.rows.names
        by_name = {adapter.name: adapter for adapter in self.named()}
        if len(set(names)) <= 1:  # none: somebody asks the base
            adapter = by_name.get(names[0] or "") if names else None
            if adapter is None:
                return cast("Tensor", self.base(x, *routing))
            return adapter.product(self.base, x, *routing)
        if routing or tuple(x.shape[:2]) != (len(names), self.rows.tokens):
            raise _OtherRowsError
        y = cast("Tensor", self.base(x))
        for name in dict.fromkeys(names):
            if name is not None and name in by_name:
                index = torch.tensor([n for n, own in enumerate(names) if own == name])
                index = index.to(x.device)
                y[index] = by_name[name].added(self.base, y[index], x[index])
        return y


class AdaptersByRow:
    """Takes over the adapters of a model, so that each row of a batch uses its own.

    Args:
        model: a model with one or more named adapters, in evaluation mode.

    Attributes:
        together: whether rows with different adapters can be in one batch. They cannot if a module
            sees other rows than the batch's, as experts do.
    """

    def __init__(self, model: Any) -> None:
        self.names = adapter_names(model)
        self._rows = _Rows()
        for place, there in adapted_modules(model).items():
            model.set_submodule(place, _ByRow(there, self._rows))
        forget(model)
        with self.use([None], 1):
            self.together = self._mixes(model)

    @contextlib.contextmanager
    def use(self, names: Sequence[str | None], tokens: int) -> Iterator[None]:
        """Inside, row n of a pass of ``tokens`` tokens a row uses the adapter ``names[n]``.

        Raises:
            TargetError: there is no adapter of that name.
        """
        if unknown := {name for name in names if name is not None} - set(self.names):
            raise TargetError(f"there is no adapter {min(unknown)!r}; there are {self.names}")
        before = self._rows.names, self._rows.tokens
        self._rows.names, self._rows.tokens = names, tokens
        try:
            yield
        finally:
            self._rows.names, self._rows.tokens = before

    def _mixes(self, model: Any) -> bool:
        """Whether rows of different adapters together have the logits that they have alone."""
        count = min(int(model.get_input_embeddings().num_embeddings), 100)
        device = model.get_input_embeddings().weight.device
        ids = (torch.arange(10).view(2, 5) * 7 % count).to(device)
        try:
            with being_probed(model):
                return all(self._mixes_with(model, name, ids) for name in self.names)
        except _OtherRowsError:
            log.info("rows with different adapters are computed one adapter at a time")
            return False

    def _mixes_with(self, model: Any, name: str, ids: Tensor) -> bool:
        with self.use([None, name], ids.shape[1]):
            mixed = model(input_ids=ids, use_cache=False).logits
        bound = CLOSE.get(mixed.dtype, CLOSE_NARROW)
        for row, own in enumerate((None, name)):
            with self.use([own], ids.shape[1]):
                alone = model(input_ids=ids[row : row + 1], use_cache=False).logits.float()
            gap = float((mixed[row].float() - alone[0]).pow(2).mean().sqrt())
            if gap > bound * (float(alone.std()) + 5e-5):
                return False
        return True
