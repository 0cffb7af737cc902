"""Write `docs/settings.md` from the settings' declarations in `graftlm.config`."""

from __future__ import annotations

import typing
from pathlib import Path
from typing import Annotated, Any

from graftlm.config import DataConfig, LoRAConfig, ModelConfig, RunConfig, Settings, TrainConfig

SECTIONS: list[tuple[str, type[Settings]]] = [
    ("model", ModelConfig),
    ("data", DataConfig),
    ("lora", LoRAConfig),
    ("train", TrainConfig),
]

HEAD = """# Settings

Generated from `src/graftlm/config.py` by `python docs/generate_settings.py`; do not edit.

In YAML a section is a mapping; on the command line, `--set section.name=value`:

```yaml
method: qlora
model: {name: gemma-3-270m}
data: {train: rows.jsonl}
train: {steps: 200, learning_rate: 5e-4}
```
"""


def page() -> str:
    """The whole page, as Markdown."""
    top = [name for name in RunConfig.model_fields if name not in dict(SECTIONS)]
    parts = [HEAD, _table("Top level", RunConfig, top)]
    for section, model in SECTIONS:
        title = f"`{section}`: {(model.__doc__ or '').splitlines()[0]}"
        parts.append(_table(title, model, list(model.model_fields), f"{section}."))
    return "\n".join(parts)


def _table(title: str, model: type[Settings], names: list[str], prefix: str = "") -> str:
    rows = [f"## {title}", "", "| setting | type | default | meaning |", "|---|---|---|---|"]
    for name in names:
        field = model.model_fields[name]
        meaning = " ".join((field.description or "").split())
        default = field.get_default(call_default_factory=True)
        rows.append(
            f"| `{prefix}{name}` | {_type(field.annotation)} | `{_shown(default)}` | {meaning} |"
        )
    return "\n".join(rows) + "\n"


def _shown(default: Any) -> str:
    if default == "" or default is None:
        return "unset"
    if isinstance(default, str) and not default.isprintable():
        return repr(default)
    return str(list(default)) if isinstance(default, tuple) else str(default)


def _type(annotation: Any) -> str:
    """The type as a reader of YAML knows it, without the limits that are checked."""
    origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        return _type(parts[0])
    if origin is typing.Literal:
        return " · ".join(f"`{value}`" for value in parts)
    if origin is tuple:
        return f"list of {_type(parts[0])}"
    if origin is dict:
        return f"mapping of {_type(parts[0])} to {_type(parts[1])}"
    if parts:
        kinds = [_type(part) for part in parts if part is not type(None)]
        literal = any(typing.get_origin(part) is typing.Literal for part in parts)
        return (" · " if literal else " or ").join(kinds)
    return str(annotation.__name__)


if __name__ == "__main__":
    target = Path(__file__).parent / "settings.md"
    target.write_text(page(), encoding="utf-8")
    print(f"wrote {target.name}")
