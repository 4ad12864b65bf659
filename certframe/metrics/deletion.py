"""The target's score while the most important pixels go, or come."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from pydantic import Field

from certframe import protocols
from certframe.metrics.pixels import (
    Baseline,
    Batch,
    Draws,
    Score,
    Seed,
    baseline_image,
    device_of,
    map_on_pixels,
    positions,
    replaced,
    scores,
)
from certframe.protocols import Explanation
from certframe.ranking import Ranking, label, rank

if TYPE_CHECKING:
    from torch import Tensor

    from certframe.protocols import Model


class _Options(protocols.Options):
    steps: int = Field(20, ge=1, description="Steps from the whole image to none of it: steps + 1 images are scored, "
                                             "of which step k has k/steps of the pixels replaced.")
    baseline: Baseline = "uniform"
    ranking: Ranking = "signed"
    score: Score = Field("softmax", description="What is followed: the target's softmax score, or its logit.")
    curve: bool = Field(False, description="Also give the score after every step.")
    seed: Seed = 0
    batch: Batch = 32


class _Path:
    """What deletion and insertion have in common."""

    name: ClassVar[str]
    inserts: ClassVar[bool]
    requires = frozenset({"model"})
    of_map = True
    execution = frozenset({"batch"})

    def __init__(self, options: _Options | None = None) -> None:
        self.options = options or _Options()

    def compute(self, explanation: Explanation) -> Mapping[str, float]:
        """The area under the curve, and the curve if asked for; steps + 1 evaluations of the model."""
        o, model = self.options, explanation.model
        assert model is not None
        draws = Draws(o.seed, explanation.image)
        place = positions(rank(map_on_pixels(explanation.map, explanation.image), o.ranking), draws)
        curve = path_scores(model, explanation.image, baseline_image(explanation.image, o.baseline, draws), place,
                            explanation.target, steps=o.steps, inserts=self.inserts, score=o.score, batch=o.batch)
        result = {f"{self.name}.auc": area(step_sizes(place.numel(), o.steps) / place.numel(), curve)}
        if o.curve:
            result |= {f"{self.name}.score.{label(round(100 * k / o.steps, 6))}": float(v) for k, v in enumerate(curve)}
        return result


class Deletion(_Path):
    """Area under the target's softmax score while the most important pixels are replaced by a baseline.

    ``deletion.auc``, small when the map is right; with `curve` also ``deletion.score.P``, the score when P % of the
    pixels are replaced. Pixels of equal importance go in random order, so a constant map gives a random one. Maps of
    fewer pixels than the image are enlarged bilinearly. Takes steps + 1 evaluations of the model.

    Source: Petsiuk et al., "RISE", BMVC 2018, with the baseline of Fel et al., "Don't Lie to Me!", CVPR 2023.
    """

    class Options(_Options):
        """Options of `deletion`."""

    name = "deletion"
    inserts = False


class Insertion(_Path):
    """Area under the target's softmax score while the most important pixels are revealed on a baseline.

    ``insertion.auc``, large when the map is right; with `curve` also ``insertion.score.P``, the score when P % of the
    pixels are revealed. The baseline of an image is that of `deletion`. Takes steps + 1 evaluations of the model.

    Source: Petsiuk et al., "RISE", BMVC 2018, with the baseline of Fel et al., "Don't Lie to Me!", CVPR 2023.
    """

    class Options(_Options):
        """Options of `insertion`."""

    name = "insertion"
    inserts = True


def step_sizes(pixels: int, steps: int) -> np.ndarray:
    """(steps + 1,) int64: how many pixels are replaced after each step, from none to all."""
    return (2 * np.arange(steps + 1) * pixels + steps) // (2 * steps)


def path_scores(model: Model, image: Tensor, baseline: Tensor, place: Tensor, target: int, *, steps: int,
                inserts: bool, score: Score = "softmax", batch: int = 32) -> np.ndarray:
    """The target's score along the way.

    Args:
        model: on any device.
        image: (C,H,W) on the CPU.
        baseline: likewise.
        place: (H,W) int64, 0 for the pixel that goes (or comes) first.
        target: class index.
        steps: number of steps.
        inserts: start from the baseline and reveal the image, instead of the other way round.
        score: softmax score or logit.
        batch: images in one pass.

    Returns:
        (steps + 1,) float64.
    """
    device = device_of(model)
    first, then = (baseline, image) if inserts else (image, baseline)
    counts = torch.from_numpy(step_sizes(place.numel(), steps))
    masks = place < counts[:, None, None]
    return scores(model, replaced(first.to(device), then.to(device), masks.to(device), batch), target, score)


def area(share: np.ndarray, curve: np.ndarray) -> float:
    """The area under a curve over the share of pixels, by the trapezoid rule."""
    return float(np.trapezoid(curve, share))
