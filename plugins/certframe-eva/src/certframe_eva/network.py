"""A torch module as a graph of operations that bound propagation knows.

`torch.fx` gives the calls; running them on an example gives shapes and everything that does not depend on the picture.
The graph is then compared with the module on other batches, so that a trace that took a way of its own is noticed.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

import certframe
from certframe_eva.layers import EITHER, FUNCTIONS, MODULES
from certframe_eva.operations import Affine, Maximum, Operation, Rectifier, Sum

KNOWN = ("Linear, Conv2d, BatchNorm, ReLU, LeakyReLU, MaxPool2d, AvgPool2d, AdaptiveAvgPool2d, Flatten, sums, Dropout "
         "and products with constants")


@dataclass(frozen=True)
class Network:
    """A classifier as operations in an order in which they can be computed; value 0 is the input.

    Attributes:
        input_shape: of one input.
        operations: number k computes value k + 1.
        output: the number of the value that holds the logits.
    """

    input_shape: tuple[int, ...]
    operations: tuple[Operation, ...]
    output: int

    @classmethod
    def of(cls, module: Callable[[Tensor], Tensor], example: Tensor, *, leaf_modules: Sequence[type[nn.Module]] = (),
           leaf_functions: Sequence[Callable[..., Any]] = ()) -> Network:
        """Read a module.

        Args:
            module: (B, …) → logits (B, classes), in eval mode; a module, or a function that calls modules.
            example: two different inputs, (2, …), on the module's device.
            leaf_modules: classes that `torch.fx` must not trace into.
            leaf_functions: functions that `torch.fx` must not trace into.

        Raises:
            UsageError: the module cannot be traced, or has a layer that cannot be bounded; names it.
        """
        tracer = _Tracer(tuple(leaf_modules), tuple(leaf_functions))
        root = _Root(module)
        try:
            graph = tracer.trace(root)
        except Exception as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise certframe.UsageError(f"torch.fx cannot trace the model ({reason}): bounds need a fixed graph of "
                                       "layers; eva-hybrid bounds only the layers after a cut") from error
        reader = _Reader(root, graph)
        with torch.no_grad():
            reader.run(example.clone())
        network = cls(tuple(example.shape[1:]), tuple(reader.operations), reader.logits)
        network._compare(module, example)
        return network

    @property
    def classes(self) -> int:
        """The number of logits."""
        return self.operations[self.output - 1].shape[0] if self.output else self.input_shape[0]

    def shape(self, value: int) -> tuple[int, ...]:
        """The shape of a value for one image."""
        return self.operations[value - 1].shape if value else self.input_shape

    def evaluate(self, inputs: Tensor) -> Tensor:
        """(B, …) → logits (B, classes)."""
        values = [inputs]
        for op in self.operations:
            values.append(op.evaluate(*(values[i] for i in op.inputs)))
        return values[self.output]

    @functools.cached_property
    def affine(self) -> frozenset[int]:
        """The values that are affine functions of the input."""
        found = {0}
        for k, op in enumerate(self.operations):
            if isinstance(op, Affine | Sum) and found.issuperset(op.inputs):
                found.add(k + 1)
        return frozenset(found)

    @functools.cached_property
    def unsettled(self) -> tuple[int, ...]:
        """The values that enter an operation whose enclosing lines depend on their interval, in order."""
        return tuple(sorted({i for op in self.operations if isinstance(op, Rectifier | Maximum) for i in op.inputs}))

    def to(self, dtype: torch.dtype) -> Network:
        """The same network with weights of another floating-point type."""
        def cast(op: Operation) -> Operation:
            changes = {f.name: value.to(dtype) for f in fields(op) if isinstance(value := getattr(op, f.name), Tensor)}
            return replace(op, **changes)
        return Network(self.input_shape, tuple(cast(op) for op in self.operations), self.output)

    def _compare(self, module: Callable[[Tensor], Tensor], example: Tensor) -> None:
        generator = torch.Generator().manual_seed(1)
        noise = torch.rand(3, *example.shape[1:], generator=generator, dtype=torch.float64).to(example) - 0.5
        inputs = example[:1] + noise
        with torch.no_grad():
            expected, found = module(inputs.clone()), self.evaluate(inputs.clone())
        size = float(expected.abs().max()) + 1.0
        tolerance = size * 1e3 * torch.finfo(example.dtype).eps
        if found.shape != expected.shape or not bool((found - expected).abs().max() <= tolerance):
            raise certframe.UsageError("the model does not compute the same for every batch (control flow, randomness, "
                                       "or an operation that changes a value used elsewhere): its graph cannot be "
                                       "bounded")


class _Root(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.add_module("model", function if isinstance(function, nn.Module) else None)
        self._call = [function]  # in a list, so that it has one name only

    def forward(self, x: Tensor) -> Any:
        return self._call[0](x)


class _Tracer(fx.Tracer):
    """Traces also what calls modules that are not its own, as the halves of a cut model may."""

    def __init__(self, leaf_modules: tuple[type[nn.Module], ...],
                 leaf_functions: tuple[Callable[..., Any], ...]) -> None:
        super().__init__(autowrap_functions=leaf_functions)
        self._leaf_modules = leaf_modules

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, self._leaf_modules) or super().is_leaf_module(m, module_qualified_name)

    def path_of_module(self, mod: nn.Module) -> str:
        """The name of a module; one that is met by surprise gets one."""
        known = self.submodule_paths
        if known is not None and mod not in known:
            name = f"model{len(list(self.root.children()))}"
            self.root.add_module(name, mod)
            known.update({child: path for path, child in mod.named_modules(prefix=name)})
        return super().path_of_module(mod)


class _Reader(fx.Interpreter):
    """Runs a graph on an example and writes down an operation for everything that depends on it."""

    def __init__(self, module: nn.Module, graph: fx.Graph) -> None:
        super().__init__(module, garbage_collect_values=False, graph=graph)
        self.operations: list[Operation] = []
        self.values: dict[fx.Node, int] = {}
        self.extra_traceback = False  # it would be put into our one-line messages
        self.logits = 0

    def run_node(self, n: fx.Node) -> Any:
        """Run one node; what it computes of the picture becomes an operation."""
        if n.op == "placeholder":
            self.values[n] = 0
            return super().run_node(n)
        if n.op == "output":
            result = n.args[0]
            if not isinstance(result, fx.Node) or result not in self.values:
                raise certframe.UsageError("the model's output is not one tensor of logits made of the picture")
            self.logits = self.values[result]
            return super().run_node(n)
        of_picture = any(source in self.values for source in n.all_input_nodes)
        if of_picture and n.op == "call_module":
            self._refuse_training(n)
        call = Call(self, n) if of_picture else None
        result = super().run_node(n)
        if call is not None and isinstance(result, Tensor):
            self._write(call, result)
        elif call is not None and call.name not in _SIZES:
            raise call.unknown()
        return result

    def _refuse_training(self, n: fx.Node) -> None:
        if self.fetch_attr(str(n.target)).training:
            raise certframe.UsageError(f"layer {Call(self, n).label} is in training mode: call eval() on the model")

    def _write(self, call: Call, result: Tensor) -> None:
        call.shape = tuple(result.shape[1:])
        if len(result) != len(call.values[0]):
            raise call.unknown("mixes the images of a batch")
        number = call.write()
        self.values[call.node] = number
        if call.in_place:  # whoever reads the operand later sees the result
            for source in call.node.all_input_nodes[:1]:
                self.values[source] = number

    def append(self, op: Operation) -> int:
        """The number of the value that the operation computes."""
        self.operations.append(op)
        return len(self.operations)


_SIZES = {"size", "shape", "getattr", "getitem", "dim", "floordiv", "mul", "add", "eq", "ne", "lt", "gt", "_assert",
          "len", "numel", "ndim", "device", "dtype", "is_contiguous"}
"""What may be asked of a value without making a new one."""


class Call:
    """A call in the graph, with its arguments on the example."""

    def __init__(self, reader: _Reader, node: fx.Node) -> None:
        self.reader, self.node = reader, node
        self.args, self.kwargs = reader.fetch_args_kwargs_from_env(node)
        self.module: nn.Module | None = None
        self.shape: tuple[int, ...] = ()
        name = str(node.target)
        if node.op == "call_module":
            self.module = reader.fetch_attr(name)
            self.name = type(self.module).__name__
            self.label = f"'{_short(name)}' ({self.name})"
        else:
            self.name = getattr(node.target, "__name__", name)
            owner = list((node.meta.get("nn_module_stack") or {}).values())
            path = owner[-1][0] if owner else ""
            self.label = f"'{self.name}'" + (f" in '{_short(str(path))}'" if _short(str(path)) else "")
        plain = self.name.rstrip("_") if not self.name.startswith("_") else self.name
        self.in_place = (self.name != plain and node.op != "call_module") or plain in _IN_PLACE or bool(
            getattr(self.module, "inplace", False)) or bool(self.kwargs.get("inplace", False))
        if node.op != "call_module":
            self.name = _IN_PLACE.get(plain, plain)
        self.sources = [reader.values.get(a) if isinstance(a, fx.Node) else None for a in node.args]

    @property
    def values(self) -> list[Tensor]:
        """The tensors among the arguments that are made of the picture."""
        return [a for a, s in zip(self.args, self.sources, strict=True) if s is not None]

    def unknown(self, why: str = "") -> certframe.UsageError:
        """The refusal."""
        why = why or "cannot be bounded"
        return certframe.UsageError(f"layer {self.label} {why}: verified bounds know {KNOWN}")

    def argument(self, position: int, name: str, default: Any = None) -> Any:
        """An argument by position or name."""
        return self.args[position] if len(self.args) > position else self.kwargs.get(name, default)

    def write(self) -> int:
        """Make the operation; the number of the value that holds the result."""
        writer = MODULES.get(type(self.module)) if self.module is not None else FUNCTIONS.get(self.name)
        if writer is None or not self.sources or (self.sources[0] is None and self.name not in EITHER):
            raise self.unknown()
        return writer(self)

    @property
    def source(self) -> int:
        """The number of the first argument's value."""
        first = self.sources[0]
        assert first is not None
        return first

    @property
    def source_shape(self) -> tuple[int, ...]:
        """The shape of the first argument for one image."""
        return tuple(self.values[0].shape[1:])

    def add(self, kind: Callable[..., Operation], *parts: Any, inputs: tuple[int, ...] | None = None) -> int:
        """Append an operation."""
        return self.reader.append(kind(inputs or (self.source,), self.shape, self.label, *parts))


def _short(path: str) -> str:
    """The path without what `TorchModel` and this module put before it."""
    return re.sub(r"^model\d*\b\.?(network\b\.?)?", "", path)


_IN_PLACE = {"iadd": "add", "isub": "sub", "imul": "mul", "itruediv": "truediv"}
