"""From what the page asks to the words of one `graftlm` command.

Every request is one of the classes below; a field that is not among theirs is refused. Names become
paths here: of uploaded files, runs and exports. No request can name any other path.
"""

from __future__ import annotations

import json
from typing import Annotated, Literal

import pydantic

from graftlm.studio.place import Place
from graftlm.studio.runs import Runs
from graftlm.studio.uploads import uploaded

__all__ = ["AnyRequest", "words_of"]

_Short = Annotated[str, pydantic.StringConstraints(max_length=200)]
_Word = Annotated[str, pydantic.StringConstraints(pattern=r"^[a-z0-9][a-z0-9-]{0,40}$")]


class _Request(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", allow_inf_nan=False)


class Rows(_Request):
    """An uploaded file, and how its rows are read."""

    upload: _Short
    prompt: _Short = ""
    completion: _Short = ""
    format: Literal["chat", "plain"] = "chat"
    max_length: int | None = pydantic.Field(None, ge=2, le=10_000_000)
    eval_fraction: float = pydantic.Field(0.1, ge=0, lt=1)

    def settings(self) -> list[str]:
        """The data settings as ``--set`` words."""
        said = [f"data.format={self.format}"]
        if self.eval_fraction:
            said.append(f"data.eval_fraction={self.eval_fraction}")
        columns = {"prompt": self.prompt, "completion": self.completion}
        renamed = {ours: theirs for ours, theirs in columns.items() if theirs not in ("", ours)}
        if renamed:
            said.append(f"data.columns={json.dumps(renamed, ensure_ascii=False)}")
        return _set(said)

    def length(self) -> list[str]:
        """The longest row, if it was chosen."""
        return [] if self.max_length is None else ["--max-length", str(self.max_length)]


class CheckRequest(_Request):
    """`graftlm check`."""

    kind: Literal["check"]
    model: _Short
    rows: Rows

    def about(self) -> str:
        """The file."""
        return self.rows.upload

    def words(self, place: Place, runs: Runs) -> list[str]:
        """The command."""
        data, rows = str(uploaded(place, self.rows.upload)), self.rows
        asked = ["check", data, "--model", place.model(self.model), "--samples", "5"]
        return [*asked, *rows.length(), *rows.settings(), "--json"]


class PlanRequest(_Request):
    """`graftlm plan`."""

    kind: Literal["plan"]
    model: _Short
    rows: Rows
    memory: Annotated[str, pydantic.StringConstraints(pattern=r"^$|^[0-9.]+ ?[KMGT]i?B$")] = ""
    rank: int | None = pydantic.Field(None, ge=1, le=1_000_000)
    batch_size: int | None = pydantic.Field(None, ge=1, le=1_000_000)

    def about(self) -> str:
        """The file."""
        return self.rows.upload

    def words(self, place: Place, runs: Runs) -> list[str]:
        """The command."""
        said = ["plan", place.model(self.model), "--data", str(uploaded(place, self.rows.upload))]
        said += self.rows.length()
        said += _flags({"memory": self.memory, "rank": self.rank, "batch-size": self.batch_size})
        return [*said, *self.rows.settings(), "--json"]


class TrainRequest(_Request):
    """`graftlm train` for a new run."""

    kind: Literal["train"]
    model: _Short
    rows: Rows
    run: _Short
    method: Literal["auto", "qlora", "lora", "full"] = "auto"
    memory: Annotated[str, pydantic.StringConstraints(pattern=r"^$|^[0-9.]+ ?[KMGT]i?B$")] = ""
    steps: int | None = pydantic.Field(None, ge=1, le=1_000_000_000)
    epochs: float | None = pydantic.Field(None, gt=0, le=1_000_000)
    learning_rate: float | None = pydantic.Field(None, gt=0, le=1000)
    rank: int | None = pydantic.Field(None, ge=1, le=1_000_000)
    batch_size: int | None = pydantic.Field(None, ge=1, le=1_000_000)
    seed: int | None = pydantic.Field(None, ge=0, lt=2**63)
    eval_steps: int = pydantic.Field(0, ge=0, le=1_000_000_000)
    samples: int = pydantic.Field(0, ge=0, le=20)
    save_steps: int = pydantic.Field(0, ge=0, le=1_000_000_000)
    gradient_checkpointing: bool | None = None
    embeddings: Literal["keep", "int8"] | None = None
    micro_batch_tokens: int | None = pydantic.Field(None, ge=0, le=1_000_000_000)

    def about(self) -> str:
        """The run."""
        return self.run

    def words(self, place: Place, runs: Runs) -> list[str]:
        """The command."""
        said = ["train", "--model", place.model(self.model)]
        said += ["--data", str(uploaded(place, self.rows.upload)), "--method", self.method]
        said += ["--out", str(place.new_run(self.run)), *self.rows.length()]
        said += _flags(
            {
                "memory": self.memory,
                "steps": self.steps,
                "epochs": None if self.steps else self.epochs,
                "learning-rate": self.learning_rate,
                "rank": self.rank,
                "batch-size": self.batch_size,
                "seed": self.seed,
            }
        )
        more = {
            "train.eval_steps": self.eval_steps or None,
            "train.samples": (self.samples or None) if self.rows.eval_fraction else None,
            "train.save_steps": self.save_steps or None,
            "train.gradient_checkpointing": self.gradient_checkpointing,
            "train.micro_batch_tokens": self.micro_batch_tokens,
            "model.embeddings": self.embeddings,
        }
        chosen = {name: value for name, value in more.items() if value is not None}
        said += self.rows.settings()
        said += _set([f"{name}={_yaml(value)}" for name, value in chosen.items()])
        return [*said, "--json"]


class ResumeRequest(_Request):
    """`graftlm train --resume`: go on with a paused run, or give a finished one more steps."""

    kind: Literal["resume"]
    run: _Short
    steps: int | None = pydantic.Field(None, ge=1, le=1_000_000_000)

    def about(self) -> str:
        """The run."""
        return self.run

    def words(self, place: Place, runs: Runs) -> list[str]:
        """The command."""
        said = ["train", "--resume", "--out", str(runs.folder(self.run))]
        return [*said, *_flags({"steps": self.steps}), "--json"]


class FormsRequest(_Request):
    """`graftlm export --check`: which forms the run can be exported to."""

    kind: Literal["forms"]
    run: _Short

    def about(self) -> str:
        """The run."""
        return self.run

    def words(self, place: Place, runs: Runs) -> list[str]:
        """The command."""
        return ["export", str(runs.folder(self.run)), "--check", "--json"]


class MergeRequest(_Request):
    """`graftlm merge`."""

    kind: Literal["merge"]
    run: _Short
    name: _Short
    to: _Word = "16bit"

    def about(self) -> str:
        """The run."""
        return self.run

    def words(self, place: Place, runs: Runs) -> list[str]:
        """The command."""
        out = str(place.new_export(self.name))
        return ["merge", str(runs.folder(self.run)), "--out", out, "--to", self.to, "--json"]


class ExportRequest(_Request):
    """`graftlm export`, with the proof."""

    kind: Literal["export"]
    run: _Short
    name: _Short
    to: _Word
    quantization: Literal["", "f16", "bf16", "f32", "q8_0", "q4_0"] = ""
    verify: bool = True

    def about(self) -> str:
        """The run."""
        return self.run

    def words(self, place: Place, runs: Runs) -> list[str]:
        """The command."""
        suffix = ".gguf" if self.to.startswith("gguf") and "." not in self.name else ""
        out = place.new_export(f"{self.name}{suffix}")
        said = ["export", str(runs.folder(self.run)), "--to", self.to, "--out", str(out)]
        said += _flags({"quantization": self.quantization})
        return [*said, *(["--verify"] if self.verify else []), "--json"]


AnyRequest = Annotated[
    CheckRequest
    | PlanRequest
    | TrainRequest
    | ResumeRequest
    | FormsRequest
    | MergeRequest
    | ExportRequest,
    pydantic.Field(discriminator="kind"),
]


def words_of(request: AnyRequest, place: Place, runs: Runs) -> list[str]:
    """The words of the command after `graftlm`.

    Raises:
        GraftLMError: a name in the request is not known, or taken.
    """
    return request.words(place, runs)


def _flags(values: dict[str, object]) -> list[str]:
    given = [(name, value) for name, value in values.items() if value not in (None, "")]
    return [word for name, value in given for word in (f"--{name}", str(value))]


def _set(assignments: list[str]) -> list[str]:
    return [word for text in assignments for word in ("--set", text)]


def _yaml(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
