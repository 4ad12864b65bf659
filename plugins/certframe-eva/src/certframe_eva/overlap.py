"""The adversarial overlap of a grid of cells: how far another class can come ahead when a cell is held fixed."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from certframe_eva.bounds import Relaxation, upper_bounds
from certframe_eva.network import Network
from certframe_eva.regions import Region

Margin = Literal["separate", "joint"]


def overlap(network: Network, region: Region, targets: Tensor, method: str = "ibp+forward+backward", *,
            margin: Margin = "separate", towards: Tensor | None = None, relaxation: Relaxation = "shared",
            chunk: int = 256, steps: int = 0) -> Tensor:
    """Upper bounds of max over c' ≠ c and over δ of f_{c'}(x + δ) − f_c(x + δ), (M, Q).

    Args:
        network: the classifier.
        region: M images with Q sets of perturbations.
        targets: (M,) int64, the class c of each image.
        method: see `upper_bounds`.
        margin: ``separate`` subtracts the lower bound of f_c from the upper bound of f_{c'}, as published; ``joint``
            bounds the difference itself, and takes the smaller of the two.
        towards: (M,) int64: only this c', for targeted explanations.
        relaxation: see `upper_bounds`.
        chunk: likewise.
        steps: likewise.
    """
    one = torch.eye(network.classes, dtype=region.centre.dtype, device=region.centre.device)
    target, others = one[targets], one.expand(len(targets), -1, -1)
    if towards is not None:
        others = one[towards][:, None]
    itself = (others * target[:, None]).sum(2)  # (M, classes): 1 where c' is c
    rows = torch.cat([others, -target[:, None]], 1)
    if margin == "joint":
        rows = torch.cat([rows, others - target[:, None]], 1)
    found = upper_bounds(network, region, rows, method, relaxation=relaxation, chunk=chunk, steps=steps)
    count = others.shape[1]
    ahead = found[:, :, :count] + found[:, :, count:count + 1]
    if margin == "joint":
        ahead = torch.minimum(ahead, found[:, :, count + 1:])
    return ahead.masked_fill(itself[:, None] > 0, -math.inf).amax(2)
