"""Runs side by side: tidy values, means with bootstrap intervals, and differences on the same images.

Everything is read from run directories; no model is needed. A value belongs to a run, a data set, a model, a method
with its layer, a noise level, a certifier with its radius, a metric with its level K, and an image.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from certframe.config import Component, distinct
from certframe.errors import CertframeError, UsageError
from certframe.files import write_atomic
from certframe.registry import Registry, default_registry
from certframe.statistics.comparisons import holm_adjusted, interval, signed_rank_p
from certframe.store import Run, load_run
from certframe.worker import cells_of

if TYPE_CHECKING:
    import pyarrow as pa

_CELL = re.compile(r"(grid-\d+)-cell-\d+")
_LEVEL = re.compile(r"(.+?)\.(\d+(?:\.\d+)?)")


@dataclass(frozen=True)
class Group:
    """What a number is about: all but metric and image."""

    run: str
    data: str
    model: str
    method: str
    family: str
    layer: str
    sigma: float
    certifier: str
    radius: float


@dataclass(frozen=True)
class Value:
    """A number about one image; `level` is NaN for a metric without levels K."""

    group: Group
    metric: str
    level: float
    image: str
    value: float


@dataclass(frozen=True)
class Summary:
    """The mean over images with its standard error and a bootstrap interval; a grid counts as one image.

    Attributes:
        low, high: percentile bootstrap interval of 95 %; NaN for one image.
        standard_error: sample standard deviation / √images; NaN for one image.
    """

    group: Group
    metric: str
    level: float
    mean: float
    standard_error: float
    low: float
    high: float
    images: int


@dataclass(frozen=True)
class Paired:
    """The mean difference of two methods on the same images (or grids), `first` − `second`, with a bootstrap interval.

    Attributes:
        p: two-sided p-value of Wilcoxon's signed-rank test; 1 when no image differs, NaN for fewer than 2 images.
        adjusted: p adjusted (Holm) for all comparisons of methods of the same run, model, data set, noise level,
            certifier and K.
    """

    first: Group
    second: Group
    metric: str
    level: float
    difference: float
    low: float
    high: float
    p: float
    adjusted: float
    images: int

    def turned(self) -> Paired:
        """The same comparison the other way round."""
        return replace(self, first=self.second, second=self.first, difference=-self.difference, low=-self.high,
                       high=-self.low)


def find_runs(paths: Iterable[Path]) -> list[Run]:
    """The runs at the paths, each a run directory or a study's with runs below it.

    Raises:
        UsageError: there is none at a path.
    """
    found: list[Run] = []
    for path in paths:
        if (path / "run.json").exists():
            found.append(load_run(path))
            continue
        below = sorted(file.parent for file in path.glob("*/*/run.json")) or \
            sorted(file.parent for file in path.glob("*/run.json"))
        if not below:
            raise UsageError(f"there is no run in {path}: give directories that 'certframe run' wrote")
        found += [load_run(run) for run in below]
    unique = {run.path.resolve(): run for run in found}
    return list(unique.values())


def values_of(runs: Sequence[Run], registry: Registry | None = None) -> list[Value]:
    """All numbers of the runs' ledgers; methods are looked up for their families."""
    names = _names([run.path for run in runs])
    methods = _methods(list({c.fingerprint: c for run in runs for c in run.config.attributor}.values()), registry)
    return [value for run, name in zip(runs, names, strict=True) for value in _of_run(run, name, methods)]


def _methods(components: Sequence[Component], registry: Registry | None) -> dict[str, tuple[str, str]]:
    """Fingerprint → name and family. Options are named where methods of one name and layer differ in them.

    Among all runs: one may be there to see what an option of the same method does.
    """
    found: dict[str, tuple[str, str]] = {}
    for layer in dict.fromkeys(map(_layer, components)):
        here = [c for c in components if _layer(c) == layer]
        found |= {c.fingerprint: (name, family(c, registry)) for c, name in zip(here, distinct(here), strict=True)}
    return found


