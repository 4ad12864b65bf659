"""Words and checks that the certifiers' statements share."""

from __future__ import annotations

from certframe.errors import UsageError
from certframe.tally import Tally


def smoothed_map(tally: Tally) -> str:
    """"the smoothed map of grad-cam for espresso"."""
    target = tally.identity.get("target_name", tally.identity.get("target", "the target class"))
    return f"the smoothed map of {tally.identity.get('attributor', 'the attribution')} for {target!s}"


def probability(alpha: float, tally: Tally) -> str:
    """"With probability at least 0.999 over the 100 noisy copies"."""
    return f"With probability at least {1.0 - alpha:.6g} over the {tally.samples} noisy copies"


def ball(radius: float, tally: Tally, tau: float | None = None) -> str:
    """"under every change of the image of l2 norm at most R = 0.1 in pixel units (σ = 0.15, τ = 0.75)"."""
    how = f"σ = {tally.sigma:g}" + (f", τ = {tau:g}" if tau is not None else "")
    return f"under every change of the image of l2 norm at most R = {radius:.4g} in pixel units ({how})"


def require_binary(name: str, tally: Tally) -> None:
    """Refuse real-valued levels.

    Raises:
        UsageError: the tally holds sums of real values, not counts.
    """
    if tally.unit != 1:
        raise UsageError(f"certifier '{name}' counts 0/1 levels, and this sparsifier's levels are real-valued: use a "
                         "binary one such as top-k")


def require_complete(name: str, tally: Tally) -> None:
    """Refuse counts of which an adaptive certifier has decided where they end: a test for a fixed n would be a peek.

    Raises:
        UsageError: fewer copies were drawn than were planned.
    """
    if tally.samples < tally.planned:
        raise UsageError(f"certifier '{name}' is for a number of copies that is fixed in advance, and these counts "
                         f"were stopped at {tally.samples} of {tally.planned} because of what was seen: use 'adaptive' "
                         f"or run with '{name}'")


def notes(tally: Tally) -> tuple[str, ...]:
    """Warnings that every certificate of the tally carries."""
    if not tally.counts.any():
        return ("no pixel was important in any copy: the attribution is constant, so everything is certified "
                "unimportant",)
    return ()
