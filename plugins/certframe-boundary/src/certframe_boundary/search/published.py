"""The published search: projected gradients at several budgets, Carlini and Wagner, AutoPGD; the closest wins."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from certframe_boundary.search.auto_pgd import auto_pgd
from certframe_boundary.search.balls import Norm
from certframe_boundary.search.carlini_wagner import carlini_wagner
from certframe_boundary.search.closest import Adversarial, Closest, Function, Loss
from certframe_boundary.search.pgd import pgd

BUDGETS: dict[Norm, tuple[float, ...]] = {
    "l2": (36 / 255, 64 / 255, 0.3, 0.5, 0.7, 0.9, 1.1),
    "linf": (0.5 / 255, 1 / 255, 2 / 255, 4 / 255, 8 / 255, 16 / 255),
}
"""The published budgets for l2, and budgets of our own for linf."""
STEPS = 100
"""Steps of AutoPGD, and of each round of Carlini and Wagner's attack."""
ROUNDS = 5
"""How many constants Carlini and Wagner's attack tries."""


def stages(function: Function, images: Tensor, labels: Tensor, *, norm: Norm = "l2", steps: int = 40,
           budgets: Sequence[float] = (), bounds: tuple[float, float] = (0.0, 1.0),
           seed: int | None = 0) -> Iterator[tuple[str, Adversarial]]:
    """What each part of the search finds by itself, under its name, in order.

    PGD on the cross-entropy with `steps` steps from a random start, at every budget; with l2, Carlini and Wagner's
    attack with 5 rounds of 100 steps; AutoPGD with 100 steps, on the cross-entropy and on the logits' ratio, within the
    distance found so far, or the largest budget where nothing was found.

    Z. Wang, M. Fredrikson, A. Datta. Robust models are more interpretable because attributions look normal. ICML 2022;
    the budgets of AutoPGD and the number of rounds are not given there.
    """
    budgets = sorted(budgets or BUDGETS[norm])
    best = Closest(images, labels, norm)
    for budget in budgets:
        found = pgd(function, images, labels, budget, norm=norm, steps=steps, bounds=bounds, seed=seed)
        best.merge(found)
        yield f"PGD {budget:.4g}", found
    if norm == "l2":
        found = carlini_wagner(function, images, labels, steps=STEPS, rounds=ROUNDS, bounds=bounds)
        best.merge(found)
        yield "C&W", found
    both: tuple[Loss, ...] = ("ce", "dlr")
    for loss in both:
        budget_each = torch.where(best.success, best.distance, budgets[-1])
        found = auto_pgd(function, images, labels, budget_each, norm=norm, steps=STEPS, loss=loss, bounds=bounds,
                         seed=seed)
        best.merge(found)
        yield f"AutoPGD {loss}", found


def published_search(function: Function, images: Tensor, labels: Tensor, *, norm: Norm = "l2", steps: int = 40,
                     budgets: Sequence[float] = (), bounds: tuple[float, float] = (0.0, 1.0),
                     seed: int | None = 0) -> Adversarial:
    """The closest that any of the `stages` finds; where none does, the last image of PGD at the largest budget."""
    images = images.detach()
    best, last = Closest(images, labels, norm), None
    for name, found in stages(function, images, labels, norm=norm, steps=steps, budgets=budgets, bounds=bounds,
                              seed=seed):
        best.merge(found)
        last = found if last is None or name.startswith("PGD") else last
    assert last is not None
    return best.result(last.images, last.classes)
