"""A run's base and tune, opened so that both answer a question at the same time.

An adapter's base is the same model without it: the two answers are two rows of one decoder, and the
base costs no memory. A full fine-tune has its base loaded beside it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from graftlm.adapters import disable_adapters
from graftlm.adapters.adapter import DEFAULT
from graftlm.adapters.adapter_folder import base_of
from graftlm.adapters.by_row import AdaptersByRow
from graftlm.adapters.merge_aware import merge_format
from graftlm.adapters.open_model import open_model
from graftlm.data.prompt_format import format_in
from graftlm.models.capabilities import capabilities
from graftlm.models.decoding.choice import Sampling
from graftlm.models.decoding.decoder import UseAdapters
from graftlm.models.decoding.row import Ask
from graftlm.models.decoding.whole import writer_for
from graftlm.serve.engine import Engine
from graftlm.serve.voices import TokenizerVoice
from graftlm.training.run_folder import result_folder

__all__ = ["Side", "open_sides"]


@dataclasses.dataclass(frozen=True)
class Side:
    """The base or the tune.

    Attributes:
        engine: writes its answers; both sides of an adapter have the same.
        voice: how it is asked.
        in_turn: whether the two sides' answers are written one after the other.
    """

    engine: Engine
    voice: TokenizerVoice
    in_turn: bool = False

    def ask(self, turns: Sequence[Mapping[str, Any]], question: Mapping[str, Any]) -> Ask:
        """What is asked of the engine.

        Args:
            turns: the conversation, ended by the user's message.
            question: the longest answer, the temperature and the seed.

        Raises:
            DataError: the chat template refuses.
        """
        # A model that was trained on plain prompts is asked each message by itself.
        plain = format_in(self.voice.template) is not None
        ids = self.voice.chat(turns[-1:] if plain else turns, None)
        chosen = Sampling(question["temperature"], seed=question["seed"])
        longest = question["max_new_tokens"]
        return Ask(ids, longest, chosen, self.voice.stop, adapter=self.voice.adapter)


def open_sides(run: Path) -> dict[str, Side]:
    """Load the models of a run; ``base`` and ``tuned``.

    Raises:
        GraftLMError: a model cannot be opened.
    """
    whole = result_folder(run, "full")
    if whole.is_dir():
        tuned, tokenizer = open_model(str(whole), None, None, "auto")
        name = json.loads((run / "summary.json").read_text(encoding="utf-8"))["model"]
        base, _ = open_model(name, None, None, "auto")
        voice = TokenizerVoice.of(tokenizer, None)
        pair = {"base": base, "tuned": tuned}
        return {side: Side(Engine(writer_for(m, tokenizer)), voice) for side, m in pair.items()}
    model, tokenizer = open_model(base_of(run), str(run), None, "auto")
    use, mixed = _by_row(model)
    in_turn = not (mixed and capabilities(model).continues_rows)
    engine = Engine(writer_for(model, tokenizer, use, mixed))
    voice = TokenizerVoice.of(tokenizer, None)
    return {
        "base": Side(engine, voice, in_turn),
        "tuned": Side(engine, dataclasses.replace(voice, adapter=DEFAULT), in_turn),
    }


def _by_row(model: Any) -> tuple[UseAdapters, bool]:
    """How a row gets or does not get the adapter, and whether such rows can be in one batch."""
    if not merge_format(model):
        by_row = AdaptersByRow(model)
        return by_row.use, by_row.together

    # The base's own weights hold the merged ones while the adapter is on.
    def use(names: Sequence[str | None], tokens: int) -> AbstractContextManager[None]:
        return disable_adapters(model) if names[0] is None else contextlib.nullcontext()

    return use, False
