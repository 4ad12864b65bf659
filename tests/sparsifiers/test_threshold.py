"""Thresholds against plain comparisons."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pydantic import ValidationError

from certframe.sparsifiers.threshold import Threshold

shapes = hnp.array_shapes(min_dims=3, max_dims=3, min_side=1, max_side=5)
numbers = st.one_of(st.sampled_from([-1.0, 0.0, 0.25, 0.5, 1.0]), st.floats(-100, 100, width=32))
maps_of_scores = hnp.arrays(np.float32, shapes, elements=numbers)
RANKINGS = {"magnitude": abs, "signed": lambda v: v, "positive": lambda v: max(v, np.float32(0))}


@given(maps_of_scores, st.lists(numbers, min_size=1, max_size=4), st.sampled_from(sorted(RANKINGS)))
def test_absolute(maps: np.ndarray, t: list[float], ranking: str) -> None:
    levels = Threshold(Threshold.Options(t=t, ranking=ranking)).sparsify(torch.from_numpy(maps))
    assert levels.dtype == torch.bool
    ordered = sorted(set(t))
    assert levels.shape == (maps.shape[0], len(ordered), *maps.shape[1:])
    for b, level, i, j in np.ndindex(*levels.shape):
        assert bool(levels[b, level, i, j]) == bool(RANKINGS[ranking](maps[b, i, j]) > np.float32(ordered[level]))


@given(maps_of_scores, st.lists(st.floats(0, 1, exclude_max=True, width=16), min_size=1, max_size=4),
       st.sampled_from(sorted(RANKINGS)))
def test_relative(maps: np.ndarray, t: list[float], ranking: str) -> None:
    levels = Threshold(Threshold.Options(t=t, relative=True, ranking=ranking)).sparsify(torch.from_numpy(maps))
    for b, one in enumerate(maps):
        scores = [RANKINGS[ranking](v) for v in one.ravel()]
        for level, share in enumerate(sorted(set(t))):
            bound = np.float32(share) * max(scores)
            assert levels[b, level].flatten().tolist() == [bool(score > bound) for score in scores]
    assert not (levels[:, 1:] & ~levels[:, :-1]).any()


def test_a_relative_threshold_on_a_map_of_zeros() -> None:
    assert not Threshold(Threshold.Options(t=(0, 0.5), relative=True)).sparsify(torch.zeros(1, 3, 3)).any()


def test_levels() -> None:
    assert Threshold(Threshold.Options(t=(0.5, -1, 0.5))).levels == ("-1", "0.5")
    assert Threshold(Threshold.Options(t="0.1")).levels == ("0.1",)
    assert Threshold().levels == ("0",)
    assert Threshold.nested
    assert Threshold.binary


@pytest.mark.parametrize("options", [{"t": math.nan}, {"t": math.inf}, {"t": ()}, {"t": 1.0, "relative": True},
                                     {"t": -0.1, "relative": True}, {"t": 0.5, "unknown": 1}])
def test_bad_options_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Threshold.Options(**options)
