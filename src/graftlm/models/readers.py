"""Which modules read the weights of others that they do not call, as Mamba's mixer of `dt_proj`."""

from __future__ import annotations

from collections.abc import Collection

from torch import nn

__all__ = ["add_readers"]


def add_readers(
    read_by: dict[str, list[str]],
    model: nn.Module,
    called: Collection[str],
    needy: Collection[str],
) -> bool:
    """Give each module with weights that was not called to the nearest called one around it.

    Args:
        read_by: for each module, those that it reads; more are added.
        model: the model.
        called: the names of the modules that a forward pass called.
        needy: the names of the modules that need weights.

    Returns:
        whether there were new ones.
    """
    known = {name for names in read_by.values() for name in names}
    found = False
    for name, module in model.named_modules():
        if name not in needy or name in called or name in known:
            continue
        above = model.get_submodule(name.rpartition(".")[0])
        if getattr(above, "base", None) is module:
            continue  # an adapter gives its base the weights
        owner = name
        while owner not in called:
            owner = owner.rpartition(".")[0]
        read_by.setdefault(owner, []).append(name)
        found = True
    return found
