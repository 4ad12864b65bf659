"""Tightness has a closed form on linear models, and orders the methods as the theory does."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from certframe_eva.tightness import Tightness
from pydantic import ValidationError
from torch import Tensor, nn

import certframe

DUAL = {1: float("inf"), 2: 2.0, "inf": 1.0}


def measure(network: nn.Module, image: Tensor, target: int, **options: Any) -> dict[str, float]:
    model = certframe.TorchModel(network.eval(), tuple(image.shape))  # type: ignore[arg-type]
    metric = Tightness(Tightness.Options(**options))
    return dict(metric.compute(certframe.Explanation(
        name="x", image=image, target=target, target_name="", confidence=0.5, map=torch.zeros(1, 1),
        tally=None, certificate=None, model=model)))  # type: ignore[arg-type]


@pytest.mark.parametrize("p", [1, 2, "inf"])
@pytest.mark.parametrize("margin", ["separate", "joint"])
def test_a_linear_model(p: Any, margin: str) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(12, 4).requires_grad_(False)
    image, target, eps = torch.rand(1, 3, 4), 2, 0.3
    logits, w = linear(image.flatten()), linear.weight
    found = measure(nn.Sequential(nn.Flatten(), linear), image, target, p=p, margin=margin, eps=eps)
    others = [c for c in range(4) if c != target]

    def dual(v: Tensor) -> Tensor:
        return eps * v.norm(p=DUAL[p], dim=-1)

    if margin == "joint":
        expected = max(float(logits[c] - logits[target] + dual(w[c] - w[target])) for c in others)
    else:
        expected = max(float(logits[c] + dual(w[c])) for c in others) - float(logits[target] - dual(w[target]))
    assert list(found) == [f"tightness.{m}" for m in ("ibp", "forward", "backward", "ibp+forward",
                                                      "ibp+forward+backward")]
    for value in found.values():
        assert value == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("p", [2, "inf"])
def test_the_order_of_methods_and_what_samples_reach(p: Any) -> None:
    torch.manual_seed(1)
    network = nn.Sequential(nn.Flatten(), nn.Linear(20, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 5))
    network.requires_grad_(False)
    image, target, eps = torch.rand(1, 4, 5), 3, 0.4
    found = measure(network, image, target, p=p, eps=eps)
    both = found["tightness.ibp+forward+backward"]
    assert both <= min(found.values()) + 1e-4
    assert found["tightness.ibp+forward"] <= min(found["tightness.ibp"], found["tightness.forward"]) + 1e-4
    assert found["tightness.ibp"] > both * 1.01
    joint = measure(network, image, target, p=p, eps=eps, margin="joint")
    clipped = measure(network, image, target, p=p, eps=eps, clip=True)
    assert all(joint[name] <= found[name] + 1e-4 and clipped[name] <= found[name] + 1e-4 for name in found)
    delta = torch.randn(2000, 20)
    delta = eps * (delta.sign() if p == "inf" else delta / delta.norm(dim=1, keepdim=True))
    logits = network((image.flatten() + delta).view(-1, 1, 4, 5))
    logits, own = logits.clone(), logits[:, target].clone()
    logits[:, target] = -float("inf")
    assert float((logits.amax(1) - own).max()) <= joint["tightness.ibp+forward+backward"]


def test_methods_are_named_or_refused() -> None:
    assert Tightness.Options(methods="ibp,backward").methods == ("ibp", "backward")  # type: ignore[arg-type]
    for wrong in (("crown",), ()):
        with pytest.raises(ValidationError):
            Tightness.Options(methods=wrong)
