"""Bounds against closed forms, a slow second implementation, and thousands of sampled and attacked outputs."""

from __future__ import annotations

import itertools
import math
import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from certframe_eva.backward import reach
from certframe_eva.bounds import logit_bounds, upper_bounds
from certframe_eva.forward import Forward
from certframe_eva.network import Network
from certframe_eva.operations import Maximum, Rectifier
from certframe_eva.regions import Region
from certframe_eva.rows import Dense, Patches
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import certframe

METHODS = ("ibp", "forward", "backward", "ibp+forward", "ibp+forward+backward")
NORMS = (1.0, 2.0, math.inf)
EXAMPLES = float(os.environ.get("CERTFRAME_EVA_EXAMPLES", "1"))
"""How many times as many random networks are tried."""
DUAL = {1.0: math.inf, 2.0: 2.0, math.inf: 1.0}


class Residual(nn.Module):
    """Two residual blocks, the first with a strided shortcut, the second with an in-place sum."""

    def __init__(self, channels: int = 2) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3)
        self.conv1 = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.conv2 = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.shortcut = nn.Conv2d(3, 4, 1, stride=2)
        self.conv3 = nn.Conv2d(4, 4, 3, padding=1)
        self.pool = nn.AvgPool2d(2)
        self.fc = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = torch.relu(self.conv2(torch.relu(self.conv1(x))) + self.shortcut(x))
        y = self.conv3(x)
        y += x
        logits: Tensor = self.fc(self.pool(torch.relu(y)).flatten(1))
        return logits


class Minus(nn.Module):
    """A difference of two convolutions, under another one whose windows reach into the padding."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.plus = nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
        self.minus, self.last = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
        self.fc = nn.Linear(3 * 64, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        logits: Tensor = self.fc(torch.relu(self.last(self.plus(x) - self.minus(x))).flatten(1))
        return logits


def examples(count: int) -> int:
    return max(1, round(count * EXAMPLES))


def settled(module: nn.Module, seed: int, dtype: torch.dtype = torch.float64) -> nn.Module:
    """Random weights of a size that keeps about half of the neurons unstable, and norms with other statistics."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if not tensor.is_floating_point():
            continue
        values = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
        if name.endswith("running_var"):
            values = 0.5 + values.abs()
        elif tensor.ndim > 1:
            values = values * 1.5 / math.sqrt(math.prod(tensor.shape[1:]))
        else:
            values = 0.3 * values
        tensor.data.copy_(values)
    return module.to(dtype).eval().requires_grad_(False)


def network_of(module: nn.Module, shape: tuple[int, ...]) -> Network:
    weight = next(module.parameters())
    return Network.of(module, torch.rand(2, *shape, generator=torch.Generator().manual_seed(9)).to(weight))


# -- a slow second implementation ---------------------------------------------------------------------------------


@dataclass
class Layer:
    """A dense affine map, a rectifier, or maxima of groups of inputs; on vectors, in float64."""

    kind: str
    weight: np.ndarray | None = None
    bias: np.ndarray | None = None
    leak: float = 0.0
    groups: list[list[int]] | None = None


def dense_layers(module: nn.Sequential, shape: tuple[int, ...]) -> list[Layer]:
    """Every affine layer as the matrix that maps basis vectors to its outputs."""
    found = []
    x = torch.zeros(1, *shape, dtype=torch.float64)
    for layer in module:
        out = layer(x)
        size = math.prod(x.shape[1:])
        if isinstance(layer, nn.ReLU | nn.LeakyReLU):
            found.append(Layer("rectifier", leak=getattr(layer, "negative_slope", 0.0)))
        elif isinstance(layer, nn.MaxPool2d):
            numbers = torch.arange(size, dtype=torch.float64).view(x.shape)
            padded = nn.functional.pad(numbers, (layer.padding,) * 4, value=-1)
            k, s = layer.kernel_size, layer.stride
            groups = [[int(v) for v in padded[0, c, i * s:i * s + k, j * s:j * s + k].flatten() if v >= 0]
                      for c, i, j in itertools.product(*map(range, out.shape[1:]))]
            found.append(Layer("maximum", groups=groups))
        else:
            bias = layer(torch.zeros_like(x)).flatten()
            basis = torch.eye(size, dtype=torch.float64).view(size, *x.shape[1:])
            matrix = (layer(basis).flatten(1) - bias).T
            found.append(Layer("affine", matrix.numpy(), bias.numpy()))
        x = out
    return found


