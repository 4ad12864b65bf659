"""DeepLIFT against captum where captum is right, closed forms, and completeness everywhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from networks import ChannelsLast, Opaque, Residual, Transformer, settled
from torch import Tensor, nn
from torch.nn import functional

from certframe.attributors.deeplift import DeepLift, multipliers
from certframe.attributors.secants import _CLIPS, _CLOSED, _KINKED, _SMOOTH, clip_secant, secant
from certframe.errors import UsageError
from certframe.torch_model import TorchModel

SIZE = (3, 16, 16)
X = torch.randn(4, *SIZE, generator=torch.Generator().manual_seed(4)) * 0.3 + 0.5
TARGETS = torch.tensor([0, 1, 4, 2])


def explain(network: nn.Module, x: Tensor = X, targets: Tensor = TARGETS, **options: Any) -> Tensor:
    model = TorchModel(network, SIZE, mean=(0.4, 0.5, 0.6), std=(0.5, 0.25, 1.0))
    return DeepLift(DeepLift.Options(**options)).attribute(model, x, targets, rng=None).maps


def rise(model: TorchModel, x: Tensor, x0: Tensor, targets: Tensor) -> Tensor:
    return (model.module(x) - model.module(x0)).gather(1, targets[:, None])[:, 0]


def plain(activation: Callable[[], nn.Module]) -> nn.Module:
    return settled(nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), activation(), nn.AvgPool2d(2), nn.Conv2d(6, 8, 3),
        activation(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(288, 20), activation(), nn.Linear(20, 5)))


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Sigmoid, nn.Tanh, nn.ELU, nn.Softplus, nn.LeakyReLU],
                         ids=lambda a: a.__name__)
def test_it_is_what_captum_gives(activation: type[nn.Module]) -> None:
    captum = pytest.importorskip("captum.attr", reason="captum is not installed")
    # In float64: in float32 captum's quotients of nearly equal numbers have far fewer digits than these.
    network, x = plain(activation).requires_grad_(False).double(), X.double()
    baselines = x.flip(0).flip(3)
    found, *_ = multipliers(network, [x], [baselines], TARGETS)
    with pytest.warns(UserWarning, match="forward, backward hooks"):
        expected = captum.DeepLift(network).attribute(x.clone().requires_grad_(), baselines, target=TARGETS).detach()
    torch.testing.assert_close(found[0] * (x - baselines), expected, rtol=1e-4, atol=1e-6 * float(expected.abs().max()))
    rough, *_ = multipliers(network.float(), [X], [baselines.float()], TARGETS)
    torch.testing.assert_close((rough[0] * (x - baselines)).double(), expected, rtol=1e-3,
                               atol=1e-5 * float(expected.abs().max()))


def test_max_pooling_gives_a_rise_to_the_new_maximum_and_a_fall_to_the_old_one() -> None:
    x, x0 = torch.tensor([[1.0, 5, 0, 7], [1, 2, 3, 3]]), torch.tensor([[3.0, 2, 0, 7], [4, 0, 1, 1]])

    def network(values: Tensor) -> Tensor:
        return functional.max_pool2d(values.view(-1, 1, 1, 4), (1, 2)).flatten(1) @ torch.tensor([[1.0], [10.0]])

    found, *_ = multipliers(network, [x], [x0], torch.tensor([0, 0]))
    contributions = found[0] * (x - x0)
    torch.testing.assert_close(contributions[0], torch.tensor([0.0, 2, 0, 0]))
    # A tie goes to the first, as torch's gradient does.
    torch.testing.assert_close(contributions[1], torch.tensor([-2.0, 0, 20, 0]))


class Pooled(nn.Module):
    """Overlapping windows, in which one value is the maximum of several."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 6, 3), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.max_pool2d(functional.relu(self.conv(x)), 3, stride=2, padding=1)
        return self.fc(functional.adaptive_max_pool2d(functional.max_pool2d(x, 3, 1), 2).mean((2, 3)))


