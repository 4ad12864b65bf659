"""Why the tables of [EVA] come out otherwise here: rankings on EVA's own grid, what EVA has in common with the squared
gradient, what sharing a relaxation costs, and tightness with larger and smaller weights.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from certframe_eva.grid import cells
from certframe_eva.network import Network
from certframe_eva.overlap import overlap
from certframe_eva.regions import Region
from eva_methods import (
    EPSILON,
    METRICS,
    OTHER_METRICS,
    Bench,
    Plugin,
    Subject,
    eva,
    explain,
    measure,
    methods,
    stored_map,
)
from eva_nets import images, mnist_network, model_of
from eva_tightness import METHODS, PUBLISHED
from eva_train import Recipe, accuracy, train
from pages import table
from safetensors.torch import save_file
from scipy.stats import spearmanr
from torch import Tensor

WHY = "why"
GRID = 12
ON_CELLS = ("Saliency", "SmoothGrad", "VarGrad", "Greedy-AS", "EVA")
CELL_METRICS = {"Deletion ↓": METRICS["deletion"], "Insertion ↑": METRICS["insertion"],
                "µFidelity ↑": METRICS["mu-fidelity"],
                "µFidelity, 12×12 cells ↑": OTHER_METRICS["µFidelity, 12×12 cells ↑"]}
VALUES = {"deletion": "deletion.auc", "insertion": "insertion.auc", "mu-fidelity": "mu-fidelity"}
POOLED = Plugin("step", "mean of each cell", {"grid": GRID})
PENALTIES = (0.0, 2e-4, 2e-3, 5e-3)
WEIGHT_IMAGES, RELAXATION_IMAGES = 10, 5
RELAXED = ("ibp", "backward")
NOTHING = "Not measured yet."
Say = Callable[[str], None]


def pooled(attribution: Tensor, size: tuple[int, int]) -> Tensor:
    """The mean of a map over each cell of the grid, (GRID, GRID); maps of the grid's size as they are."""
    if attribution.shape == (GRID, GRID):
        return attribution
    inside = cells(GRID, *size)[1:].float()
    full = torch.nn.functional.interpolate(attribution[None, None], size=size, mode="bilinear")[0, 0]
    return ((inside * full).sum((1, 2)) / inside.sum((1, 2))).view(GRID, GRID)


def measure_on_cells(subject: Bench, say: Say) -> None:
    """Every method's map at the resolution that EVA's has."""
    every = methods(subject.images)
    for label in ON_CELLS:
        maps = subject.maps(label, every[label]).by_image()
        for metric in CELL_METRICS.values():
            lines = subject.lines(f"{label} on cells", metric.name, every[label], POOLED, metric)
            done = lines.by_image()
            for one in subject.subjects:
                if one.index in maps and one.index not in done:
                    found = pooled(stored_map(maps[one.index]), tuple(one.image.shape[1:]))  # type: ignore[arg-type]
                    lines.add(one.index, measure(subject.model, one, found, metric))
        say(f"{subject.images}, {label} on cells")


def cells_table(subject: Bench) -> str:
    """Mean and standard error by method, on the images that all have."""
    every = methods(subject.images)
    found = {label: [subject.lines(f"{label} on cells", metric.name, every[label], POOLED, metric).by_image()
                     for metric in CELL_METRICS.values()] for label in ON_CELLS}
    common = sorted(set.intersection({one.index for one in subject.subjects}, *(
        set(lines) for columns in found.values() for lines in columns)))
    if not common:
        return NOTHING
    rows = [[label, *(_mean([lines[image][VALUES[metric.name]] for image in common], 3)
                      for lines, metric in zip(columns, CELL_METRICS.values(), strict=True))]
            for label, columns in found.items()]
    return f"{len(common)} images.\n\n" + table(["mean of each cell", *CELL_METRICS], rows)


def gradients_table(subject: Bench) -> str:
    """Rank correlation of EVA's cells with what the gradient alone says of them."""
    lines = subject.maps("EVA", methods(subject.images)["EVA"]).by_image()
    chosen = [one for one in subject.subjects if one.index in lines]
    if not chosen:
        return NOTHING
    names = ("EVA of the linearised network", "Σ (∂f_c)² in the cell", "Σ (∂(f_c' − f_c))² in the cell",
             "Σ abs ∂f_c in the cell")
    values: dict[str, list[float]] = {name: [] for name in names}
    for one in chosen:
        inside = cells(GRID, *one.image.shape[1:])[1:].double()
        x = one.image[None].clone().requires_grad_()
        logits = subject.model.module(x)[0]
        gradient = torch.stack([torch.autograd.grad(value, x, retain_graph=True)[0][0] for value in logits]).double()
        share = torch.einsum("uhw,kchw->ku", inside, gradient**2)  # (classes, cells)
        norm = share.sum(1, keepdim=True)
        with_cell, without = norm.sqrt(), (norm - share).clamp(min=0).sqrt()
        own, others = one.target, [k for k in range(len(logits)) if k != one.target]
        ahead = logits.detach().double()[others] - logits[own].detach().double()
        top = (ahead + EPSILON * (with_cell[others, 0] + with_cell[own, 0])).max()
        each = (ahead[:, None] + EPSILON * (without[others] + without[own])).amax(0)
        rival = others[int(ahead.argmax())]
        of_margin = torch.einsum("uhw,chw->u", inside, (gradient[rival] - gradient[own])**2)
        found = stored_map(lines[one.index]).flatten().double()
        absolute = torch.einsum("uhw,chw->u", inside, gradient[own].abs())
        for name, other in zip(names, (top - each, share[own], of_margin, absolute), strict=True):
            values[name].append(float(spearmanr(found, other).statistic))
    return f"{len(chosen)} images.\n\n" + table(
        ["EVA's cells against", "rank correlation"], [[name, _mean(found, 3)] for name, found in values.items()])


