"""Sums of several sparsifiers at once, percentiles, and the parts of pages that a command writes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from overlap import RHO, SIGMA, TAUS, Together, curve, key, outlook, part, schemes, sparsifier_of, variants
from pages import fill, table
from percentiles import Percentile, order_statistics, percentile
from scipy import stats
from subjects import drawn

from certframe.tally import REAL_UNIT, Tally


def summed(copies: int = 40) -> tuple[torch.Tensor, Tally]:
    """Random maps and their sums by all schemes, as the sampler makes them."""
    maps = torch.rand(copies, 6, 5, generator=torch.Generator().manual_seed(0)) ** 3
    together = Together(schemes(SIGMA))
    levels = together.sparsify(maps).double()
    segments = (levels * REAL_UNIT).round().to(torch.int64).sum(dim=0)[None].numpy()
    return maps, Tally(segments, ((0, copies),), together.levels, SIGMA, planned=copies, unit=REAL_UNIT)


@pytest.mark.parametrize("scheme", schemes(SIGMA), ids=key)
def test_each_scheme_comes_out_as_if_it_had_been_alone(scheme: tuple[str, float]) -> None:
    maps, tally = summed()
    alone = sparsifier_of(scheme[0], [scheme[1]]).sparsify(maps)
    found = part(tally, scheme)
    if alone.dtype == torch.bool:
        assert found.unit == 1
        assert np.array_equal(found.counts, alone.sum(dim=0).numpy())
    else:
        assert found.unit == REAL_UNIT
        assert found.mean == pytest.approx(alone.double().mean(dim=0).numpy(), abs=1e-8)


def test_the_schemes_are_those_of_the_study() -> None:
    assert set(Together(schemes(SIGMA)).levels) == set(map(key, schemes(SIGMA)))
    assert len(schemes(SIGMA)) == 2 + len(TAUS) + len(TAUS) - 1
    assert len(schemes(2 * SIGMA)) == 4
    assert variants(("sparsified", 0.1)) == ["hoeffding", "clopper-pearson"]
    assert variants(("relaxed", 0.1)) == ["hoeffding"]


def test_curves_fall_with_the_distance_and_a_forecast_at_the_same_q_is_the_certificate() -> None:
    counts = np.random.default_rng(0).binomial(400, np.r_[np.full(20, 0.95), np.full(80, 0.05)])
    tally = Tally(counts.reshape(1, 1, 10, 10), ((0, 400),), ("sparsified 0.2",), SIGMA, planned=400)
    hoeffding, exact = (curve(tally, bounds) for bounds in variants(("sparsified", 0.2)))
    for found in (hoeffding, exact):
        assert np.all(np.diff(found.overlap) <= 0)
        assert found.at(0.0) == 1.0
    assert np.all(exact.overlap >= hoeffding.overlap)
    assert outlook(tally, 400) == hoeffding.at(RHO)
    assert outlook(tally, 10_000) >= hoeffding.at(RHO)


@pytest.mark.parametrize(("count", "share", "expected"), [(64, 0.6, (31, 47)), (8, 0.6, (2, 8)), (6, 0.6, (1, 7)),
                                                          (3, 0.6, (0, 4)), (1, 0.5, (0, 2))])
def test_order_statistics_around_the_percentile(count: int, share: float, expected: tuple[int, int]) -> None:
    low, high = order_statistics(count, share, 0.95)
    assert (low, high) == expected
    assert stats.binom.cdf(low - 1, count, share) <= 0.025 < stats.binom.cdf(low, count, share)
    assert stats.binom.sf(high - 1, count, share) <= 0.025 < stats.binom.sf(high - 2, count, share)


def test_the_interval_covers_the_percentile_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    found = [percentile(values) for values in rng.random((2000, 12))]
    covered = np.mean([p.low <= 0.6 <= p.high for p in found])
    assert 0.945 <= covered <= 1.0
    assert all(p.low <= p.value <= p.high for p in found)


def test_percentiles_are_shown_with_their_interval_where_there_is_one() -> None:
    assert percentile([0.5, 0.1, 0.3, 0.2, 0.4]).value == 0.3
    assert str(Percentile(0.523, 0.0, 1.0)) == ".52"
    assert str(Percentile(0.523, 0.104, 1.0)) == ".52 [.10, 1]"
    assert str(Percentile(0.0, 0.0, 0.25)) == "0 [0, .25]"


def test_a_larger_study_contains_a_smaller_one() -> None:
    assert drawn(120, 9)[:4] == drawn(120, 4)
    assert sorted(drawn(5, 9)) == [0, 1, 2, 3, 4]


def test_parts_of_a_page_are_replaced_and_nothing_else() -> None:
    page = "before\n<!-- made: a -->\nold\n<!-- /made -->\nbetween\n<!-- made: b -->\n<!-- /made -->\nafter\n"
    once = fill(page, {"a": "new \\1", "b": table(["x", "y"], [["1", "2"]])})
    assert once == ("before\n<!-- made: a -->\n\nnew \\1\n\n<!-- /made -->\nbetween\n<!-- made: b -->\n\n| x | y |\n"
                    "| --- | ---: |\n| 1 | 2 |\n\n<!-- /made -->\nafter\n")
    assert fill(once, {"a": "new \\1"}) == once
    with pytest.raises(KeyError, match="no place for 'c'"):
        fill(page, {"c": ""})
