"""Attributions from the gradient of a logit with respect to the input, at the input's resolution."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from certframe import protocols
from certframe.errors import UsageError
from certframe.protocols import Attribution

if TYPE_CHECKING:
    from certframe.protocols import Model, Rng


def input_gradient(module: nn.Module, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """∂f_c/∂x for the class ``targets[b]`` of each row, and the logits.

    Args:
        module: (B,C,H,W) → logits (B, classes).
        inputs: (B,C,H,W) in pixel units.
        targets: (B,) int64.

    Returns:
        The gradient (B,C,H,W) and the logits (B, classes), both float32 and detached.

    Raises:
        UsageError: the logits have no gradient with respect to the input.
    """
    x = inputs.detach().requires_grad_()
    logits = module(x)
    if not logits.requires_grad:
        raise UsageError("the model's logits have no gradient with respect to the picture (a no_grad, a detach or a "
                         "step function on the way): take a method that needs no gradients")
    # Rows do not meet in a classifier in eval mode, so the gradient of the sum holds each row's own gradient.
    gradient, = torch.autograd.grad(logits.gather(1, targets[:, None]).sum(), x)
    return gradient.float(), logits.detach().float()


class Gradient:
    """Saliency: |∂f_c/∂x|, f_c the logit of the class; summed over the channels, or every channel by itself.

    With ``channels=stack`` the values of the C channels are C maps of the image's size one below the other, (C·H, W),
    and count as pixels of their own: what Levine, Singla, Feizi 2019 certify (N = 224·224·3).

    K. Simonyan, A. Vedaldi, A. Zisserman. Deep inside convolutional networks. ICLR workshop 2014.
    """

    class Options(protocols.Options):
        """Options of `gradient`."""

        channels: Literal["sum", "stack"] = Field(
            "sum", description="'sum' over the channels, or 'stack' them one below the other as one map (C·H, W).")

    needs_gradients: ClassVar[bool] = True
    deterministic: ClassVar[bool] = True
    passes: ClassVar[int] = 1

    def __init__(self, options: Options | None = None) -> None:
        self.options = options or self.Options()

    def map_size(self, input_size: tuple[int, int, int]) -> tuple[int, int]:
        """h, w of the maps for inputs of size C, H, W."""
        channels, height, width = input_size
        return (channels * height if self.options.channels == "stack" else height), width

    def attribute(self, model: Model, inputs: Tensor, targets: Tensor, *, rng: Rng) -> Attribution:
        """(B,H,W) maps, or (B,C·H,W), all ≥ 0, and the logits; one forward and one backward pass."""
        gradient, logits = input_gradient(model.module, inputs, targets)
        magnitude = gradient.abs_()
        return Attribution(magnitude.flatten(1, 2) if self.options.channels == "stack" else magnitude.sum(1), logits)


class InputXGradient:
    """Input times gradient: Σ over channels of x ⊙ ∂f_c/∂x, signed, x in pixel units.

    A. Shrikumar, P. Greenside, A. Shcherbina, A. Kundaje. Not just a black box. arXiv:1605.01713, 2016.
    """

    class Options(protocols.Options):
        """`input-x-gradient` has no options."""

    needs_gradients: ClassVar[bool] = True
    deterministic: ClassVar[bool] = True
    passes: ClassVar[int] = 1

    def __init__(self, options: Options | None = None) -> None:
        self.options = options or self.Options()

    def attribute(self, model: Model, inputs: Tensor, targets: Tensor, *, rng: Rng) -> Attribution:
        """(B,H,W) maps of either sign, and the logits; one forward and one backward pass."""
        gradient, logits = input_gradient(model.module, inputs, targets)
        return Attribution(gradient.mul_(inputs.detach()).sum(1), logits)


class _Noisy:
    """What SmoothGrad and VarGrad share: gradients over noisy inputs, from the copy's own stream, in bounded memory."""

    class Options(protocols.Options):
        """Options of the methods that average over noise of their own."""

        samples: int = Field(50, ge=1, description="Number of noisy inputs per map.")
        noise: float = Field(0.2, gt=0, description="s as a fraction of the range (max − min) of each input.")
        chunk: int = Field(32, ge=1, description="Largest number of noisy inputs in one pass; changes no result.")

    needs_gradients: ClassVar[bool] = True
    deterministic: ClassVar[bool] = False
    execution: ClassVar[frozenset[str]] = frozenset({"chunk"})

    def __init__(self, options: Options | None = None) -> None:
        self.options = options or self.Options()
        self.passes = self.options.samples

    def _gradients(self, model: Model, inputs: Tensor, targets: Tensor, rng: Rng) -> Iterator[Tensor]:
        """`samples` gradients (B,C,H,W), one after the other."""
        options, x = self.options, inputs.detach()
        spread = options.noise * (x.flatten(1).amax(1) - x.flatten(1).amin(1)).view(-1, 1, 1, 1)
        repeats = max(1, options.chunk // len(x))
        for start in range(0, options.samples, repeats):
            # One draw per sample, so that the noise does not depend on how the samples are grouped.
            draws = [x + spread * rng.normal(*x.shape[1:]) for _ in range(min(repeats, options.samples - start))]
            rows, classes = torch.cat(draws), targets.repeat(len(draws))
            parts = zip(torch.split(rows, options.chunk), torch.split(classes, options.chunk), strict=True)
            gradients = torch.cat([input_gradient(model.module, part, wanted)[0] for part, wanted in parts])
            yield from torch.split(gradients, len(x))


class SmoothGrad(_Noisy):
    """Σ over channels of |mean of ∂f_c/∂x at x + δ|, δ ~ N(0, s²I), s a fraction of the image's own range.

    Each of the noisy copies that certframe makes of an image is explained with fresh noise δ on top, drawn from
    the copy's own stream; the logits of the copy itself are not computed. The mean over certframe's own copies, with no
    noise inside, is the attributor `gradient` with the sparsifier `scaled` or `quadratic`.

    D. Smilkov, N. Thorat, B. Kim, F. Viégas, M. Wattenberg. SmoothGrad. arXiv:1706.03825, 2017.
    """

    class Options(_Noisy.Options):
        """Options of `smoothgrad`."""

    def attribute(self, model: Model, inputs: Tensor, targets: Tensor, *, rng: Rng) -> Attribution:
        """(B,H,W) maps, all ≥ 0; `samples` forward and backward passes."""
        total = torch.zeros_like(inputs, dtype=torch.float32)
        for gradient in self._gradients(model, inputs, targets, rng):
            total += gradient
        return Attribution((total / self.options.samples).abs_().sum(1))


class VarGrad(_Noisy):
    """Σ over channels of the variance of ∂f_c/∂x at x + δ, δ ~ N(0, s²I), s a fraction of the image's own range.

    J. Adebayo, J. Gilmer, M. Muelly, I. Goodfellow, M. Hardt, B. Kim. Sanity checks for saliency maps. NeurIPS 2018.
    """

    class Options(_Noisy.Options):
        """Options of `vargrad`."""

        samples: int = Field(50, ge=2, description="Number of noisy inputs per map.")

    def attribute(self, model: Model, inputs: Tensor, targets: Tensor, *, rng: Rng) -> Attribution:
        """(B,H,W) maps, all ≥ 0; `samples` forward and backward passes."""
        gradients = self._gradients(model, inputs, targets, rng)
        first = next(gradients)  # variance does not change when the first gradient is subtracted, and rounds less
        total, squares = torch.zeros_like(first), torch.zeros_like(first)
        for gradient in gradients:
            difference = gradient - first
            total += difference
            squares += difference.square_()
        n = self.options.samples
        return Attribution((squares / n - (total / n).square_()).clamp_(min=0).sum(1))
