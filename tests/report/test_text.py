from __future__ import annotations

import statistics
from types import SimpleNamespace

import pytest

from certframe.report import text


@pytest.mark.parametrize(("share", "written"),
                         [(0.0, "0.0 %"), (1.0, "100.0 %"), (0.0625, "6.3 %"), (0.4306, "43.1 %")])
def test_percent_rounds_halves_up(share, written):
    assert text.percent(share) == written


def test_radius_is_also_given_in_grey_levels():
    assert text.radius(0.15 * 0.6744897501960817) == "0.1012 (25.8/255)"


def test_mean_and_standard_error():
    values = [0.1, 0.4, 0.35, 0.8]
    mean, error = text.mean_error(values)
    assert mean == pytest.approx(statistics.fmean(values))
    assert error == pytest.approx(statistics.stdev(values) / 2)
    assert text.percent_error(values) == "41.3 ± 14.5 %"
    assert text.percent_error([0.25]) == "25.0 %"
    assert text.number_error([2.0, 4.0]) == "3 ± 1"


def test_votes_needed():
    assert text.votes_needed(96, 100, certified_all=False) == "needs 96 votes"
    assert text.votes_needed(101, 100, certified_all=False) == "100 copies are too few"
    assert text.votes_needed(51, 100, certified_all=True) == "nothing abstains"


@pytest.mark.parametrize(("sparsifier", "name"), [
    ('certframe/top-k {"k": [50]}', "top 50 %"), ("certframe/threshold {}", "level 50"), (None, "level 50")])
def test_levels_are_percentages_only_for_top_k(sparsifier, name):
    explanation = SimpleNamespace(tally=SimpleNamespace(identity={"sparsifier": sparsifier} if sparsifier else {}))
    assert text.level_name(explanation, "50") == name


def test_flatten_gives_dotted_keys():
    nested = {"model": {"name": "lite0", "options": {}}, "k": [50, 25], "on": True, "limit": None,
              "attributor": [{"name": "a"}, {"name": "b"}], "empty": []}
    assert list(text.flatten(nested)) == [
        ("model.name", "lite0"), ("k", "50, 25"), ("on", "true"), ("limit", "none"), ("attributor[0].name", "a"),
        ("attributor[1].name", "b"), ("empty", "none")]
