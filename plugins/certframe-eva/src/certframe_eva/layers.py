"""How the calls of a traced graph become operations: one writer for each kind of layer and function.

A writer looks at a call's module or arguments, refuses what cannot be bounded, and appends operations.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from certframe_eva.operations import Convolution, Linear, Maximum, Rearrangement, Rectifier, Scale, Sum, pair

if TYPE_CHECKING:
    from certframe_eva.network import Call


def _same(call: Call) -> int:
    return call.source


def _linear(call: Call) -> int:
    layer = call.module
    weight, bias = ((layer.weight, layer.bias) if isinstance(layer, nn.Linear)
                    else (call.argument(1, "weight"), call.argument(2, "bias")))
    if len(call.source_shape) != 1:
        raise call.unknown("works on more than one axis")
    return call.add(Linear, weight.detach(), None if bias is None else bias.detach())


def _convolution(call: Call) -> int:
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
          call: Call) -> int:
    if mean is None or var is None:
        raise call.unknown("normalises with the statistics of the batch")
    scale = torch.rsqrt(var.detach() + eps)
    scale = scale if weight is None else scale * weight.detach()
    shift = -mean.detach() * scale if bias is None else bias.detach() - mean.detach() * scale
    shape = (-1, *(1,) * (len(call.shape) - 1))
    return call.add(Scale, scale.view(shape), shift.view(shape))


def _batch_norm(call: Call) -> int:
    layer = call.module
    if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
        return _norm(layer.running_mean, layer.running_var, layer.weight, layer.bias, layer.eps, call)
    if call.argument(5, "training", False):
        raise call.unknown("normalises with the statistics of the batch")
    return _norm(call.argument(1, "running_mean"), call.argument(2, "running_var"), call.argument(3, "weight"),
                 call.argument(4, "bias"), call.argument(7, "eps", 1e-5), call)


def _rectifier(call: Call) -> int:
    if isinstance(call.module, nn.LeakyReLU):
        leak = call.module.negative_slope
    else:
        leak = call.argument(1, "negative_slope", 0.01) if call.name == "leaky_relu" else 0.0
    if not 0 <= leak <= 1:
        raise call.unknown(f"has a negative slope of {leak}, outside [0, 1],")
    return call.add(Rectifier, float(leak))


def _max_pool(call: Call) -> int:
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


def _rearranged(call: Call, apply: Callable[[Tensor], Tensor], reshape: bool = False) -> int:
    return call.add(Rearrangement, apply, call.source_shape, reshape)


def _module_itself(call: Call) -> int:
    assert call.module is not None
    return _rearranged(call, call.module)


def _function_itself(call: Call) -> int:
    target, args, kwargs = call.node.target, call.args[1:], call.kwargs
    if isinstance(target, str):
        return _rearranged(call, lambda x: getattr(x, target)(*args, **kwargs))
    return _rearranged(call, lambda x: target(x, *args, **kwargs))


def _reshape(call: Call) -> int:
    if math.prod(call.shape) != math.prod(call.source_shape):
        raise call.unknown("mixes the images of a batch")
    if call.shape == call.source_shape:
        return call.source
    shape = call.shape
    return _rearranged(call, lambda x: x.reshape(len(x), *shape), True)


def _mean(call: Call) -> int:
    axes = call.argument(1, "dim")
    axes = (axes,) if isinstance(axes, int) else axes
    if not axes or any(a % call.values[0].ndim == 0 for a in axes):
        raise call.unknown("averages over the batch")
    return _function_itself(call)


def _slice(call: Call) -> int:
    index = call.args[1] if isinstance(call.args[1], tuple) else (call.args[1],)
    if any(isinstance(i, Tensor) for i in index) or (index[0] != slice(None) and index[0] is not Ellipsis):
        raise call.unknown("picks single images or values")
    return _function_itself(call)


def _pad(call: Call) -> int:
    if call.argument(2, "mode", "constant") != "constant" or call.argument(3, "value") not in (None, 0, 0.0):
        raise call.unknown("pads with something else than 0")
    return _function_itself(call)


def _dropout(call: Call) -> int:
    if call.argument(2, "training", True):
        raise call.unknown("drops values at random")
    return call.source


def _constant(call: Call, position: int) -> Tensor:
    """A factor or summand that does not depend on the picture, for one image."""
    value = torch.as_tensor(call.args[position]).to(call.values[0]).detach()
    if value.ndim > len(call.shape):
        if value.shape[0] != 1:
            raise call.unknown("has a constant for every image of a batch")
        value = value[0]
    if torch.broadcast_shapes(value.shape, call.source_shape) != call.source_shape:
        raise call.unknown("enlarges the value by a constant")
    return value


def _arithmetic(call: Call) -> int:
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


MODULES: dict[type, Callable[[Call], int]] = {
    nn.Linear: _linear, nn.Conv2d: _convolution, nn.BatchNorm1d: _batch_norm, nn.BatchNorm2d: _batch_norm,
    nn.ReLU: _rectifier, nn.LeakyReLU: _rectifier, nn.MaxPool2d: _max_pool, nn.AvgPool2d: _module_itself,
    nn.AdaptiveAvgPool2d: _module_itself, nn.Flatten: _reshape, nn.Unflatten: _reshape, nn.ZeroPad2d: _module_itself,
    nn.Identity: _same, nn.Dropout: _same, nn.Dropout1d: _same, nn.Dropout2d: _same,
}
FUNCTIONS: dict[str, Callable[[Call], int]] = {
    "linear": _linear, "conv2d": _convolution, "batch_norm": _batch_norm, "relu": _rectifier,
    "leaky_relu": _rectifier, "max_pool2d": _max_pool, "_max_pool2d": _max_pool, "boolean_dispatch": _max_pool,
    "avg_pool2d": _function_itself, "adaptive_avg_pool2d": _function_itself, "mean": _mean, "flatten": _reshape,
    "reshape": _reshape, "view": _reshape, "squeeze": _reshape, "unsqueeze": _reshape, "contiguous": _same,
    "clone": _same, "detach": _same, "dropout": _dropout, "dropout2d": _dropout, "getitem": _slice, "pad": _pad,
    "add": _arithmetic, "sub": _arithmetic, "rsub": _arithmetic, "mul": _arithmetic, "truediv": _arithmetic,
    "div": _arithmetic,
}
EITHER = frozenset({"add", "sub", "mul", "rsub"})
"""Functions whose first argument may be a constant."""
