"""Rectifiers made smooth: a network of ReLUs has second derivatives of 0, and an attack on gradients needs them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

import certframe

_RELU = {functional.relu, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_, functional.relu_}
_RELU6 = {functional.relu6}
_BOXED = {functional.hardtanh, functional.hardtanh_}
_LEAKY = {functional.leaky_relu, functional.leaky_relu_}


class SoftRectifiers(TorchFunctionMode):
    """While this is entered, ReLU, ReLU6 and leaky ReLU are computed as differences of softplus functions.

    relu(x) becomes log(1 + exp(βx))/β, which is larger by log(2)/β at most; ReLU6 softplus(x) − softplus(x − 6).

    Args:
        beta: β, the sharpness; large is close to the rectifier.
    """

    def __init__(self, beta: float) -> None:
        super().__init__()
        self.beta = beta

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (),
                           kwargs: dict[str, Any] | None = None) -> Any:
        """Replace the rectifiers, and call everything else as it is."""
        kwargs = kwargs or {}
        if func in _RELU:
            return self._soft(_first(args, kwargs))
        if func in _RELU6:
            return self._between(_first(args, kwargs), 0.0, 6.0)
        if func in _BOXED:
            low = args[1] if len(args) > 1 else kwargs.get("min_val", -1.0)
            high = args[2] if len(args) > 2 else kwargs.get("max_val", 1.0)
            return self._between(_first(args, kwargs), low, high)
        if func in _LEAKY:
            slope = args[1] if len(args) > 1 else kwargs.get("negative_slope", 0.01)
            x = _first(args, kwargs)
            return slope * x + (1 - slope) * self._soft(x)
        return func(*args, **kwargs)

    def _soft(self, x: Tensor) -> Tensor:
        return functional.softplus(x, beta=self.beta)

    def _between(self, x: Tensor, low: float, high: float) -> Tensor:
        return low + self._soft(x - low) - self._soft(x - high)


def _first(args: Sequence[Any], kwargs: dict[str, Any]) -> Tensor:
    found: Tensor = args[0] if args else kwargs["input"]
    return found


class _Soft(nn.Module):
    def __init__(self, module: nn.Module, beta: float) -> None:
        super().__init__()
        self.inner, self.beta = module, beta

    def forward(self, x: Tensor) -> Any:
        with SoftRectifiers(self.beta):
            return self.inner(x)


class Softened:
    """A model whose rectifiers are smooth; weights and everything else are the model's own.

    Args:
        model: the model; it is left as it is.
        beta: sharpness of the softplus functions.
    """

    def __init__(self, model: certframe.Model, beta: float) -> None:
        if not (math.isfinite(beta) and beta > 0):
            raise certframe.UsageError(f"beta = {beta:g}: give a positive number, such as 20")
        self._model, self._beta = model, beta
        self.module: nn.Module = _Soft(model.module, beta)
        self.input_size, self.classes, self.preprocess = model.input_size, model.classes, model.preprocess

    def at(self, layer: str) -> certframe.Split:
        """The model's cut, with smooth rectifiers before and behind it."""
        split = self._model.at(layer)
        return certframe.Split(self._wrapped(split.body), self._wrapped(split.head), split.as_map)

    def _wrapped(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def soft(*values: Tensor) -> Any:
            with SoftRectifiers(self._beta):
                return function(*values)
        return soft
