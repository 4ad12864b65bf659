"""Shapley values against their definition, summed over all orders."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from certframe_captum.shapley import ShapleySampling, cell_numbers
from torch import Tensor, nn

import certframe

SIZE = (2, 5, 6)
X = torch.randn(3, *SIZE, generator=torch.Generator().manual_seed(0))
TARGETS = torch.tensor([2, 0, 1])


class Streams:
    """A seed for each copy."""

    device = torch.device("cpu")

    def __init__(self, *seeds: int) -> None:
        self.seeds = seeds

    def integers(self, high: int, *shape: int) -> Tensor:
        return torch.tensor(self.seeds).view(-1, *[1] * len(shape))


def network() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return nn.Sequential(nn.Conv2d(2, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(48, 3))


MODEL = certframe.TorchModel(network(), SIZE)


def exact(x: Tensor, target: int, grid: int, baseline: float) -> Tensor:
    """The definition: the mean over all orders of what the logit rises by when a cell is shown."""
    number = cell_numbers(5, 6, grid)
    values: dict[frozenset[int], float] = {}

    def value(shown: frozenset[int]) -> float:
        if shown not in values:
            seen = torch.tensor([[int(cell) in shown for cell in row] for row in number])
            values[shown] = float(MODEL.module(torch.where(seen, x, baseline)[None])[0, target])
        return values[shown]

    total = torch.zeros(grid * grid)
    for order in itertools.permutations(range(grid * grid)):
        for position, cell in enumerate(order):
            before = frozenset(order[:position])
            total[cell] += value(before | {cell}) - value(before)
    return total.view(grid, grid) / math.factorial(grid * grid)


def explain(method: Any, **options: Any) -> Tensor:
    found = method(method.Options(**options)).attribute(MODEL, X, TARGETS, rng=Streams(5, 6, 7))
    torch.testing.assert_close(found.logits, MODEL.module(X))
    return found.maps


@pytest.mark.parametrize("baseline", [0.0, 0.5])
def test_it_comes_near_the_definition(baseline: float) -> None:
    found = explain(ShapleySampling, grid=2, baseline=baseline, chunk=512, orders=300)
    expected = torch.stack([exact(x, int(c), 2, baseline) for x, c in zip(X, TARGETS, strict=True)])
    assert float((found - expected).abs().max()) < 0.1 * float(expected.abs().max())


@pytest.mark.parametrize("grid", [3, 6])
def test_random_orders_add_up_however_few(grid: int) -> None:
    found = explain(ShapleySampling, grid=grid, orders=1, baseline=0.25)
    assert found.shape == (3, min(grid, 5), grid)
    rise = (MODEL.module(X) - MODEL.module(torch.full_like(X, 0.25))).gather(1, TARGETS[:, None])[:, 0]
    torch.testing.assert_close(found.sum((1, 2)), rise, rtol=1e-4, atol=1e-5)


def test_a_copy_depends_on_its_own_seed_alone() -> None:
    method = ShapleySampling
    together = explain(method, grid=3)
    alone = method(method.Options(grid=3)).attribute(MODEL, X[1:2], TARGETS[1:2], rng=Streams(6)).maps
    torch.testing.assert_close(together[1:2], alone, rtol=1e-4, atol=1e-5)
    other = method(method.Options(grid=3)).attribute(MODEL, X[1:2], TARGETS[1:2], rng=Streams(8)).maps
    assert not torch.allclose(alone, other)


def test_cells_cover_the_picture() -> None:
    assert cell_numbers(3, 4, 2).tolist() == [[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 3, 3]]
    assert cell_numbers(2, 5, 3).tolist() == [[0, 0, 1, 1, 2], [3, 3, 4, 4, 5]]
    assert cell_numbers(5, 2, 9).tolist() == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]]
