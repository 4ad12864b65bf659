"""The tightness figures of [EVA]: mean adversarial overlap by bound method, for both norms and margins."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from eva_methods import EPSILON, Bench, Plugin, measure, pending
from pages import table

TIGHTNESS = "tightness"
METHODS = {"mnist": ("ibp", "forward", "backward", "ibp+forward", "ibp+forward+backward"),
           "cifar10": ("ibp", "forward", "ibp+forward")}
PUBLISHED = {"mnist": {"ibp": "4.58", "forward": "2.66", "backward": "2.36", "ibp+forward+backward": "1.55"},
             "cifar10": {}}


def settings(images: str) -> dict[str, Plugin]:
    """Column → the metric: each norm, and the other margin."""
    every = {"p = 2": {}, "p = 2, joint": {"margin": "joint"}, "p = ∞": {"p": "inf"}}
    return {title: Plugin("metric", TIGHTNESS, {"eps": EPSILON, "methods": list(METHODS[images]), **options})
            for title, options in every.items()}


def measure_tightness(subject: Bench, say: Callable[[str], None]) -> None:
    """Bound every image that has no result yet."""
    for title, metric in settings(subject.images).items():
        lines = subject.lines(TIGHTNESS, TIGHTNESS, metric)
        missing = pending(lines, subject.subjects)
        for one in missing:
            lines.add(one.index, measure(subject.model, one, torch.zeros(1, 1), metric))
        if missing:
            say(f"{subject.images}, tightness, {title}: {len(subject.subjects)} images")


def tightness_table(subject: Bench) -> str:
    """Mean and standard error of the overlap over the images that all columns have."""
    found = {title: subject.lines(TIGHTNESS, TIGHTNESS, metric).by_image()
             for title, metric in settings(subject.images).items()}
    wanted = {one.index for one in subject.subjects}
    common = sorted(set.intersection(wanted, *(set(lines) for lines in found.values())))
    if not common:
        return "Not measured yet."
    rows = []
    for method in METHODS[subject.images]:
        row = [f"`{method}`"]
        for lines in found.values():
            values = np.array([lines[image][f"tightness.{method}"] for image in common])
            error = values.std(ddof=1) / len(values) ** 0.5 if len(values) > 1 else 0.0
            row.append(f"{values.mean():.3g} ± {error:.2g}")
        rows.append([*row, PUBLISHED[subject.images].get(method, "")])
    return f"{len(common)} images.\n\n" + table(["method", *found, "published"], rows)
