"""A workbench explains and counts as the run did."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import certframe
from certframe.errors import UsageError


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return certframe.run(tmp_path_factory.mktemp("bench") / "run", model="digits", dataset="digits",
                         attributor=["gradient", "grad-cam"], limit=1, samples=70, device="cpu")


@pytest.fixture(scope="module")
def bench(run):
    return certframe.Workbench(run)


def test_the_seed_of_the_run_gives_its_own_counts(run, bench):
    for image, cell, _, explanation in run.explanations():
        again = bench.tally(cell, explanation.image, explanation.target, samples=70, seed=run.config.seed)
        np.testing.assert_array_equal(again.counts, run.tally(image, cell).counts)


def test_another_seed_gives_other_counts(run, bench):
    _, cell, _, explanation = next(run.explanations())
    again = bench.tally(cell, explanation.image, explanation.target, samples=70, seed=run.config.seed + 1)
    assert not np.array_equal(again.counts, explanation.tally.counts)


def test_maps_are_those_of_the_run_and_can_be_differentiated(run, bench):
    for _, cell, _, explanation in run.explanations():
        x = explanation.image[None].clone().requires_grad_()
        maps = bench.maps(cell, x, torch.tensor([explanation.target]))
        torch.testing.assert_close(maps[0].detach(), explanation.map)
        assert maps.requires_grad


def test_other_weights_are_refused(run):
    other = certframe.Run(run.path, run.config, {**run.provenance, "weights": "0" * 64})
    with pytest.raises(UsageError, match="has other weights than when"):
        certframe.Workbench(other)


def test_a_model_that_is_gone_is_named(run):
    config = run.config.model_copy(update={"model": run.config.model.model_copy(update={"name": "vanished"})})
    with pytest.raises(UsageError, match="unknown model 'certframe/vanished'"):
        certframe.Workbench(certframe.Run(run.path, config, run.provenance))
