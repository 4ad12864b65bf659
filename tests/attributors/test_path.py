"""Integrated gradients: completeness, the rule written out, and memory options that change nothing."""

from __future__ import annotations

import pytest
import torch
from networks import Residual, settled

from certframe.attributors.path import IntegratedGradients
from certframe.noise import CopyRng
from certframe.torch_model import TorchModel

SIZE = (3, 16, 16)
X = torch.rand(3, *SIZE, generator=torch.Generator().manual_seed(4))
TARGETS = torch.tensor([0, 1, 1])
RNG = CopyRng(0, "0" * 64, "test", range(3), "cpu")
MODEL = TorchModel(settled(Residual()), SIZE)


def attribute(**options: object):
    return IntegratedGradients(IntegratedGradients.Options(**options)).attribute(MODEL, X, TARGETS, rng=RNG)


@pytest.mark.parametrize("baseline", [0.0, 0.5])
def test_completeness(baseline: float) -> None:
    found = attribute(steps=400, baseline=baseline)
    rise = MODEL.module(X) - MODEL.module(torch.full_like(X, baseline))
    torch.testing.assert_close(found.maps.sum((1, 2)), rise[torch.arange(3), TARGETS], rtol=0.01, atol=0.01)
    torch.testing.assert_close(found.logits, MODEL.module(X), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("steps", [2, 3, 20])
def test_the_trapezoidal_rule(steps: int) -> None:
    expected = torch.zeros(3, 16, 16)
    for b in range(3):
        for j in range(steps):
            x = (X[b] * j / (steps - 1)).requires_grad_()
            gradient, = torch.autograd.grad(MODEL.module(x[None])[0, TARGETS[b]], x)
            weight = (0.5 if j in (0, steps - 1) else 1.0) / (steps - 1)
            expected[b] += weight * (X[b] * gradient).sum(0)
    torch.testing.assert_close(attribute(steps=steps).maps, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 64])
def test_the_chunk_changes_nothing(chunk: int) -> None:
    whole, some = attribute(chunk=1000), attribute(chunk=chunk)
    torch.testing.assert_close(some.maps, whole.maps, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(some.logits, whole.logits, rtol=1e-4, atol=1e-5)
