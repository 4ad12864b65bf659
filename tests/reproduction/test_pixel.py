"""What the page on pixel certificates says of made-up numbers."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from pages import fill
from pixel import PAGE, averaged, by_method, falls, leaders, telling

from certframe.comparing import Group, Value, summaries


def group(method: str, sigma: float = 0.15, layer: str = "input") -> Group:
    return Group("run", "imagenet:x", "lite0", method, "other", layer, sigma, "pixel", sigma * 0.6745)


def values(method: str, certified: list[float], important: list[float], sigma: float = 0.15) -> list[Value]:
    """One number for each image, at K = 50; at K = 10 half of it."""
    found = []
    for metric, numbers in (("certified", certified), ("certified1", important)):
        for i, number in enumerate(numbers):
            found += [Value(group(method, sigma), metric, level, f"image {i}", number * share)
                      for level, share in ((50.0, 1.0), (10.0, 0.5))]
    return found


NUMBERS = [value for sigma, factor in ((0.15, 1.0), (0.25, 0.5)) for value in (
    *values("lrp", [0.8 * factor, 0.6 * factor], [0.4, 0.3], sigma),
    *values("rise", [0.4 * factor, 0.5 * factor], [0.2, 0.0], sigma),
    *values("cam", [0.2, 0.2], [0.1, 0.1], sigma),
    *values("gradient", [1.0, 1.0, 1.0], [0.0, 0.0, 0.3], sigma))]


def test_the_mean_over_levels_is_that_of_each_image() -> None:
    found = {(v.group.method, v.image): v.value for v in averaged(NUMBERS, "certified") if v.group.sigma == 0.15}
    assert found["lrp", "image 0"] == pytest.approx(0.6)
    assert found["rise", "image 1"] == pytest.approx(0.375)
    assert all(math.isnan(v.level) for v in averaged(NUMBERS, "certified"))


def test_a_method_without_important_pixels_on_most_images_tells_nothing() -> None:
    assert {g.method for g in telling(NUMBERS)} == {"lrp", "rise", "cam"}


def test_the_order_with_the_lead_of_the_first() -> None:
    means, kept = averaged(NUMBERS, "certified"), telling(NUMBERS)
    found = [s for s in summaries(means) if s.group in kept]
    row = leaders(found, means, "certified, mean", [0.15]).splitlines()[2]
    assert "`lrp` 52.5, `rise` 33.8, `cam` 15.0" in row
    assert "18.7 (" in row or "18.8 (" in row, "the mean of .3 and .075 on the same images"
    assert "| 1 of 3 | 2 of 3 |" in row


def test_only_methods_that_tell_something_are_best() -> None:
    found = summaries(averaged(NUMBERS, "certified"))
    columns = [("all", lambda s: s.group.sigma == 0.15)]
    rows = by_method(found, columns, telling(NUMBERS)).splitlines()
    assert [row.split("|")[1].strip() for row in rows if "**" in row] == ["`lrp`"]
    assert any("75.0" in row and "**" not in row for row in rows)


def test_what_rises_is_named() -> None:
    found = summaries([*NUMBERS, *averaged(NUMBERS, "certified")])
    assert "input: 4 of 4" in falls(found, [0.15, 0.25], [50.0, 10.0]).splitlines()[0]
    rising = falls(found, [0.25, 0.15], [10.0, 50.0]).splitlines()
    assert "not of `lrp` (26.2, 52.5)" in rising[0]
    assert "input: 0 of 4" in rising[1]


def test_the_page_has_a_place_for_every_part() -> None:
    names = ["size", "robust", "localizing", "falls", *(f"{part}-{layer}" for part in (
        "areas", "pointing", "faithfulness") for layer in ("input", "final"))]
    assert "Not measured yet" not in fill(Path(PAGE).read_text(encoding="utf-8"), dict.fromkeys(names, "x"))
