"""Guided backpropagation against the rule written out, with rectifiers in every disguise."""

from __future__ import annotations

import pytest
import torch
from networks import Transformer, settled
from torch import Tensor, nn
from torch.nn import functional

from certframe.attributors.gradient import Gradient
from certframe.attributors.guided import GuidedBackprop
from certframe.errors import UsageError
from certframe.noise import CopyRng
from certframe.torch_model import TorchModel

SIZE = (1, 4, 4)
X = torch.randn(5, *SIZE, generator=torch.Generator().manual_seed(1))
TARGETS = torch.tensor([0, 1, 2, 0, 1])
RNG = CopyRng(0, "0" * 64, "test", range(5), "cpu")
W1, W2, W3 = (torch.randn(s, generator=torch.Generator().manual_seed(i)) for i, s in
              enumerate([(12, 16), (12, 12), (3, 12)]))


class Net(nn.Module):
    """x → W1 → rectifier → W2 → rectifier → W3, with the rectifiers called in a way of one's choice."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way, self.act, self.capped = way, nn.ReLU(), nn.ReLU6()
        self.inplace, self.capped_inplace = nn.ReLU(inplace=True), nn.ReLU6(inplace=True)
        self.w1, self.w2, self.w3 = nn.Parameter(W1), nn.Parameter(W2), nn.Parameter(W3)

    def rectify(self, x: Tensor) -> Tensor:
        if self.way == "ignored result":
            torch.relu_(x)
            return x
        ways = {"module": self.act, "in place": self.inplace, "functional": functional.relu, "torch": torch.relu,
                "method": Tensor.relu, "method in place": Tensor.relu_, "relu6": self.capped,
                "relu6 in place": self.capped_inplace, "functional relu6": functional.relu6}
        return ways[self.way](x)

    def forward(self, x: Tensor) -> Tensor:
        return self.rectify(self.rectify(x.flatten(1) @ self.w1.T) @ self.w2.T) @ self.w3.T


def by_hand(cap: float) -> Tensor:
    """The backward pass with the gradient cut at each rectifier, one matrix at a time."""
    a1 = X.flatten(1) @ W1.T
    a2 = a1.clamp(0, cap) @ W2.T
    g = W3[TARGETS]
    g = g.clamp(min=0) * ((a2 > 0) & (a2 < cap)) @ W2
    g = g.clamp(min=0) * ((a1 > 0) & (a1 < cap)) @ W1
    return g.view(5, 4, 4).abs()


@pytest.mark.parametrize("way", ["module", "in place", "functional", "torch", "method", "method in place",
                                 "ignored result", "relu6", "relu6 in place", "functional relu6"])
def test_every_way_to_call_a_rectifier(way: str) -> None:
    model = TorchModel(Net(way), SIZE)
    found = GuidedBackprop().attribute(model, X, TARGETS, rng=RNG)
    expected = by_hand(6.0 if "relu6" in way else float("inf"))
    torch.testing.assert_close(found.maps, expected, rtol=1e-4, atol=1e-5)
    plain = Gradient().attribute(model, X, TARGETS, rng=RNG)
    assert not torch.allclose(found.maps, plain.maps)
    torch.testing.assert_close(found.logits, plain.logits)


def test_smooth_rectifiers_are_guided_too() -> None:
    model = TorchModel(settled(Transformer()), (3, 16, 16))
    x = torch.randn(2, 3, 16, 16)
    rng = CopyRng(0, "0" * 64, "test", range(2), "cpu")
    guided = GuidedBackprop().attribute(model, x, TARGETS[:2], rng=rng).maps
    assert not torch.allclose(guided, Gradient().attribute(model, x, TARGETS[:2], rng=rng).maps)


def test_a_network_without_rectifiers_is_refused() -> None:
    model = TorchModel(nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 3)), SIZE)
    with pytest.raises(UsageError, match="no rectifier"):
        GuidedBackprop().attribute(model, X, TARGETS, rng=RNG)


def test_nothing_is_left_behind() -> None:
    model = TorchModel(Net("module"), SIZE)
    before = Gradient().attribute(model, X, TARGETS, rng=RNG).maps
    GuidedBackprop().attribute(model, X, TARGETS, rng=RNG)
    assert torch.equal(Gradient().attribute(model, X, TARGETS, rng=RNG).maps, before)
