"""Means over images, with their standard errors."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class Mean:
    """The mean of a metric over the images of a run.

    Attributes:
        standard_error: sample standard deviation / √images; NaN for one image.
    """

    cell: str
    attributor: str
    sigma: float
    certifier: str
    metric: str
    mean: float
    standard_error: float
    images: int


def summarise(table: pa.Table) -> list[Mean]:
    """Group the rows of a run's table (`certframe.Run.table`) by cell, certifier and metric, in their first order."""
    groups: dict[tuple[str, str, float, str, str], list[float]] = {}
    for row in table.to_pylist():
        key = (row["cell"], row["attributor"], row["sigma"], row["certifier"], row["metric"])
        groups.setdefault(key, []).append(row["value"])
    return [Mean(*key, mean=float(np.mean(values)), standard_error=_standard_error(values), images=len(values))
            for key, values in groups.items()]


def _standard_error(values: list[float]) -> float:
    return float(np.std(values, ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan
