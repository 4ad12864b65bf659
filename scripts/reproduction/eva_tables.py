"""Tables 1 and 2 of [EVA], its tightness figures and its targeted explanations, on the networks of `eva_train.py`.

    python scripts/reproduction/eva_tables.py --data DIR --images 10                       # small, a few minutes
    python scripts/reproduction/eva_tables.py --data DIR --images 100 --docs               # what the page shows
    python scripts/reproduction/eva_tables.py --data DIR --set mnist --only EVA Saliency   # some methods

DIR has mnist.npz and cifar10.npz. A network without weights in the folder of results is trained first. Every map and
every measurement is stored as soon as it is there, and none is made twice: stop at any time, and go on with the same
command; with more images, only the new ones cost anything.

Source: Fel et al., *Don't Lie to Me! Robust and Efficient Explainability with Verified Perturbation Analysis*,
CVPR 2023 [EVA].
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "studies"))
sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
import torch
from eva_figure import draw
from eva_methods import METRICS, OTHER_METRICS, Bench, Plugin, bench, methods, variants
from eva_nets import SETS, data_folder
from eva_tightness import TIGHTNESS, measure_tightness, tightness_table
from eva_train import weights_of
from eva_why import (
    WHY,
    cells_table,
    gradients_table,
    measure_on_cells,
    measure_relaxations,
    relaxations_table,
    weights_table,
)
from pages import publish, table

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reproduction" / "eva.md"


@dataclass(frozen=True)
class Column:
    """A column of the tables: the values of a metric, and what the paper has for EVA."""

    title: str
    metric: str
    value: str
    smaller: bool
    published: Mapping[str, str]


COLUMNS = [
    Column("Deletion ↓", "deletion", "deletion.auc", True, {"mnist": ".089", "cifar10": ".164"}),
    Column("Insertion ↑", "insertion", "insertion.auc", False, {"mnist": ".736", "cifar10": ".290"}),
    Column("µFidelity ↑", "mu-fidelity", "mu-fidelity", False, {"mnist": ".428", "cifar10": ".352"}),
    Column("Robustness-Sr ↓", "robustness-sr", "robustness-sr", True, {"mnist": ".069", "cifar10": ".025"}),
]
OTHERWISE = ("Saliency", "SmoothGrad", "IG", "Occlusion", "EVA", "EVA, pixels")
"""The methods that are measured with other settings of the metrics, too."""
NOTHING = "Not measured yet."
PUBLISHED_SECONDS = {"mnist": "1.29 (GPU)", "cifar10": "12.7 (GPU)"}


@dataclass(frozen=True)
class Results:
    """What was measured: for every method an array with a row for each image, and a column for each of `COLUMNS`.

    Attributes:
        images: the numbers of the images, of which every method has all values.
        values: method → (images, columns).
        seconds: method → mean seconds of CPU for an explanation.
    """

    images: list[int]
    values: dict[str, np.ndarray]
    seconds: dict[str, float]


def collect(subject: Bench, wanted: Mapping[str, Plugin]) -> Results:
    """The stored results of these methods on the images that all of them have; a method without any is left out."""
    found = {}
    for label, plugin in wanted.items():
        lines = [subject.values(label, plugin, METRICS[column.metric]).by_image() for column in COLUMNS]
        maps = subject.maps(label, plugin).by_image()
        complete = {image for image in maps if all(image in line for line in lines)}
        if complete:
            found[label] = complete, lines, maps
    chosen = {subject.index for subject in subject.subjects}
    common = sorted(set.intersection(chosen, *(complete for complete, _, _ in found.values())) if found else ())
    values = {label: np.array([[line[image][column.value] for line, column in zip(lines, COLUMNS, strict=True)]
                               for image in common]) for label, (_, lines, _) in found.items()}
    seconds = {label: float(np.mean([maps[image]["seconds"] for image in common])) if common else float("nan")
               for label, (_, _, maps) in found.items()}
    return Results(common, values, seconds)


def value_of(metric: Plugin) -> str:
    """The name of a metric's main value."""
    return next(column.value for column in COLUMNS if column.metric == metric.name)


