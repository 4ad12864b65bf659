from __future__ import annotations

import numpy as np
import pytest
import torch
from linear import explained, linear_model
from pydantic import ValidationError

from certframe.errors import UsageError
from certframe.metrics.deletion import Deletion, Insertion, area, path_scores, step_sizes
from certframe.metrics.pixels import Draws, positions
from certframe.testing.fixtures import tiny_model

WEIGHTS = torch.linspace(-1, 1, 3 * 6 * 8).reshape(3, 6, 8).flip(1)
IMAGE = torch.rand(3, 6, 8, generator=torch.Generator().manual_seed(0))


def deletion(**options: object) -> Deletion:
    return Deletion(Deletion.Options(**options))


def insertion(**options: object) -> Insertion:
    return Insertion(Insertion.Options(**options))


def test_deletion_on_a_linear_score_is_a_sum_of_the_contributions_that_are_left():
    """Black baseline: after deleting the k most important pixels, the logit is the sum of the contributions left."""
    contributions = (WEIGHTS * IMAGE).sum(0)
    ordered = contributions.flatten().sort(descending=True).values.double()
    left = ordered.sum() - torch.cat([torch.zeros(1, dtype=torch.float64), ordered.cumsum(0)])
    found = deletion(steps=48, baseline=0, score="logit", curve=True).compute(
        explained(IMAGE, contributions, model=linear_model(WEIGHTS)))
    assert [found[f"deletion.score.{p}"] for p in ("0", "25", "50", "100")] == pytest.approx(
        left[[0, 12, 24, 48]].tolist(), abs=1e-5)
    assert found["deletion.auc"] == pytest.approx(float((left[:-1] + left[1:]).mean() / 2), abs=1e-5)


