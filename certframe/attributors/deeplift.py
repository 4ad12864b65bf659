"""DeepLIFT by the rescale rule."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from certframe import protocols
from certframe.attributors.secants import ReferencesDiffer, Secants, Unfit
from certframe.device import full_precision, weights_state
from certframe.errors import UsageError
from certframe.protocols import Attribution

if TYPE_CHECKING:
    from certframe.protocols import Model, Rng

_COMPLETE = 0.01
"""How far contributions may be from the difference of the logits, as a part of it."""


def multipliers(function: Callable[..., Tensor], values: Sequence[Tensor], references: Sequence[Tensor],
                targets: Tensor) -> tuple[list[Tensor], Tensor, Tensor]:
    """DeepLIFT's multipliers m of a network between reference and input: Σ m ⊙ (v − v₀) = f_c(v) − f_c(v₀).

    Args:
        function: tensors with one row per picture each → logits (B, classes).
        values: its arguments.
        references: the same for the reference; with B rows, or one for all.
        targets: (B,) int64, c.

    Returns:
        The multipliers, shaped like `values`; the logits (B, classes) of the values; and those of the references, with
        B rows or one. All detached.

    Raises:
        Unfit: the network calls something that has no rule, or cannot be followed; the message says what.
    """
    try:
        return _multipliers(function, values, references, targets)
    except ReferencesDiffer:
        if all(len(r) == len(targets) for r in references):
            raise Unfit("it has other shapes for the reference than for the picture") from None
    # Where rows are merged with other axes (windows of attention, for instance) each needs its own reference.
    references = [r.expand(len(targets), *r.shape[1:]) for r in references]
    return multipliers(function, values, references, targets)


def _multipliers(function: Callable[..., Tensor], values: Sequence[Tensor], references: Sequence[Tensor],
                 targets: Tensor) -> tuple[list[Tensor], Tensor, Tensor]:
    plain = function.forward if isinstance(function, nn.Module) else function  # not the compiled call
    secants = Secants()
    with torch.enable_grad():
        # The reference's graph only tells what depends on the input: nothing is saved for a backward pass.
        nothing = torch.empty(0)
        with torch.autograd.graph.saved_tensors_hooks(lambda _tensor: nothing, lambda _saved: nothing), secants:
            given = [r.detach().requires_grad_() for r in references]
            reference_logits = plain(*(g.clone() for g in given))
        secants.start()
        given = [v.detach().requires_grad_() for v in values]
        with secants:
            logits = plain(*(g.clone() for g in given))
        if not secants.finished or not logits.requires_grad:
            raise Unfit("its logits have no gradient with respect to the picture")
        found = torch.autograd.grad(logits.gather(1, targets[:, None]).sum(), given, allow_unused=True)
    return ([torch.zeros_like(v) if m is None else m for v, m in zip(values, found, strict=True)],
            logits.detach(), reference_logits.detach())


class DeepLift:
    """DeepLIFT by the rescale rule: what each pixel contributes to f_c(x) − f_c(x₀), x₀ a constant image, signed.

    Contributions are (x − x₀) ⊙ m, added over the channels; the multipliers m are handed back as a gradient is, with
    (f(a) − f(a₀)) / (a − a₀) in the place of every activation function's derivative. Products of two activations
    (attention, gates) divide their change as Shapley values do; max pooling gives what it has risen by to where the
    maximum is, and what it has fallen by to where it was; softmax and norms are taken apart into such steps. So the
    contributions add up to f_c(x) − f_c(x₀), which is checked when a model is first explained. What has no rule is
    refused.

    A. Shrikumar, P. Greenside, A. Kundaje. Learning important features through propagating activation differences.
    ICML 2017. Products: S. Lundberg, S.-I. Lee. A unified approach to interpreting model predictions. NeurIPS 2017.
    """

    class Options(protocols.Options):
        """Options of `deeplift`."""

        layer: str = Field("input", description="'input', 'final' (last spatial feature map), or a module path.")
        baseline: float = Field(0.0, description="Value of every pixel of the reference image x₀.")

    needs_gradients: ClassVar[bool] = True
    deterministic: ClassVar[bool] = True
    family: ClassVar[str] = "backpropagation"
    passes: ClassVar[int] = 1

    def __init__(self, options: Options | None = None) -> None:
        self.options = options or self.Options()
        self._complete: weakref.WeakKeyDictionary[nn.Module, Any] = weakref.WeakKeyDictionary()

    def attribute(self, model: Model, inputs: Tensor, targets: Tensor, *, rng: Rng) -> Attribution:
        """(B,h,w) maps of either sign, and the logits; one forward and backward pass, and a forward of the reference.

        Computed in float32 (or the model's own type), also under autocast: contributions are differences.

        Raises:
            UsageError: the network calls something that has no rule, does not satisfy completeness, or cannot be cut
                at the layer; the message says what.
        """
        return self.against(model, inputs, torch.full_like(inputs[:1], self.options.baseline), targets)

    def against(self, model: Model, inputs: Tensor, baselines: Tensor, targets: Tensor) -> Attribution:
        """The same with reference images of one's own, (B,C,H,W) or one for all, (1,C,H,W), in pixel units."""
        split = model.at(self.options.layer)
        with full_precision(inputs.device):
            try:
                state = weights_state(model.module)
                if self._complete.get(model.module) != state:
                    self._check(split, inputs)
                    self._complete[model.module] = state
                with torch.no_grad():
                    values, references = split.body(inputs.detach()), split.body(baselines.detach())
                found, logits, _ = multipliers(split.head, values, references, targets)
            except Unfit as reason:
                raise UsageError(f"deeplift cannot be applied to this model: {reason}; take another method, "
                                 "integrated-gradients for instance") from None
            contributions = found[0].mul_(values[0] - references[0])
        return Attribution(split.as_map(contributions).float().sum(1), logits.float())

    def _check(self, split: protocols.Split, inputs: Tensor) -> None:
        """Completeness, on two made-up images, for the class whose logit changes most."""
        generator = torch.Generator().manual_seed(0)
        pixels = torch.rand((2, *inputs.shape[1:]), generator=generator).to(inputs)
        with torch.no_grad():
            values = split.body(pixels)
            references = split.body(torch.full_like(pixels[:1], self.options.baseline))
            rise = split.head(*values) - split.head(*references)
        targets = rise.abs().argmax(1)
        found, logits, _ = multipliers(split.head, values, references, targets)
        total = torch.stack([(m * (v - r)).double().flatten(1).sum(1)
                             for m, v, r in zip(found, values, references, strict=True)]).sum(0)
        wanted = rise.gather(1, targets[:, None])[:, 0].double()
        error = (total - wanted).abs() - _COMPLETE * wanted.abs() - 1e-5 * logits.abs().amax(1)
        worst = int(error.argmax())
        if not bool((error <= 0).all()):
            raise Unfit(f"its contributions add up to {float(total[worst]):.3g}, the logit changes by "
                        f"{float(wanted[worst]):.3g}")
