"""The attack against closed forms on linear models, and what it promises about masks, ranges and cost."""

from __future__ import annotations

import pytest
import torch
from certframe_eva.attack import AttackOptions, Norm, margin, nearest, reach
from torch import Tensor, nn

NORMS: list[Norm] = ["l2", "linf"]


class Linear(nn.Module):
    """Logits W x + b; counts the images that it is given."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight, self.bias, self.seen = weight, bias, 0

    def forward(self, x: Tensor) -> Tensor:
        self.seen += len(x)
        return x.flatten(1) @ self.weight.T + self.bias


def problem(seed: int, count: int = 6, classes: int = 2, bias: float = 0.0) -> tuple[Linear, Tensor, Tensor, Tensor]:
    """A linear model on 2×3×4 inputs, images, the classes they are given, and masks of about half of the pixels."""
    g = torch.Generator().manual_seed(seed)
    model = Linear(torch.randn(classes, 24, generator=g), bias * torch.randn(classes, generator=g))
    images = 0.3 + 0.4 * torch.rand(count, 2, 3, 4, generator=g)
    masks = torch.rand(count, 1, 3, 4, generator=g) < 0.5
    masks[:, :, 0, 0] = True
    return model, images, model(images).argmax(1), masks


def by_hand(model: Linear, image: Tensor, given: int, mask: Tensor, norm: Norm, *, box: bool) -> float:
    """The smallest ε for any other class: with t the multiplier, δ = min(t·w, room) or min(t, room) by bisection."""
    best = float("inf")
    for other in range(len(model.weight)):
        if other == given:
            continue
        w = ((model.weight[other] - model.weight[given]).view_as(image) * mask).double()
        gap = float((model(image[None])[0, given] - model(image[None])[0, other]).double())
        room = torch.where(w > 0, 1 - image.double(), image.double()) if box else torch.full_like(w, 1e9)

        def change(t: float, w: Tensor = w, room: Tensor = room) -> Tensor:
            wanted = t * w.abs() if norm == "l2" else t * (w != 0)
            return torch.minimum(wanted, room)

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
@pytest.mark.parametrize("seed", range(4))
def test_two_classes_of_a_linear_model_have_a_closed_form(norm: Norm, seed: int) -> None:
    model, images, classes, masks = problem(seed)
    model.bias = -model.weight.sum(1) / 2  # the boundary goes through the grey image, so it is near
    classes = model(images).argmax(1)
    found = nearest(model, images, classes, masks, AttackOptions(norm=norm, halvings=14))
    w = (model.weight[1] - model.weight[0]).view(1, 2, 3, 4) * masks
    gap = -margin(model(images), classes)
    dual = w.flatten(1).norm(dim=1) if norm == "l2" else w.flatten(1).abs().sum(1)
    inside = gap / dual < 0.25
    assert inside.sum() >= 3
    torch.testing.assert_close(found.distance[inside], (gap / dual)[inside], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(("seed", "classes"), [(0, 2), (1, 2), (2, 4), (3, 4)])
def test_pixels_at_the_end_of_their_range_and_more_classes(norm: Norm, seed: int, classes: int) -> None:
    model, images, given, masks = problem(seed, count=12, classes=classes, bias=2.0)
    found = nearest(model, images, given, masks, AttackOptions(norm=norm, trials=20, steps=20, halvings=10)).distance
    expected = torch.tensor([by_hand(model, image, int(c), mask, norm, box=True)
                             for image, c, mask in zip(images, given, masks, strict=True)])
    reachable = expected.isfinite()
    assert reachable.sum() >= 4
    assert found[~reachable].isinf().all()
    assert (found[reachable] >= expected[reachable] * (1 - 1e-4)).all()
    assert (found[reachable] <= expected[reachable] * 1.03 + 1e-4).float().mean() > (0.99 if classes == 2 else 0.7)


@pytest.mark.parametrize("norm", NORMS)
def test_examples_are_what_is_said_of_them(norm: Norm) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(24, 30), nn.ReLU(), nn.Linear(30, 3))
    images = torch.rand(20, 2, 3, 4)
    images[3, 0, 0, 0], images[4, 1, 2, 3] = -0.3, 1.4  # outside already, as noisy copies are
    masks = torch.rand(20, 1, 3, 4) < 0.6
    classes = net(images).argmax(1)
    found = nearest(net, images, classes, masks, AttackOptions(norm=norm))
    there = found.distance.isfinite()
    assert there.sum() > 3
    change = found.example - images
    assert bool((change[~masks.expand_as(images)] == 0).all())
    assert bool(((found.example >= images.clamp(max=0)) & (found.example <= images.clamp(min=1))).all())
    assert bool((net(found.example)[there].argmax(1) != classes[there]).all())
    size = change.flatten(1).norm(dim=1) if norm == "l2" else change.flatten(1).abs().amax(1)
    torch.testing.assert_close(size[there], found.distance[there])
    assert bool((found.distance[there] <= reach(images, masks, norm)[there] + 1e-6).all())
    assert bool((change[~there] == 0).all())


def test_what_cannot_be_lost_is_infinite_and_what_is_lost_is_zero() -> None:
    model, images, classes, masks = problem(0)
    constant = Linear(torch.zeros(2, 24), torch.tensor([1.0, 0.0]))
    zero = torch.zeros_like(classes)
    assert nearest(constant, images, zero, masks, AttackOptions()).distance.isinf().all()
    assert nearest(model, images, classes, torch.zeros_like(masks), AttackOptions()).distance.isinf().all()
    assert (nearest(model, images, 1 - classes, masks, AttackOptions()).distance == 0).all()


@pytest.mark.parametrize("norm", NORMS)
def test_the_cost_is_as_stated_and_the_chunk_changes_nothing(norm: Norm) -> None:
    model, images, classes, masks = problem(5)
    model.seen = 0
    options = AttackOptions(norm=norm, trials=3, steps=4, halvings=5)
    whole = nearest(model, images, classes, masks, options)
    assert model.seen == len(images) * options.evaluations == len(images) * 20
    pieces = nearest(model, images, classes, masks, options.model_copy(update={"chunk": 2}))
    torch.testing.assert_close(pieces.distance, whole.distance)
    torch.testing.assert_close(pieces.example, whole.example)


def test_more_effort_finds_nothing_farther() -> None:
    torch.manual_seed(1)
    net = nn.Sequential(nn.Flatten(), nn.Linear(24, 40), nn.ReLU(), nn.Linear(40, 4))
    images, masks = torch.rand(30, 2, 3, 4), torch.ones(30, 1, 3, 4, dtype=torch.bool)
    classes = net(images).argmax(1)
    few, many = (nearest(net, images, classes, masks, AttackOptions(norm="l2", trials=n)).distance for n in (3, 9))
    there = few.isfinite()
    assert (many[there] <= few[there] * 1.001).all()
    assert many[there].mean() < few[there].mean()
