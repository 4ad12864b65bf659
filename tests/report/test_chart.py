from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from certframe.report import chart

KINDS = ("radius", "adaptive", "top-k-overlap", "certified-rank", "quantile", "real overlap", "class+adaptive")


def drawn(panel) -> chart.Chart:
    (only,) = chart.charts(panel.explanation, panel.certifier)
    return only


def value(line: chart.Line, x: float) -> float:
    """The curve's height just right of x, read off its corners."""
    corners = line.points
    before = [corner for corner in corners if corner[0] <= x + 1e-12][-1]
    after = next((corner for corner in corners if corner[0] > x + 1e-12), before)
    assert before[1] == after[1], "between its corners the curve is level"
    return before[1]


@pytest.mark.parametrize("kind", ["pixel", "importance-band", "class"])
def test_one_radius_and_one_look_need_no_curve(every, kind):
    panel = every(kind)
    assert chart.charts(panel.explanation, panel.certifier) == []


def test_the_area_within_every_radius(every):
    panel = every("radius")
    curve = drawn(panel)
    for line, radii in zip(curve.lines, panel.explanation.certificate.arrays["radius"], strict=True):
        for r in np.linspace(0.0, np.nanmax(radii), 40):
            expected = sum(1 for value_ in radii.ravel() if value_ > r + 1e-12) / radii.size
            assert value(line, float(r)) == pytest.approx(expected)
    assert curve.follows_slider


def test_overlap_is_nowhere_above_what_is_proven(panel, certifier):
    example = panel(certifier=certifier("top-k-overlap", k=[10, 40], rho=0.0421))
    arrays = example.explanation.certificate.arrays
    curve = drawn(example)
    flat = arrays["overlap"].reshape(-1, len(arrays["rho"]))
    assert [line.name for line in curve.lines][:2] == ["top 50 %, K = 10 %", "top 50 %, K = 40 %"]
    for line, proven in zip(curve.lines, flat, strict=True):
        for x, y in line.points:
            later = arrays["rho"] >= x - 1e-12
            assert y <= max(proven[later]) + 1e-12
        between = (arrays["rho"][3] + arrays["rho"][4]) / 2
        assert value(line, between) == proven[4]
    assert (curve.mark, curve.mark_name) == (0.0421, "ρ = 0.0421")


def test_each_look_is_what_would_have_been_certified_by_stopping_there(adaptive_tally, panel, certifier):
    adaptive = certifier("adaptive")
    curve = drawn(panel(certifier=adaptive, tally=adaptive_tally(544, 384, seed=3)))
    for look in (96, 136, 192, 272, 384):
        alone = adaptive.certify(adaptive_tally(544, look, seed=3))
        # The same draws: those of a look do not depend on how many follow.
        np.testing.assert_array_equal(alone_counts(adaptive_tally, look), alone_counts(adaptive_tally, 384, look))
        for level, line in enumerate(curve.lines):
            share = float((alone.labels[level] >= 0).mean())
            assert ([y for x, y in line.points if x == look][-1]) == pytest.approx(share)
    assert curve.lines[0].points[1] == (96.0, 0.0), "nothing is certified before the first look"
    assert (curve.unused_from, curve.x_max, curve.ticks) == (384.0, 544.0, [96.0, 136.0, 192.0, 272.0, 384.0, 544.0])


def alone_counts(adaptive_tally, stop, upto=None):
    tally = adaptive_tally(544, stop, seed=3)
    return tally.counts if upto is None else tally.upto(upto)


def test_nothing_is_unused_when_all_copies_were_drawn(adaptive_tally, panel, certifier):
    curve = drawn(panel(certifier=certifier("adaptive"), tally=adaptive_tally(272, 272)))
    assert (curve.unused_from, curve.mark) == (None, None)


def test_pixels_by_rank_and_by_width(every):
    panel = every("certified-rank")
    for line, ranks in zip(drawn(panel).lines, panel.explanation.certificate.arrays["rank"], strict=False):
        for share in (0.2, 0.45, 0.7, 0.99):
            expected = sum(1 for r in ranks.ravel() if r < 192 and r / 192 <= share) / 192
            assert value(line, share) == pytest.approx(expected)
    panel = every("quantile")
    arrays = panel.explanation.certificate.arrays
    widths = (arrays["upper"] - arrays["lower"]).ravel()
    (line,) = drawn(panel).lines
    for width in (0.05, 0.15, 0.25, 0.302):
        assert value(line, width) == pytest.approx(sum(1 for w in widths if w <= width) / 192)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("narrow", [False, True])
def test_everything_is_inside_the_drawing(every, kind, narrow):
    curve = drawn(every(kind))
    curve = curve.narrow() if narrow else curve
    corners = [curve.at(x, y) for line in curve.lines for x, y in line.points]
    corners += [curve.at(x, 0.0) for x, _ in curve.x_ticks] + [curve.at(0.0, y) for y, _ in curve.y_ticks]
    assert all(curve.LEFT - 0.1 <= x <= curve.width - curve.RIGHT + 0.1 for x, _ in corners)
    assert all(curve.TOP - 0.1 <= y <= curve.height - curve.BOTTOM + 0.1 for _, y in corners)
    assert sum(bool(text) for _, text in curve.x_ticks) >= 2
    written = [curve.at(x, 0.0)[0] for x, text in curve.x_ticks if text]
    assert min(np.diff(written)) > 30, "labels do not run into each other"


@pytest.mark.parametrize(("x_max", "expected"), [
    (0.15, ["0", "0.05", "0.1", "0.15"]), (1.0, ["0", "0.5", "1"]), (0.31, ["0", "0.2"]),
    (2400.0, ["0", "1000", "2000"]), (0.0, [])])
def test_ticks_are_round_numbers(x_max, expected):
    line = chart.Line("a", (0, 0, 0), [0.0, x_max], [1.0, 0.0])
    wide = x_max == 0.15
    found = chart.Chart("t", "x", "y", [line], x_max, wide=wide, compact=wide)
    assert [text for _, text in found.x_ticks] == expected


def test_a_certificate_of_nothing_has_a_curve_or_none(every):
    explanation = every("radius").explanation
    nothing = replace(explanation.certificate, arrays={"radius": np.full((3, 12, 16), np.nan)})
    assert chart.charts(replace(explanation, certificate=nothing)) == []
