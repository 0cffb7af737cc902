"""The lifetime of every allocation in a traced step, and the memory peaks.

A trace is a list of events in program order: an allocation is made (+n bytes) or freed (-n). The
memory in use after event i is the running sum. The purpose of an allocation is known only *later*:
if it is freed in the phase that made it, it was temporary; if the forward pass keeps it for the
backward pass, it is an activation.
"""

from __future__ import annotations

import dataclasses
import re

__all__ = ["COMPONENTS", "Allocation", "Peak", "Timeline", "layer_of"]

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
"""The uses of memory in a plan, in the order of display."""


@dataclasses.dataclass(eq=False, slots=True)
class Allocation:
    """One piece of memory.

    Attributes:
        nbytes: its size.
        phase: when it was made: ``setup``, ``forward``, ``loss``, ``backward`` or ``optimizer``.
        module: full name of the module that made it; ``""`` outside any.
        component: one of `COMPONENTS`, once known.
        died_in: the phase that freed it; ``None`` if it is still in use.
    """

    nbytes: int
    phase: str
    module: str
    component: str | None = None
    died_in: str | None = None

    def resolved(self) -> str:
        """The component, derived after the trace."""
        if self.component is not None:
            return self.component
        if self.phase == "forward" and self.died_in != "forward":
            return "activations"
        return "loss" if self.phase == "loss" else "temporary"


@dataclasses.dataclass(frozen=True)
class Peak:
    """The moment of highest memory use.

    Attributes:
        components: bytes in use at that moment, by component, without zeros.
        phase: the phase of the step.
        module: the module at work.
    """

    components: dict[str, int]
    phase: str
    module: str

    @property
    def nbytes(self) -> int:
        """All bytes in use."""
        return sum(self.components.values())

    @property
    def place(self) -> str:
        """Phase and module, such as ``backward model.layers.3``."""
        return f"{self.phase} {self.module}".strip()


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
        """Bytes in use now."""
        return sum(change for _, change in self._events)

    def total(self, *components: str) -> int:
        """Bytes of all allocations assigned to ``components``."""
        return sum(c for made, c in self._events if c > 0 and made.component in components)

    def peaks(self, depth: int | None = None) -> dict[str, Peak]:
        """The peak at each place of the step.

        Args:
            depth: number of the model's layers, if known. A place is then a phase in the first
                layer, in the last layer, in a layer between, or in a module outside the layers.
        """
        in_use = 0
        highest: dict[str, tuple[int, int]] = {}
        for index, (allocation, change) in enumerate(self._events):
            in_use += change
            if change > 0 and allocation.phase != "setup":
                place = f"{allocation.phase} {_where(allocation.module, depth)}"
                if in_use > highest.get(place, (0, 0))[0]:
                    highest[place] = in_use, index
        return {place: self._moment(index) for place, (_, index) in highest.items()}

    def _moment(self, index: int) -> Peak:
        totals = dict.fromkeys(COMPONENTS, 0)
        for allocation, change in self._events[: index + 1]:
            totals[allocation.resolved()] += change
        last = self._events[index][0]
        return Peak({k: v for k, v in totals.items() if v}, last.phase, last.module)


def layer_of(module: str) -> int | None:
    """The number in a module's name, such as ``model.layers.3.mlp``."""
    found = re.search(r"(?:^|\.)(\d+)(?:\.|$)", module)
    return None if found is None else int(found.group(1))


def _where(module: str, depth: int | None) -> str:
    layer = layer_of(module)
    if layer is None or depth is None:
        return module
    return {0: "first", depth - 1: "last"}.get(layer, "between")
