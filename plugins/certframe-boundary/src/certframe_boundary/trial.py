"""One attack on one explanation, from a sample to what is to be said of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import certframe
from certframe_boundary.explained import Explained, Variant, class_of, differentiable
from certframe_boundary.explanation_attack import AttackOptions, attack, mean_map, overlap
from certframe_boundary.search.balls import into_ball, size
from certframe_boundary.softplus import Softened


@dataclass(frozen=True)
class Trial:
    """What came of it.

    Attributes:
        image: (C,H,W), with `moved`, the attacked one, and `before` and `after`, the maps (h,w) of the model itself.
        target: the explained class, by name, and `prediction`, the one that the attack keeps.
        distance: norm of the change, in pixel units.
        overlap: R(x, x̃, K), with `random`, that of a random change of the same norm.
        found: whether there was a start of the same class.
        notes: what a reader should know.
    """

    name: str
    image: Tensor
    moved: Tensor
    before: Tensor
    after: Tensor
    target: str
    prediction: str
    distance: float
    overlap: float
    random: float
    found: bool
    notes: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """All of it but pictures and maps."""
        return {"name": self.name, "target": self.target, "prediction": self.prediction, "found": self.found,
                "distance": self.distance, "overlap": self.overlap, "overlap_of_random_change": self.random,
                "notes": list(self.notes)}


@dataclass(frozen=True)
class Setting:
    """What is attacked: model, method and variant of its maps; see `Explained` and `Softened`."""

    model: certframe.Model
    attributor: certframe.Attributor
    label: str
    variant: Variant
    ranking: str
    sigma: float
    copies: int
    measured: int
    beta: float


def pixels_of(model: certframe.Model, sample: certframe.Sample) -> Tensor:
    """The sample as the model takes it, (C,H,W) in [0, 1].

    Raises:
        UsageError: a tensor of another size, or with values outside of [0, 1].
    """
    if not isinstance(sample.image, Tensor):
        return model.preprocess(sample.image)
    image = sample.image.float()
    if tuple(image.shape) != tuple(model.input_size):
        raise certframe.UsageError(f"image '{sample.name}' has shape {tuple(image.shape)} and the model takes "
                                   f"{tuple(model.input_size)}: give a picture, or a data set of that size")
    if not (float(image.min()) >= 0 and float(image.max()) <= 1):
        raise certframe.UsageError(f"image '{sample.name}' has values outside of [0, 1]")
    return image


def refuse_without_gradient(setting: Setting, device: torch.device) -> None:
    """Before any work: is there anything to follow?

    Raises:
        UsageError: the maps of the method have no gradient.
    """
    middle = torch.full(setting.model.input_size, 0.5, device=device)
    maps = Explained(Softened(setting.model, setting.beta), setting.attributor,
                     torch.zeros(1, dtype=torch.int64, device=device))
    if not differentiable(maps, middle):
        raise certframe.UsageError(
            f"the maps of '{setting.label}' have no gradient with respect to the picture, so they cannot be attacked "
            "by gradients: take one such as gradient, integrated-gradients or grad-cam")


def attempt(setting: Setting, sample: certframe.Sample, options: AttackOptions, device: torch.device) -> Trial:
    """Attack the explanation of one image.

    Raises:
        UsageError: the image cannot be given to the model, or its label is no class of it.
    """
    model, predict = setting.model, class_of(setting.model)
    x = pixels_of(model, sample).to(device)[None]
    prediction = int(predict(x))
    target = prediction if sample.label is None else sample.label
    if not 0 <= target < len(model.classes):
        raise certframe.UsageError(f"image '{sample.name}' has label {target}, and the model has {len(model.classes)} "
                                   "classes: correct the label, or leave it out to explain the prediction")
    notes = []
    if target != prediction:
        notes.append(f"the model takes the image for {model.classes[prediction]}, not {model.classes[target]}: the "
                     f"explanation of {model.classes[target]} was attacked, and {model.classes[prediction]} kept")
    if options.rho == 0:
        notes.append("ρ = 0 allows no change: the image was left as it is")
    targets = torch.tensor([target], device=device)
    common = {"ranking": setting.ranking, "variant": setting.variant, "sigma": setting.sigma, "tau": options.k / 100}
    result = attack(Explained(Softened(model, setting.beta), setting.attributor, targets, samples=setting.copies,
                              seed=options.seed, **common), predict, x, options)  # type: ignore[arg-type]
    if not bool(result.found):
        notes.append(f"none of {options.tries} random changes of norm {options.rho:g} keeps the class "
                     f"{model.classes[prediction]}: the attack has no start, and the image was left as it is")
    measure = Explained(model, setting.attributor, targets, samples=setting.measured, seed=options.seed + 1,
                        **common)  # type: ignore[arg-type]
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(options.seed)).to(x)
    noise = into_ball(noise * 1e6, result.distance, options.norm)
    before, after, random = (mean_map(measure, z, options.chunk) for z in (x, result.images, (x + noise).clamp(0, 1)))
    if not float(before.abs().max()) > 0:
        notes.append("the map is 0 everywhere: there is no most important pixel to speak of")
    shape = _shape(setting, x, targets)
    return Trial(sample.name, x[0], result.images[0], before.view(shape), after.view(shape), str(model.classes[target]),
                 str(model.classes[prediction]), float(size(result.images - x, options.norm)),
                 float(overlap(before, after, options.k)), float(overlap(before, random, options.k)),
                 bool(result.found), tuple(notes))


def _shape(setting: Setting, x: Tensor, targets: Tensor) -> tuple[int, int]:
    rng = certframe.CopyRng(0, "", "attack", [0], x.device)
    height, width = setting.attributor.attribute(setting.model, x, targets, rng=rng).maps.shape[1:]
    return height, width
