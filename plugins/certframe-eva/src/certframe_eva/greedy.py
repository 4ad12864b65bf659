"""Greedy-AS: the pixels through which the class is lost soonest, chosen a few at a time."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

import certframe
from certframe_eva.attack import AttackOptions, nearest, reach
from certframe_eva.grid import cell_numbers

RIDGE = 1e-3
"""The ridge, as a share of the mean variance of a column: decides where subsets are too few for the variables."""


class GreedyAS:
    """Greedy by aggregated scores: variables are added in the order in which they bring an adversarial example closer.

    The value v(S) of a set S of variables is the distance to the closest adversarial example that changes nothing but
    S. In every step random subsets T of the variables that are left are valued, v(S ∪ T) is regressed on which
    variables are in T, and the variables with the lowest coefficients join S, `add` percent of all at a time. The map
    is the order of joining: 1 for the variable that came first, down to 1/variables for the last; what the attack
    cannot lose through comes last. Where the copy is not given the class in the first place every value is 0, and the
    order is that of the pixels.

    A variable is a pixel with all its channels, or a cell of a grid. One map costs
    ⌈100/add⌉ · samples · (trials · (steps + 1) + halvings) forward passes, a little less than that backward, and memory
    for samples × variables numbers.

    Source: Hsieh et al., "Evaluations and Methods for Explanation through Robustness Analysis", ICLR 2021. Defaults as
    in Fel et al., "Don't Lie to Me!", CVPR 2023, where these say something; the attack is shorter than that of
    `robustness-sr`, since its values are only compared.
    """

    class Options(AttackOptions):
        """Options of `greedy-as`."""

        grid: int | None = Field(12, ge=1, description="Variables are the cells of a grid of so many by so many; null "
                                                       "takes pixels.")
        add: float = Field(10.0, gt=0, le=100, description="Percent of the variables that join in a step.")
        samples: int = Field(1000, ge=2, description="Random subsets that are valued in a step.")
        share: float = Field(0.5, gt=0, lt=1, description="Probability that a variable is in a subset.")
        trials: int = Field(4, ge=1, description="Budgets of the binary search; each is a run of projected gradient "
                                                 "descent.")
        steps: int = Field(5, ge=1, description="Steps of each run; each costs a forward and a backward pass.")
        halvings: int = Field(4, ge=0, description="Halvings of the way back to the image from the example found, a "
                                                   "forward pass each.")

    needs_gradients: ClassVar[bool] = True
    deterministic: ClassVar[bool] = False
    family: ClassVar[str] = "perturbation"
    execution: ClassVar[frozenset[str]] = frozenset({"chunk"})

    def __init__(self, options: Options | None = None) -> None:
        self.options = options or self.Options()
        self.passes = math.ceil(100 / self.options.add) * self.options.samples * self.options.evaluations

    @classmethod
    def conformance_options(cls, directory: Path) -> dict[str, Any]:
        """Few subsets and steps, for the conformance kit."""
        return {"grid": 2, "add": 50, "samples": 4, "trials": 1, "steps": 1, "halvings": 1, "chunk": 3}

    def map_size(self, input_size: tuple[int, int, int]) -> tuple[int, int]:
        """h, w of the maps for inputs of size C, H, W."""
        return input_size[1:]

    def attribute(self, model: certframe.Model, inputs: Tensor, targets: Tensor, *,
                  rng: certframe.Rng) -> certframe.Attribution:
        """(B,H,W) maps in (0, 1]: the order of joining, larger for earlier.

        Raises:
            UsageError: the grid has more cells along a side than the image has pixels.
        """
        o, x = self.options, inputs.detach()
        cells = cells_of(x.shape[-2:], o.grid, x.device)
        count = int(cells.max()) + 1
        joins = max(1, math.ceil(count * o.add / 100))
        step = torch.zeros(len(x), count, device=x.device)  # the place of a variable, 0 for the first to join
        chosen = torch.zeros(len(x), count, dtype=torch.bool, device=x.device)
        for first in range(0, count, joins):
            drawn = (rng.uniform(o.samples, count) < o.share) & ~chosen[:, None]
            for row in range(len(x)):
                values = subset_values(model.module, x[row], targets[row], drawn[row] | chosen[row], cells, o)
                weights = regress(drawn[row].double(), values.double()).masked_fill(chosen[row], float("inf"))
                order = weights.argsort(stable=True)[:joins]
                order = order[: count - first]
                step[row, order] = first + torch.arange(len(order), device=x.device, dtype=torch.float32)
                chosen[row, order] = True
        return certframe.Attribution((1 - step / count)[:, cells])


def cells_of(sides: tuple[int, ...], grid: int | None, device: torch.device) -> Tensor:
    """(H,W) int64: the number of the variable that each pixel belongs to, row by row.

    Raises:
        UsageError: the grid has more cells along a side than the image has pixels.
    """
    if grid is not None and grid > min(sides):
        raise certframe.UsageError(f"grid={grid}: an image of {sides[0]}×{sides[1]} pixels has no room for so many "
                                   "cells: take fewer")
    height, width = sides
    return cell_numbers(grid or max(sides), height, width, device)


def subset_values(module: nn.Module, image: Tensor, target: Tensor, subsets: Tensor, cells: Tensor,
                  options: AttackOptions) -> Tensor:
    """v(S) for every subset: the distance found, or the largest change of the whole image where none is.

    Args:
        module: pixels → logits.
        image: (C,H,W).
        target: () int64.
        subsets: (M, variables) bool.
        cells: (H,W), see `cells_of`.
        options: norm and effort.

    Returns:
        (M,) float32.
    """
    count = len(subsets)
    parts = [nearest(module, image.expand(len(some), *image.shape), target.expand(len(some)), some[:, cells][:, None],
                     options).distance for some in subsets.split(options.chunk)]
    farthest = reach(image[None], torch.ones_like(cells, dtype=torch.bool)[None, None], options.norm)
    return torch.minimum(torch.cat(parts), farthest.expand(count))


def regress(design: Tensor, values: Tensor) -> Tensor:
    """Coefficients of values (M,) on the columns of a design (M,V) with an intercept, by ridge regression; float64.

    The smaller of the two systems is solved, V × V or M × M; they have the same solution.
    """
    centred = design - design.mean(0)
    residual = values - values.mean()
    tall = len(design) >= design.shape[1]
    gram = centred.mT @ centred if tall else centred @ centred.mT
    ridge = RIDGE * centred.square().sum() / design.shape[1] + torch.finfo(gram.dtype).tiny
    gram.diagonal().add_(ridge)
    right = centred.mT @ residual if tall else residual
    solved = torch.linalg.solve(gram, right)
    return solved if tall else centred.mT @ solved
