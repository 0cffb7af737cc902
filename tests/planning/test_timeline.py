from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from graftlm.planning.timeline import COMPONENTS, Allocation, Timeline

LIVES = st.lists(
    st.tuples(st.integers(1, 1000), st.sampled_from(["forward", "loss", "backward"])), max_size=30
)


def replay(lives: list[tuple[int, str]], seed: int) -> tuple[Timeline, list[list[int]]]:
    """A random history, and the sizes alive after each event."""
    timeline, alive, moments = Timeline(), [], []
    for index, (size, phase) in enumerate(lives):
        allocation = Allocation(size, phase, f"layers.{index % 4}.mlp")
        timeline.born(allocation)
        alive.append(allocation)
        moments.append([a.nbytes for a in alive])
        if (seed >> index) & 1:
            timeline.died(alive.pop((seed + index) % len(alive)), phase)
    return timeline, moments


@settings(derandomize=True, deadline=None)
@given(LIVES, st.integers(0, 1 << 30))
def test_the_highest_place_is_the_highest_moment(lives: list, seed: int) -> None:
    timeline, moments = replay(lives, seed)
    peaks = timeline.peaks(depth=4)
    assert max((p.nbytes for p in peaks.values()), default=0) == max(map(sum, moments), default=0)
    for peak in peaks.values():
        assert sum(peak.components.values()) == peak.nbytes
        assert peak.components.keys() <= set(COMPONENTS)


def test_what_lives_to_the_backward_pass_is_an_activation_and_the_rest_temporary() -> None:
    timeline = Timeline()
    kept, dropped = Allocation(5, "forward", "a"), Allocation(3, "forward", "a")
    timeline.born(kept)
    timeline.born(dropped)
    timeline.died(dropped, "forward")
    timeline.died(kept, "backward")
    (peak,) = timeline.peaks().values()
    assert peak.components == {"activations": 5, "temporary": 3}
