"""What the methods of a sweep share: up to a layer, the network runs once for a batch, whichever of them asks."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from certframe.protocols import Model, Split

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


class SharedBodies:
    """A model that remembers, while a batch is under way, the activations that were computed for it.

    Grad-CAM, LayerCAM and occlusion of one feature map need the same activation of the same noisy copies; only the
    first of them runs the network up to there. What is returned is what the body returns; it is computed again when it
    has to be (another layer, precision or part of the batch, with a gradient, with torch's functions being watched, or
    after an activation was changed in place). Nothing is kept when the batch is done.

    Args:
        model: any model; everything but the bodies is its own.
    """

    def __init__(self, model: Model) -> None:
        self._model = model
        self._batch: Tensor | None = None
        self._kept: dict[Any, _Kept] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    @contextlib.contextmanager
    def batch(self, inputs: Tensor) -> Iterator[None]:
        """While this is open, activations for these inputs, or for rows of them, are remembered."""
        self._batch = inputs
        try:
            yield
        finally:
            self._batch = None
            self.forget()

    def forget(self) -> None:
        """Free what is kept, before the batch is done."""
        self._kept.clear()

    def at(self, layer: str) -> Split:
        """As the model's own."""
        split = self._model.at(layer)
        if layer == "input":  # the activation is the batch itself
            return split
        return replace(split, body=functools.partial(self._body, layer, split.body))

    def _body(self, layer: str, body: Body, inputs: Tensor) -> tuple[Tensor, ...]:
        key = self._key(layer, inputs)
        if key is None:
            return body(inputs)
        kept = self._kept.get(key)
        if kept is None or not kept.intact:
            values = body(inputs)
            if any(value.requires_grad or value.is_inference() for value in values):
                return values
            kept = self._kept[key] = _Kept.of(values)
        # An alias for everyone: requires_grad_ is no matter of the others.
        return tuple(value.detach() for value in kept.values)

    def _key(self, layer: str, inputs: Tensor) -> Any:
        """What the activation depends on; None when it is not to be remembered."""
        batch = self._batch
        watched = torch._C._len_torch_function_stack() > 0
        if batch is None or watched or inputs.requires_grad or inputs.is_inference() or \
                inputs.untyped_storage().data_ptr() != batch.untyped_storage().data_ptr():
            return None
        kind = inputs.device.type
        precision = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        return layer, inputs._version, inputs.storage_offset(), inputs.shape, inputs.stride(), inputs.dtype, precision