def otherwise(subject: Bench) -> str:
    """Some methods by `OTHER_METRICS`, on the images that all of them have."""
    every = methods(subject.images) | variants(subject.images)
    found = {label: [subject.values(label, every[label], metric).by_image() for metric in OTHER_METRICS.values()]
             for label in OTHERWISE if label in every}
    sets = [set(lines) for columns in found.values() for lines in columns]
    common = sorted(set.intersection({one.index for one in subject.subjects}, *sets))
    if not common:
        return NOTHING
    rows = [[label, *(with_error(np.array([lines[image][value_of(metric)] for image in common]))
                      for lines, metric in zip(columns, OTHER_METRICS.values(), strict=True))]
            for label, columns in found.items()]
    return f"{len(common)} images.\n\n" + table(["", *OTHER_METRICS], rows)


def number(value: float, digits: int = 3) -> str:
    """``.089``, ``−.012``, ``1.234``."""
    text = f"{abs(value):.{digits}f}"
    return ("−" if value < 0 and float(text) else "") + (text[1:] if text.startswith("0.") else text)


def mean_and_error(values: np.ndarray) -> tuple[float, float]:
    """Mean and its standard error (0 for a single value)."""
    count = len(values)
    return float(values.mean()), float(values.std(ddof=1) / count**0.5) if count > 1 else 0.0


def with_error(values: np.ndarray, *, bold: bool = False) -> str:
    """``.089 ± .004``."""
    mean, error = mean_and_error(values)
    text = f"{number(mean)} ± {number(error)}"
    return f"**{text}**" if bold else text


def first(found: Results, column: int, among: Sequence[str]) -> str:
    """The method with the best mean."""
    sign = 1 if COLUMNS[column].smaller else -1
    return min(among, key=lambda label: sign * found.values[label][:, column].mean())


def main_table(found: Results, images: str) -> str:
    """The paper's table, with the published row of EVA below."""
    if not found.images or "EVA" not in found.values:
        return NOTHING
    named = [label for label in found.values if label != "Random"]
    best = [first(found, column, named) for column in range(len(COLUMNS))]
    rows = [[label, *(with_error(values[:, column], bold=best[column] == label) for column in range(len(COLUMNS))),
             f"{100 * found.seconds[label]:.3g}"] for label, values in found.values.items()]
    rows.append(["EVA, as published", *(column.published[images] for column in COLUMNS), PUBLISHED_SECONDS[images]])
    return table(["", *(column.title for column in COLUMNS), "CPU s for 100"], rows)


def variants_table(found: Results, images: str) -> str:
    """`main_table`, and how many images it is from."""
    return f"{len(found.images)} images.\n\n{main_table(found, images)}"


def differences(found: Results, reference: str) -> str:
    """Method minus reference, image by image."""
    if not found.images or reference not in found.values:
        return NOTHING
    base = found.values[reference]
    rows = [[label, *(with_error(values[:, column] - base[:, column]) for column in range(len(COLUMNS)))]
            for label, values in found.values.items() if label != reference]
    return table([f"minus {reference}", *(column.title for column in COLUMNS)], rows)


def reading(found: Results, reference: str) -> str:
    """In which columns the reference is first, and by how much."""
    others = [label for label in found.values if label not in (reference, "Random")]
    if not found.images or reference not in found.values or not others:
        return NOTHING
    said = []
    for at, column in enumerate(COLUMNS):
        rival = first(found, at, others)
        gap = found.values[rival][:, at] - found.values[reference][:, at]
        mean, error = mean_and_error(gap if column.smaller else -gap)
        place = 1 + sum(first(found, at, [label, reference]) == label for label in others)
        title = column.title.split()[0]
        ahead = "ahead of" if place == 1 else "behind"
        said.append(f"{title}: {reference} is {ordinal(place)} of {len(others) + 1}, {number(abs(mean))} ± "
                    f"{number(error)} {ahead} {rival}")
    return ". ".join(said) + "."


def ordinal(place: int) -> str:
    """``1st``, ``2nd``, ``3rd``, ``4th``…"""
    return f"{place}{ {1: 'st', 2: 'nd', 3: 'rd'}.get(place if place < 20 else place % 10, 'th')}"


