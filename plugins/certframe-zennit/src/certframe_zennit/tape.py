"""What a network does to a batch, as a list of torch calls that can be replayed on a batch of any size.

The network is run on two batches of different sizes and contents, and every torch function that it calls is noted
(`torch.overrides.TorchFunctionMode`), whoever calls it: a module, a functional, a method, an operator, in place or not.
Nothing is patched, hooked or replaced. What differs between the two runs is either the size of the batch, which the
tape then takes as a parameter, or a reason not to trust it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

_SAME = {
    "__add__": "add", "__radd__": "add", "__iadd__": "add", "__sub__": "sub", "__isub__": "sub", "subtract": "sub",
    "__rsub__": "rsub", "__mul__": "mul", "__rmul__": "mul", "__imul__": "mul", "multiply": "mul",
    "__truediv__": "div", "__itruediv__": "div", "divide": "div", "true_divide": "div", "__matmul__": "matmul",
    "__getitem__": "getitem", "__neg__": "neg", "negative": "neg", "concat": "cat", "concatenate": "cat",
    "clip": "clamp", "clamp_min": "clamp", "clamp_max": "clamp",
}
_TOUCHES = {"__bool__", "__contains__", "__float__", "__index__", "__int__", "__setitem__", "allclose", "equal", "item",
            "numpy", "tolist"}
"""Functions that read or write single values."""


class Unfit(Exception):
    """The network cannot be followed; the message says why."""


@dataclass(frozen=True)
class Value:
    """A tensor of the tape, by number."""

    number: int


@dataclass(frozen=True)
class Size:
    """A whole number that grows with the batch: ``offset + per_row · rows``."""

    offset: int
    per_row: int


@dataclass(frozen=True)
class Step:
    """One call.

    Attributes:
        name: what is computed: the function's name without the variants (``relu`` for ``relu_``, ``add`` for ``+=``).
        function: the function itself.
        args: its arguments, with a `Value` for each tensor and a `Size` for each number that depends on the batch.
        kwargs: likewise.
        outputs: what it returns.
        many: it returns a sequence, not one tensor.
        shape: of its first output, for a batch of two.
        module: the class of the module that calls it, for messages.
        kind: for a step that `folding` has made, what kind of layer it is.
    """

    name: str
    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: tuple[Value, ...]
    many: bool = False
    shape: tuple[int, ...] = ()
    module: str = ""
    kind: str = ""

    @property
    def output(self) -> Value:
        """The only output."""
        return self.outputs[0]

    @property
    def inputs(self) -> list[Value]:
        """The tensors among the arguments."""
        return [leaf for leaf in leaves((self.args, self.kwargs)) if isinstance(leaf, Value)]

    def renamed(self, names: Mapping[Value, Value]) -> Step:
        """The step with some of its inputs replaced."""
        args, kwargs = substitute((self.args, self.kwargs),
                                  lambda leaf: names.get(leaf, leaf) if isinstance(leaf, Value) else leaf)
        return replace(self, args=args, kwargs=kwargs)

    def __str__(self) -> str:
        return f"'{self.name}' in {self.module}" if self.module else f"'{self.name}'"


@dataclass
class Tape:
    """Steps from inputs to one output, and the tensors that do not depend on the inputs."""

    inputs: list[Value]
    output: Value
    steps: list[Step]
    constants: dict[Value, Tensor]
    shapes: dict[Value, tuple[int, ...]]
    numbers: int

    def new_value(self) -> Value:
        """A number that is not in use."""
        self.numbers += 1
        return Value(self.numbers - 1)

    def constant(self, tensor: Tensor) -> Value:
        """Add a constant."""
        value = self.new_value()
        self.constants[value] = tensor
        return value


def leaves(tree: Any) -> list[Any]:
    """The leaves of nested tuples, lists, dictionaries and slices."""
    found: list[Any] = []
    substitute(tree, lambda leaf: found.append(leaf))
    return found


def substitute(tree: Any, change: Callable[[Any], Any]) -> Any:
    """The same nest of tuples, lists, dictionaries and slices with every leaf changed."""
    if isinstance(tree, tuple):
        return tuple(substitute(branch, change) for branch in tree)  # also a torch.Size, of what may not be numbers
    if isinstance(tree, list):
        return [substitute(branch, change) for branch in tree]
    if isinstance(tree, dict):
        return {key: substitute(branch, change) for key, branch in tree.items()}
    if isinstance(tree, slice):
        return slice(*(substitute(branch, change) for branch in (tree.start, tree.stop, tree.step)))
    return change(tree)


# -- recording ----------------------------------------------------------------------------------------------------


def record(function: Callable[..., Tensor], small: Sequence[Tensor], large: Sequence[Tensor]) -> Tape:
    """Note what a function does to its tensor arguments.

    Args:
        function: returns one tensor.
        small: arguments of two rows each.
        large: arguments of three rows each, with other values.

    Raises:
        Unfit: the calls cannot be replayed for other batches.
    """
    first, second = (_run(function, given) for given in (small, large))
    if [s.name for s in first.steps] != [s.name for s in second.steps]:
        raise Unfit("it takes another way for another batch")
    tape = Tape(first.inputs, first.value_of(first.result), [], {}, first.shapes, len(first.shapes))
    _agree_on_constants(tape, first, second)
    for a, b in zip(first.steps, second.steps, strict=True):
        if not all(v in tape.constants for v in a.outputs):
            merged = _merge(a, b, (a.args, a.kwargs), (b.args, b.kwargs))
            tape.steps.append(replace(a, args=merged[0], kwargs=merged[1]))
    return tape


def _run(function: Callable[..., Tensor], given: Sequence[Tensor]) -> _Recorder:
    recorder = _Recorder(given)
    with torch.no_grad(), recorder:
        recorder.result = function(*recorder.given)
    if not isinstance(recorder.result, Tensor) or recorder.value_of(recorder.result) not in recorder.data:
        raise Unfit("its logits do not come from torch's functions of the picture")
    return recorder


class _Recorder(TorchFunctionMode):
    """Notes calls. Activations are known by weak reference, so that a recording takes no more memory than a run."""

    result: Any = None

    def __init__(self, given: Sequence[Tensor]) -> None:
        super().__init__()
        self.steps: list[Step] = []
        self.constants: dict[Value, Tensor] = {}
        self.external: set[Value] = set()
        self.data: set[Value] = set()
        self.shapes: dict[Value, tuple[int, ...]] = {}
        self._values: Any = WeakIdKeyDictionary()
        self.given = [tensor.detach().clone() for tensor in given]  # the function may work in place
        self.inputs = [self._new(tensor) for tensor in self.given]
        self.data.update(self.inputs)

    def _new(self, tensor: Tensor) -> Value:
        value = Value(len(self.shapes))
        self._values[tensor] = value
        with torch._C.DisableTorchFunction():
            self.shapes[value] = tuple(tensor.shape)
        return value

    def value_of(self, tensor: Tensor) -> Value:
        """The number of a tensor; one that no call has returned is a constant from outside."""
        found = self._values.get(tensor)
        if found is None:
            found = self._new(tensor)
            self.constants[found] = tensor
            self.external.add(found)
        return found  # type: ignore[no-any-return]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        coded_args, coded_kwargs = substitute((tuple(args), dict(kwargs)), self._encode)
        inputs = [leaf for leaf in leaves((coded_args, coded_kwargs)) if isinstance(leaf, Value)]
        has_data = any(value in self.data for value in inputs)
        name = name_of(func)
        if has_data and (name in _TOUCHES or "out" in kwargs):
            raise Unfit(f"it reads or overwrites single values of activations ('{name}'{_calling_module(' in ')})")
        result = func(*args, **kwargs)
        many = isinstance(result, tuple | list)
        tensors = list(result) if many else [result]
        if any(isinstance(tensor, Tensor) for tensor in tensors):
            step = Step(name, func, coded_args, coded_kwargs, (), many, module=_calling_module())
            self._note(step, tensors, has_data)
        return result

    def _note(self, step: Step, results: list[Any], has_data: bool) -> None:
        tensors = [result for result in results if isinstance(result, Tensor)]
        rest = results[len(tensors):]  # (output, None), for instance
        if not isinstance(results[0], Tensor) or any(result is not None for result in rest):
            raise Unfit(f"{step} returns something that is not a tensor")
        outputs = tuple(self._new(tensor) for tensor in tensors)
        if has_data:
            self.data.update(outputs)
        else:
            self.constants.update(zip(outputs, tensors, strict=True))
        self.steps.append(replace(step, outputs=outputs, shape=self.shapes[outputs[0]]))

    def _encode(self, leaf: Any) -> Any:
        return self.value_of(leaf) if isinstance(leaf, Tensor) else leaf


def name_of(function: Any) -> str:
    """The name of a torch function without its variants: in place, reflected, as an operator or a property."""
    name: str = getattr(function, "__name__", type(function).__name__)
    if name == "__get__":
        name = function.__self__.__name__
    if name in _SAME or name.startswith("__"):
        return _SAME.get(name, name)
    name = name.rstrip("_")
    return _SAME.get(name, name)


def _calling_module(prefix: str = "") -> str:
    """The class of the innermost module whose forward is being computed, for messages."""
    frame = sys._getframe(1)
    while frame is not None:
        owner = frame.f_locals.get("self") if frame.f_code.co_varnames[:1] == ("self",) else None
        if isinstance(owner, nn.Module):
            return prefix + type(owner).__name__
        frame = frame.f_back  # type: ignore[assignment]
    return ""


# -- agreeing -----------------------------------------------------------------------------------------------------


def _agree_on_constants(tape: Tape, first: _Recorder, second: _Recorder) -> None:
    """Tensors that are the same in both runs are constants; others must be made again for every batch."""
    for value, tensor in first.constants.items():
        other = second.constants.get(value)
        same = other is not None and (other is tensor or (other.shape == tensor.shape and other.dtype == tensor.dtype
                                                          and torch.equal(other, tensor)))
        if same:
            tape.constants[value] = tensor.detach()
        elif value in first.external:
            raise Unfit("it computes outside of torch, or at random")


def _merge(step: Step, other: Step, a: Any, b: Any) -> Any:
    """Arguments of the first run with what depends on the size of the batch made a `Size`."""
    if isinstance(a, tuple | list) and isinstance(b, tuple | list) and len(a) == len(b):
        merged = [_merge(step, other, x, y) for x, y in zip(a, b, strict=True)]
        return tuple(merged) if isinstance(a, tuple) else merged
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        return {key: _merge(step, other, a[key], b[key]) for key in a}
    if isinstance(a, slice) and isinstance(b, slice):
        return slice(*_merge(step, other, (a.start, a.stop, a.step), (b.start, b.stop, b.step)))
    if type(a) is type(b):
        if a is b or a == b:
            return a
        if type(a) is int:
            return Size(3 * a - 2 * b, b - a)
    raise Unfit(f"{step} computes with numbers that change from picture to picture")
