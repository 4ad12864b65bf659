"""`quantile` against the order statistics themselves, and against the quantile of a linear score."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from exact import counted
from hypothesis import assume, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy import stats

from certframe import protocols
from certframe.certifiers.quantile import Quantile
from certframe.errors import UsageError
from certframe.protocols import ABSTAIN
from certframe.sparsifiers.threshold import Threshold
from certframe.statistics.bands import quantile_indices
from certframe.tally import REAL_UNIT, Tally


def made(**options: Any) -> Quantile:
    return Quantile(Quantile.Options(**options))


def tally_at(scores: np.ndarray, thresholds: tuple[float, ...], **changes: Any) -> Tally:
    """Counts of scores (n,h,w) above the thresholds, as the sparsifier takes them."""
    sparsifier = Threshold(Threshold.Options(t=thresholds, ranking="signed"))
    levels = sparsifier.sparsify(torch.from_numpy(scores)).numpy()
    identity = {"sparsifier": 'certframe/threshold {"t": [0]}', "attributor": "gradient"}
    return counted(levels.sum(axis=0), len(scores), **{"levels": sparsifier.levels, "identity": identity,
                                                       "nested": True, **changes})


@given(st.integers(0, 10_000), st.integers(1, 60), st.sampled_from([0.1, 0.5, 0.8]), st.sampled_from([0.0, 0.3]),
       st.sampled_from([0.3, 0.97]), st.booleans())
@hypothesis_settings(max_examples=60)
def test_intervals_are_order_statistics_rounded_outward(seed: int, n: int, p: float, radius: float, alpha: float,
                                                        ties: bool) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(n, 2, 3))
    if ties:
        scores = np.round(scores)
    thresholds = tuple(sorted({float(np.round(t, 2)) for t in rng.normal(size=6)} | {0.0}))
    certificate = made(p=p, radius=radius, alpha=alpha).certify(tally_at(scores, thresholds))
    low, high = quantile_indices(n, p, radius, alpha, 6)
    for index in np.ndindex(2, 3):
        ordered = np.sort(scores[(slice(None), *index)])
        below = [t for t in thresholds if low is not None and ordered[low - 1] > t]
        above = [t for t in thresholds if high is not None and ordered[high - 1] <= t]
        assert certificate.arrays["lower"][index] == max(below, default=-math.inf)
        assert certificate.arrays["upper"][index] == min(above, default=math.inf)
        expected = [1 if t in below else 0 if t in above else ABSTAIN for t in thresholds]
        assert certificate.labels[(slice(None), *index)].tolist() == expected


def test_the_order_of_the_thresholds_does_not_matter() -> None:
    scores = np.random.default_rng(0).normal(size=(200, 4, 4))
    tally = tally_at(scores, (-1.0, -0.5, 0.0, 0.5, 1.0))
    order = [3, 0, 4, 2, 1]
    shuffled = replace(tally, segments=tally.segments[:, order], levels=tuple(tally.levels[i] for i in order))
    one, other = made().certify(tally), made().certify(shuffled)
    for name in ("lower", "upper"):
        assert np.array_equal(one.arrays[name], other.arrays[name])
    assert np.array_equal(other.labels, one.labels[order])


@given(st.integers(0, 10_000), st.sampled_from([0.2, 0.5]), st.sampled_from([0.0, 0.25, 0.5]))
@hypothesis_settings(max_examples=30)
def test_the_quantile_of_a_linear_score_is_inside_wherever_the_image_moves(seed: int, p: float, radius: float) -> None:
    """w·(x + δ + ε) has the p-quantile w·x ± R‖w‖ + σ‖w‖Φ⁻¹(p) at the ends of the ball; α = 10⁻⁶, so always."""
    rng = np.random.default_rng(seed)
    centre, length, sigma = rng.normal(size=(3, 3)), rng.uniform(0.3, 3, size=(3, 3)), 0.25
    scores = centre + sigma * length * rng.normal(size=(600, 3, 3))
    certificate = made(p=p, radius=radius, alpha=1e-6).certify(tally_at(scores, tuple(np.arange(-40, 41) / 10)))
    quantile = centre + sigma * length * stats.norm.ppf(p)
    assert np.all(certificate.arrays["lower"] <= quantile - radius * sigma * length)
    assert np.all(certificate.arrays["upper"] >= quantile + radius * sigma * length)
    assert np.isfinite(certificate.arrays["lower"]).all()
    assert certificate.radius == radius * sigma


def test_finer_thresholds_larger_runs_and_smaller_balls_narrow_the_intervals() -> None:
    scores = np.random.default_rng(1).normal(size=(2000, 4, 4))
    coarse, fine = tuple(np.arange(-4, 5) / 2), tuple(np.arange(-20, 21) / 10)

    def width(tally: Tally, **options: Any) -> np.ndarray:
        certificate = made(**options).certify(tally)
        return np.asarray(certificate.arrays["upper"] - certificate.arrays["lower"])
    usual = width(tally_at(scores, fine))
    assert np.isfinite(usual).all()
    assert np.all(width(tally_at(scores, coarse)) >= usual)
    assert width(tally_at(scores[:200], fine)).mean() > usual.mean()
    assert np.all(width(tally_at(scores, fine), radius=0.2) <= usual)
    assert np.all(width(tally_at(scores, fine), alpha=0.1) <= usual)
    assert np.all(usual >= 1.0)  # 2R in units of the score's own standard deviation


def test_nothing_is_known_with_few_copies() -> None:
    needed = made().min_samples(50176, 9)
    assert needed == 50
    for n, known in ((needed - 1, False), (needed, True)):
        certificate = made().certify(tally_at(np.full((n, 224, 224), 0.3), (0.0, 1.0)))
        assert (certificate.arrays["lower"] == (0.0 if known else -np.inf)).all()
        assert (certificate.arrays["upper"] == (1.0 if known else np.inf)).all()


@given(st.floats(0.05, 0.95), st.floats(0, 1.5), st.sampled_from([0.00101, 0.2003]), st.integers(1, 2000))
@hypothesis_settings(max_examples=40)
def test_min_samples_is_where_an_end_is_first_finite(p: float, radius: float, alpha: float, pixels: int) -> None:
    needed = made(p=p, radius=radius, alpha=alpha).min_samples(pixels, 3)
    assume(needed < 3000)
    assert quantile_indices(needed, p, radius, alpha, pixels) != (None, None)
    if needed > 1:
        assert quantile_indices(needed - 1, p, radius, alpha, pixels) == (None, None)


def test_min_samples_of_far_radii_is_found_or_refused_at_once() -> None:
    assert made(radius=5.0).min_samples(50176, 3) > 10**7
    for radius in (20.0, 1e9):
        with pytest.raises(UsageError, match=re.escape(f"radius = {radius:g} σ: use a smaller radius")):
            made(radius=radius).min_samples(50176, 3)


def test_the_certificate_says_what_is_proven() -> None:
    tally = tally_at(np.random.default_rng(2).normal(size=(100, 4, 3)), (-1.0, 0.0, 1.0))
    before, certificate = tally.to_bytes(), made().certify(tally)
    assert isinstance(certificate, protocols.Certificate)
    assert (certificate.certifier, certificate.subject, certificate.norm) == ("quantile", "value", "l2")
    assert (certificate.function, certificate.method) == ("smoothed", "statistical")
    assert (certificate.samples, certificate.sigma, certificate.family) == (100, 0.25, 12)
    assert certificate.radius == 0.125
    for said in ("0.999", "100 noisy copies", "0.5-quantile", "gradient", "0.125"):
        assert said in certificate.statement
    assert tally.to_bytes() == before
    assert made().looks(100) is None


@pytest.mark.parametrize(("options", "said"), [
    ('{"ranking": "magnitude", "relative": false}', "of the noisy absolute scores of gradient lies"),
    ('{"ranking": "signed", "relative": false}', "of the noisy scores of gradient lies"),
    ('{"ranking": "positive", "relative": true}',
     "of the noisy positive parts of the scores, as shares of each map's largest, of gradient lies"),
])
def test_it_says_of_which_scores(options: str, said: str) -> None:
    tally = tally_at(np.random.default_rng(3).normal(size=(100, 2, 2)), (0.0, 0.5))
    identity = {"sparsifier": f"certframe/threshold {options}", "attributor": "gradient"}
    assert said in made().certify(replace(tally, identity=identity)).statement


def test_other_tallies_are_refused() -> None:
    tally = tally_at(np.zeros((100, 2, 2)), (0.0, 1.0))
    with pytest.raises(UsageError, match="needs the counts of thresholds"):
        made().certify(replace(tally, identity={"sparsifier": "certframe/top-k {}"}))
    with pytest.raises(UsageError, match="needs the counts of thresholds"):
        made().certify(replace(tally, levels=("low", "high")))
    with pytest.raises(UsageError, match="real-valued"):
        made().certify(replace(tally, unit=REAL_UNIT))
    with pytest.raises(UsageError, match="'quantile' is for a number of copies that is fixed"):
        made().certify(replace(tally, planned=1000))
    for options in ({"p": 0.0}, {"p": 1.0}, {"radius": -1}, {"radius": math.nan}, {"alpha": 0.0}, {"alpha": 1.0}):
        with pytest.raises(ValidationError):
            Quantile.Options(**options)
