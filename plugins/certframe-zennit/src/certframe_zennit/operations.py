"""What relevance propagation has to know about torch's functions, by the names that a tape gives them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from certframe_zennit.tape import Step, Tape, Unfit, Value

LAYER = "layer"
"""A linear layer as `folding` makes it: ``function(input, weight, bias)``; dense, convolution or transposed."""
CONVOLUTIONS = {"conv1d", "conv2d", "conv3d"}
TRANSPOSED = {"conv_transpose1d", "conv_transpose2d", "conv_transpose3d"}
NOTHING = {"alpha_dropout", "dropout", "dropout1d", "dropout2d", "dropout3d", "feature_alpha_dropout", "requires_grad"}
"""In eval mode they do nothing."""
ROUTING = {
    "T", "channel_shuffle", "chunk", "clone", "contiguous", "expand", "expand_as", "flatten", "flip", "float",
    "getitem", "mT", "movedim", "narrow", "pad", "permute", "pixel_shuffle", "pixel_unshuffle", "repeat", "reshape",
    "reshape_as", "roll", "select", "split", "squeeze", "swapaxes", "t", "tile", "to", "transpose", "type_as",
    "unbind", "unflatten", "unfold", "unsqueeze", "view", "view_as"}
"""They move values about."""
HOMOGENEOUS = ROUTING | {
    "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "adaptive_max_pool1d", "adaptive_max_pool2d",
    "adaptive_max_pool3d", "amax", "avg_pool1d", "avg_pool2d", "avg_pool3d", "interpolate", "leaky_relu", "max_pool1d",
    "max_pool2d", "max_pool3d", "mean", "neg", "prelu", "relu", "sum"}
"""f(k·x) = k·f(x) for every k ≥ 0, so that the gradient times the input is the share of the output."""
ELEMENTWISE = {
    "celu", "clamp", "elu", "gelu", "hardshrink", "hardswish", "hardtanh", "mish", "relu", "relu6", "selu", "silu",
    "softshrink", "softsign", "tanh", "tanhshrink"}
"""Activation functions with f(0) = 0."""
GATES = {"detach", "hardsigmoid", "sigmoid", "softmax"}
"""What comes out of them scales something else, and is a constant for relevance."""
SUMS: dict[str, Callable[..., Tensor]] = {
    "add": torch.add, "cat": torch.cat, "rsub": torch.rsub, "stack": torch.stack, "sub": torch.sub}
PRODUCTS: dict[str, Callable[..., Tensor]] = {
    "bmm": torch.bmm, "div": torch.div, "einsum": torch.einsum, "matmul": torch.matmul, "mul": torch.mul}
PIXELWISE = {"add", "batch_norm", "clone", "contiguous", "div", "float", "mul", "sub", "to", "type_as"}
"""What the normalisation of a picture is made of."""
_NEVER_NEGATIVE = {"hardsigmoid", "relu", "relu6", "sigmoid", "softmax"}
_KEEPS_SIGN = HOMOGENEOUS - {"interpolate", "neg"} | {"add", "bmm", "cat", "div", "matmul", "mul", "stack"}
_FIRST_ONLY = {LAYER, "expand_as", "getitem", "reshape_as", "type_as", "view_as"}
_ATTENTION = {"multi_head_attention_forward", "scaled_dot_product_attention"}
_PARAMETERS: dict[str, tuple[str, Sequence[Any]]] = {
    "batch_norm": ("input running_mean running_var weight bias training momentum eps",
                   (None, None, False, 0.1, 1e-5)),
    "group_norm": ("input num_groups weight bias eps", (None, None, 1e-5)),
    "hardtanh": ("input min_val max_val inplace", (-1.0, 1.0, False)),
    "layer_norm": ("input normalized_shape weight bias eps", (None, None, 1e-5)),
    "multi_head_attention_forward": (
        "query key value embed_dim_to_check num_heads in_proj_weight in_proj_bias bias_k bias_v add_zero_attn "
        "dropout_p out_proj_weight out_proj_bias training key_padding_mask need_weights attn_mask "
        "use_separate_proj_weight q_proj_weight k_proj_weight v_proj_weight static_k static_v average_attn_weights "
        "is_causal", (True, None, True, None, False, None, None, None, None, None, True, False)),
    "pad": ("input pad mode value", ("constant", None)),
    "rms_norm": ("input normalized_shape weight eps", (None, None)),
    "scaled_dot_product_attention": ("query key value attn_mask dropout_p is_causal scale enable_gqa",
                                     (None, 0.0, False, None, False)),
}
"""Parameters of torch's functions in order, and the defaults of the last of them."""


