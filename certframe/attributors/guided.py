"""Guided backpropagation: a gradient that only rises through rectifiers."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from certframe import protocols
from certframe.attributors.layers import activation_of, gradient_at, layer_option, over_channels
from certframe.errors import UsageError
from certframe.protocols import Attribution

if TYPE_CHECKING:
    from certframe.protocols import Model, Rng

_RECTIFIERS = frozenset({
    functional.relu, functional.relu_, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_, functional.relu6,
    functional.leaky_relu, functional.leaky_relu_, functional.elu, functional.elu_, functional.selu, functional.celu,
    functional.gelu, functional.silu, functional.hardswish, functional.mish, functional.prelu,
})
_CLIPS = frozenset({
    functional.hardtanh, functional.hardtanh_, torch.clamp, torch.clamp_, Tensor.clamp, Tensor.clamp_, torch.clip,
    torch.clip_, Tensor.clip, Tensor.clip_, torch.clamp_min, torch.clamp_min_, Tensor.clamp_min, Tensor.clamp_min_,
})
"""Rectifiers when they clip at 0."""


class GuidedRectifiers(TorchFunctionMode):
    """While active, every rectifier that is called passes only positive gradients back.

    It acts on calls, not on modules, so it meets rectifiers that are shared, in place, or called as functions inside a
    forward, and the model is never touched. ReLU6 is one of them, and so are `hardtanh` and `clamp` from 0.

    Attributes:
        met: how many rectifiers were called, with or without a gradient.
    """

    def __init__(self) -> None:
        super().__init__()
        self.met = 0

    def __torch_function__(self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (),
                           kwargs: dict[str, Any] | None = None) -> Any:
        """Call `func`, and guard its result when it is a rectifier."""
        kwargs = kwargs or {}
        rectifies = func in _RECTIFIERS or (func in _CLIPS and _clips_at_zero(args, kwargs))
        with torch._C.DisableTorchFunction() if rectifies else contextlib.nullcontext():
            result = func(*args, **kwargs)
        self.met += rectifies
        if rectifies and result.requires_grad:
            # What arrives at the output must not be negative; the rectifier's own derivative then follows. The hook
            # belongs to the value as it is now, so it also holds for a rectifier in place, and goes with the graph.
            result.register_hook(_only_positive)
        return result


def _only_positive(gradient: Tensor) -> Tensor:
    return gradient.clamp(min=0)


def _clips_at_zero(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    low = args[1] if len(args) > 1 else kwargs.get("min", kwargs.get("min_val"))
    return isinstance(low, int | float) and low == 0


class GuidedBackprop:
    """Σ over channels of |guided gradient|: at every rectifier, gradients that are negative there become zero.

    Rectifiers are ReLU, ReLU6 and, where a network has smooth ones, GELU, SiLU, hard-swish, ELU and their kin. At a
    feature map A it is Σ_k |guided ∂f_c/∂A_k|, and only the rectifiers behind it count: where there are none (the last
    feature map of a ResNet) that is the gradient.

    J. T. Springenberg, A. Dosovitskiy, T. Brox, M. Riedmiller. Striving for simplicity. ICLR workshop 2015.
    """

    class Options(protocols.Options):
        """Options of `guided-backprop`."""

        layer: str = layer_option()

    needs_gradients: ClassVar[bool] = True
    deterministic: ClassVar[bool] = True
    family: ClassVar[str] = "backpropagation"
    passes: ClassVar[int] = 1

    def __init__(self, options: Options | None = None) -> None:
        self.options = options or self.Options()

    def attribute(self, model: Model, inputs: Tensor, targets: Tensor, *, rng: Rng) -> Attribution:
        """(B,h,w) maps, all ≥ 0, and the logits; a forward pass, and one back to the layer.

        Raises:
            UsageError: the network has no rectifier; the result would silently be the plain gradient.
        """
        split = model.at(self.options.layer)
        with GuidedRectifiers() as guided:
            values = activation_of(split, inputs)
            gradient, logits = gradient_at(split, self.options.layer, values, targets)
        if not guided.met:
            raise UsageError("guided-backprop: the network calls no rectifier (ReLU, GELU, SiLU, …), so it would only "
                             "be the gradient: take 'gradient'")
        return Attribution(over_channels(split.as_map(gradient.abs_())), logits)
