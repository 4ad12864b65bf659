"""Targeted explanations of digits, as in figure 7 of [EVA]: where ink would make a digit another one."""

from __future__ import annotations

from pathlib import Path

from eva_methods import Bench, Plugin, Subject, eva, explain, stored_map
from torch import Tensor

PAIRS = ((1, 7), (3, 8), (4, 9), (5, 6), (7, 9), (9, 4))
"""A digit, and what it is asked to become."""


def targeted(subject: Bench, one: Subject, towards: int) -> Tensor:
    """φ⁺ − φ⁻ of one image on the grid: positive where ink added, negative where ink removed, helps the other class."""
    options = {**eva(subject.images).options, "towards": towards, "margin": "joint"}
    return stored_map(explain(subject.model, one, Plugin("attributor", "eva-targeted", options)))


def draw(subject: Bench, path: Path) -> None:
    """The first image of each digit in the study beside its map: add ink where it is red, remove it where blue."""
    import matplotlib as mpl
    mpl.use("Agg")
    from matplotlib import pyplot

    chosen = [(next((s for s in subject.subjects if s.target == digit), None), towards) for digit, towards in PAIRS]
    shown = [(one, towards) for one, towards in chosen if one is not None]
    sheet, axes = pyplot.subplots(2, len(shown), figsize=(1.7 * len(shown), 3.7), squeeze=False, layout="constrained")
    for column, (one, towards) in enumerate(shown):
        found = targeted(subject, one, towards)
        height, width = one.image.shape[1:]
        most = float(found.abs().max()) or 1.0
        digit = 1 - one.image[0] if one.image.shape[0] == 1 else one.image.permute(1, 2, 0)
        axes[0, column].imshow(digit, cmap="gray", vmin=0, vmax=1)
        axes[1, column].imshow(digit, cmap="gray", vmin=-2, vmax=1)
        axes[1, column].imshow(found, cmap="bwr", vmin=-most, vmax=most, alpha=0.6, extent=(-0.5, width - 0.5,
                                                                                            height - 0.5, -0.5))
        axes[0, column].set_title(f"{one.target} → {towards}", fontsize=11)
    for axis in axes.flat:
        axis.set_axis_off()
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.savefig(path, dpi=110, metadata={"Software": None})
    pyplot.close(sheet)
