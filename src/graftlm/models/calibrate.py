"""Stores the linear layers of a model one after another, each for the inputs it really gets.

One forward pass from the disk, in which the calibration rows stand twice: as the exact model passes
them on, with inputs X of a layer, and as the layers stored so far do, with inputs X̂. When they
arrive at a linear layer, the layer is stored so that its output is that of the exact model
(asymmetric calibration, GPTAQ, arXiv 2504.02692):

    Ŵ ≈ argmin ‖X Wᵀ - X̂ Ŵᵀ‖²
    1. H = X̂ᵀ X̂                                over all tokens of the rows
    2. T = W + W (X - X̂)ᵀ X̂ (H + λ I)⁻¹        the least squares without rounding
    3. Ŵ = the format's `quantize_for(T, H)`    which keeps ‖X̂ (T - Ŵ)ᵀ‖ small (GPTQ, 2210.17323)

Then the first rows go on with W, and the second with Ŵ. So a layer makes up for the errors of
those before it, where GPTQ alone passes them on. A mixture of experts is fitted without step 2 (T
= W): a token that is routed to another expert tells nothing of a layer's error. A layer that gets
rows which are not these (a routed expert) is fitted to all its inputs, without step 2 too. A layer
whose weight the model reads without calling it is rounded plainly. Memory is the activations of
the rows, twice, and one layer; a stored weight is on the disk as soon as it is made.
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
from graftlm.models.experts import expert_weights
from graftlm.models.named_weights import NamedWeights, store
from graftlm.models.safetensors_file import StoredTensor, read_header, read_tensor
from graftlm.models.streamed import Reader

__all__ = ["CalibratedWeights", "calibrate"]

DAMPING = 0.5
"""λ as a share of the mean of H's diagonal. With little of it, T fits to the errors that the layers
before it make on the calibration rows only (docs/merge.md)."""


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
        rows: the calibration rows; they pass together, twice.
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
    mask = batch.attention_mask
    routed = bool(expert_weights(weights.empty))
    twice = batch.input_ids.repeat(2, 1), None if mask is None else mask.repeat(2, 1)

    def before(name: str, module: nn.Module, x: Tensor) -> Callable[[Tensor], Tensor] | None:
        place = f"{name}.weight"
        if place not in layers:
            return None
        held: Tensor = module.weight  # type: ignore[assignment]
        weight = held.T.contiguous() if layers[place] else held.detach()
        exact = _exact_rows(x, twice[0])
        if place not in made:
            gram, drift = _grams(x, exact, mask)
            kind = dtype or weights.dtype(place)
            known = None if start is None else start(place)
            aim = weight if drift is None or routed else _aim(weight, gram, drift)
            made.keep(place, format.quantize_for(aim, settings, gram, kind, known))
        dense = made[place].dequantize(torch.float32)
        module.weight = nn.Parameter(dense.T if layers[place] else dense, requires_grad=False)
        if exact is None:
            return None
        lost = x[:exact] @ (weight - dense).T

        def restore(y: Tensor) -> Tensor:
            return torch.cat([y[:exact] + lost, y[exact:]])

        return restore

    weights.streamed(read).run(*twice, before=before)
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


def _exact_rows(x: Tensor, ids: Tensor) -> int | None:
    """How many of the first entries of ``x`` belong to the exact model.

    ``x`` is (rows, L, in) or (rows · L, in) for token ids (rows, L); ``None`` if it is neither.
    """
    if len(x) == (ids.numel() if x.ndim == 2 else len(ids)):
        return len(x) // 2
    return None


def _grams(x: Tensor, exact: int | None, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """X̂ᵀ X̂ and (X - X̂)ᵀ X̂, over the tokens that are not padding."""
    if exact is None:
        flat = x.reshape(-1, x.shape[-1])
        return flat.T @ flat, None
    first, second = (part.reshape(-1, x.shape[-1]) for part in (x[:exact], x[exact:]))
    if mask is not None and len(first) == mask.numel():
        first, second = first[mask.reshape(-1)], second[mask.reshape(-1)]
    return second.T @ second, (first - second).T @ second


def _aim(weight: Tensor, gram: Tensor, drift: Tensor) -> Tensor:
    """T, the (out, in) float32 weight whose products with X̂ are nearest to X Wᵀ."""
    damping = DAMPING * float(gram.diagonal().mean())
    if not damping > 0:
        return weight
    damped = gram.double() + damping * torch.eye(len(gram), device=gram.device)
    factor = torch.linalg.cholesky(damped)
    found = torch.cholesky_solve((weight @ drift).double().T, factor).T
    return weight + found.float()
