"""The base of all settings, and the types of their values."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import pydantic

__all__ = ["Names", "Place", "Rate", "Settings", "Strength", "Text"]


def _written(text: str) -> str:
    """Refuse text that a file or a file name cannot contain."""
    if "\0" in text:
        raise ValueError("must not have a null character")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("must be valid Unicode (it has a lone surrogate)") from None
    return text


Text = Annotated[str, pydantic.AfterValidator(_written)]


def _at_home(text: str) -> str:
    """A folder in the home folder: a YAML file says ``~/runs``, and no shell reads it."""
    return str(Path(text).expanduser()) if text.startswith("~/") else text


Place = Annotated[Text, pydantic.AfterValidator(_at_home)]
"""Text that may name a file or a folder."""
Names = Annotated[tuple[Text, ...], pydantic.Strict(False)]
"""A list in YAML, a list or tuple in Python."""
Rate = Annotated[float, pydantic.Field(gt=0, le=1000)]
Strength = Annotated[float, pydantic.Field(gt=0, le=1e9)]


class Settings(pydantic.BaseModel):
    """Base of all settings: immutable; refuses unknown names and values of another type.

    A null means the default, as if the setting were missing.
    """

    model_config = pydantic.ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )

    @pydantic.model_validator(mode="before")
    @classmethod
    def _null_is_the_default(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        return {name: value for name, value in values.items() if value is not None}
