"""Attributions from the nearest point of the decision boundary."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

import certframe
from certframe_boundary.gradients import gradient_of
from certframe_boundary.search import SearchOptions, nearest


class Bsm:
    """Boundary saliency: Σ over channels of |∂f_c/∂x| at x', the nearest point found that is not given the class.

    Every noisy copy is searched around itself, so the map is a function of the copy alone and a certificate is about
    the smoothed map as for any other method. Where the class does not hold the copy, x' is the copy itself.

    Z. Wang, M. Fredrikson, A. Datta. Robust models are more interpretable because attributions look normal. ICML 2022.
    """

    class Options(SearchOptions):
        """Options of `bsm`."""

    needs_gradients: ClassVar[bool] = True
    deterministic: ClassVar[bool] = True
    execution: ClassVar[frozenset[str]] = frozenset({"chunk"})

    def __init__(self, options: Options | None = None) -> None:
        self.options = options or self.Options()

    @classmethod
    def conformance_options(cls, directory: Path) -> dict[str, Any]:
        """Little effort."""
        return {"steps": 4, "halvings": 4}

    def attribute(self, model: certframe.Model, inputs: Tensor, targets: Tensor, *,
                  rng: certframe.Rng) -> certframe.Attribution:
        """(B,h,w) maps, all ≥ 0; steps + halvings + 2 forward passes, and steps + 1 backward.

        Raises:
            UsageError: the model has one class only, or its logits no gradient.
        """
        found = nearest(model.module, inputs, targets, self.options)
        gradient, _ = gradient_of(model.module, found.images, targets)
        return certframe.Attribution(gradient.abs().sum(1))
