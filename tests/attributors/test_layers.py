"""The gradient family at a layer: against plain hooks, one image at a time, and with the body left alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from networks import ChannelsLast, Residual, Transformer, by_hook, settled
from torch import Tensor, nn

from certframe import certify
from certframe.attributors.control import Random
from certframe.attributors.gradient import Gradient, InputXGradient, SmoothGrad, VarGrad
from certframe.attributors.guided import GuidedBackprop, GuidedRectifiers
from certframe.attributors.path import IntegratedGradients
from certframe.errors import UsageError
from certframe.noise import CopyRng
from certframe.torch_model import TorchModel

SIZE = (3, 16, 16)
X = torch.rand(3, *SIZE, generator=torch.Generator().manual_seed(4)) + 0.1
ONES = torch.ones(3, dtype=torch.int64)
NETWORKS = [(Residual, "final"), (Residual, "stage1.0.bn2"), (Transformer, "final"), (Transformer, "blocks.0.norm2"),
            (ChannelsLast, "final")]


def rng(*copies: int) -> CopyRng:
    return CopyRng(0, "0" * 64, "test", copies or range(3), "cpu")


def wrapped(kind: type[nn.Module]) -> TorchModel:
    return TorchModel(settled(kind()), SIZE, mean=(0.1, 0.2, 0.3), std=(0.5, 1.0, 2.0))


def hooked(model: TorchModel, layer: str, x: Tensor) -> tuple[Tensor, Tensor]:
    """A and ∂f_1/∂A as maps, by a hook on the module, on the whole network."""
    path = layer
    if layer == "final":
        with torch.no_grad():
            activation = model.at("final").body(x)[0]
            path = next(name for name, module in reversed(list(model.network.named_modules())) if name
                        and output_of(model, module, x).equal(activation))
    activation, _, gradient = by_hook(model.module, model.network.get_submodule(path), x)
    return model.as_map(activation), model.as_map(gradient)


def output_of(model: TorchModel, module: nn.Module, x: Tensor) -> Tensor:
    seen: list[Any] = [torch.empty(0)]
    handle = module.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    try:
        model.module(x)
    finally:
        handle.remove()
    return seen[-1]


@pytest.mark.parametrize(("kind", "layer"), NETWORKS)
def test_gradient_and_its_product_with_the_activation(kind: type[nn.Module], layer: str) -> None:
    model = wrapped(kind)
    activation, gradient = hooked(model, layer, X)
    found = Gradient(Gradient.Options(layer=layer)).attribute(model, X, ONES, rng=rng())
    torch.testing.assert_close(found.maps, gradient.abs().sum(1), rtol=1e-4, atol=1e-6)
    assert found.maps.abs().sum() > 0
    found = InputXGradient(InputXGradient.Options(layer=layer)).attribute(model, X, ONES, rng=rng())
    torch.testing.assert_close(found.maps, (activation * gradient).sum(1), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found.logits, model.module(X))


class Pooled(nn.Module):
    """Many channels, a mean over all pixels, one linear layer: the gradient is the same at all pixels."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.rectifier, self.linear = nn.Conv2d(3, 1280, 4, stride=2), nn.ReLU(), nn.Linear(1280, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.rectifier(self.conv(x)).mean((2, 3)))


@pytest.mark.parametrize("resolution", ["native", "input"])
@pytest.mark.parametrize("method", ["gradient", "smoothgrad", "vargrad"])
def test_a_map_that_is_the_same_everywhere_has_no_important_pixel(method: str, resolution: str) -> None:
    """Neither the order of a sum nor the rounding of the enlargement may rank its pixels."""
    model = TorchModel(Pooled().eval(), SIZE)
    found = certify(model, X[0] / 2, attributor=method, target=1, sigma=0.25, samples=120, k=50, resolution=resolution,
                    device="cpu", options={"attributor.layer": "rectifier"})
    assert found.tally.segments.shape[2:] == ((7, 7) if resolution == "native" else (16, 16))
    assert (found.certificate.labels == 0).all()


@pytest.mark.parametrize(("kind", "layer"), NETWORKS)
def test_guided_by_the_rectifiers_behind_the_layer(kind: type[nn.Module], layer: str) -> None:
    model = wrapped(kind)
    with GuidedRectifiers():
        _, gradient = hooked(model, layer, X)
    _, plain = hooked(model, layer, X)
    if kind is ChannelsLast:
        with pytest.raises(UsageError, match="no rectifier"):
            GuidedBackprop(GuidedBackprop.Options(layer=layer)).attribute(model, X, ONES, rng=rng())
        return
    found = GuidedBackprop(GuidedBackprop.Options(layer=layer)).attribute(model, X, ONES, rng=rng())
    torch.testing.assert_close(found.maps, gradient.abs().sum(1), rtol=1e-4, atol=1e-6)
    # At the end of a residual net, before pooling and a linear layer, no rectifier is left.
    assert torch.allclose(gradient, plain) == (kind is Residual and layer == "final")


