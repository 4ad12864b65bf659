"""However a network is written, it is followed as it computes, or refused with a reason; never quietly misread."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from certframe_zennit.lrp import Lrp
from torch import Tensor, nn
from torch.nn import functional

import certframe

X = torch.rand(3, 2, 8, 8, generator=torch.Generator().manual_seed(0)) * 1.4 - 0.2
TARGETS = torch.tensor([2, 0, 1])


def explain(network: nn.Module, x: Tensor = X, targets: Tensor = TARGETS, **options: Any) -> Tensor:
    model = certframe.TorchModel(network.eval(), (2, 8, 8), mean=(0.5, 0.4), std=(0.2, 0.3))
    return Lrp(Lrp.Options(**options)).attribute(model, x, targets, rng=None).maps


class Plain(nn.Module):
    """The network that all others compute in their way: a layer, a residual block, a dense head."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            self.conv1, self.conv2 = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1, bias=False)
            self.norm = nn.BatchNorm2d(4)
            for tensor, low, high in ((self.norm.weight, -1.5, 1.5), (self.norm.bias, -0.5, 0.5),
                                      (self.norm.running_mean, -0.3, 0.3), (self.norm.running_var, 0.2, 1.5)):
                nn.init.uniform_(tensor, low, high)
            self.fc1, self.fc2 = nn.Linear(64, 6), nn.Linear(6, 3)
        self.relu1, self.relu2, self.relu3 = nn.ReLU(), nn.ReLU(), nn.ReLU()
        self.relu, self.in_place, self.drop = nn.ReLU(), nn.ReLU(inplace=True), nn.Dropout(0.5)
        self.pool, self.flatten = nn.MaxPool2d(2), nn.Flatten()

    def forward(self, x: Tensor) -> Tensor:
        a = self.relu1(self.conv1(x))
        a = self.pool(self.relu2(a + self.norm(self.conv2(a))))
        return self.fc2(self.relu3(self.fc1(self.flatten(a))))


class ReusedInPlace(Plain):
    def forward(self, x: Tensor) -> Tensor:
        a = self.in_place(self.conv1(x))
        a = self.pool(self.in_place(a + self.norm(self.conv2(a))))
        return self.fc2(self.in_place(self.fc1(self.flatten(a))))


class ReusedOutOfPlace(Plain):
    def forward(self, x: Tensor) -> Tensor:
        a = self.relu(self.conv1(x))
        a = self.pool(self.relu(torch.add(a, self.norm(self.conv2(a)))))
        return self.fc2(self.relu(self.fc1(torch.flatten(a, 1))))


class Functional(Plain):
    def forward(self, x: Tensor) -> Tensor:
        a = functional.relu(functional.conv2d(x, self.conv1.weight, self.conv1.bias, padding=1))
        b = functional.batch_norm(functional.conv2d(a, self.conv2.weight, padding=1), self.norm.running_mean,
                                  self.norm.running_var, self.norm.weight, self.norm.bias, self.training)
        a = functional.max_pool2d(torch.relu(a + b), 2)
        return functional.linear(functional.linear(a.view(a.size(0), -1), self.fc1.weight, self.fc1.bias).relu(),
                                 self.fc2.weight, self.fc2.bias)


class InPlaceWithoutAssignment(Plain):
    def forward(self, x: Tensor) -> Tensor:
        a = self.conv1(x)
        functional.relu(a, inplace=True)
        b = self.norm(self.conv2(a))
        b += a
        b.relu_()
        c = self.fc1(self.pool(b).reshape(len(x), -1))
        torch.relu_(c)
        return self.fc2(c)


class ModulesMadeInForward(Plain):
    def forward(self, x: Tensor) -> Tensor:
        a = nn.ReLU()(self.conv1(x))
        a = nn.MaxPool2d(2)(nn.ReLU(inplace=True)(a.add_(self.norm(self.conv2(a)))))
        return nn.Sequential(nn.Flatten(), self.fc1, nn.ReLU(), self.fc2)(a)


