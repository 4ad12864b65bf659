"""Shapley values of the cells of a picture, estimated by captum."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from captum import attr
from pydantic import Field
from torch import Tensor

import certframe


def cell_numbers(height: int, width: int, grid: int) -> Tensor:
    """The number of the cell that a pixel belongs to, (H,W); cells are numbered row by row.

    There are `grid` along a side, or as many as it has pixels.
    """
    down, right = (torch.arange(side) * min(grid, side) // side for side in (height, width))
    return down[:, None] * min(grid, width) + right


class ShapleySampling:
    """Shapley values of the cells of a picture, from random orders in which cells are shown.

    A cell is worth what the logit rises by when it is shown, on average over all orders; cells that are not shown have
    the baseline's value. `orders` of them are drawn for each copy, with a seed from its own stream. The map of a copy
    adds up to f_c(x) − f_c(x₀), x₀ the baseline, whatever the orders.

    J. Castro, D. Gómez, J. Tejada. Polynomial calculation of the Shapley value based on sampling. Computers &
    Operations Research 36, 2009. As in captum's ShapleyValueSampling.
    """

    class Options(certframe.Options):
        """Options of `shapley-sampling`."""

        grid: int = Field(7, ge=1, description="Cells along each side of the picture; the maps have this size.")
        baseline: float = Field(0.0, description="Value of every pixel of a cell that is left out.")
        chunk: int = Field(32, ge=1, description="Largest number of pictures in one pass; changes no result.")
        orders: int = Field(10, ge=1, description="Random orders for each copy; each costs a forward pass per cell.")

    needs_gradients: ClassVar[bool] = False
    deterministic: ClassVar[bool] = False
    family: ClassVar[str] = "perturbation"
    execution: ClassVar[frozenset[str]] = frozenset({"chunk"})

    @classmethod
    def conformance_options(cls, directory: Path) -> dict[str, Any]:
        """Little work, for the conformance kit."""
        return {"grid": 3, "orders": 2}

    def __init__(self, options: Options | None = None) -> None:
        self.options = options or self.Options()
        self.passes = self.options.orders * self.options.grid**2 + 2

    def map_size(self, input_size: Sequence[int]) -> tuple[int, int]:
        """h, w of the maps for inputs of size C, H, W."""
        return min(self.options.grid, input_size[1]), min(self.options.grid, input_size[2])

    def attribute(self, model: certframe.Model, inputs: Tensor, targets: Tensor, *,
                  rng: certframe.Rng) -> certframe.Attribution:
        """(B,g,g) maps of either sign, and the logits."""
        rows, columns = self.map_size(inputs.shape[1:])
        number = cell_numbers(*inputs.shape[2:], self.options.grid).to(inputs.device)
        all_shown = torch.ones(1, rows * columns, device=inputs.device)
        seeds, maps = [int(seed) for seed in rng.integers(2**31, 1)], []
        with torch.no_grad():
            logits = model.module(inputs).float()
            for x, target, seed in zip(inputs, targets, seeds, strict=True):
                score = functools.partial(_score, model, x, self.options.baseline, number, target)
                with torch.random.fork_rng(devices=[inputs.device] if inputs.device.type == "cuda" else []):
                    torch.manual_seed(seed)  # captum draws from the global generator
                    maps.append(attr.ShapleyValueSampling(score).attribute(
                        all_shown, n_samples=self.options.orders, perturbations_per_eval=self.options.chunk))
        return certframe.Attribution(torch.cat(maps).float().view(-1, rows, columns), logits)


def _score(model: certframe.Model, x: Tensor, baseline: float, number: Tensor, target: Tensor,
           shown: Tensor) -> Tensor:
    pictures = torch.where(shown[:, number][:, None] > 0, x, baseline)
    return model.module(pictures)[:, target].float()
