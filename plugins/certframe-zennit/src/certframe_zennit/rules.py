"""The rules of layer-wise relevance propagation, each in the place of the gradient of a layer.

Relevance R is carried backwards as a coefficient c with R = activation ⊙ c. In this form most of a network hands c on
exactly as it would a gradient: everything that is homogeneous, such as ReLU, pooling, reshaping, and sums of branches,
where relevance is shared out in proportion to the summands; and a dense layer under the ε-rule, up to ε. What is left
to be replaced is little: layers whose rule tells positive from negative contributions, other activation functions, and
what measures its own input (layer norms, attention weights).

Sources: S. Bach et al. On pixel-wise explanations for non-linear classifier decisions by layer-wise relevance
propagation. PLoS ONE 2015 (ε, αβ). G. Montavon et al. Explaining nonlinear classification decisions with deep Taylor
decomposition. Pattern Recognition 2017 (z⁺, box). G. Montavon et al. Layer-wise relevance propagation: an overview.
2019 (γ). S. Lapuschkin et al. Unmasking Clever Hans predictors. Nature Communications 2019 (flat). A. Ali et al. XAI
for transformers: better explanations through conservative propagation. ICML 2022 (layer norm, attention).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

SMALLEST = 1e-6
"""What the denominators of the rules cannot fall below."""

Operation = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""(input, weight, bias) → output of a linear layer."""
Map = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Layer:
    """A linear layer with the activation function that follows it, and what is known of the signs around it.

    Attributes:
        operation: the layer's function.
        weight: its weight.
        bias: its bias, if any.
        activation: applied to the result, which it may overwrite; None for none.
        nonnegative_input: no input is ever below 0, so that half of the terms vanish.
        nonnegative_output: no output, after the activation, is.
    """

    operation: Operation
    weight: Tensor
    bias: Tensor | None
    activation: Map | None = None
    nonnegative_input: bool = False
    nonnegative_output: bool = False


class Rule(Protocol):
    """How the relevance of a layer's outputs goes to its inputs."""

    def __call__(self, layer: Layer, x: Tensor, y: Tensor, coefficient: Tensor, references: Sequence[Tensor]) -> Tensor:
        """The coefficients of the inputs; a rule for the first layer gives their relevance.

        Args:
            layer: the layer.
            x: its input.
            y: its output, after the activation function.
            coefficient: of the output: its relevance is ``y * coefficient``.
            references: for a rule of the first layer, what the pixels are compared with, in the shape of `x`.
        """
        ...


def apply(layer: Layer, rule: Rule, x: Tensor, *references: Tensor) -> Tensor:
    """The layer's output, with the rule in the place of its gradient."""
    found: Tensor = _Ruled.apply(x, layer, rule, *references)
    return found


class _Ruled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: Layer, rule: Rule, *references: Tensor) -> Tensor:
        y = layer.operation(x, layer.weight, layer.bias)
        if layer.activation is not None:
            y = layer.activation(y)
        ctx.layer, ctx.rule = layer, rule
        ctx.save_for_backward(x, y, *references)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, coefficient: Tensor) -> tuple[Tensor | None, ...]:
        x, y, *references = ctx.saved_tensors
        return ctx.rule(ctx.layer, x, y, coefficient, references), None, None, *[None] * len(references)


