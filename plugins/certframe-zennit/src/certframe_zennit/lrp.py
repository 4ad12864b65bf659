"""Layer-wise relevance propagation as an attributor."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Sequence
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

import certframe
from certframe_zennit.composites import Name, composite
from certframe_zennit.network import Network
from certframe_zennit.tape import Unfit

_CONSERVES = 0.05
"""How far the relevance without biases may be from the logit before that is said."""


class Lrp:
    """Layer-wise relevance propagation: the logit of the class, handed down layer by layer to what contributed to it.

    Which layer divides relevance by which rule is a composite; their names, rules and constants are zennit's. The
    default is the ε-rule on dense layers, z⁺ on convolutions and the box rule on those that see the pixels. Batch norms
    count as part of the layer before them, activation functions and the pixels' normalisation let relevance through,
    sums of branches divide it in proportion to the branches, max pooling gives it to the winner, and gates (squeeze
    and excitation), attention weights and the scale of layer norms are constants. The relevance of feature maps, or of
    colour channels, is added up, with its sign.

    The model is followed call by call once, and only its structure and weights are used after that. Whatever cannot be
    followed exactly, or has no rule, is refused. When a composite cannot conserve relevance on a model there is one
    warning.

    S. Bach et al. On pixel-wise explanations for non-linear classifier decisions by layer-wise relevance propagation.
    PLoS ONE 2015. Transformers: A. Ali et al. XAI for transformers: better explanations through conservative
    propagation. ICML 2022.
    """

    class Options(certframe.Options):
        """Options of `lrp`."""

        composite: Name = Field("epsilon-plus-box", description=(
            "Which rule where: the ε-rule on dense layers with z⁺ (plus), γ (gamma) or αβ with α = 2 (alpha2-beta1) on "
            "convolutions, and the box rule (box), the flat rule (flat) or nothing special where the pixels enter; "
            "excitation-backprop is z⁺ everywhere."))
        layer: str = Field("input", description="'input', 'final' (last spatial feature map), or a module path.")
        box: Literal["pixel", "unit"] = Field("pixel", description=(
            "Lowest and highest value of a pixel for the box rule: 'unit' is 0 and 1, although noisy pixels may lie "
            "outside; 'pixel' widens that, for a pixel that noise has taken outside, to where it is."))
        epsilon: float = Field(1e-6, ge=0, description="ε of the ε-rule on dense layers.")
        gamma: float = Field(0.25, ge=0, description="γ of the γ-rule.")

    needs_gradients = True
    deterministic = True
    family = "backpropagation"

    def __init__(self, options: Options | None = None) -> None:
        self.options = options or self.Options()
        self._networks: weakref.WeakKeyDictionary[nn.Module, tuple[Any, Network]] = weakref.WeakKeyDictionary()

    def attribute(self, model: certframe.Model, inputs: Tensor, targets: Tensor, *,
                  rng: certframe.Rng) -> certframe.Attribution:
        """(B,h,w) maps of either sign, at the layer's resolution, and the logits.

        Relevance begins as the logit of the class. Everything is computed in float32 (or the model's own type), also
        under autocast: rules divide by sums that can be small.

        Raises:
            UsageError: the model cannot be followed or has a step without a rule (the message names it), it cannot be
                cut at the layer, or the layer's output is not a map.
        """
        split = model.at(self.options.layer)
        with certframe.full_precision(inputs.device):
            network = self._network(model, split, inputs)
            with torch.no_grad():
                given = split.body(inputs.detach())
            (relevance, *_), logits = network.propagate(given, targets)
        return certframe.Attribution(split.as_map(relevance).float().sum(1), logits.float())

    def _network(self, model: certframe.Model, split: certframe.Split, inputs: Tensor) -> Network:
        """The model's network with rules; built again when the model has changed or moved."""
        state = certframe.weights_state(model.module)
        known = self._networks.get(model.module)
        if known is None or known[0] != state:
            known = state, self._build(split, inputs)
            self._networks[model.module] = known
            self._warn(known[1].conserved)
        return known[1]

    def _build(self, split: certframe.Split, inputs: Tensor) -> Network:
        o = self.options

        def given(rows: int) -> Sequence[Tensor]:
            pixels = torch.rand((rows, *inputs.shape[1:]), generator=torch.Generator().manual_seed(rows))
            with torch.no_grad():
                return split.body(pixels.to(inputs))

        try:
            return Network(split.head, given, composite(o.composite, o.epsilon, o.gamma), pixels=o.layer == "input",
                           box=o.box)
        except Unfit as reason:
            raise certframe.UsageError(f"lrp cannot be applied to this model: {reason}; take another method") from None

    def _warn(self, conserved: float) -> None:
        if abs(conserved - 1) > _CONSERVES:  # false for NaN
            warnings.warn(
                f"lrp with {self.options.composite} does not conserve relevance on this model: with all biases at 0, "
                f"what arrives at layer '{self.options.layer}' is {round(conserved, 2) + 0.0:.2f} of the logit; maps "
                "rank pixels, but do not add up; another composite or a smaller epsilon may conserve",
                UserWarning, stacklevel=4)
