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
from collections.abc import Callable, Iterator, Sequence

from graftlm.config import Embeddings, format_size
from graftlm.planning.planner import ROOM, Distributed, Method, Option, Setting

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
        tried: every option that was predicted, in order.
    """

    option: Option
    why: str
    missing: int
    tried: tuple[Option, ...]


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
    rungs = dict.fromkeys(_rungs(asked, preferred, at_once, embeddings, offloads))
    return [
        dataclasses.replace(rung, distributed=engine)
        for rung in rungs
        for engine in engines
        if engine != "fsdp" or _can_be_sharded(rung)
    ]


def _can_be_sharded(setting: Setting) -> bool:
    """Whether frozen weights are left to share: full training has none, offloading has a place."""
    return setting.method != "full" and setting.offload == "none"


def _rungs(
    asked: Setting,
    methods: Sequence[Method],
    at_once: int,
    embeddings: Sequence[Embeddings],
    offloads: bool,
) -> Iterator[Setting]:
    def rung(
        method: Method, checkpointing: bool, tokens: int | None, length: int, held: Embeddings
    ) -> Setting:
        return Setting(method, checkpointing, tokens, length, held, offload)

    offload = asked.offload
    last, tokens, length = methods[-1], at_once // 2, asked.max_length
    halved = asked.micro_batch_tokens is None and tokens >= LEAST_AT_ONCE
    for checkpointing in (asked.gradient_checkpointing, True):
        for method in methods:
            for held in embeddings:
                setting = rung(method, checkpointing, asked.micro_batch_tokens, length, held)
                yield setting
                if halved and method == last:
                    yield dataclasses.replace(setting, micro_batch_tokens=tokens)
    at_least = asked.micro_batch_tokens
    while tokens >= LEAST_AT_ONCE:
        yield from (rung(last, True, tokens, length, held) for held in embeddings)
        at_least, tokens = tokens, tokens // 2
    if offloads and last != "full":
        offload = "layers"
        yield from (rung(last, True, at_least, length, held) for held in embeddings)
    while length > SHORTEST:
        length = max(SHORTEST, length // 2)
        yield from (rung(last, True, at_least, length, held) for held in embeddings)


def recommend(
    asked: Setting,
    methods: Sequence[Method],
    limit: int,
    at_once: int,
    predict: Callable[[Setting], Option | None],
    embeddings: Sequence[Embeddings],
    offloads: bool = False,
    engines: Sequence[Distributed] = ("none",),
) -> Recommendation:
    """Try the settings of the `ladder` in order until one fits in ``limit`` bytes.

    A setting for which ``predict`` returns ``None`` does not suit the model and is skipped.
    """
    tried: list[Option] = []
    for setting in ladder(asked, methods, at_once, embeddings, offloads, engines):
        option = predict(setting)
        if option is None:
            continue
        tried.append(option)
        if option.fits:
            return Recommendation(option, _why(asked, tried, limit), 0, tuple(tried))
    nearest = min(tried, key=lambda option: option.predicted_peak_bytes)
    missing = int(nearest.predicted_peak_bytes / MARGIN) + 1 - limit
    why = (
        f"nothing fits in {format_size(limit)}: {_named(nearest)} needs "
        f"{format_size(nearest.predicted_peak_bytes)}, most of it {_heaviest(nearest)}; "
        f"{format_size(missing)} more memory would do (--memory {needed(nearest)}), "
        f"or a smaller model"
    )
    return Recommendation(nearest, why, missing, tuple(tried))


def needed(option: Option) -> str:
    """The smallest limit under which ``option`` fits, as text for the setting."""
    megabytes = -(-int(option.predicted_peak_bytes / MARGIN) // 10_000_000) * 10
    return f"{megabytes / 1000:g}GB" if megabytes >= 1000 else f"{megabytes}MB"


def _why(asked: Setting, tried: Sequence[Option], limit: int) -> str:
    chosen, given = tried[-1], format_size(limit)
    peak = format_size(chosen.predicted_peak_bytes)
    if len(tried) == 1:
        return f"{_named(chosen)} needs {peak}, which leaves room in {given}"
    before = tried[-2]
    changes = {
        "the parts of a batch add up to the same update": (
            chosen.micro_batch_tokens != asked.micro_batch_tokens
        ),
        "8 bits for the embeddings and the output head lose hardly anything": (
            chosen.embeddings != tried[0].embeddings
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
