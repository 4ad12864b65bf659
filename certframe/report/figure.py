"""One explanation as a picture: a matplotlib figure, a PNG file, or a fragment of HTML for a notebook."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw, ImageFont

from certframe.errors import UsageError
from certframe.files import disk_error
from certframe.protocols import Explanation
from certframe.report import paint, text
from certframe.report.levels import Level, levels
from certframe.report.templates import environment

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["compose", "figure", "snippet", "write_png"]


def title(explanation: Explanation) -> str:
    """Image, target, radius and confidence of the proof, in one line."""
    certificate = explanation.certificate
    return (f"{explanation.name}: {explanation.target_name}, "
            f"R = {text.radius(certificate.radius)}, confidence {certificate.confidence:.6g}")


def snippet(explanation: Explanation, *, side: int = 160) -> str:
    """A self-contained HTML fragment with pictures of `side` CSS pixels, for ``_repr_html_``."""
    picture, shown = paint.picture(explanation.image), levels(explanation)
    return environment().get_template("snippet.html").render(
        explanation=explanation, side=side, picture=picture, heat=paint.heat(explanation.map), levels=shown,
        overlay=paint.overlay(explanation.certificate.labels) if shown else None, grey=paint.grey(picture),
        opacity=paint.OVERLAY_OPACITY, important=paint.hexadecimal(paint.IMPORTANT),
        unimportant=paint.hexadecimal(paint.UNIMPORTANT))


def figure(explanation: Explanation, *, side: float = 2.2) -> Figure:
    """A matplotlib figure: picture, clean attribution, certified map of every level, overlay; `side` in inches a panel.

    It belongs to no pyplot state: save it with ``figure.savefig(…)``, or let a notebook show it.

    Raises:
        UsageError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
        from matplotlib.layout_engine import ConstrainedLayoutEngine
        from matplotlib.patches import Patch
    except ImportError as error:
        raise UsageError("plotting needs matplotlib, which is not installed: pip install 'certframe[plot]'") from error
    shown, heat, picture = levels(explanation), paint.heat(explanation.map), paint.picture(explanation.image)
    panels = [("picture", picture), ("attribution, clean", heat.image.convert("RGB")),
              *((level.caption.replace(": ", "\n"), _on_hatching(level.image, 448)) for level in shown)]
    if shown:
        panels.append(("certified important", _over(picture, paint.overlay(explanation.certificate.labels), 448)))
    result = Figure(figsize=(side * len(panels), side * 1.5),
                    layout=ConstrainedLayoutEngine(h_pad=0.07))
    for axes, (caption, image) in zip(result.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        axes.imshow(image, interpolation="nearest" if max(image.size) < 112 else "auto")
        axes.set_title(caption, fontsize=9)
        axes.set_xticks([])
        axes.set_yticks([])
        for spine in axes.spines.values():
            spine.set_edgecolor("#dcdcd6")
    abstain = Patch(facecolor=paint.hexadecimal(paint.ABSTAIN_LIGHT), edgecolor="#b4b4ae", hatch="//////")
    keys = [Patch(color=colour) for colour in _legend_colours(shown)]
    names = ["important", "unimportant", *(level.name for level in shown)]
    result.legend([*keys[:2], abstain, *keys[2:]], [*names[:2], "abstain", *names[2:]], loc="outside lower center",
                  ncols=len(names) + 1, fontsize=8, frameon=False, handlelength=1.0, handleheight=1.0)
    result.suptitle(title(explanation), fontsize=10)
    return result


def _legend_colours(shown: list[Level]) -> list[str]:
    return [paint.hexadecimal(paint.IMPORTANT), paint.hexadecimal(paint.UNIMPORTANT),
            *(level.colour for level in shown)]


def compose(explanation: Explanation, *, side: int = 224) -> Image.Image:
    """Picture, attribution, certified maps and overlay side by side, with captions and a legend, without matplotlib.

    Args:
        explanation: what to show.
        side: pixels of the longer side of each panel.
    """
    picture, shown = paint.picture(explanation.image), levels(explanation)
    panels = [("picture", _scale(picture, side)),
              ("attribution, clean", _scale(paint.heat(explanation.map).image.convert("RGB"), side)),
              *((level.caption, _on_hatching(level.image, side)) for level in shown)]
    if shown:
        panels.append(("certified important", _over(picture, paint.overlay(explanation.certificate.labels), side)))
    return _sheet(title(explanation), panels, shown, side)


def write_png(explanation: Explanation, path: Path, *, side: int = 224) -> None:
    """Save `compose` to a PNG file.

    Raises:
        CertframeError: the file cannot be written.
    """
    try:
        compose(explanation, side=side).save(path, "PNG", optimize=True)
    except OSError as error:
        raise disk_error(error, path) from error


def _sheet(heading: str, panels: list[tuple[str, Image.Image]], shown: list[Level], side: int) -> Image.Image:
    size = max(10, round(side / 18))
    font, gap, line = ImageFont.load_default(size), round(side / 14), round(size * 1.7)
    tall = max(image.height for _, image in panels)
    sheet = Image.new("RGB", (gap + (side + gap) * len(panels), 2 * gap + 2 * line + tall + 2 * line), "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((gap, gap), heading, "black", font)
    for i, (caption, image) in enumerate(panels):
        left, top = gap + i * (side + gap), gap + line + size // 2
        sheet.paste(image, (left, top))
        draw.rectangle((left, top, left + image.width - 1, top + image.height - 1), outline="#dcdcd6")
        draw.text((left, top + tall + size // 2), caption, "#444441", font)
    if shown:
        _legend(sheet, shown, (gap, sheet.height - gap - line), size, font)
    return sheet


def _legend(sheet: Image.Image, shown: list[Level], at: tuple[int, int], size: int,
            font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> None:
    draw, (x, y) = ImageDraw.Draw(sheet), at
    names = ["important", "unimportant", *(level.name for level in shown)]
    swatches = [Image.new("RGB", (size, size), colour) for colour in _legend_colours(shown)]
    names.insert(2, "abstain")
    swatches.insert(2, paint.hatched(size, size))
    for name, swatch in zip(names, swatches, strict=True):
        sheet.paste(swatch, (x, y + size // 5))
        draw.text((x + round(size * 1.4), y), name, "#444441", font)
        x += round(size * 3.0 + draw.textlength(name, font))


def _scale(image: Image.Image, side: int) -> Image.Image:
    """Pixels stay square and sharp when there are few; a photograph is resampled."""
    if max(image.size) < 112:
        return paint.enlarge(image, side)
    ratio = side / max(image.size)
    return image.resize((round(image.width * ratio), round(image.height * ratio)), Image.Resampling.LANCZOS)


def _on_hatching(labels: Image.Image, side: int) -> Image.Image:
    large = paint.enlarge(labels.convert("RGBA"), side)
    ground = paint.hatched(*large.size, period=max(6, side // 38))
    ground.paste(large, mask=large.getchannel("A"))
    return ground


def _over(picture: Image.Image, overlay: Image.Image, side: int) -> Image.Image:
    ground = paint.grey(_scale(picture, side))
    colours = overlay.convert("RGBA").resize(ground.size, Image.Resampling.NEAREST)
    mask = colours.getchannel("A").point(lambda alpha: round(alpha * paint.OVERLAY_OPACITY))
    ground.paste(colours, mask=mask)
    return ground
