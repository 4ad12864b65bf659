"""Attributions from the gradient of a logit with respect to the input, or to the activation of a layer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from certframe import protocols
from certframe.attributors.layers import activation_of, gradient_at, layer_option, over_channels
from certframe.protocols import Attribution

if TYPE_CHECKING:
    from certframe.protocols import Model, Rng


class Gradient:
    """Saliency: |∂f_c/∂x|, f_c the logit of the class; summed over the channels, or every channel by itself.

    At a feature map A it is Σ_k |∂f_c/∂A_k|, at the layer's resolution; the network before it is not differentiated.

    With ``channels=stack`` the values of the C channels are C maps of the image's size one below the other, (C·H, W),
    and count as pixels of their own: what Levine, Singla, Feizi 2019 certify (N = 224·224·3).

    K. Simonyan, A. Vedaldi, A. Zisserman. Deep inside convolutional networks. ICLR workshop 2014.
    """

    class Options(protocols.Options):
        """Options of `gradient`."""

        layer: str = layer_option()
        channels: Literal["sum", "stack"] = Field(
            "sum", description="'sum' over the channels, or, at the input, 'stack' them one below the other as one map "
                               "(C·H, W).")

        @model_validator(mode="after")
        def _stack_at_the_input(self) -> Self:
            if self.channels == "stack" and self.layer != "input":
                raise ValueError(f"channels=stack is for colour channels, and layer={self.layer} has feature maps: "
                                 "take channels=sum, or layer=input")
            return self

    needs_gradients: ClassVar[bool] = True
    deterministic: ClassVar[bool] = True
    family: ClassVar[str] = "backpropagation"
    passes: ClassVar[int] = 1

    def __init__(self, options: Options | None = None) -> None:
        self.options = options or self.Options()

    def map_size(self, input_size: tuple[int, int, int]) -> tuple[int, int] | None:
        """h, w of the maps for inputs of size C, H, W; None when they are the layer's."""
        if self.options.layer != "input":
            return None
        channels, height, width = input_size
        return (channels * height if self.options.channels == "stack" else height), width

    def attribute(self, model: Model, inputs: Tensor, targets: Tensor, *, rng: Rng) -> Attribution:
        """(B,h,w) maps, or (B,C·H,W), all ≥ 0, and the logits; a forward pass, and one back to the layer."""
        split = model.at(self.options.layer)
        gradient, logits = gradient_at(split, self.options.layer, activation_of(split, inputs), targets)
        magnitude = split.as_map(gradient.abs())
        return Attribution(magnitude.flatten(1, 2) if self.options.channels == "stack" else over_channels(magnitude),
                           logits)


class InputXGradient:
    """Input times gradient: Σ over channels of x ⊙ ∂f_c/∂x, signed, x in pixel units.

    At a feature map A it is Σ_k A_k ⊙ ∂f_c/∂A_k, at the layer's resolution.

    A. Shrikumar, P. Greenside, A. Shcherbina, A. Kundaje. Not just a black box. arXiv:1605.01713, 2016.
    """

    class Options(protocols.Options):
        """Options of `input-x-gradient`."""

        layer: str = layer_option()

    needs_gradients: ClassVar[bool] = True
    deterministic: ClassVar[bool] = True
    family: ClassVar[str] = "backpropagation"
    passes: ClassVar[int] = 1

    def __init__(self, options: Options | None = None) -> None:
        self.options = options or self.Options()

    def attribute(self, model: Model, inputs: Tensor, targets: Tensor, *, rng: Rng) -> Attribution:
        """(B,h,w) maps of either sign, and the logits; a forward pass, and one back to the layer."""
        split = model.at(self.options.layer)
        values = activation_of(split, inputs)
        gradient, logits = gradient_at(split, self.options.layer, values, targets)
        return Attribution(split.as_map(gradient * values[0]).sum(1), logits)


