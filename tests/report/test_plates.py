from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from certframe.report import paint, plates, text


def rgba(plate) -> np.ndarray:
    return np.asarray(plate.heat.image.convert("RGBA"))


def colour_at(scale: str, share: float) -> np.ndarray:
    return paint.colours(scale)[round(share * 255)].astype(int)


@pytest.mark.parametrize("kind", ["pixel", "adaptive", "importance-band", "class"])
def test_labels_alone_need_no_plates(every, kind):
    assert plates.rows(every(kind).explanation) == []


def test_radii_have_one_scale_for_all_levels_and_abstaining_pixels_none(every):
    explanation = every("radius").explanation
    radii = explanation.certificate.arrays["radius"]
    (row,) = plates.rows(explanation)
    top = np.nanmax(radii)
    assert row.hatched == "abstain"
    for plate, level in zip(row.plates, radii, strict=True):
        assert (plate.low, plate.high) == ("0", text.radius(top))
        shown = rgba(plate)
        for y, x in np.ndindex(level.shape):
            assert (shown[y, x, 3] == 0) == np.isnan(level[y, x])
            if not np.isnan(level[y, x]):
                assert np.abs(shown[y, x, :3] - colour_at("measure", level[y, x] / top)).max() <= 6


def test_ranks_are_logarithmic_and_those_without_a_bound_are_hatched(every):
    explanation = every("certified-rank").explanation
    ranks = explanation.certificate.arrays["rank"]
    (row,) = plates.rows(explanation)
    best = ranks.min()
    for plate, level in zip(row.plates, ranks, strict=True):
        assert (plate.low, plate.high) == (str(best), "192")
        assert f"best {level.min()} " in plate.detail[0]
        shown = rgba(plate)
        np.testing.assert_array_equal(shown[..., 3] == 0, level == 192)
        share = np.log(level / best) / np.log(192 / best)
        for y, x in zip(*np.nonzero(level < 192), strict=True):
            assert np.abs(shown[y, x, :3] - colour_at("rank", share[y, x])).max() <= 6


def test_infinite_ends_are_hatched(every):
    explanation = every("quantile").explanation
    arrays = explanation.certificate.arrays
    (row,) = plates.rows(explanation)
    assert row.title == "certified interval of the median"
    lower, upper, width = row.plates
    np.testing.assert_array_equal(rgba(lower)[..., 3] == 0, np.isinf(arrays["lower"]))
    np.testing.assert_array_equal(rgba(upper)[..., 3] == 0, np.isinf(arrays["upper"]))
    np.testing.assert_array_equal(rgba(width)[..., 3] == 0, np.isinf(arrays["lower"]) | np.isinf(arrays["upper"]))
    assert (lower.low, lower.high) == (upper.low, upper.high) == ("0.1", "0.9")


@pytest.mark.parametrize(("kind", "titles"), [
    ("top-k-overlap", ["smoothed map, as estimated: share over 100 copies"]),
    ("real overlap", ["smoothed map, as estimated: mean over 2000 copies"]),
    ("real rank", ["certified rank, 1 the most important; logarithmic colours",
                   "smoothed map, as estimated: mean over 2000 copies"])])
def test_the_smoothed_map_stands_in_for_labels(every, kind, titles):
    explanation = every(kind).explanation
    rows = plates.rows(explanation)
    assert [row.title for row in rows] == titles
    for plate, mean in zip(rows[-1].plates, explanation.tally.mean, strict=True):
        assert plate.heat.image.tobytes() == paint.heat(mean).image.tobytes()
        assert (mean >= 0).all()
        assert (mean <= 1).all()


def test_certificates_that_prove_nothing_are_shown_all_the_same(every):
    for kind, arrays in (("radius", {"radius": np.full((3, 12, 16), np.nan)}),
                         ("certified-rank", {"rank": np.full((3, 12, 16), 192)}),
                         ("quantile", {"lower": np.full((12, 16), -np.inf), "upper": np.full((12, 16), np.inf)})):
        explanation = every(kind).explanation
        bare = replace(explanation, certificate=replace(explanation.certificate, arrays=arrays))
        for plate in plates.rows(bare)[0].plates:
            assert (rgba(plate)[..., 3] == 0).all()
