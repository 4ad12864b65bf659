"""The gradient of a logit with respect to the pixels."""

from __future__ import annotations

import torch
from torch import Tensor

import certframe
from certframe_boundary.search.closest import Function


def gradient_of(function: Function, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """∂f_c/∂x, (N,C,H,W), for the class ``targets[n]`` of each row, and the logits, both float32 and detached.

    Raises:
        UsageError: the logits have no gradient with respect to the pixels.
    """
    with torch.enable_grad():
        z = images.detach().requires_grad_()
        logits = function(z)
        gradient = None
        if logits.requires_grad:
            gradient, = torch.autograd.grad(logits.gather(1, targets[:, None]).sum(), z, allow_unused=True)
    if gradient is None:
        raise certframe.UsageError("the model's logits have no gradient with respect to the picture: they do not "
                                   "depend on it, or there is a no_grad, a detach or a step function on the way; take "
                                   "a method that needs no gradients")
    return gradient.float(), logits.detach().float()
