"""The searches against closed forms on linear models, and what they promise about norms, ranges and batches."""

from __future__ import annotations

import pytest
import torch
from certframe_boundary.search import SearchOptions, nearest
from certframe_boundary.search.balls import Norm
from certframe_boundary.search.closest import Loss, margin
from certframe_boundary.search.minimum_norm import minimum_norm
from certframe_boundary.search.pgd import pgd
from torch import Tensor, nn

import certframe

NORMS: list[Norm] = ["l2", "linf"]


class Linear(nn.Module):
    """Logits W x + b; counts the images that it is given."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight, self.bias, self.seen = weight, bias, 0

    def forward(self, x: Tensor) -> Tensor:
        self.seen += len(x)
        return x.flatten(1) @ self.weight.T + self.bias


def problem(seed: int, count: int = 8, classes: int = 4) -> tuple[Linear, Tensor, Tensor]:
    """A linear model on 2×3×4 inputs whose boundaries meet in the grey image, images, the classes they are given."""
    g = torch.Generator().manual_seed(seed)
    weight = torch.randn(classes, 24, generator=g)
    model = Linear(weight, -weight.sum(1) / 2)
    images = 0.3 + 0.4 * torch.rand(count, 2, 3, 4, generator=g)
    return model, images, model(images).argmax(1)


def by_hand(model: Linear, image: Tensor, label: int, norm: Norm, bounds: tuple[float, float] = (0, 1)) -> float:
    """The distance to the nearest other class: δ = min(t·|w|, room), or min(t, room), t by bisection."""
    best = float("inf")
    for other in range(len(model.weight)):
        if other == label:
            continue
        w = (model.weight[other] - model.weight[label]).view_as(image).double()
        logits = model(image[None])[0].double()
        gap = float(logits[label] - logits[other])
        room = torch.where(w > 0, bounds[1] - image.double(), image.double() - bounds[0]).clamp(min=0)

        def change(t: float, w: Tensor = w, room: Tensor = room) -> Tensor:
            return torch.minimum(t * w.abs() if norm == "l2" else torch.full_like(w, t), room)

        low, high = 0.0, 1e4
        if float((change(high) * w.abs()).sum()) < gap:
            continue
        for _ in range(60):
            t = (low + high) / 2
            low, high = (t, high) if float((change(t) * w.abs()).sum()) < gap else (low, t)
        delta = change(high)
        best = min(best, float(delta.norm() if norm == "l2" else delta.max()))
    return best


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("bounds", [(0.0, 1.0), (0.28, 0.72)])
def test_the_nearest_class_of_a_linear_model_is_found(norm: Norm, seed: int, bounds: tuple[float, float],
                                                      classes: int) -> None:
    model, images, labels = problem(seed, classes=classes)
    found = nearest(model, images, labels, SearchOptions(norm=norm, steps=100, bounds=bounds))
    expected = torch.tensor([by_hand(model, x, int(c), norm, bounds) for x, c in zip(images, labels, strict=True)])
    assert torch.equal(found.success, expected.isfinite())
    there = expected.isfinite()
    assert there.any()
    ratio = found.distance[there] / expected[there]
    assert (ratio > 0.9999).all(), "nothing is nearer than the nearest"
    assert (ratio < 1.005).all() if classes == 2 else ratio.mean() < 1.05, "of several classes it may take the second"
    assert (found.images.amin() >= bounds[0]) & (found.images.amax() <= bounds[1])


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("loss", ["ce", "margin", "dlr"])
@pytest.mark.parametrize("seed", [None, 1])
def test_pgd_finds_what_is_within_the_budget_and_only_that(norm: Norm, loss: Loss, seed: int | None) -> None:
    model, images, labels = problem(0, classes=2)
    truth = torch.tensor([by_hand(model, x, int(c), norm) for x, c in zip(images, labels, strict=True)])
    enough = pgd(model, images, labels, 1.1 * truth, norm=norm, loss=loss, seed=seed, steps=60)
    assert enough.success.all()
    assert (enough.distance <= 1.1 * truth + 1e-5).all()
    assert (enough.distance[enough.success] >= truth[enough.success] - 1e-5).all()
    short = pgd(model, images, labels, 0.95 * truth, norm=norm, loss=loss, seed=seed)
    assert not short.success.any()
    assert (short.distance > 0.9 * truth).all(), "without success the last image tried is given"


@pytest.mark.parametrize("norm", NORMS)
def test_no_budget_is_no_change(norm: Norm) -> None:
    model, images, labels = problem(0)
    found = pgd(model, images, labels, 0.0, norm=norm, seed=3)
    assert torch.equal(found.images, images)
    assert not found.success.any()


@pytest.mark.parametrize("norm", NORMS)
def test_images_are_searched_as_if_alone(norm: Norm) -> None:
    model, images, labels = problem(5)
    model.weight, model.bias, images = model.weight.double(), model.bias.double(), images.double()
    for search in (lambda x, c: pgd(model, x, c, 0.3, norm=norm, seed=7),
                   lambda x, c: minimum_norm(model, x, c, norm=norm)):
        together = search(images, labels)
        for row in range(len(images)):
            alone = search(images[row:row + 1], labels[row:row + 1])
            torch.testing.assert_close(together.images[row], alone.images[0], rtol=1e-4, atol=1e-5)
            assert together.success[row] == alone.success[0]
            assert together.classes[row] == alone.classes[0]


def test_a_seed_is_a_start_of_its_own_and_always_the_same() -> None:
    model, images, labels = problem(2)
    first, again, other = (pgd(model, images, labels, 0.2, seed=s, steps=1).images for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("norm", NORMS)
def test_pixels_of_noisy_copies_go_no_farther_out(norm: Norm) -> None:
    model, images, _ = problem(4)
    noisy = images + 0.5 * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    labels = model(noisy).argmax(1)
    for found in (pgd(model, noisy, labels, 1.0, norm=norm, seed=1).images,
                  nearest(model, noisy, labels, SearchOptions(norm=norm)).images):
        assert (found >= noisy.clamp(max=0)).all()
        assert (found <= noisy.clamp(min=1)).all()


@pytest.mark.parametrize("norm", NORMS)
def test_points_found_are_of_another_class_and_just_across(norm: Norm) -> None:
    model, images, labels = problem(1)
    found = nearest(model, images, labels, SearchOptions(norm=norm, halvings=12))
    assert found.success.all()
    assert torch.equal(model(found.images).argmax(1), found.classes)
    assert (found.classes != labels).all()
    back = images + (1 - 2e-3) * (found.images - images)
    assert (margin(model(back), labels) <= 0).all()


def test_what_a_search_costs() -> None:
    model, images, labels = problem(1)
    model.seen = 0
    pgd(model, images, labels, 0.1, steps=7)
    assert model.seen == 8 * len(images)
    model.seen = 0
    nearest(model, images, labels, SearchOptions(steps=7, halvings=3, chunk=3))
    assert model.seen == (7 + 1 + 3) * len(images)


@pytest.mark.parametrize("norm", NORMS)
def test_an_image_of_another_class_is_its_own_nearest_point(norm: Norm) -> None:
    model, images, labels = problem(1)
    other = (labels + 1) % 4
    found = nearest(model, images, other, SearchOptions(norm=norm))
    assert found.success.all()
    assert torch.equal(found.images, images)
    assert (found.distance == 0).all()


def test_a_constant_model_has_no_boundary_and_nothing_moves() -> None:
    model = Linear(torch.zeros(3, 24), torch.tensor([1.0, 0.0, 0.0]))
    images, labels = torch.rand(2, 2, 3, 4), torch.zeros(2, dtype=torch.int64)
    found = nearest(model, images, labels, SearchOptions())
    assert not found.success.any()
    assert torch.equal(found.images, images)


def test_one_class_and_no_gradient_are_refused() -> None:
    images, labels = torch.rand(2, 2, 3, 4), torch.zeros(2, dtype=torch.int64)
    with pytest.raises(certframe.UsageError, match="one class only"):
        nearest(Linear(torch.zeros(1, 24), torch.zeros(1)), images, labels, SearchOptions())
    with pytest.raises(certframe.UsageError, match="no gradient"):
        nearest(lambda x: torch.eye(2)[labels], images, labels, SearchOptions())
