"""A model's head as a network whose backward pass is relevance propagation, built once and checked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from certframe_zennit.assignment import Assigned, assign
from certframe_zennit.composites import Composite
from certframe_zennit.folding import fold
from certframe_zennit.tape import Unfit, record

_TOLERANCE = 1e-4
_TELLING = 1e-3
"""Logits without anything added must be this part of the real ones for a check of conservation to mean anything."""


class Network:
    """A function of tensors, with rules instead of gradients.

    Args:
        function: takes tensors with one row per picture each, returns logits (rows, classes).
        given: rows → example arguments of so many rows; other numbers in every row and for every count.
        composite: which rule where.
        pixels: the only argument is the picture.
        box: see `Lrp.Options`.

    Attributes:
        conserved: what is left of the relevance of a logit when nothing is ever added to activations: 1 when the rules
            conserve relevance; NaN when the logits vanish then.

    Raises:
        Unfit: the function cannot be followed, or a step of it has no rule.
    """

    def __init__(self, function: Callable[..., Tensor], given: Callable[[int], Sequence[Tensor]], composite: Composite,
                 *, pixels: bool, box: Literal["pixel", "unit"] = "pixel") -> None:
        # A compiled module is followed through its Python code, not through its compiled call.
        plain = function.forward if isinstance(function, nn.Module) else function
        tape = fold(record(plain, given(2), given(3)))
        self._first, self._box = composite.first, box
        self._assigned = assign(tape, composite, pixels=pixels)
        self._check(function, given(4))
        unshifted = assign(tape, composite, pixels=pixels, shifts=False)
        self.conserved = self._conservation(unshifted, given(1))

    def propagate(self, given: Sequence[Tensor], targets: Tensor, *,
                  every: bool = False) -> tuple[list[Tensor], Tensor]:
        """The relevance of the arguments for the logits of the target classes, and the logits.

        Args:
            given: the arguments.
            targets: (rows,) int64.
            every: of all arguments, not only of the first.
        """
        return self._propagate(self._assigned, given, targets, every)

    def _propagate(self, assigned: Assigned, given: Sequence[Tensor], targets: Tensor,
                   every: bool) -> tuple[list[Tensor], Tensor]:
        with torch.no_grad():
            sites = [site.detach() for site in assigned.before(*given)]
            references = self._references(assigned, given, sites)
        wanted = sites if every or assigned.references else sites[:1]
        with torch.enable_grad():
            plain = [site.detach().requires_grad_(any(site is w for w in wanted)) for site in sites]
            first = [site.detach().requires_grad_() for site in sites] if assigned.references else []
            logits, = assigned.after(*plain, *first, *references)
            score = logits.gather(1, targets[:, None]).sum()
            leaves = [*plain[:len(wanted)], *first]
            gradients = torch.autograd.grad(score, leaves, allow_unused=True)
        relevances = [torch.zeros_like(s) if g is None else s * g
                      for s, g in zip(sites, gradients[:len(wanted)], strict=False)]
        for i, relevance in enumerate(gradients[len(wanted):]):
            relevances[i] += 0 if relevance is None else relevance
        return relevances, logits.detach()

    def _references(self, assigned: Assigned, given: Sequence[Tensor], sites: Sequence[Tensor]) -> list[Tensor]:
        if not assigned.references:
            return []
        if self._first == "flat":
            return [torch.ones_like(site) for site in sites]
        x = given[0]
        ends = (torch.zeros_like(x), torch.ones_like(x)) if self._box == "unit" else (x.clamp(max=0), x.clamp(min=1))
        low, high = (assigned.before(end) for end in ends)
        pairs = list(zip(low, high, strict=True))
        return [torch.minimum(*pair) for pair in pairs] + [torch.maximum(*pair) for pair in pairs]

    def _check(self, function: Callable[..., Tensor], given: Sequence[Tensor]) -> None:
        with torch.no_grad():
            expected = function(*given)
            found = self.propagate(given, expected.argmax(1))[1]
        error = float((found - expected).abs().amax() / expected.abs().amax().clamp(min=1e-30))
        if not error <= _TOLERANCE:
            raise Unfit(f"what was followed gives other logits than the model (by {error:.1g} of the largest)")

    def _conservation(self, unshifted: Assigned, given: Sequence[Tensor]) -> float:
        target = torch.zeros(1, dtype=torch.int64, device=given[0].device)
        size = float(self.propagate(given, target)[1].abs().amax())
        target = self._propagate(unshifted, given, target, True)[1].abs().argmax(1)
        relevances, logits = self._propagate(unshifted, given, target, True)
        logit = float(logits[0, target[0]])
        if not abs(logit) > _TELLING * size:
            return float("nan")
        return sum(float(relevance.double().sum()) for relevance in relevances) / logit
