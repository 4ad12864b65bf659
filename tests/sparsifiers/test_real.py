"""Real-valued levels against definitions written out per map, per pixel."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pydantic import ValidationError

from certframe.sparsifiers.real import Quadratic, Relaxed, Scaled, Sparsified, relax
from certframe.sparsifiers.top_k import TopK

shapes = hnp.array_shapes(min_dims=3, max_dims=3, min_side=1, max_side=6)
few_values = st.sampled_from([-2.0, -1.0, -0.0, 0.0, 0.0, 0.5, 1.0, 3.0])
any_values = st.floats(-2.0**60, 2.0**60, width=32)
score_maps = st.one_of(hnp.arrays(np.float32, shapes, elements=few_values),
                       hnp.arrays(np.float32, shapes, elements=any_values),
                       hnp.arrays(np.float32, shapes, elements=st.just(0.0), fill=st.just(0.0)))
shares = st.one_of(st.sampled_from([1.0, 0.5, 0.25, 0.1, 0.011, 1e-6]), st.integers(1, 1000).map(lambda i: i / 1000))
rankings = st.sampled_from(["magnitude", "signed", "positive"])


def ranked(one: np.ndarray, ranking: str) -> np.ndarray:
    return {"magnitude": np.abs(one), "signed": one, "positive": np.maximum(one, 0)}[ranking]


def quotient(score: float, unit: float) -> float:
    with np.errstate(over="ignore"):  # a large negative score in units of a tiny one: 0 in any case
        return min(max(float(np.float32(score) / np.float32(unit)), 0.0), 1.0)


@given(score_maps, rankings)
def test_scaled_and_quadratic(maps: np.ndarray, ranking: str) -> None:
    before = maps.copy()
    scaled = Scaled(Scaled.Options(ranking=ranking)).sparsify(torch.from_numpy(maps)).numpy()
    quadratic = Quadratic(Quadratic.Options(ranking=ranking)).sparsify(torch.from_numpy(maps)).numpy()
    np.testing.assert_array_equal(maps, before)
    for found in (scaled, quadratic):
        assert found.dtype == np.float32
        assert found.shape == (maps.shape[0], 1, *maps.shape[1:])
    for b, one in enumerate(maps):
        scores = ranked(one, ranking)
        top = float(scores.max())
        for index in np.ndindex(*one.shape):
            expected = quotient(scores[index], top) if top > 0 else 0.0
            assert scaled[(b, 0, *index)] == pytest.approx(expected, rel=1e-6, abs=0)
            assert quadratic[(b, 0, *index)] == pytest.approx(expected**2, rel=1e-6, abs=1e-38)
        if top > 0:
            assert scaled[b].max() == quadratic[b].max() == 1.0


def tie_rule(scores: np.ndarray, share: float) -> np.ndarray:
    """The ⌈share·N⌉ largest: strictly greater than the first one left out; all of them if none is left out."""
    descending = sorted(scores.ravel().tolist(), reverse=True)
    count = math.ceil(Fraction(repr(share)) * scores.size)
    bound = descending[count] if count < scores.size else -math.inf
    return np.asarray(scores > bound)


def relaxed_by_definition(scores: np.ndarray, gamma: float, tau: float) -> np.ndarray:
    count = math.ceil(Fraction(repr(gamma)) * scores.size)
    unit = sorted(scores.ravel().tolist(), reverse=True)[max(count, 1) - 1]
    full, kept = tie_rule(scores, gamma) if count else np.zeros(scores.shape, bool), tie_rule(scores, tau)
    result = np.zeros(scores.shape)
    for index in np.ndindex(*scores.shape):
        if full[index]:
            result[index] = 1.0
        elif kept[index]:
            result[index] = quotient(scores[index], unit) if unit > 0 else 0.0
    return result


@given(score_maps, rankings, shares, shares)
def test_relaxed_follows_the_definition(maps: np.ndarray, ranking: str, first: float, second: float) -> None:
    for gamma, tau in ((min(first, second), max(first, second)), (0.0, first), (second, second)):
        options = Relaxed.Options(gamma=gamma, tau=tau, ranking=ranking)
        found = Relaxed(options).sparsify(torch.from_numpy(maps)).numpy()
        assert found.dtype == np.float32
        assert found.shape == (maps.shape[0], 1, *maps.shape[1:])
        for b, one in enumerate(maps):
            expected = relaxed_by_definition(np.maximum(ranked(one, ranking), 0), gamma, tau)
            np.testing.assert_allclose(found[b, 0], expected, rtol=1e-6, atol=0)


@given(score_maps, shares)
def test_relaxed_with_gamma_equal_to_tau_is_sparsified(maps: np.ndarray, tau: float) -> None:
    relaxed = Relaxed(Relaxed.Options(gamma=tau, tau=tau)).sparsify(torch.from_numpy(maps))
    sparsified = Sparsified(Sparsified.Options(tau=tau)).sparsify(torch.from_numpy(maps))
    assert torch.equal(relaxed, sparsified.float())


@given(score_maps)
def test_relaxed_with_everything_is_scaled(maps: np.ndarray) -> None:
    relaxed = Relaxed(Relaxed.Options(gamma=0.0, tau=1.0)).sparsify(torch.from_numpy(maps))
    assert torch.equal(relaxed, Scaled().sparsify(torch.from_numpy(maps)))


@given(score_maps, st.lists(shares, min_size=1, max_size=4), rankings)
def test_sparsified_is_top_k_with_shares(maps: np.ndarray, tau: list[float], ranking: str) -> None:
    sparsifier = Sparsified(Sparsified.Options(tau=tau, ranking=ranking))
    found = sparsifier.sparsify(torch.from_numpy(maps))
    assert found.dtype == torch.bool
    assert sparsifier.nested
    assert sparsifier.binary
    assert not (found[:, 1:] & ~found[:, :-1]).any()
    unique = sorted(set(tau), reverse=True)
    assert [float(level) for level in sparsifier.levels] == unique
    for b, one in enumerate(maps):
        for level, share in enumerate(unique):
            np.testing.assert_array_equal(found[b, level].numpy(), tie_rule(ranked(one, ranking), share))


def test_sparsified_at_the_usual_percentages_equals_top_k() -> None:
    maps = torch.randn(3, 20, 25, generator=torch.Generator().manual_seed(0))
    for share, percent in ((0.5, 50), (0.25, 25), (0.05, 5), (0.07, 7), (0.011, 1.1), (1.0, 100)):
        one = Sparsified(Sparsified.Options(tau=share)).sparsify(maps)
        assert torch.equal(one, TopK(TopK.Options(k=percent)).sparsify(maps))
        assert int(one[0].sum()) == math.ceil(Fraction(str(share)) * 500)


def test_a_map_with_few_positive_scores_keeps_them() -> None:
    """The unit g_[γN] is 0, and what is above it is among the γN largest all the same."""
    maps = torch.zeros(1, 7, 7)
    maps[0, 2, 3], maps[0, 4, 4] = 5.0, 0.25
    found = Relaxed(Relaxed.Options(gamma=0.1, tau=0.3)).sparsify(maps)[0, 0]
    assert found.sum() == 2.0
    assert found[2, 3] == found[4, 4] == 1.0


def test_constant_maps() -> None:
    constant, nothing = torch.full((1, 4, 4), 0.3), torch.zeros(1, 4, 4)
    assert (Scaled().sparsify(constant) == 1).all()
    assert (Quadratic().sparsify(constant) == 1).all()
    for sparsifier in (Scaled(), Quadratic(), Relaxed(), Sparsified(), Sparsified(Sparsified.Options(tau=0.9))):
        assert not sparsifier.sparsify(nothing).any()
    assert not Sparsified().sparsify(constant).any()
    assert not Relaxed().sparsify(constant).any()
    assert Sparsified(Sparsified.Options(tau=1)).sparsify(nothing).all()


def test_maps_of_tiny_and_of_huge_scores() -> None:
    """The largest is 1 also where its reciprocal, or the smallest score's, is not a number of float32."""
    for unit in (1e-42, 1e-38, 1e-20, 1e20, 3e38):
        maps = torch.tensor([[[0.0, 0.25, 0.5, 1.0]]]) * unit
        top = Scaled().sparsify(maps)
        assert top.isfinite().all()
        assert top.max() == 1.0
        assert top[0, 0, 0].tolist() == pytest.approx([0, 0.25, 0.5, 1], rel=1e-2)
        assert Quadratic().sparsify(maps)[0, 0, 0].tolist() == pytest.approx([0, 0.0625, 0.25, 1], rel=1e-2)
        assert relax(maps, 0.5, 0.75)[0, 0].tolist() == pytest.approx([0, 0.5, 1, 1], rel=1e-2)