def measure_relaxations(subject: Bench, say: Say) -> None:
    """The overlaps of all cells with a relaxation that they share and with their own."""
    for method in RELAXED:
        plugins = {r: eva(subject.images, method=method, relaxation=r) for r in ("shared", "own")}
        for relaxation, plugin in plugins.items():
            lines = subject.lines(f"relaxation {method}", relaxation, plugin)
            done = lines.by_image()
            for one in subject.subjects[:RELAXATION_IMAGES]:
                if one.index not in done:
                    found = explain(subject.model, one, plugin)
                    whole = _overlap(subject, one, method)
                    lines.add(one.index, found | {"overlap": whole - float(stored_map(found).mean())})
        say(f"{subject.images}, shared and own relaxation, {method}")


def _overlap(subject: Bench, one: Subject, method: str) -> float:
    """F̄(B)."""
    x = one.image[None].double()
    network = Network.of(subject.model.module, torch.cat([one.image[None], one.image[None].flip(-1) * 0.5 + 0.1]))
    return float(overlap(network.to(x.dtype), Region.ball(x, EPSILON, 2), torch.tensor([one.target]), method))


def relaxations_table(subject: Bench) -> str:
    """How much looser a shared relaxation is, how much its ranking differs, and how much less it costs."""
    rows = []
    for method in RELAXED:
        shared, own = (subject.lines(f"relaxation {method}", r, eva(subject.images, method=method, relaxation=r))
                       .by_image() for r in ("shared", "own"))
        common = [one.index for one in subject.subjects if one.index in shared and one.index in own]
        if not common:
            return NOTHING
        ranks = [float(spearmanr(stored_map(shared[i]).flatten(), stored_map(own[i]).flatten()).statistic)
                 for i in common]
        seconds = [sum(lines[i]["seconds"] for i in common) for lines in (shared, own)]
        overlaps = [f"{np.mean([lines[i]['overlap'] for i in common]):.4g}" for lines in (shared, own)]
        rows.append([f"`{method}`", *overlaps, _mean(ranks, 3), f"{seconds[1] / seconds[0]:.0f}×"])
    return f"{len(common)} images.\n\n" + table(["method", "mean F̄(B_u), shared", "own", "rank correlation of the maps",
                                                 "CPU time, own to shared"], rows)


def weights_table(subject: Bench, folder: Path, say: Say | None) -> str:
    """Tightness on networks that are trained with other penalties; trains what is missing unless `say` is None."""
    rows = []
    for penalty in PENALTIES:
        path = subject.out / f"mnist-penalty-{penalty:g}.safetensors"
        if not path.exists():
            if say is None:
                return NOTHING
            say(f"mnist, penalty {penalty:g}")
            torch.manual_seed(0)
            x, y = images(folder / "mnist.npz", "train")
            trained = train(mnist_network(), x, y, Recipe(4, 128, 2e-3, penalty=penalty), lambda batch, _: batch,
                            path.with_suffix(".state"), 0, say)
            save_file({key: tensor.contiguous() for key, tensor in trained.state_dict().items()}, path)
        model = model_of("mnist", path)
        x, y = images(folder / "mnist.npz", "test")
        chosen = [one for one in subject.subjects if int(model.module(one.image[None]).argmax()) == one.target]
        chosen = chosen[:WEIGHT_IMAGES]
        metric = Plugin("metric", "tightness", {"eps": EPSILON, "methods": list(METHODS["mnist"])})
        found = [measure(model, one, torch.zeros(1, 1), metric) for one in chosen]
        rows.append([f"{penalty:g}", f"{100 * accuracy(model.module, x, y):.1f} %", *(
            f"{np.mean([values[f'tightness.{method}'] for values in found]):.3g}" for method in METHODS["mnist"])])
    rows.append(["published", "98 %", *(PUBLISHED["mnist"].get(method, "") for method in METHODS["mnist"])])
    return f"{WEIGHT_IMAGES} images.\n\n" + table(["penalty", "accuracy", *(f"`{m}`" for m in METHODS["mnist"])], rows)


def _mean(values: list[float], digits: int) -> str:
    found = np.array(values)
    error = found.std(ddof=1) / len(found) ** 0.5 if len(found) > 1 else 0.0
    return f"{found.mean():.{digits}f} ± {error:.{digits}f}"
