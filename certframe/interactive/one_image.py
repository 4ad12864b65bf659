"""``certframe.certify``: one image, one method, in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any

from certframe.config import Component, resolve_component
from certframe.device import resolve_device, weights_hash
from certframe.errors import UsageError
from certframe.images import as_image
from certframe.protocols import Certifier, Explanation, Model, Sample
from certframe.proving import prove
from certframe.registry import Registry
from certframe.sampling import Cell, Sampler, Subject
from certframe.tally import Tally
from certframe.torch_model import TorchModel
from certframe.worker import choose_target, cuts_of, guard, to_pixels

if TYPE_CHECKING:
    import numpy as np
    import torch
    from matplotlib.figure import Figure
    from PIL.Image import Image
    from torch import Tensor, nn


@dataclass(frozen=True)
class CertifiedExplanation(Explanation):
    """An explanation that shows itself in a notebook."""

    def plot(self) -> Figure:
        """A matplotlib figure: the image, the clean attribution, the certified map of each level.

        Raises:
            UsageError: matplotlib is not installed.
        """
        from certframe.report.figure import figure
        return figure(self)

    def _repr_html_(self) -> str:
        from certframe.report.figure import snippet
        return snippet(self)

    def __repr__(self) -> str:
        """The claim, in a sentence."""
        return f"<{type(self).__name__} of {self.name!r} as {self.target_name!r}: {self.certificate.statement}>"


def certify(
    model: str | Model | nn.Module,
    image: str | Path | Image | np.ndarray | Tensor,
    *,
    attributor: str = "grad-cam",
    sparsifier: str = "top-k",
    certifier: str = "pixel",
    k: float | Sequence[float] | None = None,
    sigma: float = 0.15,
    samples: int = 100,
    tau: float | None = None,
    alpha: float | None = None,
    target: int | None = None,
    seed: int = 0,
    batch_size: int = 32,
    resolution: str = "input",
    device: str | torch.device | None = None,
    options: Mapping[str, Any] | None = None,
    registry: Registry | None = None,
) -> CertifiedExplanation:
    """Explain one image and certify the explanation.

    Args:
        model: a registered name such as ``"lite0"`` or ``"timm:resnet18"``, a `certframe.Model`, or a torch module from
            (B,C,H,W) in [0, 1] to logits, with its normalisation inside; wrap other modules in `certframe.TorchModel`.
        image: a picture (path, PIL image, uint8 array H×W×C) or pixels in [0, 1] (tensor C×H×W of the model's size).
        attributor: attribution method, as ``name`` or ``name:argument``.
        sparsifier: what is counted.
        certifier: how counts become a proof.
        k: percent of the pixels that count as important, one or several; short for ``sparsifier.k``.
        sigma: standard deviation of the noise, in pixel units.
        samples: number of noisy copies.
        tau: probability that a label has to exceed; short for ``certifier.tau``.
        alpha: probability of any wrong claim; short for ``certifier.alpha``.
        target: class to explain; by default the one predicted for the clean image.
        seed: seed of all randomness.
        batch_size: noisy copies in one pass of the model; changes no result.
        resolution: ``"input"`` upsamples maps bilinearly to the image's size before counting, so that the claims are
            about pixels; ``"native"`` certifies the cells of a feature map: fewer tests, so more power.
        device: where to work; by default where a given module is, else the best device there is.
        options: further options, such as ``{"attributor.layer": "final"}``.
        registry: where names are looked up.

    Returns:
        The explanation with its tally and certificate. With probability at least 1 − α over the noise the certificate's
        statement is true.

    Raises:
        UsageError: something asked for is wrong; in one line.

    Examples:
        >>> import certframe
        >>> result = certframe.certify("lite0", "coffee.png", attributor="grad-cam", sigma=0.15)    # doctest: +SKIP
        >>> result.plot().savefig("coffee-certified.png")                                           # doctest: +SKIP
    """
    if not sigma > 0:
        raise UsageError(f"sigma = {sigma}: the noise needs a positive standard deviation")
    if resolution not in ("input", "native"):
        raise UsageError(f"resolution {resolution!r}: choose input or native")
    short = {"sparsifier.k": k, "certifier.tau": tau, "certifier.alpha": alpha}
    given = {**{name: value for name, value in short.items() if value is not None}, **(options or {})}
    chosen = {kind: _component(kind, name, given, registry) for kind, name in
              (("attributor", attributor), ("sparsifier", sparsifier), ("certifier", certifier))}
    _refuse_other_kinds(given, {*chosen, "model"})
    picture = as_image(image)
    wrapped, place = _model(model, picture, device, given, registry)
    sample = Sample(Path(image).stem if isinstance(image, str | Path) else "image", picture, target)
    pixels = to_pixels(wrapped, sample).to(place)
    klass, confidence = choose_target(wrapped, sample, pixels)
    prover: Certifier = chosen["certifier"].build(registry)
    sampler = Sampler(
        wrapped, chosen["sparsifier"].build(registry), seed=seed, batch_size=batch_size,
        cuts=cuts_of([prover], samples), planned=samples, upsample=resolution == "input",
        identity={"weights": weights_hash(wrapped.module), "sparsifier": chosen["sparsifier"].fingerprint})
    subject = Subject.of(sample.name, pixels, klass, str(wrapped.classes[klass]))
    cell = Cell("cell", chosen["attributor"].name, chosen["attributor"].build(registry),
                chosen["attributor"].fingerprint, sigma)
    clean = guard(chosen["attributor"], lambda: sampler.clean(subject, cell))
    needed = prover.min_samples(clean.numel(), len(sampler.sparsifier.levels))
    if samples < needed:
        raise UsageError(f"samples = {samples} cannot certify anything: '{certifier}' needs at least {needed} for a "
                         f"map of {clean.shape[0]}×{clean.shape[1]}")
    tally = guard(chosen["attributor"], lambda: _count(sampler, subject, cell, samples, prover))
    return CertifiedExplanation(
        name=sample.name, image=pixels.cpu(), target=klass, target_name=subject.target_name, confidence=confidence,
        map=clean, tally=tally, certificate=prove(prover, tally), label=target, model=wrapped)


def _count(sampler: Sampler, subject: Subject, cell: Cell, samples: int, prover: Certifier) -> Tally:
    """All copies, or as many as an adaptive certifier wants to see."""
    schedule = prover.looks(samples)
    stops = sorted({n for n in (schedule.looks if schedule else ()) if n < samples} | {samples})
    parts: list[Tally] = []
    for start, stop in zip([0, *stops], stops, strict=False):
        parts.append(sampler.sample(subject, [cell], start, stop)[cell.key])
        total = reduce(Tally.merge, parts)
        if schedule and stop in schedule.looks and schedule.done(total)[0]:
            break
    return total


def _component(kind: str, name: str, given: Mapping[str, Any], registry: Registry | None) -> Component:
    inline = {key.removeprefix(f"{kind}."): value for key, value in given.items() if key.startswith(f"{kind}.")}
    return resolve_component(kind, {"name": name, **inline}, registry=registry)


def _refuse_other_kinds(given: Mapping[str, Any], kinds: set[str]) -> None:
    for key in given:
        if key.partition(".")[0] not in kinds or "." not in key:
            raise UsageError(f"option {key!r} is not of the form kind.option with a kind of {', '.join(sorted(kinds))}")


def _model(model: str | Model | nn.Module, picture: Any, device: Any, given: Mapping[str, Any],
           registry: Registry | None) -> tuple[Model, torch.device]:
    """The model as a `Model`, on its device; a module that is given stays as and where it is."""
    import torch
    wrapped: Model
    if isinstance(model, str):
        wrapped = _component("model", model, given, registry).build(registry)
        place = resolve_device(str(device or "auto"))
    else:
        if isinstance(model, torch.nn.Module):
            size = (*picture.shape,) if isinstance(picture, torch.Tensor) else (3, 224, 224)
            wrapped = TorchModel(model, size)
        else:
            wrapped = model
        parameter = next(wrapped.module.parameters(), torch.empty(0))
        place = parameter.device if device is None else resolve_device(str(device))
    wrapped.module.to(place)
    return wrapped, place
