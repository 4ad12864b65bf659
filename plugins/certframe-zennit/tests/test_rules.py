"""Every composite against relevance propagation written out with matrices, one contribution at a time."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, get_args

import numpy as np
import pytest
import torch
from certframe_zennit.composites import Name
from certframe_zennit.lrp import Lrp
from numpy.typing import NDArray
from torch import Tensor, nn

import certframe

Array = NDArray[np.float64]
COMPOSITES = get_args(Name)
TINY = 1e-6
MEAN, STD = (0.4, 0.5), (0.3, 0.2)


class Small(nn.Module):
    """What residual networks are made of, and a layer whose output, the next one's input, has both signs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(2, 5, 3, padding=1, bias=False), nn.BatchNorm2d(5)
        self.conv2, self.norm2 = nn.Conv2d(5, 5, 3, padding=1), nn.BatchNorm2d(5)
        self.relu, self.pool = nn.ReLU(inplace=True), nn.MaxPool2d(2)
        self.conv3, self.conv4 = nn.Conv2d(5, 4, 3, stride=2, padding=1), nn.Conv2d(4, 6, 1)
        self.relu6, self.mean = nn.ReLU6(), nn.AdaptiveAvgPool2d(1)
        self.fc1, self.fc2 = nn.Linear(6, 7), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        a1 = self.relu(self.norm1(self.conv1(x)))
        pooled = self.pool(self.relu(a1 + self.norm2(self.conv2(a1))))
        a4 = self.relu6(self.conv4(self.conv3(pooled)))
        return self.fc2(self.relu(self.fc1(self.mean(a4).flatten(1))))


@pytest.fixture(scope="module")
def network() -> Small:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        made = Small()
        for norm in (made.norm1, made.norm2):
            for tensor, low, high in ((norm.weight, -1.5, 1.5), (norm.bias, -0.5, 0.5), (norm.running_mean, -0.3, 0.3),
                                      (norm.running_var, 0.2, 1.5)):
                nn.init.uniform_(tensor, low, high)
        made.conv4.weight.data *= 20  # so that some of ReLU6 saturates
    return made.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def images() -> Tensor:
    generator = torch.Generator().manual_seed(4)
    return torch.rand(3, 2, 8, 8, generator=generator) + 0.3 * torch.randn(3, 2, 8, 8, generator=generator)


# -- the definition ---------------------------------------------------------------------------------------------------


def affine(function: Callable[[Tensor], Tensor], *shape: int) -> tuple[Array, Array]:
    """A linear layer as (matrix, bias), by feeding it one unit at a time."""
    inputs = int(np.prod(shape))
    basis = torch.eye(inputs, dtype=torch.float64).view(inputs, *shape)
    zero = function(torch.zeros(1, *shape, dtype=torch.float64)).flatten()
    return (function(basis).flatten(1) - zero).T.numpy(), zero.numpy()


def shared(contributions: Array, constant: Array, relevance: Array) -> Array:
    """(out, in) contributions and a constant for every output: each gets its proportion."""
    total = contributions.sum(1) + constant
    total = total + np.where(total >= 0, TINY, -TINY)
    return (contributions * (relevance / total)[:, None]).sum(0)


def epsilon_rule(w: Array, b: Array, x: Array, r: Array) -> Array:
    return shared(w * x, b, r)


def plus_rule(w: Array, b: Array, x: Array, r: Array) -> Array:
    return shared(np.maximum(w * x, 0), np.maximum(b, 0), r)


def alpha2_beta1_rule(w: Array, b: Array, x: Array, r: Array) -> Array:
    return 2 * plus_rule(w, b, x, r) - shared(np.minimum(w * x, 0), np.minimum(b, 0), r)


def gamma_rule(w: Array, b: Array, x: Array, r: Array) -> Array:
    c, y = w * x, w @ x + b
    return (shared(c + 0.25 * np.maximum(c, 0), b + 0.25 * np.maximum(b, 0), np.where(y > 0, r, 0))
            + shared(c + 0.25 * np.minimum(c, 0), b + 0.25 * np.minimum(b, 0), np.where(y < 0, r, 0)))


