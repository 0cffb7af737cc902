"""Which bytes are alive when: the life of every allocation in a traced step, and its peak.

A trace is a list of events in program order: an allocation is born (+n bytes) or dies (−n). The
memory in use after event i is the running sum, and the peak is its maximum. What was alive there,
and what each allocation turned out to be *later* (an activation kept for the backward pass, a
gradient, a temporary that died in its own phase), is read off afterwards.
"""

from __future__ import annotations

import dataclasses
import re

__all__ = ["COMPONENTS", "Allocation", "Peak", "Timeline"]

COMPONENTS = (
    "framework",
    "weights",
    "quantization_state",
    "adapters",
    "gradients",
    "optimizer",
    "activations",
    "loss",
    "temporary",
)
"""What memory is spent on; the components of a plan, in the order they are shown."""


@dataclasses.dataclass(eq=False, slots=True)
class Allocation:
    """One piece of memory.

    Attributes:
        nbytes: its size.
        phase: when it was made: ``setup``, ``forward``, ``loss``, ``backward``, ``recompute`` (a
            forward pass inside the backward pass) or ``optimizer``.
        module: full name of the module that made it; ``""`` outside any.
        component: one of `COMPONENTS`, once known.
        died_in: the phase it was freed in; ``None`` while alive.
    """

    nbytes: int
    phase: str
    module: str
    component: str | None = None
    died_in: str | None = None

    def resolved(self) -> str:
        """The component, from what is known after the trace."""
        if self.component is not None:
            return self.component
        if self.phase in ("forward", "recompute"):
            return "temporary" if self.died_in == self.phase else "activations"
        return "loss" if self.phase == "loss" else "temporary"


@dataclasses.dataclass(frozen=True)
class Peak:
    """The moment with most memory in use.

    Attributes:
        nbytes: bytes in use then.
        components: those bytes by component; zero ones left out.
        alive: bytes of tensors; the rest is what the heap keeps.
        phase: the phase of the step.
        module: the module at work.
    """

    nbytes: int
    components: dict[str, int]
    alive: int
    phase: str
    module: str


class Timeline:
    """The events of a trace, in order."""

    def __init__(self) -> None:
        self._events: list[tuple[Allocation, int]] = []

    def born(self, allocation: Allocation) -> None:
        """Record that ``allocation`` was made."""
        self._events.append((allocation, allocation.nbytes))

    def died(self, allocation: Allocation, phase: str) -> None:
        """Record that ``allocation`` was freed."""
        allocation.died_in = phase
        self._events.append((allocation, -allocation.nbytes))

    def in_use(self) -> int:
        """Bytes alive now."""
        return sum(change for _, change in self._events)

    def total(self, *components: str) -> int:
        """Bytes of all allocations claimed for ``components``."""
        return sum(
            change
            for allocation, change in self._events
            if change > 0 and allocation.component in components
        )

    def peaks(self, depth: int | None = None, kept_below: int = 0) -> dict[str, Peak]:
        """The highest moment in each place of the step, and what it is made of.

        Args:
            depth: number of the model's layers, if known; a place is then a phase in the first
                layer, the last one, one between, or a module outside the layers.
            kept_below: allocations smaller than this come from a heap that never shrinks: at any
                time it has the size of the most of them that were ever alive together.
        """
        in_use, alive = self._largest_heap(kept_below), 0
        most, at = dict[str, tuple[int, int]](), dict[str, int]()
        for index, (allocation, change) in enumerate(self._events):
            alive += change
            if allocation.nbytes >= kept_below:
                in_use += change
            if change < 0 or allocation.phase == "setup":
                continue
            place = f"{_coarse(allocation.phase)} {_where(allocation.module, depth)}"
            # Of equal moments, for the heap keeps its size, the one with least of it idle.
            if (in_use, alive) > most.get(place, (0, 0)):
                most[place], at[place] = (in_use, alive), index
        return {place: self._moment(index, most[place][0]) for place, index in at.items()}

    def _largest_heap(self, kept_below: int) -> int:
        heap = largest = 0
        for allocation, change in self._events:
            if allocation.nbytes < kept_below:
                heap += change
                largest = max(largest, heap)
        return largest

    def _moment(self, index: int, nbytes: int) -> Peak:
        alive: dict[int, Allocation] = {}
        for allocation, change in self._events[: index + 1]:
            if change >= 0:
                alive[id(allocation)] = allocation
            else:
                alive.pop(id(allocation))
        totals = dict.fromkeys(COMPONENTS, 0)
        for allocation in alive.values():
            totals[allocation.resolved()] += allocation.nbytes
        alive_bytes = sum(totals.values())
        totals["temporary"] += nbytes - alive_bytes  # what the heap keeps
        components = {name: size for name, size in totals.items() if size}
        last = self._events[index][0]
        return Peak(nbytes, components, alive_bytes, _coarse(last.phase), last.module)


def _coarse(phase: str) -> str:
    return "backward" if phase == "recompute" else phase


def _where(module: str, depth: int | None) -> str:
    layer = re.search(r"(?:^|\.)(\d+)(?:\.|$)", module)
    if layer is None or depth is None:
        return module
    index = int(layer.group(1))
    return {0: "first", depth - 1: "last"}.get(index, "between")