class Gated(nn.Module):
    """Squeeze and excitation, in place, and a quotient of activations."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.gate, self.fc = nn.Conv2d(3, 6, 3), nn.Linear(6, 6), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        x *= torch.sigmoid(self.gate(x.mean((2, 3))))[:, :, None, None]
        x = x / (1 + x.square().mean(1, keepdim=True)) ** 0.5
        return self.fc((x.sigmoid() / x.sigmoid().sum(1, keepdim=True)).mean((2, 3)))


class Windows(nn.Module):
    """Rows are merged with windows, so that a reference of one row does not fit."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.qkv, self.fc = nn.Conv2d(3, 6, 4, 4), nn.Linear(6, 18), nn.Linear(6, 5)
        self.norms = nn.ModuleList([nn.GroupNorm(2, 6), nn.RMSNorm(6)])

    def forward(self, x: Tensor) -> Tensor:
        x = self.norms[0](self.patches(x)).reshape(-1, 6, 2, 8).reshape(-1, 6, 16)
        x = x.transpose(1, 2).reshape(-1, 4, 6)
        q, k, v = self.qkv(x).chunk(3, -1)
        x = self.norms[1](functional.scaled_dot_product_attention(q, k, v))
        return self.fc(functional.gelu(x).reshape(-1, 16, 6).mean(1))


