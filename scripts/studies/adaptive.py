"""How many samples does adaptive sampling need, and what area does it certify? Against fixed n, and [PIX]'s rule.

    python scripts/studies/adaptive.py --images 3                  # the three photographs
    python scripts/studies/adaptive.py --images 12 --data DIR      # and nine of a folder

Counts are sampled once per image and method, kept apart at many numbers of copies, and stored; every stopping rule is
then applied to the stored counts as if it had been in charge: at each of its looks it sees the counts so far and
nothing else. An interrupted study goes on where it was.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
from pages import publish, table
from stopping import Rule, fixed_area, mean_and_error, replay, share, walk
from subjects import Bench, arguments, folder, limit_threads, samples

from certframe.config import resolve
from certframe.registry import default_registry
from certframe.statistics.sequential import geometric_looks
from certframe.tally import Tally

SAMPLES, BATCH = 1000, 8
CUTS = (10, 64, 80, 96, 100, 112, 136, 160, 192, 232, 272, 320, 384, 456, 544, 648, 768, 912)
METHODS: dict[str, dict[str, Any]] = {
    "gradient": {"name": "gradient"}, "grad-cam": {"name": "grad-cam"}, "lrp": {"name": "lrp"},
    "rise": {"name": "rise", "masks": 10, "fresh": False},
}
RESOLUTIONS = {"gradient": ("input",), "grad-cam": ("input", "native"), "lrp": ("input",), "rise": ("input",)}
"""At which resolutions the maps are counted: the feature map of Grad-CAM has 7×7 values."""

PAGE = Path(__file__).resolve().parents[2] / "docs" / "studies" / "adaptive.md"


def available() -> dict[str, dict[str, Any]]:
    """The methods of the study whose plugins are installed."""
    names = {entry.name for entry in default_registry().entries("attributor")}
    return {key: reference for key, reference in METHODS.items() if reference["name"] in names}


def sample_all(images: int, data: Path | None, out: Path, methods: dict[str, dict[str, Any]]) -> None:
    """Store a tally per image, method and resolution that differs; skip what is there."""
    bench = Bench(resolve({"attributor": list(methods.values()), "samples": SAMPLES, "batch_size": BATCH,
                           "channels_last": True}))
    sparsifier = bench.config.sparsifier.build()
    cells = dict(zip(methods, bench.cells.values(), strict=True))
    for sample in samples(images, data):
        subject = bench.subject(sample)
        for method, cell in cells.items():
            paths = {resolution: out / method / resolution / f"{Path(sample.name).stem}.safetensors"
                     for resolution in RESOLUTIONS[method]}
            if all(path.exists() for path in paths.values()):
                continue
            begun = time.monotonic()
            samplers = [bench.sampler(sparsifier, CUTS, SAMPLES, upsample=size == "input") for size in paths]
            tallies = bench.both(subject, cell, samplers, SAMPLES) if len(paths) > 1 else \
                [samplers[0].sample(subject, [cell], 0, SAMPLES)[cell.key]]
            for path, tally in zip(paths.values(), tallies, strict=True):
                path.parent.mkdir(parents=True, exist_ok=True)
                tally.save(path)
            print(f"{method:9} {sample.name}: {time.monotonic() - begun:.0f} s", flush=True)


# -- from the counts to tables ----------------------------------------------------------------------------------------

Counts = dict[str, dict[str, Tally]]
"""Method (with its resolution, where that is not the input's) → image → tally."""
USUAL = geometric_looks(SAMPLES)
FINE = tuple(n for n in CUTS if n in USUAL or n in (112, 160, 232, 320, 456, 648, 912)) + (SAMPLES,)
COARSE = (96, 192, 384, 768, SAMPLES)
BEFORE = Rule(calibrated=False, step_down=False, predict=False, futility=0.02, enough=1.0)
"""Union bound, no step-down, stop when at most 2 % of the pixels are on course."""
LEVERS: dict[str, Rule] = {
    "union bound, no step-down, 2 % on course": BEFORE,
    "+ calibrated spending": replace(BEFORE, calibrated=True),
    "+ step-down": replace(BEFORE, calibrated=True, step_down=True),
    "+ prediction: 1 % expected": replace(BEFORE, calibrated=True, step_down=True, predict=True, futility=0.01),
    "+ 96 % of the end is enough (default)": Rule(),
    "default, looks a factor ⁴√2 apart": Rule(looks=FINE),
    "default, looks a factor 2 apart": Rule(looks=COARSE),
    "default, union bound": Rule(calibrated=False),
    "default, no step-down": Rule(step_down=False),
    "default, enough = 0.98": Rule(enough=0.98),
    "default, enough = 0.94": Rule(enough=0.94),
    "default, futility = 0.02": Rule(futility=0.02),
    "default, never stop early": Rule(futility=0.0, enough=1.0),
}


def stored(out: Path) -> Counts:
    """Everything that has been sampled."""
    found: Counts = {}
    for method in METHODS:
        for resolution in RESOLUTIONS[method]:
            files = sorted((out / method / resolution).glob("*.safetensors"))
            name = method if resolution == "input" else f"{method}, {resolution}"
            if files:
                found[name] = {file.stem: Tally.load(file) for file in files}
    return found


def with_error(values: Sequence[float], digits: int, unit: str = "") -> str:
    """``544 ± 60``."""
    mean, error = mean_and_error(values)
    return f"{mean:.{digits}f}{unit}" + ("" if np.isnan(error) else f" ± {error:.{digits}f}{unit}")


@dataclass(frozen=True)
class Score:
    """What the default rule does to the images of one method, in percent.

    Attributes:
        full: certified area with fixed n.
        used: samples drawn, of n.
        kept: area certified, of `full`.
    """

    full: list[float]
    used: list[float]
    kept: list[float]

    @property
    def reached(self) -> bool:
        """Whether at least 95 % of the area needs at most 60 % of the samples, on average."""
        return bool(np.mean(self.used) <= 60 and np.mean(self.kept) >= 95)


def scores(counts: Counts) -> dict[str, Score]:
    """The default rule, by method."""
    found = {}
    for method, tallies in counts.items():
        full = [fixed_area(tally, SAMPLES) for tally in tallies.values()]
        outcomes = [replay(tally, Rule()) for tally in tallies.values()]
        found[method] = Score([100 * f for f in full], [100 * o.samples / SAMPLES for o in outcomes],
                              [100 * share(o.area, f) for o, f in zip(outcomes, full, strict=True)])
    return found


def overall(found: dict[str, Score]) -> Score:
    """The mean over the images of each method at input resolution, as a value per method."""
    at_input = [score for method, score in found.items() if "native" not in method]
    return Score(*([float(np.mean(getattr(score, name))) for score in at_input] for name in ("full", "used", "kept")))


def summary(counts: Counts) -> str:
    """Samples and area of the default against fixed n, a row per method, and the mean over methods at input size."""
    found = scores(counts)
    rows = [[method, str(len(score.full)), *(with_error(getattr(score, name), digits, " %") for name, digits in
                                             (("full", 1), ("used", 0), ("kept", 1))), "yes" if score.reached else "no"]
            for method, score in found.items()]
    mean = overall(found)
    rows.append(["mean of the methods at input resolution", "", "", f"{np.mean(mean.used):.0f} %",
                 f"{np.mean(mean.kept):.1f} %", "yes" if mean.reached else "no"])
    return table(["method", "images", f"area, fixed n = {SAMPLES}", "samples used", "area kept", "aim reached"], rows)


def verdict(counts: Counts) -> str:
    """Whether the aim is reached, and for which methods, in words."""
    found = scores(counts)
    names = {True: [m for m, s in found.items() if s.reached], False: [m for m, s in found.items() if not s.reached]}
    mean = overall(found)
    every = [kept for score in found.values() for kept in score.kept]
    return (f"The aim is reached for: {'; '.join(names[True]) or 'no method'}. Not reached for: "
            f"{'; '.join(names[False]) or 'none'}. On average over the methods it is "
            f"{'reached' if mean.reached else 'not reached'}. The image that lost most kept {min(every):.1f} % of the "
            "area.")


def levers(counts: Counts) -> str:
    """Mean samples and mean relative area of every rule, and of smaller fixed n."""
    rows = []
    full = {method: [fixed_area(t, SAMPLES) for t in images.values()] for method, images in counts.items()}
    for name, rule in LEVERS.items():
        cells = []
        for method, images in counts.items():
            outcomes = [replay(tally, rule) for tally in images.values()]
            kept = [share(o.area, f) for o, f in zip(outcomes, full[method], strict=True)]
            cells.append(f"{np.mean([o.samples for o in outcomes]):.0f}, {np.mean(kept):.1%}")
        rows.append([name, *cells])
    for n in (192, 384, 544, 648, 768):
        kept_at = [np.mean([share(fixed_area(t, n), f) for t, f in zip(images.values(), full[method], strict=True)])
                   for method, images in counts.items()]
        rows.append([f"`pixel`, fixed n = {n}", *(f"{n}, {kept:.1%}" for kept in kept_at)])
    return table(["rule", *counts], rows)


def images(counts: Counts) -> str:
    """Every image: samples and why, area kept."""
    names = list(dict.fromkeys(name for tallies in counts.values() for name in tallies))
    rows = []
    for name in names:
        cells = []
        for tallies in counts.values():
            if name in tallies:
                outcome, full = replay(tallies[name], Rule()), fixed_area(tallies[name], SAMPLES)
                cells.append(f"{outcome.samples}, {outcome.reason}: {outcome.area:.3f} of {full:.3f} "
                             f"({share(outcome.area, full):.1%})")
            else:
                cells.append("")
        rows.append([name.replace("_", " "), *cells])
    return table(["image", *counts], rows)


def prediction(counts: Counts) -> str:
    """Predicted minus reached area of the last look, by the look at which it was predicted, in percent of pixels."""
    errors: dict[str, list[list[float]]] = {}
    for method, tallies in counts.items():
        walks = [list(walk(tally, Rule())) for tally in tallies.values()]
        errors[method] = [[100 * (steps[j][1] + steps[j][2] - steps[-1][1]) for steps in walks]
                          for j in range(len(USUAL) - 1)]
    rows = [[str(n), *(f"{np.mean(found[j]):+.1f} ({np.max(np.abs(found[j])):.1f})" for found in errors.values())]
            for j, n in enumerate(USUAL[:-1])]
    return table(["look", *counts], rows)


def hundred(counts: Counts) -> str:
    """The published rule against `pixel` at n = 100."""
    rows = []
    for method, tallies in counts.items():
        paper = [fixed_area(t, 100, correction="paper") for t in tallies.values()]
        holm = [fixed_area(t, 100) for t in tallies.values()]
        gain = [100 * (share(h, p) - 1) for h, p in zip(holm, paper, strict=True)]
        areas = [with_error([100 * area for area in found], 1, " %") for found in (paper, holm)]
        rows.append([method, *areas, with_error(gain, 1, " %"), f"{min(gain):.1f} to {max(gain):.1f} %"])
    return table(["method", "[PIX]: n₀ = 10, n = 100", "`pixel`, n = 100", "more area", "smallest to largest"], rows)


def size(counts: Counts) -> str:
    """What has been sampled and what has not, in a sentence."""
    missing = [method for method in METHODS if method not in counts]
    return ("Images: " + "; ".join(f"{method}: {len(tallies)}" for method, tallies in counts.items()) + "."
            + (f" Not yet sampled: {', '.join(missing)}." if missing else ""))


def main() -> None:
    """Sample what is missing and print the tables."""
    parser = arguments("Samples and certified area of adaptive sampling.", images=3, out="runs/study-adaptive")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), help="only some of the methods")
    given = parser.parse_args()
    limit_threads(given.threads)
    if not given.tables:
        methods = {key: reference for key, reference in available().items() if key in given.methods}
        sample_all(given.images, folder(given.data), given.out, methods)
    counts = stored(given.out)
    if not counts:
        parser.error(f"nothing is stored in {given.out}: sample first, without --tables")
    parts = {make.__name__: make(counts) for make in (size, summary, verdict, images, levers, prediction, hundred)}
    publish(PAGE, parts, docs=given.docs)


if __name__ == "__main__":
    main()
