"""Follow a network and a reference together, so that gradients become the slopes of secants between the two.

The reference runs first, and what it gives to every nonlinear function is kept. Then the input runs, and at every such
function the gradient is replaced by a multiplier m with m·(a − a₀) = y − y₀. Both passes meet functions as they are
called (`torch.overrides.TorchFunctionMode`), so it makes no difference whether they are modules, shared, in place, or
called inside a forward, and the network is not touched.

A function that is neither linear in what depends on the input nor has a rule here is refused: its gradient would be
taken for a multiplier without a sign of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

_SAME = {
    "__add__": "add", "__radd__": "add", "__iadd__": "add", "__sub__": "sub", "__isub__": "sub", "subtract": "sub",
    "__rsub__": "rsub", "__mul__": "mul", "__rmul__": "mul", "__imul__": "mul", "multiply": "mul",
    "__truediv__": "div", "__itruediv__": "div", "divide": "div", "true_divide": "div", "__rtruediv__": "rdiv",
    "__matmul__": "matmul", "__rmatmul__": "rmatmul", "bmm": "matmul", "__getitem__": "getitem", "__neg__": "neg",
    "negative": "neg", "concat": "cat", "concatenate": "cat", "clip": "clamp", "__pow__": "pow", "__ipow__": "pow",
    "max_pool2d_with_indices": "max_pool2d",
}
_LINEAR = frozenset({
    "T", "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "avg_pool1d", "avg_pool2d", "avg_pool3d",
    "batch_norm", "channel_shuffle", "chunk", "clone", "contiguous", "conv1d", "conv2d", "conv3d", "conv_transpose1d",
    "conv_transpose2d", "conv_transpose3d", "cumsum", "dropout", "dropout1d", "dropout2d", "dropout3d", "expand",
    "expand_as", "flatten", "flip", "float", "getitem", "interpolate", "linear", "mT", "masked_fill", "mean", "movedim",
    "narrow", "neg", "pad", "permute", "pixel_shuffle", "pixel_unshuffle", "repeat", "repeat_interleave", "reshape",
    "reshape_as", "roll", "select", "split", "squeeze", "sum", "swapaxes", "t", "tile", "to", "transpose", "type_as",
    "unbind", "unflatten", "unfold", "unsqueeze", "view", "view_as",
})
"""Linear, up to a constant, in their first argument, which alone may depend on the input."""
_SUMS = frozenset({"add", "cat", "rsub", "stack", "sub", "where"})
"""Linear in all of their arguments (the condition of `where` has no gradient and may not depend on the input)."""
_PRODUCTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"mul": torch.mul, "matmul": torch.matmul}
_SHAPE_ONLY = frozenset({"empty_like", "full_like", "new_empty", "new_full", "new_ones", "new_tensor", "new_zeros",
                         "ones_like", "rand_like", "randn_like", "requires_grad", "zeros_like"})
"""They return tensors, but take nothing from the values."""
_TOUCHES = frozenset({"__bool__", "__contains__", "__float__", "__index__", "__int__", "__setitem__", "allclose",
                      "equal", "item", "numpy", "tolist"})
"""They read or overwrite single values."""

_CLIPS = frozenset({"clamp", "clamp_max", "clamp_min", "hardtanh", "relu", "relu6"})
"""Each element or a bound: the quotient of two differences loses no digits, unless both are 0."""
_KINKED = frozenset({"abs", "celu", "elu", "hardswish", "leaky_relu", "prelu", "selu", "softshrink", "softsign"})
_SMOOTH = frozenset({"gelu", "logsigmoid", "mish", "sigmoid", "silu", "softplus", "tanh", "tanhshrink"})
"""Functions of each element by itself, with derivatives of the order of 1 that change over distances of that order."""
_CLOSED: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]] = {
    "reciprocal": lambda a, a0, y, y0: -y * y0,
    "rsqrt": lambda a, a0, y, y0: -(y * y0).square() / (y + y0),
    "sqrt": lambda a, a0, y, y0: 1 / (y + y0),
    "square": lambda a, a0, y, y0: a + a0,
}
"""Functions of each element by itself, with (f(a) − f(a₀)) / (a − a₀) written so that nothing cancels."""
_NEAR = {"kinked": 1e-5, "smooth": 3e-3}
"""Where a − a₀ is so small a part of their size, the slope in the middle is nearer to the secant's than the quotient
of two differences in float32. For smooth functions 1 is added to the size; the slope's error is then below 1e-5."""


