"""Robustness-Sr: how near is an adversarial example that changes only what the map calls important?"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import BeforeValidator, Field
from torch import Tensor

import certframe
from certframe_eva.attack import AttackOptions, nearest, reach

Percent = Annotated[float, Field(gt=0, le=100)]


def _several(value: Any) -> Any:
    """Let a single number, or text with commas, stand for a sequence."""
    if isinstance(value, str):
        return value.split(",")
    return (value,) if isinstance(value, int | float) else value


class RobustnessSr:
    """Area under k ↦ ε*_(k), the distance to the closest adversarial example that changes only the k top pixels.

    ``robustness-sr`` is the area divided by the range of k, so a mean distance in pixel units; small when the map is
    right. ``robustness-sr.found`` is the share of levels at which an example was found; where none was, the distance is
    that to the farthest image in [0, 1]. All channels of a pixel change, pixels stay in [0, 1], the others do not move.
    The distances are upper bounds by projected gradient descent with a binary search, all levels at once; what is found
    for fewer pixels counts for more pixels, too, so the curve never rises. Pixels of equal importance go in random
    order. Maps of fewer pixels than the image are enlarged bilinearly.

    Takes levels · (trials · (steps + 1) + halvings) evaluations of the model.

    Source: Hsieh et al., "Evaluations and Methods for Explanation through Robustness Analysis", ICLR 2021, as in Fel et
    al., "Don't Lie to Me!", CVPR 2023, which give neither the norm nor the levels.
    """

    class Options(AttackOptions):
        """Options of `robustness-sr`."""

        levels: Annotated[tuple[Percent, ...], BeforeValidator(_several)] = Field(
            (10, 20, 30, 40, 50, 60, 70, 80, 90, 100), min_length=1, description="k, in percent of the pixels.")
        ranking: Literal["magnitude", "signed"] = Field(
            "signed", description="What counts as important: a large score (signed), or a large absolute one "
                                  "(magnitude).")
        curve: bool = Field(False, description="Also give the distance at every level.")
        seed: int = Field(0, ge=0, lt=2**63, description="Seed of the order of pixels of equal importance.")

    requires = frozenset({"model"})
    execution = frozenset({"chunk"})

    def __init__(self, options: Options | None = None) -> None:
        self.options = options or self.Options()

    @classmethod
    def conformance_options(cls, directory: Path) -> dict[str, Any]:
        """Little effort, for the conformance kit."""
        return {"trials": 2, "steps": 2, "levels": (20, 100)}

    def compute(self, explanation: certframe.Explanation) -> Mapping[str, float]:
        """The area, the share of levels with an example, and the curve if asked for."""
        o, model = self.options, explanation.model
        assert model is not None
        levels = np.array(sorted(set(o.levels)))
        scores = certframe.map_on_pixels(explanation.map, explanation.image)
        masks = top_masks(scores.abs() if o.ranking == "magnitude" else scores, levels, o.seed)
        distances = curve(model, explanation.image, explanation.target, masks, o)
        farthest = float(reach(explanation.image[None], torch.ones_like(masks[:1])[:, None], o.norm))
        found = np.isfinite(distances)
        values = np.minimum(distances, farthest)
        area = float(np.trapezoid(values, levels) / np.ptp(levels)) if len(levels) > 1 else float(values[0])
        result = {"robustness-sr": area, "robustness-sr.found": float(found.mean())}
        if o.curve:
            result |= {f"robustness-sr.distance.{level:g}": float(v) for level, v in zip(levels, values, strict=True)}
        return result



def top_masks(scores: Tensor, levels: np.ndarray, seed: int) -> Tensor:
    """(L,H,W) bool: the ⌈level·N/100⌉ pixels with the largest scores, for each level; ties in random order."""
    flat = scores.flatten().double().numpy()
    order = np.lexsort((np.random.default_rng(seed).random(flat.size), -flat))
    place = np.empty(flat.size, dtype=np.int64)
    place[order] = np.arange(flat.size)
    counts = np.ceil(levels * flat.size / 100 - 1e-9).astype(np.int64)
    return torch.from_numpy(place < counts[:, None]).view(len(levels), *scores.shape)


def curve(model: certframe.Model, image: Tensor, target: int, masks: Tensor, options: AttackOptions) -> np.ndarray:
    """ε* for each of the nested masks (L,H,W), the smallest first; float64 (L,), infinite where there is none."""
    tensors = (*model.module.parameters(), *model.module.buffers())
    device = tensors[0].device if tensors else torch.device("cpu")
    count = len(masks)
    images = image.to(device).expand(count, *image.shape)
    classes = torch.full((count,), target, device=device)
    found = nearest(model.module, images, classes, masks[:, None].to(device), options).distance
    return np.minimum.accumulate(found.double().cpu().numpy())
