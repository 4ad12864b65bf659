"""Figures that compare methods: areas, localization, their plane, and curves, as Anani et al. (2025) draw them."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from certframe.comparing import Group, Summary
from certframe.errors import UsageError
from certframe.report import paint

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FAMILY_ORDER = ("backpropagation", "perturbation", "activation", "other", "control")
_COLOURS = ("#1f5582", "#c2571a", "#1a7f4e", "#8a3f8f", "#b08900", "#3d8fb8", "#a8323e", "#6b6b64", "#5b7a1f",
            "#d17ba5", "#2f2f8f", "#7d5335", "#00837b")
_MARKS = "osD^vP*Xhd<>p"


@dataclass(frozen=True)
class Drawing:
    """A figure, its name as a file, and one sentence that says what it shows."""

    name: str
    caption: str
    figure: Figure


def drawings(found: Sequence[Summary]) -> list[Drawing]:
    """All figures for which there are numbers, one of each kind for every data set and model (and K or σ).

    Raises:
        UsageError: matplotlib is not installed.
    """
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise UsageError("figures need matplotlib, which is not installed: pip install 'certframe[plot]'") from error
    result = []
    for data, model in dict.fromkeys((s.group.data, s.group.model) for s in found):
        here = [s for s in found if (s.group.data, s.group.model) == (data, model)]
        where = f"{_file(data)}-{_file(model)}"
        title = f"{model} on {data}"
        result += list(_areas(here, where, title))
        result += list(_lines(here, where, title))
        result += list(_curves(here, where, title))
    result += list(_planes(found))
    return result


def _file(name: str) -> str:
    return "".join(c if c.isalnum() or c in "._" else "-" for c in name).strip("-")


def rows_of(found: Iterable[Summary]) -> list[tuple[str, str]]:
    """The methods and layers, by family, then in their own order."""
    seen = dict.fromkeys((s.group.family, s.group.method, s.group.layer) for s in found)
    ordered = sorted(seen, key=lambda key: FAMILY_ORDER.index(key[0]) if key[0] in FAMILY_ORDER else 3)
    return [(method, layer) for _, method, layer in ordered]


def _new(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure
    return Figure(figsize=(width, height), layout="constrained")


def _tidy(axes: Axes) -> None:
    axes.grid(axis="y", color="#dcdcd6", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _style(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    return {name: {"color": _COLOURS[i % len(_COLOURS)], "marker": _MARKS[i % len(_MARKS)]}
            for i, name in enumerate(names)}


# -- stacked areas ----------------------------------------------------------------------------------------------------


def _areas(found: Sequence[Summary], where: str, title: str) -> Iterable[Drawing]:
    """Certified-1, certified-0, abstain: against R for every K, against K for every σ."""
    parts = [s for s in found if s.metric in ("certified1", "certified0", "abstain")]
    levels = sorted({s.level for s in parts if not math.isnan(s.level)}, reverse=True)
    radii = sorted({s.group.radius for s in parts})
    sigmas = sorted({s.group.sigma for s in parts})
    for level in levels if len(radii) > 1 else ():
        chosen = [s for s in parts if s.level == level]
        yield Drawing(f"certified-against-radius-{where}-K{level:g}",
                      f"Certified share of the pixels at K = {level:g} % against the radius R, {title}.",
                      _stacked(chosen, lambda s: s.group.radius, "R", f"{title}, K = {level:g} %"))
    for sigma in sigmas if len(levels) > 1 else ():
        chosen = [s for s in parts if s.group.sigma == sigma]
        yield Drawing(f"certified-against-K-{where}-sigma{sigma:g}",
                      f"Certified share of the pixels at σ = {sigma:g} against K, {title}.",
                      _stacked(chosen, lambda s: s.level, "K (%)", f"{title}, σ = {sigma:g}"))


def _stacked(found: Sequence[Summary], axis: Callable[[Summary], float], name: str, title: str) -> Figure:
    """A panel for each method and layer, a bar for each place on the axis."""
    from matplotlib.patches import Patch
    rows = rows_of(found)
    columns = min(6, len(rows))
    lines = math.ceil(len(rows) / columns)
    result = _new(1.9 * columns + 0.6, 1.7 * lines + 0.9)
    grid = result.subplots(lines, columns, squeeze=False, sharey=True)
    places = sorted({axis(s) for s in found})
    colours = [("certified1", paint.hexadecimal(paint.IMPORTANT)), ("certified0", paint.hexadecimal(paint.UNIMPORTANT)),
               ("abstain", paint.hexadecimal(paint.ABSTAIN_LIGHT))]
    for at, axes in enumerate(grid.flat):
        if at >= len(rows):
            axes.set_axis_off()
            continue
        method, layer = rows[at]
        base = [0.0] * len(places)
        for metric, colour in colours:
            mean = {axis(s): s.mean for s in found
                    if (s.group.method, s.group.layer, s.metric) == (method, layer, metric)}
            heights = [100 * mean.get(place, 0.0) for place in places]
            axes.bar(range(len(places)), heights, bottom=base, color=colour, width=0.8)
            base = [b + h for b, h in zip(base, heights, strict=True)]
        axes.set_xticks(range(len(places)), [f"{place:.3g}" for place in places])
        axes.set_title(f"{textwrap.fill(method, 28)}\n{layer}", fontsize=8)
        axes.set_ylim(0, 100)
        axes.set_xlabel(name, fontsize=8)
        _tidy(axes)
    for line in grid[:, 0]:
        line.set_ylabel("% of pixels", fontsize=8)
    result.legend([Patch(color=c) for _, c in colours], ["certified important", "certified unimportant", "abstain"],
                  loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    result.suptitle(title, fontsize=10)
    return result


# -- localization against R and K -------------------------------------------------------------------------------------


def _lines(found: Sequence[Summary], where: str, title: str) -> Iterable[Drawing]:
    """Certified GridPG against R for every K, and against K for every σ, with the value of a random map."""
    parts = [s for s in found if s.metric == "certified-gridpg" and not math.isnan(s.level)]
    chance = next((s.mean for s in found if s.metric == "certified-gridpg.random"), None)
    levels, sigmas = sorted({s.level for s in parts}, reverse=True), sorted({s.group.sigma for s in parts})
    for level in levels if len({s.group.radius for s in parts}) > 1 else ():
        chosen = [s for s in parts if s.level == level]
        yield Drawing(f"gridpg-against-radius-{where}-K{level:g}",
                      f"Certified GridPG at K = {level:g} % against the radius R with 95 % intervals, {title}.",
                      _plotted(chosen, lambda s: s.group.radius, "R", "certified GridPG", f"{title}, K = {level:g} %",
                               chance))
    for sigma in sigmas if len(levels) > 1 else ():
        chosen = [s for s in parts if s.group.sigma == sigma]
        yield Drawing(f"gridpg-against-K-{where}-sigma{sigma:g}",
                      f"Certified GridPG at σ = {sigma:g} against K with 95 % intervals, {title}.",
                      _plotted(chosen, lambda s: s.level, "K (%)", "certified GridPG", f"{title}, σ = {sigma:g}",
                               chance))


def _curves(found: Sequence[Summary], where: str, title: str) -> Iterable[Drawing]:
    """Scores while pixels go or come."""
    for metric, name, x_name in (("deletion.score", "deletion", "% of the pixels replaced"),
                                 ("insertion.score", "insertion", "% of the pixels revealed"),
                                 ("certified-faithfulness.score", "certified-faithfulness", "K (%) removed")):
        parts = [s for s in found if s.metric == metric and not math.isnan(s.level)]
        if name == "certified-faithfulness":
            parts += [Summary(s.group, metric, 0.0, s.mean, s.standard_error, s.low, s.high, s.images) for s in found
                      if s.metric == f"{metric}.clean"]
        for sigma in sorted({s.group.sigma for s in parts}):
            chosen = [s for s in parts if s.group.sigma == sigma]
            yield Drawing(f"{name}-{where}-sigma{sigma:g}",
                          f"Score of the class along {name} with 95 % intervals, σ = {sigma:g}, {title}.",
                          _plotted(chosen, lambda s: s.level, x_name, "score", f"{title}, {name}, σ = {sigma:g}", None))


def _plotted(found: Sequence[Summary], axis: Callable[[Summary], float], x_name: str, y_name: str, title: str,
             chance: float | None) -> Figure:
    """A panel for each layer, a line for each method, with intervals."""
    layers = list(dict.fromkeys(layer for _, layer in rows_of(found)))
    styles = _style(list(dict.fromkeys(method for method, _ in rows_of(found))))
    result = _new(4.2 * len(layers) + 1.8, 3.4)
    grid = result.subplots(1, len(layers), squeeze=False, sharey=True)[0]
    for layer, axes in zip(layers, grid, strict=True):
        for method, style in styles.items():
            line = sorted((axis(s), s) for s in found if (s.group.method, s.group.layer) == (method, layer))
            if line:
                x, y = [place for place, _ in line], [s.mean for _, s in line]
                low = [s.mean - s.low if not math.isnan(s.low) else 0.0 for _, s in line]
                high = [s.high - s.mean if not math.isnan(s.high) else 0.0 for _, s in line]
                axes.errorbar(x, y, yerr=[_positive(low), _positive(high)], label=method, linewidth=1.2, markersize=4,
                              capsize=2, elinewidth=0.7, **style)
        if chance is not None:
            axes.axhline(chance, color="#444441", linewidth=0.8, linestyle="--", label="random")
        axes.set_title(layer, fontsize=9)
        axes.set_xlabel(x_name, fontsize=8)
        _tidy(axes)
    grid[0].set_ylabel(y_name, fontsize=8)
    handles: dict[str, Any] = {}
    for axes in grid:
        handles |= {label: handle for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    result.legend(list(handles.values()), list(handles), loc="outside right center", fontsize=7.5, frameon=False)
    result.suptitle(title, fontsize=10)
    return result


def _positive(lengths: Sequence[float]) -> list[float]:
    return [max(0.0, length) for length in lengths]


# -- robustness and localization --------------------------------------------------------------------------------------


def plane(found: Sequence[Summary]) -> dict[tuple[str, float, float], list[tuple[Group, Summary, Summary]]]:
    """(model, σ, K) → the methods with certified share and certified GridPG.

    Where both were measured on the grids, these are taken; otherwise the share is that of the same method, σ and
    certifier on another data set.
    """
    shares: dict[tuple[object, ...], dict[str, Summary]] = {}
    for s in found:
        if s.metric == "certified" and not math.isnan(s.level):
            shares.setdefault(_who(s), {}).setdefault(s.group.data, s)
    result: dict[tuple[str, float, float], list[tuple[Group, Summary, Summary]]] = {}
    for s in found:
        if s.metric == "certified-gridpg" and (there := shares.get(_who(s))):
            robust = there.get(s.group.data) or next(iter(there.values()))
            result.setdefault((s.group.model, s.group.sigma, s.level), []).append((s.group, robust, s))
    return result


def _who(s: Summary) -> tuple[object, ...]:
    return (s.group.model, s.group.method, s.group.layer, s.group.sigma, s.group.certifier, s.level)


def _planes(found: Sequence[Summary]) -> Iterable[Drawing]:
    chance = next((s.mean for s in found if s.metric == "certified-gridpg.random"), None)
    for (model, sigma, level), points in plane(found).items():
        styles = _style(list(dict.fromkeys(group.method for group, _, _ in points)))
        result = _new(6.4, 4.0)
        axes = result.subplots()
        layers = list(dict.fromkeys(group.layer for group, _, _ in points))
        for group, robust, local in points:
            style = styles[group.method]
            first = group.layer == layers[0]
            axes.errorbar(100 * robust.mean, local.mean, xerr=_error(robust, 100), yerr=_error(local, 1), markersize=6,
                          elinewidth=0.7, label=f"{group.method}, {group.layer}", linestyle="none",
                          markerfacecolor=style["color"] if first else "none", **style)
        if chance is not None:
            axes.axhline(chance, color="#444441", linewidth=0.8, linestyle="--", label="random")
        axes.set_xlabel("% of pixels certified (robustness)", fontsize=8)
        axes.set_ylabel("certified GridPG (localization)", fontsize=8)
        _tidy(axes)
        result.legend(loc="outside right center", fontsize=7, frameon=False)
        result.suptitle(f"{model}, σ = {sigma:g}, K = {level:g} %", fontsize=10)
        yield Drawing(f"plane-{_file(model)}-sigma{sigma:g}-K{level:g}",
                      f"Robustness against localization with 95 % intervals, {model}, σ = {sigma:g}, K = {level:g} %.",
                      result)


def _error(s: Summary, scale: float) -> list[list[float]] | None:
    if math.isnan(s.low):
        return None
    return [[scale * max(0.0, s.mean - s.low)], [scale * max(0.0, s.high - s.mean)]]


def save(drawn: Sequence[Drawing], folder: Path) -> list[Path]:
    """Each figure as SVG and PNG; the paths of the SVG files."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for one in drawn:
        path = folder / f"{one.name}.svg"
        one.figure.savefig(path, metadata={"Date": None})
        one.figure.savefig(path.with_suffix(".png"), dpi=150)
        paths.append(path)
    return paths
