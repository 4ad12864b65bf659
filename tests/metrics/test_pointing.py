from __future__ import annotations

import numpy as np
import pytest
import torch
from linear import explained

from certframe.errors import UsageError
from certframe.metrics.pixels import labels_on_pixels
from certframe.metrics.pointing import CertifiedGridPG, GridPG, cell_mask
from certframe.protocols import ABSTAIN

IMAGE = torch.zeros(3, 8, 8)


def grid(n: int, cell: int) -> dict[str, object]:
    return {"grid": {"n": n, "cell": cell}}


@pytest.mark.parametrize(("cell", "rows", "columns"), [
    (0, slice(0, 4), slice(0, 4)), (1, slice(0, 4), slice(4, 8)), (2, slice(4, 8), slice(0, 4)),
    (3, slice(4, 8), slice(4, 8))])
def test_cells_are_numbered_row_by_row(cell: int, rows: slice, columns: slice):
    expected = np.zeros((8, 8), bool)
    expected[rows, columns] = True
    assert np.array_equal(cell_mask({"n": 2, "cell": cell}, IMAGE), expected)


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_the_cells_of_an_image_are_disjoint_and_cover_it(n: int):
    masks = np.stack([cell_mask({"n": n, "cell": cell}, torch.zeros(3, 7, 11)) for cell in range(n * n)])
    assert (masks.sum(0) == 1).all()


def test_gridpg_is_the_share_of_the_positive_importance():
    importance = torch.zeros(8, 8)
    importance[0, 0], importance[7, 7], importance[0, 7] = 3.0, 1.0, -5.0
    for cell, share in enumerate((0.75, 0.0, 0.0, 0.25)):
        found = GridPG().compute(explained(IMAGE, importance, extras=grid(2, cell)))
        assert found == {"gridpg": share}
    assert GridPG().compute(explained(IMAGE, -importance.abs(), extras=grid(2, 0))) == {"gridpg": 0.0}


def test_certified_gridpg_counts_certified_important_pixels():
    labels = np.full((3, 8, 8), ABSTAIN, np.int8)
    labels[:, 4:] = 0
    labels[0, 0, :3], labels[0, 0, 7] = 1, 1
    labels[1, 7, 7] = 1
    found = CertifiedGridPG().compute(explained(IMAGE, torch.zeros(8, 8), labels=labels, extras=grid(2, 0)))
    assert found == {"certified-gridpg.50": 0.75, "certified-gridpg.25": 0.0, "certified-gridpg.12.5": 0.0,
                     "certified-gridpg.random": 0.25}


def test_a_map_certified_at_its_own_resolution_is_split_fairly():
    """7 cells over 8·7 pixels, the middle one astride: half of it is in each half of the image."""
    labels = np.zeros((1, 7, 7), np.int8)
    labels[0, 3, 3] = 1
    large = torch.zeros(3, 56, 56)
    found = [CertifiedGridPG().compute(explained(large, torch.zeros(7, 7), labels=labels, extras=grid(2, cell)))
             for cell in range(4)]
    assert [f["certified-gridpg.50"] for f in found] == [0.25] * 4


def test_random_labels_score_the_random_value():
    generator = np.random.default_rng(0)
    labels = (generator.random((1, 60, 60)) < 0.3).astype(np.int8)
    for n in (2, 3):
        shares = [CertifiedGridPG().compute(explained(torch.zeros(3, 60, 60), torch.zeros(60, 60), labels=labels,
                                                      extras=grid(n, cell))) for cell in range(n * n)]
        assert sum(s["certified-gridpg.50"] for s in shares) == pytest.approx(1.0)
        assert all(s["certified-gridpg.50"] == pytest.approx(s["certified-gridpg.random"], rel=0.15) for s in shares)


@pytest.mark.parametrize("wrong", [{"n": 2, "cell": 4}, {"n": 2, "cell": -1}, {"n": 0, "cell": 0}, {"cell": 0}, 3])
def test_what_is_no_grid_is_refused(wrong: object):
    with pytest.raises(UsageError, match="grid"):
        GridPG().compute(explained(IMAGE, torch.zeros(8, 8), extras={"grid": wrong}))


def test_labels_are_enlarged_by_the_cell_the_centre_lies_in():
    labels = np.array([[[0, 1], [ABSTAIN, 0]]], np.int8)
    found = labels_on_pixels(labels, torch.zeros(3, 3, 5))
    assert found.tolist() == [[[0, 0, 1, 1, 1], [-1, -1, 0, 0, 0], [-1, -1, 0, 0, 0]]]
