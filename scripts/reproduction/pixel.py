"""The study of Anani et al. 2025: carry it out, compare, and write the page.

    python scripts/reproduction/pixel.py --data PHOTOGRAPHS --out RUN --docs            # on, from where it was stopped
    python scripts/reproduction/pixel.py --out RUN --tables --docs                      # the page, of what is there
    python scripts/reproduction/pixel.py --study scripts/reproduction/pixel-full.toml --data IMAGENET --out RUN

PHOTOGRAPHS is a folder that the data set ``imagenet`` can read. The study is a run directory for each data set and
model in RUN/study; RUN/comparison is what `certframe compare` makes of them.
"""

from __future__ import annotations

import argparse
import itertools
import math
import shutil
import subprocess
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "studies"))

from pages import publish, table

from certframe.comparing import Group, Paired, Summary, Value, find_runs, paired, summaries, values_of

HERE = Path(__file__).resolve().parent
PAGE = HERE.parents[1] / "docs" / "reproduction" / "pixel.md"
PICTURES = {"certified-against-radius-imagenet*-K50": "radius", "certified-against-K-imagenet*": "k",
            "gridpg-against-radius*-K50": "gridpg", "gridpg-against-K*": "gridpg-k", "plane*-K50": "plane",
            "deletion-imagenet*": "deletion"}
"""Figures of the comparison, of which the first of a kind is shown, and what they are called beside the page."""
LAYERS = ("input", "final")


def carry_out(study: Path, data: Path, out: Path) -> int:
    """`certframe run` of the study in RUN, where ``imagenet`` is the folder of photographs; its exit code."""
    out.mkdir(parents=True, exist_ok=True)
    link = out / "imagenet"
    if not link.exists():
        link.symlink_to(data.resolve())
    return subprocess.run([sys.executable, "-m", "certframe", "run", str(study.resolve()), "--out", "study"], cwd=out,
                          check=False).returncode


def compare(out: Path) -> None:
    """`certframe compare` of what is there."""
    command = [sys.executable, "-m", "certframe", "compare", "study", "--out", "comparison", "--json",
               *(f"--paired={name}" for name in ("certified", "certified-gridpg") if name in measured(out))]
    subprocess.run(command, cwd=out, check=True, stdout=subprocess.DEVNULL)


def measured(out: Path) -> set[str]:
    """The quantities that were measured."""
    return {value.metric for value in values_of(find_runs([out / "study"]))}


def data_of(group: Group) -> str:
    """Which of the two data sets of the study."""
    return "grids" if group.data.startswith("grid") else "photographs"


def averaged(values: Sequence[Value], metric: str) -> list[Value]:
    """For every image the mean over the levels K, as a quantity ``<metric>, mean``."""
    levels: dict[tuple[Group, str], list[float]] = {}
    for value in values:
        if value.metric == metric:
            levels.setdefault((value.group, value.image), []).append(value.value)
    return [Value(group, f"{metric}, mean", math.nan, image, sum(numbers) / len(numbers))
            for (group, image), numbers in levels.items()]


# -- tables -----------------------------------------------------------------------------------------------------------


def share(found: Summary | None, *, best: bool = False) -> str:
    """A mean in percent, with its standard error."""
    if found is None:
        return ""
    text = f"{100 * found.mean:.1f} ± {100 * found.standard_error:.1f}"
    return f"**{text}**" if best else text


Column = tuple[str, Callable[[Summary], bool]]


def by_method(found: Iterable[Summary], columns: Sequence[Column], bold: Collection[Group] = ()) -> str:
    """A row for each method, by family, and a column for each question; the largest of those in `bold` is bold."""
    cells: dict[str, dict[str, Summary]] = {}
    for one in found:
        for name, wanted in columns:
            if wanted(one):
                cells.setdefault(title(one.group), {})[name] = one
    order = sorted(cells, key=lambda method: next(iter(cells[method].values())).group.family)
    best = {name: max((row[name].mean for row in cells.values() if name in row and row[name].group in bold),
                      default=math.inf) for name, _ in columns}
    rows = [[method, *(share(one, best=one is not None and one.group in bold and one.mean == best[name])
                       for name, _ in columns for one in [cells[method].get(name)])]
            for method in order]
    return str(table(["", *(name for name, _ in columns)], rows))


def title(group: Group) -> str:
    """The method, and the model where the study has other models than one."""
    return f"`{group.method}`" + ("" if group.model == "lite0" else f", {group.model}")


