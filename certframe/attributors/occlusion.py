"""Occlusion: how much the logit falls when a patch is covered."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from certframe import protocols
from certframe.attributors.layers import activation_of, layer_option
from certframe.protocols import Attribution

if TYPE_CHECKING:
    from certframe.protocols import Model, Rng, Split


def positions(size: int, patch: int, stride: int) -> range:
    """Where patches begin along a side: 0, stride, … until the whole side is covered."""
    return range(0, math.ceil(max(size - patch, 0) / stride) * stride + 1, stride)


def covered_logits(split: Split, activation: Sequence[Tensor], targets: Tensor, corners: Sequence[tuple[int, int]],
                   patch: int, baseline: float, chunk: int) -> Tensor:
    """(B,P) float32: the target's logit with each patch of the layer's map set to the baseline.

    Patches and copies are batched together; at most `chunk` of them exist at a time.
    """
    main, *carried = activation
    copies, result = len(main), []
    pairs = [(copy, corner) for copy in range(copies) for corner in corners]
    for first in range(0, len(pairs), chunk):
        some = pairs[first:first + chunk]
        rows = torch.tensor([copy for copy, _ in some]).to(main.device, non_blocking=True)
        covered = main[rows]
        view = split.as_map(covered)
        for row, (_, (top, left)) in enumerate(some):
            view[row, :, top:top + patch, left:left + patch] = baseline
        logits = split.head(covered, *(part[rows] for part in carried))
        result.append(logits.gather(1, targets[rows, None])[:, 0].float())
    return torch.cat(result).view(copies, len(corners))


class Occlusion:
    """Σ over the patches that cover a pixel of f_c(x) − f_c(x with that patch set to a constant), f_c the logit.

    At ``final`` or a module path the patches cover a feature map, and only the rest of the network runs again. The
    defaults are those of Anani et al. 2025: 16×16 with stride 8 at the input, 5×5 with stride 2 at a feature map.

    M. D. Zeiler, R. Fergus. Visualizing and understanding convolutional networks. ECCV 2014.
    """

    class Options(protocols.Options):
        """Options of `occlusion`."""

        layer: str = layer_option()
        patch: int | None = Field(None, ge=1, description="Side of the patch in pixels; by default 16 at the input, "
                                                         "5 at a feature map, two thirds of a smaller one's side.")
        stride: int | None = Field(None, ge=1, description="Step between patches; by default half the patch.")
        baseline: float = Field(0.0, description="Value that covers a patch.")
        chunk: int = Field(32, ge=1, description="Largest number of covered inputs in one pass; changes no result.")

    needs_gradients: ClassVar[bool] = False
    deterministic: ClassVar[bool] = True
    family: ClassVar[str] = "perturbation"
    execution: ClassVar[frozenset[str]] = frozenset({"chunk"})

    def __init__(self, options: Options | None = None) -> None:
        self.options = options or self.Options()

    def attribute(self, model: Model, inputs: Tensor, targets: Tensor, *, rng: Rng) -> Attribution:
        """(B,h,w) maps of either sign, and the logits; a forward pass and one of the head for every patch."""
        o, split = self.options, model.at(self.options.layer)
        activation = activation_of(split, inputs)
        with torch.no_grad():
            logits = split.head(*activation).float()
            height, width = split.as_map(activation[0]).shape[-2:]
            patch = o.patch or min(16 if o.layer == "input" else 5, max(1, (2 * min(height, width) + 1) // 3))
            stride = o.stride or max(1, patch // 2)
            down, right = positions(height, patch, stride), positions(width, patch, stride)
            covered = covered_logits(split, activation, targets, [(y, x) for y in down for x in right], patch,
                                     o.baseline, o.chunk)
            fall = logits.gather(1, targets[:, None]) - covered
            # Each fall is spread over its patch and overlapping patches add up: a transposed convolution with ones.
            spread = functional.conv_transpose2d(fall.view(-1, 1, len(down), len(right)),
                                                 fall.new_ones(1, 1, patch, patch), stride=stride)
        return Attribution(spread[:, 0, :height, :width].contiguous(), logits)