@pytest.mark.parametrize(("chunk", "baseline", "steps"), [(1, 0.0, 5), (7, 0.5, 5), (100, 0.5, 2)])
@pytest.mark.parametrize(("kind", "layer"), NETWORKS)
def test_integrated_gradients_along_the_activations(kind: type[nn.Module], layer: str, chunk: int, baseline: float,
                                                    steps: int) -> None:
    model = wrapped(kind)
    split = model.at(layer)
    start, *_ = split.body(torch.full((1, *SIZE), baseline))
    expected = []
    for b in range(3):
        end, *around = split.body(X[b:b + 1])
        total = torch.zeros_like(end)
        for j in range(steps):
            point = (start + (end - start) * j / (steps - 1)).requires_grad_()
            gradient, = torch.autograd.grad(split.head(point, *around)[0, 1], point)
            total += gradient * (0.5 if j in (0, steps - 1) else 1.0) / (steps - 1)
        expected.append(split.as_map(total * (end - start)).sum(1))
    options = IntegratedGradients.Options(layer=layer, steps=steps, baseline=baseline, chunk=chunk)
    found = IntegratedGradients(options).attribute(model, X, ONES, rng=rng())
    torch.testing.assert_close(found.maps, torch.cat(expected), rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(found.logits, model.module(X), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("kind", "layer", "whole"), [
    (Residual, "final", True), (Residual, "stage1.0", True), (ChannelsLast, "final", True),
    (Residual, "stage1.0.bn2", False)])
def test_integrated_gradients_add_up_to_what_the_layer_changes(kind: type[nn.Module], layer: str, whole: bool) -> None:
    model = wrapped(kind)
    split = model.at(layer)
    found = IntegratedGradients(IntegratedGradients.Options(layer=layer, steps=400)).attribute(model, X, ONES,
                                                                                               rng=rng())
    _, *around = split.body(X)
    start = split.body(torch.zeros(3, *SIZE))[0]
    change = (model.module(X) - split.head(start, *around))[:, 1]
    torch.testing.assert_close(found.maps.sum((1, 2)), change, rtol=0.02, atol=0.02)
    assert torch.allclose(change, (model.module(X) - model.module(torch.zeros(3, *SIZE)))[:, 1], atol=1e-4) == whole


@pytest.mark.parametrize("chunk", [1, 4])
@pytest.mark.parametrize(("kind", "layer"), NETWORKS)
def test_smoothgrad_and_vargrad_by_a_loop(kind: type[nn.Module], layer: str, chunk: int) -> None:
    model = wrapped(kind)
    mean, variance = [], []
    for b in range(3):
        stream, spread = rng(b), 0.3 * (X[b].max() - X[b].min())
        maps = torch.cat([hooked(model, layer, X[b:b + 1] + spread * stream.normal(*SIZE))[1] for _ in range(5)])
        mean.append(maps.mean(0).abs().sum(0))
        variance.append(maps.var(0, unbiased=False).sum(0))
    for method, expected in ((SmoothGrad, mean), (VarGrad, variance)):
        options = method.Options(layer=layer, samples=5, noise=0.3, chunk=chunk)
        found = method(options).attribute(model, X, ONES, rng=rng()).maps
        torch.testing.assert_close(found, torch.stack(expected), rtol=1e-3, atol=1e-5)


def test_the_control_has_the_size_of_the_layer() -> None:
    model = wrapped(Residual)
    assert Random().attribute(model, X, ONES, rng=rng()).maps.shape == (3, 16, 16)
    assert Random(Random.Options(layer="stage1")).attribute(model, X, ONES, rng=rng()).maps.shape == (3, 8, 8)


class Cut(nn.Module):
    """Its logits do not depend on what the convolution gives, in the sense of a derivative."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 4, stride=4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(torch.sign(self.conv(x)).mean((2, 3)).detach())
        return logits


@pytest.mark.parametrize("method", [Gradient, InputXGradient, IntegratedGradients, SmoothGrad, VarGrad])
def test_a_layer_without_a_gradient_is_refused(method: Any) -> None:
    model = TorchModel(settled(Cut()), SIZE)
    with pytest.raises(UsageError, match=r"no gradient with respect to layer 'conv': .*; take another layer, or"):
        method(method.Options(layer="conv")).attribute(model, X, ONES, rng=rng())
