"""How many masks does RISE need for each noisy copy, when every copy has masks of its own, and when all share one set?

    python scripts/studies/rise_masks.py --images 2 --out RUN            # on, from where it was stopped
    python scripts/studies/rise_masks.py --tables --docs --out RUN       # the page, of what is there

The first 25 of 1000 independent masks are 25 independent masks: so one pass over 1000 masks gives the maps of 25, 100,
200, 400 and 1000, for the same noisy copies. The sums of the maps so far are stored after every 25 masks, small numbers
of masks are finished first, and an interrupted study goes on where it was.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
import torch
from pages import publish, table
from safetensors import safe_open
from safetensors.torch import save
from scipy.stats import spearmanr
from subjects import Bench, arguments, folder, limit_threads, samples
from torch import Tensor

from certframe.certifiers.pixel import Pixel
from certframe.cli.allocator import tune_allocator
from certframe.config import component, resolve
from certframe.files import write_atomic
from certframe.noise import CopyRng, GaussianNoise
from certframe.protocols import Attribution, Attributor, Model, Rng
from certframe.sampling import Subject
from certframe.tally import Tally

COPIES, BLOCK, SIGMA = 100, 25, 0.15
COUNTS = (25, 100, 200, 400, 1000)
KINDS = {"fresh": True, "fixed": False}
OTHERS: tuple[str | dict[str, Any], ...] = (
    *({"name": name, "layer": "input"} for name in (
        "gradient", "guided-backprop", "input-x-gradient", "integrated-gradients", "lrp", "cam", "grad-cam",
        "grad-cam++", "ablation-cam", "layer-cam")),
    {"name": "occlusion", "patch": 32, "stride": 16})
"""The other methods of [PIX] at the input; occlusion with patches of twice the side and a quarter of the passes."""
PAGE = Path(__file__).resolve().parents[2] / "docs" / "studies" / "rise-masks.md"


@dataclass
class Sums:
    """The maps of the copies of one image, summed over the masks so far.

    Attributes:
        maps: (copies,H,W) float32, the sum over blocks of the blocks' maps.
        blocks: how many blocks of masks.
    """

    maps: Tensor
    blocks: int

    @property
    def masks(self) -> int:
        """The number of masks for each copy."""
        return self.blocks * BLOCK

    def save(self, path: Path) -> None:
        """Write to one file, atomically."""
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, save({"maps": self.maps}, metadata={"blocks": str(self.blocks)}))

    @classmethod
    def load(cls, path: Path, side: int) -> Sums:
        """Read what is there, or begin."""
        if not path.exists():
            return cls(torch.zeros(COPIES, side, side), 0)
        with safe_open(str(path), framework="pt") as file:
            return cls(file.get_tensor("maps"), int(file.metadata()["blocks"]))


def block(bench: Bench, subject: Subject, *, fresh: bool, number: int) -> Tensor:
    """(copies,H,W): RISE with one more block of masks, which are independent of those of all other blocks."""
    method = component("attributor", {"name": "rise", "masks": BLOCK, "fresh": fresh, "batch": BLOCK}).build()
    noise, maps = GaussianNoise(bench.config.seed, subject.key), []
    for first in range(0, COPIES, BLOCK):
        copies = range(first, first + BLOCK)
        noisy = subject.image + SIGMA * noise.draw(first, first + BLOCK, subject.image.shape, bench.device)
        targets = torch.full((BLOCK,), subject.target, device=bench.device)
        rng = CopyRng(bench.config.seed, subject.key, f"block {number}", copies, bench.device)
        maps.append(method.attribute(bench.model, noisy, targets, rng=rng).maps.cpu())
    return torch.cat(maps)


class Replay:
    """An attributor that says what was computed before, copy after copy."""

    def __init__(self, maps: Tensor) -> None:
        self._batches = iter(torch.split(maps, BLOCK))

    def attribute(self, model: Model, inputs: Tensor, targets: Tensor, *, rng: Rng) -> Attribution:
        """The next batch."""
        return Attribution(next(self._batches))


def count(bench: Bench, subject: Subject, maps: Tensor) -> Tally:
    """What a run would have counted."""
    cell = replace(next(iter(bench.cells.values())), attributor=cast("Attributor", Replay(maps)))
    sampler = bench.sampler(bench.config.sparsifier.build(), (), COPIES, upsample=True)
    return sampler.sample(subject, [cell], 0, COPIES)[cell.key]


def place(out: Path, name: str, kind: str, masks: int | str) -> Path:
    """Where the counts of so many masks are, or (``sums``) the maps so far."""
    return out / Path(name).stem / kind / f"{masks}.safetensors"


def sample_all(images: int, data: Path | None, out: Path, only: Sequence[str], kinds: Sequence[str]) -> None:
    """Add masks until every image has 1000 of each kind: all to 25 first, then all to 100, …"""
    bench = Bench(resolve({"attributor": "rise", "samples": COPIES, "sigma": SIGMA, "batch_size": BLOCK}))
    subjects = [bench.subject(s) for s in samples(images, data) if not only or Path(s.name).stem in only]
    bench.model.module.compile(dynamic=False)  # forward passes of one size: worth the minute
    for goal in COUNTS:
        for kind in kinds:
            for subject in subjects:
                if not place(out, subject.name, kind, goal).exists():
                    advance(bench, subject, out, goal, kind, fresh=KINDS[kind])


def advance(bench: Bench, subject: Subject, out: Path, goal: int, kind: str, *, fresh: bool) -> None:
    """Go on to so many masks, and store the counts and the mean map there."""
    path = place(out, subject.name, kind, "sums")
    sums, begun = Sums.load(path, subject.image.shape[-1]), time.monotonic()
    while sums.masks < goal:
        sums.maps += block(bench, subject, fresh=fresh, number=sums.blocks)
        sums.blocks += 1
        sums.save(path)
        print(f"{subject.name}, {kind}: {sums.masks} masks, {time.monotonic() - begun:.0f} s", flush=True)
    if sums.masks == goal:
        np.save(place(out, subject.name, kind, goal).with_suffix(".npy"), (sums.maps.mean(0) / sums.blocks).numpy())
        count(bench, subject, sums.maps).save(place(out, subject.name, kind, goal))


def sample_others(images: int, data: Path | None, out: Path, only: Sequence[str]) -> None:
    """Count what the other methods say of the same noisy copies."""
    bench = Bench(resolve({"attributor": list(OTHERS), "samples": COPIES, "sigma": SIGMA}))
    names = [method.name for method in bench.config.attributor]
    for subject in (bench.subject(s) for s in samples(images, data) if not only or Path(s.name).stem in only):
        for name, cell in zip(names, bench.cells.values(), strict=True):
            path = place(out, subject.name, "others", name)
            if not path.exists():
                sampler = bench.sampler(bench.config.sparsifier.build(), (), COPIES, upsample=True)
                path.parent.mkdir(parents=True, exist_ok=True)
                sampler.sample(subject, [cell], 0, COPIES)[cell.key].save(path)
                print(f"{subject.name}: {name}", flush=True)


# -- from the counts to tables and the curve --------------------------------------------------------------------------

@dataclass(frozen=True)
class Found:
    """One image with so many masks of one kind.

    Attributes:
        image: its name.
        kind: ``fresh`` or ``fixed``.
        masks: N.
        labels: (levels,H,W) certified labels.
        mean: (H,W), the mean map of the copies.
        correlation: rank correlation with what RISE would give with very many masks; NaN where that is not known.
        contradicted: share of the certified labels that are certified otherwise with the most masks there are.
    """

    image: str
    kind: str
    masks: int
    labels: np.ndarray
    mean: np.ndarray
    correlation: float = float("nan")
    contradicted: float = float("nan")

    @property
    def area(self) -> float:
        """Share of the pixels that are certified, over all levels."""
        return float((self.labels >= 0).mean())

    def important(self, level: int) -> float:
        """Share of the pixels that are certified important at a level."""
        return float((self.labels[level] == 1).mean())


def stored(out: Path) -> list[Found]:
    """Everything that is there, certified, and compared with the most fresh masks."""
    found = []
    for image in sorted({path.parents[1].name for path in out.glob("*/*/*.npy")}):
        here = [Found(image, kind, masks, np.asarray(Pixel().certify(Tally.load(path)).labels),
                      np.load(path.with_suffix(".npy")))
                for kind in KINDS for masks in COUNTS if (path := place(out, image, kind, masks)).exists()]
        most = max((one for one in here if one.kind == "fresh"), key=lambda one: one.masks)
        found += [against(one, most) for one in here]
    return found


def against(one: Found, most: Found) -> Found:
    """Compared with the mean map of those of the most fresh masks that are not its own."""
    own = one.masks if one.kind == "fresh" else 0
    if own == most.masks:
        return one
    others = (most.masks * most.mean - own * one.mean) / (most.masks - own)
    certified = one.labels >= 0
    otherwise = certified & (most.labels >= 0) & (one.labels != most.labels)
    return replace(one, correlation=float(spearmanr(one.mean.ravel(), others.ravel()).statistic),
                   contradicted=float(otherwise.sum() / max(1, certified.sum())))


def groups(found: Sequence[Found]) -> dict[tuple[str, int], list[Found]]:
    """By kind and number of masks; those that all images have."""
    images = {one.image for one in found}
    by = {(kind, masks): [one for one in found if (one.kind, one.masks) == (kind, masks)]
          for kind in KINDS for masks in COUNTS}
    return {key: group for key, group in by.items() if len(group) == len(images)}


def area(found: Sequence[Found]) -> str:
    """Certified area against cost, means over images."""
    rows = []
    for (kind, masks), group in groups(found).items():
        shares = [np.mean([one.area for one in group]),
                  *(np.mean([one.important(level) for one in group]) for level in range(3))]
        known = not any(np.isnan(one.correlation) for one in group)
        rows.append([kind, str(masks), str(masks * COPIES), *(f"{share:.1%}" for share in shares),
                     f"{np.mean([one.correlation for one in group]):.3f}" if known else "",
                     f"{np.mean([one.contradicted for one in group]):.2%}" if known else ""])
    return table(["masks are", "masks", "passes an image", "certified area", "important, K = 50", "K = 25", "K = 5",
                  "rank correlation", "contradicted"], rows)


def others(found: Sequence[Found], out: Path) -> str:
    """Certified area of RISE with the most masks of each kind, and of the other methods, the largest mean first."""
    names = list(dict.fromkeys(one.image for one in found))
    rows: dict[str, dict[str, float]] = {}
    for one in found:  # more masks come later, and replace fewer
        rows.setdefault(f"`rise`, {one.kind}", {})[one.image] = one.area
    most = {(one.kind, one.image): one.masks for one in found}
    for name in names:
        for path in sorted((out / name / "others").glob("*.safetensors")):
            labels = np.asarray(Pixel().certify(Tally.load(path)).labels)
            rows.setdefault(f"`{path.stem}`", {})[name] = float((labels >= 0).mean())
    complete = {method: areas for method, areas in rows.items() if len(areas) == len(names)}
    order = sorted(complete, key=lambda method: -np.mean(list(complete[method].values())))

    def cell(method: str, name: str) -> str:
        kind = method.rpartition(", ")[2]
        return f"{complete[method][name]:.1%}" + (f" ({most[kind, name]} masks)" if (kind, name) in most else "")

    return table(["method", *names], [[method, *(cell(method, name) for name in names)] for method in order])


def images(found: Sequence[Found]) -> str:
    """Certified area of each image."""
    names = list(dict.fromkeys(one.image for one in found))
    areas = {(one.image, one.kind, one.masks): f"{one.area:.1%}" for one in found}
    rows = [[kind, str(masks), *(areas.get((name, kind, masks), "") for name in names)]
            for kind in KINDS for masks in COUNTS if any((name, kind, masks) in areas for name in names)]
    return table(["masks are", "masks", *names], rows)


def size(found: Sequence[Found]) -> str:
    """What is there and what is not, in words."""
    have = groups(found)
    missing = [f"{masks} {kind}" for kind in KINDS for masks in COUNTS if (kind, masks) not in have]
    text = f"Images: {', '.join(dict.fromkeys(one.image for one in found))}."
    return text + (f" Not yet computed for all of them: {', '.join(missing)}." if missing else "")


def figure(found: Sequence[Found], path: Path) -> None:
    """Certified area, and rank correlation, against the number of masks; a thin line for each image."""
    import matplotlib as mpl
    mpl.use("Agg")
    from matplotlib import pyplot

    sheet, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for kind, colour in zip(KINDS, ("#d55e00", "#0072b2"), strict=True):
        means = {masks: group for (k, masks), group in groups(found).items() if k == kind}
        for axis, value in ((left, "area"), (right, "correlation")):
            for name in dict.fromkeys(one.image for one in found):
                mine = [one for one in found if (one.image, one.kind) == (name, kind)]
                axis.plot([one.masks for one in mine], [getattr(one, value) for one in mine], color=colour,
                          linewidth=0.7, alpha=0.5)
            axis.plot(list(means), [np.mean([getattr(one, value) for one in group]) for group in means.values()], "o-",
                      color=colour, label=kind)
    for axis, name in ((left, "certified area"), (right, "rank correlation with many masks")):
        axis.set(xscale="log", xlabel=f"masks for each copy; {COPIES} times as many forward passes", ylabel=name,
                 ylim=(0, 1))
        axis.set_xticks(COUNTS, [str(masks) for masks in COUNTS])
        axis.set_xticks([], minor=True)
    left.legend(title="masks are", fontsize=8)
    sheet.savefig(path, dpi=110, metadata={"Software": None})
    pyplot.close(sheet)


def main() -> None:
    """Compute what is missing and make the page."""
    parser = arguments("Masks for each noisy copy in RISE.", images=2, out="runs/study-rise-masks")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="only these of the images")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="only these kinds of masks")
    given = parser.parse_args()
    limit_threads(given.threads)
    tune_allocator()
    if not given.tables:
        sample_others(given.images, folder(given.data), given.out, given.only)
        sample_all(given.images, folder(given.data), given.out, given.only, given.kinds)
    found = stored(given.out)
    if not found:
        parser.error(f"nothing is stored in {given.out}: compute first, without --tables")
    publish(PAGE, {"others": others(found, given.out)} | {make.__name__: make(found) for make in (size, area, images)},
            docs=given.docs)
    figure(found, PAGE.with_suffix(".png") if given.docs else given.out / "rise-masks.png")


if __name__ == "__main__":
    main()
