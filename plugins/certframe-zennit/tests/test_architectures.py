"""The networks of the papers: relevance is conserved where nothing is added, rows are independent, logits are right."""

from __future__ import annotations

import functools
from typing import get_args

import pytest
import torch
from certframe_zennit.composites import Name
from certframe_zennit.lrp import Lrp
from torch import Tensor, nn

import certframe

timm = pytest.importorskip("timm", reason="timm is not installed")
timm_models = pytest.importorskip("certframe_timm.classifier", reason="certframe-timm is not installed")

CONSERVING = [name for name in get_args(Name) if "alpha2" not in name]
NETWORKS = {
    "resnet18": 64, "wide_resnet50_2": 64, "vgg11": 64, "vgg11_bn": 64, "tf_efficientnet_lite0": 64,
    "vit_tiny_patch16_224": 224, "efficientnet_b0": 64, "swin_tiny_patch4_window7_224": 224, "densenet121": 64}
"""Networks of timm, and the size of the pictures here."""
LARGE = {"wide_resnet50_2", "vgg11", "vgg11_bn"}
MORE = {"efficientnet_b0", "swin_tiny_patch4_window7_224", "densenet121"}
FINAL = {"vit_tiny_patch16_224": 14, "swin_tiny_patch4_window7_224": 7}
"""Cells of the last feature map along a side, where it is not 2."""


def cases(*others: str, without: str = "") -> list[object]:
    """(network, other parameter); large networks take long with all but the first parameter, and some with any."""
    return [pytest.param(name, other, marks=[pytest.mark.slow] if name in MORE or (name in LARGE and i) else [])
            for name in NETWORKS if name != without for i, other in enumerate(others)]


@functools.cache
def classifier(name: str, size: int | None = None, *, shifts: bool = True) -> certframe.Model:
    """A network with random weights and statistics; without shifts, all that is added is 0."""
    size = size or NETWORKS[name]
    small = {"img_size": size} if name.startswith(("vit", "swin")) else {"mlp_ratio": 0.05} if name[:3] == "vgg" else {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = timm.create_model(name, num_classes=10, **small,
                                    pretrained_cfg_overlay={"input_size": (3, size, size)}).eval()
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                for tensor, low, high in ((module.weight, 0.7, 1.3), (module.bias, -0.2, 0.2),
                                          (module.running_mean, -0.2, 0.2), (module.running_var, 0.7, 1.3)):
                    nn.init.uniform_(tensor, low, high)
        if name.startswith(("vit", "swin")):
            for parameter in network.parameters():
                if parameter.ndim > 1:
                    parameter.data *= 3  # otherwise activations are so small that ε is not
    if not shifts:
        tensors = {**dict(network.named_parameters()), **dict(network.named_buffers())}
        for key, tensor in tensors.items():
            if key.endswith(("bias", "running_mean", "pos_embed", "cls_token")):
                tensor.data.zero_()
    return timm_models.TimmClassifier(network)


def pictures(name: str, count: int, size: int | None = None) -> tuple[Tensor, Tensor]:
    size = size or NETWORKS[name]
    generator = torch.Generator().manual_seed(3)
    x = torch.rand(count, 3, size, size, generator=generator)
    return x + 0.15 * torch.randn(x.shape, generator=generator), torch.arange(count) * 3 % 10


def conserved(name: str, composite: str, size: int | None = None) -> Tensor:
    model, (x, _) = classifier(name, size, shifts=False), pictures(name, 2, size)
    targets = model.module(x).abs().argmax(1)
    found = Lrp(Lrp.Options(composite=composite)).attribute(model, x, targets, rng=None)
    return found.maps.double().sum((1, 2)) / found.logits.gather(1, targets[:, None])[:, 0]


# Not where SiLU is: its outputs below 0 may have no contributions that are positive.
@pytest.mark.parametrize(("name", "composite"), cases(*CONSERVING, without="efficientnet_b0"))
def test_relevance_is_conserved_where_nothing_is_added(name: str, composite: str) -> None:
    torch.testing.assert_close(conserved(name, composite), torch.ones(2, dtype=torch.float64), rtol=0, atol=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("composite", ["epsilon-plus-box", "epsilon-alpha2-beta1-flat"])
def test_relevance_is_conserved_on_resnet152_at_full_size(composite: str) -> None:
    torch.testing.assert_close(conserved("resnet152", composite, 224), torch.ones(2, dtype=torch.float64),
                               rtol=0, atol=0.01)


@pytest.mark.filterwarnings("ignore:.*does not conserve")
@pytest.mark.parametrize(("name", "layer"), cases("input", "final"))
def test_a_batch_is_its_rows_and_the_logits_are_the_models(name: str, layer: str) -> None:
    model, (x, targets), method = classifier(name), pictures(name, 3), Lrp(Lrp.Options(layer=layer))
    found = method.attribute(model, x, targets, rng=None)
    size = NETWORKS[name] if layer == "input" else FINAL.get(name, 2)
    assert found.maps.shape == (3, size, size)
    assert found.maps.dtype == torch.float32
    assert found.maps.abs().sum() > 0
    expected = model.module(x)
    torch.testing.assert_close(found.logits, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
    for row in range(3):
        alone = method.attribute(model, x[row:row + 1], targets[row:row + 1], rng=None).maps[0]
        torch.testing.assert_close(alone, found.maps[row], rtol=1e-3, atol=1e-4 * float(alone.abs().max()))


@pytest.mark.parametrize("layer", ["layer3.1.bn2", "layer2.0.conv1", "layer4.1.act2"])
def test_relevance_in_the_middle_of_a_residual_block_adds_up_with_what_goes_around_it(layer: str) -> None:
    # Behind the block nothing is lost; inside it, the rest of the logit is in the shortcut.
    model, (x, targets) = classifier("resnet18", shifts=False), pictures("resnet18", 2)
    method = Lrp(Lrp.Options(layer=layer))
    found = method.attribute(model, x, targets, rng=None)
    split = model.at(layer)
    values = split.body(x)
    (network,) = [network for _, network in method._networks.values()]
    relevances, _ = network.propagate(values, targets, every=True)
    assert len(relevances) == (1 if layer == "layer4.1.act2" else 2)
    torch.testing.assert_close(relevances[0].sum(1), found.maps)
    total = sum(relevance.double().sum((1, 2, 3)) for relevance in relevances)
    torch.testing.assert_close(total, found.logits.gather(1, targets[:, None])[:, 0].double(), rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_where_silu_loses_relevance_there_is_a_warning() -> None:
    model, (x, targets) = classifier("efficientnet_b0", shifts=False), pictures("efficientnet_b0", 1)
    with pytest.warns(UserWarning, match="epsilon-plus-box does not conserve relevance on this model"):
        Lrp().attribute(model, x, targets, rng=None)