def box_rule(w: Array, x: Array, r: Array, low: Array, high: Array) -> Array:
    return shared(w * x - np.maximum(w, 0) * low - np.minimum(w, 0) * high, np.zeros(len(w)), r)


def flat_rule(connected: Array, r: Array) -> Array:
    return shared(connected, np.zeros(len(connected)), r)


def by_matrices(network: Small, image: Tensor, target: int, composite: str, box: str) -> dict[str, Array]:
    """Relevance at the pixels and at some layers, for one image."""
    net = copy.deepcopy(network).double()
    convolution = {"plus": plus_rule, "gamma": gamma_rule, "alpha2": alpha2_beta1_rule, "backprop": plus_rule}[
        composite.split("-")[1]]
    dense = plus_rule if composite == "excitation-backprop" else epsilon_rule
    mean, std = (np.array(v)[:, None, None] for v in (MEAN, STD))
    pixels = image.double().numpy()
    x = ((pixels - mean) / std).ravel()
    w1, b1 = affine(lambda t: net.norm1(net.conv1(t)), 2, 8, 8)
    w2, b2 = affine(lambda t: net.norm2(net.conv2(t)), 5, 8, 8)
    w3, b3 = affine(net.conv3, 5, 4, 4)
    w4, b4 = affine(net.conv4, 4, 2, 2)
    w5, b5 = affine(net.fc1, 6)
    w6, b6 = affine(net.fc2, 7)
    average, nothing = affine(net.mean, 6, 2, 2)
    a1 = np.maximum(w1 @ x + b1, 0)
    y2 = w2 @ a1 + b2
    joined = np.maximum(a1 + y2, 0).reshape(5, 4, 2, 4, 2).transpose(0, 1, 3, 2, 4).reshape(80, 4)
    pooled = joined.max(1)
    y3 = w3 @ pooled + b3
    a4 = np.clip(w4 @ y3 + b4, 0, 6)
    assert (a4 == 6).any()
    assert (y3 < 0).any()
    a5 = np.maximum(w5 @ (average @ a4) + b5, 0)
    logits = w6 @ a5 + b6
    r5 = dense(w6, b6, a5, np.where(np.arange(3) == target, logits, 0))
    r4 = epsilon_rule(average, nothing, a4, dense(w5, b5, average @ a4, r5))
    r3 = convolution(w4, b4, y3, r4)
    r_pool = convolution(w3, b3, pooled, r3)
    winners = np.zeros((80, 4))
    winners[np.arange(80), joined.argmax(1)] = r_pool
    r_sum = winners.reshape(5, 4, 4, 2, 2).transpose(0, 1, 3, 2, 4).ravel()
    r_a1, r_y2 = (epsilon_rule(np.diag(one), other, np.ones(320), r_sum) for one, other in ((a1, y2), (y2, a1)))
    r1 = r_a1 + convolution(w2, b2, a1, r_y2)
    if composite.endswith("box"):
        low, high = (pixels.clip(max=0), pixels.clip(min=1)) if box == "pixel" else (0 * pixels, 0 * pixels + 1)
        r0 = box_rule(w1, x, r1, *(((end - mean) / std).ravel() for end in (low, high)))
    elif composite.endswith("flat"):
        ones = nn.Conv2d(2, 5, 3, padding=1, bias=False).double().requires_grad_(False)
        ones.weight.fill_(1)
        r0 = flat_rule(affine(ones, 2, 8, 8)[0], r1)
    else:
        r0 = convolution(w1, b1, x, r1)
    return {"input": r0.reshape(2, 8, 8).sum(0), "pool": r_pool.reshape(5, 4, 4).sum(0),
            "conv3": r3.reshape(4, 2, 2).sum(0), "relu6": r4.reshape(6, 2, 2).sum(0)}


# -- tests ------------------------------------------------------------------------------------------------------------


