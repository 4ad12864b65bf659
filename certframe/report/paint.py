"""Arrays to pictures: the colours of the report, of the figures and of the notebook, in one place.

Everything here returns Pillow images at the array's own resolution; whoever shows them scales them without smoothing.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from torch import Tensor

Colour = tuple[int, int, int]

IMPORTANT: Colour = (213, 94, 0)
"""Vermilion; with the blue-grey below it is told apart with any colour vision, and in grey by its lightness."""
UNIMPORTANT: Colour = (150, 172, 200)
ABSTAIN_LIGHT: Colour = (246, 246, 244)
ABSTAIN_DARK: Colour = (222, 222, 218)
"""Abstention is drawn as hatching of these two: no colour, because nothing is claimed."""
OVERLAY_OPACITY = 0.75
GREY_OPACITY = 0.7
"""How much of the picture is left, over white, under the overlay."""


@dataclass(frozen=True)
class Heat:
    """A map of numbers as a picture, with the values at the ends of its colour bar.

    Attributes:
        image: palette image (h,w); where there is no number it is transparent.
        low: value of the first colour.
        high: value of the last colour.
        clipped: whether some values lie beyond `high` (or below `low`): a few extreme pixels do not hide the rest.
        scale: name of the colour scale, see `colour_bar`.
    """

    image: Image.Image
    low: float
    high: float
    clipped: bool = False
    scale: str = "one-sided"


def picture(image: Tensor | np.ndarray) -> Image.Image:
    """(C,H,W) in [0, 1] → RGB image; one channel becomes grey, and so does the mean of any other number but three."""
    array = _numpy(image)
    if array.shape[0] != 3:
        array = array.mean(axis=0, keepdims=True).repeat(3, axis=0)
    return Image.fromarray(np.rint(np.clip(array, 0.0, 1.0) * 255.0).astype(np.uint8).transpose(1, 2, 0))


def heat(values: Tensor | np.ndarray) -> Heat:
    """(h,w) map → colours from dark to light; a map with negative values gets a two-sided scale centred on zero.

    The scale ends at the 99.5th percentile (of the magnitude, if signed) when the maximum lies far beyond it.
    """
    array = _numpy(values).astype(np.float64)
    signed = bool((array < 0.0).any())
    size = np.abs(array)
    top, typical = float(size.max()), float(np.percentile(size, 99.5))
    high = typical if top > 1.5 * typical > 0.0 else top
    low = -high if signed else float(array.min())
    span = high - low
    scaled = (array - low) / span if span > 0.0 else np.zeros_like(array)
    index = np.rint(np.clip(scaled, 0.0, 1.0) * 255.0).astype(np.uint8)
    scale = "two-sided" if signed else "one-sided"
    return Heat(_indexed(index, colours(scale)), low, high, clipped=top > high, scale=scale)


def measure(values: np.ndarray, low: float, high: float, scale: str = "measure", *, logarithmic: bool = False) -> Heat:
    """(h,w) values between `low` and `high` → colours; NaN and infinite values are transparent.

    Other colours than those of an attribution: what is measured here is proven.
    """
    known = np.isfinite(values)
    array, ends = np.where(known, values, low).astype(np.float64), (float(low), float(high))
    if logarithmic:
        array, ends = np.log(array), (float(np.log(low)), float(np.log(high)))
    span = ends[1] - ends[0]
    scaled = (array - ends[0]) / span if span > 0.0 else np.ones_like(array)
    index = 1 + np.rint(np.clip(scaled, 0.0, 1.0) * 254.0).astype(np.uint8)
    # One index is for "no number", so the palette has a colour less.
    palette = colours(scale)[np.rint(np.linspace(0, 255, 255)).astype(int)]
    return Heat(_indexed(np.where(known, index, 0).astype(np.uint8), np.concatenate([[(0, 0, 0)], palette]),
                         transparent=0), float(low), float(high), scale=scale)


def colours(scale: str) -> np.ndarray:
    """(256,3) uint8, lowest value first, of the scale ``one-sided``, ``two-sided``, ``measure`` or ``rank``."""
    if scale == "rank":
        return measured()[::-1]
    return {"one-sided": one_sided, "two-sided": two_sided, "measure": measured}[scale]()


def colour_bar(scale: str) -> Image.Image:
    """256×1 image of the scale, lowest value first."""
    return _indexed(np.arange(256, dtype=np.uint8)[None], colours(scale))


def label_map(labels: np.ndarray) -> Image.Image:
    """(h,w) labels in {1, 0, −1} → palette image; abstaining pixels are transparent."""
    return _indexed(np.where(labels < 0, 0, labels + 1).astype(np.uint8),
                    np.array([(0, 0, 0), UNIMPORTANT, IMPORTANT], np.uint8), transparent=0)


def overlay(labels: np.ndarray) -> Image.Image:
    """(L,h,w) labels → palette image with the colour of the last level at which a pixel is certified important.

    Pixels that are so at no level are transparent. The image itself is opaque elsewhere: it is shown over the grey
    picture at `OVERLAY_OPACITY`.
    """
    deepest = np.zeros(labels.shape[1:], np.uint8)
    for level, mask in enumerate(labels == 1):
        deepest[mask] = level + 1
    return _indexed(deepest, np.array([(0, 0, 0), *level_colours(len(labels))], np.uint8), transparent=0)


def band_overlay(labels: np.ndarray) -> Image.Image:
    """(L,h,w) labels of nested levels → palette image of where each pixel certainly is.

    A pixel that is certainly within some levels has the colour of the smallest of them, else one that is certainly
    outside some has the cold colour of the largest of those; the others are transparent.
    """
    levels = len(labels)
    place = np.zeros(labels.shape[1:], np.uint8)
    for level in reversed(range(levels)):
        place[labels[level] == 0] = levels + 1 + level
    for level in range(levels):
        place[labels[level] == 1] = level + 1
    return _indexed(place, np.array([(0, 0, 0), *level_colours(levels), *outside_colours(levels)], np.uint8),
                    transparent=0)


def outside_colours(levels: int) -> list[Colour]:
    """One cold colour per level, for what is certainly outside it: dark blue for the largest level, then paler."""
    t = np.linspace(0.0, 1.0, levels) if levels > 1 else np.zeros(1)
    rgb = _oklch(0.45 + 0.42 * t, 0.11 - 0.06 * t, np.full(levels, 255.0))
    return [(int(r), int(g), int(b)) for r, g, b in rgb]


def level_colours(levels: int) -> list[Colour]:
    """One colour per level, from light yellow (the first, usually largest) to dark red."""
    if levels == 1:
        return [IMPORTANT]
    t = np.linspace(0.0, 1.0, levels)
    rgb = _oklch(0.90 - 0.42 * t, 0.13 + 0.05 * t, 98.0 - 72.0 * t)
    return [(int(r), int(g), int(b)) for r, g, b in rgb]


def hatched(width: int, height: int, period: int = 6) -> Image.Image:
    """RGB image of diagonal hatching, the ground on which abstaining pixels show."""
    y, x = np.mgrid[:height, :width]
    stripe = (x + y) % period < max(1, period // 4)
    colours = np.where(stripe[..., None], np.array(ABSTAIN_DARK), np.array(ABSTAIN_LIGHT))
    return Image.fromarray(colours.astype(np.uint8))


def grey(image: Image.Image) -> Image.Image:
    """The picture in grey and paler (as RGB), so that an overlay is the only colour in it and stands out."""
    return Image.blend(Image.new("RGB", image.size, "white"), image.convert("L").convert("RGB"), GREY_OPACITY)


def enlarge(image: Image.Image, side: int) -> Image.Image:
    """Scale without smoothing so that the longer side has `side` pixels."""
    scale = side / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.NEAREST)


def hexadecimal(colour: Colour) -> str:
    """``#d55e00``, as CSS, matplotlib and Pillow read it."""
    return "#{:02x}{:02x}{:02x}".format(*colour)


