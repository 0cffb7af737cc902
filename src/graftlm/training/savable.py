"""Checks before the first step that the result of a run can be saved."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from graftlm.adapters.peft_config import adapter_config
from graftlm.errors import GraftLMError, ModelError
from graftlm.files import temporary_folder
from graftlm.training.run import Run

__all__ = ["require_savable"]


def require_savable(run: Run) -> None:
    """Save everything except the weights into a temporary folder.

    Raises:
        ModelError: a part cannot be saved; the message names it and the remedy.
    """
    model = run.model
    parts: dict[str, Callable[[Path], object]] = {"the tokenizer": run.tokenizer.save_pretrained}
    if run.config.method == "full":
        parts["the model's config.json"] = model.config.save_pretrained
        if model.generation_config is not None:
            parts["the model's generation_config.json"] = model.generation_config.save_pretrained
    else:
        parts["the adapter's settings"] = lambda _: adapter_config(model, run.config.model.name)
    with temporary_folder("save") as folder:
        for what, save in parts.items():
            with _refusal_named(what):
                save(folder)


@contextlib.contextmanager
def _refusal_named(what: str) -> Iterator[None]:
    """Turn an error of transformers about this part into a `ModelError`."""
    try:
        yield
    except GraftLMError:
        raise
    except Exception as error:
        why = " ".join(str(error).split())[:400]
        raise ModelError(
            f"{what} could not be saved after training: {why}. Mend it in the model folder, or "
            "before you pass the model."
        ) from error
