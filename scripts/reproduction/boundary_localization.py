"""Does BIG lie in the object's box more than other attributions do? The localization table of [BND], and its boxplots.

And does a map that looks like the one at the boundary lie there more than others? The correlation of alignment with
localization.

    python scripts/reproduction/boundary_localization.py --data BOXED --docs --out RUN            # what is missing
    python scripts/reproduction/boundary_localization.py --data BOXED --docs --out RUN --tables   # only the page

BOXED is a folder of photographs with boxes that the data set ``boxes`` can read. Every photograph is stored when it is
done.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "studies"))
sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
import torch
from certframe_boundary.attributors import Bsm
from certframe_boundary.gradients import logit_gradient
from certframe_boundary.metrics import apart, unit
from eva_methods import Line, Lines, fingerprint
from pages import publish, table
from scipy.stats import spearmanr, wilcoxon
from torch import Tensor

import certframe
from certframe.cli.allocator import tune_allocator
from certframe.config import component
from certframe.device import weights_hash
from certframe.metrics.localization import box_mask, box_overlap, concentration, energy_inside, positive_share
from certframe.noise import CopyRng
from certframe.statistics.comparisons import interval
from certframe.worker import extras_of, to_pixels

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reproduction" / "boundary.md"
METRICS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "Loc": box_overlap, "EG": energy_inside, "PP": positive_share, "Con": concentration}
PUBLISHED = {"BIG": (.38, .54, .87, 4.35), "IG": (.34, .50, .51, 3.97), "SM": (.33, .47, .50, 3.92)}
"""Loc, EG, PP and Con in [BND], on its standard ResNet-50."""
ALIGNED = (("SM", "BSM"), ("IG", "BIG"), ("IG", "AGI"))
"""Maps at the image, and those at the boundary that they are compared with."""
SMOOTH, NOISE = 50, 0.1
Map = Callable[[certframe.Model, Tensor, Tensor, certframe.Rng], Tensor]


def by_plugin(name: str, **options: object) -> Map:
    """The map of a registered method, which keeps its sign."""
    method = component("attributor", {"name": name, **options}).build()
    return lambda model, x, target, rng: method.attribute(model, x, target, rng=rng).maps


def saliency(model: certframe.Model, x: Tensor, target: Tensor, rng: certframe.Rng) -> Tensor:
    """∂f_c/∂x, summed over the channels with its sign: without it Loc and PP would be the same for every map."""
    return logit_gradient(model.module, x, target)[0].sum(1)


def boundary_saliency(model: certframe.Model, x: Tensor, target: Tensor, rng: certframe.Rng) -> Tensor:
    """The same at the nearest boundary point."""
    return saliency(model, Bsm().points(model, x, target).images, target, rng)


def smoothed(model: certframe.Model, x: Tensor, target: Tensor, rng: certframe.Rng) -> Tensor:
    """The mean of `saliency` over noisy inputs, s a tenth of the image's range."""
    spread = NOISE * (x.amax() - x.amin())
    return torch.stack([saliency(model, x + spread * rng.normal(*x.shape[1:]), target, rng)
                        for _ in range(SMOOTH)]).mean(0)


METHODS: dict[str, Map] = {
    "BIG": by_plugin("big"), "BSM": boundary_saliency, "AGI": by_plugin("agi", classes=5), "SM": saliency,
    "GTI": by_plugin("input-x-gradient"), "SG": smoothed, "IG": by_plugin("integrated-gradients", steps=20),
    "DeepLIFT": by_plugin("deeplift")}


def compute(model: certframe.Model, data: certframe.Dataset, chosen: Sequence[int], lines: Lines) -> None:
    """Explain every photograph that has no result yet."""
    done = lines.by_image()
    for count, index in enumerate(chosen, 1):
        sample = data.load(index)
        boxes = extras_of(model, sample).get("boxes")
        if index not in done and boxes:
            image = to_pixels(model, sample)
            target = model.module(image[None]).argmax(1)
            inside = box_mask(boxes, image)
            rng = CopyRng(0, sample.name, "localization", range(1), image.device)
            maps = {name: method(model, image[None], target, rng)[0].double() for name, method in METHODS.items()}
            lines.add(index, {"found": {name: [metric(z.numpy(), inside) for metric in METRICS.values()]
                                        for name, z in maps.items()}, "share": float(inside.mean()),
                              "apart": [[apart(maps[a], maps[b]), apart(unit(maps[a]), unit(maps[b]))]
                                        for a, b in ALIGNED]})
        print(f"{count} of {len(chosen)} photographs", flush=True)


def collect(done: Sequence[Line]) -> dict[str, np.ndarray]:
    """Method → (photographs, metrics)."""
    return {name: np.array([line["found"][name] for line in done], dtype=float) for name in METHODS}


