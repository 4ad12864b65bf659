"""The grid pointing game: does the importance lie in the cell of the explained class?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from certframe import protocols
from certframe.errors import UsageError
from certframe.metrics.pixels import cells_on_pixels, labels_on_pixels, map_on_pixels
from certframe.protocols import Explanation

if TYPE_CHECKING:
    from torch import Tensor


class _Pointing:
    requires = frozenset({"grid"})

    @classmethod
    def conformance_extras(cls, explanation: Explanation) -> Mapping[str, Any]:
        """The extras that a data set of grids gives, for the conformance kit."""
        return {"grid": {"n": 2, "cell": 1}}


class GridPG(_Pointing):
    """Share of the positive importance that lies in the cell of the explained class, on a grid of pictures.

    ``gridpg`` in [0, 1], 0 when nothing is positive; 1/n² is chance, for n × n cells. Needs the extras of a data set
    of grids.

    Source: Rao, Böhle, Schiele, "Towards Better Understanding Attribution Methods", CVPR 2022.
    """

    class Options(protocols.Options):
        """`gridpg` has no options."""

    of_map = True

    def __init__(self, options: Options | None = None) -> None:
        self.options = options or self.Options()

    def compute(self, explanation: Explanation) -> Mapping[str, float]:
        """The share, without evaluating the model."""
        cell = cell_mask(explanation.extras["grid"], explanation.image)
        importance = map_on_pixels(explanation.map, explanation.image).double().clamp(min=0).numpy()
        return {"gridpg": share_inside(importance, cell)}


class CertifiedGridPG(_Pointing):
    """Share of the certified important pixels that lie in the cell of the explained class, on a grid of pictures.

    For level K ``certified-gridpg.K`` in [0, 1], 0 when no pixel is certified important; ``certified-gridpg.random`` is
    1/n², the value of a random map on n × n cells. Needs the extras of a data set of grids.

    Source: Anani et al., "Pixel-level Certified Explanations via Randomized Smoothing", ICML 2025.
    """

    class Options(protocols.Options):
        """`certified-gridpg` has no options."""

    requires = frozenset({"grid", "labels"})

    def __init__(self, options: Options | None = None) -> None:
        self.options = options or self.Options()

    def compute(self, explanation: Explanation) -> Mapping[str, float]:
        """One share for each level, without evaluating the model."""
        certificate, grid = explanation.certificate, explanation.extras["grid"]
        cell = cell_mask(grid, explanation.image)
        important = labels_on_pixels(certificate.labels, explanation.image) == 1
        shares = {f"certified-gridpg.{level}": share_inside(pixels, cell)
                  for level, pixels in zip(certificate.levels, important, strict=True)}
        return {**shares, "certified-gridpg.random": 1 / grid["n"] ** 2}


def cell_mask(grid: Mapping[str, Any], image: Tensor) -> np.ndarray:
    """(H,W) bool: the pixels of the cell of the explained class.

    Args:
        grid: ``n``, the number of cells along a side, and ``cell``, the number of one, row by row from 0.
        image: (C,H,W).

    Raises:
        UsageError: there is no such cell.
    """
    try:
        cells, cell = int(grid["n"]), int(grid["cell"])
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(f"the grid {grid!r} is not one: give {{\"n\": cells along a side, \"cell\": number of the "
                         "explained class's}") from error
    if cells < 1 or not 0 <= cell < cells**2:
        raise UsageError(f"a grid of {cells}×{cells} has no cell {cell}: they are numbered row by row from 0")
    mask: np.ndarray = cells_on_pixels(cells, image) == cell
    return mask


def share_inside(weights: np.ndarray, inside: np.ndarray) -> float:
    """The part of the non-negative (H,W) weights that lies inside; 0 when there are none."""
    total = float(weights.sum())
    return float(weights[inside].sum()) / total if total > 0 else 0.0
