"""Give every step of a folded tape its rule.

A step that works on activations is one of these: a linear layer; homogeneous, so that its gradient is right as it is;
an activation function, through which relevance passes; a norm, whose scale is a constant; a gate or attention weight,
which is a constant; a sum; a product with a constant. Any other is refused: its gradient would be taken for relevance
without a sign of it.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.nn import functional

from certframe_zennit import operations, rules
from certframe_zennit.composites import Composite
from certframe_zennit.operations import (
    ELEMENTWISE,
    GATES,
    HOMOGENEOUS,
    LAYER,
    PIXELWISE,
    PRODUCTS,
    ROUTING,
    SUMS,
    arguments,
)
from certframe_zennit.program import Call, Program
from certframe_zennit.tape import Step, Tape, Unfit, Value

_REFERENCES = {"": 0, "flat": 1, "box": 2}
_INACTIVE = "its dropout is active: put the model in eval mode"


@dataclass(frozen=True)
class Assigned:
    """A network with rules, in two halves.

    Attributes:
        before: inputs → sites, the tensors at which relevance is read. For pixels this is their normalisation.
        after: sites → logits. For a composite with a rule for the first layer the sites are followed by the same once
            more, as this rule reads them, and by what it compares them with.
        references: how many things it compares each site with.
    """

    before: Program
    after: Program
    references: int


def assign(tape: Tape, composite: Composite, *, pixels: bool, shifts: bool = True) -> Assigned:
    """Turn a folded tape into a network whose backward pass propagates relevance.

    Args:
        tape: from `folding.fold`.
        composite: which rule where.
        pixels: the input is a picture: relevance is read behind its normalisation, and the composite's rule for the
            first layer holds for layers that see it.
        shifts: keep biases and whatever else is added; without them most rules conserve relevance.

    Raises:
        Unfit: some step has no rule; names it.
    """
    return _Assignment(tape, composite, pixels, shifts).result()


class _Assignment:
    def __init__(self, tape: Tape, composite: Composite, pixels: bool, shifts: bool) -> None:
        self.tape, self.composite, self.shifts = tape, composite, shifts
        self.users: dict[Value, list[Step]] = defaultdict(list)
        for step in tape.steps:
            for value in set(step.inputs):
                self.users[value].append(step)
        self.carrying = operations.carrying(tape)
        self.normalisation = self._normalisation() if pixels else []
        self.sites = self._sites() if self.normalisation else list(tape.inputs)
        self.references = _REFERENCES[composite.first] if pixels else 0
        self.calls: list[Call] = []
        self.data = {*tape.inputs, *self.sites}
        self.fixed: set[Value] = set()  # they depend on the picture, but are constants for relevance
        self.nonnegative: set[Value] = set()
        self.done: set[Value] = set()
        self.variants = {site: [tape.new_value() for _ in range(1 + self.references)] for site in self.sites
                         if self.references}

    def result(self) -> Assigned:
        self.done.update(step.output for step in self.normalisation)
        for step in self.tape.steps:
            if self.done.isdisjoint(step.outputs):
                self._visit(step)
        if self.tape.output not in self.data:
            raise Unfit("its logits depend on the layer through gates or attention weights only")
        extra = [value for column in zip(*self.variants_of_sites(), strict=True) for value in column]
        before = [_call(step) for step in self.normalisation]
        return Assigned(Program(self.tape.inputs, before, self.sites, self.tape.constants),
                        Program([*self.sites, *extra], self.calls, [self.tape.output], self.tape.constants),
                        self.references)

    def variants_of_sites(self) -> list[list[Value]]:
        return [self.variants[site] for site in self.sites] if self.references else []

    # -- where relevance is read

    def _normalisation(self) -> list[Step]:
        """The steps at the beginning that work on every pixel by itself, with constants."""
        found, inside = [], set(self.tape.inputs)
        for step in self.tape.steps:
            data = [value for value in step.inputs if value not in self.tape.constants]
            if step.name in PIXELWISE and len(data) == 1 and data[0] in inside and step.args[0] == data[0] and (
                    step.shape == self.tape.shapes[data[0]]):
                inside.add(step.output)
                found.append(step)
        return found

    def _sites(self) -> list[Value]:
        """What the rest of the network sees of the pixels."""
        outputs = [step.output for step in self.normalisation]
        return [value for value in (*self.tape.inputs, *outputs)
                if value == self.tape.output or any(user.output not in outputs for user in self.users[value])]

    # -- step by step

    def _visit(self, step: Step) -> None:
        name = step.name
        carried = self.data.intersection(operations.carriers(step))
        if not carried or name in GATES or self.carrying.isdisjoint(step.outputs):
            self._constant(step)
        elif name == LAYER:
            self._layer(step)
        elif name in SUMS:
            self._sum(step)
        elif name in PRODUCTS:
            self._product(step)
        elif name in HOMOGENEOUS:
            self._homogeneous(step)
        elif name in ELEMENTWISE:
            self._emit(step, functools.partial(rules.elementwise, operations.activation(step)), self._only_input(step))
        elif name in _OTHERS:
            _OTHERS[name](self, step)
        else:
            raise Unfit(f"there is no rule for {step}")

    def _emit(self, step: Step, function: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        self.calls.append(Call(function, args, kwargs, step.outputs, step.many))
        self.data.update(step.outputs)
        self._note_sign(step)

    def _constant(self, step: Step) -> None:
        """A step that no relevance goes through."""
        picture = any(value in self.data or value in self.fixed for value in step.inputs)
        self.calls.append(_call(step, gradient=not picture))
        if picture:
            self.fixed.update(step.outputs)
        self._note_sign(step)

    def _note_sign(self, step: Step) -> None:
        if operations.never_negative(step, self._is_nonnegative):
            self.nonnegative.update(step.outputs)

    def _is_nonnegative(self, value: Value) -> bool:
        constant = self.tape.constants.get(value)
        return value in self.nonnegative if constant is None else bool((constant >= 0).all())

    def _only_input(self, step: Step) -> Value:
        if len(step.inputs) != 1 or step.args[:1] != (step.inputs[0],):
            raise Unfit(f"there is no rule for {step} with these arguments")
        return step.inputs[0]

    # -- layers

    def _layer(self, step: Step) -> None:
        x, weight, bias = step.args
        bias = self.tape.constants[bias] if bias is not None and self.shifts else None
        first = x in self.variants
        rule = self.composite.first_rule if first else (
            self.composite.dense if step.kind == "dense" else self.composite.convolution)
        if rule is None:
            operation, epsilon = step.function, self.composite.epsilon
            self._emit(step, lambda a, w: rules.epsilon(operation(a, w, bias), epsilon), x, weight)
            return
        after = self._activation_after(step)
        layer = rules.Layer(step.function, self.tape.constants[weight], bias,
                            operations.activation(after, in_place=True) if after else None,
                            x in self.nonnegative, after is not None and operations.clips_negative(after))
        self._emit(after or step, functools.partial(rules.apply, layer, rule), *(self.variants[x] if first else [x]))

    def _activation_after(self, step: Step) -> Step | None:
        """The activation function that alone uses the layer's output; it is then computed with the layer."""
        users = self.users[step.output]
        if len(users) != 1 or step.output == self.tape.output or users[0].name not in ELEMENTWISE:
            return None
        self._only_input(users[0])
        self.done.update(users[0].outputs)
        return users[0]

    # -- the others

    def _homogeneous(self, step: Step) -> None:
        if step.name == "pad" and arguments(step)["value"] not in (None, 0, float("-inf")):
            raise Unfit(f"there is no rule for {step} with a value other than 0")
        call = _call(step)
        self._emit(step, call.function, *call.args, **call.kwargs)
        given = [value for value in step.inputs if value in self.data]
        if step.name in ROUTING and all(value in self.variants for value in given):
            columns = zip(*(self.variants[value] for value in given), strict=True)
            made = [self._again(step, dict(zip(given, column, strict=True))) for column in columns]
            self.variants.update({output: list(column)
                                  for output, column in zip(step.outputs, zip(*made, strict=True), strict=True)})

    def _again(self, step: Step, names: dict[Value, Value]) -> list[Value]:
        """Do to other tensors what a step does."""
        outputs = [self.tape.new_value() for _ in step.outputs]
        self.calls.append(replace(_call(step.renamed(names)), outputs=tuple(outputs)))
        return outputs

    def _sum(self, step: Step) -> None:
        if any(value in self.fixed for value in step.inputs):
            raise Unfit(f"{step} adds what is a constant for relevance, but depends on the picture")
        args = step.args
        if not self.shifts and step.name in ("cat", "stack"):
            args = [self._without_shift(term) for term in args[0]], *args[1:]
        elif not self.shifts:
            args = tuple(self._without_shift(term) for term in args)
        self._emit(step, _call(step).function, *args, **step.kwargs)

    def _without_shift(self, term: Any) -> Any:
        if not isinstance(term, Value) or term in self.data:
            return term if isinstance(term, Value) else 0
        zeros = self.tape.new_value()
        self.calls.append(Call(torch.zeros_like, (term,), {}, (zeros,)))
        return zeros

    def _product(self, step: Step) -> None:
        data = [value for value in step.inputs if value in self.data]
        if len(data) > 1 or (step.name == "div" and step.args[0] not in data):
            raise Unfit(f"{step} combines activations in a way that has no rule")
        self._emit(step, _call(step).function, *step.args, **step.kwargs)

    def _batch_norm(self, step: Step) -> None:
        found = operations.batch_norm_arguments(step, self.tape)
        mean, bias = found["running_mean"], found["bias"]
        if not self.shifts:
            mean, bias = torch.zeros_like(mean), None
        self._emit(step, functional.batch_norm, found["input"], mean, found["running_var"], found["weight"], bias,
                   eps=found["eps"])

    def _norm(self, step: Step) -> None:
        found = arguments(step)
        over = found["normalized_shape" if step.name == "layer_norm" else "num_groups"]
        function = rules.layer_norm if step.name == "layer_norm" else rules.group_norm
        self._emit(step, function, found["input"], over, found["weight"], found["bias"] if self.shifts else None,
                   found["eps"])

    def _rms_norm(self, step: Step) -> None:
        found = arguments(step)
        weight = None if found["weight"] is None else self.tape.constants[found["weight"]]
        norm = functools.partial(functional.rms_norm, normalized_shape=found["normalized_shape"], weight=weight,
                                 eps=found["eps"])
        self._emit(step, functools.partial(rules.elementwise, norm), found["input"])

    def _attention(self, step: Step) -> None:
        if arguments(step)["dropout_p"]:
            raise Unfit(_INACTIVE)
        self._emit(step, rules.attention, *step.args, **step.kwargs)

    def _multi_head_attention(self, step: Step) -> None:
        found = arguments(step)
        unusual = ("bias_k", "bias_v", "add_zero_attn", "key_padding_mask", "attn_mask", "use_separate_proj_weight",
                   "static_k", "static_v")
        if any(found[name] not in (None, False) for name in unusual) or any(self.users[v] for v in step.outputs[1:]):
            raise Unfit(f"there is no rule for {step} with masks, separate projections or weights that are used")
        if found["training"] and found["dropout_p"]:
            raise Unfit(_INACTIVE)
        biases = (found["in_proj_bias"], found["out_proj_bias"]) if self.shifts else (None, None)
        self._emit(step, rules.multi_head_attention, found["query"], found["key"], found["value"], found["num_heads"],
                   found["in_proj_weight"], biases[0], found["out_proj_weight"], biases[1], self.composite.epsilon)


_OTHERS: dict[str, Callable[[_Assignment, Step], None]] = {
    "batch_norm": _Assignment._batch_norm, "group_norm": _Assignment._norm, "layer_norm": _Assignment._norm,
    "multi_head_attention_forward": _Assignment._multi_head_attention, "rms_norm": _Assignment._rms_norm,
    "scaled_dot_product_attention": _Assignment._attention}


def _call(step: Step, *, gradient: bool = True) -> Call:
    """The step as it is, but not in place; without a gradient if that is not wanted."""
    function, kwargs = operations.out_of_place(step)
    return Call(function if gradient else _without_gradient(function), step.args, kwargs, step.outputs, step.many)


def _without_gradient(function: Callable[..., Any]) -> Callable[..., Any]:
    def without_gradient(*args: Any, **kwargs: Any) -> Any:
        with torch.no_grad():
            return function(*args, **kwargs)
    return without_gradient
