"""timm networks are cut exactly, seen as maps, and cropped as timm crops; Grad-CAM agrees with plain hooks."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
import timm
import torch
from certframe_timm.classifier import TimmClassifier, class_names
from PIL import Image
from timm.data import create_transform, resolve_model_data_config
from torch import Tensor

from certframe import default_registry

SMALL: dict[str, dict[str, Any]] = {
    "resnet18": {}, "vgg11": {"mlp_ratio": 0.02}, "tf_efficientnet_lite0": {},
    "vit_tiny_patch16_224": {"img_size": 96},
    "swin_tiny_patch4_window7_224": {"img_size": 96, "window_size": 3}}
"""Architectures, and what makes them small: pictures of 96×96, a narrow head."""
INNER = {"resnet18": "layer3.1.bn2", "vgg11": "features.13", "tf_efficientnet_lite0": "blocks.4.1.conv_pwl",
         "vit_tiny_patch16_224": "blocks.6.mlp.fc1", "swin_tiny_patch4_window7_224": "layers.2.blocks.3"}
FINAL = {"resnet18": ((512, 3, 3), "layer4"), "vgg11": ((512, 3, 3), "features"),
         "tf_efficientnet_lite0": ((1280, 3, 3), "bn2"), "vit_tiny_patch16_224": ((192, 6, 6), "blocks.11.norm1"),
         "swin_tiny_patch4_window7_224": ((768, 3, 3), "norm")}
X = torch.rand(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))


@functools.cache
def classifier(name: str) -> TimmClassifier:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        small = {"num_classes": 20, "pretrained_cfg_overlay": {"input_size": (3, 96, 96)}, **SMALL[name]}
        return TimmClassifier(timm.create_model(name, **small))


@functools.cache
def logits(name: str) -> Tensor:
    with torch.no_grad():
        found: Tensor = classifier(name).module(X)
    return found


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("where", ["input", "final", "inner"])
def test_cuts_are_exact(name: str, where: str) -> None:
    split = classifier(name).at(INNER[name] if where == "inner" else where)
    with torch.no_grad():
        activation, *carried = split.body(X)
        torch.testing.assert_close(split.head(activation, *carried), logits(name), rtol=1e-5, atol=1e-5)
        assert split.as_map(activation).ndim == 4
    if where == "inner":
        assert type(split.head).__name__ == "Head", "timm's lists of what not to trace were not used"


@pytest.mark.parametrize("name", timm.list_models("test_*"))
def test_final_of_every_family_of_which_timm_has_a_tiny_network(name: str) -> None:
    model = TimmClassifier(timm.create_model(name, num_classes=20))
    x = torch.rand(2, *model.input_size)
    split = model.at("final")
    with torch.no_grad():
        activation, *carried = split.body(x)
        torch.testing.assert_close(split.head(activation, *carried), model.module(x), rtol=1e-5, atol=1e-5)
    rows, _, height, width = split.as_map(activation).shape
    assert rows == 2
    assert height == width > 1


def tokens_or_maps(name: str, activation: Tensor) -> Tensor:
    if name.startswith("vit"):
        return activation[:, 1:].transpose(1, 2).reshape(len(activation), -1, 6, 6)
    return activation.permute(0, 3, 1, 2) if name.startswith("swin") else activation


def grad_cam_by_hooks(name: str) -> tuple[Tensor, tuple[int, ...]]:
    """Relu of the weighted sum of maps for class 1, from hooks alone, on the whole network."""
    model, kept = classifier(name), []
    hook = model.network.get_submodule(FINAL[name][1]).register_forward_hook(
        lambda _module, _inputs, output: kept.append(output))
    found = model.module(X.clone().requires_grad_())
    hook.remove()
    gradient, = torch.autograd.grad(found[:, 1].sum(), kept[0])
    maps, slopes = tokens_or_maps(name, kept[0].detach()), tokens_or_maps(name, gradient)
    weighted = [(slope.mean((1, 2))[:, None, None] * one).sum(0).clamp(min=0)
                for one, slope in zip(maps, slopes, strict=True)]
    return torch.stack(weighted), tuple(maps.shape[1:])


@pytest.mark.parametrize("name", SMALL)
def test_grad_cam_at_final_equals_a_computation_with_hooks(name: str) -> None:
    cls = default_registry().find("attributor", "grad-cam").load()
    targets = torch.ones(2, dtype=torch.int64)
    found = cls(cls.Options()).attribute(classifier(name), X, targets, rng=None)
    expected, shape = grad_cam_by_hooks(name)
    assert shape == FINAL[name][0]
    assert float(expected.max()) > 0
    torch.testing.assert_close(found.maps, expected, rtol=1e-3, atol=1e-4 * float(expected.max()))


def test_tokens_are_laid_out_on_the_patch_grid_without_the_class_token() -> None:
    model = classifier("vit_tiny_patch16_224")
    activation = torch.arange(37.0).expand(1, 3, 37).transpose(1, 2)
    assert torch.equal(model.as_map(activation)[0, 0], torch.arange(1.0, 37.0).view(6, 6))


def test_patches_have_influence_at_final_and_none_after_the_last_attention() -> None:
    model = classifier("vit_tiny_patch16_224")

    def reach(layer: str) -> float:
        split = model.at(layer)
        with torch.no_grad():
            activation, *carried = split.body(X)
        activation.requires_grad_()
        gradient, = torch.autograd.grad(split.head(activation, *carried)[:, 1].sum(), activation)
        return float((split.as_map(gradient).abs().sum(1) > 0).float().mean())

    assert reach("final") == 1.0
    assert reach("norm") == 0.0


@pytest.mark.parametrize("name", [
    "resnet18.a1_in1k", "tf_efficientnet_lite0.in1k", "vit_base_patch16_siglip_224.webli"])
def test_pictures_are_prepared_as_timm_does(name: str) -> None:
    # The last of them squashes pictures to a square; its network is not built, only its configuration is read.
    network = timm.create_model("resnet18", num_classes=5)
    network.pretrained_cfg = timm.get_pretrained_cfg(name).to_dict()
    model = TimmClassifier(network)
    reference = create_transform(**resolve_model_data_config(network), normalize=False)
    rng = np.random.default_rng(0)
    for height, width in ((300, 400), (640, 427), (224, 224)):
        coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        picture = coarse.resize((width, height), Image.Resampling.BICUBIC)
        # timm hands on bytes when it does not normalise.
        expected = torch.as_tensor(reference(picture)) / 255
        torch.testing.assert_close(model.preprocess(picture), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["resnet18.a1_in1k", "vit_base_patch16_siglip_224.webli"])
def test_the_window_is_the_part_that_is_seen(name: str) -> None:
    """A white rectangle keeps the width and height that the window gives it, squashed or not."""
    network = timm.create_model("resnet18", num_classes=5)
    network.pretrained_cfg = timm.get_pretrained_cfg(name).to_dict()
    model = TimmClassifier(network)
    for width, height in ((400, 300), (427, 640)):
        pixels = np.zeros((height, width, 3), np.uint8)
        x0, y0, x1, y1 = width // 3, height // 3, width // 3 * 2, height // 3 * 2
        pixels[y0:y1, x0:x1] = 255
        seen = model.preprocess(Image.fromarray(pixels))[0]
        left, top, right, bottom = model.window(width, height)
        across, down = 224 / (right - left), 224 / (bottom - top)
        row, column = seen[int((height / 2 - top) * down)], seen[:, int((width / 2 - left) * across)]
        assert float(row.sum()) == pytest.approx((x1 - x0) * across, abs=0.3)
        assert float(column.sum()) == pytest.approx((y1 - y0) * down, abs=0.3)


def test_class_names() -> None:
    names = class_names(timm.create_model("resnet18"))
    assert (len(names), len(set(names))) == (1000, 1000)
    assert [names[i] for i in (0, 281, 282, 285, 665, 967)] == [
        "tench", "tabby", "tiger cat", "Egyptian cat", "moped", "espresso"]
    assert [name for name in names if name.startswith("crane")] == ["crane (n02012849)", "crane (n03126707)"]
    assert class_names(timm.create_model("resnet18", num_classes=3)) == ("0", "1", "2")
    own = timm.create_model("resnet18", num_classes=2, pretrained_cfg_overlay={"label_names": ["cat", "dog"]})
    assert class_names(own) == ("cat", "dog")
