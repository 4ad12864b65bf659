from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from linear import explained, linear_model

from certframe.metrics.certified_faithfulness import CertifiedFaithfulness, ascending, most_important
from certframe.metrics.pixels import Draws, positions
from certframe.protocols import ABSTAIN
from certframe.testing.fixtures import tiny_model

WEIGHTS = torch.rand(3, 4, 5, generator=torch.Generator().manual_seed(5))
IMAGE = torch.rand(3, 4, 5, generator=torch.Generator().manual_seed(0))
P = "certified-faithfulness"


def metric(**options: object) -> CertifiedFaithfulness:
    return CertifiedFaithfulness(CertifiedFaithfulness.Options(**options))


def labelled() -> np.ndarray:
    """Levels 50 and 25; at 25 one pixel is certified that is not at 50, and stays removed."""
    labels = np.full((2, 4, 5), ABSTAIN, np.int8)
    labels[0, 0], labels[0, 1, :2] = 1, 1
    labels[1, 0, :2], labels[1, 3, 4] = 1, 1
    return labels


def test_on_a_linear_score_the_fall_is_the_sum_of_what_went():
    contributions = (WEIGHTS * IMAGE).sum(0)
    first = torch.zeros(4, 5, dtype=torch.bool)
    first[0, :2] = first[3, 4] = True
    second = first.clone()
    second[0] = second[1, :2] = True
    found = metric(baseline=0, score="logit").compute(
        explained(IMAGE, contributions, labels=labelled(), model=linear_model(WEIGHTS)))
    whole = float(contributions.sum())
    at25, at50 = whole - float(contributions[first].sum()), whole - float(contributions[second].sum())
    assert found[f"{P}.score.clean"] == pytest.approx(whole, abs=1e-5)
    assert found[f"{P}.score.25"] == pytest.approx(at25, abs=1e-5)
    assert found[f"{P}.score.50"] == pytest.approx(at50, abs=1e-5)
    assert found[f"{P}.drop"] == pytest.approx(whole - at25, abs=1e-5)
    assert found[f"{P}.area"] == pytest.approx(((whole + at25) / 2 * 25 + (at25 + at50) / 2 * 25) / 50, abs=1e-5)


def test_the_controls_remove_as_many_pixels():
    model = tiny_model((3, 4, 5))
    importance = torch.rand(4, 5, generator=torch.Generator().manual_seed(1))
    found = metric(seed=4, batch=3).compute(explained(IMAGE, importance, labels=labelled(), model=model, target=2))
    draws = Draws(4, IMAGE)
    baseline = draws.uniform("baseline", 3, 4, 5)

    def score(pixels: list[int]) -> float:
        image = IMAGE.clone()
        for pixel in pixels:
            image[:, pixel // 5, pixel % 5] = baseline[:, pixel // 5, pixel % 5]
        return float(model.module(image[None]).double().softmax(1)[0, 2])

    certified = [{0, 1, 19}, {0, 1, 2, 3, 4, 5, 6, 19}]
    by_importance = importance.flatten().argsort(descending=True).tolist()
    at_random = positions(torch.zeros(4, 5), draws).flatten().argsort().tolist()
    curves = {
        "": [score(sorted(c)) for c in certified],
        "random-": [score(at_random[:len(c)]) for c in certified],
        "uncertified-": [score([p for p in by_importance if p not in c][:len(c)]) for c in certified],
    }
    clean = score([])
    for kind, (one, two) in curves.items():
        assert found[f"{P}.{kind}drop"] == pytest.approx(clean - one, abs=1e-6)
        assert found[f"{P}.{kind}area"] == pytest.approx((clean / 2 + one + two / 2) / 2, abs=1e-6)


def test_nothing_certified_leaves_the_score_as_it_is():
    labels = np.full((2, 4, 5), ABSTAIN, np.int8)
    found = metric().compute(explained(IMAGE, torch.rand(4, 5), labels=labels, model=tiny_model((3, 4, 5))))
    assert found[f"{P}.drop"] == found[f"{P}.random-drop"] == found[f"{P}.uncertified-drop"] == 0.0
    assert found[f"{P}.area"] == pytest.approx(found[f"{P}.score.clean"])


def test_the_number_of_evaluations():
    model, seen = tiny_model((3, 4, 5)), []
    model.module.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    metric(batch=4).compute(explained(IMAGE, torch.zeros(4, 5), labels=labelled(), model=model))
    assert sum(seen) == 3 * 2 + 1
    assert max(seen) == 4


def test_levels_that_are_numbers_are_places_on_the_axis():
    assert ascending(("50", "25", "5")) == [(5.0, 2), (25.0, 1), (50.0, 0)]
    assert ascending(("0.1", "0.5")) == [(1.0, 1), (2.0, 0)]  # thresholds: the larger, the fewer pixels
    assert ascending(("most", "few")) == [(1.0, 1), (2.0, 0)]
    assert ascending(("all",)) == [(1.0, 0)]


def test_most_important_of_what_is_allowed():
    place = torch.tensor([[3, 0], [1, 2]])
    allowed = torch.tensor([[[True, False], [True, True]]])
    assert most_important(place, allowed, torch.tensor([2])).tolist() == [[[False, False], [True, True]]]
    assert most_important(place, allowed, torch.tensor([4])).tolist() == allowed.tolist()


def test_thresholds_are_levels_too():
    explanation = explained(IMAGE, torch.rand(4, 5), labels=labelled(), model=tiny_model((3, 4, 5)))
    certificate = replace(explanation.certificate, levels=("0.1", "0.5"))
    found = metric().compute(replace(explanation, certificate=certificate))
    assert {f"{P}.score.clean", f"{P}.score.0.5", f"{P}.score.0.1"} <= set(found)
