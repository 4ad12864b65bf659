"""Models that fail on purpose, or have no derivatives."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from certframe.protocols import Model, Split


class _Boom(Exception):
    """Raised in the middle of the model, on purpose."""


class _FailingGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, fuse: Fuse) -> Tensor:
        ctx.fuse = fuse
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        ctx.fuse.count()
        return grads[0], None


class Fuse:
    """Makes a layer of a model fail at its n-th pass, in the forward or in the backward pass.

    Attributes:
        fired: whether it has come to that.
    """

    def __init__(self, layer: nn.Module, *, backward: bool, at_pass: int) -> None:
        self.fired = False
        self._passes, self._backward, self._at = 0, backward, at_pass
        self._handle = layer.register_forward_hook(self)

    def __call__(self, layer: nn.Module, inputs: Any, output: Tensor) -> Tensor | None:
        """The layer's forward hook."""
        if not self._backward:
            self.count()
            return None
        found: Tensor = _FailingGradient.apply(output, self)
        return found

    def count(self) -> None:
        """Another pass; raises when it is the one."""
        self._passes += 1
        if self._passes == self._at:
            self.fired = True
            raise _Boom("the conformance kit makes the model fail here")

    def remove(self) -> None:
        """Leave the layer as it was."""
        self._handle.remove()


class BlackBox:
    """A model without derivatives: every pass is detached from its input."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self.input_size, self.classes, self.module = model.input_size, model.classes, model.module
        self.module.register_forward_hook(lambda _module, _inputs, output: output.detach())

    def preprocess(self, image: Any) -> Tensor:
        """As the model does."""
        return self._model.preprocess(image)

    def at(self, layer: str) -> Split:
        """The model's cut, with both halves detached."""
        split = self._model.at(layer)
        return Split(lambda x: tuple(value.detach() for value in split.body(x)),
                     lambda *activation: split.head(*activation).detach(), split.as_map)
