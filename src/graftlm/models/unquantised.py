"""Counts the matrices that a model with layers in a weight format holds in 16 or 32 bits.

Embeddings and the output head stay so by design. What else stays is said: weights whose layout
graftlm does not know (the joined experts of DBRX are plain parameters of two dimensions), and
linear layers whose class or model asks for a dense weight.
"""

from __future__ import annotations

import logging
import math
import re
from typing import Any

from torch import nn

from graftlm.frozen.modules import stored_weights

__all__ = ["report_unquantised", "unquantised"]

SMALL = 0.01
"""Kinds of weights below this share of the model are not worth a line: norms, routers, decays."""
NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")

logger = logging.getLogger("graftlm")


def unquantised(model: Any) -> dict[str, tuple[int, int]]:
    """The kinds of matrices in 16 or 32 bits beside embeddings and head: name to (count, weights).

    A kind is a name with ``*`` in the place of numbers. Empty if no layer is in a weight format.
    """
    stored = sum(math.prod(weight.shape) for weight in stored_weights(model))
    if not stored:
        return {}
    head = model.get_output_embeddings()
    by_design = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, nn.Embedding | nn.Conv1d | nn.Conv2d | nn.Conv3d) or module is head
        for parameter in module.parameters(recurse=False)
    }
    kinds: dict[str, tuple[int, int]] = {}
    every = stored
    for name, parameter in model.named_parameters():
        every += parameter.numel()
        if parameter.ndim > 1 and id(parameter) not in by_design:
            kind = NUMBER.sub("*", name)
            count, weights = kinds.get(kind, (0, 0))
            kinds[kind] = count + 1, weights + parameter.numel()
    return {kind: found for kind, found in kinds.items() if found[1] >= SMALL * every}


def report_unquantised(model: Any) -> None:
    """Log a warning that names the kinds of `unquantised`, the largest first."""
    kinds = sorted(unquantised(model).items(), key=lambda item: -item[1][1])
    if not kinds:
        return
    names = ", ".join(f"{kind} ({count})" for kind, (count, _) in kinds[:4])
    more = f" and {len(kinds) - 4} more kinds" if len(kinds) > 4 else ""
    logger.warning(
        "%d matrices of %.3g weights stay in %s, not in a weight format: %s%s",
        sum(count for _, (count, _) in kinds),
        sum(weights for _, (_, weights) in kinds),
        str(model.dtype).removeprefix("torch."),
        names,
        more,
    )