def _layer(method: Component) -> str:
    return str(method.options.get("layer", "input"))


def _names(paths: Sequence[Path]) -> list[str]:
    """A short name for each: as many of the last parts of its path as tell it from the others."""
    parts = [path.resolve().parts for path in paths]
    for depth in range(1, max(map(len, parts), default=1) + 1):
        names = ["/".join(p[-depth:]) for p in parts]
        if len(set(names)) == len(names):
            return names
    return ["/".join(p) for p in parts]


def _of_run(run: Run, name: str, methods: Mapping[str, tuple[str, str]]) -> list[Value]:
    table, config = run.table(), run.config
    cells = {spec.key: spec for spec in cells_of(config)}
    certifiers = run.certifier_names()
    groups: dict[tuple[str, str], Group] = {}
    found = []
    for row in table.to_pylist():
        key = (row["cell"], row["certifier"])
        if key not in groups:
            spec = cells[row["cell"]]
            method = config.attributor[spec.attributor]
            certificate = run.certificate(row["image"], row["cell"], row["certifier"])
            groups[key] = Group(
                run=name, data=_data_name(config.dataset), model=_model_name(config.model),
                method=methods[method.fingerprint][0], family=methods[method.fingerprint][1], layer=_layer(method),
                sigma=spec.sigma, certifier=certifiers[row["certifier"]], radius=float(certificate.radius))
        metric, level = split_level(row["metric"])
        found.append(Value(groups[key], metric, level, row["name"], row["value"]))
    return found


def family(method: Component, registry: Registry | None = None) -> str:
    """The family that a method says it belongs to; "other" when it says none or is not installed."""
    try:
        cls = (registry or default_registry()).find("attributor", f"{method.distribution}/{method.name}").load()
    except CertframeError:
        return "other"
    return str(getattr(cls, "family", "other"))


def split_level(metric: str) -> tuple[str, float]:
    """``certified.25`` → ("certified", 25.0); a metric without a number at its end has the level NaN."""
    match = _LEVEL.fullmatch(metric)
    return (match.group(1), float(match.group(2))) if match else (metric, math.nan)


def _model_name(model: Component) -> str:
    argument = model.options.get("architecture")
    return f"{model.name}:{argument}" if argument else model.name


def _data_name(dataset: Component) -> str:
    path = dataset.options.get("path") or dataset.options.get("store")
    return f"{dataset.name}:{Path(path).name}" if path else dataset.name


def _key(level: float) -> float:
    return -1.0 if math.isnan(level) else level


def grouped(values: Sequence[Value]) -> dict[tuple[Group, str, float], dict[str, float]]:
    """(group, metric, level or −1) → image → value, in the order of the values."""
    found: dict[tuple[Group, str, float], dict[str, float]] = {}
    for v in values:
        found.setdefault((v.group, v.metric, _key(v.level)), {})[v.image] = v.value
    return found


def summaries(values: Sequence[Value]) -> list[Summary]:
    """Means over images, with standard errors and bootstrap intervals."""
    result = []
    for (group, metric, level), images in grouped(values).items():
        numbers = independent(images)
        low, high = interval(numbers)
        error = float(numbers.std(ddof=1) / math.sqrt(len(numbers))) if len(numbers) > 1 else math.nan
        result.append(Summary(group, metric, math.nan if level < 0 else level, float(numbers.mean()), error, low, high,
                              len(numbers)))
    return result


def independent(images: Mapping[str, float]) -> np.ndarray:
    """The values of images that are independent of each other: the cells of one grid become their mean."""
    units: dict[str, list[float]] = {}
    for image, value in images.items():
        match = _CELL.fullmatch(image)
        units.setdefault(match.group(1) if match else image, []).append(value)
    return np.array([np.mean(values) for values in units.values()])


