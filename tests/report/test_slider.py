from __future__ import annotations

import base64
import zlib
from dataclasses import replace

import numpy as np
import pytest

from certframe.report import slider


@pytest.mark.parametrize("options", [{}, {"correction": "bonferroni"}, {"correction": "paper"}, {"family": "all"}])
def test_areas_are_the_areas_of_the_labels_at_every_tau(panel, options):
    example = panel(**options)
    tally = example.explanation.tally
    data = slider.make(example.certifier, example.explanation.certificate, tally)
    candidate, votes = example.certifier.evidence(tally)
    assert len(data.taus) == 50
    for tau, areas in zip(data.taus, data.areas, strict=True):
        needed = example.certifier.vote_thresholds(tally, tau)
        expected = []
        for level in range(3):
            one = zero = 0
            for c, v in zip(candidate[level].flat, votes[level].flat, strict=True):
                one += int(v >= needed[level] and c == 1)
                zero += int(v >= needed[level] and c == 0)
            expected.append((one, zero))
        assert areas == expected
    assert data.areas[0] != data.areas[-1]


def test_labels_at_any_tau_are_those_of_a_certifier_with_that_tau(panel):
    base = panel(tau=0.6)
    for tau in (0.5, 0.6, 0.7, 0.85):
        other = panel(tau=tau)
        data = slider.make(base.certifier, base.explanation.certificate, base.explanation.tally)
        thresholds = np.array(data.thresholds[list(data.taus).index(tau)])
        labels = slider.relabel(*base.certifier.evidence(base.explanation.tally), thresholds)
        np.testing.assert_array_equal(labels, other.explanation.certificate.labels)
        assert data.radii[list(data.taus).index(tau)] == pytest.approx(other.explanation.certificate.radius, abs=1e-12)


def test_own_tau_is_a_position_exactly_even_off_the_grid(panel):
    example = panel(tau=0.7312345)
    data = slider.make(example.certifier, example.explanation.certificate, example.explanation.tally)
    assert data.taus[data.own] == 0.7312345
    assert data.radii[data.own] == example.explanation.certificate.radius
    assert list(data.taus) == sorted(data.taus)
    assert len(data.taus) == 51


@pytest.mark.parametrize(("n", "width"), [(100, 2), (32767, 2), (32768, 4)])
def test_votes_survive_packing_for_any_number_of_copies(panel, n, width):
    counts = np.linspace(0, n, 60).astype(np.int64).reshape(1, 6, 10)
    example = panel(n=n, counts=counts, shape=(6, 10))
    data = slider.make(example.certifier, example.explanation.certificate, example.explanation.tally)
    packed = np.frombuffer(zlib.decompress(base64.b64decode(data.votes)), f"<u{data.width}").reshape(1, 6, 10)
    candidate, votes = example.certifier.evidence(example.explanation.tally)
    assert data.width == width
    np.testing.assert_array_equal(packed & 1, candidate)
    np.testing.assert_array_equal(packed >> 1, votes)


def test_no_slider_without_evidence(fixed_panel):
    example = fixed_panel()
    assert slider.make(example.certifier, example.explanation.certificate, example.explanation.tally) is None


def test_no_slider_when_the_evidence_contradicts_the_certificate(panel):
    example = panel()
    certificate = example.explanation.certificate
    labels = certificate.labels.copy()
    labels[0, 0, 0] = 1 if labels[0, 0, 0] != 1 else 0
    assert slider.make(example.certifier, certificate, example.explanation.tally) is not None
    assert slider.make(example.certifier, replace(certificate, labels=labels), example.explanation.tally) is None
