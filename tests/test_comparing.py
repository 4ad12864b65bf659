"""Values of several runs, their means with intervals, and differences on the same images."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.csv
import pyarrow.parquet
import pytest
import toys
from scipy import stats

from certframe import comparing
from certframe.comparing import Group, Value, paired, split_level, summaries
from certframe.config import component
from certframe.errors import UsageError
from certframe.pipeline import execute
from certframe.registry import Registry, default_registry
from certframe.statistics.comparisons import holm_adjusted
from certframe.store import Run

GROUP = Group("run", "data", "model", "a", "control", "input", 0.25, "pixel", 0.1)


@pytest.fixture
def go(registry: Registry) -> Callable[..., Run]:
    def call(out: Path, **settings: Any) -> Run:
        return execute(toys.configure(registry, **settings), out, registry=registry)
    return call


def values(group: Group, numbers: list[float], metric: str = "m", level: float = math.nan) -> list[Value]:
    return [Value(group, metric, level, f"image {i}", v) for i, v in enumerate(numbers)]


@pytest.mark.parametrize(("metric", "expected"), [
    ("certified.25", ("certified", 25.0)), ("deletion.score.12.5", ("deletion.score", 12.5)),
    ("localization.certified-loc.5", ("localization.certified-loc", 5.0)), ("a.0.5", ("a", 0.5))])
def test_levels_are_the_numbers_at_the_end(metric: str, expected: tuple[str, float]) -> None:
    assert split_level(metric) == expected


@pytest.mark.parametrize("metric", ["mu-fidelity", "deletion.auc", "certified-gridpg.random"])
def test_other_metrics_have_no_level(metric: str) -> None:
    name, level = split_level(metric)
    assert name == metric
    assert math.isnan(level)


def test_summaries_and_pairs() -> None:
    first, second = [0.1, 0.5, 0.7, 0.9], [0.2, 0.4, 0.6]
    other = replace(GROUP, method="b")
    everything = values(GROUP, first) + values(other, second)
    one, two = summaries(everything)
    assert (one.mean, one.images) == (pytest.approx(0.55), 4)
    assert one.standard_error == pytest.approx(stats.sem(first))
    assert one.low < one.mean < one.high
    assert two.group is other
    pair, = paired(everything, "m")
    differences = np.array(first[:3]) - second
    assert (pair.difference, pair.images) == (pytest.approx(differences.mean()), 3)
    assert pair.p == pytest.approx(stats.wilcoxon(differences).pvalue)
    assert paired(values(GROUP, first) + values(other, first), "m")[0].p == 1.0
    assert paired(values(GROUP, first) + values(replace(other, sigma=0.5), first), "m") == []
    alone, = paired(values(GROUP, [1.0]) + values(other, [0.5]), "m")
    assert math.isnan(alone.p)
    assert math.isnan(alone.adjusted)
    none, = paired(values(GROUP, [1.0]) + [Value(other, "m", math.nan, "another", 1.0)], "m")
    assert (none.images, math.isnan(none.difference)) == (0, True)


def test_p_values_are_adjusted_for_the_comparisons_at_one_noise_level() -> None:
    generator = np.random.default_rng(0)
    groups = [replace(GROUP, method=m, sigma=sigma) for sigma in (0.25, 0.5) for m in "abc"]
    found = paired([v for i, g in enumerate(groups) for v in values(g, (generator.normal(size=12) + i % 3).tolist())],
                   "m")
    for sigma in (0.25, 0.5):
        here = [p for p in found if p.first.sigma == sigma]
        assert len(here) == 3
        assert [p.adjusted for p in here] == pytest.approx(holm_adjusted([p.p for p in here]))
        assert any(p.adjusted > p.p for p in here)


def test_the_cells_of_a_grid_are_one_image() -> None:
    cells = {(g, c): 0.1 * g + 0.3 * c for g in range(5) for c in range(4)}
    everything = [Value(group, "m", math.nan, f"grid-{g:04d}-cell-{c}", sign * v)
                  for group, sign in ((GROUP, 1), (replace(GROUP, method="b"), -1)) for (g, c), v in cells.items()]
    one = summaries(everything)[0]
    grids = [np.mean([v for (other, _), v in cells.items() if other == g]) for g in range(5)]
    assert (one.images, one.mean) == (5, pytest.approx(np.mean(grids)))
    assert one.standard_error == pytest.approx(stats.sem(grids))
    pair, = paired(everything, "m")
    assert (pair.images, pair.difference) == (5, pytest.approx(2 * np.mean(grids)))
    assert pair.p == pytest.approx(stats.wilcoxon(2 * np.array(grids)).pvalue)


def test_values_of_real_runs(tmp_path: Path, go: Callable[..., Run]) -> None:
    runs = [go(tmp_path / "study" / "data" / name, attributor=["toy-weighted", "toy-random"], sigma=[0.25, 0.5],
               samples=n) for name, n in (("a", 48), ("b", 60))]
    found = comparing.find_runs([tmp_path / "study", runs[0].path])
    assert [run.path.name for run in found] == ["a", "b"]
    read = comparing.values_of(found)
    rows = [row for run in runs for row in run.table().to_pylist()]
    assert len(read) == len(rows)
    assert [v.value for v in read] == [row["value"] for row in rows]
    groups = {v.group for v in read}
    assert len(groups) == 2 * 2 * 2
    assert {(g.run, g.model, g.method, g.layer) for g in groups} == {
        (run, "toy", method, "input") for run in "ab" for method in ("toy-weighted", "toy-random")}
    for g in groups:
        assert g.radius == pytest.approx(g.sigma * stats.norm.ppf(0.75))
    assert len(comparing.paired(read, "certified")) == 2 * 2 * len({v.level for v in read if v.metric == "certified"})


def test_a_method_with_other_options_in_another_run_is_told_apart(tmp_path: Path, go: Callable[..., Run]) -> None:
    runs = [go(tmp_path / f"{offset}", attributor=["toy-random", {"name": "toy-weighted", "offset": offset}])
            for offset in (0, 3)]
    groups = {v.group for v in comparing.values_of(runs)}
    assert {(g.run, g.method) for g in groups} == {
        ("0", "toy-random"), ("3", "toy-random"), ("0", "toy-weighted (offset=0)"), ("3", "toy-weighted (offset=3)")}


def test_options_are_named_where_name_and_layer_do_not_tell_methods_apart() -> None:
    methods = [component("attributor", {"name": "occlusion", **options}) for options in (
        {"layer": "final"}, {"layer": "input", "patch": 4}, {"layer": "input", "patch": 8})]
    names = comparing._methods(methods, None)
    assert [names[m.fingerprint][0] for m in methods] == ["occlusion", "occlusion (patch=4)", "occlusion (patch=8)"]


def test_tables_are_written_as_csv_and_parquet(tmp_path: Path) -> None:
    everything = values(GROUP, [0.1, 0.5], "certified", 25.0) + values(replace(GROUP, method="b"), [0.1, 0.7],
                                                                      "certified", 25.0)
    found, pairs = summaries(everything), paired(everything, "certified")
    comparing.write_tables(tmp_path, found, pairs)
    for name, rows in (("summary", 2), ("paired", 1)):
        table = pyarrow.parquet.read_table(tmp_path / f"{name}.parquet")
        assert table.num_rows == rows
        assert pyarrow.csv.read_csv(tmp_path / f"{name}.csv").to_pylist()[0]["metric"] == "certified"
    assert json.loads(comparing.as_json(found, pairs))["summary"][0]["mean"] == pytest.approx(0.3)
    comparing.write_tables(tmp_path, found, [])
    assert pyarrow.parquet.read_table(tmp_path / "paired.parquet").num_rows == 0


def test_families(registry: Registry) -> None:
    for name, expected in (("smoothgrad", "backpropagation"), ("occlusion", "perturbation"), ("grad-cam", "activation"),
                           ("random", "control")):
        assert comparing.family(component("attributor", name)) == expected
    mine = component("attributor", "toy-weighted", registry)
    assert comparing.family(mine, registry) == "other", "it says none"
    assert comparing.family(mine) == "other", "it is not installed"


def test_every_method_of_ours_says_its_family() -> None:
    for entry in default_registry().entries("attributor"):
        if entry.distribution.startswith("certframe"):
            assert entry.load().family in {"backpropagation", "activation", "perturbation", "control"}, entry.name


def test_where_there_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no run in"):
        comparing.find_runs([tmp_path])
