"""Which rule where: the composites of zennit, under its names for them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from certframe_zennit import rules
from certframe_zennit.rules import Rule

Name = Literal["epsilon-plus-box", "epsilon-plus-flat", "epsilon-gamma-box", "epsilon-alpha2-beta1",
               "epsilon-alpha2-beta1-flat", "excitation-backprop"]


@dataclass(frozen=True)
class Composite:
    """An assignment of rules.

    Attributes:
        convolution: the rule of convolutions.
        dense: the rule of dense layers; None for the ε-rule.
        first: the rule of layers that see the pixels, instead: ``"box"``, ``"flat"``, or "" for none of their own.
        epsilon: ε of the ε-rule.
    """

    convolution: Rule
    dense: Rule | None = None
    first: Literal["", "box", "flat"] = ""
    epsilon: float = 1e-6

    @property
    def first_rule(self) -> Rule | None:
        """What `first` names."""
        table: dict[str, Rule] = {"box": rules.box, "flat": rules.flat}
        return table.get(self.first)


def composite(name: Name, epsilon: float, gamma: float) -> Composite:
    """The composite of that name, with ε for the ε-rule and γ for the γ-rule."""
    if name == "epsilon-plus-box":
        return Composite(rules.z_plus(), None, "box", epsilon)
    if name == "epsilon-plus-flat":
        return Composite(rules.z_plus(), None, "flat", epsilon)
    if name == "epsilon-gamma-box":
        return Composite(rules.gamma(gamma), None, "box", epsilon)
    if name == "excitation-backprop":
        return Composite(rules.z_plus(), rules.z_plus(), "", epsilon)
    return Composite(rules.alpha_beta(2.0), None, "flat" if name.endswith("flat") else "", epsilon)