def explain(network: nn.Module, images: Tensor, targets: Tensor, **options: Any) -> certframe.Attribution:
    model = certframe.TorchModel(network, tuple(images.shape[1:]), mean=MEAN, std=STD)
    return Lrp(Lrp.Options(**options)).attribute(model, images, targets, rng=None)


@pytest.mark.filterwarnings("ignore:.*does not conserve")  # αβ, where a layer of few inputs has no negative ones
@pytest.mark.parametrize("composite", COMPOSITES)
@pytest.mark.parametrize("layer", ["input", "pool", "conv3", "relu6"])
def test_it_is_what_matrices_give(network: Small, images: Tensor, composite: str, layer: str) -> None:
    targets = torch.tensor([0, 2, 1])
    found = explain(network, images, targets, composite=composite, layer=layer).maps.double().numpy()
    for image, target, one in zip(images, targets, found, strict=True):
        expected = by_matrices(network, image, int(target), composite, "pixel")[layer]
        assert np.abs(expected).max() > 1e-5
        np.testing.assert_allclose(one, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("composite", ["epsilon-plus-box", "epsilon-gamma-box"])
def test_the_box_may_be_that_of_pixels_without_noise(network: Small, images: Tensor, composite: str) -> None:
    target = torch.tensor([1])
    unit, pixel = (explain(network, images[:1], target, composite=composite, box=box).maps[0].double().numpy()
                   for box in ("unit", "pixel"))
    expected = by_matrices(network, images[0], 1, composite, "unit")["input"]
    np.testing.assert_allclose(unit, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())
    assert np.abs(unit - pixel).max() > 0.01 * np.abs(unit).max()
    inside = images[:1].clamp(0, 1)
    torch.testing.assert_close(*(explain(network, inside, target, composite=composite, box=box).maps
                                 for box in ("unit", "pixel")))


@pytest.mark.filterwarnings("ignore:.*does not conserve")
@pytest.mark.parametrize("epsilon", [0.0, 0.25])
def test_epsilon_is_that_of_dense_layers(network: Small, images: Tensor, epsilon: float,
                                         monkeypatch: pytest.MonkeyPatch) -> None:
    found = explain(network, images[:1], torch.tensor([0]), layer="relu6", epsilon=epsilon).maps[0].double().numpy()
    monkeypatch.setitem(globals(), "epsilon_rule", lambda w, b, x, r: _with_epsilon(w, b, x, r, epsilon))
    expected = by_matrices(network, images[0], 0, "epsilon-plus-box", "pixel")["relu6"]
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


def _with_epsilon(w: Array, b: Array, x: Array, r: Array, epsilon: float) -> Array:
    # The mean and the sums of branches, whose weights are not negative, are no dense layers.
    y = w @ x + b
    size = TINY if (w >= 0).all() else epsilon
    return (w * x * (r / (y + np.where(y >= 0, size, -size)))[:, None]).sum(0)


def test_gamma_0_is_the_epsilon_rule_and_a_large_gamma_is_z_plus(images: Tensor) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten(),
                            nn.Linear(64, 3))
    target = torch.tensor([0, 1, 2])
    gradient_like = explain(net, images, target, composite="epsilon-gamma-box", gamma=0, layer="1").maps
    x = net[1](net[0]((images - torch.tensor(MEAN).view(2, 1, 1)) / torch.tensor(STD).view(2, 1, 1))).detach()
    x.requires_grad_()
    gradient, = torch.autograd.grad(net[2:](x).gather(1, target[:, None]).sum(), x)
    torch.testing.assert_close(gradient_like, (x * gradient).sum(1).detach(), rtol=1e-3, atol=1e-4)
    large, plus = (explain(net, images, target, layer="1", **options).maps for options in (
        {"composite": "epsilon-gamma-box", "gamma": 1e5}, {"composite": "epsilon-plus-box"}))
    torch.testing.assert_close(large, plus, rtol=1e-2, atol=1e-3)
