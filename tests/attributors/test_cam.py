"""Grad-CAM against a computation with hooks, at every kind of layer."""

from __future__ import annotations

import pytest
import torch
from networks import ChannelsLast, Opaque, Residual, Transformer, by_hook, settled
from torch import Tensor, nn

from certframe.attributors.cam import GradCam, grad_cam
from certframe.errors import UsageError
from certframe.models.digits import Digits
from certframe.noise import CopyRng
from certframe.torch_model import TorchModel

SIZE = (3, 16, 16)
X = torch.randn(3, *SIZE, generator=torch.Generator().manual_seed(4))
TARGETS = torch.ones(3, dtype=torch.int64)  # `by_hook` explains logit 1
RNG = CopyRng(0, "0" * 64, "test", range(3), "cpu")


def by_loop(activation: Tensor, gradient: Tensor) -> Tensor:
    """One image and one feature map at a time; both (B,K,h,w)."""
    maps = []
    for features, slopes in zip(activation, gradient, strict=True):
        total = torch.zeros(features.shape[1:])
        for feature, slope in zip(features, slopes, strict=True):
            total += slope.mean() * feature
        maps.append(total.clamp(min=0))
    return torch.stack(maps)


def test_the_formula() -> None:
    activation, gradient = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    torch.testing.assert_close(grad_cam(activation, gradient), by_loop(activation, gradient))


def tokens(activation: Tensor) -> Tensor:
    return activation[:, 1:].transpose(1, 2).reshape(3, -1, 4, 4)


def permuted(activation: Tensor) -> Tensor:
    return activation.permute(0, 3, 1, 2)


@pytest.mark.parametrize(("network", "layer", "path", "view"), [
    (Residual(), "final", "stage2", None), (Residual(), "stage1.0.bn2", "stage1.0.bn2", None),
    (Residual(), "stage1.1.act", "stage1.1.act", None), (Opaque(), "stage1", "stage1", None),
    (Transformer(), "final", "blocks.1.norm1", tokens), (Transformer(), "blocks.0", "blocks.0", tokens),
    (ChannelsLast(), "final", "norm", permuted),
], ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else None)
def test_equals_a_computation_with_hooks(network: nn.Module, layer: str, path: str, view: object) -> None:
    model = TorchModel(settled(network), SIZE, mean=(0.1, 0.2, 0.3), std=(0.5, 1.0, 2.0))
    found = GradCam(GradCam.Options(layer=layer)).attribute(model, X, TARGETS, rng=RNG)
    activation, logits, gradient = by_hook(model.module, model.network.get_submodule(path), X)
    as_maps = view if callable(view) else lambda a: a
    expected = by_loop(as_maps(activation), as_maps(gradient))
    assert bool((expected > 0).any())
    torch.testing.assert_close(found.maps, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.logits, logits)


def test_at_the_input_the_picture_is_the_feature_map() -> None:
    model = TorchModel(settled(Residual()), SIZE)
    x = X.clone().requires_grad_()
    gradient, = torch.autograd.grad(model.module(x)[:, 1].sum(), x)
    found = GradCam(GradCam.Options(layer="input")).attribute(model, X, TARGETS, rng=RNG)
    torch.testing.assert_close(found.maps, by_loop(X, gradient))


def test_each_image_is_explained_for_its_own_target() -> None:
    model = TorchModel(settled(Residual()), SIZE)
    targets = torch.tensor([4, 0, 2])
    together = GradCam().attribute(model, X, targets, rng=RNG).maps
    for row in range(3):
        alone = GradCam().attribute(model, X[row:row + 1], targets[row:row + 1], rng=RNG).maps
        torch.testing.assert_close(together[row], alone[0])


def test_only_the_head_is_differentiated() -> None:
    model = TorchModel(settled(Residual()), SIZE)
    model.at("final")
    seen: dict[str, bool] = {}
    handles = [model.network.get_submodule(name).register_forward_hook(
        lambda _module, _inputs, output, name=name: seen.update({name: output.requires_grad}))
        for name in ("stem", "stage2.1.bn2", "fc")]
    GradCam().attribute(model, X, TARGETS, rng=RNG)
    for handle in handles:
        handle.remove()
    assert seen == {"stem": False, "stage2.1.bn2": False, "fc": True}


def test_a_layer_that_is_no_map_or_does_not_exist_is_refused() -> None:
    model = TorchModel(settled(Residual()), SIZE)
    with pytest.raises(UsageError, match="is not a map"):
        GradCam(GradCam.Options(layer="fc")).attribute(model, X, TARGETS, rng=RNG)
    with pytest.raises(UsageError, match="unknown layer 'layer4'"):
        GradCam(GradCam.Options(layer="layer4")).attribute(model, X, TARGETS, rng=RNG)


def test_a_layer_without_influence_is_refused() -> None:
    class Aside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused, self.fc = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3), nn.Linear(4, 5)

        def forward(self, x: Tensor) -> Tensor:
            if float(self.unused(x).detach().sum()) > 1e9:  # not to be traced
                x = x * 0
            logits: Tensor = self.fc(self.used(x).mean((2, 3)))
            return logits

    model = TorchModel(settled(Aside()), SIZE)
    with pytest.raises(UsageError, match="no gradient with respect to layer 'unused': they do not depend on it"):
        GradCam(GradCam.Options(layer="unused")).attribute(model, X, TARGETS, rng=RNG)


def test_works_on_a_trained_model_under_autocast() -> None:
    model = Digits()
    x = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    exact = GradCam().attribute(model, x, TARGETS, rng=RNG)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = GradCam().attribute(model, x, TARGETS, rng=RNG)
    assert rough.maps.dtype == torch.float32
    assert rough.logits is not None
    assert rough.logits.dtype == torch.float32
    correlation = torch.corrcoef(torch.stack([rough.maps.flatten(), exact.maps.flatten()]))[0, 1]
    assert 0.9 < float(correlation) < 1.0