def arguments(step: Step) -> dict[str, Any]:
    """The arguments of a step by name, for the functions whose parameters are known here.

    Raises:
        Unfit: it is called in another way.
    """
    names, defaults = _PARAMETERS[step.name]
    order = names.split()
    values = dict(zip(order[len(order) - len(defaults):], defaults, strict=True))
    values.update(zip(order, step.args, strict=False))
    values.update(step.kwargs)
    if values.keys() != set(order) or len(step.args) > len(order):
        raise Unfit(f"{step} is called in an unknown way")
    return values


def batch_norm_arguments(step: Step, tape: Tape) -> dict[str, Any]:
    """`arguments` of a batch norm, with the constants themselves.

    Raises:
        Unfit: it is not in eval mode.
    """
    if step.function is not functional.batch_norm:
        raise Unfit(f"{step} is called in an unknown way")
    found = arguments(step)
    if found["training"] or found["running_mean"] is None:
        raise Unfit(f"{step} mixes the pictures of a batch: put the model in eval mode")
    return {name: tape.constants[value] if isinstance(value, Value) and name != "input" else value
            for name, value in found.items()}


def carriers(step: Step) -> list[Value]:
    """The inputs through which relevance may go."""
    if step.name in _ATTENTION:
        return [arguments(step)["value"]]
    return step.inputs[:1] if step.name in _FIRST_ONLY else step.inputs


def carrying(tape: Tape) -> set[Value]:
    """The tensors from which a way leads to the logits that is not through a gate or attention weights."""
    found = {tape.output}
    for step in reversed(tape.steps):
        if step.name not in GATES and found.intersection(step.outputs):
            found.update(carriers(step))
    return found


def never_negative(step: Step, is_nonnegative: Callable[[Value], bool]) -> bool:
    """Whether no output of a step is ever below 0, given what is known of its inputs."""
    if step.name in _NEVER_NEGATIVE or clips_negative(step):
        return True
    if step.name in ("add", "div", "mul"):
        numbers = [leaf for leaf in step.args if isinstance(leaf, int | float)]
        if step.kwargs or min(numbers, default=0) < 0:
            return False
    return step.name in _KEEPS_SIGN and all(is_nonnegative(value) for value in step.inputs)


def clips_negative(step: Step) -> bool:
    """Whether it is an activation function that is never below 0."""
    low, _ = _limits(step)
    return isinstance(low, int | float) and low >= 0


def activation(step: Step, *, in_place: bool = False) -> Callable[[Tensor], Tensor]:
    """A step that is an activation function, as a function of its input; in place if that is wanted and possible.

    Raises:
        Unfit: it is not 0 at 0, as relevance propagation supposes.
    """
    if step.name == "relu":
        return torch.relu_ if in_place else torch.relu
    low, high = _limits(step)
    if isinstance(low, Value) or isinstance(high, Value) or (low or 0.0) > 0 or (high or 0.0) < 0:
        raise Unfit(f"there is no rule for {step}, which is not 0 at 0")
    function, kwargs = out_of_place(step)
    if "inplace" in kwargs:
        kwargs["inplace"] = in_place
    rest = step.args[1:]
    return lambda x: function(x, *rest, **kwargs)


def _limits(step: Step) -> tuple[Any, Any]:
    """The range to which an activation function clips; None for no limit."""
    if step.name in ("relu", "relu6"):
        return 0.0, 6.0 if step.name == "relu6" else None
    if step.name == "hardtanh":
        found = arguments(step)
        return found["min_val"], found["max_val"]
    if step.name == "clamp":
        order = ("max", "min") if "max" in step.function.__name__ else ("min", "max")
        found = {"min": None, "max": None, **dict(zip(order, step.args[1:], strict=False)), **step.kwargs}
        return found["min"], found["max"]
    return None, None


def out_of_place(step: Step) -> tuple[Callable[..., Any], dict[str, Any]]:
    """The function and the keyword arguments of a step, without working in place."""
    function, name = step.function, step.function.__name__
    if step.name in SUMS or step.name in PRODUCTS:
        function = SUMS.get(step.name) or PRODUCTS[step.name]
    elif name.endswith("_") and not name.startswith("__"):
        function = getattr(Tensor, name.rstrip("_"))
    return function, {key: False if key == "inplace" else value for key, value in step.kwargs.items()}