class TokensFirst(nn.Module):
    """torch's own multi-head attention, with the batch as its second axis."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.fc = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, 5)
        self.attention, self.norm = nn.MultiheadAttention(8, 2), nn.LayerNorm(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).permute(2, 0, 1)
        x = x + self.attention(self.norm(x), self.norm(x), self.norm(x), need_weights=False)[0]
        return self.fc(functional.silu(x, inplace=True).mean(0))


NETWORKS = [Residual, Transformer, ChannelsLast, Pooled, Gated, Windows, TokensFirst,
            *(lambda act=act: plain(act) for act in (
                nn.ReLU6, nn.GELU, nn.SiLU, nn.Hardswish, nn.Hardtanh, nn.Mish, lambda: nn.Hardsigmoid(inplace=True)))]


@pytest.mark.parametrize("build", NETWORKS)
@pytest.mark.parametrize("baseline", [0.0, 0.5])
def test_completeness_and_a_batch_is_its_rows(build: Callable[[], nn.Module], baseline: float) -> None:
    model = TorchModel(settled(build()), SIZE, mean=(0.4, 0.5, 0.6), std=(0.5, 0.25, 1.0))
    method = DeepLift(DeepLift.Options(baseline=baseline))
    found = method.attribute(model, X, TARGETS, rng=None)
    expected = rise(model, X, torch.full_like(X, baseline), TARGETS)
    torch.testing.assert_close(found.maps.sum((1, 2)), expected, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(found.logits, model.module(X), rtol=1e-4, atol=1e-4)
    for row in range(len(X)):
        alone = method.attribute(model, X[row:row + 1], TARGETS[row:row + 1], rng=None).maps[0]
        torch.testing.assert_close(alone, found.maps[row], rtol=1e-3, atol=1e-4 * float(alone.abs().max()))


@pytest.mark.parametrize("build", [Residual, Transformer, Windows])
def test_references_of_ones_own(build: type[nn.Module]) -> None:
    model = TorchModel(settled(build()), SIZE)
    baselines = X + 0.1 * X.flip(0)
    found = DeepLift().against(model, X, baselines, TARGETS).maps
    torch.testing.assert_close(found.sum((1, 2)), rise(model, X, baselines, TARGETS), rtol=1e-3, atol=1e-4)
    for row in range(len(X)):
        alone = DeepLift().against(model, X[row:row + 1], baselines[row:row + 1], TARGETS[row:row + 1]).maps[0]
        torch.testing.assert_close(alone, found[row], rtol=1e-3, atol=1e-4 * float(alone.abs().max()))
    same = DeepLift().against(model, X, X, TARGETS).maps
    assert torch.equal(same, torch.zeros_like(same))


@pytest.mark.parametrize(("build", "layer"), [(Residual, "final"), (Residual, "down"), (Transformer, "blocks.0")])
def test_at_a_layer(build: type[nn.Module], layer: str) -> None:
    model = TorchModel(settled(build()), SIZE)
    found = DeepLift(DeepLift.Options(layer=layer)).attribute(model, X, TARGETS, rng=None).maps
    expected = rise(model, X, torch.zeros_like(X), TARGETS)
    if build is Residual:  # everything goes through these layers
        torch.testing.assert_close(found.sum((1, 2)), expected, rtol=1e-3, atol=1e-4)
    else:
        assert found.shape == (4, 4, 4)
        assert float(found.abs().max()) > 0


def test_a_nearby_reference_gives_the_gradient() -> None:
    model = TorchModel(settled(plain(nn.GELU)), SIZE)
    found, *_ = multipliers(model.module, [X], [X + 1e-6], TARGETS)
    x = X.clone().requires_grad_()
    gradient, = torch.autograd.grad(model.module(x).gather(1, TARGETS[:, None]).sum(), x)
    torch.testing.assert_close(found[0], gradient, rtol=1e-3, atol=1e-4 * float(gradient.abs().max()))


FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    name: getattr(torch, name, None) or getattr(functional, name) for name in (*_CLIPS, *_KINKED, *_SMOOTH, *_CLOSED)
    if name not in ("clamp", "clamp_max", "clamp_min", "prelu")} | {"clamp": lambda x: x.clamp(-1, 2)}


@pytest.mark.parametrize("distance", [0.0, 1e-7, 1e-5, 1e-3, 3e-2, 1.0, 30.0])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_secants_in_float32(name: str, distance: float) -> None:
    f, positive = FUNCTIONS[name], name in ("reciprocal", "rsqrt", "sqrt")
    a = torch.linspace(-8, 8, 4001)
    a = a.abs() + 1e-4 if positive else a
    a0 = a + distance
    y, y0 = f(a), f(a0)
    slope = _CLOSED[name](a, a0, y, y0) if name in _CLOSED else clip_secant(a, a0, y, y0) if name in _CLIPS else (
        secant(f, a, a0, y, y0, smooth=name in _SMOOTH))
    exact, exact0 = a.double(), a0.double()
    wanted = f(exact) - f(exact0)
    # The slope times the distance is the difference, as well as float32 can say what the two values are.
    found = slope.double() * (exact - exact0)
    rounding = 2e-7 * (y.abs() + y0.abs())
    assert bool(((found - wanted).abs() <= 1e-5 * (exact - exact0).abs() + 1e-5 * wanted.abs() + rounding).all())
    if not positive:
        derivative = torch.func.vmap(torch.func.grad(f))(torch.cat([exact, exact0, (exact + exact0) / 2]))
        assert float(slope.abs().max()) <= 1.02 * float(derivative.abs().max())


# -- what is refused


class Does(nn.Module):
    """Something between two layers."""

    def __init__(self, what: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.fc, self.what = nn.Conv2d(3, 5, 3), nn.Linear(5, 5), what

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.what(self.conv(x)).mean((2, 3)))


class Cube(torch.autograd.Function):
    """A function that torch's overrides do not see."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        x, = ctx.saved_tensors
        return 3 * x**2 * gradient


def _without_gradient(x: Tensor) -> Tensor:
    with torch.no_grad():
        y = x.relu()
    return x + y


def _writes(x: Tensor) -> Tensor:
    x[:, 0] = 0
    return x