def data_uri(image: Image.Image) -> str:
    """The image as a PNG data URI."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def one_sided() -> np.ndarray:
    """(256,3) uint8 from near-black violet to pale yellow, with perceptual lightness that grows linearly."""
    t = np.linspace(0.0, 1.0, 256)
    return _oklch(0.15 + 0.82 * t, 0.02 + 0.165 * np.sin(np.pi * t**0.85), 288.0 + 172.0 * t**1.1)


def two_sided() -> np.ndarray:
    """(256,3) uint8 from blue over near-white to red, symmetric in perceptual lightness."""
    t = np.linspace(-1.0, 1.0, 256)
    return _oklch(0.97 - 0.52 * np.abs(t), 0.165 * np.abs(t), np.where(t < 0.0, 255.0, 38.0))


def measured() -> np.ndarray:
    """(256,3) uint8 from dark blue over green to pale yellow, with perceptual lightness that grows linearly."""
    t = np.linspace(0.0, 1.0, 256)
    return _oklch(0.27 + 0.68 * t, 0.07 + 0.035 * np.sin(np.pi * t**1.6) + 0.02 * t, 282.0 - 176.0 * t)


def line_colours(lines: int) -> list[Colour]:
    """Colours of the lines of a chart, on a light or a dark ground.

    Up to six are told apart with any colour vision (after Okabe and Ito, *Color Universal Design*, 2008); more go round
    the hues in order.
    """
    chosen: list[Colour] = [(213, 94, 0), (0, 128, 200), (0, 158, 115), (204, 121, 167), (190, 155, 0), (86, 180, 233)]
    if lines <= len(chosen):
        return chosen[:lines]
    rgb = _oklch(np.full(lines, 0.62), np.full(lines, 0.13), np.linspace(20.0, 330.0, lines))
    return [(int(r), int(g), int(b)) for r, g, b in rgb]


def _oklch(lightness: np.ndarray, chroma: np.ndarray, hue: np.ndarray) -> np.ndarray:
    """OKLCH (Ottosson 2020; hue in degrees) to sRGB uint8, out-of-gamut values clipped."""
    a, b = chroma * np.cos(np.radians(hue)), chroma * np.sin(np.radians(hue))
    lms = np.stack([
        lightness + 0.3963377774 * a + 0.2158037573 * b,
        lightness - 0.1055613458 * a - 0.0638541728 * b,
        lightness - 0.0894841775 * a - 1.2914855480 * b,
    ]) ** 3
    to_rgb = np.array([
        [4.0767416621, -3.3077115913, 0.2309699292],
        [-1.2684380046, 2.6097574011, -0.3413193965],
        [-0.0041960863, -0.7034186147, 1.7076147010],
    ])
    linear = np.clip((to_rgb @ lms).T, 0.0, 1.0)
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1.0 / 2.4) - 0.055)
    return np.asarray(np.rint(encoded * 255.0).astype(np.uint8))


def _indexed(index: np.ndarray, colours: Sequence[Colour] | np.ndarray, transparent: int | None = None) -> Image.Image:
    image = Image.fromarray(index).convert("P")
    image.putpalette(np.asarray(colours).astype(np.uint8).tobytes())
    if transparent is not None:
        image.info["transparency"] = transparent
    return image


def _numpy(values: Tensor | np.ndarray) -> np.ndarray:
    return values if isinstance(values, np.ndarray) else values.detach().float().cpu().numpy()
