"""The levels of a certificate as they are shown everywhere: name, map, colour, certified pixels."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image

from certframe.protocols import Explanation
from certframe.report import claim, paint, slider, text


@dataclass(frozen=True)
class Level:
    """One level of a certificate.

    Attributes:
        name: ``top 25 %``.
        image: its label map.
        rgb: its colour in the overlay, with `colour` as hexadecimal text.
        ones: pixels certified important.
        zeros: pixels certified unimportant.
        pixels: all pixels.
    """

    name: str
    image: Image.Image
    rgb: paint.Colour
    ones: int
    zeros: int
    pixels: int

    @property
    def colour(self) -> str:
        """The colour in the overlay."""
        return paint.hexadecimal(self.rgb)

    @property
    def one(self) -> float:
        """The share of pixels certified important."""
        return self.ones / self.pixels

    @property
    def zero(self) -> float:
        """The share of pixels certified unimportant."""
        return self.zeros / self.pixels

    @property
    def caption(self) -> str:
        """``top 25 %: 43.1 % certified``."""
        return f"{self.name}: {text.percent(self.one + self.zero)} certified"


def levels(explanation: Explanation) -> list[Level]:
    """The levels of an explanation's certificate; none when it makes no claim about pixels."""
    labels = explanation.certificate.labels
    if not explanation.certificate.about_labels:
        return []
    return [Level(name, paint.label_map(level), rgb, one, zero, level.size)
            for name, level, rgb, (one, zero) in zip(text.level_names(explanation), labels,
                                                     paint.level_colours(len(labels)), slider.count(labels),
                                                     strict=True)]


def overlay(explanation: Explanation) -> Image.Image | None:
    """The overlay over the grey picture: pixels certified important, or the bands in which pixels certainly are.

    None when there are no labels, or when the map is not laid out as the picture is: one that keeps the channels apart,
    below each other, is three times as high.
    """
    certificate = explanation.certificate
    if not certificate.about_labels:
        return None
    channels, height, width = explanation.image.shape
    if channels > 1 and certificate.labels.shape[1:] == (channels * height, width):
        return None
    return (paint.band_overlay if claim.is_band(certificate) else paint.overlay)(certificate.labels)


def legend(explanation: Explanation) -> list[tuple[str, str]]:
    """Colour and meaning of what the overlay shows."""
    names, certificate = text.level_names(explanation), explanation.certificate
    within, outside = paint.level_colours(len(names)), paint.outside_colours(len(names))
    if not claim.is_band(certificate):
        return [(paint.hexadecimal(colour), name) for colour, name in zip(within, names, strict=True)]
    return [*((paint.hexadecimal(colour), f"within {name}") for colour, name in zip(within, names, strict=True)),
            *((paint.hexadecimal(colour), f"outside {name}") for colour, name in zip(outside, names, strict=True))]
