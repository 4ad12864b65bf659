"""Maps carry the graph of inputs that ask for it, and their gradients are those of finite differences."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import certframe
from certframe.registry import default_registry
from certframe.testing import fixtures

DIFFERENTIABLE = ("gradient", "input-x-gradient", "integrated-gradients", "smoothgrad", "vargrad", "grad-cam", "cam",
                  "grad-cam++", "layer-cam")
QUICK = {"smoothgrad": {"samples": 3}, "vargrad": {"samples": 3}, "integrated-gradients": {"steps": 4}}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.Softplus(4.0), nn.Conv2d(4, 3, 3, padding=1),
                        nn.Softplus(4.0), nn.Flatten(), nn.Linear(3 * 25, 3)).double()
    return certframe.TorchModel(net, (2, 5, 5), ("a", "b", "c"))


def built(name):
    cls = default_registry().find("attributor", name).load()
    return cls(cls.Options.model_validate(QUICK.get(name, {})))


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_the_gradient_of_a_map_is_that_of_finite_differences(model, name):
    method, targets = built(name), torch.tensor([0, 2])
    x = 0.2 + 0.6 * torch.rand(2, 2, 5, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    z = x.clone().requires_grad_()
    maps = method.attribute(model, z, targets, rng=fixtures.rng([0, 1])).maps
    weights = torch.rand(maps.shape, generator=torch.Generator().manual_seed(2)).to(maps)
    gradient, = torch.autograd.grad((maps * weights).sum(), z)
    way = torch.randn(x.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)

    def value(step):
        return float((method.attribute(model, x + step * way, targets, rng=fixtures.rng([0, 1])).maps.double()
                      * weights).sum())

    step = 1e-3  # gradients are handed on in float32
    assert float((gradient * way).sum()) == pytest.approx((value(step) - value(-step)) / (2 * step), rel=2e-2,
                                                          abs=2e-3)


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_nothing_has_a_graph_that_nobody_asked_for(model, name):
    x = torch.rand(2, 2, 5, 5, dtype=torch.float64)
    found = built(name).attribute(model, x, torch.tensor([0, 1]), rng=fixtures.rng([0, 1]))
    assert not found.maps.requires_grad
    assert found.logits is None or not found.logits.requires_grad
