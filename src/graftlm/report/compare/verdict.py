"""The conclusions of a comparison in plain sentences, a pure function of its figures.

The first sentence recommends a method, if the runs were long enough to tell. A method counts as
equal to the best one if its held-out loss is within 2 % of it, or if the difference over several
seeds is not significant. Of the equal methods, the one with the least memory is recommended.
"""

from __future__ import annotations

from collections.abc import Sequence

from graftlm.report.axis import figure
from graftlm.report.compare.figures import Figures

__all__ = ["verdict"]

CLOSE = 0.02
"""Share of the held-out loss within which two methods count as equally good."""
OVERFITS = 0.10
"""Share by which the held-out loss must exceed the training loss to be called overfitting."""
FORGETS = 0.02
"""Share by which the loss outside the task must rise to be called forgetting."""

FEW_STEPS = 30
"""Runs with fewer steps say nothing about methods."""
SETTLED = 0.10
"""Share of the fall of the held-out loss that may come in the last quarter of a settled run."""

LEVEL = 0.0005
"""Share of the held-out loss below which the text gives no figure for a difference."""
SAME = 0.015
"""Share within which two costs are called the same."""


def verdict(columns: Sequence[Figures]) -> list[str]:
    """Sentences, the most important first.

    Args:
        columns: at least one variant.
    """
    best = min(columns, key=lambda one: one.eval_loss.mean)
    sentences = [_fairness(columns), _lead(columns, best)]
    if best.eval_loss.mean < best.eval_before.mean:
        taken = _to_take(columns, best)
        others = [one for one in columns if one not in (best, taken)]
        sentences += [_beside(one, best) for one in others]
    sentences += [_overfitting(columns), _forgetting(columns), _answers(columns), _caveat(columns)]
    return [sentence for sentence in sentences if sentence]


def _to_take(columns: Sequence[Figures], best: Figures) -> Figures:
    """Of the methods equal to the best, the one with the least memory, if it saves any."""
    as_good = [one for one in columns if _as_good(one, best)]
    least = min(as_good, key=lambda one: one.peak_memory.mean)
    saves = least.peak_memory.mean < best.peak_memory.mean * (1 - SAME)
    return least if saves else best


def _as_good(one: Figures, best: Figures) -> bool:
    if one is best:
        return True
    if one.eval_loss.mean >= one.eval_before.mean:
        return False
    close = one.eval_loss.mean <= best.eval_loss.mean * (1 + CLOSE)
    return close or one.eval_loss.tells_apart(best.eval_loss) is False


def _fairness(columns: Sequence[Figures]) -> str:
    if len({one.tokens for one in columns}) == 1:
        return ""
    return (
        "The runs did not read the same number of tokens, so this is no fair comparison: "
        + ", ".join(f"{one.name} {one.tokens:,}" for one in columns)
        + "."
    )


def _unsettled(columns: Sequence[Figures]) -> str:
    """Why the runs are too short for a recommendation; empty if they are not."""
    steps = max(one.steps for one in columns)
    if 0 < steps < FEW_STEPS:
        return f"{steps} steps are too few to compare by"
    falling = [one for one in columns if one.late is not None and one.late > SETTLED]
    if not falling:
        return ""
    shares = [f"{one.name} made {_share(one.late or 0)} of its" for one in falling]
    return f"the held-out loss still falls ({_listed(shares)} progress in the last quarter)"


def _lead(columns: Sequence[Figures], best: Figures) -> str:
    loss = figure(best.eval_loss.mean)
    if len(columns) > 1 and (why := _unsettled(columns)):
        more = 4 * max(max(one.steps for one in columns), FEW_STEPS)
        return (
            f"No verdict yet: {why}. So far {best.name} is lowest, at {loss}. Longer runs would "
            f"tell: --steps {more}."
        )
    if best.eval_loss.mean >= best.eval_before.mean:
        who = best.name if len(columns) == 1 else "no method"
        verb = "did not lower" if len(columns) == 1 else "lowered"
        return (
            f"Take none of them: {who} {verb} the held-out loss, which was "
            f"{figure(best.eval_before.mean)} before training and is {loss} at best."
        )
    size = f"{best.peak_memory.mean / 1e9:.2f} GB"
    if len(columns) == 1:
        before = figure(best.eval_before.mean)
        return f"{best.name} lowered the held-out loss from {before} to {loss} in {size}."
    taken = _to_take(columns, best)
    if taken is not best:
        worse = _share(taken.eval_loss.mean / best.eval_loss.mean - 1)
        spread = (
            "" if _close(taken, best) else f", a difference {taken.seeds} seeds do not confirm,"
        )
        return (
            f"Take {taken.name}: it reached {best.name}'s held-out loss within {worse}{spread} in "
            f"{_cost(taken, best)}."
        )
    least = min(one.peak_memory.mean for one in columns)
    if best.peak_memory.mean * (1 - SAME) <= least:
        return f"Take {best.name}: the lowest held-out loss, {loss}, in the least memory, {size}."
    return (
        f"Take {best.name}: the lowest held-out loss, {loss}, in {size}; no method that needs less "
        f"memory came within {_share(CLOSE)} of it."
    )


