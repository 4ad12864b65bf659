"""Real-valued levels in [0, 1], and the two sparsifications of SmoothGrad.

Source: Levine, Singla, Feizi, *Certifiably Robust Interpretation in Deep Learning*, 2019, §2.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Annotated, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from certframe import protocols
from certframe.ranking import Ranking, Several, label, rank
from certframe.sparsifiers.top_k import next_largest, top_k


def scale(scores: Tensor) -> Tensor:
    """(B,h,w) → the same divided by each map's maximum, in [0, 1]; a map whose maximum is not positive becomes 0."""
    top = scores.amax(dim=(1, 2), keepdim=True)
    return _divided(scores, top)


def _divided(scores: Tensor, unit: Tensor) -> Tensor:
    """Scores in units of `unit`, clamped to [0, 1]; 0 where the unit is not positive."""
    return torch.where(unit > 0, scores / torch.where(unit > 0, unit, 1.0), 0.0).clamp(0.0, 1.0)


def relax(scores: Tensor, gamma: float, tau: float) -> Tensor:
    """1 for the ⌈γN⌉ largest scores, 0 below the ⌈τN⌉ largest, g / g_[γN] between; γ = 0 divides by the maximum.

    Ties are as in `top-k`: scores that equal the first one left out are left out. Where g_[γN] is 0, which a map with
    few positive scores leads to, the scores between are 0.

    Args:
        scores: (B,h,w), not negative.
        gamma: in [0, tau].
        tau: in (0, 1].
    """
    flat = scores.flatten(1)
    n = flat.shape[1]
    full, kept = (math.ceil(Fraction(repr(share)) * n) for share in (gamma, tau))
    unit, full_above, none_up_to = next_largest(flat, (max(full, 1) - 1, full, kept))[:, :, None].unbind(dim=1)
    values = _divided(flat, unit).masked_fill(flat > full_above, 1.0).masked_fill(flat <= none_up_to, 0.0)
    return values.reshape(scores.shape)


class _OneMap:
    """A single real-valued level."""

    nested = True
    binary = False

    class Options(protocols.Options):
        """Options of a single-level sparsifier."""

        ranking: Ranking = "magnitude"

    def __init__(self, options: Options | None = None) -> None:
        self.options = options or self.Options()


class Scaled(_OneMap):
    """|g| / max|g|: the map itself, scaled to [0, 1]. A map that is 0 everywhere stays 0."""

    levels = ("scaled",)

    def sparsify(self, maps: Tensor) -> Tensor:
        """(B,h,w) → (B,1,h,w) float32 in [0, 1]."""
        return scale(rank(maps, self.options.ranking))[:, None]


class Quadratic(_OneMap):
    """g² / max g²: the squared map, scaled to [0, 1]. A map that is 0 everywhere stays 0."""

    levels = ("quadratic",)

    def sparsify(self, maps: Tensor) -> Tensor:
        """(B,h,w) → (B,1,h,w) float32 in [0, 1]."""
        return scale(rank(maps, self.options.ranking)).square()[:, None]


class Sparsified:
    """1 for the τN largest scores, else 0; several nested τ. Ties at the threshold are 0, as in `top-k`."""

    class Options(protocols.Options):
        """Options of `sparsified`."""

        tau: Annotated[tuple[Annotated[float, Field(gt=0.0, le=1.0)], ...], Several] = Field(
            (0.1,), min_length=1, description="Shares of the pixels in (0, 1], one or several.")
        ranking: Ranking = "magnitude"

    nested = True
    binary = True

    def __init__(self, options: Options | None = None) -> None:
        self.options = options or self.Options()
        self._tau = sorted(set(self.options.tau), reverse=True)
        self.levels = tuple(label(tau) for tau in self._tau)

    def sparsify(self, maps: Tensor) -> Tensor:
        """(B,h,w) → (B,L,h,w) bool, the largest τ first."""
        percent = [float(Fraction(repr(tau)) * 100) for tau in self._tau]
        return top_k(rank(maps, self.options.ranking), percent)


class Relaxed:
    """1 for the γN largest scores, 0 below the τN largest, proportional to the score between."""

    class Options(protocols.Options):
        """Options of `relaxed`."""

        gamma: float = Field(0.01, ge=0.0, le=1.0, description="Share of the pixels that count in full, at most tau; "
                                                              "0 divides by the maximum.")
        tau: float = Field(0.1, gt=0.0, le=1.0, description="Share of the pixels that count at all.")
        ranking: Ranking = "magnitude"

        @model_validator(mode="after")
        def _ordered(self) -> Self:
            if self.gamma > self.tau:
                raise ValueError(f"gamma = {self.gamma:g} is above tau = {self.tau:g}: give 0 ≤ gamma ≤ tau")
            return self

    levels = ("relaxed",)
    nested = True
    binary = False

    def __init__(self, options: Options | None = None) -> None:
        self.options = options or self.Options()

    def sparsify(self, maps: Tensor) -> Tensor:
        """(B,h,w) → (B,1,h,w) float32 in [0, 1]."""
        scores = rank(maps, self.options.ranking).clamp(min=0.0)
        return relax(scores, self.options.gamma, self.options.tau)[:, None]