@pytest.mark.parametrize("inserts", [False, True])
@pytest.mark.parametrize(("steps", "batch"), [(7, 3), (48, 48), (1, 32), (90, 10)])
def test_one_image_and_one_pixel_at_a_time_gives_the_same(inserts: bool, steps: int, batch: int):
    model = tiny_model((3, 6, 8))
    importance = torch.rand(6, 8, generator=torch.Generator().manual_seed(1))
    options = {"steps": steps, "batch": batch, "curve": True, "seed": 3}
    metric = insertion(**options) if inserts else deletion(**options)
    found = metric.compute(explained(IMAGE, importance, model=model, target=2))

    baseline = Draws(3, IMAGE).uniform("baseline", 3, 6, 8)
    order = importance.flatten().argsort(descending=True)
    curve = []
    for step in range(steps + 1):
        image, other = (baseline, IMAGE) if inserts else (IMAGE, baseline)
        image = image.clone()
        for pixel in order[:int(step * 48 / steps + 0.5)]:
            image[:, pixel // 8, pixel % 8] = other[:, pixel // 8, pixel % 8]
        curve.append(float(model.module(image[None]).softmax(1)[0, 2]))
    assert list(found.values())[1:] == pytest.approx(curve, abs=1e-6)
    sizes = [int(step * 48 / steps + 0.5) / 48 for step in range(steps + 1)]
    slow = sum((b - a) * (x + y) / 2 for a, b, x, y in zip(sizes, sizes[1:], curve, curve[1:], strict=False))
    assert found[f"{metric.name}.auc"] == pytest.approx(slow, abs=1e-6)


def test_insertion_is_deletion_backwards_from_the_least_important():
    """Revealing the most important pixels first leaves the images that deleting the least important first leaves."""
    model = linear_model(WEIGHTS)
    importance = torch.rand(6, 8, generator=torch.Generator().manual_seed(1))
    forwards = insertion(steps=6, curve=True).compute(explained(IMAGE, importance, model=model))
    backwards = deletion(steps=6, curve=True).compute(explained(IMAGE, -importance, model=model))
    assert list(forwards.values())[1:] == pytest.approx(list(backwards.values())[:0:-1])


def test_the_right_order_beats_a_random_one_and_the_wrong_one():
    model, importance = linear_model(WEIGHTS), (WEIGHTS * IMAGE).sum(0)
    aucs = [deletion(baseline=0).compute(explained(IMAGE, m, model=model))["deletion.auc"]
            for m in (importance, importance * 0, -importance)]
    assert aucs == sorted(aucs)
    assert aucs[0] < aucs[1] < aucs[2]
    revealed = [insertion(baseline=0).compute(explained(IMAGE, m, model=model))["insertion.auc"]
                for m in (importance, importance * 0, -importance)]
    assert revealed[0] > revealed[1] > revealed[2]


def test_equal_scores_go_in_an_order_that_is_random_and_repeatable():
    place = positions(torch.zeros(20, 20), Draws(0, IMAGE))
    assert torch.equal(place, positions(torch.zeros(20, 20), Draws(0, IMAGE)))
    assert not torch.equal(place, positions(torch.zeros(20, 20), Draws(1, IMAGE)))
    assert not torch.equal(place, positions(torch.zeros(20, 20), Draws(0, IMAGE / 2)))
    assert sorted(place.flatten().tolist()) == list(range(400))
    assert abs(np.corrcoef(place.flatten().numpy(), np.arange(400))[0, 1]) < 0.2
    half = torch.cat([torch.ones(10, 20), torch.zeros(10, 20)])
    assert positions(half, Draws(0, IMAGE))[:10].max() == 199


def test_the_draws_do_not_come_from_global_state():
    explanation = explained(IMAGE, torch.zeros(6, 8), model=tiny_model((3, 6, 8)))
    torch.manual_seed(1)
    first = deletion().compute(explanation)
    torch.manual_seed(2)
    torch.rand(5)
    assert deletion().compute(explanation) == first
    assert deletion(seed=1).compute(explanation) != first


def test_a_small_map_is_enlarged_as_the_kernel_enlarges_it():
    model, small = linear_model(WEIGHTS), torch.rand(2, 4, generator=torch.Generator().manual_seed(1))
    large = torch.nn.functional.interpolate(small[None, None], size=(6, 8), mode="bilinear", align_corners=False)[0, 0]
    assert deletion().compute(explained(IMAGE, small, model=model)) == \
        deletion().compute(explained(IMAGE, large, model=model))


def test_ranking():
    model = linear_model(WEIGHTS)
    signed = torch.rand(6, 8, generator=torch.Generator().manual_seed(1)) - 0.5
    assert deletion(ranking="magnitude").compute(explained(IMAGE, signed, model=model)) == \
        deletion().compute(explained(IMAGE, signed.abs(), model=model))


def test_a_map_with_a_value_for_every_channel_is_refused_in_one_line():
    with pytest.raises(UsageError, match=r"18×8 has no place on an image of 6×8.*channels=sum"):
        deletion().compute(explained(IMAGE, torch.zeros(18, 8), model=linear_model(WEIGHTS)))


def test_a_model_that_returns_nan_is_refused():
    with pytest.raises(UsageError, match="21 NaN or infinite scores"):
        deletion().compute(explained(IMAGE, torch.zeros(6, 8), model=linear_model(WEIGHTS * torch.nan)))


@pytest.mark.parametrize("baseline", [-0.1, 1.1, "black"])
def test_baselines_are_uniform_or_a_pixel_value(baseline: object):
    with pytest.raises(ValidationError):
        Deletion.Options(baseline=baseline)


def test_the_number_of_evaluations_is_steps_plus_one():
    model, seen = tiny_model((3, 6, 8)), []
    model.module.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    deletion(steps=9, batch=4).compute(explained(IMAGE, torch.zeros(6, 8), model=model))
    assert seen == [4, 4, 2]


def test_steps_and_area():
    assert step_sizes(10, 4).tolist() == [0, 3, 5, 8, 10]
    assert area(np.array([0.0, 0.5, 1.0]), np.array([1.0, 0.5, 0.0])) == 0.5
    curve = path_scores(linear_model(WEIGHTS), IMAGE, IMAGE, torch.arange(48).view(6, 8), 0, steps=5, inserts=False)
    assert np.ptp(curve) == 0.0  # nothing changes when the image replaces itself


@pytest.mark.parametrize("side", [7, 8])
def test_quantus_finds_the_same_curve(side: int):
    """Its pixel flipping replaces the most important pixels first; ours has the same images at every step."""
    quantus = pytest.importorskip("quantus", reason="quantus is not installed; it is heavy, and only compared with")
    model = tiny_model((1, side, side))
    image = torch.rand(1, side, side, generator=torch.Generator().manual_seed(2))
    importance = torch.rand(side, side, generator=torch.Generator().manual_seed(3))
    step = side  # pixels at a time
    metric = quantus.PixelFlipping(features_in_step=step, perturb_baseline=0.0, abs=False, normalise=False,
                                   display_progressbar=False, disable_warnings=True)
    theirs = metric(model=model.module, x_batch=image[None].numpy(), y_batch=np.array([1]),
                    a_batch=importance[None, None].numpy(), device="cpu", softmax=True)[0]
    ours = path_scores(model, image, torch.zeros_like(image), positions(importance, Draws(0, image)), 1, steps=side,
                       inserts=False)
    assert ours[1:] == pytest.approx(np.asarray(theirs).ravel(), abs=1e-5)
