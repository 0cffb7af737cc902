"""The keys of adapters on modules that transformers renames while it reads a checkpoint.

Written so that PEFT's renaming ends at the module; see `_compat/peft_renaming.py`. Read under
either name.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

from torch import Tensor, nn
from transformers import PreTrainedModel

from graftlm._compat.compiled import uncompiled
from graftlm._compat.peft_renaming import PeftRenaming
from graftlm.adapters.adapted import base_modules

__all__ = ["as_in_model", "as_peft_renames"]

log = logging.getLogger(__name__)
LORA = ".lora_"
"""PEFT renames only keys that contain this."""


def as_peft_renames(model: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under the keys that PEFT reads as theirs; warns where there is no such key.

    Args:
        model: the model, with or without adapters.
        tensors: by their key without PEFT's prefix.
    """
    plain = uncompiled(model)
    if not isinstance(plain, PreTrainedModel):
        return dict(tensors)
    renaming = PeftRenaming(plain)
    written = {key: renaming.written(key) if LORA in key else key for key in tensors}
    if lost := [key for key, new in written.items() if new is None]:
        log.warning(
            "PEFT cannot read %d of the adapter's %d tensors, %s first: it renames them to modules "
            "that %s does not have. graftlm reads the adapter; merge it for use elsewhere.",
            *(len(lost), len(tensors), lost[0], type(plain).__name__),
        )
    return {written[key] or key: tensor for key, tensor in tensors.items()}


def as_in_model(model: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a file under the names of the model's own modules.

    Args:
        model: the model, with or without adapters.
        tensors: by their key without PEFT's prefix.
    """
    modules = base_modules(model)
    unknown = [
        key
        for key in tensors
        if LORA in key and key.partition(LORA)[0].removesuffix(".base_layer") not in modules
    ]
    plain = uncompiled(model)
    if not unknown or not isinstance(plain, PreTrainedModel):
        return dict(tensors)
    renaming = PeftRenaming(plain)
    new = {key: renaming.read(key) for key in unknown}
    found = {
        key: name
        for key, name in new.items()
        if name.partition(LORA)[0].removesuffix(".base_layer") in modules and name not in tensors
    }
    return {found.get(key, key): tensor for key, tensor in tensors.items()}
