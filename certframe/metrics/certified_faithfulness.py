"""Does the score fall when what is certified important goes?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

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
    labels_on_pixels,
    map_on_pixels,
    positions,
    replaced,
    scores,
)
from certframe.protocols import Explanation
from certframe.ranking import Ranking, rank

if TYPE_CHECKING:
    from torch import Tensor


class CertifiedFaithfulness:
    """The target's softmax score while the pixels that are certified important are removed, level after level.

    From the level with the fewest pixels to that with the most (K ascending) the pixels certified important are
    replaced by a baseline, and stay replaced. ``certified-faithfulness.score.clean`` is the score of the whole image,
    ``….score.K`` that after level K, ``….drop`` the fall at the first level, ``….area`` the area under the curve over
    K, from 0 to the largest K, divided by that K (over equal steps where levels are not such numbers). Two controls
    remove as many pixels at every step: ``….random-drop`` and ``….random-area`` random ones, ``….uncertified-drop`` and
    ``….uncertified-area`` the most important ones of the clean map that are not certified important (all of them when
    they are fewer). Takes 3 · levels + 1 evaluations of the model.

    Source: Anani et al., "Pixel-level Certified Explanations via Randomized Smoothing", ICML 2025.
    """

    class Options(protocols.Options):
        """Options of `certified-faithfulness`."""

        baseline: Baseline = "uniform"
        ranking: Ranking = "magnitude"
        score: Score = Field("softmax", description="What is followed: the target's softmax score, or its logit.")
        seed: Seed = 0
        batch: Batch = 32

    requires = frozenset({"labels", "model"})
    execution = frozenset({"batch"})

    def __init__(self, options: Options | None = None) -> None:
        self.options = options or self.Options()

    def compute(self, explanation: Explanation) -> Mapping[str, float]:
        """The curve, its first drop and its area, and those of the controls; 3 · levels + 1 evaluations."""
        o, model, image, certificate = self.options, explanation.model, explanation.image, explanation.certificate
        assert model is not None
        draws, device = Draws(o.seed, image), device_of(model)
        steps = ascending(certificate.levels)
        important = labels_on_pixels(certificate.labels, image)[[level for _, level in steps]] == 1
        certified = torch.from_numpy(np.logical_or.accumulate(important, axis=0))
        counts = certified.flatten(1).sum(1)
        place = positions(rank(map_on_pixels(explanation.map, image), o.ranking), draws)
        random = positions(torch.zeros(image.shape[1:]), draws)
        masks = torch.cat([torch.zeros_like(certified[:1]), certified, random < counts[:, None, None],
                           most_important(place, ~certified, counts)])
        found = scores(model, replaced(image.to(device), baseline_image(image, o.baseline, draws).to(device),
                                       masks.to(device), o.batch), explanation.target, o.score)
        whole, *curves = found[:1], *found[1:].reshape(3, len(steps))
        at = np.array([0.0, *(k for k, _ in steps)])
        names = [certificate.levels[level] for _, level in steps]
        prefix = "certified-faithfulness"
        result = {f"{prefix}.score.{k}": float(v) for k, v in zip(("clean", *names), (*whole, *curves[0]), strict=True)}
        for kind, curve in zip(("", "random-", "uncertified-"), curves, strict=True):
            result[f"{prefix}.{kind}drop"] = float(whole[0] - curve[0])
            result[f"{prefix}.{kind}area"] = float(np.trapezoid(np.concatenate([whole, curve]), at) / at[-1])
        return result


def ascending(levels: Sequence[str]) -> list[tuple[float, int]]:
    """Where on the axis each level is, and its number, from the fewest pixels to the most.

    A sparsifier names the level with the most pixels first. Levels that are then positive, ascending numbers are on the
    axis there, others at 1, 2, ….
    """
    backwards = list(reversed(levels))
    try:
        at = [float(level) for level in backwards]
    except ValueError:
        at = []
    if not at or at[0] <= 0 or sorted(set(at)) != at:
        at = [step + 1.0 for step in range(len(levels))]
    return list(zip(at, reversed(range(len(levels))), strict=True))


def most_important(place: Tensor, allowed: Tensor, counts: Tensor) -> Tensor:
    """The first allowed pixels in the order of importance.

    Args:
        place: (H,W) int64, 0 for the most important pixel.
        allowed: (L,H,W) bool.
        counts: (L,) how many are wanted.

    Returns:
        (L,H,W) bool; fewer than wanted where fewer are allowed.
    """
    flat = place.flatten()
    order = flat.argsort()
    in_order = allowed.flatten(1)[:, order]
    chosen = in_order & (in_order.cumsum(1) <= counts[:, None])
    return chosen[:, flat].view(allowed.shape)