@pytest.mark.parametrize("sparsifier", [Scaled(), Quadratic(), Relaxed()])
def test_real_levels_are_one_and_do_not_depend_on_the_scale_or_the_batch(sparsifier: Scaled | Relaxed) -> None:
    assert len(sparsifier.levels) == 1
    assert not sparsifier.binary
    maps = torch.randn(4, 6, 5, generator=torch.Generator().manual_seed(3))
    found = sparsifier.sparsify(maps)
    assert torch.allclose(sparsifier.sparsify(maps * 8), found)
    assert torch.equal(sparsifier.sparsify(maps[2:3]), found[2:3])
    assert torch.equal(sparsifier.sparsify(maps.transpose(1, 2)), found.transpose(2, 3))


@pytest.mark.parametrize("tau", [0, -0.1, 1.5, math.nan, ()])
def test_shares_outside_the_unit_interval_are_refused(tau: object) -> None:
    with pytest.raises(ValidationError):
        Sparsified.Options(tau=tau)
    with pytest.raises(ValidationError):
        Relaxed.Options(tau=tau)


def test_gamma_above_tau_is_refused_with_the_way_out() -> None:
    with pytest.raises(ValidationError, match=r"gamma = 0.2 is above tau = 0.1: give 0 ≤ gamma ≤ tau"):
        Relaxed.Options(gamma=0.2, tau=0.1)
    with pytest.raises(ValidationError):
        Relaxed.Options(gamma=-0.1)
    with pytest.raises(ValidationError):
        Scaled.Options(k=5)
    assert Relaxed.Options(gamma=0.1, tau=0.1).gamma == 0.1
    assert Sparsified(Sparsified.Options(tau="0.1, 0.5")).levels == ("0.5", "0.1")