class Unfit(Exception):
    """The network cannot be followed; the message says why."""


class ReferencesDiffer(Exception):
    """The reference has other shapes than the input in a place that a reference of one row cannot be stretched to."""


class Secants(TorchFunctionMode):
    """While active, every nonlinear function that is called has multipliers between reference and input as gradient.

    Use it twice: around the run of the reference, with `recording` true, and around that of the input. Both inputs must
    require a gradient.

    Args:
        recording: this is the reference's run.
    """

    def __init__(self) -> None:
        super().__init__()
        self.recording = True
        self._references: list[tuple[str, Tensor]] = []
        self._next = 0

    def start(self) -> None:
        """The reference has been run; what comes is the input."""
        self.recording = False

    @property
    def finished(self) -> bool:
        """Whether the input has met everything that the reference has."""
        return self._next == len(self._references)

    def __torch_function__(self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (),
                           kwargs: dict[str, Any] | None = None) -> Any:
        """Call `func`, by its rule if it has one."""
        kwargs = dict(kwargs or {})
        # Without gradients (in a custom autograd function, say) there is nothing to replace; that nothing is lost by it
        # is for the check of completeness to say.
        if not torch.is_grad_enabled() or not any(_depends(leaf) for leaf in _leaves((args, kwargs))):
            return func(*args, **kwargs)
        name = _name_of(func)
        if name in _TOUCHES or kwargs.get("out") is not None:
            raise Unfit(f"it reads or overwrites single values of activations ('{name}')")
        result = self._apply(name, func, args, kwargs)
        tensors = [t for t in _leaves(result) if isinstance(t, Tensor)]
        if not all(t.requires_grad for t in tensors) and name not in _SHAPE_ONLY:
            raise Unfit(f"'{name}' has no gradient with respect to the picture")
        return result

    def _apply(self, name: str, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if name in _CLIPS or name in _KINKED or name in _SMOOTH or name in _CLOSED:
            return self._elementwise(name, func, args, kwargs)
        if name in _PRODUCTS:
            return self._product(name, func, args, kwargs)
        if name in _WHOLE:
            return _WHOLE[name](self, *args, **kwargs)
        if name in _MADE_OF:
            in_place = kwargs.pop("inplace", False) or _in_place(func)
            with self:  # to meet the functions that it is made of
                made = _MADE_OF[name](*args, **kwargs)
            return args[0].copy_(made) if in_place else made
        result = func(*args, **kwargs)
        if name in _LINEAR:
            _require_constants(name, args, kwargs)
        elif name not in _SUMS and name not in _SHAPE_ONLY and any(isinstance(t, Tensor) for t in _leaves(result)):
            raise Unfit(f"there is no rule for '{name}'")
        return result

    def _reference(self, name: str, value: Tensor) -> Tensor | None:
        """What stood in this place when the reference ran; None while it does."""
        if self.recording:
            self._references.append((name, value.detach().clone()))  # the network may go on to work in place on it
            return None
        known, reference = self._references[self._next] if not self.finished else ("", value)
        if known != name:
            raise Unfit("it takes another way for the reference than for the picture")
        self._next += 1
        if reference.dim() != value.dim() or any(r not in (1, v) for r, v in zip(reference.shape, value.shape,
                                                                                strict=True)):
            raise ReferencesDiffer
        return reference

    # -- the rules

    def _elementwise(self, name: str, func: Callable[..., Any], args: tuple[Any, ...],
                     kwargs: dict[str, Any]) -> Tensor:
        a, rest, named = _first(args, kwargs)
        _require_constants(name, (a, *rest), named)
        a0 = self._reference(name, a)
        if a0 is None:
            return func(*args, **kwargs)  # type: ignore[no-any-return]

        def plain(x: Tensor) -> Tensor:
            found: Tensor = func(x.clone(), *rest, **named)  # a clone, for it may be in place
            return found

        given = a.detach()
        own = given.clone()
        y, y0 = func(own, *rest, **named), plain(a0)
        in_place = y is own
        if name in _CLOSED:
            slope = _CLOSED[name](given, a0, y, y0)
        elif name in _CLIPS:
            slope = clip_secant(given, a0, y, y0)
        else:
            slope = secant(plain, given, a0, y, y0, smooth=name in _SMOOTH)
        result: Tensor = _Sloped.apply(a, slope, (y,))
        return a.copy_(result) if in_place else result

    def _product(self, name: str, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        if len(args) != 2 or kwargs or not all(_depends(factor) for factor in args):
            result: Tensor = func(*args, **kwargs)
            if sum(_depends(leaf) for leaf in _leaves((args, kwargs))) > 1:
                raise Unfit(f"there is no rule for '{name}' with these arguments")
            return result
        a, b = args
        a0, b0 = self._reference(name, a), self._reference(name, b)
        if a0 is None or b0 is None:
            return func(a, b)  # type: ignore[no-any-return]
        # ab − a₀b₀ = (a − a₀)·(b + b₀)/2 + (b − b₀)·(a + a₀)/2, and half of each is the Shapley value of two factors.
        of = _PRODUCTS[name]
        carrier = of(a, (b.detach() + b0) / 2) + of((a.detach() + a0) / 2, b)
        made = _with_gradient_of(carrier, of(a.detach(), b.detach()))
        return a.copy_(made) if _in_place(func) else made

    def _max_pool(self, x: Tensor, *args: Any, pool: Callable[..., Any], **kwargs: Any) -> Tensor:
        if kwargs.pop("return_indices", False) or x.dim() != 4:
            raise Unfit("max pooling with indices, or without a batch, has no rule")
        x0 = self._reference("max_pool", x)
        with torch.set_grad_enabled(x0 is None):
            y, at = pool(x, *args, **kwargs, return_indices=True)
        if x0 is None:
            return y  # type: ignore[no-any-return]
        y0, at0 = pool(x0, *args, **kwargs, return_indices=True)
        # What the maximum has risen by came from where it is now, what it has fallen by from where it was: there the
        # input has changed at least as much, so the multipliers are between 0 and 1.
        flat, flat0, shape = x.flatten(2), x0.expand_as(x).flatten(2), y.shape
        rise, fall = (y - y0).clamp(min=0).flatten(2), (y - y0).clamp(max=0).flatten(2)
        carrier: Tensor | float = 0.0
        for change, index in ((rise, at.flatten(2)), (fall, at0.expand_as(at).flatten(2))):
            change_there = (flat.detach() - flat0).gather(2, index)
            share = torch.where(change_there == 0, 0.5, change / torch.where(change_there == 0, 1, change_there))
            carrier = carrier + flat.gather(2, index) * share
        return _with_gradient_of(carrier, y.flatten(2)).view(shape)  # type: ignore[arg-type]

    def _softmax(self, x: Tensor, dim: int, _stacklevel: int = 3, dtype: torch.dtype | None = None) -> Tensor:
        """exp(x − log Σ exp x): the secants of exp, of log and of exp again, in closed form."""
        x0 = self._reference("softmax", x)
        if x0 is None:
            return torch.softmax(x, dim, dtype=dtype)
        given = x.detach().to(dtype or x.dtype)
        total, total0 = given.logsumexp(dim, keepdim=True), x0.to(given).logsumexp(dim, keepdim=True)
        weight = torch.exp(_log_mean(given, x0) - _log_mean(total, total0))
        slope = torch.exp(_log_mean(given - total, x0 - total0))
        return _with_gradient_of(slope * (x - (weight * x).sum(dim, keepdim=True)), torch.softmax(given, dim))


def secant(function: Callable[[Tensor], Tensor], a: Tensor, a0: Tensor, y: Tensor, y0: Tensor, *,
           smooth: bool) -> Tensor:
    """The slope (y − y₀) / (a − a₀) of a function of each element; where a is nearly a₀, that in their middle.

    Args:
        function: of each element by itself.
        a: where the input is.
        a0: where the reference is; it may have one row for all.
        y: function(a).
        y0: function(a0).
        smooth: the function's derivative has no jumps and changes over distances of about 1.
    """
    difference = a - a0
    size = a.abs() + a0.abs()
    near = difference.abs() <= (_NEAR["smooth"] * (1 + size) if smooth else _NEAR["kinked"] * size)
    with torch.enable_grad():
        middle = ((a + a0) / 2).requires_grad_()
        derivative, = torch.autograd.grad(function(middle).sum(), middle)
    return torch.where(near, derivative, (y - y0) / torch.where(near, 1, difference))


def clip_secant(a: Tensor, a0: Tensor, y: Tensor, y0: Tensor) -> Tensor:
    """The same for a function that is a or a bound; where a is a₀, its derivative."""
    difference = a - a0
    return torch.where(difference == 0, (y == a).to(a), (y - y0).div_(difference))


def _log_mean(a: Tensor, b: Tensor) -> Tensor:
    """The logarithm of (exp a − exp b) / (a − b), which is exp a where they are equal."""
    half = torch.where(a == b, 0.0, (a - b) / 2).abs()
    # log(sinh(t) / t); the series is exact in float32 where it is used
    large = half.clamp(min=0.05)
    spread = torch.where(half < 0.05, half.square() / 6, large + torch.log1p(-torch.exp(-2 * large))
                         - torch.log(2 * large))
    return (a + b) / 2 + spread


class _Sloped(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, slope: Tensor, value: tuple[Tensor]) -> Tensor:
        ctx.save_for_backward(slope)
        return value[0]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        slope, = ctx.saved_tensors
        return gradients[0] * slope, None, None


class _WithGradientOf(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, carrier: Tensor, value: tuple[Tensor]) -> Tensor:
        return value[0]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


def _with_gradient_of(carrier: Tensor, value: Tensor) -> Tensor:
    """A tensor with the values of `value`, whose gradient goes on to `carrier`; both have the same shape."""
    # In a tuple the value is no input in the eyes of autograd, so that the result is not a view of it.
    found: Tensor = _WithGradientOf.apply(carrier, (value.detach(),))
    return found


# -- functions that are made of others --------------------------------------------------------------------------------


def _divide(a: Tensor, b: Any, *, rounding_mode: str | None = None) -> Tensor:
    if rounding_mode is not None:
        raise Unfit("there is no rule for 'div' with rounding")
    return a * torch.reciprocal(b) if _depends(b) else a * (1 / b)


def _power(a: Tensor, exponent: Any) -> Tensor:
    rules: dict[Any, Callable[[Tensor], Tensor]] = {
        2: torch.square, 0.5: torch.sqrt, -0.5: torch.rsqrt, -1: torch.reciprocal}
    if isinstance(exponent, Tensor) or exponent not in rules:
        raise Unfit(f"there is no rule for 'pow' with {exponent if isinstance(exponent, int | float) else 'a tensor'}")
    return rules[exponent](a)


def _hardsigmoid(input: Tensor) -> Tensor:
    # Its value at 0 is not 0, and small differences would be lost in it.
    return functional.hardtanh(input, -3.0, 3.0) / 6 + 0.5


def _standardised(x: Tensor, dims: tuple[int, ...], eps: float, *, centred: bool = True) -> Tensor:
    x = x - x.mean(dims, keepdim=True) if centred else x
    return x * torch.rsqrt(x.square().mean(dims, keepdim=True) + eps)


def _affine(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    x = x if weight is None else x * weight
    return x if bias is None else x + bias


def _layer_norm(input: Tensor, normalized_shape: Sequence[int], weight: Tensor | None = None,
                bias: Tensor | None = None, eps: float = 1e-5) -> Tensor:
    return _affine(_standardised(input, tuple(range(-len(normalized_shape), 0)), eps), weight, bias)


def _rms_norm(input: Tensor, normalized_shape: Sequence[int], weight: Tensor | None = None,
              eps: float | None = None) -> Tensor:
    eps = torch.finfo(input.dtype).eps if eps is None else eps
    return _affine(_standardised(input, tuple(range(-len(normalized_shape), 0)), eps, centred=False), weight, None)


def _group_norm(input: Tensor, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None,
                eps: float = 1e-5) -> Tensor:
    each = (-1, *(1,) * (input.dim() - 2))
    x = _standardised(input.reshape(len(input), num_groups, -1), (2,), eps).reshape(input.shape)
    return _affine(x, *(p if p is None else p.view(each) for p in (weight, bias)))


def _attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
               is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False) -> Tensor:
    if dropout_p or is_causal or enable_gqa or (attn_mask is not None and attn_mask.dtype == torch.bool):
        raise Unfit("there is no rule for attention with dropout, causal or boolean masks, or grouped queries")
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    scores = (query * scale) @ key.transpose(-2, -1)
    return torch.softmax(scores if attn_mask is None else scores + attn_mask, -1) @ value


def _multi_head_attention(
        query: Tensor, key: Tensor, value: Tensor, embed_dim_to_check: int, num_heads: int, in_proj_weight: Tensor,
        in_proj_bias: Tensor | None, bias_k: Any, bias_v: Any, add_zero_attn: bool, dropout_p: float,
        out_proj_weight: Tensor, out_proj_bias: Tensor | None, training: bool = True, need_weights: bool = True,
        **unusual: Any) -> tuple[Tensor, None]:
    """(L,B,E) each, as `torch.nn.functional.multi_head_attention_forward` has them; the weights are not returned."""
    usual = {"average_attn_weights", "is_causal"}
    others = [bias_k, bias_v, add_zero_attn, training and dropout_p, unusual.get("is_causal"),
              *(v for key, v in unusual.items() if key not in usual)]
    if any(other is not None and other is not False and other != 0.0 for other in others):
        raise Unfit("there is no rule for multi-head attention with masks, dropout or separate projections")
    biases = (None,) * 3 if in_proj_bias is None else in_proj_bias.chunk(3)
    projected = (functional.linear(x, w, b) for x, w, b in
                 zip((query, key, value), in_proj_weight.chunk(3), biases, strict=True))
    # Rows are merged with heads, rows first, as torch does: (L,B,E) → (B·heads,L,E/heads).
    q, k, v = (x.reshape(x.shape[0], -1, x.shape[2] // num_heads).transpose(0, 1) for x in projected)
    mixed = _attention(q, k, v).transpose(0, 1).reshape(query.shape)
    return functional.linear(mixed, out_proj_weight, out_proj_bias), None


_MADE_OF: dict[str, Callable[..., Any]] = {
    "div": _divide, "group_norm": _group_norm, "hardsigmoid": _hardsigmoid, "layer_norm": _layer_norm,
    "multi_head_attention_forward": _multi_head_attention, "pow": _power,
    "rdiv": lambda a, b: torch.reciprocal(a) * b, "rms_norm": _rms_norm,
    "rmatmul": lambda a, b: torch.matmul(b, a), "scaled_dot_product_attention": _attention,
}
_WHOLE: dict[str, Callable[..., Any]] = {
    "adaptive_max_pool2d": lambda self, *args, **kwargs: self._max_pool(
        *args, **kwargs, pool=functional.adaptive_max_pool2d),
    "max_pool2d": lambda self, *args, **kwargs: self._max_pool(*args, **kwargs, pool=functional.max_pool2d),
    "softmax": Secants._softmax,
}


# -- calls --------------------------------------------------------------------------------------------------------


def _name_of(func: Any) -> str:
    """The name of a torch function without its variants: in place, reflected, as an operator or a property."""
    name: str = getattr(func, "__name__", type(func).__name__)
    if name == "__get__":
        name = func.__self__.__name__
    if name in _SAME or name.startswith("__"):
        return _SAME.get(name, name)
    name = name.rstrip("_")
    return _SAME.get(name, name)


def _in_place(func: Any) -> bool:
    name: str = func.__name__
    return name in ("__imul__", "__itruediv__", "__ipow__") or (name.endswith("_") and not name.startswith("__"))


def _first(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, tuple[Any, ...], dict[str, Any]]:
    if args:
        return args[0], args[1:], kwargs
    return kwargs["input"], (), {key: value for key, value in kwargs.items() if key != "input"}


def _require_constants(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Everything but the first argument must not depend on the input; and nothing may depend on the other rows."""
    _, rest, named = _first(args, kwargs)
    if any(_depends(leaf) for leaf in _leaves((rest, named))):
        raise Unfit(f"the parameters of '{name}' depend on the picture")
    training = named.get("training", rest[4] if len(rest) > 4 else False) if name == "batch_norm" else (
        named.get("training", rest[1] if len(rest) > 1 else True) if name.startswith("dropout") else False)
    if training and (name == "batch_norm" or named.get("p", rest[0] if rest else 0.5)):
        raise Unfit(f"'{name}' is active: put the model in eval mode")


def _depends(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.requires_grad and not isinstance(leaf, nn.Parameter)


def _leaves(tree: Any) -> list[Any]:
    if isinstance(tree, tuple | list):
        return [leaf for branch in tree for leaf in _leaves(branch)]
    if isinstance(tree, dict):
        return [leaf for branch in tree.values() for leaf in _leaves(branch)]
    return [tree]
