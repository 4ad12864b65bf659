"""AGI and BSG beside slow, plain second implementations."""

from __future__ import annotations

import copy

import pytest
import torch
from certframe_boundary.agi import Agi
from certframe_boundary.bsg import Bsg
from torch import Tensor, nn

import certframe
from certframe.testing.fixtures import rng


@pytest.fixture(scope="module")
def digits() -> tuple[certframe.Model, Tensor, Tensor]:
    registry = certframe.default_registry()
    model = registry.find("model", "digits").load()()
    data = registry.find("dataset", "digits").load()()
    images = torch.stack([data.load(i).image for i in range(4)])
    return model, images, model.module(images).argmax(1)


def one_way(module: nn.Module, image: Tensor, target: int, goal: int, steps: int, step: float) -> Tensor:
    """The way of one image to one class, as it is written."""
    x, total = image[None].double(), torch.zeros_like(image[None], dtype=torch.float64)
    for _ in range(steps):
        z = x.clone().requires_grad_()
        p = module(z).softmax(1)[0]
        if int(p.argmax()) == goal:
            break
        to_goal, = torch.autograd.grad(p[goal], z, retain_graph=True)
        own, = torch.autograd.grad(p[target], z)
        moved = (x + step * to_goal.sign()).clamp(0, 1)
        total -= own * (moved - x)
        x = moved
    return total[0]


@pytest.mark.parametrize("chunk", [3, 32])
def test_agi_is_the_sum_over_its_ways(digits: tuple[certframe.Model, Tensor, Tensor], chunk: int) -> None:
    model, images, targets = digits
    found = Agi(Agi.Options(classes=3, steps=8, chunk=chunk)).attribute(model, images, targets, rng=rng(range(4)))
    exact = copy.deepcopy(model.module).double()
    for image, target, attribution in zip(images, targets.tolist(), found.maps, strict=True):
        logits = model.module(image[None])[0]
        logits[target] = -torch.inf
        ways = [one_way(exact, image, target, goal, 8, 0.05) for goal in logits.topk(3).indices.tolist()]
        expected = torch.stack(ways).sum(0).sum(0).float()
        torch.testing.assert_close(attribution, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))
    torch.testing.assert_close(found.logits, model.module(images))


def test_agi_takes_all_classes_when_they_are_few(digits: tuple[certframe.Model, Tensor, Tensor]) -> None:
    model, images, targets = digits
    nine, many = (Agi(Agi.Options(classes=n, steps=4)).attribute(model, images, targets, rng=rng(range(4))).maps
                  for n in (9, 50))
    assert torch.equal(nine, many)


def smoothed_by_hand(module: nn.Module, image: Tensor, target: int, draws: list[Tensor], o: Bsg.Options) -> Tensor:
    """One image, one draw after the other."""
    z = image.clone()
    for _ in range(o.steps):
        total, kept = torch.zeros_like(z), 0
        for draw in draws:
            x = (z + draw)[None].requires_grad_()
            logits = module(x)
            kept += int(logits.argmax()) == target
            gradient, = torch.autograd.grad(nn.functional.cross_entropy(logits, torch.tensor([target])), x)
            total += gradient[0]
        if kept < o.keep * len(draws):
            break
        total = torch.where(((z <= 0) & (total < 0)) | ((z >= 1) & (total > 0)), 0, total)
        change = z + 2.5 * o.budget / o.steps * total / total.norm() - image
        z = (image + change * min(1.0, o.budget / float(change.norm()))).clamp(0, 1)
    mean = torch.zeros_like(z)
    for draw in draws:
        x = (z + draw)[None].requires_grad_()
        gradient, = torch.autograd.grad(module(x)[0, target], x)
        mean += gradient[0] / len(draws)
    return mean.abs().sum(0)


@pytest.mark.parametrize("chunk", [1, 9, 64])
def test_bsg_is_the_mean_gradient_where_the_class_is_lost(digits: tuple[certframe.Model, Tensor, Tensor],
                                                          chunk: int) -> None:
    model, images, targets = digits
    options = Bsg.Options(samples=5, steps=12, budget=1.5, chunk=chunk)
    found = Bsg(options).attribute(model, images, targets, rng=rng(range(4))).maps
    stream = rng(range(4))
    spread = options.noise * (images.flatten(1).amax(1) - images.flatten(1).amin(1))
    draws = [spread.view(-1, 1, 1, 1) * stream.normal(1, 8, 8) for _ in range(5)]
    for row, (image, target) in enumerate(zip(images, targets.tolist(), strict=True)):
        expected = smoothed_by_hand(model.module, image, target, [draw[row] for draw in draws], options)
        torch.testing.assert_close(found[row], expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("make", [Agi, Bsg])
def test_one_class_and_no_gradient_are_refused(make: type[Agi | Bsg]) -> None:
    class Constant(nn.Module):
        def __init__(self, classes: int) -> None:
            super().__init__()
            self.classes = classes

        def forward(self, x: Tensor) -> Tensor:
            return torch.eye(self.classes)[:1].expand(len(x), -1)

    images, targets = torch.rand(2, 1, 2, 2), torch.zeros(2, dtype=torch.int64)
    for classes, said in ((1, "one class only"), (2, "no gradient")):
        with pytest.raises(certframe.UsageError, match=said):
            make().attribute(certframe.TorchModel(Constant(classes), (1, 2, 2)), images, targets, rng=rng(range(2)))
