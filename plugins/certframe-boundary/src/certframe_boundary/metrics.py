"""How far the boundary is, and how much gradients at the image look like those at the boundary."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from pydantic import Field
from torch import Tensor

import certframe
from certframe_boundary.agi import Agi
from certframe_boundary.gradients import logit_gradient, path_integral
from certframe_boundary.search import SearchOptions
from certframe_boundary.sharing import SEARCHES


def _placed(explanation: certframe.Explanation) -> tuple[certframe.Model, Tensor, Tensor]:
    """The model, and a batch of the image and its class where the model is."""
    model = explanation.model
    assert model is not None
    tensors = (*model.module.parameters(), *model.module.buffers())
    device = tensors[0].device if tensors else torch.device("cpu")
    return model, explanation.image[None].to(device), torch.tensor([explanation.target], device=device)


class Boundary:
    """The nearest point found that is not given the class, from the clean image.

    ``boundary.found`` is 1 where there is one; its mean over images is the success rate of the search.
    ``boundary.distance`` is its distance in pixel units, or, where none was found, that of the last image tried.
    ``boundary.held`` is 0 where the class does not hold the image (the explained class is not the predicted one): then
    the image is its own nearest point and boundary attributions are about nothing.

    Says something of model and search, nothing of the map. Source: Wang, Fredrikson, Datta, "Robust Models Are More
    Interpretable Because Attributions Look Normal", ICML 2022.
    """

    class Options(SearchOptions):
        """Options of `boundary`."""

    requires = frozenset({"model"})
    of_map = True
    execution = frozenset({"chunk"})

    def __init__(self, options: Options | None = None) -> None:
        self.options = options or self.Options()

    @classmethod
    def conformance_options(cls, directory: Path) -> dict[str, Any]:
        """Little effort."""
        return {"steps": 8, "halvings": 4}

    def compute(self, explanation: certframe.Explanation) -> Mapping[str, float]:
        """Three numbers; the search, unless the attributor has made it with the same options."""
        found = SEARCHES.nearest(*_placed(explanation), self.options)
        success, distance = bool(found.success), float(found.distance)
        return {"boundary.found": float(success), "boundary.distance": distance,
                "boundary.held": float(not success or distance > 0)}


class Alignment:
    """How much attributions at the image look like those at the boundary: distances between maps of the clean image.

    ``alignment.sm-bsm`` = ‖SM − BSM‖₂, SM = `gradient`, BSM = `bsm`; ``alignment.ig-big`` = ‖IG − BIG‖₂, IG =
    `integrated-gradients` from a constant image, BIG = `big`; ``alignment.ig-agi`` = ‖IG − AGI‖₂, AGI = `agi`.
    ``alignment.unit.…`` are the same between maps of norm 1: 0 for the same map up to a factor, √2 for maps that have
    nothing in common. A map that is 0 everywhere stays 0. ``alignment.found`` is 0 where no boundary point was found
    and BSM and BIG are made at the last image tried.

    Says something of the model, nothing of the map that is explained. Source: Wang, Fredrikson, Datta, "Robust Models
    Are More Interpretable Because Attributions Look Normal", ICML 2022.
    """

    class Options(SearchOptions):
        """Options of `alignment`."""

        points: int = Field(20, ge=2, description="Points of the paths of IG and BIG.")
        baseline: float = Field(0.0, description="Value of every pixel of the image at which the path of IG begins.")
        agi_classes: int = Field(15, ge=1, description="Option `classes` of `agi`.")
        agi_steps: int = Field(20, ge=1, description="Option `steps` of `agi`.")

    requires = frozenset({"model"})
    of_map = True
    execution = frozenset({"chunk"})

    def __init__(self, options: Options | None = None) -> None:
        self.options = options or self.Options()

    @classmethod
    def conformance_options(cls, directory: Path) -> dict[str, Any]:
        """Little effort."""
        return {"steps": 8, "halvings": 4, "points": 3, "agi_classes": 2, "agi_steps": 3}

    def compute(self, explanation: certframe.Explanation) -> Mapping[str, float]:
        """Seven numbers; the search, and 2 · points + 2 passes beside those of `agi`."""
        o, (model, image, target) = self.options, _placed(explanation)
        found = SEARCHES.nearest(model, image, target, o)
        function = model.module
        agi = Agi(Agi.Options(classes=o.agi_classes, steps=o.agi_steps, bounds=o.bounds, chunk=o.chunk))
        with certframe.full_precision(image.device):
            sm, bsm = (logit_gradient(function, z, target)[0].abs().sum(1) for z in (image, found.images))
            ig, big = (path_integral(function, z, image, target, o.points, o.chunk)[0]
                       for z in (torch.full_like(image, o.baseline), found.images))
        pairs = {"sm-bsm": (sm, bsm), "ig-big": (ig, big),
                 "ig-agi": (ig, agi.attribute(model, image, target, rng=cast("Any", None)).maps)}  # it draws nothing
        return {**{f"alignment.{name}": apart(a, b) for name, (a, b) in pairs.items()},
                **{f"alignment.unit.{name}": apart(unit(a), unit(b)) for name, (a, b) in pairs.items()},
                "alignment.found": float(found.success)}


def apart(a: Tensor, b: Tensor) -> float:
    """‖a − b‖₂ over all values."""
    return float((a.double() - b.double()).norm())


def unit(attribution: Tensor) -> Tensor:
    """The map with norm 1; 0 stays 0."""
    length = attribution.double().norm()
    return attribution.double() / torch.where(length > 0, length, 1)