def means(found: Mapping[str, np.ndarray]) -> str:
    """A row for each method, the highest mean of a column in bold; below, what was published."""
    best = np.max([values.mean(0) for values in found.values()], axis=0)
    rows = []
    for name, values in found.items():
        mean, error = values.mean(0), values.std(0, ddof=1) / np.sqrt(len(values))
        cells = [f"{m:.3f} ± {e:.3f}" for m, e in zip(mean, error, strict=True)]
        rows.append([name, *(f"**{c}**" if m == b else c for c, m, b in zip(cells, mean, best, strict=True))])
    rows += [[f"{name}, as published", *(f"{v:.2f}" for v in values)] for name, values in PUBLISHED.items()]
    return str(table(["", *METRICS], rows))


def differences(found: Mapping[str, np.ndarray]) -> str:
    """BIG minus each other method on the same photographs: mean, bootstrap interval, and Wilcoxon's p."""
    rows = []
    for name, values in found.items():
        if name != "BIG":
            gap = found["BIG"] - values
            rows.append([f"BIG − {name}", *(difference(column) for column in gap.T)])
    return str(table(["", *METRICS], rows))


def difference(gap: np.ndarray) -> str:
    """Of one metric."""
    low, high = interval(gap)
    p = float(wilcoxon(gap).pvalue) if np.any(gap) else 1.0
    return f"{gap.mean():+.3f} ({low:+.3f} to {high:+.3f}), p = {p:.2g}"


def correlations(found: Mapping[str, np.ndarray], done: Sequence[Line]) -> str:
    """Spearman's ρ over photographs, of the distance between two maps with the localization of the first of them."""
    distances = np.array([line["apart"] for line in done], dtype=float)
    rows = []
    for i, (a, b) in enumerate(ALIGNED):
        for j, what in enumerate(("", " of norm 1")):
            rows.append([f"{a} and {b}{what}", f"{distances[:, i, j].mean():.3g}",
                         *(correlation(distances[:, i, j], column) for column in found[a].T)])
    return str(table(["", "mean distance", *(f"with {name}" for name in METRICS)], rows))


def correlation(distance: np.ndarray, quality: np.ndarray) -> str:
    """With the two-sided p-value."""
    result = spearmanr(distance, quality)
    return f"{result.statistic:+.2f}, p = {result.pvalue:.2g}"


def reading(found: Mapping[str, np.ndarray], done: Sequence[Line]) -> str:
    """How many photographs, and where BIG is."""
    places = []
    for i, metric in enumerate(METRICS):
        order = sorted(found, key=lambda name, i=i: -found[name][:, i].mean())  # type: ignore[misc]
        places.append(f"{metric} {order.index('BIG') + 1} (first: {order[0]})")
    covered = np.mean([line["share"] for line in done])
    return (f"{len(done)} photographs, whose boxes cover {100 * covered:.0f} % of the picture on average. The place of "
            f"BIG among {len(found)}: {', '.join(places)}.")


def boxplots(found: Mapping[str, np.ndarray], path: Path) -> None:
    """A panel for each metric, a box for each method."""
    import matplotlib as mpl
    mpl.use("Agg")
    from matplotlib import pyplot

    sheet, axes = pyplot.subplots(1, len(METRICS), figsize=(13, 3.6), layout="constrained")
    for i, (axis, name) in enumerate(zip(axes, METRICS, strict=True)):
        axis.boxplot([values[:, i] for values in found.values()], tick_labels=list(found), showmeans=True)
        axis.set_title(name)
        axis.tick_params(axis="x", rotation=60)
        axis.spines[["top", "right"]].set_visible(False)
    sheet.savefig(path, dpi=100, metadata={"Software": None})
    pyplot.close(sheet)


def main() -> None:
    """Explain what is missing, tabulate, and draw."""
    parser = argparse.ArgumentParser(description="The localization table of the boundary attributions.")
    parser.add_argument("--data", type=Path, required=True, metavar="BOXED", help="photographs with boxes")
    parser.add_argument("--out", type=Path, default=Path("runs/boundary"), metavar="DIR", help="results "
                        "(runs/boundary); what is there is not computed again")
    parser.add_argument("--images", type=int, default=30, metavar="N", help="number of photographs (30)")
    parser.add_argument("--tables", action="store_true", help="only make tables and figure, from what is stored")
    parser.add_argument("--docs", action="store_true", help="write them into the documentation")
    given = parser.parse_args()
    torch.set_num_threads(1)
    tune_allocator()
    data: certframe.Dataset = component("dataset", f"boxes:{given.data}").build()
    model: certframe.Model = certframe.default_registry().find("model", "lite0").load()()
    chosen = np.random.default_rng(0).permutation(len(data))[:given.images].tolist()
    made_of = fingerprint(weights_hash(model.module), repr([list(METHODS), ALIGNED]))
    lines = Lines(given.out / "localization.jsonl", made_of)
    if not given.tables:
        compute(model, data, chosen, lines)
    stored = lines.by_image()
    done = [stored[index] for index in chosen if index in stored]
    if len(done) < 2:
        parser.error(f"{given.out} has fewer than two photographs: run it without --tables first")
    found = collect(done)
    publish(PAGE, {"localization-reading": reading(found, done), "localization": means(found),
                   "localization-differences": differences(found),
                   "localization-alignment": correlations(found, done)}, docs=given.docs)
    boxplots(found, (PAGE.parent if given.docs else given.out) / "boundary-localization.png")


if __name__ == "__main__":
    main()
