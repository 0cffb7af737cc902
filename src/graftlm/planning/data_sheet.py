"""The speed of a GPU by its data sheet, until one has been measured.

Arithmetic and bandwidth seldom reach what the maker states. The shares here are usual ones, for
products of some thousand rows; they were not measured with graftlm, and the times are that rough.
"""

from __future__ import annotations

from graftlm.errors import ConfigError, near_matches
from graftlm.planning.calibration import Calibration
from graftlm.system.cards import CARDS, Card, card_named
from graftlm.system.placement import Placement

__all__ = ["card_of", "speed_of"]

ARITHMETIC, BANDWIDTH = 0.6, 0.8
"""Shares of the data sheet."""
CALL_SECONDS = 8e-6
"""Of an operator: PyTorch prepares it on the processor, which small operators wait for."""
UNCERTAIN = 0.5


def card_of(asked: str | None, placement: Placement) -> Card | None:
    """The card to plan for: the one that is asked for, or the one that is here.

    Raises:
        ConfigError: there is no data sheet of this name.
    """
    if asked is None:
        here = not placement.runs_on_cpu and placement.exists
        return card_named(placement.name) if here else None
    card = card_named(asked)
    if card is None:
        names = [one.name for one in CARDS]
        raise ConfigError(
            f"card {asked!r}: expected one of {', '.join(names)}{near_matches(asked, names)}"
        )
    return card


def speed_of(card: Card) -> Calibration:
    """Its speed. The loss's kernel makes two products, of which a plan counts one."""
    narrow = ARITHMETIC * card.narrow
    rates = {"matmul float32": ARITHMETIC * card.float32}
    for dtype in ("float16", "bfloat16"):
        rates |= {f"matmul {dtype}": narrow, f"cross_entropy {dtype}": narrow / 2}
    return Calibration(rates, BANDWIDTH * card.bandwidth, CALL_SECONDS, UNCERTAIN, share=1.0)
