"""Figures and page of a comparison: the numbers that are drawn, and tables that can be sorted."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from certframe.comparing import Group, Paired, Summary
from certframe.report import comparison, comparison_page

GROUP = Group("run", "photos", "lite0", "grad-cam", "activation", "final", 0.15, "pixel", 0.1012)
METHODS = (("grad-cam", "activation", "final"), ("lrp", "backpropagation", "input"), ("random", "control", "input"))


def summary(group: Group, metric: str, level: float, mean: float) -> Summary:
    return Summary(group, metric, level, mean, 0.01, mean - 0.02, mean + 0.02, 5)


@pytest.fixture
def found() -> list[Summary]:
    """Three methods, two σ, two K, on photographs and on grids."""
    result = []
    for data in ("photos", "grids"):
        for i, (method, family, layer) in enumerate(METHODS):
            for sigma, radius in ((0.15, 0.1), (0.25, 0.17)):
                group = replace(GROUP, data=data, method=method, family=family, layer=layer, sigma=sigma, radius=radius)
                for level in (50.0, 10.0):
                    one, zero = 0.1 * i + level / 1000, 0.3 - sigma
                    for metric, value in (("certified1", one), ("certified0", zero), ("certified", one + zero),
                                          ("abstain", 1 - one - zero)):
                        result.append(summary(group, metric, level, value))
                    if data == "grids":
                        result.append(summary(group, "certified-gridpg", level, 0.2 + 0.1 * i))
                if data == "grids":
                    result.append(summary(group, "certified-gridpg.random", math.nan, 0.25))
                else:
                    result += [summary(group, "deletion.score", p, 1 - p / 100) for p in (0.0, 50.0, 100.0)]
                    result.append(summary(group, "deletion.auc", math.nan, 0.5))
                    result.append(summary(group, "certified-faithfulness.score.clean", math.nan, 0.9))
                    result += [summary(group, "certified-faithfulness.score", k, 0.9 - k / 100) for k in (10.0, 50.0)]
    return result


def test_figures_of_every_kind(found: list[Summary], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    drawn = comparison.drawings(found)
    kinds = {re.sub(r"-(photos|grids|lite0)-.*", "", d.name) for d in drawn}
    assert kinds == {"certified-against-radius", "certified-against-K", "gridpg-against-radius", "gridpg-against-K",
                     "deletion", "certified-faithfulness", "plane"}
    assert len({d.name for d in drawn}) == len(drawn)
    paths = comparison.save(drawn, tmp_path)
    assert all(p.stat().st_size > 1000 and p.with_suffix(".png").stat().st_size > 1000 for p in paths)


def test_bars_are_stacked_to_a_hundred_and_lines_carry_the_means(found: list[Summary]) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    drawn = {d.name: d.figure for d in comparison.drawings(found)}
    axes = drawn["certified-against-radius-photos-lite0-K50"].axes
    assert [a.get_title() for a in axes[:3]] == ["lrp\ninput", "grad-cam\nfinal", "random\ninput"]
    for at, i in enumerate((1, 0, 2)):
        bars = [[bar.get_height() for bar in group] for group in axes[at].containers]
        assert bars[0] == pytest.approx([100 * (0.1 * i + 0.05)] * 2)
        assert bars[1] == pytest.approx([15, 5])
        assert [sum(b) for b in zip(*bars, strict=True)] == pytest.approx([100, 100])
    lines = drawn["gridpg-against-K-grids-lite0-sigma0.15"].axes[0]
    assert lines.get_title() == "input"
    heights = {c.get_label(): list(c.lines[0].get_ydata()) for c in lines.containers}
    assert heights == {"lrp": pytest.approx([0.3, 0.3]), "random": pytest.approx([0.4, 0.4])}
    assert lines.lines[-1].get_ydata()[0] == 0.25


def test_the_plane_takes_the_grids_own_share_or_another_data_sets(found: list[Summary]) -> None:
    points = comparison.plane(found)
    assert set(points) == {("lite0", s, k) for s in (0.15, 0.25) for k in (50.0, 10.0)}
    assert {r.group.data for _, r, _ in points["lite0", 0.15, 50.0]} == {"grids"}
    without = [s for s in found if not (s.metric == "certified" and s.group.data == "grids")]
    assert {r.group.data for _, r, _ in comparison.plane(without)["lite0", 0.15, 50.0]} == {"photos"}
    assert len(points["lite0", 0.15, 50.0]) == 3


def test_tables(found: list[Summary]) -> None:
    tables = {t.title: t for t in comparison_page.tables(found)}
    table = tables["Certified pixels"]
    assert list(table.columns[-3:]) == ["K = 50 %", "K = 10 %", "images"]
    assert len(table.rows) == 2 * 3 * 2
    first = table.rows[0]
    assert [c.text for c in first[:5]] == ["grids", "lite0", "backpropagation", "lrp", "input"]
    assert first[-3].text == "30.0 ± 1.0 % [28.0, 32.0]"
    assert first[-3].short == "30.0 ± 1.0 %"
    assert "Deletion" in tables
    assert not any("score" in title for title in tables)


def test_the_page_is_one_file_with_sortable_tables(found: list[Summary], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    drawn = comparison.drawings([s for s in found if s.metric == "deletion.score"])
    paths = comparison.save(drawn, tmp_path)
    other = replace(GROUP, method="<lrp>")
    pairs = [Paired(GROUP, other, "certified", 50.0, 0.1, 0.05, 0.15, 0.04, 0.08, 5)]
    shown = [*comparison_page.tables(found), comparison_page.differences(pairs, "Differences: certified")]
    comparison_page.write_page(tmp_path / "index.html", ["a", "b"], shown, list(zip(drawn, paths, strict=True)))
    text = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert "2 runs: a, b" in text
    assert "&lt;lrp&gt;, final" in text
    assert text.count("<figure>") == len(drawn)
    assert 'data-sort="0.04"' in text
    assert 'data-sort="0.08"' in text
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    assert "http" not in re.sub(r"http-equiv|"
                                r"http://www\.w3\.org/\S+|http://purl\S+|https://matplotlib\.org/?|"
                                r"http://creativecommons\S+", "", text)


def test_of_very_many_comparisons_the_page_shows_those_with_the_highest_mean() -> None:
    methods = [replace(GROUP, method=f"m{i:02d}") for i in range(33)]
    means = np.random.default_rng(0).permutation(33) / 33
    pairs = [Paired(a, b, "certified", 50.0, means[i] - means[j], means[i] - means[j] - 0.1, means[i] - means[j] + 0.2,
                    0.5, 1.0, 9) for i, a in enumerate(methods) for j, b in enumerate(methods) if i < j]
    assert len(pairs) > comparison_page.MOST_PAIRS
    table = comparison_page.differences(pairs, "Differences")
    best = int(means.argmax())
    column = {name: i for i, name in enumerate(table.columns)}
    assert {row[column["method"]].text for row in table.rows} == {f"m{best:02d}, {GROUP.layer}"}
    assert len(table.rows) == 32
    assert "all 528 are in paired.csv" in table.note
    for row in table.rows:
        other = int(row[column["less method"]].text[1:3])
        lead = means[best] - means[other]
        around = (0.1, 0.2) if best < other else (0.2, 0.1)
        numbers = [row[column[name]].sort for name in ("low", "difference", "high")]
        assert numbers == pytest.approx([lead - around[0], lead, lead + around[1]])
    assert not comparison_page.differences(pairs[:3], "Differences").note
