"""Greedy-AS: the order on linear models, the regression against numpy, and its stated cost."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from certframe_eva.greedy import RIDGE, GreedyAS, cells_of, regress, subset_values
from torch import Tensor, nn

import certframe
from certframe.testing import fixtures


class Weighted(nn.Module):
    """Two classes, decided by Σ w·(x − ½); counts the images that it is given."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight, self.seen = weight, 0

    def forward(self, x: Tensor) -> Tensor:
        self.seen += len(x)
        score = ((x - 0.5) * self.weight).sum(dim=(1, 2, 3))
        return torch.stack([score, -score], dim=1)


def model_of(weight: Tensor) -> Any:
    model = fixtures.tiny_model(tuple(weight.shape), classes=2)
    model.module = Weighted(weight)
    return model


def explain(model: Any, inputs: Tensor, targets: Tensor, **options: Any) -> Tensor:
    rng = fixtures.rng(range(len(inputs)))
    return GreedyAS(GreedyAS.Options(**options)).attribute(model, inputs, targets, rng=rng).maps


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_the_heaviest_pixels_of_a_linear_model_come_first(norm: str) -> None:
    weight = torch.tensor([[0.1, -3.0, 0.5, 0.2], [2.0, 0.3, -1.0, 0.1], [0.2, 0.1, 0.3, -5.0]])[None]
    model = model_of(weight)
    inputs = 0.5 + 0.02 * weight.sign()[None]
    maps = explain(model, inputs, torch.tensor([0]), norm=norm, grid=None, add=1, samples=150,
                   trials=8, halvings=10)
    order = maps[0].flatten().argsort(descending=True)
    assert set(order[:2].tolist()) == {1, 11}
    assert order[2:4].tolist() == [4, 6]
    assert maps.flatten().sort().values.tolist() == pytest.approx([(i + 1) / 12 for i in range(12)])


def test_several_join_in_a_step_and_a_cell_has_one_value() -> None:
    weight = torch.zeros(2, 8, 6)
    weight[:, 4:, 2:4], weight[:, :4, :2] = 1.0, 0.3
    maps = explain(model_of(weight), torch.full((1, 2, 8, 6), 0.52), torch.tensor([0]), grid=3, add=25, samples=120)
    cells = cells_of((8, 6), 3, torch.device("cpu"))
    assert maps.shape == (1, 8, 6)
    for cell in range(9):
        assert maps[0][cells == cell].unique().numel() == 1
    assert maps[0].max() == maps[0, 5, 3] == 1
    assert len(maps[0].unique()) == 9


@pytest.mark.parametrize(("rows", "columns"), [(40, 7), (7, 40), (12, 12)])
def test_the_regression_is_ridge_with_an_intercept(rows: int, columns: int) -> None:
    rng = np.random.default_rng(rows)
    design, values = (rng.random((rows, columns)) < 0.5).astype(float), rng.normal(size=rows)
    centred = design - design.mean(0)
    ridge = RIDGE * (centred**2).sum() / columns
    augmented = np.vstack([centred, np.sqrt(ridge) * np.eye(columns)])
    expected = np.linalg.lstsq(augmented, np.append(values - values.mean(), np.zeros(columns)), rcond=None)[0]
    found = regress(torch.from_numpy(design), torch.from_numpy(values))
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-8, atol=1e-10)


def test_a_subset_through_which_nothing_is_lost_has_the_largest_distance() -> None:
    weight = torch.zeros(1, 2, 2)
    weight[0, 0, 0] = 1.0
    image = torch.tensor([[[0.75, 0.9], [0.5, 0.2]]])
    subsets = torch.tensor([[True, False, False, False], [False, True, True, True]])
    cells = cells_of((2, 2), None, torch.device("cpu"))
    values = subset_values(Weighted(weight), image, torch.tensor(0), subsets, cells, GreedyAS.Options(halvings=12))
    assert values.tolist() == pytest.approx([0.25, 0.9], abs=1e-3)


def test_the_number_of_passes_is_as_stated() -> None:
    model = model_of(torch.randn(1, 6, 6, generator=torch.Generator().manual_seed(0)))
    options = {"grid": 3, "add": 30, "samples": 7, "trials": 2, "steps": 3, "halvings": 1, "chunk": 4}
    explain(model, torch.rand(2, 1, 6, 6), torch.tensor([0, 1]), **options)
    stated = GreedyAS(GreedyAS.Options(**options)).passes
    assert stated == 4 * 7 * (2 * 4 + 1)
    assert model.module.seen == 2 * 3 * 7 * 9  # three cells join in a step, so all nine have after three


def test_a_grid_that_does_not_fit_is_refused() -> None:
    model = fixtures.tiny_model()
    with pytest.raises(certframe.UsageError, match="grid=99"):
        explain(model, fixtures.noisy_images(model, 1), torch.tensor([0]), grid=99)
