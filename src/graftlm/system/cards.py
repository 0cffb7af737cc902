"""Data sheets of some GPUs: what their makers state, not what was measured.

Dense products in 16 bits with sums in float32, without sparsity; the memory of the usual model.

    T4              NVIDIA, Turing TU104, 2018: fp16 only
    RTX 4090        NVIDIA, Ada, 2022
    A100, H100      NVIDIA, SXM models with 80 GB, 2020 and 2022
    MI300X          AMD, CDNA 3, 2023
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["CARDS", "Card", "card_named"]


class Card(NamedTuple):
    """One GPU.

    Attributes:
        name: the maker's.
        target: what Triton compiles for.
        memory: bytes.
        bandwidth: bytes a second.
        narrow: floating-point operations a second of 16-bit products.
        float32: the same in float32, outside the tensor cores.
        link: bytes a second from host memory, of the 16 lanes of its PCI Express generation.
        bfloat16: whether it multiplies bfloat16 in hardware.
    """

    name: str
    target: str
    memory: float
    bandwidth: float
    narrow: float
    float32: float
    link: float
    bfloat16: bool = True


CARDS = (
    Card("T4", "sm_75", 16e9, 320e9, 65e12, 8.1e12, 16e9, bfloat16=False),
    Card("RTX 4090", "sm_89", 24e9, 1008e9, 165e12, 82.6e12, 32e9),
    Card("A100", "sm_80", 80e9, 2039e9, 312e12, 19.5e12, 32e9),
    Card("H100", "sm_90", 80e9, 3350e9, 989e12, 67e12, 64e9),
    Card("MI300X", "gfx942", 192e9, 5300e9, 1307e12, 163e12, 64e9),
)


def card_named(name: str) -> Card | None:
    """The data sheet of a card from what its driver calls it; ``None`` if it is not here.

    Args:
        name: such as ``NVIDIA A100-SXM4-80GB``.
    """
    words = name.upper().replace("-", " ").replace("_", " ")
    for card in CARDS:
        wanted = card.name.upper()
        if f" {wanted} " in f" {words} " or wanted.replace(" ", "") in words.split():
            return card
    return None