def at(metric: str, sigma: float, level: float = math.nan) -> Callable[[Summary], bool]:
    """Whether a mean is of that quantity, noise level and K."""
    return lambda s: (s.metric == metric and s.group.sigma == sigma
                      and (s.level == level or (math.isnan(level) and math.isnan(s.level))))


def areas(found: Sequence[Summary], layer: str, sigmas: Sequence[float], levels: Sequence[float],
          bold: Collection[Group]) -> str:
    """%certified, mean over K, at every σ; and the share certified important for every K at the smallest σ."""
    chosen = [s for s in found if s.group.layer == layer]
    return by_method(chosen, [
        *((f"σ = {sigma:g}", at("certified, mean", sigma)) for sigma in sigmas),
        *((f"important, K = {level:g}", at("certified1", sigmas[0], level)) for level in levels)], bold)


def pointing(found: Sequence[Summary], layer: str, sigmas: Sequence[float], levels: Sequence[float],
             bold: Collection[Group]) -> str:
    """Certified GridPG, mean over K at every σ, for every K at the smallest σ, and of the clean map."""
    chosen = [s for s in found if s.group.layer == layer]
    return by_method(chosen, [
        *((f"σ = {sigma:g}", at("certified-gridpg, mean", sigma)) for sigma in sigmas),
        *((f"K = {level:g}", at("certified-gridpg", sigmas[0], level)) for level in levels),
        ("clean map", at("gridpg", sigmas[0]))], bold)


def faithfulness(found: Sequence[Summary], layer: str, sigma: float) -> str:
    """Faithfulness of the certificate and deletion of the clean map; in percent of the score's range."""
    chosen = [s for s in found if s.group.layer == layer]
    return by_method(chosen, [(title, at(metric, sigma)) for title, metric in (
        ("drop at the first K", "certified-faithfulness.drop"), ("random pixels", "certified-faithfulness.random-drop"),
        ("not certified pixels", "certified-faithfulness.uncertified-drop"), ("deletion (lower is better)",
                                                                              "deletion.auc"))])


# -- findings ---------------------------------------------------------------------------------------------------------


def telling(values: Iterable[Value]) -> set[Group]:
    """Those with a certified important pixel on half of the images or more.

    The others have constant maps, of which everything is certified unimportant, or are certified nowhere.
    """
    found: dict[Group, dict[str, bool]] = {}
    for value in values:
        if value.metric == "certified1":
            images = found.setdefault(value.group, {})
            images[value.image] = images.get(value.image, False) or value.value > 0
    return {group for group, images in found.items() if 2 * sum(images.values()) >= len(images)}


def order(found: Iterable[Summary], metric: str, model: str, layer: str, sigma: float) -> list[Summary]:
    """The methods, the largest mean first."""
    chosen = [s for s in found if s.group.model == model and s.group.layer == layer and at(metric, sigma)(s)]
    return sorted(chosen, key=lambda s: -s.mean)


def leaders(found: Sequence[Summary], values: Sequence[Value], metric: str, sigmas: Sequence[float]) -> str:
    """For each model, layer and σ: the first three, the lead of the first, and where `lrp` and `rise` are."""
    rows = []
    for model, layer, sigma in itertools.product(sorted({s.group.model for s in found}), LAYERS, sigmas):
        ranked = order(found, metric, model, layer, sigma)
        if len(ranked) < 3:
            continue
        names = [s.group.method for s in ranked]
        two = {ranked[0].group, ranked[1].group}
        lead = next(iter(paired([value for value in values if value.group in two], metric)), None)
        first = ", ".join(f"`{name}` {100 * s.mean:.1f}" for name, s in zip(names[:3], ranked, strict=False))
        rows.append([model, layer, f"{sigma:g}", first, lead_of(lead, ranked[0].group), place(names, "lrp"),
                     place(names, "rise")])
    return str(table(["model", "layer", "σ", "first three (%)", "lead of the first", "`lrp`", "`rise`"], rows))


def lead_of(pair: Paired | None, first: Group) -> str:
    """The mean difference on the same images, with its bootstrap interval."""
    if pair is None:
        return ""
    lead = pair if pair.first == first else pair.turned()
    return f"{100 * lead.difference:.1f} ({100 * lead.low:.1f} to {100 * lead.high:.1f})"


def place(names: Sequence[str], name: str) -> str:
    """Where a method is, such as "2 of 12"."""
    return f"{names.index(name) + 1} of {len(names)}" if name in names else ""


