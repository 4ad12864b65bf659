"""One explanation as a picture: a matplotlib figure, a PNG file, or a fragment of HTML for a notebook."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from certframe.errors import UsageError
from certframe.files import disk_error
from certframe.protocols import Explanation
from certframe.report import chart, claim, levels, paint, plates, sheet
from certframe.report.chart import Chart
from certframe.report.levels import Level
from certframe.report.sheet import Cell, Picture
from certframe.report.templates import environment

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["compose", "figure", "snippet", "write_png"]


def title(explanation: Explanation) -> str:
    """Image, target, reach and confidence of the proof, in one line."""
    certificate, badge = explanation.certificate, claim.badge(explanation)
    parts = [f"{explanation.name}: {explanation.target_name}", claim.reach(certificate),
             f"confidence {certificate.confidence:.6g}"]
    if badge is not None:
        parts.append(badge.verdict)
    if "looks" in certificate.arrays:
        parts.append(f"{certificate.samples} of at most {certificate.arrays['looks'][-1]} copies")
    return ", ".join(parts)


def layout(explanation: Explanation, side: int) -> list[list[Cell]]:
    """The rows of a figure whose pictures have `side` pixels; a wide chart has a row for itself."""
    picture, shown, lines = paint.picture(explanation.image), levels.levels(explanation), plates.rows(explanation)
    first: list[Cell] = [
        Picture("picture", _scale(picture, side)),
        Picture("attribution, clean", _scale(paint.heat(explanation.map).image.convert("RGB"), side)),
        *(Picture(level.caption, _on_hatching(level.image, side)) for level in shown)]
    overlay = levels.overlay(explanation)
    if overlay is not None:
        name = "importance band" if claim.is_band(explanation.certificate) else "certified important"
        first.append(Picture(name, _over(picture, overlay, side)))
    rows = [first]
    drawn = chart.charts(explanation)
    small = [one for one in drawn if not one.wide]
    for line in lines:
        tiles = [Picture(f"{line.title.split(',')[0].split(';')[0]}: {plate.title}",
                      _on_hatching(plate.heat.image, side), plate) for plate in line.plates]
        if len(rows[-1]) + len(tiles) + len(small) > 6 or (shown and rows[-1] is first):
            rows.append([])
        rows[-1] += [*tiles, *small]
        small = []
    return rows + [[one] for one in drawn if one.wide]


def snippet(explanation: Explanation, *, side: int = 160) -> str:
    """A self-contained HTML fragment with pictures of `side` CSS pixels, for ``_repr_html_``."""
    picture, shown = paint.picture(explanation.image), levels.levels(explanation)
    return environment().get_template("snippet.html").render(
        explanation=explanation, side=side, picture=picture, heat=paint.heat(explanation.map), levels=shown,
        overlay=levels.overlay(explanation), grey=paint.grey(picture),
        opacity=paint.OVERLAY_OPACITY, important=paint.hexadecimal(paint.IMPORTANT),
        unimportant=paint.hexadecimal(paint.UNIMPORTANT), legend=levels.legend(explanation),
        is_band=claim.is_band(explanation.certificate), reach=claim.reach(explanation.certificate),
        rows=plates.rows(explanation), charts=chart.charts(explanation), badge=claim.badge(explanation),
        validity=claim.validity(explanation.certificate))


def figure(explanation: Explanation, *, side: float = 2.2) -> Figure:
    """A matplotlib figure of everything the certificate shows; `side` in inches a panel.

    Picture, clean attribution, certified map of every level and overlay; below them certified radii, ranks or
    intervals with their colour bars, and curves. It belongs to no pyplot state: save it with ``figure.savefig(…)``, or
    let a notebook show it.

    Raises:
        UsageError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
        from matplotlib.layout_engine import ConstrainedLayoutEngine
    except ImportError as error:
        raise UsageError("plotting needs matplotlib, which is not installed: pip install 'certframe[plot]'") from error
    rows = layout(explanation, 448)
    columns = max(4, *map(len, rows))
    heights = [0.85 if isinstance(row[0], Chart) else 1.5 for row in rows]
    result = Figure(figsize=(side * columns, side * sum(heights)), layout=ConstrainedLayoutEngine(h_pad=0.07))
    parts = result.subfigures(len(rows), 1, height_ratios=heights, squeeze=False)[:, 0]
    for part, row in zip(parts, rows, strict=True):
        grid = part.add_gridspec(1, columns)
        for i, cell in enumerate(row):
            if isinstance(cell, Chart):
                _draw(part.add_subplot(grid[0, :] if cell.wide else grid[0, i]), cell)
            else:
                _show(part.add_subplot(grid[0, i]), cell)
    shown = levels.levels(explanation)
    if shown:
        _legend(result, explanation, shown)
    result.suptitle(title(explanation), fontsize=10)
    return result