class _Noisy:
    """What SmoothGrad and VarGrad share: gradients over noisy inputs, from the copy's own stream, in bounded memory."""

    class Options(protocols.Options):
        """Options of the methods that average over noise of their own."""

        layer: str = layer_option()
        samples: int = Field(50, ge=1, description="Number of noisy inputs per map.")
        noise: float = Field(0.2, gt=0, description="s as a fraction of the range (max − min) of each input.")
        chunk: int = Field(32, ge=1, description="Largest number of noisy inputs in one pass; changes no result.")

    needs_gradients: ClassVar[bool] = True
    deterministic: ClassVar[bool] = False
    family: ClassVar[str] = "backpropagation"
    execution: ClassVar[frozenset[str]] = frozenset({"chunk"})

    def __init__(self, options: Options | None = None) -> None:
        self.options = options or self.Options()
        self.passes = self.options.samples

    def _gradients(self, model: Model, inputs: Tensor, targets: Tensor, rng: Rng) -> Iterator[Tensor]:
        """`samples` gradients as maps (B,K,h,w), one after the other; δ is always added to the input."""
        options, split, x = self.options, model.at(self.options.layer), inputs
        spread = options.noise * (x.flatten(1).amax(1) - x.flatten(1).amin(1)).view(-1, 1, 1, 1)
        repeats = max(1, options.chunk // len(x))
        for start in range(0, options.samples, repeats):
            # One draw per sample, so that the noise does not depend on how the samples are grouped.
            draws = [x + spread * rng.normal(*x.shape[1:]) for _ in range(min(repeats, options.samples - start))]
            rows, classes = torch.cat(draws), targets.repeat(len(draws))
            parts = zip(torch.split(rows, options.chunk), torch.split(classes, options.chunk), strict=True)
            gradients = [gradient_at(split, options.layer, activation_of(split, part), wanted)[0]
                         for part, wanted in parts]
            yield from torch.split(split.as_map(torch.cat(gradients)), len(x))


class SmoothGrad(_Noisy):
    """Σ over channels of |mean of ∂f_c/∂x at x + δ|, δ ~ N(0, s²I), s a fraction of the image's own range.

    Each of the noisy copies that certframe makes of an image is explained with fresh noise δ on top, drawn from
    the copy's own stream; the logits of the copy itself are not computed. The mean over certframe's own copies, with no
    noise inside, is the attributor `gradient` with the sparsifier `scaled` or `quadratic`. At a feature map A it is
    Σ_k |mean of ∂f_c/∂A_k at x + δ|.

    D. Smilkov, N. Thorat, B. Kim, F. Viégas, M. Wattenberg. SmoothGrad. arXiv:1706.03825, 2017.
    """

    class Options(_Noisy.Options):
        """Options of `smoothgrad`."""

    def attribute(self, model: Model, inputs: Tensor, targets: Tensor, *, rng: Rng) -> Attribution:
        """(B,h,w) maps, all ≥ 0; `samples` forward passes, and as many back to the layer."""
        gradients = self._gradients(model, inputs, targets, rng)
        total = next(gradients).clone()
        for gradient in gradients:
            total += gradient
        return Attribution(over_channels((total / self.options.samples).abs_()))


class VarGrad(_Noisy):
    """Σ over channels of the variance of ∂f_c/∂x at x + δ, δ ~ N(0, s²I), s a fraction of the image's own range.

    At a feature map A it is Σ_k of the variance of ∂f_c/∂A_k.

    J. Adebayo, J. Gilmer, M. Muelly, I. Goodfellow, M. Hardt, B. Kim. Sanity checks for saliency maps. NeurIPS 2018.
    """

    class Options(_Noisy.Options):
        """Options of `vargrad`."""

        samples: int = Field(50, ge=2, description="Number of noisy inputs per map.")

    def attribute(self, model: Model, inputs: Tensor, targets: Tensor, *, rng: Rng) -> Attribution:
        """(B,h,w) maps, all ≥ 0; `samples` forward passes, and as many back to the layer."""
        gradients = self._gradients(model, inputs, targets, rng)
        first = next(gradients)  # variance does not change when the first gradient is subtracted, and rounds less
        total, squares = torch.zeros_like(first), torch.zeros_like(first)
        for gradient in gradients:
            difference = gradient - first
            total += difference
            squares += difference.square_()
        n = self.options.samples
        return Attribution(over_channels((squares / n - (total / n).square_()).clamp_(min=0)))
