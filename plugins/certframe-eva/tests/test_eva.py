"""The attributors: what they compute by definition, on which models, and what they refuse."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from certframe_eva.attributors import Eva, EvaHybrid, EvaTargeted
from certframe_eva.bounds import logit_bounds
from certframe_eva.grid import cells
from certframe_eva.network import Network
from certframe_eva.overlap import overlap
from certframe_eva.regions import Region
from torch import Tensor, nn

import certframe
from certframe.testing import check_plugin, fixtures


def explain(attributor: Any, model: certframe.Model, inputs: Tensor, targets: Tensor) -> Tensor:
    maps: Tensor = attributor.attribute(model, inputs, targets, rng=fixtures.rng(range(len(inputs)))).maps
    return maps


@pytest.mark.parametrize("kind", [Eva, EvaTargeted, EvaHybrid])
def test_the_contract(kind: type[Any]) -> None:
    check_plugin("attributor", kind)


def test_cells_divide_the_image() -> None:
    found = cells(3, 7, 5)
    assert found.shape == (10, 7, 5)
    assert not found[0].any()
    assert bool((found[1:].sum(0) == 1).all())
    assert found[1:].sum((1, 2)).tolist() == [6, 6, 3, 4, 4, 2, 4, 4, 2]
    assert bool(found[1, :3, :2].all())  # rows 0–2 and columns 0–1
    assert cells(12, 8, 20).shape == (1 + 8 * 12, 8, 20)


@pytest.mark.parametrize("margin", ["separate", "joint"])
def test_on_a_linear_model_it_is_the_closed_form(margin: Any) -> None:
    """With ‖·‖₂: F(B) = max over c' of v + ε(‖w_c'‖ + ‖w_c‖), or of v + ε‖w_c' − w_c‖ for the joint margin."""
    torch.manual_seed(0)
    layer = nn.Linear(2 * 6 * 6, 4)
    model = certframe.TorchModel(nn.Sequential(nn.Flatten(), layer), (2, 6, 6))
    x, targets = torch.rand(3, 2, 6, 6), torch.tensor([0, 2, 3])
    found = explain(Eva(Eva.Options(grid=3, eps=0.7, margin=margin)), model, x, targets)
    weight, values = layer.weight.detach().double(), model.module(x).double()
    for b, c in enumerate(targets.tolist()):
        def worst(free: Tensor, b: int = b, c: int = c) -> float:
            w = weight.view(4, 2, 6, 6) * free
            reach = ((w - w[c]).flatten(1).norm(dim=1) if margin == "joint"
                     else w.flatten(1).norm(dim=1) + w[c].norm())
            ahead = values[b] - values[b, c] + 0.7 * reach
            ahead[c] = -math.inf
            return float(ahead.max())
        for u, fixed in enumerate(cells(3, 6, 6)[1:]):
            expected = worst(torch.ones(6, 6).double()) - worst(~fixed)
            assert float(found[b].flatten()[u]) == pytest.approx(expected, abs=1e-5)


def test_targeted_maps_say_which_direction_helps() -> None:
    """On f = (0, Σ w x) towards class 1: ε times the change of the dual norm, + where w > 0, − where w < 0."""
    layer = nn.Linear(16, 2)
    torch.manual_seed(1)
    weight = torch.randn(16)
    layer.weight.data, layer.bias.data = torch.stack([torch.zeros(16), weight]), torch.zeros(2)
    model = certframe.TorchModel(nn.Sequential(nn.Flatten(), layer), (1, 4, 4))
    for p, order in ((2, 2.0), ("inf", 1.0), (1, math.inf)):
        options = EvaTargeted.Options(grid=4, eps=0.3, p=p, towards=1)
        found = explain(EvaTargeted(options), model, torch.rand(1, 1, 4, 4), torch.tensor([0]))[0].flatten()
        up, down = weight.clamp(min=0).double(), (-weight).clamp(min=0).double()
        for i in range(16):
            def fall(side: Tensor, i: int = i, order: float = order) -> Tensor:
                return side.norm(p=order) - side.where(torch.arange(16) != i, 0.0).norm(p=order)
            assert float(found[i]) == pytest.approx(0.3 * float(fall(up) - fall(down)), abs=1e-6)


