"""Principal components of rows that come in batches (doi:10.1007/s11263-007-0075-7).

With n rows seen before, of mean μ and components S V, and m new rows X of mean μ',

    [ S V ; X - μ' ; √(n m / (n + m)) (μ - μ') ] = U S' V'        its first k rows are kept

The last row corrects for the means. V' S' are the components of all rows exactly as long as nothing
was cut; else up to what the cut components would have added. PEFT's EVA uses the same update.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["IncrementalPCA"]


class IncrementalPCA:
    """The ``count`` largest principal components of the rows given so far.

    Attributes:
        directions: V [k, features], float32, orthonormal; the largest first.
        singular_values: S [k].
        settled: the smallest cosine between a direction and its predecessor; 0 before two batches.
    """

    def __init__(self, count: int) -> None:
        self.count, self.rows, self.settled = count, 0, 0.0
        self.directions = self.singular_values = torch.empty(0)
        self._mean = self._variation = torch.empty(0)
        self._waiting: list[Tensor] = []

    def add(self, x: Tensor) -> None:
        """Take in rows [m, features]; fewer than `count` wait for more."""
        self._waiting.append(x)
        if sum(map(len, self._waiting)) < self.count:
            return
        x = torch.cat(self._waiting).double()
        self._waiting = []
        n, m = self.rows, len(x)
        mean = x.mean(0)
        centred = x - mean
        variation = centred.square().sum(0)
        before = self.directions
        if n:
            offset = self._mean - mean
            scaled = self.singular_values[:, None].double() * before.double()
            correction = (n * m / (n + m)) ** 0.5 * offset
            centred = torch.cat((scaled, centred, correction[None]))
            variation = self._variation + variation + n * m / (n + m) * offset.square()
        self._mean = mean if not n else (n * self._mean + m * mean) / (n + m)
        self._variation, self.rows = variation, n + m
        S, V = _decomposed(centred, self.count)
        self.singular_values, self.directions = S.float(), V.float()
        if len(before) == len(V):
            self.settled = float((V.float() * before).sum(1).abs().min())

    @property
    def explained(self) -> Tensor:
        """The share of the rows' variance along each direction: [k]."""
        return (self.singular_values.double().square() / self._variation.sum()).float()


def _decomposed(rows: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The largest singular values [k] and right singular vectors [k, features] of ``rows``.

    From the smaller of the two Gram matrices, in float64: the squares lose digits only of values
    far below the largest.
    """
    if rows.shape[0] >= rows.shape[1]:
        squares, vectors = torch.linalg.eigh(rows.T @ rows)
        S = squares.flip(0)[:count].clamp(min=0).sqrt()
        return S, vectors.flip(1)[:, :count].T
    squares, vectors = torch.linalg.eigh(rows @ rows.T)
    S = squares.flip(0)[:count].clamp(min=0).sqrt()
    V = (rows.T @ vectors.flip(1)[:, :count]).T
    return S, torch.nn.functional.normalize(V, dim=1)
