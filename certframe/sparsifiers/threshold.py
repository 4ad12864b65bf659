"""Importance by a fixed threshold."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor

from certframe import protocols
from certframe.ranking import Ranking, Several, label, rank


class Threshold:
    """1 where the score is strictly greater than a threshold, several nested thresholds.

    A relative threshold t is t times the largest score of each map; a map without a score above zero is then all 0.
    """

    class Options(protocols.Options):
        """Options of `threshold`."""

        t: Annotated[tuple[float, ...], Several] = Field(
            default=(0.0,), min_length=1,
            description="Thresholds, one or several; kept once each, the smallest first.")
        relative: bool = Field(
            default=False,
            description="Thresholds are shares, in [0, 1), of the largest score of each map.")
        ranking: Ranking = "magnitude"

        @field_validator("t")
        @classmethod
        def _ascending(cls, t: tuple[float, ...]) -> tuple[float, ...]:
            wrong = [label(value) for value in t if not math.isfinite(value)]
            if wrong:
                raise ValueError(f"t is a finite number, not {wrong[0]}")
            return tuple(sorted(set(t)))

        @model_validator(mode="after")
        def _shares(self) -> Threshold.Options:
            wrong = [label(value) for value in self.t if not 0 <= value < 1]
            if self.relative and wrong:
                raise ValueError(f"a relative t is a share in [0, 1) of the map's maximum, not {wrong[0]}")
            return self

    nested = True
    binary = True

    def __init__(self, options: Options | None = None) -> None:
        self.options = options or self.Options()
        self.levels = tuple(label(t) for t in self.options.t)

    def sparsify(self, maps: Tensor) -> Tensor:
        """(B,h,w) finite scores → (B,L,h,w) bool, one level per threshold."""
        scores = rank(maps.detach(), self.options.ranking)
        return above(scores, self.options.t, relative=self.options.relative)


def above(scores: Tensor, thresholds: Sequence[float], *, relative: bool = False) -> Tensor:
    """Mark the scores above each threshold.

    Args:
        scores: (B,h,w) finite floats.
        thresholds: L thresholds.
        relative: multiply each threshold by the largest score of each map.

    Returns:
        (B,L,h,w) bool on the device of `scores`, compared in the precision of `scores`.
    """
    unit = scores.amax(dim=(1, 2), keepdim=True) if relative else None
    levels = [scores > (t if unit is None else t * unit) for t in thresholds]
    return torch.stack(levels, dim=1)
