"""Stores the linear layers of a model one after another, each for the inputs it really gets.

One forward pass over the calibration rows, from the disk. When a linear layer's input X arrives,

    1. H = Xᵀ X                                  over all tokens of the rows
    2. Ŵ = the format's `quantize_for(W, H)`
    3. the pass goes on with Ŵ,

so each layer is fitted to inputs that contain the errors of the layers before it (GPTQ, arXiv
2210.17323). A layer whose weight the model reads without calling it is rounded plainly. Memory is
the activations of the rows and one layer; a stored weight is on the disk as soon as it is made.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from graftlm.data.batch import collate
from graftlm.data.example import Example
from graftlm.errors import ModelError
from graftlm.frozen.weight import FrozenWeight, StorageSettings
from graftlm.models.named_weights import NamedWeights, store
from graftlm.models.safetensors_file import StoredTensor, read_header, read_tensor
from graftlm.models.streamed import Reader

__all__ = ["CalibratedWeights", "calibrate"]


class CalibratedWeights:
    """The stored weights of a calibration, by name; their tensors lie in a folder.

    Args:
        folder: an existing folder for the files; it must live as long as the weights are read.

    Attributes:
        plain: the names of those that are rounded plainly, since no call told their inputs.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.plain: list[str] = []
        self._made: dict[str, tuple[FrozenWeight, dict[str, StoredTensor]]] = {}

    def keep(self, name: str, weight: FrozenWeight) -> None:
        """Write the tensors of ``weight``."""
        file = self._folder / f"{len(self._made)}.safetensors"
        safetensors.torch.save_file(weight.tensors(), file)
        tensors = {key: torch.empty(0, dtype=t.dtype) for key, t in weight.tensors().items()}
        self._made[name] = (weight.with_tensors(tensors), read_header(file))

    def __contains__(self, name: str) -> bool:
        return name in self._made

    def __getitem__(self, name: str) -> FrozenWeight:
        weight, places = self._made[name]
        return weight.with_tensors({key: read_tensor(one) for key, one in places.items()})


def calibrate(
    weights: NamedWeights,
    read: Reader,
    layers: Mapping[str, bool],
    rows: Sequence[Example],
    pad_id: int | None,
    format: type[FrozenWeight],
    settings: StorageSettings,
    folder: Path,
    dtype: torch.dtype | None = None,
    start: Callable[[str], FrozenWeight] | None = None,
) -> CalibratedWeights:
    """Store ``layers`` for the inputs that ``rows`` give them.

    Args:
        weights: of the model's folder.
        read: the exact weights.
        layers: the weights to store, and whether each is held transposed.
        rows: the calibration rows; they pass together.
        pad_id: any token id.
        format: the format; it defines `quantize_for`.
        settings: its settings.
        folder: where the stored weights go; an existing folder.
        dtype: the type that a stored weight is decoded to; by default its own.
        start: gives, by name, a stored weight to start from.

    Raises:
        ModelError: the model cannot run from the disk, or a layer never ran, so its inputs are not
            known.
    """
    made = CalibratedWeights(folder)
    batch = collate(rows, pad_id)

    def before(name: str, module: nn.Module, x: Tensor) -> None:
        place = f"{name}.weight"
        if place not in layers:
            return
        held: Tensor = module.weight  # type: ignore[assignment]
        weight = held.T.contiguous() if layers[place] else held.detach()
        if place not in made:
            gram = _gram(x, batch.attention_mask)
            kind = dtype or weights.dtype(place)
            known = None if start is None else start(place)
            made.keep(place, format.quantize_for(weight, settings, gram, kind, known))
        dense = made[place].dequantize(torch.float32)
        module.weight = nn.Parameter(dense.T if layers[place] else dense, requires_grad=False)

    weights.streamed(read).run(batch.input_ids, batch.attention_mask, before=before)
    unasked = {f"{name}.weight" for names in weights.read_by.values() for name in names}
    for name in [name for name in layers if name in unasked and name not in made]:
        weight = (
            start(name) if start is not None else store(read(name), layers[name], format, settings)
        )
        made.keep(name, weight.of_type(dtype or weights.dtype(name)))
        made.plain.append(name)
    if lost := [name for name in layers if name not in made]:
        raise ModelError(
            f"{lost[0]} was never called on the calibration rows, so it cannot be fitted to them "
            f"({len(lost)} such layers). Quantise this model without calibration."
        )
    return made


def _gram(x: Tensor, mask: Tensor | None) -> Tensor:
    """Xᵀ X over the tokens that are not padding."""
    flat = x.reshape(-1, x.shape[-1])
    if mask is not None and x.shape[:-1] == mask.shape:
        flat = x[mask]
    return flat.T @ flat
