"""Does the importance of a set of pixels say how far the score falls without them?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from pydantic import Field
from scipy import stats

from certframe import protocols
from certframe.metrics.pixels import (
    Baseline,
    Batch,
    Draws,
    Score,
    Seed,
    baseline_image,
    cells_on_pixels,
    device_of,
    map_on_pixels,
    replaced,
    scores,
)
from certframe.protocols import Explanation

if TYPE_CHECKING:
    from torch import Tensor

    from certframe.protocols import Model

Correlation = Literal["pearson", "spearman"]
ROUNDING = 1e-6
"""Scores that differ by less than this share of the largest do so by float32 rounding."""


class MuFidelity:
    """Correlation, over random sets of pixels, of their summed importance with the fall of the score without them.

    ``mu-fidelity`` is corr(Σ_{i∈u} h_i, f(x) − f(x with u replaced)) over random sets u of a fixed size, in [−1, 1]. Of
    a map that gives every set the same importance, or a score that never falls, there is no correlation: the value is
    then 0 and ``mu-fidelity.undefined`` is 1, else that is 0. The sets are the same for every map of an image. Takes
    subsets + 1 evaluations of the model.

    Source: Bhatt et al., "Evaluating and Aggregating Feature-based Model Explanations", IJCAI 2020, as in Fel et al.,
    "Don't Lie to Me!", CVPR 2023.
    """

    class Options(protocols.Options):
        """Options of `mu-fidelity`."""

        subsets: int = Field(200, ge=3, description="Number of random sets; each costs one evaluation of the model.")
        share: float = Field(0.2, gt=0, lt=1, description="The part of all variables that is in a set.")
        cells: int = Field(0, ge=0, description="Take the cells of a grid of so many by so many as variables; with 0 "
                                                "every pixel is one.")
        baseline: Baseline = "uniform"
        score: Score = Field("logit", description="What falls: the target's logit, or its softmax score.")
        correlation: Correlation = Field("pearson", description="Pearson's correlation, or Spearman's of the ranks.")
        seed: Seed = 0
        batch: Batch = 32

    requires = frozenset({"model"})
    of_map = True
    execution = frozenset({"batch"})

    def __init__(self, options: Options | None = None) -> None:
        self.options = options or self.Options()

    def compute(self, explanation: Explanation) -> Mapping[str, float]:
        """The correlation, and whether it had to be made up; subsets + 1 evaluations of the model."""
        o, image, model = self.options, explanation.image, explanation.model
        assert model is not None
        draws = Draws(o.seed, image)
        sets = random_sets(draws, image, o.subsets, o.share, o.cells)
        found = set_scores(model, image, baseline_image(image, o.baseline, draws), sets, explanation.target,
                           score=o.score, batch=o.batch)
        value = correlation(importances(map_on_pixels(explanation.map, image), sets), found[0] - found[1:],
                            o.correlation, noise=ROUNDING * float(np.abs(found).max()))
        return {"mu-fidelity": 0.0 if value is None else value, "mu-fidelity.undefined": float(value is None)}


def random_sets(draws: Draws, image: Tensor, count: int, share: float, cells: int) -> Tensor:
    """(count,H,W) bool: random sets of pixels, or of the cells of a grid, all of the same number of variables.

    That number is share · variables, rounded, at least 1 and at most all but one.
    """
    grid = cells_on_pixels(cells, image) if cells else np.arange(image[0].numel()).reshape(image.shape[1:])
    variables = int(grid.max()) + 1
    size = min(max(1, round(share * variables)), max(1, variables - 1))
    sets = torch.zeros(count, variables, dtype=torch.bool)
    stream = draws.stream("sets")  # row by row, for the memory of 200 · 224² draws
    for row in sets:
        row[torch.from_numpy(np.argpartition(stream.uniform(variables)[0].numpy(), size - 1)[:size])] = True
    return sets[:, torch.from_numpy(grid)]


def importances(pixels: Tensor, sets: Tensor) -> np.ndarray:
    """The sum of (H,W) importances over every set of (M,H,W), float64 (M,)."""
    values = pixels.flatten().double()
    return np.array([float(values[one].sum()) for one in sets.flatten(1)])


def set_scores(model: Model, image: Tensor, baseline: Tensor, sets: Tensor, target: int, *, score: Score = "logit",
               batch: int = 32) -> np.ndarray:
    """f(x), then f(x with u replaced) for every set u of (M,H,W), float64 (M + 1,)."""
    device = device_of(model)
    masks = torch.cat([torch.zeros_like(sets[:1]), sets]).to(device)
    return scores(model, replaced(image.to(device), baseline.to(device), masks, batch), target, score)


def correlation(importance: np.ndarray, falls: np.ndarray, kind: Correlation = "pearson", *,
                noise: float = 0.0) -> float | None:
    """Pearson's or Spearman's correlation in [−1, 1]; None when one of the two does not vary.

    Args:
        importance: (M,) float64; variation below 10⁻¹² of its size is rounding, and does not count.
        falls: (M,) float64.
        kind: which correlation.
        noise: variation of `falls` up to this does not count either.
    """
    if np.ptp(importance) <= 1e-12 * np.abs(importance).max() or np.ptp(falls) <= noise:
        return None
    if kind == "spearman":
        importance, falls = stats.rankdata(importance), stats.rankdata(falls)
    return float(np.clip(np.corrcoef(importance, falls)[0, 1], -1.0, 1.0))
