"""Every composite against zennit itself, on networks that its canonizers get right."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from certframe_zennit.composites import Name
from certframe_zennit.lrp import Lrp
from torch import Tensor, nn

import certframe

zennit = pytest.importorskip("zennit", reason="zennit is not installed")
from zennit.attribution import Gradient  # noqa: E402
from zennit.canonizers import SequentialMergeBatchNorm  # noqa: E402
from zennit.composites import (  # noqa: E402
    EpsilonAlpha2Beta1,
    EpsilonAlpha2Beta1Flat,
    EpsilonGammaBox,
    EpsilonPlusFlat,
    ExcitationBackprop,
    SpecialFirstLayerMapComposite,
    layer_map_base,
)
from zennit.rules import Epsilon, ZBox, ZPlus  # noqa: E402
from zennit.torchvision import ResNetCanonizer  # noqa: E402
from zennit.types import Convolution  # noqa: E402

COMPOSITES = get_args(Name)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class EpsilonPlusBox(SpecialFirstLayerMapComposite):
    """The composite of the certified attributions, which zennit does not have."""

    def __init__(self, low: Tensor, high: Tensor, canonizers: list) -> None:
        rules = [*layer_map_base(), (Convolution, ZPlus()), (nn.Linear, Epsilon())]
        super().__init__(rules, [(Convolution, ZBox(low, high))], canonizers=canonizers)


def normalised(pixels: Tensor) -> Tensor:
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (MEAN, STD))
    return (pixels - mean) / std


def by_zennit(network: nn.Module, images: Tensor, targets: Tensor, name: str, canonizer: object) -> Tensor:
    ends = {"low": normalised(torch.zeros(1, 3, 1, 1)), "high": normalised(torch.ones(1, 3, 1, 1))}
    composite = {
        "epsilon-plus-box": lambda: EpsilonPlusBox(**ends, canonizers=[canonizer]),
        "epsilon-plus-flat": lambda: EpsilonPlusFlat(canonizers=[canonizer]),
        "epsilon-gamma-box": lambda: EpsilonGammaBox(**ends, canonizers=[canonizer]),
        "epsilon-alpha2-beta1": lambda: EpsilonAlpha2Beta1(canonizers=[canonizer]),
        "epsilon-alpha2-beta1-flat": lambda: EpsilonAlpha2Beta1Flat(canonizers=[canonizer]),
        "excitation-backprop": lambda: ExcitationBackprop(canonizers=[canonizer])}[name]()
    chosen = nn.functional.one_hot(targets, 10)
    with Gradient(network, composite, attr_output=lambda logits: logits * chosen) as attributor:
        relevance = attributor(normalised(images).requires_grad_())[1]
    return relevance.sum(1)


def plain() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.MaxPool2d(2),
        nn.Conv2d(8, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 12, 3), nn.ReLU(),
        nn.AvgPool2d(2), nn.Dropout(0.5), nn.Flatten(), nn.Linear(12 * 7 * 7, 20), nn.ReLU(), nn.Linear(20, 10))


def resnet18() -> nn.Module:
    torchvision = pytest.importorskip("torchvision", reason="torchvision is not installed")
    return torchvision.models.resnet18(num_classes=10)


def vgg11_bn() -> nn.Module:
    torchvision = pytest.importorskip("torchvision", reason="torchvision is not installed")
    network = torchvision.models.vgg11_bn(num_classes=10)
    network.avgpool, network.classifier = nn.AdaptiveAvgPool2d(1), nn.Linear(512, 10)
    return network


@pytest.mark.parametrize("composite", COMPOSITES)
@pytest.mark.parametrize(("build", "canonizer", "size"), [
    (plain, SequentialMergeBatchNorm, 32), (resnet18, ResNetCanonizer, 64), (vgg11_bn, SequentialMergeBatchNorm, 32)])
def test_it_is_what_zennit_gives(build, canonizer, size: int, composite: str) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        network = build().eval().requires_grad_(False)
        for norm in (m for m in network.modules() if isinstance(m, nn.BatchNorm2d)):
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            for tensor, low, high in ((norm.bias, -0.3, 0.3), (norm.running_mean, -0.2, 0.2),
                                      (norm.running_var, 0.7, 1.2)):
                nn.init.uniform_(tensor, low, high)
    images = torch.rand(3, 3, size, size, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([1, 7, 3])
    model = certframe.TorchModel(network, (3, size, size), mean=MEAN, std=STD)
    found = Lrp(Lrp.Options(composite=composite)).attribute(model, images, targets, rng=None)
    expected = by_zennit(network, images, targets, composite, canonizer())
    torch.testing.assert_close(found.logits, network(normalised(images)), rtol=1e-3, atol=1e-4)
    for one, other in zip(found.maps, expected, strict=True):
        assert other.abs().max() > 0
        torch.testing.assert_close(one, other, rtol=1e-2, atol=1e-3 * float(other.abs().max()))