def slow_reach(a: np.ndarray, p: float, eps: float, sign: int, fixed: np.ndarray) -> float:
    a = np.where(fixed, 0.0, a)
    a = a if sign == 0 else np.maximum(sign * a, 0.0)
    return eps * float(np.linalg.norm(a, DUAL[p]))


def slow_lines(layer: Layer, low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A row for every output: coefficients of the upper line, its constant, coefficients of the lower line."""
    found = []
    if layer.kind == "rectifier":
        for i, (below, above) in enumerate(zip(low, high, strict=True)):
            upper, lower, constant = np.zeros(len(low)), np.zeros(len(low)), 0.0
            if below >= 0:
                upper[i] = lower[i] = 1.0
            elif above <= 0:
                upper[i] = lower[i] = layer.leak
            else:
                upper[i] = (above - layer.leak * below) / (above - below)
                constant = above - upper[i] * above
                lower[i] = 1.0 if above > -below else layer.leak
            found.append((upper, constant, lower))
    for group in layer.groups or []:  # of a maximum
        upper, lower = np.zeros(len(low)), np.zeros(len(low))
        order = sorted(group, key=lambda i: -high[i])
        first = order[0]
        level = max(low[i] for i in group)
        if len(order) > 1:
            level = max(level, high[order[1]])
        slope = (high[first] - level) / (high[first] - low[first]) if high[first] > low[first] else 0.0
        upper[first] = slope
        lower[max(group, key=lambda i: low[i] + high[i])] = 1.0
        found.append((upper, level - slope * low[first], lower))
    upper, constant, lower = (np.array(part) for part in zip(*found, strict=True))
    return upper, constant, lower


def slow_bounds(layers: list[Layer], x: np.ndarray, p: float, eps: float, sign: int, fixed: np.ndarray,
                part: str) -> tuple[np.ndarray, np.ndarray]:
    """One problem, neuron by neuron: intervals of every layer's output, the last being the logits."""
    intervals: list[tuple[np.ndarray, np.ndarray]] = []
    lines: list[Any] = []
    for depth, layer in enumerate(layers):
        found: list[tuple[np.ndarray, np.ndarray]] = []  # one
        lines.append(None if layer.kind == "affine" else slow_lines(layer, *intervals[-1]))
        if layer.kind != "affine":
            low, high = intervals[-1]
            if layer.kind == "rectifier":
                found.append((np.maximum(low, layer.leak * low), np.maximum(high, layer.leak * high)))
            else:
                found.append(tuple(np.array([max(side[i] for i in g) for g in layer.groups or []])  # type: ignore
                                   for side in (low, high)))
        first = all(earlier.kind == "affine" for earlier in layers[:depth + 1])
        if part == "ibp" and layer.kind == "affine" and not first:
            low, high = intervals[-1]
            assert layer.weight is not None
            up, down = np.maximum(layer.weight, 0), np.minimum(layer.weight, 0)
            found.append((up @ low + down @ high + layer.bias, up @ high + down @ low + layer.bias))
        elif layer.weight is not None:
            sides = [[slow_functional(layers[:depth + 1], lines, s * row, x, p, eps, sign, fixed, part)
                      for row in np.eye(len(layer.weight))] for s in (1.0, -1.0)]
            found.append((-np.array(sides[1]), np.array(sides[0])))
        intervals += found
    return intervals[-1]


def slow_functional(layers: list[Layer], lines: list[Any], row: np.ndarray, x: np.ndarray, p: float, eps: float,
                    sign: int, fixed: np.ndarray, part: str) -> float:
    """CROWN for one functional of the last of these layers; `forward` keeps positive and negative parts apart."""
    plus, minus, constant = np.maximum(row, 0), np.minimum(row, 0), 0.0
    for depth in range(len(layers) - 1, -1, -1):
        layer = layers[depth]
        if layer.kind == "affine":
            assert layer.weight is not None
            assert layer.bias is not None
            constant += float((plus + minus) @ layer.bias)
            if part == "forward":
                up, down = np.maximum(layer.weight, 0), np.minimum(layer.weight, 0)
                plus, minus = plus @ up + minus @ down, plus @ down + minus @ up
            else:
                plus, minus = (plus + minus) @ layer.weight, np.zeros(layer.weight.shape[1])
            continue
        if part == "backward":
            plus, minus = np.maximum(plus + minus, 0), np.minimum(plus + minus, 0)
        upper, shift, lower = lines[depth]
        constant += float(plus @ shift)
        plus, minus = plus @ upper, minus @ lower
    a = plus + minus
    return float(a @ x) + constant + slow_reach(a, p, eps, sign, fixed)


# -- networks and perturbations to try ----------------------------------------------------------------------------


@st.composite
def sequential(draw: Any) -> tuple[nn.Sequential, tuple[int, int, int]]:
    """A small convolutional network of random shape, and its input's shape."""
    shape = draw(st.integers(1, 2)), draw(st.integers(4, 6)), draw(st.integers(4, 6))
    layers: list[nn.Module] = []
    x = torch.zeros(1, *shape)

    def put(layer: nn.Module) -> None:
        nonlocal x
        layers.append(layer.eval())
        x = layer(x)

    for _ in range(draw(st.integers(1, 2))):
        kernel = draw(st.integers(1, 3)), draw(st.integers(1, 3))
        groups = draw(st.sampled_from([1, x.shape[1]]))
        dilation = draw(st.integers(1, 1 if min(x.shape[2:]) < 5 else 2))  # so that the kernel fits in
        put(nn.Conv2d(x.shape[1], groups * draw(st.integers(1, 2)), kernel, stride=draw(st.integers(1, 2)),
                      padding=draw(st.sampled_from([0, 1, (1, 0), (0, 2)])), dilation=dilation,
                      groups=groups, bias=draw(st.booleans())))
        if draw(st.booleans()):
            put(nn.BatchNorm2d(x.shape[1]))
        put(draw(st.sampled_from([nn.ReLU(), nn.LeakyReLU(0.1)])))
        if min(x.shape[2:]) > 2 and draw(st.booleans()):
            padding = draw(st.integers(0, 1))
            put(draw(st.sampled_from([nn.MaxPool2d(2, stride=draw(st.integers(1, 2)), padding=padding),
                                      nn.AvgPool2d(2, stride=1, padding=padding)])))
        if min(x.shape[2:]) < 3:
            break
    put(nn.Flatten())
    put(nn.Linear(x.shape[1], 4))
    put(nn.ReLU())
    put(nn.Linear(4, 3))
    return nn.Sequential(*layers), shape


@st.composite
def perturbations(draw: Any) -> dict[str, Any]:
    return {"p": draw(st.sampled_from(NORMS)), "eps": draw(st.sampled_from([0.01, 0.1, 0.5])),
            "sign": draw(st.sampled_from([0, 0, 1, -1]))}


def some_masks(shape: tuple[int, ...], seed: int) -> Tensor:
    """Nothing fixed, a rectangle, random pixels, everything but a corner."""
    height, width = shape[1:]
    masks = torch.zeros(4, height, width, dtype=torch.bool)
    masks[1, :height // 2, :width // 2] = True
    masks[2] = torch.rand(height, width, generator=torch.Generator().manual_seed(seed)) < 0.5
    masks[3, 1:, 1:] = True
    return masks


def some_images(shape: tuple[int, ...], seed: int, count: int = 2) -> Tensor:
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def project(delta: Tensor, region: Region, q: int) -> Tensor:
    """Some point of set q for every row of (S, M, *shape); not the nearest, but the ball's boundary is reached."""
    free = region.free[:, min(q, region.free.shape[1] - 1)]
    delta = delta * free
    low, high = region.low[:, 0], region.high[:, 0]
    for _ in range(2):
        delta = torch.maximum(torch.minimum(delta, high), low)
        norm = delta.flatten(2).norm(p=region.p, dim=2).clamp(min=1e-12)[..., None, None, None]
        delta = delta * (region.eps / norm).clamp(max=1.0)
    return delta


def worst_found(module: nn.Module, region: Region, q: int, rows: Tensor, seed: int, samples: int = 500,
                starts: int = 20) -> Tensor:
    """(M, R): the largest values of functionals of the logits by sampling, and by gradient ascent from some samples."""
    generator = torch.Generator().manual_seed(seed)
    centre = region.centre

    def values(delta: Tensor) -> Tensor:
        return module((centre + delta).flatten(0, 1)).unflatten(0, delta.shape[:2]) @ rows.T

    delta = torch.randn((samples, *centre.shape), generator=generator, dtype=torch.float64).to(centre) * region.eps
    if region.p == 1:  # corners of the ball are where a functional is largest
        delta[::2] *= torch.rand(delta[::2].shape, generator=generator) < 0.1
    delta = project(delta, region, q)
    best = values(delta).amax(0)
    own = torch.eye(len(rows), dtype=centre.dtype).repeat_interleave(starts, 0)[:, None]  # each start has a functional
    delta = delta[:starts].repeat(len(rows), 1, 1, 1, 1)
    for _ in range(5):
        delta = delta.requires_grad_()
        found = values(delta)
        best = torch.maximum(best, found.detach().amax(0))
        gradient, = torch.autograd.grad((found * own).sum(), delta)
        size = gradient.flatten(2).norm(p=2, dim=2).clamp(min=1e-12)[..., None, None, None]
        delta = project(delta.detach() + region.eps * gradient / size, region, q)
    return best


# -- exactness ----------------------------------------------------------------------------------------------------


@settings(max_examples=examples(12))
@given(sequential(), perturbations(), st.integers(0, 99))
def test_it_is_what_the_slow_implementation_gives(drawn: Any, ball: dict[str, Any], seed: int) -> None:
    module, shape = drawn
    module = settled(module, seed)
    network, x, masks = network_of(module, shape), some_images(shape, seed, 1), some_masks(shape, seed)[:3]
    layers = dense_layers(module, shape)
    region = Region.ball(x, fixed=masks, **ball)
    for part in ("ibp", "forward", "backward"):
        low, high = logit_bounds(network, region, part, relaxation="own")
        for q, mask in enumerate(masks):
            fixed = mask.expand(shape).flatten().numpy()
            expected = slow_bounds(layers, x.flatten().numpy(), ball["p"], ball["eps"], ball["sign"], fixed, part)
            np.testing.assert_allclose(low[0, q], expected[0], rtol=1e-9, atol=1e-9)
            np.testing.assert_allclose(high[0, q], expected[1], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("method", "p", "sign"), [
    ("ibp", 2.0, 0), ("forward", 2.0, 1), ("backward", 2.0, -1), ("ibp+forward", 1.0, 0), ("backward", 1.0, 1),
    ("forward", math.inf, 0), ("ibp+backward", math.inf, -1)])
def test_it_is_exact_on_linear_networks(method: str, p: float, sign: int) -> None:
    shape = (2, 6, 5)
    module = settled(nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.BatchNorm2d(3), nn.AvgPool2d(2), nn.Flatten(),
                                   nn.Linear(18, 4)), 3)
    x, masks = some_images(shape, 0), some_masks(shape, 1)
    low, high = logit_bounds(network_of(module, shape), Region.ball(x, 0.3, p, sign=sign, fixed=masks), method)
    for m, image in enumerate(x):
        weight = torch.autograd.functional.jacobian(lambda v: module(v[None])[0], image).flatten(1).numpy()
        value = module(image[None])[0].numpy()
        for q, mask in enumerate(masks):
            fixed = mask.expand(shape).flatten().numpy()
            for c in range(4):
                above = value[c] + slow_reach(weight[c], p, 0.3, sign, fixed)
                below = value[c] - slow_reach(-weight[c], p, 0.3, sign, fixed)
                assert float(high[m, q, c]) == pytest.approx(above, abs=1e-9)
                assert float(low[m, q, c]) == pytest.approx(below, abs=1e-9)


@pytest.mark.parametrize("part", ["forward", "backward"])
@pytest.mark.parametrize(("kind", "relaxation"), [(Residual, "shared"), (Residual, "own"), (Minus, "shared")])
def test_windows_give_what_dense_rows_give(part: str, kind: type[nn.Module], relaxation: Any,
                                           monkeypatch: pytest.MonkeyPatch) -> None:
    shape = (2, 8, 8)
    module = settled(kind(), 5)
    network, masks = network_of(module, shape), some_masks(shape, 1)
    for p in (1.0, 2.0):
        region = Region.ball(some_images(shape, 1), 0.1, p, fixed=masks, clip=True)
        found = logit_bounds(network, region, part, relaxation=relaxation)
        with monkeypatch.context() as patched:
            patched.setattr(Patches, "compact", Patches.dense)
            expected = logit_bounds(network, region, part, relaxation=relaxation)
        torch.testing.assert_close(found, expected)


@settings(max_examples=examples(12))
@given(sequential(), perturbations(), st.integers(0, 99))
def test_propagated_functions_are_those_that_are_handed_back(drawn: Any, ball: dict[str, Any], seed: int) -> None:
    module, shape = drawn
    require_same_functions(settled(module, seed), shape, ball, seed)


@pytest.mark.parametrize("kind", [Residual, Minus])
def test_propagated_functions_of_sums_are_those_that_are_handed_back(kind: type[nn.Module]) -> None:
    require_same_functions(settled(kind(), 5), (2, 8, 8), {"p": 2.0, "eps": 0.2}, 1)


def require_same_functions(module: nn.Module, shape: tuple[int, int, int], ball: dict[str, Any], seed: int) -> None:
    """Intervals of all neurons by `Forward`, against positive and negative coefficients handed back separately."""
    network = network_of(module, shape)
    region = Region.ball(some_images(shape, seed), fixed=some_masks(shape, seed), **ball)
    lines: dict[int, Any] = {}
    functions = Forward(network, region.centre)
    low, high = region.interval()
    for value in range(1, network.output + 1):
        op = network.operations[value - 1]
        if isinstance(op, Rectifier | Maximum):
            lines[value] = op.lines(low[:, 0], high[:, 0])
        low, high = functions.of(value, lines).interval(region)
        size = math.prod(network.shape(value))
        one = torch.eye(size, dtype=torch.float64).view(1, size, *network.shape(value))
        for rows, expected in ((Dense(one), high), (Dense(-one), -low)):
            found = reach(network, region, value, rows, lines, "forward").expand(2, region.sets, -1)
            torch.testing.assert_close(expected.flatten(2), found, rtol=1e-9, atol=1e-9)


# -- soundness ----------------------------------------------------------------------------------------------------


def require_sound(module: nn.Module, region: Region, found: Tensor, rows: Tensor, seed: int, slack: float) -> None:
    """No sampled or attacked output is above the bounds (M, Q, R)."""
    for q in range(region.sets):
        excess = worst_found(module, region, q, rows, seed) - found[:, q]
        assert float(excess.max()) <= slack, q


@settings(max_examples=examples(24))
@given(sequential(), perturbations(), st.booleans(), st.integers(0, 99), st.sampled_from(METHODS),
       st.sampled_from(["shared", "own"]), st.sampled_from([torch.float32, torch.float64]))
def test_no_output_is_outside(drawn: Any, ball: dict[str, Any], clip: bool, seed: int, method: str, relaxation: Any,
                              dtype: torch.dtype) -> None:
    module, shape = drawn
    module = settled(module, seed, dtype)
    x = some_images(shape, seed).to(dtype)
    region = Region.ball(x, fixed=some_masks(shape, seed), clip=clip, **ball)
    rows = torch.tensor([[1.0, 0, 0], [0, -1, 0], [-1, 1, 0]], dtype=dtype)
    found = upper_bounds(network_of(module, shape), region, rows, method, relaxation=relaxation)
    require_sound(module, region, found, rows, seed, 1e-9 if dtype == torch.float64 else 1e-5)


@pytest.mark.parametrize(("method", "p"), [("ibp", 2.0), ("forward", math.inf), ("ibp+forward+backward", 2.0),
                                          ("backward", 1.0)])
def test_no_output_of_a_residual_network_is_outside(method: str, p: float) -> None:
    shape = (2, 8, 8)
    module = settled(Residual(), 5)
    rows = torch.tensor([[1.0, 0, 0], [-1, 1, 0]], dtype=torch.float64)
    for relaxation, clip in (("shared", True), ("own", False)):
        region = Region.ball(some_images(shape, 1), 0.2, p, fixed=some_masks(shape, 1), clip=clip)
        found = upper_bounds(network_of(module, shape), region, rows, method, relaxation=relaxation)  # type: ignore
        require_sound(module, region, found, rows, 0, 1e-9)


# -- relations ----------------------------------------------------------------------------------------------------


@settings(max_examples=examples(12))
@given(sequential(), perturbations(), st.booleans(), st.integers(0, 99), st.sampled_from(["shared", "own"]))
def test_a_combination_is_never_looser_than_its_parts(drawn: Any, ball: dict[str, Any], clip: bool, seed: int,
                                                      relaxation: Any) -> None:
    module, shape = drawn
    network = network_of(settled(module, seed), shape)
    region = Region.ball(some_images(shape, seed), fixed=some_masks(shape, seed), clip=clip, **ball)
    found = {m: logit_bounds(network, region, m, relaxation=relaxation) for m in METHODS}
    for whole, part in (("ibp+forward", "ibp"), ("ibp+forward", "forward"), ("ibp+forward+backward", "ibp"),
                        ("ibp+forward+backward", "forward"), ("ibp+forward+backward", "backward")):
        assert bool((found[whole][0] >= found[part][0] - 1e-10).all())
        assert bool((found[whole][1] <= found[part][1] + 1e-10).all())


@settings(max_examples=examples(12))
@given(sequential(), perturbations(), st.integers(0, 99), st.sampled_from(METHODS))
def test_a_smaller_set_has_no_looser_bounds(drawn: Any, ball: dict[str, Any], seed: int, method: str) -> None:
    module, shape = drawn
    network = network_of(settled(module, seed), shape)
    region = Region.ball(some_images(shape, seed), fixed=some_masks(shape, seed), **ball)
    low, high = logit_bounds(network, region, method)
    assert bool((low >= low[:, :1] - 1e-10).all())
    assert bool((high <= high[:, :1] + 1e-10).all())


@pytest.mark.parametrize(("method", "relaxation"), [("ibp+backward", "shared"), ("forward", "shared"),
                                                    ("backward", "own")])
def test_the_chunk_changes_nothing(method: str, relaxation: Any) -> None:
    shape = (2, 8, 8)
    network = network_of(settled(Residual(), 5), shape)
    region = Region.ball(some_images(shape, 1, 2), 0.1, 2, fixed=some_masks(shape, 1))
    expected = logit_bounds(network, region, method, relaxation=relaxation)
    for chunk in (1, 5):
        torch.testing.assert_close(logit_bounds(network, region, method, relaxation=relaxation, chunk=chunk), expected)


@pytest.mark.parametrize("p", NORMS)
def test_float32_is_close_to_float64(p: float) -> None:
    """Rounding moves a bound by less than 10⁻⁴ of the bounds' size."""
    shape = (2, 8, 8)
    for method, relaxation in (("ibp+forward+backward", "shared"), ("backward", "own")):
        found = []
        for dtype in (torch.float64, torch.float32):
            network = network_of(settled(Residual(), 5, dtype), shape)
            region = Region.ball(some_images(shape, 1).to(dtype), 0.1, p, fixed=some_masks(shape, 1), clip=True)
            found.append(logit_bounds(network, region, method, relaxation=relaxation)[1].double())  # type: ignore
        assert float((found[0] - found[1]).max()) < 1e-4 * float(found[0].abs().max())


@settings(max_examples=examples(12))
@given(sequential(), perturbations(), st.booleans(), st.integers(0, 99), st.sampled_from(METHODS))
def test_float32_is_never_below_float64_by_more(drawn: Any, ball: dict[str, Any], clip: bool, seed: int,
                                                method: str) -> None:
    """By less than 10⁻⁴ of the size of the bounds, on random networks."""
    module, shape = drawn
    found = []
    for dtype in (torch.float64, torch.float32):
        network = network_of(settled(module, seed, dtype), shape)
        region = Region.ball(some_images(shape, seed).to(dtype), fixed=some_masks(shape, seed), clip=clip, **ball)
        found.append(logit_bounds(network, region, method)[1].double())
    assert float((found[0] - found[1]).max()) < 1e-4 * float(found[0].abs().max())


def test_optimised_slopes_are_sound_and_tighter() -> None:
    shape = (2, 8, 8)
    module = settled(Residual(), 5)
    network, rows = network_of(module, shape), torch.tensor([[1.0, -1, 0]], dtype=torch.float64)
    region = Region.ball(some_images(shape, 1), 2.0, 2, fixed=some_masks(shape, 1)[:2])
    plain = upper_bounds(network, region, rows, "backward")
    better = upper_bounds(network, region, rows, "backward", steps=8)
    assert bool((better <= plain).all())
    assert float((plain - better).min()) > 1e-3
    require_sound(module, region, better, rows, 0, 1e-9)


def test_an_unknown_method_is_refused() -> None:
    network = network_of(settled(Residual(), 5), (2, 8, 8))
    region = Region.ball(some_images((2, 8, 8), 1), 0.2, 2)
    for method in ("crown", "ibp+ibp", "", "ibp+"):
        with pytest.raises(certframe.UsageError, match="bound method"):
            logit_bounds(network, region, method)
