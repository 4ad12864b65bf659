from __future__ import annotations

import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image

from certframe.report import paint


def luminance(colours: np.ndarray) -> np.ndarray:
    return np.asarray(colours, float) @ np.array([0.2126, 0.7152, 0.0722])


def test_labels_become_three_distinct_colours():
    labels = np.array([[1, 0, -1], [0, 0, 1]], np.int8)
    pixels = np.asarray(paint.label_map(labels).convert("RGBA"))
    assert pixels.shape == (2, 3, 4)
    for y, x in np.ndindex(labels.shape):
        expected = {1: (*paint.IMPORTANT, 255), 0: (*paint.UNIMPORTANT, 255)}.get(int(labels[y, x]), (0, 0, 0, 0))
        assert tuple(pixels[y, x]) == expected


def test_label_colours_differ_in_grey_too():
    important, unimportant, abstain = luminance(np.array([paint.IMPORTANT, paint.UNIMPORTANT, paint.ABSTAIN_LIGHT]))
    assert important + 30 < unimportant < abstain - 30


def test_overlay_shows_the_last_level_that_is_certified_important():
    labels = np.array([[[1, 1, 1, 0]], [[1, 1, 0, 0]], [[1, -1, 1, -1]]], np.int8)
    pixels = np.asarray(paint.overlay(labels).convert("RGBA"))[0]
    colours = paint.level_colours(3)
    assert [tuple(p) for p in pixels[:3]] == [(*colours[i], 255) for i in (2, 1, 2)]
    assert pixels[3, 3] == 0


@pytest.mark.parametrize("levels", [1, 2, 3, 8])
def test_level_colours_get_darker(levels):
    values = luminance(np.array(paint.level_colours(levels)))
    assert len(values) == levels
    assert (np.diff(values) < 0).all()


@pytest.mark.parametrize("lines", [1, 3, 6, 7, 16])
def test_lines_of_a_chart_have_colours_of_their_own_on_light_and_dark(lines):
    colours = paint.line_colours(lines)
    assert len(set(colours)) == lines
    assert all(50 < shade < 200 for shade in luminance(np.array(colours)))


def test_levels_that_a_pixel_is_outside_of_get_paler():
    assert (np.diff(luminance(np.array(paint.outside_colours(4)))) > 0).all()
    red, _, blue = np.array(paint.outside_colours(4)).T
    assert (blue > red).all(), "cold, unlike those that a pixel is within"


def test_bands_pixel_by_pixel():
    within, outside = paint.level_colours(3), paint.outside_colours(3)
    cases = [((1, 1, 1), within[2]), ((1, 1, 0), within[1]), ((1, -1, 0), within[0]), ((0, 0, 0), outside[0]),
             ((-1, 0, 0), outside[1]), ((-1, -1, 0), outside[2]), ((-1, -1, -1), None)]
    labels = np.array([labels for labels, _ in cases], np.int8).T[:, None]
    pixels = np.asarray(paint.band_overlay(labels).convert("RGBA"))[0]
    for pixel, (_, colour) in zip(pixels, cases, strict=True):
        assert tuple(pixel) == (*colour, 255) if colour else pixel[3] == 0


@pytest.mark.parametrize("logarithmic", [False, True])
def test_measures_reach_from_end_to_end_and_leave_out_what_is_no_number(logarithmic):
    values = np.array([[1.0, 10.0, 100.0, np.nan, np.inf, -np.inf, 1000.0]])
    measured = paint.measure(values, 1.0, 100.0, logarithmic=logarithmic)
    pixels, scale = np.asarray(measured.image.convert("RGBA"))[0], paint.colours("measure")
    assert tuple(pixels[0, :3]) == tuple(scale[0])
    assert tuple(pixels[2, :3]) == tuple(pixels[6, :3]) == tuple(scale[255])
    middle = 127.5 if logarithmic else 255 * 9 / 99
    assert np.abs(pixels[1, :3] - scale[round(middle)].astype(int)).max() <= 4
    assert [int(alpha) for alpha in pixels[:, 3]] == [255, 255, 255, 0, 0, 0, 255]


def test_colour_scales_are_monotone_in_lightness():
    every_fourth = np.arange(0, 256, 4)
    assert (np.diff(luminance(paint.one_sided())[every_fourth]) > 0).all()
    assert (np.diff(luminance(paint.measured())[every_fourth]) > 0).all()
    assert (paint.colours("rank") == paint.measured()[::-1]).all()
    two = luminance(paint.two_sided())[every_fourth]
    assert (np.diff(two[:32]) > 0).all()
    assert (np.diff(two[32:]) < 0).all()


def test_heat_puts_the_extremes_at_the_ends_of_the_scale():
    heat = paint.heat(torch.tensor([[0.0, 1.0], [2.0, 4.0]]))
    assert (heat.low, heat.high, heat.clipped) == (0.0, 4.0, False)
    assert np.asarray(heat.image).tolist() == [[0, 64], [128, 255]]


def test_heat_centres_signed_maps_on_zero():
    heat = paint.heat(np.array([[-1.0, 0.0, 2.0]]))
    assert (heat.low, heat.high) == (-2.0, 2.0)
    assert np.asarray(heat.image)[0, 1] in (127, 128)
    red, _, blue = np.asarray(heat.image.convert("RGB"))[0, 2].astype(int)
    assert red > blue


def test_heat_is_not_hidden_by_one_extreme_pixel():
    values = np.linspace(0.0, 1.0, 2500).reshape(50, 50)
    values[3, 4] = 1000.0
    heat = paint.heat(values)
    assert heat.clipped
    assert heat.high < 1.1


def test_heat_of_a_constant_map_is_one_colour():
    heat = paint.heat(np.full((3, 3), 0.5))
    assert len(np.unique(np.asarray(heat.image))) == 1
    assert (heat.low, heat.high) == (0.5, 0.5)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_pictures_of_any_number_of_channels_become_rgb(channels):
    image = torch.linspace(-0.2, 1.2, channels * 20).reshape(channels, 4, 5)
    picture = paint.picture(image)
    assert (picture.mode, picture.size) == ("RGB", (5, 4))
    if channels == 3:
        np.testing.assert_array_equal(np.asarray(picture),
                                      (image.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy())


def test_data_uri_holds_the_same_pixels():
    image = paint.label_map(np.random.default_rng(0).integers(-1, 2, (9, 7)).astype(np.int8))
    kind, data = paint.data_uri(image).split(",")
    assert kind == "data:image/png;base64"
    back = Image.open(io.BytesIO(base64.b64decode(data)))
    np.testing.assert_array_equal(np.asarray(back.convert("RGBA")), np.asarray(image.convert("RGBA")))


def test_enlarging_keeps_pixels_square_and_sharp():
    image = paint.enlarge(paint.picture(torch.eye(8)[None]), 64)
    assert image.size == (64, 64)
    expected = np.kron(np.eye(8), np.ones((8, 8))) * 255
    np.testing.assert_array_equal(np.asarray(image)[..., 0], expected)
