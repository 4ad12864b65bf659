"""What the checks feed plugins with is what the kernel would give them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from certframe import protocols
from certframe.protocols import ABSTAIN
from certframe.statistics.binomial import smoothing_radius, two_sided_p_values
from certframe.tally import REAL_UNIT
from certframe.testing import fixtures, run_checks


class Tiny(fixtures.TinyModel):
    """The tiny model as a plugin."""

    class Options(protocols.Options):
        """None."""

    def __init__(self, options):
        super().__init__(input_size=(1, 10, 14), classes=3, seed=7)


def test_the_tiny_model_passes_the_checks_of_models_at_any_size():
    report = run_checks("model", Tiny)
    assert report.ok, str(report)


def test_the_tiny_model_is_the_same_every_time_and_leaves_the_random_state_alone():
    state = torch.get_rng_state()
    first, again, other = fixtures.tiny_model(), fixtures.tiny_model(), fixtures.tiny_model(seed=1)
    images = fixtures.noisy_images(first, 2)
    assert torch.equal(first.module(images), again.module(images))
    assert not torch.allclose(first.module(images), other.module(images), rtol=0.1)
    assert torch.equal(state, torch.get_rng_state())


def test_the_tiny_model_behaves_like_a_trained_one():
    model = fixtures.tiny_model()
    images = fixtures.noisy_images(model, 64, sigma=0.0)
    logits = model.module(images)
    assert 0.1 < float(logits.std(0).mean()) < 10  # images differ
    features = model.module[:7](images)
    active = float((features > 0).float().mean())
    assert 0.2 < active < 0.8  # neither dead nor linear


def test_noisy_images_differ_and_leave_the_unit_range():
    images = fixtures.noisy_images(fixtures.tiny_model(), 3)
    assert images.shape == (3, 3, 16, 16)
    assert float(images.min()) < 0
    assert float(images.max()) > 1
    assert not torch.equal(images[0], images[1])


def test_the_rng_gives_each_copy_its_own_stream_in_any_batch():
    together, alone = fixtures.rng([4, 5, 6]).normal(3), fixtures.rng([5]).normal(3)
    assert torch.equal(together[1], alone[0])


def test_a_tally_counts_the_draws_between_cuts():
    draws = np.random.default_rng(0).random((20, 2, 3, 4)) < 0.4
    found = fixtures.tally(draws, cuts=(5, 12), planned=50)
    assert found.samples == 20
    assert found.planned == 50
    assert np.array_equal(found.counts, draws.sum(0))
    assert np.array_equal(found.upto(5), draws[:5].sum(0))
    assert np.array_equal(found.upto(12), draws[:12].sum(0))
    assert found.class_votes is not None
    assert found.class_votes.sum() == 20
    assert fixtures.tally(draws).planned == 20


def test_a_tally_before_its_cut_has_an_empty_segment_after_it():
    draws = np.ones((4, 1, 1, 1), dtype=bool)
    found = fixtures.tally(draws, cuts=(5, 12))
    assert found.segments.ravel().tolist() == [4, 0, 0]


def test_a_tally_of_real_levels_sums_them():
    draws = np.random.default_rng(0).random((20, 1, 2, 2))
    found = fixtures.tally(draws)
    assert found.unit == REAL_UNIT
    np.testing.assert_allclose(found.mean, draws.mean(0), atol=1e-8)


def test_an_explanation_has_every_label_and_an_honest_certificate():
    found = fixtures.explanation(extras={"boxes": 1})
    certificate, counts, n = found.certificate, found.tally.counts, found.tally.samples
    assert set(np.unique(certificate.labels)) == {0, 1, ABSTAIN}
    votes = np.maximum(counts, n - counts)
    certified = certificate.labels != ABSTAIN
    p = two_sided_p_values(n, 0.75)[votes]
    assert np.array_equal(certified, p <= 0.05 / found.tally.pixels)
    assert np.array_equal(certificate.labels == 1, certified & (2 * counts > n))
    assert certificate.radius == smoothing_radius(found.tally.sigma, 0.75)
    assert found.extras == {"boxes": 1}
    assert found.model is None
    assert tuple(found.map.shape) == certificate.labels.shape[1:]
    assert 0 <= float(found.image.min()) <= float(found.image.max()) <= 1


def test_an_unknown_layer_of_the_tiny_model_is_named():
    with pytest.raises(Exception, match="unknown layer 'nose'"):
        fixtures.tiny_model().at("nose")
