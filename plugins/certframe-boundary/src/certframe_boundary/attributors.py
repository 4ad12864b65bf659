"""Attributions from the nearest point of the decision boundary."""

from __future__ import annotations

import copy
import warnings
import weakref
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field
from torch import Tensor, nn

import certframe
from certframe_boundary.gradients import logit_gradient, path_integral
from certframe_boundary.search import Adversarial, SearchOptions
from certframe_boundary.sharing import SEARCHES


class PointOptions(SearchOptions):
    """How x' is looked for, and where from."""

    around: Literal["copy", "image"] = Field(
        "copy", description="'copy': every noisy copy is searched around itself; 'image': the clean image is searched "
                            "around, once, and x' − x goes with every copy. That costs a fraction; the certificate is "
                            "then about the map with this way held fixed.")


class _AtBoundary:
    """What the methods share that look for the nearest point x' that is not given the class."""

    name: ClassVar[str]
    needs_gradients: ClassVar[bool] = True
    deterministic: ClassVar[bool] = True
    family: ClassVar[str] = "backpropagation"
    execution: ClassVar[frozenset[str]] = frozenset({"chunk"})

    held = "the way to the nearest boundary point"

    def __init__(self, options: PointOptions) -> None:
        self._search = options
        self._told: weakref.WeakSet[nn.Module] = weakref.WeakSet()
        self._way: Tensor | None = None

    @classmethod
    def conformance_options(cls, directory: Path) -> dict[str, Any]:
        """Little effort."""
        return {"steps": 8, "halvings": 4}

    def anchored(self, model: certframe.Model, image: Tensor, target: int) -> Self | None:
        """With ``around=image``, the method for the copies of this image (C,H,W): x' of a copy z is z + (x' − x).

        Args:
            model: the model.
            image: the clean image x.
            target: the class to explain.
        """
        if self._search.around == "copy":
            return None
        found = self.points(model, image[None], torch.tensor([target], device=image.device))
        method = copy.copy(self)
        method._way = found.images[0] - image
        return method

    def starts(self, model: certframe.Model, inputs: Tensor, targets: Tensor) -> Tensor:
        """The point x' of every row, found around it or, in a method that is anchored, at the end of the held way."""
        return self.points(model, inputs, targets).images if self._way is None else inputs.detach() + self._way

    def points(self, model: certframe.Model, inputs: Tensor, targets: Tensor) -> Adversarial:
        """The point x' of every row, and whether it is one; where none was found, x' is the last image that was tried.

        The first time that happens with a model, a warning says so.
        """
        found = SEARCHES.nearest(model, inputs, targets, self._search)
        missed = int((~found.success).sum())
        if missed and model.module not in self._told:
            self._told.add(model.module)
            warnings.warn(
                f"{self.name}: no point of another class was found for {missed} of {len(inputs)} inputs; their maps "
                "are made at the last image that was tried, which is no boundary point; more steps may find one, and "
                "the metric 'boundary' says for which images none is found (this is said once)",
                UserWarning, stacklevel=4)
        return found


class Bsm(_AtBoundary):
    """Boundary saliency: Σ over channels of |∂f_c/∂x| at x', the nearest point found that is not given the class.

    Every noisy copy is searched around itself, so the map is a function of the copy alone and a certificate is about
    the smoothed map as for any other method; with ``around=image`` the clean image is searched around, the way x' − x
    is held fixed for all copies, and the certificate is about the map with that way. Where the class does not hold the
    copy (or, then, the image), x' is the copy itself. x' is the nearest point that the search finds, not the nearest
    there is. The searches of `bsm`, `big` and `boundary-deeplift` with the same options are made once.

    Z. Wang, M. Fredrikson, A. Datta. Robust models are more interpretable because attributions look normal. ICML 2022.
    """

    class Options(PointOptions):
        """Options of `bsm`."""

    name = "bsm"

    def __init__(self, options: Options | None = None) -> None:
        self.options = options or self.Options()
        super().__init__(self.options)

    def attribute(self, model: certframe.Model, inputs: Tensor, targets: Tensor, *,
                  rng: certframe.Rng) -> certframe.Attribution:
        """(B,h,w) maps, all ≥ 0; the search, and one pass forward and backward.

        Raises:
            UsageError: the model has one class only, or its logits no gradient.
        """
        points = self.starts(model, inputs, targets)
        with certframe.full_precision(inputs.device):
            parts = [logit_gradient(model.module, x, c)[0].abs().sum(1) for x, c in zip(
                torch.split(points, self.options.chunk), torch.split(targets, self.options.chunk), strict=True)]
        return certframe.Attribution(torch.cat(parts))


class Big(_AtBoundary):
    """Boundary integrated gradients: (x − x') ⊙ ∫₀¹ ∇f_c(x' + a(x − x')) da, summed over channels, trapezoidal rule.

    x' is the nearest point found that is not given the class, so the baseline is an image that the model tells from x
    by as little as it can. The maps sum to f_c(x) − f_c(x'), up to the error of the rule. Where the class does not hold
    the copy, x' is the copy itself and the map is 0: no pixel is important. For the rest see `bsm`, which has the same
    source.
    """

    class Options(PointOptions):
        """Options of `big`."""

        points: int = Field(20, ge=2, description="Points of the trapezoidal rule, both ends included.")

    name = "big"

    def __init__(self, options: Options | None = None) -> None:
        self.options = options or self.Options()
        super().__init__(self.options)

    def attribute(self, model: certframe.Model, inputs: Tensor, targets: Tensor, *,
                  rng: certframe.Rng) -> certframe.Attribution:
        """(B,h,w) maps of either sign, and the logits; the search, and `points` passes forward and backward.

        Raises:
            UsageError: the model has one class only, or its logits no gradient.
        """
        o = self.options
        start = self.starts(model, inputs, targets)
        with certframe.full_precision(inputs.device):
            maps, logits = path_integral(model.module, start, inputs, targets, o.points, o.chunk)
        return certframe.Attribution(maps, logits)


class BoundaryDeepLift(_AtBoundary):
    """DeepLIFT (rescale rule) with x' as its reference, x' the nearest point found that is not given the class.

    The maps sum to f_c(x) − f_c(x'). Where the class does not hold the copy, x' is the copy itself and the map is 0.
    For the search see `bsm`, which has the same source; for the rule, `deeplift`.
    """

    class Options(PointOptions):
        """Options of `boundary-deeplift`."""

    name = "boundary-deeplift"

    def __init__(self, options: Options | None = None) -> None:
        self.options = options or self.Options()
        super().__init__(self.options)
        self._rule = certframe.default_registry().find("attributor", "deeplift").load()()

    def attribute(self, model: certframe.Model, inputs: Tensor, targets: Tensor, *,
                  rng: certframe.Rng) -> certframe.Attribution:
        """(B,h,w) maps of either sign, and the logits; the search, two passes forward and one backward.

        Raises:
            UsageError: the network calls something that has no rule, has one class only, or its logits no gradient.
        """
        start = self.starts(model, inputs, targets)
        parts = [self._rule.against(model, *rows) for rows in zip(
            *(torch.split(t, self.options.chunk) for t in (inputs, start, targets)), strict=True)]
        return certframe.Attribution(torch.cat([p.maps for p in parts]), torch.cat([p.logits for p in parts]))
