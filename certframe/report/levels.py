"""The levels of a certificate as they are shown everywhere: name, map, colour, certified pixels."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image

from certframe.protocols import Explanation
from certframe.report import paint, slider, text


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
    if labels.ndim != 3 or not labels.size:
        return []
    return [Level(text.level_name(explanation, name), paint.label_map(level), rgb, one, zero, level.size)
            for name, level, rgb, (one, zero) in zip(explanation.certificate.levels, labels,
                                                     paint.level_colours(len(labels)), slider.count(labels),
                                                     strict=True)]
