"""The index of the layer that a module stands in, as PEFT's `layers_to_transform` reads names.

model.layers.3.mlp.up_proj → 3          by default: the first number after a name
decoder.blocks.0.h.7.attn → 7           with the pattern `h`
"""

from __future__ import annotations

import re
from collections.abc import Sequence

__all__ = ["in_layers"]


def in_layers(name: str, layers: Sequence[int], patterns: Sequence[str] = ()) -> bool:
    """Whether the module ``name`` stands in one of ``layers``; all do if there are none named.

    Args:
        name: the module's full name.
        layers: indices.
        patterns: names (regular expressions) of the list of layers; the first that matches counts.
    """
    if not layers:
        return True
    expressions = [rf"(?:^|.*?\.){pattern}" for pattern in patterns] or [r".*?\.[^.]*"]
    for expression in expressions:
        if found := re.match(rf"{expression}\.(\d+)\.", name):
            return int(found[1]) in layers
    return False
