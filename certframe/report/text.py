"""How numbers are written in the report and in figures: one rounding rule, the same as in the page's script."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from typing import Any

from certframe.protocols import Explanation


def percent(share: float) -> str:
    """A share in [0, 1] as ``43.1 %``; halves round up, as in the script."""
    return f"{math.floor(share * 1000 + 0.5) / 10:.1f} %"


def radius(value: float) -> str:
    """A radius in pixel units, and as a number of 8-bit grey levels: ``0.1012 (25.8/255)``."""
    return f"{math.floor(value * 1e4 + 0.5) / 1e4:.4f} ({math.floor(value * 2550 + 0.5) / 10:.1f}/255)"


def plain(value: float) -> str:
    """Three significant digits, with a real minus sign."""
    return f"{value:.3g}".replace("-", "\N{MINUS SIGN}")


def votes_needed(threshold: int, samples: int, *, certified_all: bool) -> str:
    """What a level's vote threshold means; of no interest when every pixel has the votes anyway."""
    if certified_all:
        return "nothing abstains"
    return f"{samples} copies are too few" if threshold > samples else f"needs {threshold} votes"


def mean_error(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and standard error of the mean; None for the error of a single value. Plain sums, as in the script."""
    mean = sum(values) / len(values)
    if len(values) < 2:
        return mean, None
    variance = sum((value - mean) * (value - mean) for value in values) / (len(values) - 1)
    return mean, math.sqrt(variance / len(values))


def percent_error(values: Sequence[float]) -> str:
    """Mean ± standard error of shares: ``43.1 ± 2.0 %``."""
    mean, error = mean_error(values)
    return percent(mean) if error is None else f"{percent(mean)[:-2]} ± {percent(error)}"


def radius_error(values: Sequence[float]) -> str:
    """Mean ± standard error of radii in pixel units: ``0.0931 ± 0.0021``."""
    return " ± ".join(f"{math.floor(value * 1e4 + 0.5) / 1e4:.4f}" for value in mean_error(values) if value is not None)


def quantity_error(values: Sequence[float], unit: str) -> str:
    """Mean ± standard error of what is there, in the unit ``share``, ``radius`` or ``number``; NaN are left out."""
    there = [value for value in values if not math.isnan(value)]
    write = {"share": percent_error, "radius": radius_error, "number": number_error}[unit]
    return write(there) if there else "–"


def number_error(values: Sequence[float]) -> str:
    """Mean ± standard error of any numbers, to four significant digits."""
    mean, error = mean_error(values)
    return f"{mean:.4g}" if error is None else f"{mean:.4g} ± {float(f'{error:.2g}'):g}"


def level_name(level: str, sparsifier: str) -> str:
    """What to call a level of a sparsifier, given as its fingerprint: ``top 25 %``, ``score > 0.5``, ``scaled``."""
    kind, _, options = sparsifier.partition(" ")
    name = kind.rsplit("/")[-1]
    if name == "top-k":
        return f"top {level} %"
    if name == "sparsified":
        return f"top {100 * float(level):.6g} %"
    if name == "threshold":
        relative = '"relative": true' in options
        return f"score > {level} of the maximum" if relative else f"score > {level}"
    return level if level.isalpha() else f"level {level}"


def level_names(explanation: Explanation) -> list[str]:
    """What to call the levels of an explanation's certificate."""
    sparsifier = str(getattr(explanation.tally, "identity", {}).get("sparsifier", ""))
    return [level_name(level, sparsifier) for level in explanation.certificate.levels]


def flatten(value: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested mappings and lists of mappings → (dotted key, text) pairs, in order."""
    if hasattr(value, "model_dump"):
        value = value.model_dump(mode="json")
    elif is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from flatten(item, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(value, list | tuple) and any(isinstance(item, Mapping) for item in value):
        for index, item in enumerate(value):
            yield from flatten(item, f"{prefix}[{index}]")
    elif isinstance(value, list | tuple | set | frozenset):
        yield prefix, ", ".join(map(str, value)) or "none"
    else:
        yield prefix, "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def cell(value: str | int | float | None) -> str:
    """A cell of an added table: text as it is, numbers with four digits, a dash for what there is not."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else value
