"""Robustness-Sr on linear models, where every point of the curve has a closed form."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from certframe_eva.attack import Norm
from certframe_eva.robustness import RobustnessSr, curve, top_masks
from torch import Tensor, nn

import certframe
from certframe.testing import fixtures

PERCENT = np.array([10.0, 25.0, 50.0, 100.0])


class Weighted(nn.Module):
    """Two classes, decided by Σ w·(x − ½)."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, x: Tensor) -> Tensor:
        score = ((x - 0.5) * self.weight).sum(dim=(1, 2, 3))
        return torch.stack([score, -score], dim=1)


def subject(seed: int = 0) -> tuple[Any, Tensor]:
    """A linear model on 1×4×5 inputs and an image of its class 0, near the boundary."""
    g = torch.Generator().manual_seed(seed)
    weight = torch.randn(1, 4, 5, generator=g)
    model = fixtures.tiny_model((1, 4, 5), classes=2)
    model.module = Weighted(weight)
    return model, 0.5 + 0.02 * weight.sign()


def explained(model: Any, image: Tensor, attribution: Tensor, target: int = 0) -> certframe.Explanation:
    return certframe.Explanation(name="x", image=image, target=target, target_name="0", confidence=0.9,
                                 map=attribution, tally=None, certificate=None, model=model)  # type: ignore[arg-type]


def measure(model: Any, image: Tensor, attribution: Tensor, target: int = 0, **options: Any) -> dict[str, float]:
    metric = RobustnessSr(RobustnessSr.Options(**options))
    return dict(metric.compute(explained(model, image, attribution, target)))


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("seed", range(3))
def test_the_curve_of_a_linear_model(norm: Norm, seed: int) -> None:
    model, image = subject(seed)
    weight = model.module.weight
    scores = torch.rand(4, 5, generator=torch.Generator().manual_seed(seed + 9))
    found = measure(model, image, scores, norm=norm, levels=tuple(PERCENT), curve=True, halvings=14, trials=14)
    gap = float(((image - 0.5) * weight).sum())
    expected = []
    for k in (2, 5, 10, 20):
        top = weight.flatten()[scores.flatten().argsort(descending=True)[:k]]
        expected.append(gap / float(top.norm() if norm == "l2" else top.abs().sum()))
    reachable = np.array(expected) < 0.4  # else pixels come to the end of their range
    assert reachable.sum() >= 2
    curve_found = np.array([found[f"robustness-sr.distance.{p:g}"] for p in PERCENT])
    np.testing.assert_allclose(curve_found[reachable], np.array(expected)[reachable], rtol=2e-3)
    area = np.trapezoid(curve_found, PERCENT) / 90
    assert found["robustness-sr"] == pytest.approx(area)


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_the_right_map_has_the_smallest_area_and_the_wrong_one_the_largest(norm: Norm) -> None:
    model, image = subject(4)
    weight = model.module.weight[0]
    right, wrong, chance = (measure(model, image, scores, norm=norm)["robustness-sr"]
                            for scores in (weight.abs(), -weight.abs(), torch.zeros(4, 5)))
    assert right < chance < wrong
    assert measure(model, image, -weight.abs(), norm=norm, ranking="magnitude")["robustness-sr"] == right


def test_it_never_rises_with_more_pixels() -> None:
    model = fixtures.tiny_model((1, 12, 12))
    image = fixtures.noisy_images(model, 1)[0].clamp(0, 1)
    target = int(model.module(image[None]).argmax())
    masks = top_masks(torch.rand(12, 12, generator=torch.Generator().manual_seed(0)), np.arange(5.0, 101, 5), 0)
    distances = curve(model, image, target, masks, RobustnessSr.Options(norm="l2", trials=3, steps=3))
    finite = distances[np.isfinite(distances)]
    assert len(finite) >= 5
    assert (np.diff(finite) <= 0).all()
    assert np.isfinite(distances[np.isfinite(distances).argmax():]).all()


def test_what_cannot_be_lost_is_as_far_as_the_farthest_image() -> None:
    model, image = subject()
    model.module.weight = torch.zeros(1, 4, 5)
    model.module.weight[0, 0, 0] = 1.0
    image = torch.full((1, 4, 5), 0.75)
    last = torch.ones(4, 5)
    last[0, 0] = 0.0
    found = measure(model, image, last, levels=(50, 100), halvings=12)
    assert found["robustness-sr.found"] == 0.5
    assert found["robustness-sr"] == pytest.approx((0.75 + 0.25) / 2, abs=1e-3)
    assert measure(model, image, last, levels=(50, 100), norm="l2", halvings=12)["robustness-sr"] == pytest.approx(
        (0.75 * 20**0.5 + 0.25) / 2, abs=1e-3)
    assert measure(model, image, last, target=1)["robustness-sr"] == 0


def test_masks_are_nested_exact_and_break_ties_by_seed() -> None:
    scores = torch.zeros(7, 9)
    scores[3, 3] = 1.0
    masks = top_masks(scores, PERCENT, 0)
    assert masks.sum(dim=(1, 2)).tolist() == [7, 16, 32, 63]
    assert bool((masks[1:] >= masks[:-1]).all())
    assert bool(masks[:, 3, 3].all())
    assert torch.equal(masks, top_masks(scores, PERCENT, 0))
    assert not torch.equal(masks, top_masks(scores, PERCENT, 1))


def test_small_maps_are_enlarged_and_large_ones_refused() -> None:
    model, image = subject()
    small = torch.rand(2, 3, generator=torch.Generator().manual_seed(1))
    large = torch.nn.functional.interpolate(small[None, None], size=(4, 5), mode="bilinear")[0, 0]
    assert measure(model, image, small) == measure(model, image, large)
    with pytest.raises(certframe.UsageError, match="a map of 8×5"):
        measure(model, image, torch.zeros(8, 5))


@pytest.mark.parametrize("levels", [(0.0,), (101.0,), ()])
def test_bad_levels_are_refused(levels: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="levels"):
        RobustnessSr.Options(levels=levels)
    assert RobustnessSr.Options(levels="5,50").levels == (5, 50)  # type: ignore[arg-type]
