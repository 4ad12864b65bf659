"""The gradient of a logit with respect to the pixels."""

from __future__ import annotations

import torch
from torch import Tensor

from certframe_boundary.search.closest import Function, gradient_of


def logit_gradient(function: Function, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """∂f_c/∂x, (N,C,H,W), for the class ``targets[n]`` of each row, and the logits, both float32 and detached.

    Raises:
        UsageError: the logits have no gradient with respect to the pixels.
    """
    with torch.enable_grad():
        z = images.detach().requires_grad_()
        logits = function(z)
        gradient = gradient_of(logits.gather(1, targets[:, None]), z)
    return gradient.float(), logits.detach().float()


def path_integral(function: Function, start: Tensor, end: Tensor, targets: Tensor, points: int,
                  chunk: int) -> tuple[Tensor, Tensor]:
    """Integrated gradients from every row of start to that of end: maps (N,H,W), and the logits at the ends.

    The trapezoidal rule; as many points of the path as fit into a pass of `chunk` images go together.
    """
    parts = [_integrated(function, *rows, points, chunk)
             for rows in zip(*(torch.split(t.detach(), chunk) for t in (start, end, targets)), strict=True)]
    return torch.cat([maps for maps, _ in parts]), torch.cat([logits for _, logits in parts])


def _integrated(function: Function, start: Tensor, end: Tensor, targets: Tensor, points: int,
                chunk: int) -> tuple[Tensor, Tensor]:
    """`path_integral` for rows that fit into one pass."""
    together = max(1, chunk // len(end))
    way, total, logits = end - start, torch.zeros_like(end, dtype=torch.float32), end
    for first in range(0, points, together):
        some = range(first, min(first + together, points))
        rows = torch.cat([start + way * (point / (points - 1)) for point in some[:-1]] + [
            end if some[-1] == points - 1 else start + way * (some[-1] / (points - 1))])
        gradient, logits = logit_gradient(function, rows, targets.repeat(len(some)))
        for point, part in zip(some, torch.split(gradient, len(end)), strict=True):
            total.add_(part, alpha=0.5 if point in (0, points - 1) else 1.0)
    return total.mul_(way).sum(1).div_(points - 1), logits[-len(end):]
