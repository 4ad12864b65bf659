"""Top-K overlap in the form of [LEV]: R_cert/K against the sparsification τ, against ρ and against σ.

    python scripts/studies/overlap.py --images 3 --samples 256                     # small
    python scripts/studies/overlap.py --images 64 --samples 8192 --data DIR        # the published size

One pass over the noisy copies serves all sparsifiers: their levels are summed together, in memory that does not depend
on the number of copies, and stored. Bounds, distances and percentiles are computed from the stored sums.

Source: Levine, Singla, Feizi, *Certifiably Robust Interpretation in Deep Learning*, 2019 [LEV].
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
import torch
from pages import publish, table
from percentiles import Percentile, order_statistics, percentile
from subjects import Bench, arguments, folder, limit_threads, samples
from torch import Tensor

from certframe.certifiers.overlap import TopKOverlap
from certframe.config import resolve
from certframe.statistics.bands import hoeffding_margin, overlap_certificates
from certframe.tally import REAL_UNIT, Tally

SIGMA, SIGMAS = 0.2, (0.1, 0.2, 0.4)
TAUS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
TAU, GAMMA = 0.1, 0.01
BATCH, SHARE, PUBLISHED = 8, 0.6, 8192
PAGE = Path(__file__).resolve().parents[2] / "docs" / "studies" / "overlap.md"
Scheme = tuple[str, float]
"""A sparsifier and its τ (0 when it has none)."""


def schemes(sigma: float) -> list[Scheme]:
    """What is summed at a noise level: every τ at the published σ, one τ at the others."""
    taus = TAUS if sigma == SIGMA else (TAU,)
    return [("scaled", 0.0), ("quadratic", 0.0), *(("sparsified", tau) for tau in taus),
            *(("relaxed", tau) for tau in taus if tau > GAMMA)]


def sparsifier_of(name: str, taus: Sequence[float]) -> Any:
    """A sparsifier with these τ; only `sparsified` takes several, and has a level for each, the largest first."""
    every: dict[str, dict[str, Any]] = {"sparsified": {"tau": list(taus)},
                                        "relaxed": {"tau": taus[0], "gamma": GAMMA}}
    return resolve({"sparsifier": {"name": name, **every.get(name, {})}}).sparsifier.build()


class Together:
    """Several sparsifiers as one with as many levels as there are schemes, so that one pass over the copies serves all.

    0/1 levels are summed as the numbers 0 and 1, exactly; `part` takes a scheme out again.
    """

    nested = False
    binary = False

    def __init__(self, wanted: Sequence[Scheme]) -> None:
        alone = [scheme for scheme in wanted if scheme[0] != "sparsified"]
        taus = sorted((tau for name, tau in wanted if name == "sparsified"), reverse=True)
        self._parts = [*(sparsifier_of(name, [tau]) for name, tau in alone), sparsifier_of("sparsified", taus)]
        self.levels = tuple(key(scheme) for scheme in (*alone, *(("sparsified", tau) for tau in taus)))

    def sparsify(self, maps: Tensor) -> Tensor:
        """(B,h,w) → (B,L,h,w) float32 in [0, 1]."""
        return torch.cat([part.sparsify(maps).float() for part in self._parts], dim=1)


def key(scheme: Scheme) -> str:
    """``relaxed 0.1``; the name alone when there is no τ."""
    return f"{scheme[0]} {scheme[1]:g}" if scheme[1] else scheme[0]


def part(tally: Tally, scheme: Scheme) -> Tally:
    """The tally of one scheme; with integer counts for `sparsified`, whose levels are 0 or 1."""
    at = tally.levels.index(key(scheme))
    unit = REAL_UNIT if scheme[0] == "sparsified" else 1
    return replace(tally, segments=tally.segments[:, at: at + 1] // unit, levels=(key(scheme),), nested=True,
                   unit=tally.unit // unit)


def tally_path(out: Path, copies: int, sigma: float, name: str) -> Path:
    """Where the sums of an image at a noise level are."""
    return out / f"q{copies}" / f"sigma{sigma:g}" / f"{Path(name).stem}.safetensors"


def sample_all(images: int, copies: int, data: Path | None, out: Path, sigmas: Sequence[float]) -> None:
    """Store the sums of every image and noise level; skip what is there."""
    bench = Bench(resolve({"attributor": {"name": "gradient", "channels": "stack"}, "sigma": list(sigmas),
                           "samples": copies, "batch_size": BATCH, "channels_last": True}))
    for sigma, cell in zip(sigmas, bench.cells.values(), strict=True):
        sampler = bench.sampler(Together(schemes(sigma)), (), copies, upsample=True)
        for sample in samples(images, data):
            path = tally_path(out, copies, sigma, sample.name)
            if path.exists():
                continue
            begun = time.monotonic()
            tally = sampler.sample(bench.subject(sample), [cell], 0, copies)[cell.key]
            path.parent.mkdir(parents=True, exist_ok=True)
            tally.save(path)
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            print(f"σ = {sigma:g}, {sample.name}: {time.monotonic() - begun:.0f} s, at most {peak:.0f} MB so far",
                  flush=True)


# -- from the sums to curves ------------------------------------------------------------------------------------------

ALPHA, K, RHO = 0.05, 20.0, 0.03


@dataclass(frozen=True)
class Curve:
    """R_cert/K of one image against the distance ρ in pixel units."""

    rho: np.ndarray
    overlap: np.ndarray

    def at(self, rho: float) -> float:
        """The value at a distance that the curve has as a point."""
        return float(self.overlap[int(np.flatnonzero(np.isclose(self.rho, rho))[0])])


def curve(tally: Tally, bounds: str) -> Curve:
    """The certified overlap of one scheme, by the certifier `top-k-overlap`."""
    options = TopKOverlap.Options.model_validate({"rho": RHO, "alpha": ALPHA, "k": (K,), "bounds": bounds})
    arrays = TopKOverlap(options).certify(tally).arrays
    return Curve(arrays["rho"], arrays["overlap"][0, 0])


def outlook(tally: Tally, copies: int) -> float:
    """R_cert/K at ρ by Hoeffding if the same means had been found with more copies: no certificate, a forecast."""
    mean, top = tally.mean[0], round(tally.pixels * K / 100)
    margin = hoeffding_margin(copies, tally.pixels, 1.0 - ALPHA)
    lower, upper = np.clip(mean - margin, 0.0, 1.0), np.clip(mean + margin, 0.0, 1.0)
    return float(overlap_certificates(lower, upper, top, np.array([RHO / tally.sigma]))[0] / top)


def variants(scheme: Scheme) -> list[str]:
    """The bounds that apply: Clopper–Pearson only to 0/1 levels."""
    return ["hoeffding", "clopper-pearson"] if scheme[0] == "sparsified" else ["hoeffding"]


@dataclass(frozen=True)
class Results:
    """Everything the tables and the figure need: curves by noise level, scheme and bounds, one per image.

    Attributes:
        curves: (σ, scheme, bounds) → a curve for each image.
        outlooks: scheme → the forecast at 8192 copies for each image, at the published σ.
    """

    curves: dict[tuple[float, Scheme, str], list[Curve]]
    outlooks: dict[Scheme, list[float]]

    def at(self, sigma: float, scheme: Scheme, bounds: str, rho: float = RHO) -> Percentile:
        """The percentile over images at a distance."""
        return percentile([curve.at(rho) for curve in self.curves[sigma, scheme, bounds]], SHARE)


def evaluate(paths: Mapping[float, Sequence[Path]]) -> Results:
    """Certify every stored sum."""
    found = Results({}, {})
    for sigma, files in paths.items():
        for file in files:
            together = Tally.load(file)
            for scheme in schemes(sigma):
                tally = part(together, scheme)
                for bounds in variants(scheme):
                    found.curves.setdefault((sigma, scheme, bounds), []).append(curve(tally, bounds))
                if sigma == SIGMA:
                    found.outlooks.setdefault(scheme, []).append(outlook(tally, PUBLISHED))
    return found


# -- tables and the figure --------------------------------------------------------------------------------------------

LINES: list[tuple[str, str]] = [("scaled", "hoeffding"), ("quadratic", "hoeffding"), ("sparsified", "hoeffding"),
                                ("relaxed", "hoeffding"), ("sparsified", "clopper-pearson")]
HEAD = ["scaled", "quadratic", "sparsified", "relaxed", "sparsified, Clopper–Pearson"]


def of(name: str, tau: float) -> Scheme:
    """The scheme of that name; those without a τ ignore it."""
    return name, (0.0 if name in ("scaled", "quadratic") else tau)


def against_tau(found: Results) -> str:
    """R_cert/K against τ, at the published σ and ρ."""
    rows = [[f"{tau:g}", *(str(found.at(SIGMA, of(name, tau), bounds)) if (SIGMA, of(name, tau), bounds) in found.curves
                           else "" for name, bounds in LINES[2:]),
             str(percentile(found.outlooks["sparsified", tau], SHARE))] for tau in TAUS]
    return table(["τ", *HEAD[2:], f"forecast: sparsified, Hoeffding, q = {PUBLISHED}"], rows)


def against_rho(found: Results) -> str:
    """R_cert/K against ρ, at the published σ."""
    rho = found.curves[SIGMA, ("scaled", 0.0), "hoeffding"][0].rho
    rows = [[f"{r:.4g}", *(str(found.at(SIGMA, of(name, TAU), bounds, float(r))) for name, bounds in LINES)]
            for r in rho[rho <= SIGMA / 2 + 1e-9][::2].tolist() + [RHO]]
    return table(["ρ", *HEAD], sorted(rows, key=lambda row: float(row[0])))


def against_sigma(found: Results) -> str:
    """R_cert/K against σ, at the published ρ."""
    sigmas = sorted({sigma for sigma, _, _ in found.curves})
    rows = [[f"{sigma:g}", str(len(found.curves[sigma, ("scaled", 0.0), "hoeffding"])),
             *(str(found.at(sigma, of(name, TAU), bounds)) for name, bounds in LINES)] for sigma in sigmas]
    return table(["σ", "images", *HEAD], rows)


def figure(found: Results, common: Results, path: Path) -> None:
    """The three curves side by side, as in [LEV]; the last one of the images that all noise levels have in common."""
    import matplotlib as mpl
    mpl.use("Agg")
    from matplotlib import pyplot

    sheet, axes = pyplot.subplots(1, 3, figsize=(12, 3.8), sharey=True, layout="constrained")
    sigmas = sorted({sigma for sigma, _, _ in common.curves})
    rho = found.curves[SIGMA, ("scaled", 0.0), "hoeffding"][0].rho
    for (name, bounds), text in zip(LINES, HEAD, strict=True):
        taus = [tau for tau in TAUS if (SIGMA, of(name, tau), bounds) in found.curves]
        drawn: list[tuple[Sequence[float], list[Percentile]]] = [
            (taus, [found.at(SIGMA, of(name, tau), bounds) for tau in taus]),
            (rho.tolist(), [found.at(SIGMA, of(name, TAU), bounds, float(r)) for r in rho]),
            (sigmas, [common.at(sigma, of(name, TAU), bounds) for sigma in sigmas])]
        for axis, (x, values) in zip(axes, drawn, strict=True):
            line, = axis.plot(x, [v.value for v in values], marker="o" if len(x) < 10 else "", markersize=3, label=text)
            if any((v.low, v.high) != (0.0, 1.0) for v in values):
                axis.fill_between(x, [v.low for v in values], [v.high for v in values], color=line.get_color(),
                                  alpha=0.1, linewidth=0)
    axes[0].set(xlabel=f"τ   (σ = {SIGMA:g}, ρ = {RHO:g})", ylabel="R_cert / K, 60th percentile", ylim=(0, 1),
                xscale="log")
    axes[1].set(xlabel=f"ρ   (σ = {SIGMA:g}, τ = {TAU:g})")
    axes[2].set(xlabel=f"σ   (ρ = {RHO:g}, τ = {TAU:g})")
    axes[2].legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.savefig(path, dpi=110, metadata={"Software": None})
    pyplot.close(sheet)


def size(images: Mapping[float, Sequence[Path]], copies: int) -> str:
    """What the tables are from, in a sentence."""
    count = len(images[SIGMA])
    low, high = order_statistics(count, SHARE)
    ends = f"value {low}" if low else "0", f"value {high}" if high <= count else "1"
    interval = ("In brackets the 95 % confidence interval of the 60th percentile over images: from "
                f"{ends[0]} to {ends[1]} of the {count} in ascending order." if ends != ("0", "1") else
                "So few images give no confidence interval of a percentile.")
    return (f"{count} images, q = {copies} copies, N = 224·224·3, K = {K:g} % of N, p = {1 - ALPHA:g}, γ = {GAMMA:g}. "
            f"Hoeffding's margin is {hoeffding_margin(copies, 224 * 224 * 3, 1 - ALPHA):.4f}. {interval}")


def reading(found: Results) -> str:
    """The highest values against τ, in words."""
    best = {}
    for (name, bounds), text in zip(LINES, HEAD, strict=True):
        taus = [tau for tau in TAUS if (SIGMA, of(name, tau), bounds) in found.curves]
        value, tau = max((found.at(SIGMA, of(name, tau), bounds).value, -tau) for tau in taus)
        best[text] = (value, f" (τ = {-tau:g})" if name in ("sparsified", "relaxed") and value else "")
    values = ", ".join(f"{text} {value:.3f}{at}" for text, (value, at) in best.items())
    return f"R_cert/K at σ = {SIGMA:g} and ρ = {RHO:g}, each at its best τ: {values}."


def main() -> None:
    """Sum what is missing, and print the tables."""
    parser = arguments("Certified top-K overlap as in [LEV].", images=3, out="runs/study-overlap")
    parser.add_argument("--samples", type=int, default=256, metavar="Q", help="noisy copies of each image (256)")
    parser.add_argument("--sigma", type=float, nargs="+", default=[SIGMA, *(s for s in SIGMAS if s != SIGMA)],
                        help="noise levels, the published 0.2 among them")
    given = parser.parse_args()
    limit_threads(given.threads)
    if not given.tables:
        sample_all(given.images, given.samples, folder(given.data), given.out, given.sigma)
    there = {sigma: sorted((given.out / f"q{given.samples}" / f"sigma{sigma:g}").glob("*.safetensors"))
             for sigma in given.sigma}
    there = {sigma: files for sigma, files in there.items() if files}
    if SIGMA not in there:
        parser.error(f"nothing is stored at σ = {SIGMA:g} in {given.out}: sample with it first")
    names = set.intersection(*({file.name for file in files} for files in there.values()))
    found = evaluate({SIGMA: there[SIGMA]})
    common = evaluate({sigma: [file for file in files if file.name in names] for sigma, files in there.items()})
    parts = {"size": size(there, given.samples), "reading": reading(found), "tau": against_tau(found),
             "rho": against_rho(found), "sigma": against_sigma(common)}
    publish(PAGE, parts, docs=given.docs)
    figure(found, common, PAGE.with_name("overlap.png") if given.docs else given.out / "overlap.png")


if __name__ == "__main__":
    main()