def _show(axes: Axes, tile: Picture) -> None:
    axes.imshow(tile.image, interpolation="auto")
    axes.set_title(tile.caption.replace(": ", "\n"), fontsize=9)
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_edgecolor("#dcdcd6")
    if tile.plate is not None:
        bar = axes.inset_axes((0.0, -0.09, 1.0, 0.045))
        bar.imshow(paint.colour_bar(tile.plate.heat.scale).convert("RGB"), aspect="auto")
        bar.set_axis_off()
        for x, text, side in ((0.0, tile.plate.low, "left"), (1.0, tile.plate.high, "right")):
            axes.text(x, -0.11, text, transform=axes.transAxes, fontsize=7.5, ha=side, va="top")


def _draw(axes: Axes, drawn: Chart) -> None:
    for line in drawn.lines:
        name = f"{line.name}: {line.value}" if line.value else line.name
        x, y = zip(*line.points, strict=True)
        axes.plot(x, y, color=line.colour, linestyle="--" if line.dashed else "-", label=name)
    if drawn.mark:
        axes.axvline(drawn.mark, color="#444441", linewidth=0.8, linestyle=":", label=drawn.mark_name or None)
    axes.set_xlim(0.0, drawn.x_max or 1.0)
    axes.set_ylim(-0.02, 1.02)
    axes.set_yticks([value for value, _ in drawn.y_ticks], [text for _, text in drawn.y_ticks], fontsize=7.5)
    axes.set_title(f"{drawn.title}\n{drawn.y_name}" if not drawn.wide else drawn.y_name, fontsize=9)
    axes.set_xlabel(drawn.x_name, fontsize=8)
    axes.tick_params(axis="x", labelsize=7.5)
    axes.grid(axis="y", color="#dcdcd6", linewidth=0.6)
    outside: dict[str, Any] = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5)} if drawn.wide else {}
    axes.legend(fontsize=7, frameon=False, **outside)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _legend(result: Figure, explanation: Explanation, shown: Sequence[Level]) -> None:
    from matplotlib.patches import Patch
    abstain: dict[str, Any] = {"facecolor": paint.hexadecimal(paint.ABSTAIN_LIGHT), "edgecolor": "#b4b4ae",
                               "hatch": "//////"}
    entries = [({"color": paint.hexadecimal(paint.IMPORTANT)}, "important"),
               ({"color": paint.hexadecimal(paint.UNIMPORTANT)}, "unimportant"), (abstain, "abstain"),
               *(({"color": colour}, meaning) for colour, meaning in levels.legend(explanation))]
    result.legend([Patch(**style) for style, _ in entries], [name for _, name in entries],
                  loc="outside lower center", ncols=min(9, len(entries)), fontsize=8, frameon=False, handlelength=1.0,
                  handleheight=1.0)


def compose(explanation: Explanation, *, side: int = 224) -> Image.Image:
    """The same as `figure` without matplotlib.

    Args:
        explanation: what to show.
        side: pixels of the longer side of each panel.
    """
    legend = [("important", Image.new("RGB", (8, 8), paint.IMPORTANT)),
              ("unimportant", Image.new("RGB", (8, 8), paint.UNIMPORTANT)), ("abstain", paint.hatched(8, 8)),
              *((meaning, Image.new("RGB", (8, 8), colour)) for colour, meaning in levels.legend(explanation))]
    return sheet.compose(title(explanation), layout(explanation, side), legend if levels.levels(explanation) else [],
                         side)


def write_png(explanation: Explanation, path: Path, *, side: int = 224) -> None:
    """Save `compose` to a PNG file.

    Raises:
        CertframeError: the file cannot be written.
    """
    try:
        compose(explanation, side=side).save(path, "PNG", optimize=True)
    except OSError as error:
        raise disk_error(error, path) from error


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
