"""Every attributor with an option `layer` on the papers' architectures: at the input, at the last map and in between.

On narrow networks of the same structure and small pictures; `scripts/studies/architectures.py` does it at full size.
"""

from __future__ import annotations

import functools
import warnings
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from certframe.config import resolve_component
from certframe.errors import UsageError
from certframe.protocols import Model
from certframe.registry import Entry, default_registry
from certframe.testing import fixtures

timm = pytest.importorskip("timm", reason="timm is not installed")
classifiers = pytest.importorskip("certframe_timm.classifier", reason="certframe-timm is not installed")

SIZE = 64
NARROW: dict[str, dict[str, Any]] = {
    "resnet18": {"channels": (8, 12, 16, 20)},
    "wide_resnet50_2": {"channels": (4, 6, 8, 10)},
    "resnet152": {"channels": (4, 6, 8, 10), "layers": (2, 2, 3, 2)},
    "vgg11": {"mlp_ratio": 0.01},
    "vgg11_bn": {"mlp_ratio": 0.01},
    "vit_base_patch16_224": {"img_size": SIZE, "embed_dim": 24, "num_heads": 3, "depth": 4},
    "tf_efficientnet_lite0": {}}
"""What makes the architectures small."""
NARROW_VGG = {"vgg11": [8, "M", 12, "M", 16, 16, "M", 20, 20, "M", 20, 20, "M"]}
INNER = {"resnet18": "layer3.1.bn2", "wide_resnet50_2": "layer3.2.conv2", "resnet152": "layer3.1",
         "vgg11": "features.13", "vgg11_bn": "features.18", "vit_base_patch16_224": "blocks.2.mlp.fc1",
         "tf_efficientnet_lite0": "blocks.4.1.conv_pwl"}
"""A module path, in the middle of a residual block where there is one."""
LAYERS = ("input", "final", "inner")
CHEAP = {"samples": 2, "masks": 8, "steps": 3, "channels": 4, "patch": 16}
"""Values of options that make a method cheap, for whichever method has them."""
ATTRIBUTORS = default_registry().entries("attributor")


@functools.cache
def narrow(name: str) -> Model:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        with mock.patch.dict(timm.models.vgg.cfgs, NARROW_VGG):
            network = timm.create_model(name, num_classes=10, **NARROW[name],
                                        pretrained_cfg_overlay={"input_size": (3, SIZE, SIZE)}).eval()
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.7, 1.3)
                nn.init.uniform_(module.running_mean, -0.2, 0.2)
    model = classifiers.TimmClassifier(network)
    with torch.no_grad():  # logits of size 1, so that no softmax is saturated and no gradient vanishes
        size = model.module(fixtures.noisy_images(model, 4)).std()
        for parameter in model.network.get_classifier().parameters():
            parameter.div_(size)
    return model


def built(entry: Entry, layer: str) -> Any:
    """The method at a layer, cheap; None when it has no such option."""
    cls = entry.load()
    fields = cls.Options.model_fields
    if "layer" not in fields:
        return None
    example = getattr(cls, "conformance_options", None)
    options: dict[str, Any] = dict(example(Path())) if example else {}
    options["layer"] = layer
    for option, value in CHEAP.items():
        if option in fields and option not in options and not (option == "patch" and layer != "input"):
            try:
                cls.Options.model_validate({option: value})
            except ValidationError:
                continue
            options[option] = value
    method = cls(cls.Options.model_validate(options))
    tell = getattr(method, "map_size", None)
    # One that cuts the network at the layer, and has maps of a size of its own, does not explain the layer.
    return None if layer == "final" and tell and tell((3, SIZE, SIZE)) is not None else method


def pooled(model: Model, layer: str, inputs: Tensor) -> bool:
    """Whether the gradient of a logit with respect to the layer is the same in every cell of the map."""
    split = model.at(layer)
    activation, *around = split.body(inputs)
    activation = activation.detach().requires_grad_()
    gradient, = torch.autograd.grad(split.head(activation, *around)[:, 1].sum(), activation)
    cells = split.as_map(gradient).flatten(2)
    return bool(torch.allclose(cells, cells[:, :, :1].expand_as(cells)))


def require_cell(entry: Entry, model: Model, layer: str, inputs: Tensor) -> None:
    """Maps of the layer's size, finite, and the same for an image by itself; not constant unless the gradient is.

    Where average pooling and a linear layer follow, the gradient of the logit is the same in every cell.
    """
    method = built(entry, layer) if built(entry, "final") else None
    if method is None:
        if "layer" not in entry.load().Options.model_fields:
            with pytest.raises(UsageError, match=r"^unknown option 'layer' of attributor "):
                resolve_component("attributor", entry.qualified, ["attributor.layer=final"])
        return
    split, targets = model.at(layer), torch.arange(len(inputs)) * 3 + 1
    with torch.no_grad():
        size = split.as_map(split.body(inputs)[0]).shape[2:]
        expected = model.module(inputs)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*does not conserve")
        found = method.attribute(model, inputs, targets, rng=fixtures.rng(range(len(inputs))))
        alone = method.attribute(model, inputs[-1:], targets[-1:], rng=fixtures.rng([len(inputs) - 1])).maps[0]
    assert tuple(found.maps.shape) == (len(inputs), *size)
    assert found.maps.dtype == torch.float32
    assert torch.isfinite(found.maps).all()
    spread = float(found.maps.flatten(1).std(1).max())
    assert spread > 1e-5 * float(found.maps.abs().max()) or pooled(model, layer, inputs)
    # Grad-CAM++ divides by sums that nearly cancel, and rounding is not the same in a batch.
    assert float((alone * found.maps[-1]).sum()) >= 0.99 * float(alone.norm() * found.maps[-1].norm())
    assert float(alone.norm()) == pytest.approx(float(found.maps[-1].norm()), rel=0.1)
    if found.logits is not None:
        torch.testing.assert_close(found.logits, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))


CELLS = [pytest.param(entry, name, layer, id=f"{entry.name}-{name}-{layer}")
         for entry in ATTRIBUTORS for name in NARROW for layer in LAYERS]


@pytest.mark.parametrize(("entry", "name", "layer"), CELLS)
def test_no_cell_is_empty(entry: Entry, name: str, layer: str) -> None:
    model = narrow(name)
    require_cell(entry, model, INNER[name] if layer == "inner" else layer, fixtures.noisy_images(model, 2))


@pytest.mark.parametrize("name", NARROW)
@pytest.mark.parametrize("entry", ATTRIBUTORS, ids=lambda entry: entry.name)
def test_the_body_before_a_late_layer_is_not_differentiated(entry: Entry, name: str) -> None:
    method, model = built(entry, "final"), narrow(name)
    if method is None:
        pytest.skip("it has no option layer")
    model.at("final")
    backward: list[int] = []

    def watch(_layer: nn.Module, _given: Any, output: Tensor) -> None:
        if output.requires_grad:
            output.register_hook(lambda _gradient: backward.append(1))

    first = next(layer for layer in model.module.modules() if isinstance(layer, nn.Conv2d))
    handle = first.register_forward_hook(watch)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*does not conserve")
            method.attribute(model, fixtures.noisy_images(model, 2), torch.tensor([1, 4]), rng=fixtures.rng(range(2)))
    finally:
        handle.remove()
    assert not backward