def size(found: Mapping[str, Results], accuracies: Mapping[str, float]) -> str:
    """What the tables are from."""
    said = (f"{images}: {len(results.images) if 'EVA' in results.values else 0} images, the network is "
            f"right on {100 * accuracies[images]:.1f} % of all test images" for images, results in found.items())
    return "; ".join(said) + "."


def parts_of(images: str) -> dict[str, Callable[[Bench], str]]:
    """What of the page is made for a data set: part → how."""
    wanted = methods(images)
    return {
        images: lambda subject: main_table(collect(subject, wanted), images),
        f"{images}-reading": lambda subject: reading(collect(subject, wanted), "EVA"),
        f"{images}-differences": lambda subject: differences(collect(subject, wanted), "EVA"),
        f"{images}-tightness": tightness_table,
        f"{images}-otherwise": otherwise,
        f"{images}-cells": cells_table,
        f"{images}-gradients": gradients_table,
        f"{images}-variants": lambda subject: variants_table(
            collect(subject, {"EVA": wanted["EVA"]} | variants(images)), images),
    }


def say(line: str) -> None:
    """Tell how far it is."""
    print(line, flush=True)


def compute(subject: Bench, only: Sequence[str] | None) -> None:
    """Explain and measure what is missing: all methods, or the ones with these labels."""
    for label, plugin in (methods(subject.images) | variants(subject.images)).items():
        if only is None or label in only:
            subject.run(label, plugin, METRICS | (OTHER_METRICS if label in OTHERWISE else {}), say)
    if only is None or TIGHTNESS in only:
        measure_tightness(subject, say)
    if only is None or WHY in only:
        measure_on_cells(subject, say)
        if subject.images == "mnist":
            measure_relaxations(subject, say)


def main() -> None:
    """Train, explain, measure and tabulate what is missing."""
    parser = argparse.ArgumentParser(description="Tables 1 and 2 of EVA.")
    parser.add_argument("--data", type=Path, metavar="DIR", help="folder with mnist.npz and cifar10.npz (default: the "
                        "folder that CERTFRAME_TEST_DATA names)")
    parser.add_argument("--out", type=Path, default=Path("runs/eva"), metavar="DIR", help="weights and results "
                        "(runs/eva); what is there is not computed again")
    parser.add_argument("--images", type=int, default=10, metavar="N", help="test images for each network (10)")
    parser.add_argument("--set", nargs="+", choices=SETS, default=list(SETS), help="which networks (both)")
    parser.add_argument("--only", nargs="+", metavar="METHOD", help=f"compute only these, as named in the tables, or "
                        f"'{TIGHTNESS}', or '{WHY}'")
    parser.add_argument("--tables", action="store_true", help="only make the tables, from what is stored")
    parser.add_argument("--docs", action="store_true", help="write tables and figure into the documentation")
    given = parser.parse_args()
    folder = data_folder(parser, given.data)
    known = {label: None for images in given.set for label in (*methods(images), *variants(images), TIGHTNESS, WHY)}
    if unknown := set(given.only or ()) - set(known):
        parser.error(f"no method {', '.join(sorted(unknown))}: choose from {', '.join(known)}")
    torch.set_num_threads(1)
    parts: dict[str, str] = {}
    found: dict[str, Results] = {}
    accuracies: dict[str, float] = {}
    for images in given.set:
        weights, accuracies[images] = weights_of(images, folder, given.out)
        subject = bench(images, folder / f"{images}.npz", weights, given.images, given.out)
        if not given.tables:
            compute(subject, given.only)
        found[images] = collect(subject, methods(images))
        parts |= {name: make(subject) for name, make in parts_of(images).items()}
        if images == "mnist":
            trains = not given.tables and (given.only is None or WHY in given.only)
            parts["mnist-relaxations"] = relaxations_table(subject)
            parts["mnist-weights"] = weights_table(subject, folder, say if trains else None)
            draw(subject, (PAGE.parent if given.docs else given.out) / "eva-targeted.png")
    publish(PAGE, {"size": size(found, accuracies), **parts}, docs=given.docs)


if __name__ == "__main__":
    main()
