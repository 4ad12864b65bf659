"""Bring a tape into the form that the rules of relevance propagation are about.

Linear layers of all kinds become steps called ``layer``, batch norms that follow one are folded into its weights,
dropout and dead ends disappear.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from certframe_zennit.operations import CONVOLUTIONS, LAYER, NOTHING, TRANSPOSED, batch_norm_arguments
from certframe_zennit.rules import Operation
from certframe_zennit.tape import Step, Tape, Unfit, Value


def fold(tape: Tape) -> Tape:
    """The same computation with layers named, batch norms folded, and nothing superfluous.

    Raises:
        Unfit: the network behaves as in training, or its weights depend on the picture.
    """
    folded = replace(tape, steps=[], constants=dict(tape.constants))
    steps = _needed(tape.steps, tape.output)
    users = Counter(value for step in steps for value in step.inputs)
    same: dict[Value, Value] = {}
    layers: dict[Value, int] = {}
    for step in steps:
        source = step.inputs[0] if step.inputs else None
        step = step.renamed(same)
        before = layers.get(step.inputs[0]) if step.name == "batch_norm" else None
        if step.name in NOTHING:
            if step.kwargs.get("training", False):
                raise Unfit("its dropout is active: put the model in eval mode")
            same[step.output] = step.inputs[0]
        elif before is not None and source is not None and users[source] == 1 and _has_channels(folded.steps[before]):
            folded.steps[before] = _fused(folded, folded.steps[before], step)
            same[step.output] = step.inputs[0]
        else:
            if step.name in CONVOLUTIONS | TRANSPOSED | {"linear"}:
                step = _layer(step, folded)
                layers[step.output] = len(folded.steps)
            folded.steps.append(step)
    folded.output = same.get(tape.output, tape.output)
    return folded


def _needed(steps: Sequence[Step], output: Value) -> list[Step]:
    wanted, found = {output}, []
    for step in reversed(steps):
        if wanted.intersection(step.outputs):
            wanted.update(step.inputs)
            found.append(step)
    return found[::-1]


def _layer(step: Step, tape: Tape) -> Step:
    x, weight, bias, rest, more = _arguments(*step.args, **step.kwargs)
    if weight not in tape.constants or (bias is not None and bias not in tape.constants):
        raise Unfit(f"the weights of {step} depend on the picture")
    kernel = tuple(tape.constants[weight].shape[2:])
    covers = kernel == tape.shapes[x][2:] and set(step.shape[2:]) == {1}  # a dense layer in another guise
    kind = ("transposed" if step.name in TRANSPOSED else "dense" if step.name == "linear" or covers
            else "convolution")
    return replace(step, name=LAYER, function=_operation(step.function, rest, more), args=(x, weight, bias), kwargs={},
                   kind=kind)


def _arguments(input: Value, weight: Any, bias: Any = None, *rest: Any, **more: Any) -> tuple[Any, ...]:
    return input, weight, bias, rest, more


def _operation(function: Callable[..., Tensor], rest: tuple[Any, ...], more: dict[str, Any]) -> Operation:
    def operation(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return function(x, weight, bias, *rest, **more)
    return operation


def _has_channels(layer: Step) -> bool:
    """Whether the second axis, which a batch norm is about, is that of the layer's outputs."""
    return layer.kind != "transposed" and (layer.kind == "convolution" or len(layer.shape) in (2, 4))


def _fused(tape: Tape, layer: Step, norm: Step) -> Step:
    found = batch_norm_arguments(norm, tape)
    x, weight, bias = layer.args
    scale = (found["running_var"] + found["eps"]).rsqrt()
    scale = scale if found["weight"] is None else scale * found["weight"]
    shift = -found["running_mean"] if bias is None else tape.constants[bias] - found["running_mean"]
    shift = shift * scale if found["bias"] is None else shift * scale + found["bias"]
    old = tape.constants[weight]
    new = old * scale.view(-1, *[1] * (old.ndim - 1))
    return replace(layer, args=(x, tape.constant(new), tape.constant(shift)))