class Clamped(Plain):
    def forward(self, x: Tensor) -> Tensor:
        a = self.conv1(x).clamp(min=0)
        a = self.pool(torch.clamp_min(a + self.norm(self.conv2(a)), 0))
        return self.fc2(functional.hardtanh(self.fc1(self.flatten(a)), 0.0, 1e6))


class WithDropout(Plain):
    def forward(self, x: Tensor) -> Tensor:
        a = self.drop(self.relu1(self.conv1(x)))
        a = self.pool(self.relu2(a + functional.dropout(self.norm(self.conv2(a)), 0.5, self.training)))
        return self.fc2(self.drop(self.relu3(self.fc1(self.flatten(a)))))


class FoldedByHand(Plain):
    def forward(self, x: Tensor) -> Tensor:
        scale = self.norm.weight / (self.norm.running_var + self.norm.eps).sqrt()
        a = self.relu1(self.conv1(x))
        b = functional.conv2d(a, self.conv2.weight * scale[:, None, None, None],
                              self.norm.bias - self.norm.running_mean * scale, padding=1)
        a = self.pool(self.relu2(a + b))
        return self.fc2(self.relu3(self.fc1(self.flatten(a))))


class DenseAsConvolution(Plain):
    def forward(self, x: Tensor) -> Tensor:
        a = self.relu1(self.conv1(x))
        a = self.pool(self.relu2(a + self.norm(self.conv2(a))))
        a = self.relu3(functional.conv2d(a, self.fc1.weight.view(6, 4, 4, 4), self.fc1.bias))
        return functional.conv2d(a, self.fc2.weight[:, :, None, None], self.fc2.bias)[:, :, 0, 0]


class ShapesAndSizes(Plain):
    def forward(self, x: Tensor) -> Tensor:
        rows, channels, height, width = x.shape
        assert channels == 2
        a = self.relu1(self.conv1(x.reshape(rows * channels, height, width).view(rows, -1, height, width)))
        b = torch.cat([self.norm(self.conv2(a)).chunk(2, 1)[0], self.norm(self.conv2(a))[:, 2:]], dim=1)
        a = self.pool(self.relu2(sum([a, b])))
        return self.fc2(self.relu3(self.fc1(a.flatten(1) if a.ndim == 4 else a))) + torch.zeros(rows, 1)


class NormalisedInPlace(Plain):
    def forward(self, x: Tensor) -> Tensor:
        x += 1
        x.mul_(0.5)
        x *= 2
        return super().forward(x.sub_(1))