class _Pass:
    """A linear layer run forwards, and later backwards; its output may be overwritten in between."""

    def __init__(self, operation: Operation, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> None:
        with torch.enable_grad():
            self._x = x.detach().requires_grad_()
            self._y = operation(self._x, weight, bias)
        self.output = self._y.detach()

    def back(self, coefficient: Tensor) -> Tensor:
        gradient, = torch.autograd.grad(self._y, self._x, coefficient)
        return gradient


# -- rules that share relevance out by the sign of contributions ------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """Contributions of one sign, among which a share of the relevance is divided in proportion.

    Attributes:
        sign: of the contributions, 1 or −1.
        for_positive: weight → the weight that counts for positive inputs.
        for_negative: likewise for negative inputs.
        bias: bias → the bias that counts; its share is not handed on.
        share: the part of the relevance that is divided; the parts of a rule add up to 1.
        outputs: 1 or −1 when it is the relevance of outputs of this sign only, else 0.
    """

    sign: int
    for_positive: Map
    for_negative: Map
    bias: Map
    share: float = 1.0
    outputs: int = 0


@dataclass(frozen=True)
class SignRule:
    """z⁺, αβ and γ; every part costs a pass forwards and one backwards for each sign that the inputs can have."""

    parts: tuple[Part, ...]

    def __call__(self, layer: Layer, x: Tensor, y: Tensor, coefficient: Tensor, references: Sequence[Tensor]) -> Tensor:
        """The coefficients of the inputs."""
        parts = [p for p in self.parts if not (p.outputs < 0 and layer.nonnegative_output)]
        found = [_divide(part, layer, x, _relevance(part, layer, y, coefficient)) for part in parts]
        total = found[0] if parts[0].share == 1 else found[0].mul_(parts[0].share)
        for part, one in zip(parts[1:], found[1:], strict=True):
            total.add_(one, alpha=part.share)
        return total


def _relevance(part: Part, layer: Layer, y: Tensor, coefficient: Tensor) -> Tensor:
    if part.outputs and not layer.nonnegative_output:
        y = y.clamp(min=0) if part.outputs > 0 else y.clamp(max=0)
    return y * coefficient


def _divide(part: Part, layer: Layer, x: Tensor, relevance: Tensor) -> Tensor:
    bias = None if layer.bias is None else part.bias(layer.bias)
    if layer.nonnegative_input:
        only = _Pass(layer.operation, x, part.for_positive(layer.weight), bias)
        return only.back(_per_unit(relevance, only.output, part.sign))
    upper = _Pass(layer.operation, x.clamp(min=0), part.for_positive(layer.weight), bias)
    lower = _Pass(layer.operation, x.clamp(max=0), part.for_negative(layer.weight))
    unit = _per_unit(relevance, upper.output.add_(lower.output), part.sign)
    return torch.where(x < 0, lower.back(unit), upper.back(unit))


def _per_unit(relevance: Tensor, total: Tensor, sign: int = 1) -> Tensor:
    """Relevance per unit of a sum that has this sign. Overwrites the relevance and the sum."""
    total = total.clamp_(min=SMALLEST) if sign > 0 else total.clamp_(max=-SMALLEST)
    return relevance.div_(total)


def _positive(weight: Tensor) -> Tensor:
    return weight.clamp(min=0)


def _negative(weight: Tensor) -> Tensor:
    return weight.clamp(max=0)


def z_plus() -> SignRule:
    """z⁺: positive contributions only."""
    return SignRule((Part(1, _positive, _negative, _positive),))


def alpha_beta(alpha: float) -> SignRule:
    """αβ with β = α − 1: α of the relevance to positive contributions, −β to negative ones."""
    return SignRule((Part(1, _positive, _negative, _positive, share=alpha),
                     Part(-1, _negative, _positive, _negative, share=1 - alpha)))


def gamma(value: float) -> SignRule:
    """γ: contributions that have the sign of the output count 1 + γ times; for inputs of either sign."""
    def more_positive(weight: Tensor) -> Tensor:
        return weight + value * weight.clamp(min=0)

    def more_negative(weight: Tensor) -> Tensor:
        return weight + value * weight.clamp(max=0)

    return SignRule((Part(1, more_positive, more_negative, more_positive, outputs=1),
                     Part(-1, more_negative, more_positive, more_negative, outputs=-1)))


# -- rules for the first layer, which give relevance ------------------------------------------------------------------


def box(layer: Layer, x: Tensor, y: Tensor, coefficient: Tensor, references: Sequence[Tensor]) -> Tensor:
    """The box rule: contributions in proportion to the distance from the lowest and the highest possible pixel.

    ``references`` are these two, low ≤ x ≤ high.
    """
    low, high = references
    above, below = x - low, x - high
    up, down = (_Pass(layer.operation, above, _positive(layer.weight)),
                _Pass(layer.operation, below, _negative(layer.weight)))
    unit = _per_unit(y * coefficient, up.output.add_(down.output))
    return above.mul_(up.back(unit)).add_(below.mul_(down.back(unit)))


def flat(layer: Layer, x: Tensor, y: Tensor, coefficient: Tensor, references: Sequence[Tensor]) -> Tensor:
    """The flat rule: the same relevance to every pixel that a layer sees.

    ``references`` is one map of ones, with zeros where the network has padded.
    """
    ones, = references
    same = _Pass(layer.operation, ones, torch.ones_like(layer.weight))
    return ones * same.back(_per_unit(y * coefficient, same.output))


# -- the rest of a network --------------------------------------------------------------------------------------------


def epsilon(y: Tensor, value: float) -> Tensor:
    """`y`, the output of a linear layer; behind it relevance follows the ε-rule: R_in = x ⊙ Wᵀ(R / (y ± ε))."""
    found: Tensor = _Epsilon.apply(y, value) if value else y
    return found


class _Epsilon(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, value: float) -> Tensor:
        ctx.save_for_backward(y)
        ctx.value = value
        return y.view_as(y)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, coefficient: Tensor) -> tuple[Tensor, None]:
        y, = ctx.saved_tensors
        size = y.abs()
        return coefficient * (size / (size + ctx.value)), None


def elementwise(function: Map, x: Tensor) -> Tensor:
    """``function(x)``, a function with f(0) = 0 that acts on every element; relevance passes through it unchanged."""
    found: Tensor = _Elementwise.apply(x, function)
    return found


class _Elementwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, function: Map) -> Tensor:
        y = function(x)
        ctx.save_for_backward(x, y)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, coefficient: Tensor) -> tuple[Tensor, None]:
        x, y = ctx.saved_tensors
        return coefficient * y / x.masked_fill(x == 0, 1), None


def layer_norm(x: Tensor, shape: Sequence[int], weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """Layer norm, whose scale is a constant for relevance."""
    found: Tensor = _LayerNorm.apply(x, tuple(shape), weight, bias, eps)
    return found


class _LayerNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, shape: Sequence[int], weight: Tensor | None, bias: Tensor | None,
                eps: float) -> Tensor:
        y, _, scale = torch.native_layer_norm(x, shape, weight, bias, eps)
        ctx.save_for_backward(scale, weight)
        ctx.axes = tuple(range(-len(shape), 0))
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, coefficient: Tensor) -> tuple[Tensor | None, ...]:
        scale, weight = ctx.saved_tensors
        scaled = coefficient * scale if weight is None else (coefficient * weight).mul_(scale)
        return scaled.sub_(scaled.mean(ctx.axes, keepdim=True)), None, None, None, None


def group_norm(x: Tensor, groups: int, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """Group norm, whose scale is a constant for relevance."""
    rows, channels = x.shape[:2]
    y = layer_norm(x.reshape(rows, groups, -1), (x[0].numel() // groups,), None, None, eps).view_as(x)
    per_channel = (1, channels, *[1] * (x.ndim - 2))
    y = y if weight is None else y * weight.view(per_channel)
    return y if bias is None else y + bias.view(per_channel)


def attention(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Scaled dot-product attention, whose weights are constants for relevance."""
    return functional.scaled_dot_product_attention(query.detach(), key.detach(), value, *args, **kwargs)


def multi_head_attention(query: Tensor, key: Tensor, value: Tensor, heads: int, weight: Tensor, bias: Tensor | None,
                         out_weight: Tensor, out_bias: Tensor | None, eps: float) -> tuple[Tensor]:
    """`torch.nn.functional.multi_head_attention_forward` without masks, (L,B,E), with the rules of its parts."""
    weights = weight.chunk(3)
    biases = (None, None, None) if bias is None else bias.chunk(3)
    with torch.no_grad():
        q, k = (functional.linear(x, w, b) for x, w, b in zip((query, key), weights, biases, strict=False))
    v = epsilon(functional.linear(value, weights[2], biases[2]), eps)

    def split(x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], heads, -1).permute(1, 2, 0, 3)

    mixed = functional.scaled_dot_product_attention(split(q), split(k), split(v)).permute(2, 0, 1, 3).flatten(2)
    return epsilon(functional.linear(mixed, out_weight, out_bias), eps),