def _beside(one: Figures, best: Figures) -> str:
    worse = one.eval_loss.mean / best.eval_loss.mean - 1
    doubt = one.eval_loss.tells_apart(best.eval_loss) is False
    apart = f" (a difference {one.seeds} seeds do not confirm)" if doubt else ""
    failed = one.eval_loss.mean >= one.eval_before.mean
    learned = ", no better than before training" if failed else ""
    above = "level with" if worse < LEVEL else f"{_share(worse)} above"
    return (
        f"{one.name} ended {above} {best.name}'s held-out loss{learned}{apart}, in "
        f"{_cost(one, best)}."
    )


def _overfitting(columns: Sequence[Figures]) -> str:
    found = [
        f"{one.name} by {_share(one.gap.mean / one.train_loss.mean)}"
        for one in columns
        if one.gap.mean > OVERFITS * one.train_loss.mean
    ]
    if found:
        return (
            f"Overfitting: the held-out loss is above the training loss, {_listed(found)}; more "
            "rows, fewer steps or a lower rank would narrow that."
        )
    return (
        "No overfitting to speak of: every held-out loss is less than "
        f"{_share(OVERFITS)} above the training loss."
    )


def _forgetting(columns: Sequence[Figures]) -> str:
    rises = {
        one.name: one.forgetting.mean / one.outside_before.mean
        for one in columns
        if one.forgetting.mean > FORGETS * one.outside_before.mean
    }
    if not rises:
        return (
            f"None forgot: the loss on text outside the task rose by less than {_share(FORGETS)}."
        )
    listed = _listed([f"with {name} by {_share(rise)}" for name, rise in rises.items()])
    spared = len(rises) < len(columns)
    rest = f", with the others by less than {_share(FORGETS)}" if spared else ""
    return f"Forgetting: the loss on text outside the task rose {listed}{rest}."


def _answers(columns: Sequence[Figures]) -> str:
    shares = {one.name: one.exact_match.mean for one in columns if one.exact_match is not None}
    if not shares:
        return ""
    shown = [f"{name} {share:.0%}" for name, share in shares.items()]
    return f"Held-out rows answered exactly right: {_listed(shown)}."


def _caveat(columns: Sequence[Figures]) -> str:
    seeds = min(one.seeds for one in columns)
    if seeds > 1:
        return f"Means over {seeds} seeds."
    if len(columns) == 1:
        return ""
    return "One seed each: a few percent may be chance; --seeds 3 would tell."


def _close(one: Figures, best: Figures) -> bool:
    return one.eval_loss.mean <= best.eval_loss.mean * (1 + CLOSE)


def _share(value: float) -> str:
    """``0.004`` → ``"0.4 %"``."""
    percent = abs(value) * 100
    return (
        f"{percent:.1f} %" if percent < 9.95 and percent != round(percent) else f"{percent:.0f} %"
    )


def _cost(one: Figures, best: Figures) -> str:
    memory = _part(one.peak_memory.mean / best.peak_memory.mean, "memory")
    return f"{memory} and {_part(one.seconds.mean / best.seconds.mean, 'time')}"


def _part(ratio: float, what: str) -> str:
    """``0.38`` → ``"38 % of its memory"``; ``1.5`` → ``"1.5 times its memory"``."""
    if abs(ratio - 1) < SAME:
        return f"about the same {what}"
    return (
        f"{100 * ratio:.0f} % of its {what}" if ratio < 1 else f"{figure(ratio)} times its {what}"
    )


def _listed(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
