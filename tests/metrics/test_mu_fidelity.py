from __future__ import annotations

import numpy as np
import pytest
import torch
from linear import explained, linear_model
from scipy import stats

from certframe.errors import UsageError
from certframe.metrics.mu_fidelity import MuFidelity, correlation, importances, random_sets
from certframe.metrics.pixels import Draws, baseline_image
from certframe.testing.fixtures import tiny_model

WEIGHTS = torch.randn(3, 6, 8, generator=torch.Generator().manual_seed(5))
IMAGE = torch.rand(3, 6, 8, generator=torch.Generator().manual_seed(0))


def fidelity(**options: object) -> MuFidelity:
    return MuFidelity(MuFidelity.Options(**options))


@pytest.mark.parametrize("baseline", ["uniform", 0.0, 0.3])
@pytest.mark.parametrize("cells", [0, 3])
def test_gradient_times_the_way_from_the_baseline_is_perfect_on_a_linear_score(baseline: float | str, cells: int):
    """f(x) − f(x with u replaced) = Σ_{i∈u} w_i (x_i − x₀_i), so that map's correlation is 1, and its negative's −1."""
    way = IMAGE - baseline_image(IMAGE, baseline, Draws(0, IMAGE))
    exact, model = (WEIGHTS * way).sum(0), linear_model(WEIGHTS)
    metric = fidelity(baseline=baseline, cells=cells, subsets=50)
    assert metric.compute(explained(IMAGE, exact, model=model)) == {
        "mu-fidelity": pytest.approx(1.0, abs=1e-6), "mu-fidelity.undefined": 0.0}
    assert metric.compute(explained(IMAGE, -exact, model=model))["mu-fidelity"] == pytest.approx(-1.0, abs=1e-6)


@pytest.mark.parametrize("kind", ["pearson", "spearman"])
@pytest.mark.parametrize("score", ["logit", "softmax"])
@pytest.mark.parametrize(("cells", "batch"), [(0, 32), (2, 7)])
def test_one_set_at_a_time_gives_the_same(kind: str, score: str, cells: int, batch: int):
    model = tiny_model((3, 6, 8))
    importance = torch.randn(6, 8, generator=torch.Generator().manual_seed(1))
    found = fidelity(subsets=40, correlation=kind, score=score, cells=cells, batch=batch, seed=2).compute(
        explained(IMAGE, importance, model=model, target=3))["mu-fidelity"]
    draws = Draws(2, IMAGE)
    baseline = draws.uniform("baseline", 3, 6, 8)

    def value(image: torch.Tensor) -> float:
        logits = model.module(image[None])[0].double()
        return float((logits.softmax(0) if score == "softmax" else logits)[3])

    sums, falls = [], []
    for chosen in random_sets(draws, IMAGE, 40, 0.2, cells):
        image, total = IMAGE.clone(), 0.0
        for row, column in chosen.nonzero().tolist():
            image[:, row, column] = baseline[:, row, column]
            total += float(importance[row, column])
        sums.append(total)
        falls.append(value(IMAGE) - value(image))
    slow = (stats.pearsonr if kind == "pearson" else stats.spearmanr)(sums, falls)[0]
    assert found == pytest.approx(slow, abs=1e-4)


