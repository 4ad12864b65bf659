"""How much of an explanation survives an attack, and how much is certified to: figures 4 and 14 of [LEV].

    python scripts/reproduction/attack_curves.py --weights cifar10.safetensors --data DIR --out runs/attack
    python scripts/reproduction/attack_curves.py … --docs       # and write page and figure

The network is that of scripts/reproduction/eva_train.py, DIR has cifar10.npz. What is in --out is not computed again.

A. Levine, S. Singla, S. Feizi. Certifiably robust interpretation in deep learning. 2019 [LEV].
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "studies"))
sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
import torch
from certframe_boundary.explained import Explained, class_of
from certframe_boundary.explanation_attack import AttackOptions, attack, mean_map, overlap
from certframe_boundary.softplus import Softened
from eva_nets import images, model_of
from pages import publish, table
from torch import Tensor

import certframe

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reproduction" / "explanation-attack.md"
VARIANTS = {"plain": "saliency", "smoothed": "smoothed saliency", "sparsified": "sparsified and smoothed"}
COLOURS = {"plain": "#d55e00", "smoothed": "#0072b2", "sparsified": "#009e73"}
RADII = (0.03, 0.06, 0.12, 0.24)
IMAGES, SIGMA, K, COPIES, MEASURED, CERTIFIED = 12, 0.2, 20.0, 8, 256, 4096
EFFORT = {"steps": 10, "restarts": 2, "tries": 20, "k": K, "chunk": 64}
BETA = 20.0


class Bench:
    """The network, the images that it classifies rightly, and the maps."""

    def __init__(self, weights: Path, data: Path) -> None:
        self.model = model_of("cifar10", weights)
        self.predict = class_of(self.model)
        x, y = images(data / "cifar10.npz", "test")
        x, y = x[:200], y[:200]
        rows = torch.nonzero(self.predict(x) == y)[:IMAGES, 0]
        self.x, self.y = x[rows], y[rows]
        self.method = certframe.build("attributor", "gradient", ["attributor.channels=stack"])

    def maps(self, variant: str, *, soft: bool, copies: int, seed: int) -> Explained:
        """Maps to attack, of a softplus copy, or to measure with."""
        model = Softened(self.model, BETA) if soft else self.model
        return Explained(model, self.method, self.y, variant=variant, sigma=SIGMA, samples=copies,  # type: ignore[arg-type]
                         tau=K / 100, seed=seed)

    def overlaps(self, variant: str, moved: Tensor) -> list[float]:
        """Top-K overlap of every image with its attacked one, the smoothed maps over the same fresh noise."""
        measure = self.maps(variant, soft=False, copies=MEASURED, seed=1)
        return [float(v) for v in overlap(mean_map(measure, self.x, 64), mean_map(measure, moved, 64), K)]

    def attacked(self, variant: str, rho: float) -> Tensor:
        """The attacked images."""
        target = self.maps(variant, soft=True, copies=COPIES, seed=0)
        return attack(target, self.predict, self.x, AttackOptions(rho=rho, **EFFORT)).images

    def random(self, rho: float) -> Tensor:
        """Images at the same distance in a random direction, within [0, 1]."""
        noise = torch.randn(self.x.shape, generator=torch.Generator().manual_seed(2))
        return (self.x + rho * noise / noise.flatten(1).norm(dim=1)[:, None, None, None]).clamp(0, 1)

    def certificates(self, out: Path) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Distances and certified overlaps of the sparsified and smoothed maps."""
        for index, (image, label) in enumerate(zip(self.x, self.y, strict=True)):
            file = out / f"certificate-{index}.json"
            if not file.exists():
                result = certframe.certify(
                    self.model, image, attributor="gradient", target=int(label), sigma=SIGMA, samples=CERTIFIED,
                    sparsifier="sparsified", certifier="top-k-overlap",
                    options={"attributor.channels": "stack", "sparsifier.tau": K / 100, "certifier.k": [K]})
                arrays = result.certificate.arrays
                file.write_text(json.dumps({name: arrays[name].tolist() for name in ("rho", "overlap")}))
            stored = json.loads(file.read_text())
            yield np.array(stored["rho"]), np.array(stored["overlap"])[0, 0]