def test_the_class_to_turn_into() -> None:
    model = fixtures.tiny_model()
    x, targets = fixtures.noisy_images(model, 2), torch.tensor([1, 3])
    best = model.module(x).scatter(1, targets[:, None], -math.inf).argmax(1)
    runner_up = explain(EvaTargeted(EvaTargeted.Options(grid=2, method="ibp")), model, x, targets)
    for row, c in enumerate(best.tolist()):
        chosen = EvaTargeted(EvaTargeted.Options(grid=2, method="ibp", towards=c))
        torch.testing.assert_close(explain(chosen, model, x, targets)[row], runner_up[row])
    with pytest.raises(certframe.UsageError, match="towards=9: the model has 4 classes"):
        explain(EvaTargeted(EvaTargeted.Options(towards=9)), model, x, targets)


@pytest.mark.parametrize("method", ["ibp", "backward", "ibp+forward+backward"])
def test_the_joint_margin_is_at_least_as_tight(method: str) -> None:
    model = fixtures.tiny_model()
    x, targets = fixtures.noisy_images(model, 3).double(), torch.tensor([0, 1, 2])
    network = Network.of(model.module, x[:2].float()).to(torch.float64)
    region = Region.ball(x, 0.3, 2, fixed=cells(3, 16, 16))
    separate, joint = (overlap(network, region, targets, method, margin=m) for m in ("separate", "joint"))
    assert bool((joint <= separate).all())
    assert float((separate - joint).mean()) > 0.1
    low, high = logit_bounds(network, region, method)
    for b, c in enumerate(targets.tolist()):
        others = [k for k in range(4) if k != c]
        torch.testing.assert_close(separate[b], high[b, :, others].amax(1) - low[b, :, c])


def test_it_follows_a_model_whose_weights_change() -> None:
    model = fixtures.tiny_model()
    attributor, x, targets = Eva(Eva.Options(grid=2, method="ibp")), fixtures.noisy_images(model, 1), torch.tensor([0])
    first = explain(attributor, model, x, targets)
    with torch.no_grad():
        model.module.get_submodule("classifier").weight.mul_(2)  # type: ignore[operator]
    torch.testing.assert_close(explain(attributor, model, x, targets), 2 * first)


def test_layers_that_cannot_be_bounded_are_named() -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.GELU(), nn.Flatten(), nn.Linear(72, 3))
    model = certframe.TorchModel(network, (1, 8, 8))
    for attributor in (Eva(), EvaTargeted(), EvaHybrid(EvaHybrid.Options(layer="0", samples=1, grid=2))):
        with pytest.raises(certframe.UsageError, match=r"layer '1' \(GELU\) cannot be bounded: verified bounds know"):
            explain(attributor, model, torch.rand(1, 1, 8, 8), torch.tensor([0]))


def test_hybrid_finds_what_matters_and_bounds_what_it_samples() -> None:
    """On a model that looks at one corner only, cells elsewhere change nothing."""
    conv = nn.Conv2d(1, 2, 3, padding=1)
    network = nn.Sequential(conv, nn.ReLU(), nn.Flatten(), nn.Linear(2 * 64, 3))
    torch.manual_seed(0)
    seen = torch.zeros(8, 8)
    seen[:3, :3] = 1
    network[3].weight.data.mul_(seen.repeat(2, 1, 1).flatten())
    model = certframe.TorchModel(network, (1, 8, 8))
    for p in (1, 2, "inf"):
        options = EvaHybrid.Options(grid=2, layer="1", samples=20, p=p, eps=2.0)
        found = explain(EvaHybrid(options), model, torch.rand(2, 1, 8, 8), torch.tensor([0, 1]))
        assert bool((found[:, 0, 0] > 1e-3).all())
        assert float(found[:, 1, 1].abs().max()) == 0


@pytest.mark.parametrize("p", [1, 2, "inf"])
def test_hybrid_draws_from_the_whole_ball(p: Any) -> None:
    """The share of draws in the ball of half the radius is 2^−d."""
    hybrid = EvaHybrid(EvaHybrid.Options(p=p, eps=2.0))
    drawn = hybrid._drawn(torch.zeros(4000, 1, 1, 3), fixtures.rng(range(4000))).flatten(1)
    norm = drawn.norm(p=float(p), dim=1)
    assert float(norm.max()) <= 2.0 + 1e-5
    assert float((norm < 1.0).float().mean()) == pytest.approx(1 / 8, abs=0.02)
    assert float(drawn.mean(0).abs().max()) < 0.06
