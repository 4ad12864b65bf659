"""Does the importance lie in the box around the object?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import ndimage

from certframe import protocols
from certframe.errors import UsageError
from certframe.metrics.pixels import labels_on_pixels, map_on_pixels
from certframe.metrics.pointing import share_inside
from certframe.protocols import Explanation

if TYPE_CHECKING:
    from torch import Tensor


class Localization:
    """Overlap of the importance with the boxes around the object, for the clean map and for what is certified.

    With z the map, A⁺ its pixels with z > 0 and S the pixels in a box: ``localization.loc`` = |A⁺ ∩ S| / |A⁺ ∪ S|,
    ``localization.eg`` = Σ_S max(z, 0) / Σ max(z, 0) (energy game), ``localization.pp`` = Σ_S max(z, 0) / Σ_S |z|
    (positive percentage), ``localization.con`` = Σ_S |ẑ| / ‖i − c‖₂ (concentration) with ẑ = z / Σ|z|, c the centre of
    mass of |ẑ|, in pixels, and a distance below 1 counted as 1. For level K ``localization.certified-loc.K``,
    ``….certified-eg.K`` and ``….certified-con.K`` are the same of the map that is 1 where a pixel is certified
    important and 0 elsewhere. A quotient 0/0 is 0. Needs boxes in the pixels of the model's input.

    Sources: Wang, Fredrikson, Datta, "Robust Models Are More Interpretable Because Attributions Look Normal", ICML
    2022, and the sources it names; the energy game is from Wang et al., "Score-CAM", 2020.
    """

    class Options(protocols.Options):
        """`localization` has no options."""

    requires = frozenset({"boxes"})

    def __init__(self, options: Options | None = None) -> None:
        self.options = options or self.Options()

    @classmethod
    def conformance_extras(cls, explanation: Explanation) -> Mapping[str, Any]:
        """A box around the middle of the image, for the conformance kit."""
        height, width = explanation.image.shape[-2:]
        return {"boxes": [[width / 4, height / 4, 3 * width / 4, 3 * height / 4]]}

    def compute(self, explanation: Explanation) -> Mapping[str, float]:
        """Four numbers of the map and three of every level that the certificate labels; the model is not evaluated."""
        inside = box_mask(explanation.extras["boxes"], explanation.image)
        z = map_on_pixels(explanation.map, explanation.image).double().numpy()
        result = {"localization.loc": box_overlap(z, inside), "localization.eg": energy_inside(z, inside),
                  "localization.pp": positive_share(z, inside), "localization.con": concentration(z, inside)}
        certificate = explanation.certificate
        if not certificate.about_labels:
            return result
        important = (labels_on_pixels(certificate.labels, explanation.image) == 1).astype(np.float64)
        for level, ones in zip(certificate.levels, important, strict=True):
            result[f"localization.certified-loc.{level}"] = box_overlap(ones, inside)
            result[f"localization.certified-eg.{level}"] = energy_inside(ones, inside)
            result[f"localization.certified-con.{level}"] = concentration(ones, inside)
        return result


def box_mask(boxes: Sequence[Sequence[float]], image: Tensor) -> np.ndarray:
    """(H,W) bool: the pixels whose centre is in one of the boxes [left, top, right, bottom], in pixels of the image.

    Raises:
        UsageError: something that is no box.
    """
    height, width = image.shape[-2:]
    mask = np.zeros((height, width), dtype=bool)
    across, down = np.arange(width) + 0.5, np.arange(height) + 0.5
    for box in boxes:
        if len(box) != 4:
            raise UsageError(f"{list(box)} is not a box: give left, top, right and bottom in pixels of the model's "
                             "input")
        left, top, right, bottom = box
        mask |= np.logical_and.outer((down >= top) & (down < bottom), (across >= left) & (across < right))
    return mask


def box_overlap(z: np.ndarray, inside: np.ndarray) -> float:
    """|A⁺ ∩ S| / |A⁺ ∪ S| of the pixels with z > 0 and those inside."""
    positive = z > 0
    return float((positive & inside).sum() / max(1, (positive | inside).sum()))


def energy_inside(z: np.ndarray, inside: np.ndarray) -> float:
    """Σ_S max(z, 0) / Σ max(z, 0)."""
    return share_inside(z.clip(min=0), inside)


def positive_share(z: np.ndarray, inside: np.ndarray) -> float:
    """Σ_S max(z, 0) / Σ_S |z|."""
    return share_inside(np.abs(z)[inside], z[inside] > 0)


def concentration(z: np.ndarray, inside: np.ndarray) -> float:
    """Σ_S |ẑ_i| / max(1, ‖i − c‖₂), c the centre of mass of |ẑ|, ẑ = z / Σ|z|."""
    magnitude = np.abs(z)
    total = magnitude.sum()
    if total == 0:
        return 0.0
    row, column = ndimage.center_of_mass(magnitude)
    down, across = np.indices(z.shape)
    distance = np.maximum(1.0, np.hypot(down - row, across - column))
    return float((magnitude / distance)[inside].sum() / total)
