from __future__ import annotations

import base64
import zlib
from dataclasses import replace

import numpy as np
import pytest

from certframe.certifiers.adaptive import Adaptive
from certframe.report import claim, slider


def unpack(data, shape):
    return np.frombuffer(zlib.decompress(base64.b64decode(data.codes)), f"<u{data.width}").reshape(shape)


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


@pytest.mark.parametrize(("n", "width"), [(100, 1), (127, 1), (128, 2), (32767, 2), (32768, 4)])
def test_votes_survive_packing_for_any_number_of_copies(panel, n, width):
    counts = np.linspace(0, n, 60).astype(np.int64).reshape(1, 6, 10)
    example = panel(n=n, counts=counts, shape=(6, 10))
    data = slider.make(example.certifier, example.explanation.certificate, example.explanation.tally)
    packed = unpack(data, (1, 6, 10))
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


def decode(data, shape, at):
    """(L,h,w) labels at a position, by the definition of the codes: pixel by pixel, as the page does it."""
    codes = unpack(data, shape)
    labels = np.full(shape, 7)
    for level, y, x in np.ndindex(shape):
        code = int(codes[level, y, x])
        if data.table:
            labels[level, y, x] = "-01".index(data.table[code][at]) - 1
        else:
            labels[level, y, x] = code % 2 if code // 2 >= data.thresholds[at][level] else -1
    return labels


@pytest.mark.parametrize("kind", ["adaptive", "class+adaptive", "radius", "importance-band", "class", "class+radius"])
def test_at_every_position_the_codes_say_what_the_certifier_says(every, kind):
    example = every(kind)
    tally, certificate = example.explanation.tally, example.explanation.certificate
    data = slider.make(example.certifier, certificate, tally)
    assert bool(data.table) == ("adaptive" in kind)
    positions = range(0, len(data.taus), 1 if data.table else 7)
    for at in positions:
        found = decode(data, certificate.labels.shape, at)
        if claim.all_radii(certificate):
            within = certificate.arrays["radius"] >= data.radii[at]
            expected = np.where(within, certificate.labels, -1)
        else:
            cls = type(example.certifier)
            other = cls(cls.Options(**{**certificate.options, "tau": data.taus[at]})).certify(tally)
            expected = other.labels
            assert data.radii[at] == pytest.approx(other.radius, abs=1e-12)
            if "class" in other.arrays:
                assert data.classes[at] == bool(other.arrays["class"][2])
        np.testing.assert_array_equal(found, expected)
        assert data.areas[at] == slider.count(found)
    np.testing.assert_array_equal(decode(data, certificate.labels.shape, data.own), certificate.labels)
    assert len({str(data.areas[at]) for at in positions}) > 4, "the slider changes something"


@pytest.mark.parametrize("options", [{}, {"step_down": False}, {"spending": "union"}, {"tau": 0.7312}])
@pytest.mark.parametrize("stop", [96, 192, 544])
def test_an_adaptive_decision_at_every_look_and_tau(options, stop, adaptive_tally):
    tally = adaptive_tally(544, stop, seed=stop, cross=stop > 96)
    certifier = Adaptive(Adaptive.Options(**options))
    data = slider.make(certifier, certifier.certify(tally), tally)
    assert data.taus[data.own] == options.get("tau", 0.75)
    assert data.width == 1
    for at, tau in enumerate(data.taus):
        other = Adaptive(Adaptive.Options(**{**options, "tau": tau}))
        np.testing.assert_array_equal(decode(data, tally.segments.shape[1:], at), other.certify(tally).labels)


def test_radii_by_votes_are_those_of_the_certificate(every):
    example = every("radius")
    tally, certificate = example.explanation.tally, example.explanation.certificate
    data = slider.make(example.certifier, certificate, tally)
    _, votes = example.certifier.evidence(tally)
    for count, radius in zip(votes.ravel(), certificate.arrays["radius"].ravel(), strict=True):
        shown = data.vote_radii[count]
        assert (shown is None) == np.isnan(radius)
        assert shown is None or shown == pytest.approx(radius, abs=1e-6)


@pytest.mark.parametrize("kind", ["top-k-overlap", "certified-rank", "quantile", "real overlap"])
def test_no_slider_for_claims_without_tau(every, kind):
    example = every(kind)
    assert slider.make(example.certifier, example.explanation.certificate, example.explanation.tally) is None


def test_codes_of_an_adaptive_certificate_are_small(adaptive_tally):
    tally = adaptive_tally(1000, 544, shape=(64, 64))
    certifier = Adaptive()
    data = slider.make(certifier, certifier.certify(tally), tally)
    assert len(data.codes) < 3 * 64 * 64, "less than a byte for a pixel and level"