class Hooked(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.conv1.register_forward_hook(lambda _module, _inputs, output: output.relu())
        self.relu1 = nn.Identity()


WAYS = [ReusedInPlace, ReusedOutOfPlace, Functional, InPlaceWithoutAssignment, ModulesMadeInForward, Clamped,
        WithDropout, FoldedByHand, DenseAsConvolution, ShapesAndSizes, NormalisedInPlace, Hooked]


@pytest.mark.parametrize("composite", ["epsilon-plus-box", "epsilon-gamma-box", "epsilon-alpha2-beta1-flat"])
@pytest.mark.parametrize("way", WAYS)
def test_the_same_network_written_otherwise_has_the_same_relevance(way: type[nn.Module], composite: str) -> None:
    expected = explain(Plain(), composite=composite)
    assert expected.abs().max() > 0.01
    found = explain(way(), composite=composite)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


def test_a_network_that_works_on_its_input_in_place_does_not_work_on_ours() -> None:
    x = X.clone()
    model = certframe.TorchModel(NormalisedInPlace().eval(), (2, 8, 8), classes="abc")  # classes: no dry run
    Lrp().attribute(model, x, TARGETS, rng=None)
    assert torch.equal(x, X)


def test_a_compiled_model_is_followed_through_its_code() -> None:
    model = certframe.TorchModel(Plain().eval(), (2, 8, 8), mean=(0.5, 0.4), std=(0.2, 0.3))
    model.module.compile(backend="eager")
    found = Lrp().attribute(model, X, TARGETS, rng=None).maps
    torch.testing.assert_close(found, explain(Plain()), rtol=1e-4, atol=1e-5)


# -- activation functions, gates, norms -------------------------------------------------------------------------------


class Head(nn.Module):
    """A convolution, something, and a dense head on the mean."""

    def __init__(self, something: nn.Module, scale: float = 1.0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(2)
            self.conv, self.fc = nn.Conv2d(2, 4, 3), nn.Linear(4, 3)
        self.conv.weight.data *= scale
        self.something = something

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.something(self.conv(x)).mean((2, 3)))


class Apart(nn.Module):
    """Keeps the activation from being computed together with the layer: the layer's output has two users."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(x) + 0 * x


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("activation", [
    nn.ReLU(), nn.ReLU6(), nn.ReLU6(inplace=True), nn.Hardtanh(), nn.SiLU(), nn.SiLU(inplace=True), nn.GELU(),
    nn.GELU("tanh"), nn.Hardswish(), nn.ELU(), nn.Tanh(), nn.Mish(), nn.LeakyReLU(0.2), nn.PReLU(4)], ids=str)
def test_relevance_passes_through_activation_functions(activation: nn.Module, apart: bool) -> None:
    network = Head(Apart(copy.deepcopy(activation)) if apart else copy.deepcopy(activation), scale=8)
    before, after = (explain(network, layer=layer) for layer in ("conv", "something"))
    assert after.abs().max() > 0.01
    torch.testing.assert_close(before, after, rtol=1e-3, atol=1e-5 * float(after.abs().max()))


class Excited(nn.Module):
    """Squeeze and excitation."""

    def __init__(self, gate: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(5)
            self.reduce, self.expand = nn.Conv2d(4, 2, 1), nn.Conv2d(2, 4, 1)
        self.gate = gate

    def scale(self, x: Tensor) -> Tensor:
        return self.gate(self.expand(functional.silu(self.reduce(x.mean((2, 3), keepdim=True)))))

    def forward(self, x: Tensor) -> Tensor:
        x = x.relu()
        return x * self.scale(x).expand_as(x)


@pytest.mark.parametrize("gate", [torch.sigmoid, functional.hardsigmoid, lambda x: x.softmax(1)])
def test_a_gate_is_a_constant(gate: Callable[[Tensor], Tensor]) -> None:
    network = Head(Excited(gate))
    for image, target in zip(X, TARGETS, strict=True):
        x, wanted = image[None], target[None]
        normalised = (x - torch.tensor([0.5, 0.4]).view(2, 1, 1)) / torch.tensor([0.2, 0.3]).view(2, 1, 1)
        scale = network.something.scale(network.conv(normalised).relu()).detach()

        class Fixed(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                return x.relu() * scale  # noqa: B023 - used at once

        torch.testing.assert_close(explain(network, x, wanted), explain(Head(Fixed()), x, wanted), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("norm", [nn.GroupNorm(2, 4), nn.LayerNorm([4, 6, 6]), nn.RMSNorm([4, 6, 6])], ids=str)
def test_the_scale_of_a_norm_is_a_constant(norm: nn.Module) -> None:
    network = Head(copy.deepcopy(norm))
    nn.init.uniform_(network.something.get_parameter("weight"), 0.5, 1.5)
    found = explain(network, layer="conv")
    y = network.conv((X - torch.tensor([0.5, 0.4]).view(2, 1, 1)) / torch.tensor([0.2, 0.3]).view(2, 1, 1)).detach()
    y.requires_grad_()
    groups = y.view(3, 2, -1) if isinstance(norm, nn.GroupNorm) else y.view(3, 1, -1)
    centred = groups if isinstance(norm, nn.RMSNorm) else groups - groups.mean(2, keepdim=True)
    eps = norm.eps or torch.finfo(torch.float32).eps
    scaled = (centred * (centred.square().mean(2, keepdim=True) + eps).rsqrt().detach()).view_as(y)
    weight = network.something.weight.detach()
    logits = network.fc((scaled * (weight.view(-1, 1, 1) if weight.ndim == 1 else weight)).mean((2, 3)))
    gradient, = torch.autograd.grad(logits.gather(1, TARGETS[:, None]).sum(), y)
    torch.testing.assert_close(found, (y * gradient).sum(1).detach(), rtol=1e-3, atol=1e-4)


# -- refusals ---------------------------------------------------------------------------------------------------------


class Does(Plain):
    """Does something between the layers."""

    def __init__(self, what: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.what = what

    def forward(self, x: Tensor) -> Tensor:
        a = self.what(self.conv1(x))
        a = self.pool(self.relu2(a + self.norm(self.conv2(a))))
        return self.fc2(self.relu3(self.fc1(self.flatten(a))))


def _branches(x: Tensor) -> Tensor:
    return x.relu() if x.mean() > 0 else x


def _by_size(x: Tensor) -> Tensor:
    return x.relu() if len(x) == 2 else x.relu().relu()


def _writes(x: Tensor) -> Tensor:
    x = x.clone()
    x[:, 0] = 0
    return x


def _through_numpy(x: Tensor) -> Tensor:
    return torch.from_numpy(x.detach().numpy() + 1)


def _a_view_in_place(x: Tensor) -> Tensor:
    x.view(-1).relu_()
    return x


def _each_row(x: Tensor) -> Tensor:
    return torch.stack([row.relu() for row in x.unbind(0)])


@pytest.mark.parametrize(("what", "why"), [
    (lambda x: x * x.relu(), r"'mul' in Does combines activations in a way that has no rule"),
    (lambda x: x / x.abs().sum(), r"there is no rule for 'abs'|'div' in Does combines"),
    (torch.exp, r"there is no rule for 'exp' in Does"),
    (functional.softplus, r"there is no rule for 'softplus' in Does"),
    (lambda x: x.clamp(0.5, 2), r"'clamp' in Does, which is not 0 at 0"),
    (lambda x: functional.pad(x, (0, 0), value=1.0), r"'pad' in Does with a value other than 0"),
    (lambda x: x + x.sigmoid(), r"'add' in Does adds what is a constant for relevance, but depends on the picture"),
    (lambda x: functional.dropout(x, 0.5), r"dropout is active: put the model in eval mode"),
    (lambda x: functional.batch_norm(x, None, None, training=True), r"'batch_norm' in Does mixes the pictures"),
    (lambda x: functional.conv2d(x, x.mean((0, 2, 3)).expand(4, 4).reshape(4, 4, 1, 1)),
     r"the weights of 'conv2d' in Does depend on the picture"),
    (lambda x: x.sigmoid(), r"its logits depend on the layer through gates or attention weights only"),
    (lambda x: x * torch.rand(()), r"other logits than the model|outside of torch, or at random"),
    (_branches, r"reads or overwrites single values of activations \('__bool__' in Does\)"),
    (_writes, r"reads or overwrites single values of activations \('__setitem__' in Does\)"),
    (_by_size, r"it takes another way for another batch"),
    (_each_row, r"it takes another way for another batch"),
    (_through_numpy, r"'numpy'|outside of torch"),
    (_a_view_in_place, r"gives other logits than the model"),
], ids=lambda value: "" if callable(value) else value[:30])
def test_what_cannot_be_followed_is_refused(what: Callable[[Tensor], Tensor], why: str) -> None:
    with pytest.raises(certframe.UsageError, match=why) as caught:
        explain(Does(what))
    text = str(caught.value)
    assert text.startswith("lrp cannot be applied to this model: ")
    assert text.endswith("; take another method")
    assert "\n" not in text


def test_probabilities_instead_of_logits_are_refused() -> None:
    with pytest.raises(certframe.UsageError, match="through gates or attention weights only"):
        explain(nn.Sequential(Plain(), nn.Softmax(1)))
