"""Class activation maps: weighted sums of the feature maps of a layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from certframe import protocols
from certframe.errors import UsageError
from certframe.protocols import Attribution

if TYPE_CHECKING:
    from certframe.protocols import Model, Rng, Split


def layer_gradient(split: Split, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
    """The activation A of the layer, ∂f_c/∂A and the logits; only the head of the network is differentiated.

    Args:
        split: the model, cut at the layer.
        inputs: (B,C,H,W) in pixel units.
        targets: (B,) int64.

    Returns:
        A and ∂f_c/∂A in the layer's shape and type, None for the latter when the logits do not depend on A; and the
        logits (B, classes) float32. All detached.
    """
    with torch.no_grad():
        activation, *carried = split.body(inputs.detach())
    activation = activation.detach().requires_grad_()
    logits = split.head(activation, *carried)
    if not logits.requires_grad:
        return activation.detach(), None, logits.float()
    gradient, = torch.autograd.grad(logits.gather(1, targets[:, None]).sum(), activation, allow_unused=True)
    return activation.detach(), gradient, logits.detach().float()


def grad_cam(activation: Tensor, gradient: Tensor) -> Tensor:
    """Relu of Σ_k (mean over the map of ∂f_c/∂A_k) · A_k: two (B,K,h,w) → (B,h,w)."""
    return (gradient.mean((2, 3), keepdim=True) * activation).sum(1).relu_()


class GradCam:
    """Grad-CAM: relu Σ_k w_k A_k, w_k the mean of ∂f_c/∂A_k over feature map k, at the layer's resolution.

    At ``input`` the image itself is A. For a transformer A are the patch tokens on their grid.

    R. R. Selvaraju et al. Grad-CAM: visual explanations from deep networks via gradient-based localization. ICCV 2017.
    """

    class Options(protocols.Options):
        """Options of `grad-cam`."""

        layer: str = Field("final", description="'final' (last spatial feature map), 'input', or a module path.")

    needs_gradients: ClassVar[bool] = True
    deterministic: ClassVar[bool] = True

    def __init__(self, options: Options | None = None) -> None:
        self.options = options or self.Options()

    def attribute(self, model: Model, inputs: Tensor, targets: Tensor, *, rng: Rng) -> Attribution:
        """(B,h,w) maps, all ≥ 0, and the logits; one forward pass, backward only as far as the layer.

        Raises:
            UsageError: the model cannot be cut at the layer, its output is not a map, or the logits do not depend on
                it.
        """
        split = model.at(self.options.layer)
        activation, gradient, logits = layer_gradient(split, inputs, targets)
        if gradient is None:
            raise UsageError(f"grad-cam at layer '{self.options.layer}': the logits do not depend on it; take another")
        return Attribution(grad_cam(split.as_map(activation).float(), split.as_map(gradient).float()), logits)
