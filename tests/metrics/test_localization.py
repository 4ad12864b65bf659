from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from linear import explained

from certframe.errors import UsageError
from certframe.metrics.localization import (
    Localization,
    box_mask,
    box_overlap,
    concentration,
    energy_inside,
    positive_share,
)

IMAGE = torch.zeros(3, 5, 6)
MAPS = arrays.arrays(np.float64, (5, 6), elements=st.sampled_from([-2.0, -0.5, 0.0, 0.25, 1.0, 3.0]))
INSIDE = arrays.arrays(np.bool_, (5, 6))


@given(MAPS, INSIDE)
def test_pixel_by_pixel_gives_the_same(z: np.ndarray, inside: np.ndarray) -> None:
    pixels = list(np.ndindex(z.shape))
    positive = [p for p in pixels if z[p] > 0]
    box = [p for p in pixels if inside[p]]
    union = set(positive) | set(box)
    assert box_overlap(z, inside) == pytest.approx(len(set(positive) & set(box)) / len(union) if union else 0)
    everything = sum(max(z[p], 0) for p in pixels)
    here = sum(max(z[p], 0) for p in box)
    size = sum(abs(z[p]) for p in box)
    assert energy_inside(z, inside) == pytest.approx(here / everything if everything else 0)
    assert positive_share(z, inside) == pytest.approx(here / size if size else 0)
    mass = sum(abs(z[p]) for p in pixels)
    if not mass:
        assert concentration(z, inside) == 0
        return
    centre = [sum(abs(z[p]) * p[axis] for p in pixels) / mass for axis in (0, 1)]
    assert concentration(z, inside) == pytest.approx(sum(
        abs(z[p]) / mass / max(1.0, math.dist(p, centre)) for p in box))


def test_known_values() -> None:
    z = np.zeros((5, 6))
    z[2, 2], z[2, 4] = 3.0, -1.0   # centre of mass at row 2, column 2.5
    inside = np.zeros((5, 6), bool)
    inside[1:4, 1:4] = True
    assert box_overlap(z, inside) == 1 / 9
    assert energy_inside(z, inside) == 1.0
    assert positive_share(z, inside) == 1.0
    assert concentration(z, inside) == 0.75  # half a pixel away, which counts as one
    assert concentration(z, ~inside) == pytest.approx(0.25 / 1.5)


def test_a_pixel_is_in_a_box_when_its_centre_is() -> None:
    assert box_mask([[1, 0, 3, 2]], IMAGE).nonzero()[1].tolist() == [1, 2, 1, 2]
    assert box_mask([[1.5, 1.4, 2.5, 2.5]], IMAGE).nonzero() == (np.array([1]), np.array([1]))
    assert box_mask([[1.6, 0, 2.4, 5]], IMAGE).sum() == 0
    assert box_mask([[-9, -9, 99, 99]], IMAGE).all()
    both = box_mask([[0, 0, 2, 5], [1, 0, 3, 5]], IMAGE)
    assert both.sum() == 15  # their union


def test_the_certified_map_is_measured_as_a_map_of_ones() -> None:
    labels = np.zeros((2, 5, 6), np.int8)
    labels[0, 1, 1:5] = 1
    importance = torch.zeros(5, 6)
    importance[0, 0] = 1.0
    found = Localization().compute(explained(IMAGE, importance, labels=labels, extras={"boxes": [[0, 0, 3, 3]]}))
    inside = box_mask([[0, 0, 3, 3]], IMAGE)
    assert found == {
        "localization.loc": 1 / 9, "localization.eg": 1.0, "localization.pp": 1.0, "localization.con": 1.0,
        "localization.certified-loc.50": 2 / 11, "localization.certified-eg.50": 0.5,
        "localization.certified-con.50": concentration(labels[0].astype(float), inside),
        "localization.certified-loc.25": 0.0, "localization.certified-eg.25": 0.0, "localization.certified-con.25": 0.0}


def test_boxes_outside_the_image_hold_nothing() -> None:
    found = Localization().compute(explained(IMAGE, torch.ones(5, 6), extras={"boxes": [[7, 0, 9, 3]]}))
    assert set(found.values()) == {0.0}


def test_a_small_map_is_enlarged() -> None:
    small = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    found = Localization().compute(explained(torch.zeros(3, 8, 8), small, extras={"boxes": [[0, 0, 4, 4]]}))
    large = torch.nn.functional.interpolate(small[None, None], size=(8, 8), mode="bilinear")[0, 0].double().numpy()
    assert found["localization.eg"] == pytest.approx(large[:4, :4].sum() / large.sum())


def test_what_is_no_box_is_refused() -> None:
    with pytest.raises(UsageError, match=r"\[1, 2, 3\] is not a box: give left, top, right and bottom"):
        Localization().compute(explained(IMAGE, torch.ones(5, 6), extras={"boxes": [[1, 2, 3]]}))