def falling(found: Sequence[Summary], metric: str, steps: Mapping[str, Callable[[Summary], bool]]) -> str:
    """Of how many methods the mean nowhere rises from step to step, layer by layer, and of which it does."""
    lines = []
    for layer in LAYERS:
        series: dict[str, list[float]] = {}
        for wanted in steps.values():
            for s in found:
                if s.metric == metric and s.group.layer == layer and wanted(s):
                    series.setdefault(title(s.group), []).append(s.mean)
        whole = {name: means for name, means in series.items() if len(means) == len(steps)}
        others = [f"{name} ({', '.join(f'{100 * m:.1f}' for m in means)})" for name, means in whole.items()
                  if any(a < b for a, b in itertools.pairwise(means))]
        if whole:
            lines.append(f"{layer}: {len(whole) - len(others)} of {len(whole)}"
                         + (f", not of {', '.join(others)}" if others else ""))
    return "; ".join(lines)


def falls(found: Sequence[Summary], sigmas: Sequence[float], levels: Sequence[float]) -> str:
    """The two findings about what falls."""
    radius = {f"{sigma:g}": (lambda s, sigma=sigma: s.group.sigma == sigma) for sigma in sigmas}
    share_of_k = {f"{level:g}": (lambda s, level=level: s.level == level and s.group.sigma == sigmas[0])
                  for level in levels}
    return "\n".join([
        f"- %certified (mean over K) nowhere rises with R, σ = {', '.join(radius)}: "
        f"{falling(found, 'certified, mean', radius)}.",
        f"- The share certified important nowhere rises as K falls, K = {', '.join(share_of_k)}, at σ = {sigmas[0]:g}: "
        f"{falling(found, 'certified1', share_of_k)}."])


def size(values: Sequence[Value]) -> str:
    """What the tables are from."""
    images: dict[tuple[str, str], set[str]] = {}
    for value in values:
        images.setdefault((data_of(value.group), value.group.model), set()).add(value.image)
    return ", ".join(f"{len(names)} {data} with `{model}`" for (data, model), names in images.items()) + "."


def pictures(out: Path, folder: Path) -> None:
    """Put the figures of the comparison beside the page."""
    for start, name in PICTURES.items():
        for file in sorted((out / "comparison").glob(f"{start}.png")):
            shutil.copyfile(file, folder / f"pixel-{name}.png")
            break


def main() -> None:
    """Carry out what is missing, compare, and write the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--study", type=Path, default=HERE / "pixel.toml", help="the study file")
    parser.add_argument("--data", type=Path, help="ImageNet photographs with their labels")
    parser.add_argument("--out", type=Path, default=Path("runs/pixel"), help="where the runs are")
    parser.add_argument("--tables", action="store_true", help="only compare and make the tables, of what is there")
    parser.add_argument("--docs", action="store_true", help="write tables and figures into the documentation")
    given = parser.parse_args()
    failed = 0
    if not given.tables:
        if given.data is None or not given.data.is_dir():
            parser.error("name a folder of ImageNet photographs with --data")
        failed = carry_out(given.study, given.data, given.out)
    if not list(given.out.glob("study/*/*/run.json")):
        sys.exit(failed or f"there is no study in {given.out} yet")
    compare(given.out)
    values = values_of(find_runs([given.out / "study"]))
    means = [value for metric in ("certified", "certified-gridpg") for value in averaged(values, metric)]
    found = summaries([*values, *means])
    on = {data: [s for s in found if data_of(s.group) == data] for data in ("photographs", "grids")}
    sigmas = sorted({value.group.sigma for value in values})
    levels = sorted({value.level for value in values if value.metric == "certified1"}, reverse=True)
    parts, kept = {"size": size(values)}, telling(values)
    for layer in LAYERS:
        parts[f"areas-{layer}"] = areas(on["photographs"], layer, sigmas, levels, kept)
        parts[f"pointing-{layer}"] = pointing(on["grids"], layer, sigmas, levels, kept)
        parts[f"faithfulness-{layer}"] = faithfulness(on["photographs"], layer, sigmas[0])
    for part, data, metric in (("robust", "photographs", "certified, mean"),
                               ("localizing", "grids", "certified-gridpg, mean")):
        parts[part] = leaders([s for s in on[data] if s.group in kept], means, metric, sigmas)
    parts["falls"] = falls(on["photographs"], sigmas, levels)
    publish(PAGE, parts, docs=given.docs)
    if given.docs:
        pictures(given.out, PAGE.parent)
    sys.exit(failed)


if __name__ == "__main__":
    main()