def measure(bench: Bench, out: Path) -> dict[str, dict[str, list[float]]]:
    """Variant (or "random") → radius → overlap of every image."""
    found: dict[str, dict[str, list[float]]] = {}
    for rho in RADII:
        for variant in VARIANTS:
            for kind in (variant, f"{variant}, random"):
                file = out / f"{kind.replace(', ', '-')}-{rho:g}.json"
                if not file.exists():
                    moved = bench.random(rho) if "random" in kind else bench.attacked(variant, rho)
                    file.write_text(json.dumps(bench.overlaps(variant, moved)))
                    print(f"{kind}, ρ = {rho:g}: {np.mean(json.loads(file.read_text())):.3f}", flush=True)
                found.setdefault(kind, {})[f"{rho:g}"] = json.loads(file.read_text())
    return found


def certified_at(curve: tuple[np.ndarray, np.ndarray], rho: float) -> float:
    """The certified overlap at a distance: that of the next larger one on the curve, 0 beyond its end."""
    distances, overlaps = curve
    at = int(np.searchsorted(distances, rho))
    return float(overlaps[at]) if at < len(distances) else 0.0


def cell(values: Sequence[float]) -> str:
    """Mean ± standard error, in percent."""
    return f"{100 * np.mean(values):.1f} ± {100 * np.std(values, ddof=1) / len(values) ** 0.5:.1f}"


def draw(found: dict[str, dict[str, list[float]]], certified: list[tuple[np.ndarray, np.ndarray]], file: Path) -> None:
    """Overlap against ρ: attacked (solid), random (dotted), and certified below (filled)."""
    import matplotlib as mpl
    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6.4, 4.2), dpi=150)
    for variant, name in VARIANTS.items():
        for kind, style in ((variant, "-o"), (f"{variant}, random", ":")):
            means = [1.0, *(np.mean(found[kind][f"{rho:g}"]) for rho in RADII)]
            axes.plot([0, *RADII], means, style, color=COLOURS[variant], markersize=4,
                      label=f"{name}{', attacked' if style == '-o' else ', random direction'}")
    rho = certified[0][0]
    curve = np.mean([overlaps for _, overlaps in certified], axis=0)
    axes.fill_between(rho, 0, curve, step="pre", color=COLOURS["sparsified"], alpha=0.25,
                      label="certified, sparsified and smoothed")
    axes.set(xlabel="ρ, l2 norm of the change in pixel units", ylabel=f"overlap of the top {K:g} %",
             xlim=(0, max(RADII)), ylim=(0, 1.02))
    axes.legend(fontsize=7, frameon=False)
    figure.tight_layout()
    figure.savefig(file)


def main() -> None:
    """Attack, certify, tabulate and draw what is missing."""
    parser = argparse.ArgumentParser(description="Empirical and certified robustness of saliency maps.")
    parser.add_argument("--weights", type=Path, required=True, help="cifar10.safetensors of eva_train.py")
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="folder with cifar10.npz")
    parser.add_argument("--out", type=Path, default=Path("runs/attack"), metavar="DIR", help="results")
    parser.add_argument("--docs", action="store_true", help="write the table into the page, and the figure beside it")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    bench = Bench(given.weights, given.data)
    found = measure(bench, given.out)
    certified = list(bench.certificates(given.out))
    below = {f"{rho:g}": [certified_at(curve, rho) for curve in certified] for rho in RADII}
    rows = [[name, *(f"{cell(found[key][f'{rho:g}'])}" for rho in RADII)] for variant, label in VARIANTS.items()
            for key, name in ((variant, f"{label}, attacked"), (f"{variant}, random", f"{label}, random direction"))]
    rows.append(["certified, sparsified and smoothed", *(cell(below[f"{rho:g}"]) for rho in RADII)])
    head = ["map", *(f"ρ = {rho:g}" for rho in RADII)]
    draw(found, certified, PAGE.with_suffix(".png") if given.docs else given.out / "curves.png")
    publish(PAGE, {"table": table(head, rows)}, docs=given.docs)


if __name__ == "__main__":
    main()
