"""Which bytes are alive when: the life of every allocation in a traced step, and its peak.

A trace is a list of events in program order: an allocation is born (+n bytes) or dies (−n). The
memory in use after event i is the running sum, and the peak is its maximum. What was alive there,
and what each allocation turned out to be *later* (an activation kept for the backward pass, a
gradient, a temporary that died in its own phase), is read off afterwards.
"""

from __future__ import annotations

import dataclasses

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
        nbytes: bytes alive then.
        components: those bytes by component; zero ones left out.
        phase: the phase of the step.
        module: the module at work.
    """

    nbytes: int
    components: dict[str, int]
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

    def peak(self) -> Peak:
        """Find the maximum of the running sum and what it is made of."""
        in_use = most = at = 0
        for index, (_, change) in enumerate(self._events):
            in_use += change
            if in_use > most:
                most, at = in_use, index
        alive: dict[int, Allocation] = {}
        for allocation, change in self._events[: at + 1]:
            if change >= 0:
                alive[id(allocation)] = allocation
            else:
                alive.pop(id(allocation))
        totals = dict.fromkeys(COMPONENTS, 0)
        for allocation in alive.values():
            totals[allocation.resolved()] += allocation.nbytes
        last = self._events[at][0] if self._events else Allocation(0, "setup", "")
        return Peak(
            nbytes=most,
            components={name: size for name, size in totals.items() if size},
            phase="backward" if last.phase == "recompute" else last.phase,
            module=last.module,
        )
