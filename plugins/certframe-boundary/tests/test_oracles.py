"""The attacks beside foolbox and adv-lib, where they are installed, on a trained network."""

from __future__ import annotations

import sys
import types
import warnings
from typing import Any

import pytest
import torch
from certframe_boundary.search import SearchOptions, nearest
from certframe_boundary.search.auto_pgd import auto_pgd, checkpoints
from certframe_boundary.search.carlini_wagner import carlini_wagner
from certframe_boundary.search.closest import Adversarial, Loss
from certframe_boundary.search.pgd import pgd
from certframe_boundary.search.published import published_search, stages
from torch import Tensor, nn

import certframe


@pytest.fixture(scope="module")
def problem() -> tuple[nn.Module, Tensor, Tensor]:
    """The digits that come with certframe, as their model classifies them."""
    registry = certframe.default_registry()
    model = registry.find("model", "digits").load()()
    data = registry.find("dataset", "digits").load()()
    images = torch.stack([data.load(i).image for i in range(len(data))])
    return model.module, images, model.module(images).argmax(1)


@pytest.fixture(scope="module")
def foolbox() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("foolbox", reason="foolbox is not installed: nothing to compare with")


@pytest.fixture(scope="module")
def adv_lib() -> Any:
    """adv-lib's attacks; its logger, which they do not need, asks for visdom, which cannot be installed everywhere."""
    try:
        import visdom  # type: ignore[import-not-found]  # noqa: F401
    except ImportError:
        sys.modules["visdom"] = types.ModuleType("visdom")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return pytest.importorskip("adv_lib.attacks", reason="adv-lib is not installed: nothing to compare with")
    finally:
        if not getattr(sys.modules.get("visdom"), "__file__", None):
            sys.modules.pop("visdom", None)


def lengths(found: Tensor, images: Tensor) -> Tensor:
    return (found - images).flatten(1).norm(dim=1)


def by_foolbox(foolbox: Any, problem: Any, attack: Any, epsilon: float | None) -> tuple[Tensor, Tensor]:
    function, images, labels = problem
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _, found, success = attack(foolbox.PyTorchModel(function, bounds=(0, 1)), images, labels, epsilons=epsilon)
    return found, success


def test_pgd_succeeds_where_foolbox_does(foolbox: Any, problem: Any) -> None:
    function, images, labels = problem
    for budget in (0.5, 0.7):
        _, theirs = by_foolbox(foolbox, problem, foolbox.attacks.L2PGD(steps=40, rel_stepsize=2.5 / 40), budget)
        ours = pgd(function, images, labels, budget, steps=40, seed=0).success
        assert 0.1 < theirs.float().mean() < 0.9
        assert abs(int(ours.sum()) - int(theirs.sum())) <= 1


def test_carlini_and_wagner_come_as_close_as_foolbox(foolbox: Any, problem: Any) -> None:
    function, images, labels = problem
    attack = foolbox.attacks.L2CarliniWagnerAttack(steps=30, binary_search_steps=5, stepsize=0.1)
    theirs, success = by_foolbox(foolbox, problem, attack, None)
    ours = carlini_wagner(function, images, labels, steps=30, rounds=5, rate=0.1)
    both = success & ours.success
    assert torch.equal(success, ours.success)
    assert both.float().mean() > 0.9
    assert ours.distance[both].mean() <= 1.03 * lengths(theirs, images)[both].mean()


def test_the_walk_is_as_close_as_ddn(foolbox: Any, problem: Any) -> None:
    function, images, labels = problem
    theirs, success = by_foolbox(foolbox, problem, foolbox.attacks.DDNAttack(steps=100), None)
    assert success.all()
    ours = nearest(function, images, labels, SearchOptions(steps=40))
    assert ours.success.all()
    assert ours.distance.mean() <= 1.01 * lengths(theirs, images).mean(), "with two fifths of the steps"


@pytest.mark.parametrize("loss", ["ce", "dlr"])
def test_auto_pgd_succeeds_where_adv_lib_does(adv_lib: Any, problem: Any, loss: Loss) -> None:
    function, images, labels = problem
    for budget in (0.6,):
        theirs = adv_lib.apgd(function, images, labels, eps=budget, norm=2, n_iter=60, n_restarts=1,
                              loss_function=loss)
        success = function(theirs).argmax(1) != labels
        ours = auto_pgd(function, images, labels, budget, steps=60, loss=loss).success
        assert abs(int(ours.sum()) - int(success.sum())) <= 1


def test_checkpoints_are_those_of_the_paper() -> None:
    assert sorted(checkpoints(100)) == [22, 41, 57, 70, 80, 87, 93, 99]


def test_the_published_search_takes_the_closest_of_its_stages(problem: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("certframe_boundary.search.published.STEPS", 15)
    function, images, labels = problem[0], problem[1][:4], problem[2][:4]
    kept: list[tuple[str, Adversarial]] = list(stages(function, images, labels, steps=10, budgets=(0.5, 1.0)))
    assert [name for name, _ in kept] == ["PGD 0.5", "PGD 1", "C&W", "AutoPGD ce", "AutoPGD dlr"]
    every = torch.stack([found.distance.masked_fill(~found.success, float("inf")) for _, found in kept])
    best = published_search(function, images, labels, steps=10, budgets=(0.5, 1.0))
    there = every.amin(0).isfinite()
    assert torch.equal(best.success, there)
    assert there.sum() >= 3
    torch.testing.assert_close(best.distance[there], every.amin(0)[there], rtol=1e-4, atol=0)
    walk = nearest(function, images, labels, SearchOptions(steps=20))
    assert (walk.distance <= 1.05 * best.distance)[there].all()


def test_when_no_stage_succeeds_the_last_of_pgd_is_given() -> None:
    function = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    function[1].weight.data = torch.tensor([[1.0] * 4, [0.9] * 4])
    function[1].bias.data = torch.tensor([10.0, 0.0])
    images, labels = torch.full((2, 1, 2, 2), 0.5), torch.zeros(2, dtype=torch.int64)
    found = published_search(function, images, labels, steps=5, budgets=(0.1, 0.2), norm="linf")
    last = pgd(function, images, labels, 0.2, norm="linf", steps=5, seed=0)
    assert not found.success.any()
    assert torch.equal(found.images, last.images)
    assert (found.distance > 0.19).all()
