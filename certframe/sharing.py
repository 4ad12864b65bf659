"""What the methods of a sweep share: for a batch, the network runs once up to a layer, and once back to it."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from certframe.protocols import Split

if TYPE_CHECKING:
    from torch import Tensor

    from certframe.protocols import Model

    Gradient = tuple[Tensor | None, Tensor]
    Body = Callable[[Tensor], tuple[Tensor, ...]]


@dataclass(frozen=True)
class _Kept:
    values: tuple[Tensor, ...]
    versions: tuple[int, ...]

    @classmethod
    def of(cls, values: tuple[Tensor, ...]) -> _Kept:
        return cls(values, tuple(value._version for value in values))

    @property
    def intact(self) -> bool:
        """False when somebody has worked on an activation in place."""
        return self.versions == tuple(value._version for value in self.values)


@dataclass(frozen=True)
class SharedSplit(Split):
    """A split that also remembers gradients; see `gradient_of`."""

    gradient: Callable[[Sequence[Tensor], Tensor], Gradient]


def gradient_of(split: Split, values: Sequence[Tensor], targets: Tensor) -> Gradient:
    """∂f_c/∂A for the class ``targets[b]`` of each row, and the logits; only the head is differentiated.

    Where methods of a sweep ask for the same gradient, it is computed once.

    Args:
        split: the model, cut at the layer.
        values: the activation A, with one row per image, and what is carried around it: what ``split.body`` returns.
        targets: (B,) int64.

    Returns:
        The gradient in the shape of A, None when the logits have none, and the logits (B, classes); detached, unless A
        has a graph, which then reaches through both.
    """
    return split.gradient(values, targets) if isinstance(split, SharedSplit) else _gradient(split, values, targets)


def _gradient(split: Split, values: Sequence[Tensor], targets: Tensor) -> Gradient:
    further = values[0].requires_grad  # somebody will differentiate what is computed here
    activation = values[0] if further else values[0].detach().requires_grad_()
    logits = split.head(activation, *values[1:])
    gradient = None
    if logits.requires_grad:
        # Rows do not meet in a classifier in eval mode, so the gradient of the sum holds each row's own gradient.
        gradient, = torch.autograd.grad(logits.gather(1, targets[:, None]).sum(), activation, allow_unused=True,
                                        create_graph=further)
    return gradient, logits if further else logits.detach()


class SharedModel:
    """A model that remembers, while a batch is under way, the activations and gradients that were computed for it.

    Grad-CAM, LayerCAM and occlusion of one feature map need the same activation of the same noisy copies; only the
    first of them runs the network up to there. Saliency, Grad-CAM and LayerCAM at one layer need the same gradient;
    only the first goes back. What is returned is what the body returns, and what `gradient_of` does. It is computed
    again when it has to be: another layer, class, precision or part of the batch, inputs with a gradient, torch's
    functions being watched, or values that were changed in place. Nothing is kept when the batch is done.

    Args:
        model: any model; everything but the bodies is its own.
    """

    def __init__(self, model: Model) -> None:
        self._model = model
        self._batch: Tensor | None = None
        self._targets: Tensor | None = None
        self._kept: dict[Any, _Kept] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    @contextlib.contextmanager
    def batch(self, inputs: Tensor, targets: Tensor) -> Iterator[None]:
        """While this is open, what is computed for these inputs and classes, or for rows of them, is remembered."""
        self._batch, self._targets = inputs, targets
        try:
            yield
        finally:
            self._batch = self._targets = None
            self.forget()

    def forget(self) -> None:
        """Free what is kept, before the batch is done."""
        self._kept.clear()

    def at(self, layer: str) -> Split:
        """As the model's own."""
        split = self._model.at(layer)
        # At the input the activation is the batch itself.
        body = split.body if layer == "input" else functools.partial(self._body, layer, split.body)
        return SharedSplit(body, split.head, split.as_map, functools.partial(self._gradient, layer, split))

    def _body(self, layer: str, body: Body, inputs: Tensor) -> tuple[Tensor, ...]:
        if not self._of_batch(inputs):
            return body(inputs)
        return self._remembered(("body", layer, _state(inputs)), lambda: body(inputs))

    def _gradient(self, layer: str, split: Split, values: Sequence[Tensor], targets: Tensor) -> Gradient:
        known = self._of_batch(values[0]) if layer == "input" else self._of_body(layer, values)
        if not known or self._targets is None or not _same_memory(targets, self._targets):
            return _gradient(split, values, targets)

        def compute() -> tuple[Tensor, ...]:
            gradient, logits = _gradient(split, values, targets)
            return (logits,) if gradient is None else (logits, gradient)

        logits, *gradient = self._remembered(
            ("gradient", layer, *(_state(value) for value in (*values, targets))), compute)
        return (gradient[0] if gradient else None), logits

    def _remembered(self, key: Any, compute: Callable[[], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        """Kept values that nobody has changed, or new ones."""
        key = (*key, _precision(self._batch))
        kept = self._kept.get(key)
        if kept is None or not kept.intact:
            values = compute()
            if any(value.requires_grad or value.is_inference() for value in values):
                return values
            kept = self._kept[key] = _Kept.of(values)
        # An alias for everyone: requires_grad_ is no matter of the others.
        return tuple(value.detach() for value in kept.values)

    def _of_batch(self, inputs: Tensor) -> bool:
        """Whether what is computed for these inputs may be remembered: they are the batch, or rows of it."""
        watched = torch._C._len_torch_function_stack() > 0
        return (self._batch is not None and not watched and not inputs.requires_grad and not inputs.is_inference()
                and _same_memory(inputs, self._batch))

    def _of_body(self, layer: str, values: Sequence[Tensor]) -> bool:
        """Whether these are, in whole, activations that are kept for the layer."""
        if torch._C._len_torch_function_stack() > 0 or any(value.requires_grad for value in values):
            return False
        given = [_state(value) for value in values]
        return any(key[:2] == ("body", layer) and kept.intact and given == [_state(value) for value in kept.values]
                   for key, kept in self._kept.items())


def _state(value: Tensor) -> Any:
    """Which memory a tensor looks at, how, and how often that was written to."""
    memory = value.untyped_storage().data_ptr()
    return memory, value._version, value.storage_offset(), value.shape, value.stride(), value.dtype


def _same_memory(one: Tensor, other: Tensor) -> bool:
    return one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()


def _precision(batch: Tensor | None) -> torch.dtype | None:
    kind = "cpu" if batch is None else batch.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
