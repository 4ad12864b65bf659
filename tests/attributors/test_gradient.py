"""Gradient methods against closed forms, finite differences and a plain loop."""

from __future__ import annotations

import pytest
import torch
from networks import Wrong, settled
from torch import Tensor, nn

from certframe.attributors.gradient import Gradient, InputXGradient, SmoothGrad
from certframe.attributors.layers import gradient_at
from certframe.config import resolve_component
from certframe.errors import UsageError
from certframe.models.digits import Digits
from certframe.noise import CopyRng
from certframe.torch_model import TorchModel

SIZE = (2, 5, 6)


def rng(copies: range = range(3)) -> CopyRng:
    return CopyRng(0, "0" * 64, "test", copies, "cpu")


def batch(count: int = 3) -> tuple[Tensor, Tensor]:
    x = torch.randn(count, *SIZE, generator=torch.Generator().manual_seed(2))
    return x, torch.tensor([2, 0, 1, 2, 2])[:count]


@pytest.fixture
def linear() -> TorchModel:
    return TorchModel(settled(nn.Sequential(nn.Flatten(), nn.Linear(60, 3))), SIZE)


@pytest.fixture
def smooth() -> TorchModel:
    network = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Softplus(), nn.Flatten(), nn.Linear(48, 3))
    return TorchModel(settled(network), SIZE, mean=(0.5, 0.5), std=(0.25, 0.5))


def weights_of(model: TorchModel, targets: Tensor) -> Tensor:
    weight: Tensor = model.network.get_parameter("1.weight")
    return weight[targets].view(-1, *SIZE)


def test_gradient_of_a_linear_model(linear: TorchModel) -> None:
    x, targets = batch()
    found = Gradient().attribute(linear, x, targets, rng=rng())
    torch.testing.assert_close(found.maps, weights_of(linear, targets).abs().sum(1))
    torch.testing.assert_close(found.logits, linear.module(x))


def test_stacked_channels_are_the_gradient_itself(linear: TorchModel) -> None:
    x, targets = batch()
    found = Gradient(Gradient.Options(channels="stack")).attribute(linear, x, targets, rng=rng())
    assert found.maps.shape == (3, 10, 6)
    for channel in range(2):
        torch.testing.assert_close(found.maps[:, 5 * channel: 5 * channel + 5],
                                   weights_of(linear, targets)[:, channel].abs())
    torch.testing.assert_close(found.logits, linear.module(x))


def test_only_colour_channels_can_be_stacked() -> None:
    with pytest.raises(UsageError) as caught:
        resolve_component("attributor", "gradient", ["attributor.channels=stack", "attributor.layer=final"])
    assert str(caught.value) == (
        "attributor 'gradient': channels=stack is for colour channels, and layer=final has feature maps: take "
        "channels=sum, or layer=input (see 'certframe describe gradient')")


def test_input_times_gradient_of_a_linear_model_is_signed_and_adds_up(linear: TorchModel) -> None:
    x, targets = batch()
    found = InputXGradient().attribute(linear, x, targets, rng=rng())
    torch.testing.assert_close(found.maps, (x * weights_of(linear, targets)).sum(1))
    assert bool((found.maps < 0).any())
    bias = linear.network.get_parameter("1.bias")[targets]
    assert found.logits is not None
    torch.testing.assert_close(found.maps.sum((1, 2)) + bias, found.logits.gather(1, targets[:, None])[:, 0])


def test_gradient_equals_central_differences(smooth: TorchModel) -> None:
    x, targets = batch()
    gradient, _ = gradient_at(smooth.at("input"), "input", (x,), targets)
    smooth.module.double()
    step = 1e-5
    for index in range(60):
        shift = torch.zeros(60, dtype=torch.float64)
        shift[index] = step
        high, low = (smooth.module(x.double() + sign * shift.view(SIZE)) for sign in (1, -1))
        slope = ((high - low) / (2 * step)).gather(1, targets[:, None])[:, 0]
        torch.testing.assert_close(gradient.flatten(1)[:, index].double(), slope, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", [Gradient(), InputXGradient(), SmoothGrad()])
def test_a_model_without_gradients_is_refused(method: Gradient | InputXGradient | SmoothGrad) -> None:
    model = TorchModel(nn.Sequential(nn.Flatten(), Wrong(lambda x: x.detach())), SIZE)
    with pytest.raises(UsageError, match="no gradient with respect to the picture"):
        method.attribute(model, *batch(), rng=rng())


def smoothgrad_by_loop(model: TorchModel, x: Tensor, target: int, copy: int, samples: int, noise: float) -> Tensor:
    """One copy alone, one noisy input at a time."""
    stream = rng(range(copy, copy + 1))
    spread = noise * float(x.max() - x.min())
    total = torch.zeros(SIZE)
    for _ in range(samples):
        noisy = (x + spread * stream.normal(*SIZE)[0])[None].requires_grad_()
        gradient, = torch.autograd.grad(model.module(noisy)[0, target], noisy)
        total += gradient[0]
    return (total / samples).abs().sum(0)


@pytest.mark.parametrize("chunk", [1, 2, 7, 100])
def test_smoothgrad_equals_a_plain_loop_whatever_the_chunk(smooth: TorchModel, chunk: int) -> None:
    x, targets = batch()
    options = SmoothGrad.Options(samples=5, noise=0.3, chunk=chunk)
    found = SmoothGrad(options).attribute(smooth, x, targets, rng=rng())
    assert found.logits is None
    for copy in range(3):
        expected = smoothgrad_by_loop(smooth, x[copy], int(targets[copy]), copy, 5, 0.3)
        torch.testing.assert_close(found.maps[copy], expected, rtol=1e-5, atol=1e-6)


def test_smoothgrad_never_runs_more_than_a_chunk_at_once(smooth: TorchModel) -> None:
    x, targets = batch(5)
    sizes: list[int] = []
    handle = smooth.module.register_forward_pre_hook(lambda _module, inputs: sizes.append(len(inputs[0])))
    SmoothGrad(SmoothGrad.Options(samples=4, chunk=3)).attribute(smooth, x, targets, rng=rng(range(5)))
    handle.remove()
    assert max(sizes) == 3
    assert sum(sizes) == 4 * 5


def test_smoothgrad_without_noise_to_speak_of_is_the_gradient(smooth: TorchModel) -> None:
    x, targets = batch()
    nearly = SmoothGrad(SmoothGrad.Options(samples=3, noise=1e-6)).attribute(smooth, x, targets, rng=rng())
    exact = Gradient().attribute(smooth, x, targets, rng=rng())
    torch.testing.assert_close(nearly.maps, exact.maps, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", [Gradient(), InputXGradient(), SmoothGrad(SmoothGrad.Options(samples=4, chunk=8))])
def test_works_on_a_trained_model_under_autocast(method: Gradient | InputXGradient | SmoothGrad) -> None:
    model = Digits()
    x = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    targets = torch.tensor([3, 8, 5])
    exact = method.attribute(model, x, targets, rng=rng())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = method.attribute(model, x, targets, rng=rng())
    assert rough.maps.dtype == torch.float32
    correlation = torch.corrcoef(torch.stack([rough.maps.flatten(), exact.maps.flatten()]))[0, 1]
    assert 0.9 < float(correlation) < 1.0
    if exact.logits is not None:
        assert rough.logits is not None
        assert rough.logits.dtype == torch.float32
