"""Class activation maps: weighted sums of the feature maps of a layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from certframe import protocols
from certframe.attributors.layers import activation_of, gradient_at, layer_option
from certframe.protocols import Attribution

if TYPE_CHECKING:
    from certframe.protocols import Model, Rng


def grad_cam(activation: Tensor, gradient: Tensor) -> Tensor:
    """Relu of Σ_k (mean over the map of ∂f_c/∂A_k) · A_k: two (B,K,h,w) → (B,h,w)."""
    return (gradient.mean((2, 3), keepdim=True) * activation).sum(1).relu_()


def plain_cam(activation: Tensor, gradient: Tensor) -> Tensor:
    """Σ_k w_k A_k with w_k = Σ over the map of ∂f_c/∂A_k: two (B,K,h,w) → (B,h,w), signed."""
    return (gradient.sum((2, 3), keepdim=True) * activation).sum(1)


def grad_cam_plus_plus(activation: Tensor, gradient: Tensor) -> Tensor:
    """Relu of Σ_k w_k A_k, w_k = Σ_ij α_ij relu(g_ij), α = g² / (2 g² + Σ_ij A g³) with 0/0 := 0; (B,h,w)."""
    square = gradient.square()
    denominator = 2 * square + (activation * square * gradient).sum((2, 3), keepdim=True)
    alpha = torch.where(denominator == 0, 0.0, square / torch.where(denominator == 0, 1.0, denominator))
    return ((alpha * gradient.relu()).sum((2, 3), keepdim=True) * activation).sum(1).relu_()


def layer_cam(activation: Tensor, gradient: Tensor) -> Tensor:
    """Relu of Σ_k relu(∂f_c/∂A_k) ⊙ A_k: two (B,K,h,w) → (B,h,w)."""
    return (gradient.relu() * activation).sum(1).relu_()


class _LayerOptions(protocols.Options):
    layer: str = layer_option("final")


class _GradientCam:
    """What the methods share that weight A with ∂f_c/∂A: the body runs once and is not differentiated."""

    Options: ClassVar[type[_LayerOptions]] = _LayerOptions
    needs_gradients: ClassVar[bool] = True
    deterministic: ClassVar[bool] = True
    family: ClassVar[str] = "activation"
    passes: ClassVar[int] = 1
    combine: ClassVar[staticmethod[[Tensor, Tensor], Tensor]]

    def __init__(self, options: _LayerOptions | None = None) -> None:
        self.options = options or self.Options()

    def attribute(self, model: Model, inputs: Tensor, targets: Tensor, *, rng: Rng) -> Attribution:
        """(B,h,w) maps and the logits; one forward pass, backward only as far as the layer.

        Raises:
            UsageError: the model cannot be cut at the layer, its output is not a map, or the logits do not depend on
                it.
        """
        split = model.at(self.options.layer)
        values = activation_of(split, inputs)
        gradient, logits = gradient_at(split, self.options.layer, values, targets)
        combine = self.combine
        return Attribution(combine(split.as_map(values[0]).float(), split.as_map(gradient)), logits)


class Cam(_GradientCam):
    """CAM: Σ_k w_{c,k} A_k, w the classifier's weights after global average pooling, signed.

    The weights are read from the gradient, Σ_ij ∂f_c/∂A_k, which *is* w_{c,k} where the rest of the network is average
    pooling and a linear layer. Elsewhere (VGG, transformers, inner layers) it is the linearisation at the image.

    B. Zhou, A. Khosla, A. Lapedriza, A. Oliva, A. Torralba. Learning deep features for discriminative localization.
    CVPR 2016.
    """

    class Options(_LayerOptions):
        """Options of `cam`."""

    combine = staticmethod(plain_cam)


class GradCam(_GradientCam):
    """Grad-CAM: relu Σ_k w_k A_k, w_k the mean of ∂f_c/∂A_k over feature map k, at the layer's resolution.

    At ``input`` the image itself is A. For a transformer A are the patch tokens on their grid.

    R. R. Selvaraju et al. Grad-CAM: visual explanations from deep networks via gradient-based localization. ICCV 2017.
    """

    class Options(_LayerOptions):
        """Options of `grad-cam`."""

    combine = staticmethod(grad_cam)


class GradCamPlusPlus(_GradientCam):
    """Grad-CAM++: relu Σ_k w_k A_k, w_k = Σ_ij α_ij relu(g_ij), α = g² / (2 g² + Σ A g³), g = ∂f_c/∂A, 0/0 := 0.

    A. Chattopadhay, A. Sarkar, P. Howlader, V. Balasubramanian. Grad-CAM++. WACV 2018.
    """

    class Options(_LayerOptions):
        """Options of `grad-cam++`."""

    combine = staticmethod(grad_cam_plus_plus)


class LayerCam(_GradientCam):
    """LayerCAM: relu Σ_k relu(∂f_c/∂A_k) ⊙ A_k, which also localises at early layers.

    P.-T. Jiang, C.-B. Zhang, Q. Hou, M.-M. Cheng, Y. Wei. LayerCAM. IEEE TIP 2021.
    """

    class Options(_LayerOptions):
        """Options of `layer-cam`."""

    combine = staticmethod(layer_cam)
