from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from certframe.report import claim, text


@pytest.mark.parametrize(("kind", "expected"), [
    ("pixel", True), ("adaptive", True), ("radius", True), ("importance-band", True), ("class", True),
    ("top-k-overlap", False), ("certified-rank", False), ("quantile", False), ("real overlap", False)])
def test_labels_are_the_claim_unless_something_else_is(every, kind, expected):
    assert every(kind).explanation.certificate.about_labels is expected


def test_no_labels_are_no_claim(every):
    certificate = replace(every("pixel").explanation.certificate, labels=np.zeros((0, 0, 0), np.int8), levels=())
    assert not certificate.about_labels


def test_how_far_the_claim_reaches(every):
    assert claim.reach(every("pixel").explanation.certificate) == "R = 0.1012 (25.8/255)"
    assert claim.reach(every("top-k-overlap").explanation.certificate) == "ρ = 0.0300 (7.7/255)"
    radii = every("radius").explanation.certificate
    known = [r for r in radii.arrays["radius"].ravel() if not np.isnan(r)]
    assert claim.reach(radii) == f"R from {text.radius(min(known))} to {text.radius(max(known))}"
    nothing = replace(radii, arrays={"radius": np.full((3, 2, 2), np.nan)})
    assert claim.reach(nothing) == "no pixel has a radius"


def headline(panel, heading: str) -> dict[str, tuple[str, float]]:
    certificate = panel.explanation.certificate
    return {h.name: (h.unit, h.value) for h in claim.headlines(certificate, text.level_names(panel.explanation))
            if h.heading == heading}


def test_the_average_radius_counts_abstaining_pixels_as_nothing(every):
    panel = every("radius")
    found = headline(panel, "Average certified radius")
    for name, radii in zip(("top 50 %", "top 25 %", "top 5 %"), panel.explanation.certificate.arrays["radius"],
                           strict=True):
        expected = sum(r for r in radii.ravel() if not np.isnan(r)) / radii.size
        assert found[name] == ("radius", pytest.approx(expected))


def test_the_overlap_is_that_at_rho(every):
    example = every("real overlap")
    arrays = example.explanation.certificate.arrays
    at = list(arrays["rho"]).index(0.03)
    expected = arrays["overlap"][0, 1]
    assert expected[at - 1] > expected[at] > expected[at + 2]
    assert headline(example, "Certified overlap with the top K")["scaled, K = 20 %"] == ("share", expected[at])


def test_the_overlap_is_that_of_the_statement(panel, certifier):
    example = panel(certifier=certifier("top-k-overlap", k=[10, 30], rho=0.002))
    found = headline(example, "Certified overlap with the top K")
    statement = example.explanation.certificate.statement
    assert list(found) == [f"top {level} %, K = {k} %" for level in (50, 25, 5) for k in (10, 30)]
    for level in (50, 25, 5):
        unit, value = found[f"top {level} %, K = 10 %"]
        assert unit == "share"
        assert f"{value:.0%} at level {level}" in statement


def test_ranks_are_given_in_percent_of_the_pixels(every):
    panel = every("certified-rank")
    ranks = panel.explanation.certificate.arrays["rank"]
    found = headline(panel, "Best certified rank, in percent of the pixels")
    assert [value for _, value in found.values()] == [min(level.ravel()) / 192 for level in ranks]


def test_intervals_are_summed_up_by_their_widths(every):
    panel = every("quantile")
    arrays = panel.explanation.certificate.arrays
    widths = [u - low for low, u in zip(arrays["lower"].ravel(), arrays["upper"].ravel(), strict=True)]
    finite = sorted(w for w in widths if np.isfinite(w))
    found = headline(panel, "Certified intervals")
    assert 0 < len(finite) < len(widths)
    assert found["bounded pixels"] == ("share", len(finite) / len(widths))
    assert found["median width where bounded"] == ("number", pytest.approx(np.median(finite)))
    arrays = {"lower": np.full((2, 2), -np.inf), "upper": np.full((2, 2), np.inf)}
    unbounded = claim.headlines(replace(panel.explanation.certificate, arrays=arrays), [])
    assert unbounded[0].value == 0.0
    assert np.isnan(unbounded[1].value)


def test_copies_and_class(every):
    panel = every("class+adaptive")
    assert headline(panel, "Copies used") == {"of at most 544": ("number", 384.0)}
    assert headline(panel, "Certified class") == {"share of images": ("share", 1.0)}
    badge = claim.badge(panel.explanation)
    assert (badge.verdict, badge.detail) == ("class certified", "384 of 384 votes, R = 0.1012 (25.8/255)")
    assert claim.badge(every("pixel").explanation) is None


def test_a_class_with_too_few_votes_is_not_certified(panel, certifier, tally):
    example = panel(certifier=certifier("class", joint="radius"), tally=tally(right=60))
    badge = claim.badge(example.explanation)
    assert (badge.verdict, badge.votes, badge.certified) == ("class not certified", 60, False)
    assert badge.radius == pytest.approx(0.1012, abs=1e-4), "of its own τ, although every pixel has a radius"


@pytest.mark.parametrize(("kind", "expected"), [
    ("pixel", "all 3 hold together with probability at least 0.997"), ("importance-band", "All 3 levels hold jointly"),
    ("class", "all 3 hold together with probability at least 0.997"), ("radius", "may be chosen after looking"),
    ("top-k-overlap", "every K and every ρ hold at once"), ("certified-rank", "probability at least 0.85")])
def test_what_holds_together(every, kind, expected):
    assert expected in " ".join(claim.validity(every(kind).explanation.certificate))


def test_what_holds_together_with_family_all(panel):
    assert claim.validity(panel(family="all").explanation.certificate) == [
        "All 3 levels hold jointly with this confidence."]
    assert claim.validity(panel(levels=1).explanation.certificate) == []


def test_bands_are_read_pixel_by_pixel(every):
    panel = every("importance-band")
    certificate, names = panel.explanation.certificate, ["top 50 %", "top 25 %", "top 5 %"]
    expected: dict[str, int] = {}
    for y, x in np.ndindex(12, 16):
        labels = certificate.labels[:, y, x]
        within = [name for name, label in zip(names, labels, strict=True) if label == 1][-1:]
        outside = [name for name, label in zip(names, labels, strict=True) if label == 0][:1]
        words = ", ".join([f"within {name}" for name in within] + [f"outside {name}" for name in outside])
        expected[words or "undecided"] = expected.get(words or "undecided", 0) + 1
    found = claim.bands(certificate, names)
    assert dict(found) == {words: count / 192 for words, count in expected.items()}
    assert len(found) > 4
    order = [words for words, _ in found]
    assert order.index("outside top 50 %") > max(i for i, words in enumerate(order) if words.startswith("within"))
