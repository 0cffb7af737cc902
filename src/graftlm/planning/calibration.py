"""The speed of a device: products by family and type, memory, and the time of a call.

That of this machine is measured once (about three seconds) and cached, unless another program used
the processor during the measurement. That of a GPU is by its data sheet, until one has been
measured. The time of a planned step is

    t = Σ_kind work_kind / rate_kind

over the kinds of `graftlm.planning.cost.Cost`: flops by family and type, bytes, calls.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import logging
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter

from graftlm.cache import kept
from graftlm.files import write_json
from graftlm.planning.cost import BYTES, CALLS, Cost
from graftlm.system import cpu_flags, versions
from graftlm.system.cards import Card

__all__ = ["Calibration", "calibrate", "speed_of"]

VERSION = 9
"""Increase it when this measurement changes."""
MODEL_ERROR = 0.25
"""Relative error of the formula above on a quiet machine (`benchmarks/bench_plan.py`)."""
ROWS, FEATURES = 512, 1024
"""Shape of the PyTorch product that is timed: rows × features × features."""
FILE = "calibration.json"
QUIET = 0.8
"""The figures are cached only if the products got at least this share of processor time."""

ARITHMETIC, BANDWIDTH = 0.6, 0.8
"""Shares of a data sheet that a GPU reaches: usual ones for products of some thousand rows, not
measured with graftlm."""
CALL_SECONDS = 8e-6
"""Of an operator on a GPU: PyTorch prepares it on the processor; small operators wait for that."""
UNCERTAIN = 0.5
"""Relative error of a time by a data sheet."""

Speed = Annotated[float, Field(gt=0, allow_inf_nan=False)]

logger = logging.getLogger("graftlm")


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Speeds of one device.

    Attributes:
        rates: work a second by kind. Bytes are those read and written by an operation on large
            tensors; the time of a call is what it takes whatever its size.
        spread: how much slower the median call was than the fastest.
        share: processor time of the products, divided by the time of all their threads; well below
            1 on a busy machine.
    """

    rates: dict[str, Speed]
    spread: float
    share: Speed

    def seconds(self, cost: Cost) -> tuple[float, float]:
        """The time of ``cost`` and its uncertainty, both in seconds."""
        total = sum(work / self._rate(kind) for kind, work in cost.items())
        missed = 1 / self.share - 1 if self.share < QUIET else 0.0
        return total, total * (MODEL_ERROR**2 + self.spread**2 + missed**2) ** 0.5

    def _rate(self, kind: str) -> float:
        if kind in self.rates:
            return self.rates[kind]
        dtype = kind.rpartition(" ")[2]
        return self.rates.get(f"matmul {dtype}", self.rates["matmul float32"])


def calibrate() -> Calibration:
    """This machine's speeds, from the cache or measured now."""
    import torch

    environment = [VERSION, versions(), sorted(cpu_flags()), torch.get_num_threads()]
    key = f"calibration-{hashlib.sha256(json.dumps(environment).encode()).hexdigest()[:32]}"
    try:
        return kept("plan", key, _write, _read)
    except _BusyMachineError as busy:
        logger.warning(
            "times are rough: this machine gave the measurement %.0f %% of its processors; "
            "plan again when it is idle",
            100 * busy.found.share,
        )
        return busy.found


class _BusyMachineError(Exception):
    """What was found is used once and not kept."""

    def __init__(self, found: Calibration) -> None:
        self.found = found


def _write(folder: Path) -> None:
    found = _measure()
    if found.share < QUIET:
        raise _BusyMachineError(found)
    write_json(folder / FILE, dataclasses.asdict(found))


def _read(folder: Path) -> Calibration:
    """The speeds in a cached folder.

    Raises:
        ValueError: they are not what `calibrate` writes.
    """
    found = TypeAdapter(Calibration).validate_json((folder / FILE).read_bytes())
    if missing := {"matmul float32", BYTES, CALLS} - found.rates.keys():
        raise ValueError(f"{FILE} holds no speed of {', '.join(sorted(missing))}")
    return found


def _measure() -> Calibration:
    import torch

    rates, spreads = {}, []
    processor = elapsed = 0.0
    with torch.no_grad():
        for kind, flops, call in _products():
            elapsed -= time.perf_counter()
            processor -= time.process_time()
            seconds, spread = _time(call)
            elapsed += time.perf_counter()
            processor += time.process_time()
            rates[kind] = flops / seconds
            spreads.append(spread)
        large, small = torch.ones(1 << 21), torch.ones(8)
        rates[BYTES] = 2 * large.nbytes / _time(lambda: large * 1.5)[0]
        rates[CALLS] = 1 / (3 * _time(lambda: small * 1.5)[0])
    return Calibration(
        rates=rates,
        spread=statistics.median(spreads),
        share=min(1.0, processor / (elapsed * torch.get_num_threads())),
    )


def _products() -> Iterator[tuple[str, int, Callable[[], Any]]]:
    """``(kind, flops, call)`` for each product that is timed.

    These are PyTorch's product, and one call of each family of graftlm's operators.
    """
    import torch
    import torch.nn.functional as F

    from graftlm.kernels import operators

    weight = torch.randn(FEATURES, FEATURES) / FEATURES**0.5
    for dtype in (torch.float32, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        x, w = torch.randn(ROWS, FEATURES, dtype=dtype), weight.to(dtype)
        yield f"matmul {name}", 2 * ROWS * FEATURES * FEATURES, functools.partial(F.linear, x, w)
        for operator in operators().values():
            if operator.timing is not None:
                timing = operator.timing(dtype)
                yield f"{operator.family} {name}", timing.flops, timing.call


def _time(call: Callable[[], Any], budget: float = 0.25) -> tuple[float, float]:
    """The fastest of many calls, in seconds, and how much slower the median is."""
    call()
    times: list[float] = []
    deadline = time.perf_counter() + budget
    while len(times) < 3 or (time.perf_counter() < deadline and len(times) < 200):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    fastest = min(times)
    return fastest, statistics.median(times) / fastest - 1


def speed_of(card: Card) -> Calibration:
    """Its speed. The loss's kernel makes two products, of which a plan counts one."""
    narrow = ARITHMETIC * card.narrow
    rates = {
        "matmul float32": ARITHMETIC * card.float32,
        BYTES: BANDWIDTH * card.bandwidth,
        CALLS: 1 / CALL_SECONDS,
    }
    for dtype in ("float16", "bfloat16"):
        rates |= {f"matmul {dtype}": narrow, f"cross_entropy {dtype}": narrow / 2}
    return Calibration(rates, UNCERTAIN, share=1.0)
