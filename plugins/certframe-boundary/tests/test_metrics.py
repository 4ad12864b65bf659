"""The metrics are the distances between the maps that the attributors give."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from certframe_boundary.metrics import Alignment, Boundary
from torch import nn

import certframe
from certframe.testing import fixtures
from certframe.testing.fixtures import rng


@pytest.fixture(scope="module")
def explained() -> certframe.Explanation:
    registry = certframe.default_registry()
    model = registry.find("model", "digits").load()()
    data = registry.find("dataset", "digits").load()()
    image = data.load(0).image
    return dataclasses.replace(fixtures.explanation(fixtures.tiny_model()), model=model, image=image,
                               target=int(model.module(image[None]).argmax()))


def by_name(name: str, explained: certframe.Explanation, **options: Any) -> torch.Tensor:
    kind = certframe.default_registry().find("attributor", name).load()
    assert explained.model is not None
    return kind(kind.Options(**options)).attribute(explained.model, explained.image[None],
                                                   torch.tensor([explained.target]), rng=rng([0])).maps[0]


def test_alignment_compares_the_methods_of_these_names(explained: certframe.Explanation) -> None:
    found = Alignment().compute(explained)
    pairs = {"sm-bsm": ("gradient", "bsm"), "ig-big": ("integrated-gradients", "big"),
             "ig-agi": ("integrated-gradients", "agi")}
    for name, (a, b) in pairs.items():
        one, other = by_name(a, explained), by_name(b, explained)
        assert found[f"alignment.{name}"] == pytest.approx(float((one - other).norm()), rel=1e-4)
        assert found[f"alignment.unit.{name}"] == pytest.approx(
            float((one / one.norm() - other / other.norm()).norm()), rel=1e-4)
    assert found["alignment.found"] == 1


def test_on_a_linear_model_saliency_is_that_of_the_boundary(explained: certframe.Explanation) -> None:
    layer = nn.Linear(64, 3)
    nn.init.normal_(layer.weight, generator=torch.Generator().manual_seed(0))
    model = certframe.TorchModel(nn.Sequential(nn.Flatten(), layer), (1, 8, 8))
    target = int(model.module(explained.image[None]).argmax())
    found = Alignment().compute(dataclasses.replace(explained, model=model, target=target))
    assert found["alignment.sm-bsm"] == 0
    assert found["alignment.unit.ig-big"] > 0


def test_boundary_says_what_was_found(explained: certframe.Explanation) -> None:
    found = Boundary().compute(explained)
    assert found["boundary.found"] == found["boundary.held"] == 1
    assert 0.1 < found["boundary.distance"] < 5
    other = dataclasses.replace(explained, target=(explained.target + 1) % 10)
    assert Boundary().compute(other) == {"boundary.found": 1, "boundary.distance": 0, "boundary.held": 0}


def test_boundary_says_when_nothing_was_found(explained: certframe.Explanation) -> None:
    layer = nn.Linear(64, 2)
    layer.weight.data, layer.bias.data = 0.001 * torch.ones(2, 64), torch.tensor([9.0, 0.0])
    layer.weight.data[1] *= 0.9
    model = certframe.TorchModel(nn.Sequential(nn.Flatten(), layer), (1, 8, 8))
    one = dataclasses.replace(explained, model=model, target=0)
    found = Boundary().compute(one)
    assert found["boundary.found"] == 0
    assert found["boundary.held"] == 1
    assert Alignment().compute(one)["alignment.found"] == 0