@pytest.mark.parametrize(("cells", "variables", "size"), [(0, 48, 10), (2, 4, 1), (6, 36, 7)])
def test_sets_have_one_size_and_every_variable_is_as_likely(cells: int, variables: int, size: int):
    sets = random_sets(Draws(0, IMAGE), IMAGE, 3000, 0.2, cells)
    assert sets.shape == (3000, 6, 8)
    grid = np.arange(48).reshape(6, 8) if not cells else np.add.outer(
        np.arange(6) * cells // 6 * cells, (np.arange(8) + 0.5) * cells // 8).astype(int)
    members = [{int(v) for v in grid[one.numpy()]} for one in sets]
    assert {len(m) for m in members} == {size}
    assert all(grid[one.numpy()].size == np.isin(grid, list(m)).sum() for one, m in zip(sets, members, strict=True))
    often = np.bincount([v for m in members for v in m], minlength=variables)
    expected = 3000 * size / variables
    assert np.abs(often - expected).max() < 5 * np.sqrt(expected)


def test_the_sets_are_those_of_the_image_and_the_seed_only():
    one, other = (random_sets(Draws(seed, IMAGE), IMAGE, 5, 0.2, 0) for seed in (0, 1))
    torch.manual_seed(7)
    assert torch.equal(one, random_sets(Draws(0, IMAGE), IMAGE, 5, 0.2, 0))
    assert not torch.equal(one, other)
    assert not torch.equal(one, random_sets(Draws(0, IMAGE * 0.9), IMAGE, 5, 0.2, 0))
    assert torch.equal(one, random_sets(Draws(0, IMAGE), IMAGE, 9, 0.2, 0)[:5])


def test_without_variation_there_is_no_correlation_and_that_is_said():
    undefined = {"mu-fidelity": 0.0, "mu-fidelity.undefined": 1.0}
    constant = torch.full((6, 8), 0.1)
    assert fidelity().compute(explained(IMAGE, constant, model=tiny_model((3, 6, 8)))) == undefined
    importance = torch.rand(6, 8, generator=torch.Generator().manual_seed(1))
    deaf = linear_model(WEIGHTS * 0)
    assert fidelity().compute(explained(IMAGE, importance, model=deaf)) == undefined
    grey = torch.full((3, 6, 8), 0.5)  # replaced by itself
    assert fidelity(baseline=0.5).compute(explained(grey, importance, model=linear_model(WEIGHTS))) == undefined


def test_correlation():
    a, b = np.array([1.0, 2, 3, 4]), np.array([1.0, 4, 9, 30])
    assert correlation(a, b) == pytest.approx(stats.pearsonr(a, b)[0])
    assert correlation(a, b, "spearman") == pytest.approx(1.0)
    assert correlation(a, b, noise=29.0) is None
    assert importances(torch.tensor([[1.0, 2.0], [3.0, -4.0]]),
                       torch.tensor([[[True, False], [False, True]]])).tolist() == [-3.0]


def test_a_grid_finer_than_the_image_is_refused():
    with pytest.raises(UsageError, match="7×7 cells has no place on an image of 6×8"):
        fidelity(cells=7).compute(explained(IMAGE, torch.zeros(6, 8), model=linear_model(WEIGHTS)))


def test_the_number_of_evaluations_is_subsets_plus_one():
    model, seen = tiny_model((3, 6, 8)), []
    model.module.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    fidelity(subsets=10, batch=8).compute(explained(IMAGE, torch.zeros(6, 8), model=model))
    assert seen == [8, 3]


def test_quantus_finds_about_the_same():
    """Its faithfulness correlation draws its own sets, so the two agree up to chance."""
    quantus = pytest.importorskip("quantus", reason="quantus is not installed; it is heavy, and only compared with")
    model = tiny_model((1, 8, 8))
    image = torch.rand(1, 8, 8, generator=torch.Generator().manual_seed(0))
    gradient = torch.autograd.functional.jacobian(lambda x: model.module(x[None])[0, 1], image)
    importance = (gradient * image).sum(0)
    ours = fidelity(subsets=2000, baseline=0).compute(explained(image, importance, model=model, target=1))
    metric = quantus.FaithfulnessCorrelation(
        nr_runs=2000, subset_size=13, perturb_baseline=0.0, abs=False, normalise=False, return_aggregate=False,
        display_progressbar=False, disable_warnings=True)
    np.random.seed(0)  # noqa: NPY002
    theirs = metric(model=model.module, x_batch=image[None].numpy(), y_batch=np.array([1]),
                    a_batch=importance[None, None].numpy(), device="cpu", softmax=False)[0]
    assert ours["mu-fidelity"] == pytest.approx(float(theirs), abs=0.06)
