"""Top-k against a rule written out per map, per pixel, in rational numbers."""

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

from certframe.sparsifiers.top_k import TopK, _next_largest, _next_largest_on_cpu, top_k

shapes = hnp.array_shapes(min_dims=3, max_dims=3, min_side=1, max_side=7)
few_values = st.sampled_from([-2.0, -1.0, -0.0, 0.0, 0.5, 1.0, 3.0])
any_values = st.floats(-2.0**100, 2.0**100, width=32)
score_maps = st.one_of(hnp.arrays(np.float32, shapes, elements=few_values),
                       hnp.arrays(np.float32, shapes, elements=any_values),
                       hnp.arrays(np.float32, shapes, elements=any_values, fill=few_values))
percents = st.lists(st.one_of(st.sampled_from([100.0, 50.0, 25.0, 5.0, 0.1, 1e-5]),
                              st.integers(1, 1000).map(lambda i: i / 10),
                              st.floats(0, 100, exclude_min=True)), min_size=1, max_size=5)


def by_the_rule(scores: np.ndarray, k: list[float]) -> np.ndarray:
    """1 iff the score is strictly greater than the (N − ⌈K·N/100⌉)-th smallest, the 0-th smallest being −∞."""
    result = np.zeros((scores.shape[0], len(k), *scores.shape[1:]), dtype=bool)
    for b, one in enumerate(scores):
        ascending = sorted(float(v) for v in one.ravel())
        for level, percent in enumerate(k):
            place = one.size - math.ceil(Fraction(str(percent)) * one.size / 100)
            bound = ascending[place - 1] if place else -math.inf
            for index in np.ndindex(*one.shape):
                result[(b, level, *index)] = float(one[index]) > bound
    return result


@given(score_maps, percents)
def test_it_follows_the_rule(scores: np.ndarray, k: list[float]) -> None:
    before = scores.copy()
    found = top_k(torch.from_numpy(scores), k)
    assert found.dtype == torch.bool
    np.testing.assert_array_equal(found.numpy(), by_the_rule(scores, k))
    np.testing.assert_array_equal(scores, before)


@given(score_maps, st.lists(st.integers(1, 49), min_size=1, max_size=4))
def test_the_selection_for_other_devices_agrees(scores: np.ndarray, counts: list[int]) -> None:
    flat = torch.from_numpy(scores).flatten(1)
    counts = [min(count, flat.shape[1]) for count in counts]
    assert torch.equal(_next_largest(flat, counts), _next_largest_on_cpu(flat, counts))


@pytest.mark.parametrize("shape", ["constant", "relu", "saturated", "random"])
def test_full_size_maps(shape: str) -> None:
    scores = np.random.default_rng(0).standard_normal((2, 224, 224), dtype=np.float32)
    scores = {"constant": np.full_like(scores, 0.25), "relu": np.maximum(scores - 1.5, 0),
              "saturated": np.minimum(scores, 0), "random": scores}[shape]
    k = (50.0, 25.0, 5.0)
    for one, levels in zip(scores, top_k(torch.from_numpy(scores), k).numpy(), strict=True):
        for percent, level in zip(k, levels, strict=True):
            bound = np.sort(one, axis=None)[one.size - math.ceil(one.size * percent / 100) - 1]
            np.testing.assert_array_equal(level, one > bound)


@given(score_maps, percents)
def test_levels_are_nested(scores: np.ndarray, k: list[float]) -> None:
    sparsifier = TopK(TopK.Options(k=k))
    levels = sparsifier.sparsify(torch.from_numpy(scores))
    assert levels.shape == (scores.shape[0], len(sparsifier.levels), *scores.shape[1:])
    assert sparsifier.nested
    assert not (levels[:, 1:] & ~levels[:, :-1]).any()


# Floats get 1.1 % of 3000, 7 % of 700 (as 0.07·700) and, exactly converted, 0.1 % of 1000 wrong by one.
@pytest.mark.parametrize(("percent", "pixels", "count"), [
    (1.1, 3000, 33), (2.2, 1500, 33), (7.0, 700, 49), (0.1, 1000, 1), (5.0, 49, 3), (1e-5, 50176, 1)])
def test_the_number_of_pixels_is_exact(percent: float, pixels: int, count: int) -> None:
    scores = torch.randperm(pixels, generator=torch.Generator().manual_seed(0)).float().reshape(1, 1, -1)
    assert int(top_k(scores, (percent,)).sum()) == count


def test_ties_at_the_threshold_are_all_unimportant() -> None:
    scores = torch.tensor([[[3.0, 1.0, 1.0, 0.0]]])
    assert top_k(scores, (50.0,)).flatten().tolist() == [True, False, False, False]


def test_a_constant_map_has_no_important_pixel_below_100_percent() -> None:
    levels = TopK(TopK.Options(k=(100, 99, 50))).sparsify(torch.full((2, 14, 14), 0.3))
    assert levels.flatten(2).all(dim=2).tolist() == [[True, False, False]] * 2
    assert not levels[:, 1:].any()


def test_rankings() -> None:
    maps = torch.tensor([[[-4.0, 3.0], [-2.0, 1.0]]])
    expected = {"magnitude": [True, True, False, False], "signed": [False, True, False, True],
                "positive": [False, True, False, True]}
    for ranking, important in expected.items():
        assert TopK(TopK.Options(k=50, ranking=ranking)).sparsify(maps).flatten().tolist() == important
    below_zero = TopK(TopK.Options(k=50, ranking="positive")).sparsify(-maps.abs())
    assert not below_zero.any()


def test_layout_and_gradients_do_not_matter() -> None:
    maps = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(1))
    expected = TopK().sparsify(maps)
    assert torch.equal(TopK().sparsify(maps.transpose(1, 2)), expected.transpose(2, 3))
    assert torch.equal(TopK().sparsify(maps.clone().requires_grad_()), expected)
    assert torch.equal(TopK().sparsify(maps[:1].expand(4, -1, -1)), expected[:1].expand(4, -1, -1, -1))


def test_maps_with_nan_come_through() -> None:
    # The kernel finds NaN after the fact, without waiting for the device: until then it has to be harmless.
    levels = TopK().sparsify(torch.tensor([[[math.nan, 1.0], [2.0, math.inf]]]))
    assert levels.shape == (1, 3, 2, 2)


def test_k_is_normalised() -> None:
    assert TopK(TopK.Options(k=(5, 50, 25, 5.0))).levels == ("50", "25", "5")
    assert TopK(TopK.Options(k=2.5)).levels == ("2.5",)
    assert TopK(TopK.Options(k="10, 20")).levels == ("20", "10")
    assert TopK().levels == ("50", "25", "5")
    again = TopK.Options.model_validate(TopK.Options(k=7).model_dump(mode="json"))
    assert again == TopK.Options(k=7)


@pytest.mark.parametrize("k", [0, -1, 101, math.nan, math.inf, (), ("a",), (50, 0)])
def test_bad_k_is_refused(k: object) -> None:
    with pytest.raises(ValidationError) as caught:
        TopK.Options(k=k)
    assert caught.value.errors()[0]["loc"][0] == "k"


def test_the_message_names_the_value() -> None:
    with pytest.raises(ValidationError, match=r"\(0, 100\], not 150"):
        TopK.Options(k=(50, 150))
