"""Recommends a setting: the first one of a ladder that fits.

    1. LoRA as requested              no loss of quality, and the fastest
    2. … with embeddings in 8 bits    a very small loss; only if `embeddings` is `auto`
    3. QLoRA as requested             the base in 4 bits
    4. … with half the micro-batch    same update, up to a fifth more time; only if it is not set
    5. 3 and 4 with embeddings in 8 bits
    6. 1 to 5 with gradient checkpointing      a third more time
    7. QLoRA, checkpointing, ever smaller micro-batches
    8. 7 with the layers in host memory        on an accelerator; they cross its link twice a pass
    9. … and shorter rows             last, because this changes what is learned

If only one method is allowed, it replaces QLoRA in 3 to 8. From 7 on each setting is tried with
both kinds of embeddings: 8-bit ones need less memory in a step, but more during loading. The search
stops at the first setting that fits, so that few settings are traced.

Of several processes, each setting is tried with a replica in every process (DDP) and then with the
frozen weights in shares (FSDP2), which loses nothing but time.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence

from graftlm.config import Embeddings, format_size
from graftlm.planning.option import ROOM, Distributed, Method, Option, Setting

__all__ = ["Recommendation", "ladder", "recommend"]

LEAST_AT_ONCE = 64
"""Minimum positions of a part; smaller parts would save almost no memory."""
SHORTEST = 128
"""Minimum tokens to which rows are cut to make a plan fit."""
MARGIN = 1 - ROOM
ENGINES = {"none": "", "ddp": " by DDP", "fsdp": " by FSDP2"}
"""How an option with this engine is named."""


@dataclasses.dataclass(frozen=True)
class Recommendation:
    """The recommended option.

    Attributes:
        option: the option to run or, if ``missing`` is positive, the one closest to fitting.
        why: the reason in one sentence.
        missing: missing bytes of memory; 0 if the option fits.
    """

    option: Option
    why: str
    missing: int


def ladder(
    asked: Setting,
    methods: Sequence[Method],
    at_once: int,
    embeddings: Sequence[Embeddings],
    offloads: bool = False,
    engines: Sequence[Distributed] = ("none",),
) -> list[Setting]:
    """Settings from best to smallest, each once.

    Args:
        asked: the requested setting; the others derive from it.
        methods: the methods that may be used.
        at_once: the requested positions of a pass.
        embeddings: the allowed storage of embeddings, best first; ``full`` always keeps them.
        offloads: whether layers may be put into host memory.
        engines: how several processes may share the work, best first.
    """
    preferred: Sequence[Method] = [method for method in methods if method != "full"]
    if not preferred:
        preferred, embeddings = methods, ("keep",)
    return [
        dataclasses.replace(rung, distributed=engine)
        for rung in dict.fromkeys(_rungs(asked, preferred, at_once, embeddings, offloads))
        for engine in engines
    ]


def _rungs(
    asked: Setting,
    methods: Sequence[Method],
    at_once: int,
    embeddings: Sequence[Embeddings],
    offloads: bool,
) -> Iterator[Setting]:
    change, last, tokens = dataclasses.replace, methods[-1], at_once // 2
    halved = asked.micro_batch_tokens is None and tokens >= LEAST_AT_ONCE
    for checkpointing in (asked.gradient_checkpointing, True):
        for method in methods:
            for held in embeddings:
                setting = change(
                    asked, method=method, gradient_checkpointing=checkpointing, embeddings=held
                )
                yield setting
                if halved and method == last:
                    yield change(setting, micro_batch_tokens=tokens)
    smallest = change(asked, method=last, gradient_checkpointing=True)
    while tokens >= LEAST_AT_ONCE:
        smallest = change(smallest, micro_batch_tokens=tokens)
        yield from (change(smallest, embeddings=held) for held in embeddings)
        tokens //= 2
    if offloads:
        smallest = change(smallest, offload="layers")
        yield from (change(smallest, embeddings=held) for held in embeddings)
    while smallest.max_length > SHORTEST:
        smallest = change(smallest, max_length=max(SHORTEST, smallest.max_length // 2))
        yield from (change(smallest, embeddings=held) for held in embeddings)


def recommend(
    settings: Iterable[Setting], limit: int, predict: Callable[[Setting], Option | None]
) -> Recommendation:
    """Try ``settings`` (a `ladder`) in order until one fits in ``limit`` bytes.

    ``predict`` returns ``None`` for a setting that training refuses.
    """
    tried: list[Option] = []
    for option in filter(None, map(predict, settings)):
        tried.append(option)
        if option.fits:
            return Recommendation(option, _why(tried, limit), 0)
    nearest = min(tried, key=lambda option: option.predicted_peak_bytes)
    missing = int(nearest.predicted_peak_bytes / MARGIN) + 1 - limit
    why = (
        f"nothing fits in {format_size(limit)}: {_named(nearest)} needs "
        f"{format_size(nearest.predicted_peak_bytes)}, most of it {_heaviest(nearest)}; "
        f"{format_size(missing)} more memory would do (--memory {needed(nearest)}), "
        f"or a smaller model"
    )
    return Recommendation(nearest, why, missing)


def needed(option: Option) -> str:
    """The smallest limit under which ``option`` fits, as text for the setting."""
    megabytes = -(-int(option.predicted_peak_bytes / MARGIN) // 10_000_000) * 10
    return f"{megabytes / 1000:g}GB" if megabytes >= 1000 else f"{megabytes}MB"


def _why(tried: Sequence[Option], limit: int) -> str:
    """Why the last of ``tried`` is taken; the first is the request."""
    asked, chosen, given = tried[0], tried[-1], format_size(limit)
    peak = format_size(chosen.predicted_peak_bytes)
    if len(tried) == 1:
        return f"{_named(chosen)} needs {peak}, which leaves room in {given}"
    before = tried[-2]
    changes = {
        "the parts of a batch add up to the same update": (
            chosen.micro_batch_tokens != asked.micro_batch_tokens
        ),
        "8 bits for the embeddings and the output head lose hardly anything": (
            chosen.embeddings != asked.embeddings
        ),
        f"rows longer than {chosen.max_length} tokens are dropped or cut": (
            chosen.max_length != asked.max_length
        ),
        "each layer comes from host memory twice a pass": chosen.offload != asked.offload,
        "each process holds a share of the frozen weights and asks for the rest layer by layer": (
            chosen.distributed == "fsdp"
        ),
        "recomputing activations costs about a third more time": (
            chosen.gradient_checkpointing and not asked.gradient_checkpointing
        ),
    }
    needs = f"{_named(before)} would need {format_size(before.predicted_peak_bytes)} and leave no"
    said = f"{needs} room in {given}; {_named(chosen)} needs {peak}"
    return "; ".join([said, *(text for text, is_so in changes.items() if is_so)])


def _named(option: Option) -> str:
    names = {"lora": "LoRA", "qlora": "QLoRA", "full": "full fine-tuning"}
    extras = ["checkpointing"] if option.gradient_checkpointing else []
    extras += ["layers in host memory"] if option.offload == "layers" else []
    extras += ["embeddings in 8 bits"] if option.embeddings == "int8" else []
    given = f" with {' and '.join(extras)}" if extras else ""
    given += ENGINES[option.distributed]
    return f"{names[option.method]}{given} at {option.rows} × {option.length}"


def _heaviest(option: Option) -> str:
    name = max(option.components, key=lambda name: option.components[name])
    return f"{name.replace('_', ' ')} ({format_size(option.components[name])})"