def paired(values: Sequence[Value], metric: str) -> list[Paired]:
    """Every two methods of the same model, data set, noise level and certifier, on the images that both have."""
    blocks: dict[tuple[object, ...], list[tuple[Group, dict[str, float]]]] = {}
    levels: dict[tuple[object, ...], float] = {}
    for (group, name, level), images in grouped(values).items():
        if name == metric:
            key = (group.run, group.data, group.model, group.sigma, group.certifier, level)
            blocks.setdefault(key, []).append((group, images))
            levels[key] = math.nan if level < 0 else level
    return [pair for key, block in blocks.items() for pair in _adjusted(
        [_compare(first, second, metric, levels[key]) for first, second in combinations(block, 2)])]


def _adjusted(found: Sequence[Paired]) -> list[Paired]:
    return [replace(pair, adjusted=p) for pair, p in zip(found, holm_adjusted([pair.p for pair in found]), strict=True)]


def _compare(first: tuple[Group, dict[str, float]], second: tuple[Group, dict[str, float]], metric: str,
             level: float) -> Paired:
    common = [image for image in first[1] if image in second[1]]
    differences = independent({image: first[1][image] - second[1][image] for image in common})
    low, high = interval(differences)
    return Paired(first[0], second[0], metric, level, float(differences.mean()) if len(common) else math.nan, low, high,
                  signed_rank_p(differences), math.nan, len(differences))


def as_table(found: Sequence[Summary]) -> pa.Table:
    """A row for every summary, for CSV and Parquet."""
    import pyarrow as pa

    rows = [{**{name: getattr(s.group, name) for name in Group.__dataclass_fields__}, "metric": s.metric,
             "level": None if math.isnan(s.level) else s.level, "mean": s.mean,
             "standard_error": _or_none(s.standard_error), "low": _or_none(s.low), "high": _or_none(s.high),
             "images": s.images} for s in found]
    return pa.Table.from_pylist(rows)


def _or_none(number: float) -> float | None:
    return None if math.isnan(number) else number


def pairs_table(found: Sequence[Paired]) -> pa.Table:
    """A row for every comparison of two methods."""
    import pyarrow as pa

    schema = pa.schema([(name, pa.string()) for name in ("run", "data", "model")] + [("sigma", pa.float64())]
                       + [("certifier", pa.string())]
                       + [(f"{which}_{name}", pa.string()) for which in ("first", "second") for name in
                          ("method", "layer")] + [("metric", pa.string())]
                       + [(name, pa.float64()) for name in ("level", "difference", "low", "high", "p", "p_adjusted")]
                       + [("images", pa.int64())])
    rows = [{"run": p.first.run, "data": p.first.data, "model": p.first.model, "sigma": p.first.sigma,
             "certifier": p.first.certifier, "first_method": p.first.method, "first_layer": p.first.layer,
             "second_method": p.second.method, "second_layer": p.second.layer, "metric": p.metric,
             "level": _or_none(p.level), "difference": _or_none(p.difference), "low": _or_none(p.low),
             "high": _or_none(p.high), "p": _or_none(p.p), "p_adjusted": _or_none(p.adjusted),
             "images": p.images} for p in found]
    return pa.Table.from_pylist(rows, schema=schema)


def write_tables(folder: Path, found: Sequence[Summary], pairs: Sequence[Paired]) -> None:
    """``summary`` and ``paired``, each as CSV and Parquet."""
    import io

    import pyarrow.csv
    import pyarrow.parquet

    for name, table in (("summary", as_table(found)), ("paired", pairs_table(pairs))):
        for ending, write in (("csv", pyarrow.csv.write_csv), ("parquet", pyarrow.parquet.write_table)):
            buffer = io.BytesIO()
            write(table, buffer)
            write_atomic(folder / f"{name}.{ending}", buffer.getvalue())


def as_json(found: Sequence[Summary], pairs: Sequence[Paired]) -> str:
    """The same for scripts."""
    return json.dumps({"summary": as_table(found).to_pylist(), "paired": pairs_table(pairs).to_pylist()}, indent=2)
