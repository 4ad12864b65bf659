"""Pictures, colour bars and charts on one sheet, with Pillow alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from certframe.report import paint
from certframe.report.chart import Chart
from certframe.report.plates import Plate

INK, SOFT, LINE = "#1b1b1a", "#444441", "#dcdcd6"


@dataclass(frozen=True)
class Picture:
    """One picture of a figure, with its colour bar if it has one."""

    caption: str
    image: Image.Image
    plate: Plate | None = None


Cell = Picture | Chart


def compose(heading: str, rows: Sequence[Sequence[Cell]], legend: Sequence[tuple[str, Image.Image]],
            side: int) -> Image.Image:
    """A heading, rows of cells that are `side` pixels wide, and a legend of names and swatches."""
    size = max(10, round(side / 18))
    font, gap, line = ImageFont.load_default(size), round(side / 14), round(size * 1.7)
    columns = max(len(row) for row in rows)
    width = gap + (side + gap) * columns
    heights = [_height(row, side, line, width - 2 * gap) for row in rows]
    entries = _flow(legend, width - 2 * gap, size, font)
    sheet = Image.new("RGB", (width, 2 * gap + line + sum(heights) + gap * len(rows) + line * len(entries)), "white")
    pen = ImageDraw.Draw(sheet)
    pen.text((gap, gap), _fit(_plain(heading), width - 2 * gap, pen, font), INK, font)
    top = gap + line + size // 2
    for row, height in zip(rows, heights, strict=True):
        for i, cell in enumerate(row):
            left = gap + i * (side + gap)
            if isinstance(cell, Chart):
                across = width - 2 * gap if cell.wide else side
                sheet.paste(chart(cell, across, height - line, size), (left, top))
            else:
                _picture(sheet, cell, (left, top), side, size, line, font)
        top += height + gap
    for entry in entries:
        for name, swatch, x in entry:
            sheet.paste(swatch.resize((size, size), Image.Resampling.NEAREST), (gap + x, top + size // 5))
            pen.text((gap + x + round(size * 1.4), top), name, SOFT, font)
        top += line
    return sheet


Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def _height(row: Sequence[Cell], side: int, line: int, across: int) -> int:
    """Of a row with its captions and colour bars."""
    pictures = [cell for cell in row if isinstance(cell, Picture)]
    if not pictures:
        return round(across * 0.22) + line
    return max(cell.image.height for cell in pictures) + line * (3 if any(cell.plate for cell in pictures) else 1)


def _picture(sheet: Image.Image, cell: Picture, at: tuple[int, int], side: int, size: int, line: int,
             font: Font) -> None:
    pen, (left, top), image = ImageDraw.Draw(sheet), at, cell.image
    sheet.paste(image, at)
    pen.rectangle((left, top, left + image.width - 1, top + image.height - 1), outline=LINE)
    below = top + image.height + size // 3
    if cell.plate is not None:
        bar = paint.colour_bar(cell.plate.heat.scale).convert("RGB").resize((image.width, max(4, size // 2)))
        sheet.paste(bar, (left, below + 2))
        pen.text((left, below + size // 2 + 2), _plain(cell.plate.low), SOFT, font)
        pen.text((left + image.width, below + size // 2 + 2), _plain(cell.plate.high), SOFT, font, anchor="ra")
        below += line + size // 2
    pen.text((left, below), _fit(_plain(cell.caption), side, pen, font), SOFT, font)


def _fit(text: str, width: int, pen: ImageDraw.ImageDraw, font: Font) -> str:
    while pen.textlength(text, font) > width and len(text) > 4:
        text = text[:-2].rstrip() + "…"
    return text


def _flow(legend: Sequence[tuple[str, Image.Image]], width: int, size: int,
          font: Font) -> list[list[tuple[str, Image.Image, int]]]:
    """The entries of a legend in lines: name, swatch and abscissa of each."""
    pen, x = ImageDraw.Draw(Image.new("L", (1, 1))), width + 1.0
    lines: list[list[tuple[str, Image.Image, int]]] = []
    for name, swatch in legend:
        needed = size * 3.0 + pen.textlength(name, font)
        if x + needed > width:
            lines.append([])
            x = 0.0
        lines[-1].append((name, swatch, round(x)))
        x += needed
    return lines


def chart(drawn: Chart, width: int, height: int, size: int) -> Image.Image:
    """A chart of so many pixels with text of `size` pixels: axes, curves, mark, and a legend inside."""
    image, font = Image.new("RGB", (width, height), "white"), ImageFont.load_default(max(8, round(size * 0.85)))
    pen, small = ImageDraw.Draw(image), max(8, round(size * 0.85))
    left, right, top, bottom = 4 * small, width - small, 2 * small, height - 3 * small

    def at(x: float, y: float) -> tuple[float, float]:
        share = x / drawn.x_max if drawn.x_max > 0.0 else 0.0
        return left + share * (right - left), top + (1.0 - y) * (bottom - top)

    for y, label in drawn.y_ticks:
        pen.line([at(0.0, y), at(drawn.x_max, y)], LINE)
        pen.text((left - small / 2, at(0.0, y)[1]), label, SOFT, font, anchor="rm")
    for x, label in drawn.x_ticks:
        pen.line([at(x, 0.0), (at(x, 0.0)[0], bottom + small / 3)], SOFT)
        pen.text((at(x, 0.0)[0], bottom + small / 2), label, SOFT, font, anchor="mt")
    pen.text((right, height), _plain(drawn.x_name), INK, font, anchor="rb")
    pen.text((left, top - small / 2), drawn.y_name, INK, font, anchor="lb")
    if drawn.mark:
        pen.line([at(drawn.mark, 0.0), at(drawn.mark, 1.0)], SOFT)
        pen.text((at(drawn.mark, 1.0)[0] + 3, top), _plain(drawn.mark_name), INK, font, anchor="lt")
    for line in drawn.lines:
        pen.line([at(x, y) for x, y in line.points], line.rgb, max(1, size // 6))
    names = [_plain(f"{line.name}: {line.value}" if line.value else line.name) for line in drawn.lines]
    wide, high = max(pen.textlength(name, font) for name in names), len(names) * small * 1.25
    x, y = _free_corner(drawn, at, (left + small / 2, top + small / 4), (right - wide, bottom - high), (wide, high))
    for i, (name, line) in enumerate(zip(names, drawn.lines, strict=True)):
        pen.text((x, y + i * small * 1.25), name, line.rgb, font, anchor="lt")
    return image


def _free_corner(drawn: Chart, at: Callable[[float, float], tuple[float, float]], first: tuple[float, float],
                 last: tuple[float, float], box: tuple[float, float]) -> tuple[float, float]:
    """The corner of the axes in which a box hides least of the curves."""
    across = np.linspace(0.0, drawn.x_max, 200)
    points = np.array([at(x, y) for line in drawn.lines for x, y in zip(across, np.interp(across, line.x, line.y),
                                                                        strict=True)])
    corners = [(x, y) for y in (first[1], last[1]) for x in (last[0], first[0])]
    return min(corners, key=lambda c: int(((points >= c) & (points <= np.add(c, box))).all(axis=1).sum()))


def _plain(text: str) -> str:
    """Pillow's own font has no Greek."""
    return text.translate({ord(letter): name for letter, name in
                           {"ρ": "rho", "σ": "sigma", "τ": "tau", "−": "-", "≥": ">=", "≤": "<="}.items()})
