"""How much of the picture is certified."""

from __future__ import annotations

from collections.abc import Mapping

from certframe import protocols
from certframe.protocols import ABSTAIN, Explanation


class CertifiedRate:
    """Shares of certified important, certified unimportant and abstaining pixels, per level.

    For level K: ``certified1.K``, ``certified0.K``, ``abstain.K`` and ``certified.K``, the sum of the first two, each
    in [0, 1]; nothing for certificates that are not about labels. Source: Anani et al., *Pixel-level Certified
    Explanations via Randomized Smoothing*, ICML 2025.
    """

    class Options(protocols.Options):
        """`certified-rate` has no options."""

    requires: frozenset[str] = frozenset({"labels"})

    def __init__(self, options: Options | None = None) -> None:
        self.options = options or self.Options()

    def compute(self, explanation: Explanation) -> Mapping[str, float]:
        """The four shares of every level of the certificate."""
        result: dict[str, float] = {}
        for name, labels in zip(explanation.certificate.levels, explanation.certificate.labels, strict=True):
            one, zero = float((labels == 1).mean()), float((labels == 0).mean())
            result[f"certified1.{name}"] = one
            result[f"certified0.{name}"] = zero
            result[f"abstain.{name}"] = float((labels == ABSTAIN).mean())
            result[f"certified.{name}"] = one + zero
        return result
