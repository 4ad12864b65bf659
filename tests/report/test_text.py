from __future__ import annotations

import math
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


@pytest.mark.parametrize(("sparsifier", "level", "name"), [
    ('certframe/top-k {"k": [50]}', "50", "top 50 %"), ('certframe/sparsified {"tau": [0.07]}', "0.07", "top 7 %"),
    ('certframe/threshold {"relative": false}', "0.5", "score > 0.5"),
    ('certframe/threshold {"relative": true}', "0.5", "score > 0.5 of the maximum"),
    ("certframe/scaled {}", "scaled", "scaled"), ("somebody/else {}", "50", "level 50"), ("", "50", "level 50")])
def test_levels_are_named_as_their_sparsifier_means_them(sparsifier, level, name):
    assert text.level_name(level, sparsifier) == name
    certificate, tally = SimpleNamespace(levels=(level,)), SimpleNamespace(identity={"sparsifier": sparsifier})
    assert text.level_names(SimpleNamespace(certificate=certificate, tally=tally)) == [name]


def test_quantities_leave_out_what_is_not_there():
    assert text.quantity_error([0.25, math.nan], "share") == "25.0 %"
    assert text.quantity_error([0.1, 0.2], "radius") == "0.1500 ± 0.0500"
    assert text.quantity_error([300, 500], "number") == "400 ± 100"
    assert text.quantity_error([math.nan], "radius") == "–"


def test_flatten_gives_dotted_keys():
    nested = {"model": {"name": "lite0", "options": {}}, "k": [50, 25], "on": True, "limit": None,
              "attributor": [{"name": "a"}, {"name": "b"}], "empty": []}
    assert list(text.flatten(nested)) == [
        ("model.name", "lite0"), ("k", "50, 25"), ("on", "true"), ("limit", "none"), ("attributor[0].name", "a"),
        ("attributor[1].name", "b"), ("empty", "none")]
