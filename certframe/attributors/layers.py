"""What methods share that look at a layer of a network: its activation, and the gradient with respect to it.

The body of the network runs once and is not differentiated, so a late layer costs little more than a forward pass. At
``input`` there is no body: the activation is the picture itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from pydantic import Field
from torch import Tensor

from certframe.errors import UsageError
from certframe.sharing import gradient_of

if TYPE_CHECKING:
    from certframe.protocols import Split


def layer_option(default: str = "input") -> Any:
    """The option ``layer`` of a method."""
    return Field(default, description="'input', 'final' (last spatial feature map), or a module path.")


def activation_of(split: Split, inputs: Tensor) -> tuple[Tensor, ...]:
    """The activation A of the layer for (B,C,H,W), and what else the head needs; without a graph, or with that of x.

    Inputs that require a gradient are those of somebody who differentiates the map itself, such as an attack on it.
    """
    if inputs.requires_grad and torch.is_grad_enabled():
        return tuple(split.body(inputs))
    with torch.no_grad():
        return tuple(value.detach() for value in split.body(inputs.detach()))


def gradient_at(split: Split, layer: str, values: Sequence[Tensor], targets: Tensor) -> tuple[Tensor, Tensor]:
    """∂f_c/∂A for the class ``targets[b]`` of each row, and the logits; only the head is differentiated.

    Args:
        split: the model, cut at the layer.
        layer: its name, for the message.
        values: the activation A, any shape with one row per image, and what is carried around it; see `activation_of`.
        targets: (B,) int64.

    Returns:
        The gradient in the shape of A, and the logits (B, classes), both float32 and detached, unless A has a graph
        (see `activation_of`). Other methods may be given the same gradient: what changes it in place makes them compute
        it again.

    Raises:
        UsageError: the logits have no gradient with respect to A.
    """
    gradient, logits = gradient_of(split, values, targets)
    if gradient is None:
        what = "the picture" if layer == "input" else f"layer '{layer}'"
        raise UsageError(f"the model's logits have no gradient with respect to {what}: they do not depend on it, or "
                         "there is a no_grad, a detach or a step function on the way; take another layer, or a method "
                         "that needs no gradients")
    return gradient.float(), logits.float()


def over_channels(values: Tensor) -> Tensor:
    """The sum over the channels, (B,K,h,w) → (B,h,w), equal where the values of two pixels are equal.

    A plain sum adds many channels in another order at the end of a map than elsewhere. A map that is the same
    everywhere, such as the gradient in front of a mean over all pixels, would get ranks from the last digit.
    """
    few = values.shape[1] <= 4  # added one after the other
    return values.sum(1) if few else values.movedim(1, -1).contiguous().sum(-1)
