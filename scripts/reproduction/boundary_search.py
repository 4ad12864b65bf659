"""How near a boundary each stage of the search of [BND] finds, and the default search beside it.

    python scripts/reproduction/boundary_search.py --data DIR --images 1                    # small, some minutes
    python scripts/reproduction/boundary_search.py --data DIR --images 20 --docs            # what the page shows

DIR has cifar10.npz and imagenet_dev/ (photographs). The CIFAR-10 network is the one of `eva_train.py`, trained first
when the folder of results has none. Every search of every image is stored as soon as it is there, with the CPU time it
took, one image at a time on one thread; the same command goes on after a stop, and a larger one only does what is new.

Source: Wang, Fredrikson, Datta, *Robust Models Are More Interpretable Because Attributions Look Normal*, ICML 2022
[BND].
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "studies"))
sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
import torch
from certframe_boundary.search import SearchOptions, nearest
from certframe_boundary.search.closest import Adversarial
from certframe_boundary.search.published import stages
from eva_methods import Lines, Subject, fingerprint, subjects
from eva_nets import data_folder, images, model_of
from eva_train import weights_of
from pages import publish, table

import certframe
from certframe.cli.allocator import tune_allocator
from certframe.device import weights_hash
from certframe.worker import to_pixels

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reproduction" / "boundary.md"
WALKS = (10, 20, 40, 100)
"""Steps of the default search."""
PUBLISHED = {"cifar10": (0.120, 98.7), "lite0": (0.549, 72.1)}
"""Average distance and success rate (%) in [BND]: its CIFAR-10 network, and its standard ResNet-50."""
NOTHING = "Not measured yet."


@dataclass(frozen=True)
class Found:
    """What one search found for the images that all searches have, in one order."""

    success: np.ndarray
    distance: np.ndarray
    seconds: np.ndarray


def searches(model: certframe.Model, image: torch.Tensor,
             label: torch.Tensor) -> Iterator[tuple[str, Adversarial, float]]:
    """The stages of the published search, then walks: name, what was found, and seconds of CPU."""
    def timed(search: Callable[[], tuple[str, Adversarial] | None]) -> tuple[str, Adversarial, float] | None:
        begun = time.process_time()
        result = search()
        return None if result is None else (*result, time.process_time() - begun)

    published = stages(model.module, image, label)
    while (one := timed(lambda: next(published, None))) is not None:
        yield one
    for steps in WALKS:
        options = SearchOptions(steps=steps)
        one = timed(lambda options=options: (walk_name(options.steps),  # type: ignore[misc]
                                             nearest(model.module, image, label, options)))
        assert one is not None
        yield one


def walk_name(steps: int) -> str:
    """Of a walk, in the table."""
    return f"the default, {steps} steps"


def photographs(model: certframe.Model, folder: Path, wanted: int) -> list[Subject]:
    """Photographs in a fixed random order, explained as what the model predicts."""
    registry = certframe.default_registry()
    kind = registry.find("dataset", "folder").load()
    data = kind(kind.Options(path=folder))
    order = np.random.default_rng(0).permutation(len(data))[:wanted]
    found = []
    for index in order.tolist():
        image = to_pixels(model, data.load(index))
        with torch.no_grad():
            found.append(Subject(index, image, int(model.module(image[None]).argmax())))
    return found


def compute(model: certframe.Model, chosen: Sequence[Subject], lines: Lines, label: str) -> None:
    """Search from every image that has no result yet."""
    done = lines.by_image()
    for count, subject in enumerate(chosen, 1):
        if subject.index not in done:
            found = {name: [bool(one.success), float(one.distance), seconds] for name, one, seconds in searches(
                model, subject.image[None], torch.tensor([subject.target]))}
            lines.add(subject.index, {"found": found})
        print(f"{label}: {count} of {len(chosen)} images", flush=True)


def collect(lines: Lines, chosen: Sequence[Subject]) -> dict[str, Found]:
    """Name of a search → what it found, on the images that have results."""
    done = lines.by_image()
    rows = [done[subject.index]["found"] for subject in chosen if subject.index in done]
    names = list(rows[0]) if rows else []
    found = {name: np.array([row[name] for row in rows], dtype=float) for name in names}
    return {name: Found(values[:, 0] > 0, values[:, 1], values[:, 2]) for name, values in found.items()}


def together(parts: Sequence[Found]) -> Found:
    """The closest of several searches of the same images, at the cost of all."""
    distance = np.array([np.where(part.success, part.distance, np.inf) for part in parts]).min(0)
    return Found(np.isfinite(distance), distance, sum(part.seconds for part in parts))  # type: ignore[arg-type]


def stage_table(found: Mapping[str, Found], network: str) -> str:
    """One row for each stage and walk: by itself, and the published stages up to there."""
    if not found:
        return NOTHING
    walks = [walk_name(steps) for steps in WALKS]
    parts = {name: one for name, one in found.items() if name not in walks}
    rows, sofar = [], list[Found]()
    for name, one in parts.items():
        sofar.append(one)
        rows.append([name, *cells(one), *cells(together(sofar))])
    rows += [[name, *cells(found[name]), "", "", ""] for name in walks]
    distance, share = PUBLISHED[network]
    rows.append(["all stages, as published", f"{share} %", f"{distance:.3f}", "", "", "", ""])
    head = ["", "success", "mean l2", "CPU s", "so far: success", "mean l2", "CPU s"]
    return table(head, rows)


def cells(found: Found) -> list[str]:
    """Success rate, mean distance of the successes with its standard error, mean seconds."""
    distances = found.distance[found.success]
    mean = f"{distances.mean():.3f}" if len(distances) else "–"
    if len(distances) > 1:
        mean += f" ± {distances.std(ddof=1) / len(distances) ** 0.5:.3f}"
    return [f"{100 * found.success.mean():.1f} %", mean, f"{found.seconds.mean():.3g}"]


def reading(found: Mapping[str, Found]) -> str:
    """The default beside all stages together, and beside as many of them as take its time."""
    if not found:
        return NOTHING
    walks = [walk_name(steps) for steps in WALKS]
    parts = [one for name, one in found.items() if name not in walks]
    whole, said = together(parts), []
    for name in walks:
        walk = found[name]
        said.append(f"{name}: {against(walk, whole)} of all stages in "
                    f"{100 * walk.seconds.mean() / whole.seconds.mean():.1f} % of their time")
    longest = found[walks[-1]]
    affordable = [parts[:n] for n in range(1, len(parts) + 1)
                  if sum(p.seconds.mean() for p in parts[:n]) <= longest.seconds.mean()] or [parts[:1]]
    first = together(affordable[-1])
    said.append(f"{walks[-1]} beside the first {len(affordable[-1])} stages, which take "
                f"{100 * first.seconds.mean() / longest.seconds.mean():.0f} % of its time and succeed on "
                f"{100 * first.success.mean():.0f} %: {against(longest, first)} of theirs")
    return "\n".join([f"{len(whole.distance)} images.", "", *(f"- {line[0].upper()}{line[1:]}." for line in said)])


def against(one: Found, other: Found) -> str:
    """The ratio of the mean distances on the images where both succeed."""
    both = one.success & other.success
    if not both.any():
        return "no image in common with"
    return f"{one.distance[both].mean() / other.distance[both].mean():.2f} × the mean distance"


def main() -> None:
    """Search what is missing, and tabulate."""
    parser = argparse.ArgumentParser(description="Stages of the search for the nearest boundary.")
    parser.add_argument("--data", type=Path, metavar="DIR", help="folder with cifar10.npz, mnist.npz and imagenet_dev/ "
                        "(default: the folder that CERTFRAME_TEST_DATA names)")
    parser.add_argument("--out", type=Path, default=Path("runs/boundary"), metavar="DIR", help="results "
                        "(runs/boundary); what is there is not computed again")
    parser.add_argument("--weights", type=Path, default=Path("runs/eva"), metavar="DIR", help="folder of the weights "
                        "of eva_train.py (runs/eva)")
    parser.add_argument("--images", type=int, default=4, metavar="N", help="photographs; eight times as many images of "
                        "CIFAR-10 (4)")
    parser.add_argument("--set", nargs="+", choices=tuple(PUBLISHED), default=list(PUBLISHED), help="which (both)")
    parser.add_argument("--tables", action="store_true", help="only make the tables, from what is stored")
    parser.add_argument("--docs", action="store_true", help="write the tables into the documentation")
    given = parser.parse_args()
    folder = data_folder(parser, given.data)
    torch.set_num_threads(1)
    tune_allocator()
    parts = {}
    for name in given.set:
        model: certframe.Model
        if name == "cifar10":
            weights, _ = weights_of(name, folder, given.weights)
            model = model_of(name, weights)
            chosen = subjects(model, *images(folder / "cifar10.npz", "test"), 8 * given.images)
        else:
            model = certframe.default_registry().find("model", name).load()()
            chosen = photographs(model, folder / "imagenet_dev", given.images)
        key = fingerprint(weights_hash(model.module), repr(WALKS))
        lines = Lines(given.out / f"search-{name}.jsonl", key)
        if not given.tables:
            compute(model, chosen, lines, name)
        found = collect(lines, chosen)
        parts |= {f"search-{name}": stage_table(found, name), f"search-{name}-reading": reading(found)}
    publish(PAGE, parts, docs=given.docs)


if __name__ == "__main__":
    main()
