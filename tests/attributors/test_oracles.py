"""The methods against other libraries, captum and torchcam, on a network that these get right."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from disguises import SIZE, Plain, build
from torch import Tensor, nn

from certframe.attributors.ablation import AblationCam
from certframe.attributors.cam import Cam, GradCam, LayerCam
from certframe.attributors.gradient import Gradient, InputXGradient, SmoothGrad, VarGrad
from certframe.attributors.guided import GuidedBackprop
from certframe.attributors.occlusion import Occlusion
from certframe.attributors.path import IntegratedGradients
from certframe.noise import CopyRng
from certframe.torch_model import TorchModel

X = torch.randn(3, *SIZE, generator=torch.Generator().manual_seed(6)) * 0.3 + 0.5
TARGETS = torch.tensor([0, 3, 1])
MODEL = TorchModel(build(Plain, nn.ReLU), SIZE, mean=(0.4, 0.5, 0.6), std=(0.1, 0.2, 0.3))


@pytest.fixture
def captum() -> Any:
    return pytest.importorskip("captum.attr", reason="captum is not installed")


@pytest.fixture
def torchcam() -> Any:
    return pytest.importorskip("torchcam.methods", reason="torchcam is not installed")


def explain(method: Any, model: TorchModel = MODEL) -> Tensor:
    rng = CopyRng(0, "0" * 64, "test", range(3), "cpu")
    maps: Tensor = method.attribute(model, X, TARGETS, rng=rng).maps
    assert float(maps.abs().max()) > 0
    return maps


def pixels() -> Tensor:
    return X.clone().requires_grad_()


def close(found: Tensor, expected: Tensor) -> None:
    expected = expected.detach()
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


def test_gradient(captum: Any) -> None:
    close(explain(Gradient()), captum.Saliency(MODEL.module).attribute(pixels(), TARGETS).sum(1))


def test_input_x_gradient(captum: Any) -> None:
    close(explain(InputXGradient()), captum.InputXGradient(MODEL.module).attribute(pixels(), TARGETS).sum(1))


@pytest.mark.parametrize(("steps", "baseline"), [(2, 0.0), (20, 0.0), (7, 0.5)])
def test_integrated_gradients(captum: Any, steps: int, baseline: float) -> None:
    method = IntegratedGradients(IntegratedGradients.Options(steps=steps, baseline=baseline))
    theirs = captum.IntegratedGradients(MODEL.module).attribute(pixels(), baseline, TARGETS, n_steps=steps,
                                                                method="riemann_trapezoid")
    # captum divides by the number of points; the trapezoidal rule has one interval less.
    close(explain(method), theirs.sum(1) * steps / (steps - 1))


def test_guided_backprop(captum: Any) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Setting backward hooks on ReLU")
        theirs = captum.GuidedBackprop(MODEL.module).attribute(pixels(), TARGETS)
    close(explain(GuidedBackprop()), theirs.abs().sum(1))


def test_captum_gives_the_plain_gradient_for_relu6_and_this_does_not(captum: Any) -> None:
    model = TorchModel(build(Plain, nn.ReLU6), SIZE)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Setting backward hooks on ReLU")
        theirs = captum.GuidedBackprop(model.module).attribute(pixels(), TARGETS).abs().sum(1)
    close(explain(Gradient(), model), theirs)
    assert not torch.allclose(explain(GuidedBackprop(), model), theirs, rtol=0.1)


class Given:
    """Noise that is the same for all who ask."""

    def __init__(self, draws: Tensor) -> None:
        self.draws, self.device = iter(draws), draws.device

    def normal(self, *_shape: int) -> Tensor:
        return next(self.draws)


@pytest.mark.parametrize(("method", "kind"), [(SmoothGrad, "smoothgrad"), (VarGrad, "vargrad")])
def test_smoothgrad_and_vargrad(captum: Any, monkeypatch: pytest.MonkeyPatch, method: Any, kind: str) -> None:
    draws = torch.randn(6, *X.shape, generator=torch.Generator().manual_seed(0))
    options = method.Options(samples=6, noise=0.2, chunk=5)
    found = method(options).attribute(MODEL, X, TARGETS, rng=Given(draws)).maps
    spread = 0.2 * (X.flatten(1).amax(1) - X.flatten(1).amin(1)).view(-1, 1, 1, 1)
    # captum draws the noise of all samples of an image at once, sample after sample within an image.
    noise = (draws * spread).transpose(0, 1).reshape(-1, *SIZE)
    monkeypatch.setattr(torch, "normal", lambda mean, std: noise)
    tunnel = captum.NoiseTunnel(captum.Saliency(MODEL.module))
    theirs = tunnel.attribute(pixels(), nt_type=kind, nt_samples=6, stdevs=1.0, target=TARGETS, abs=False)
    close(found, theirs.abs().sum(1))


@pytest.mark.parametrize(("patch", "stride", "baseline"), [(4, 4, 0.0), (6, 2, 0.0), (4, 2, 0.5)])
def test_occlusion(captum: Any, patch: int, stride: int, baseline: float) -> None:
    found = explain(Occlusion(Occlusion.Options(patch=patch, stride=stride, baseline=baseline)))
    theirs = captum.Occlusion(MODEL.module).attribute(X, (3, patch, patch), (3, stride, stride), baseline, TARGETS)
    # captum takes the mean over the patches that cover a pixel, not their sum.
    starts = torch.arange(0, 16 - patch + 1, stride)
    covered = ((starts[:, None] <= torch.arange(16)) & (torch.arange(16) < starts[:, None] + patch)).sum(0)
    close(found, theirs[:, 0] * covered[:, None] * covered[None])


@pytest.mark.parametrize("layer", ["features", "features.norm2", "features.conv1"])
def test_grad_cam(captum: Any, layer: str) -> None:
    theirs = captum.LayerGradCam(MODEL.module, MODEL.network.get_submodule(layer)).attribute(
        pixels(), TARGETS, relu_attributions=True)
    close(explain(GradCam(GradCam.Options(layer=layer))), theirs[:, 0])


@pytest.mark.parametrize("layer", ["features", "features.norm2", "features.conv1"])
def test_ablation_cam(captum: Any, layer: str) -> None:
    target = MODEL.network.get_submodule(layer)
    mask = torch.arange(6).view(1, 6, 1, 1)
    falls = captum.LayerFeatureAblation(MODEL.module, target).attribute(X, target=TARGETS, layer_mask=mask)
    activation = captum.LayerActivation(MODEL.module, target).attribute(X)
    score = MODEL.module(X).gather(1, TARGETS[:, None])[..., None, None]
    expected = (falls / score * activation).sum(1).clamp(min=0)
    close(explain(AblationCam(AblationCam.Options(layer=layer))), expected)


@pytest.mark.parametrize(("method", "name"), [(GradCam, "GradCAM"), (LayerCam, "LayerCAM")])
@pytest.mark.parametrize("layer", ["features", "features.conv1"])
def test_cams_that_need_gradients(torchcam: Any, method: Any, name: str, layer: str) -> None:
    network = build(Plain, nn.ReLU)
    model = TorchModel(network, SIZE)
    with getattr(torchcam, name)(network, layer) as extractor:
        logits = network(pixels())
        theirs = extractor(TARGETS.tolist(), logits, normalized=False)[0]
    close(explain(method(method.Options(layer=layer)), model), theirs)


def test_cam(torchcam: Any) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        network = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5))
    model = TorchModel(network, SIZE)
    with torchcam.CAM(network, "1", "4") as extractor, torch.no_grad():
        network(X)
        theirs = extractor(TARGETS.tolist(), normalized=False)[0]
    close(explain(Cam(Cam.Options(layer="1")), model), theirs)
