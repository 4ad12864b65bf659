"""A torch module as a graph of operations that bound propagation knows.

`torch.fx` gives the calls; running them on an example gives shapes and everything that does not depend on the picture.
The graph is then compared with the module on other batches, so that a trace that took a way of its own is noticed.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

import certframe
from certframe_eva.operations import (
    Affine,
    Convolution,
    Linear,
    Maximum,
    Operation,
    Rearrangement,
    Rectifier,
    Scale,
    Sum,
    pair,
)

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
        call = _Call(self, n) if of_picture else None
        result = super().run_node(n)
        if call is not None and isinstance(result, Tensor):
            self._write(call, result)
        elif call is not None and call.name not in _SIZES:
            raise call.unknown()
        return result

    def _refuse_training(self, n: fx.Node) -> None:
        if self.fetch_attr(str(n.target)).training:
            raise certframe.UsageError(f"layer {_Call(self, n).label} is in training mode: call eval() on the model")

    def _write(self, call: _Call, result: Tensor) -> None:
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


class _Call:
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
        writer = _MODULES.get(type(self.module)) if self.module is not None else _FUNCTIONS.get(self.name)
        if writer is None or not self.sources or (self.sources[0] is None and self.name not in _EITHER):
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
_EITHER = {"add", "sub", "mul", "rsub"}


# -- writers ------------------------------------------------------------------------------------------------------


def _same(call: _Call) -> int:
    return call.source


def _linear(call: _Call) -> int:
    layer = call.module
    weight, bias = ((layer.weight, layer.bias) if isinstance(layer, nn.Linear)
                    else (call.argument(1, "weight"), call.argument(2, "bias")))
    if len(call.source_shape) != 1:
        raise call.unknown("works on more than one axis")
    return call.add(Linear, weight.detach(), None if bias is None else bias.detach())


def _convolution(call: _Call) -> int:
    layer = call.module
    if isinstance(layer, nn.Conv2d):
        if layer.padding_mode != "zeros":
            raise call.unknown(f"pads with '{layer.padding_mode}'")
        weight, bias = layer.weight, layer.bias
        given = layer.stride, layer.padding, layer.dilation, layer.groups
    else:
        weight, bias = call.argument(1, "weight"), call.argument(2, "bias")
        given = (call.argument(3, "stride", 1), call.argument(4, "padding", 0), call.argument(5, "dilation", 1),
                 call.argument(6, "groups", 1))
    stride, padding, dilation, groups = given
    if padding == "valid":
        padding = 0
    if padding == "same":
        total = [d * (k - 1) for d, k in zip(pair(dilation), weight.shape[2:], strict=True)]
        if any(t % 2 for t in total):
            raise call.unknown("pads one side more than the other")
        padding = [t // 2 for t in total]
    return call.add(Convolution, weight.detach(), None if bias is None else bias.detach(), call.source_shape,
                    pair(stride), pair(padding), pair(dilation), groups)


def _norm(mean: Tensor | None, var: Tensor | None, weight: Tensor | None, bias: Tensor | None, eps: float,
          call: _Call) -> int:
    if mean is None or var is None:
        raise call.unknown("normalises with the statistics of the batch")
    scale = torch.rsqrt(var.detach() + eps)
    scale = scale if weight is None else scale * weight.detach()
    shift = -mean.detach() * scale if bias is None else bias.detach() - mean.detach() * scale
    shape = (-1, *(1,) * (len(call.shape) - 1))
    return call.add(Scale, scale.view(shape), shift.view(shape))


def _batch_norm(call: _Call) -> int:
    layer = call.module
    if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
        return _norm(layer.running_mean, layer.running_var, layer.weight, layer.bias, layer.eps, call)
    if call.argument(5, "training", False):
        raise call.unknown("normalises with the statistics of the batch")
    return _norm(call.argument(1, "running_mean"), call.argument(2, "running_var"), call.argument(3, "weight"),
                 call.argument(4, "bias"), call.argument(7, "eps", 1e-5), call)


def _rectifier(call: _Call) -> int:
    if isinstance(call.module, nn.LeakyReLU):
        leak = call.module.negative_slope
    else:
        leak = call.argument(1, "negative_slope", 0.01) if call.name == "leaky_relu" else 0.0
    if not 0 <= leak <= 1:
        raise call.unknown(f"has a negative slope of {leak}, outside [0, 1],")
    return call.add(Rectifier, float(leak))


def _max_pool(call: _Call) -> int:
    layer = call.module
    if isinstance(layer, nn.MaxPool2d):
        given = layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.ceil_mode
    else:
        kernel = call.argument(1, "kernel_size")
        given = (kernel, call.argument(2, "stride") or kernel, call.argument(3, "padding", 0),
                 call.argument(4, "dilation", 1), call.argument(5, "ceil_mode", False))
    kernel, stride, padding, dilation, ceil = given
    kernel, stride, padding, dilation = pair(kernel), pair(stride or kernel), pair(padding), pair(dilation)
    floor = tuple((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, p, d, k, s in zip(
        call.source_shape[1:], padding, dilation, kernel, stride, strict=True))
    if ceil and floor != call.shape[1:]:
        raise call.unknown("uses ceil_mode with windows that reach beyond the map")
    return call.add(Maximum, call.source_shape, kernel, stride, padding, dilation)


def _rearranged(call: _Call, apply: Callable[[Tensor], Tensor], reshape: bool = False) -> int:
    return call.add(Rearrangement, apply, call.source_shape, reshape)


def _module_itself(call: _Call) -> int:
    assert call.module is not None
    return _rearranged(call, call.module)


def _function_itself(call: _Call) -> int:
    target, args, kwargs = call.node.target, call.args[1:], call.kwargs
    if isinstance(target, str):
        return _rearranged(call, lambda x: getattr(x, target)(*args, **kwargs))
    return _rearranged(call, lambda x: target(x, *args, **kwargs))


def _reshape(call: _Call) -> int:
    if math.prod(call.shape) != math.prod(call.source_shape):
        raise call.unknown("mixes the images of a batch")
    if call.shape == call.source_shape:
        return call.source
    shape = call.shape
    return _rearranged(call, lambda x: x.reshape(len(x), *shape), True)


def _mean(call: _Call) -> int:
    axes = call.argument(1, "dim")
    axes = (axes,) if isinstance(axes, int) else axes
    if not axes or any(a % call.values[0].ndim == 0 for a in axes):
        raise call.unknown("averages over the batch")
    return _function_itself(call)


def _slice(call: _Call) -> int:
    index = call.args[1] if isinstance(call.args[1], tuple) else (call.args[1],)
    if any(isinstance(i, Tensor) for i in index) or (index[0] != slice(None) and index[0] is not Ellipsis):
        raise call.unknown("picks single images or values")
    return _function_itself(call)


def _pad(call: _Call) -> int:
    if call.argument(2, "mode", "constant") != "constant" or call.argument(3, "value") not in (None, 0, 0.0):
        raise call.unknown("pads with something else than 0")
    return _function_itself(call)


def _dropout(call: _Call) -> int:
    if call.argument(2, "training", True):
        raise call.unknown("drops values at random")
    return call.source


def _constant(call: _Call, position: int) -> Tensor:
    """A factor or summand that does not depend on the picture, for one image."""
    value = torch.as_tensor(call.args[position]).to(call.values[0]).detach()
    if value.ndim > len(call.shape):
        if value.shape[0] != 1:
            raise call.unknown("has a constant for every image of a batch")
        value = value[0]
    if torch.broadcast_shapes(value.shape, call.source_shape) != call.source_shape:
        raise call.unknown("enlarges the value by a constant")
    return value


def _arithmetic(call: _Call) -> int:
    if call.kwargs.get("alpha", 1) != 1 or call.kwargs.get("rounding_mode") is not None or len(call.args) != 2:
        raise call.unknown("uses options")
    sources = [s for s in call.sources if s is not None]
    if len(sources) == 2:
        if call.name not in ("add", "sub") or call.values[0].shape != call.values[1].shape:
            raise call.unknown()
        return call.add(Sum, (1, 1 if call.name == "add" else -1), inputs=(sources[0], sources[1]))
    left = call.sources[0] is not None
    value = _constant(call, 1 if left else 0)
    one, zero = torch.ones_like(value), torch.zeros_like(value)
    if call.name == "mul":
        scale, shift = value, zero
    elif call.name in ("truediv", "div"):
        scale, shift = one / value, zero
    elif call.name == "add":
        scale, shift = one, value
    else:
        scale, shift = (one, -value) if left == (call.name == "sub") else (-one, value)
    return call.add(Scale, scale, shift, inputs=(sources[0],))


_MODULES: dict[type, Callable[[_Call], int]] = {
    nn.Linear: _linear, nn.Conv2d: _convolution, nn.BatchNorm1d: _batch_norm, nn.BatchNorm2d: _batch_norm,
    nn.ReLU: _rectifier, nn.LeakyReLU: _rectifier, nn.MaxPool2d: _max_pool, nn.AvgPool2d: _module_itself,
    nn.AdaptiveAvgPool2d: _module_itself, nn.Flatten: _reshape, nn.Unflatten: _reshape, nn.ZeroPad2d: _module_itself,
    nn.Identity: _same, nn.Dropout: _same, nn.Dropout1d: _same, nn.Dropout2d: _same,
}
_FUNCTIONS: dict[str, Callable[[_Call], int]] = {
    "linear": _linear, "conv2d": _convolution, "batch_norm": _batch_norm, "relu": _rectifier,
    "leaky_relu": _rectifier, "max_pool2d": _max_pool, "_max_pool2d": _max_pool, "boolean_dispatch": _max_pool,
    "avg_pool2d": _function_itself, "adaptive_avg_pool2d": _function_itself, "mean": _mean, "flatten": _reshape,
    "reshape": _reshape, "view": _reshape, "squeeze": _reshape, "unsqueeze": _reshape, "contiguous": _same,
    "clone": _same, "detach": _same, "dropout": _dropout, "dropout2d": _dropout, "getitem": _slice, "pad": _pad,
    "add": _arithmetic, "sub": _arithmetic, "rsub": _arithmetic, "mul": _arithmetic, "truediv": _arithmetic,
    "div": _arithmetic,
}