@pytest.mark.parametrize(("what", "why"), [
    (torch.cos, "there is no rule for 'cos'"),
    (lambda x: x.sort(1)[0], "there is no rule for 'sort'"),
    (lambda x: x.amax(1, keepdim=True).expand(-1, 5, -1, -1), "there is no rule for 'amax'"),
    (lambda x: x**3, "there is no rule for 'pow' with 3"),
    (lambda x: torch.where(x > 0, x, 0.0), "there is no rule for 'gt'"),
    (lambda x: x + x.detach(), "there is no rule for 'detach'"),
    (lambda x: x.relu() if x.sum() > 0 else x, "there is no rule for 'gt'|reads or overwrites"),
    (lambda x: x if float(x.sum()) > 1e9 else x.relu(), r"reads or overwrites single values of activations"),
    (_writes, "reads or overwrites single values of activations"),
    (functional.dropout, "'dropout' is active: put the model in eval mode"),
    (lambda x: functional.batch_norm(x, None, None, training=True), "'batch_norm' is active"),
    (lambda x: functional.conv2d(x, x.mean((0, 2, 3)).expand(5, 5).reshape(5, 5, 1, 1)), "parameters of 'conv2d'"),
    (lambda x: torch.from_numpy(x.detach().numpy()), "'detach'|'numpy'"),
    (Cube.apply, "its contributions add up to .*, the logit changes by"),
    (_without_gradient, "its contributions add up to .*, the logit changes by"),
], ids=lambda value: "" if callable(value) else value[:30])
def test_what_has_no_rule_is_refused(what: Callable[[Tensor], Tensor], why: str) -> None:
    with pytest.raises(UsageError, match=why) as caught:
        explain(settled(Does(what)))
    text = str(caught.value)
    assert text.startswith("deeplift cannot be applied to this model: ")
    assert "take another method" in text
    assert "\n" not in text


def test_a_network_that_branches_on_values_is_refused() -> None:
    with pytest.raises(UsageError, match="reads or overwrites single values"):
        explain(settled(Opaque()))


def test_completeness_is_checked_again_when_the_weights_change() -> None:
    model, method = TorchModel(settled(Does(torch.relu)), SIZE), DeepLift()
    method.attribute(model, X, TARGETS, rng=None)
    model.network.what = Cube.apply
    method.attribute(model, X, TARGETS, rng=None)  # not noticed: code is not weights
    model.network.get_parameter("fc.weight").mul_(1.5)
    with pytest.raises(UsageError, match="its contributions add up to"):
        method.attribute(model, X, TARGETS, rng=None)


def test_a_compiled_model_is_followed_through_its_code() -> None:
    network = settled(Residual())
    model = TorchModel(network, SIZE, mean=(0.4, 0.5, 0.6), std=(0.5, 0.25, 1.0))
    model.module.compile(backend="eager")
    torch.testing.assert_close(DeepLift().attribute(model, X, TARGETS, rng=None).maps, explain(network))


# -- the networks of the papers


@pytest.mark.parametrize(("name", "size"), [
    ("resnet18", 64), ("vgg11_bn", 32), ("tf_efficientnet_lite0", 64), ("vit_tiny_patch16_224", 64),
    ("mobilenetv3_small_100", 64), ("efficientnet_b0", 64)])
def test_architectures(name: str, size: int) -> None:
    timm = pytest.importorskip("timm", reason="timm is not installed")
    small = {"vit": {"img_size": size, "depth": 3}, "vgg": {"mlp_ratio": 0.05}}.get(name[:3], {})
    network = timm.create_model(name, num_classes=5, **small)
    model = TorchModel(network, (3, size, size), mean=(0.5,) * 3, std=(0.2,) * 3)
    _sensible(model.network)
    x = torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(1)) * 0.3 + 0.5
    found, targets = DeepLift().attribute(model, x, TARGETS[:3], rng=None).maps, TARGETS[:3]
    expected = rise(model, x, torch.zeros_like(x), targets)
    torch.testing.assert_close(found.sum((1, 2)), expected, rtol=1e-2, atol=1e-3 * float(found.abs().sum((1, 2)).max()))
    alone = DeepLift().attribute(model, x[1:2], targets[1:2], rng=None).maps[0]
    torch.testing.assert_close(alone, found[1], rtol=1e-2, atol=1e-3 * float(alone.abs().max()))


def _sensible(network: nn.Module) -> None:
    """Weights of which the logits say something about the picture."""
    generator = torch.Generator().manual_seed(0)
    for module in network.modules():
        weight = getattr(module, "weight", None)
        if isinstance(module, nn.Conv2d | nn.Linear):
            spread = (2 / weight[0].numel()) ** 0.5
            weight.copy_(spread * torch.randn(weight.shape, generator=generator))
        elif isinstance(module, nn.BatchNorm2d):
            module.running_var.copy_(0.5 + torch.rand(module.running_var.shape, generator=generator))
            module.running_mean.copy_(0.2 * torch.randn(module.running_mean.shape, generator=generator))
