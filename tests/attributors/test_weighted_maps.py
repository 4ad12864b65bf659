"""The class activation maps against loops, and CAM against a classifier's own weights."""

from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
from networks import ChannelsLast, Residual, Transformer, settled
from torch import Tensor, nn

from certframe.attributors.ablation import AblationCam, ScoreCam
from certframe.attributors.cam import Cam, GradCamPlusPlus, LayerCam, grad_cam_plus_plus
from certframe.noise import CopyRng
from certframe.torch_model import TorchModel

SIZE = (3, 16, 16)
X = torch.randn(3, *SIZE, generator=torch.Generator().manual_seed(4))
TARGETS = torch.tensor([0, 1, 1])
RNG = CopyRng(0, "0" * 64, "test", range(3), "cpu")
NETWORKS = [(Residual, "final"), (Residual, "stage1.0.bn2"), (Residual, "input"), (Transformer, "final"),
            (Transformer, "blocks.0"), (ChannelsLast, "final")]


def wrapped(kind: type[nn.Module]) -> TorchModel:
    return TorchModel(settled(kind()), SIZE, mean=(0.1, 0.2, 0.3), std=(0.5, 1.0, 2.0))


def pieces(model: TorchModel, layer: str) -> tuple[Tensor, Tensor]:
    """A and ∂f_c/∂A as maps, by differentiating the whole of the head."""
    split = model.at(layer)
    activation, *carried = split.body(X)
    activation = activation.detach().requires_grad_()
    logits = split.head(activation, *(c.detach() for c in carried))
    gradient, = torch.autograd.grad(logits[torch.arange(3), TARGETS].sum(), activation)
    return split.as_map(activation).detach(), split.as_map(gradient)


@pytest.mark.parametrize(("kind", "layer"), NETWORKS)
def test_grad_cam_plus_plus_and_layer_cam_by_loops(kind: type[nn.Module], layer: str) -> None:
    model = wrapped(kind)
    maps, slopes = pieces(model, layer)
    plus, layered = torch.zeros(3, *maps.shape[2:]), torch.zeros(3, *maps.shape[2:])
    for b in range(3):
        for a, g in zip(maps[b], slopes[b], strict=True):
            bottom = 2 * g**2 + (a * g**3).sum()
            alpha = torch.where(bottom != 0, g**2 / bottom, torch.zeros_like(g))
            plus[b] += (alpha * g.clamp(min=0)).sum() * a
            layered[b] += g.clamp(min=0) * a
    found = GradCamPlusPlus(GradCamPlusPlus.Options(layer=layer)).attribute(model, X, TARGETS, rng=RNG)
    # At the input some denominators nearly cancel, and float32 leaves the weights fewer digits.
    torch.testing.assert_close(found.maps, plus.clamp(min=0), rtol=0.02 if layer == "input" else 1e-4, atol=1e-5)
    found = LayerCam(LayerCam.Options(layer=layer)).attribute(model, X, TARGETS, rng=RNG)
    torch.testing.assert_close(found.maps, layered.clamp(min=0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.logits, model.module(X))


def test_grad_cam_plus_plus_takes_zero_over_zero_for_zero() -> None:
    zeros = torch.zeros(1, 2, 3, 3)
    assert torch.equal(grad_cam_plus_plus(zeros, zeros), zeros[:, 0])


def test_cam_is_the_classifiers_weights() -> None:
    """After pooling and a linear layer there is nothing to linearise: the weights are the classifier's rows."""
    torch.manual_seed(0)
    net = nn.Sequential(OrderedDict(conv=nn.Conv2d(3, 5, 3), act=nn.ReLU(inplace=True), pool=nn.AdaptiveAvgPool2d(1),
                                    flat=nn.Flatten(), out=nn.Linear(5, 2)))
    model = TorchModel(net, SIZE)
    features = net.act(net.conv(X))
    expected = torch.einsum("bk,bkhw->bhw", net.out.weight[TARGETS], features)
    found = Cam(Cam.Options(layer="act")).attribute(model, X, TARGETS, rng=RNG).maps
    torch.testing.assert_close(found, expected.detach())


@pytest.mark.parametrize("chunk", [1, 7, 256])
@pytest.mark.parametrize(("kind", "layer"), NETWORKS)
def test_ablation_cam_by_loops(kind: type[nn.Module], layer: str, chunk: int) -> None:
    model = wrapped(kind)
    split = model.at(layer)
    activation, *carried = split.body(X)
    maps = split.as_map(activation)
    expected = torch.zeros(3, *maps.shape[2:])
    logits = model.module(X)
    for b, target in enumerate(TARGETS):
        for k in range(maps.shape[1]):
            changed = activation[b:b + 1].clone()
            split.as_map(changed)[:, k] = 0
            ablated = split.head(changed, *(c[b:b + 1] for c in carried))[0, target]
            expected[b] += (logits[b, target] - ablated) / logits[b, target] * maps[b, k]
    options = AblationCam.Options(layer=layer, chunk=chunk)
    found = AblationCam(options).attribute(model, X, TARGETS, rng=RNG)
    torch.testing.assert_close(found.maps, expected.clamp(min=0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("channels", [None, 2])
@pytest.mark.parametrize(("kind", "layer"), [(Residual, "final"), (Transformer, "final"), (Residual, "input")])
def test_score_cam_by_loops(kind: type[nn.Module], layer: str, channels: int | None) -> None:
    model = wrapped(kind)
    maps = model.at(layer).as_map(model.at(layer).body(X)[0])
    expected = torch.zeros(3, *maps.shape[2:])
    for b, target in enumerate(TARGETS):
        order = maps[b].mean((1, 2)).argsort(descending=True)[:channels]
        for k in order:
            a = maps[b, k]
            up = nn.functional.interpolate(a[None, None], size=SIZE[1:], mode="bilinear", align_corners=False)
            low, high = a.min(), a.max()
            mask = (up - low) / (high - low) if high > low else torch.zeros_like(up)
            score = model.module(X[b:b + 1] * mask).softmax(1)[0, target]
            expected[b] += score * a
    found = ScoreCam(ScoreCam.Options(layer=layer, channels=channels, chunk=5)).attribute(model, X, TARGETS, rng=RNG)
    torch.testing.assert_close(found.maps, expected.clamp(min=0), rtol=1e-4, atol=1e-5)
