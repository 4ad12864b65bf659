"""Calls in order, run on a batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from certframe_zennit.tape import Size, Value, leaves, substitute


@dataclass(frozen=True)
class Call:
    """A function call of a program."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: tuple[Value, ...]
    many: bool = False

    @property
    def inputs(self) -> list[Value]:
        """The tensors among the arguments."""
        return [leaf for leaf in leaves((self.args, self.kwargs)) if isinstance(leaf, Value)]


class Program:
    """Calls in order. Intermediate results are let go as soon as nothing needs them any more.

    Args:
        inputs: what is given to `__call__`.
        calls: what is done; calls that the outputs do not need are left out.
        outputs: what `__call__` returns.
        constants: tensors that the calls use.
    """

    def __init__(self, inputs: Sequence[Value], calls: Sequence[Call], outputs: Sequence[Value],
                 constants: dict[Value, Tensor]) -> None:
        self.inputs, self.outputs = tuple(inputs), tuple(outputs)
        wanted, kept = set(outputs), []
        for call in reversed(calls):
            if wanted.intersection(call.outputs):
                wanted.update(call.inputs)
                kept.append(call)
        self.needs = wanted
        self._constants = {value: tensor for value, tensor in constants.items() if value in wanted}
        last: dict[Value, int] = {}
        self._calls = kept[::-1]
        for index, call in enumerate(self._calls):
            last.update(dict.fromkeys((*call.inputs, *call.outputs), index))
        self._done: list[list[Value]] = [[] for _ in self._calls]
        for value, index in last.items():
            if value not in self._constants and value not in self.outputs:
                self._done[index].append(value)

    def __call__(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Run it; all tensors have one row for each picture."""
        rows = len(tensors[0])
        known = {**self._constants, **dict(zip(self.inputs, tensors, strict=True))}

        def resolve(leaf: Any) -> Any:
            if isinstance(leaf, Value):
                return known[leaf]
            return leaf.offset + leaf.per_row * rows if isinstance(leaf, Size) else leaf

        for call, done in zip(self._calls, self._done, strict=True):
            args, kwargs = substitute((call.args, call.kwargs), resolve)
            result = call.function(*args, **kwargs)
            known.update(zip(call.outputs, result if call.many else (result,), strict=False))
            for value in done:
                known.pop(value, None)
        return tuple(known[value] for value in self.outputs)
