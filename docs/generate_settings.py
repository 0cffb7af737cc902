"""Write `docs/settings.md` from the settings' declarations in `graftlm.config`."""

from __future__ import annotations

import typing
from pathlib import Path
from typing import Any

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
    return str(list(default)) if isinstance(default, tuple) else str(default)


def _type(annotation: Any) -> str:
    if typing.get_origin(annotation) is typing.Literal:
        return " · ".join(f"`{value}`" for value in typing.get_args(annotation))
    parts = typing.get_args(annotation)
    if parts[1:] == (...,) and typing.get_origin(parts[0]) is typing.Literal:
        return f"list of {_type(parts[0])}"
    if any(typing.get_origin(part) is typing.Literal for part in parts):
        return " · ".join(_type(part) for part in parts)
    text = getattr(annotation, "__name__", None)
    if typing.get_args(annotation) or text is None:
        text = str(annotation).replace("typing.", "").replace("NoneType", "None")
    return text.replace(" | ", " or ").replace("|", "or")


if __name__ == "__main__":
    target = Path(__file__).parent / "settings.md"
    target.write_text(page(), encoding="utf-8")
    print(f"wrote {target.name}")
