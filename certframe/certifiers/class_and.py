"""The predicted class together with the explanation."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from pydantic import Field

from certframe import protocols
from certframe.config import resolve_component
from certframe.errors import UsageError
from certframe.protocols import Certificate, Certifier, Schedule
from certframe.statistics.binomial import smoothing_radius, two_sided_p_values
from certframe.tally import Tally


class ClassAnd:
    """Certifies that the smoothed classifier keeps predicting the explained class, jointly with another certificate.

    The votes of the same noisy copies are used. The error α is split: `share` of it for the class, the rest for the
    certifier named by `joint`, so "the class *and* these pixels" hold together with probability 1 − α. The class is
    certified within σΦ⁻¹(τ) when its votes k have S_τ(k) + S_{1−τ}(k) ≤ α_class; for more than two classes the p-value
    is valid for τ ≤ (k − 1)/(n − 1), which is checked. If the class cannot be certified the pixels still can.
    """

    class Options(protocols.Options):
        """Options of `class`."""

        joint: str = Field("pixel", description="the certifier whose claim has to hold together with the class")
        tau: float = Field(0.75, ge=0.5, lt=1.0, description="probability to exceed, for the class and in `joint`")
        alpha: float = Field(0.001, gt=0.0, lt=1.0, description="probability of any wrong claim, class or other")
        share: float = Field(0.5, gt=0.0, lt=1.0, description="part of alpha that the class may use")

    def __init__(self, options: Options | None = None) -> None:
        self.options = o = options or self.Options()
        if o.joint == "class":
            raise UsageError("certifier 'class' cannot be joint with itself: name another, such as pixel")
        given: dict[str, Any] = {"name": o.joint, "alpha": o.alpha * (1.0 - o.share), "tau": o.tau}
        try:
            component = resolve_component("certifier", given)
        except UsageError:  # a certifier without τ, such as radius
            component = resolve_component("certifier", {k: v for k, v in given.items() if k != "tau"})
        self._inner: Certifier = component.build()
        self.cuts = tuple(self._inner.cuts)

    def looks(self, samples: int) -> Schedule | None:
        """Those of the joint certifier, which must have none: the class is tested once."""
        if self._inner.looks(samples) is not None:
            raise UsageError(f"certifier 'class' tests the class once and cannot be joint with '{self.options.joint}', "
                             "which looks several times: use pixel, radius or importance-band")
        return None

    def min_samples(self, pixels: int, levels: int) -> int:
        """The number of copies that the joint certifier needs."""
        return self._inner.min_samples(pixels, levels)

    def evidence(self, tally: Tally) -> tuple[np.ndarray, np.ndarray]:
        """Those of the joint certifier."""
        return self._slider().evidence(tally)  # type: ignore[no-any-return]

    def vote_thresholds(self, tally: Tally, tau: float) -> np.ndarray:
        """Those of the joint certifier."""
        return self._slider().vote_thresholds(tally, tau)  # type: ignore[no-any-return]

    def _slider(self) -> Any:
        return self._inner

    def certify(self, tally: Tally) -> Certificate:
        """The joint certifier's certificate, with the class added.

        ``arrays["class"]`` is ``[class, votes, certified]``.

        Raises:
            UsageError: the attributor computes no logits, so there are no class votes.
        """
        o, votes = self.options, tally.class_votes
        if votes is None:
            raise UsageError(f"attributor '{tally.identity.get('attributor', '?')}' computes no logits, so no class "
                             "was voted for: use one that does, or the certifier by itself")
        inner, target = self._inner.certify(tally), int(tally.identity["target"])
        k, n = int(votes[target]), tally.samples
        certified = (2 * k > n + 1 and float(two_sided_p_values(n, o.tau)[k]) <= o.alpha * o.share
                     and o.tau <= (k - 1) / max(n - 1, 1))
        radius = smoothing_radius(tally.sigma, o.tau)
        name = tally.identity.get("target_name", target)
        claim = (f"and, jointly with it, the smoothed classifier predicts {name} ({k} of {n} votes) within R = "
                 f"{radius:.4g}, both with probability at least {1.0 - o.alpha:.6g}" if certified else
                 f"the class {name} is not certified ({k} of {n} votes)")
        return replace(
            inner, certifier="class", options=o.model_dump(mode="json"), confidence=1.0 - o.alpha,
            family=inner.family + 1, arrays={**inner.arrays, "class": np.array([target, k, int(certified)])},
            statement=f"{inner.statement.rstrip('.')}; {claim}.")
