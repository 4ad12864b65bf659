"""What the checks feed plugins with: a small model, noisy images, randomness, tallies and explanations.

All of it is deterministic, takes milliseconds to make and needs no file. Plugin authors may use it in tests of their
own.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image as pillow
from torch import Tensor, nn

from certframe.errors import UsageError
from certframe.noise import CopyRng
from certframe.protocols import ABSTAIN, Certificate, Explanation, Model, Split
from certframe.statistics.binomial import smoothing_radius
from certframe.statistics.corrections import bonferroni_threshold
from certframe.tally import REAL_UNIT, Tally

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["TinyModel", "explanation", "noisy_images", "rng", "tally", "tiny_model"]


class TinyModel:
    """A convolutional classifier of a few hundred weights, with what real ones have: BatchNorm and in-place ReLUs.

    Its normalisation is inside, as the protocol demands; its last feature map has half the resolution of the image.

    Args:
        input_size: C, H, W.
        classes: number of classes.
        seed: of the weights.
    """

    def __init__(self, input_size: tuple[int, int, int] = (3, 16, 16), classes: int = 4, seed: int = 0) -> None:
        self.input_size = input_size
        self.classes: Sequence[str] = tuple(f"class {i}" for i in range(classes))
        self.module: nn.Sequential = _network(input_size, classes, seed)

    def preprocess(self, image: Image) -> Tensor:
        """Resize a picture; (C,H,W) float32 in [0, 1]."""
        channels, height, width = self.input_size
        small = image.convert("L" if channels == 1 else "RGB").resize((width, height), pillow.Resampling.BILINEAR)
        return torch.from_numpy(np.asarray(small, dtype=np.float32) / 255).reshape(height, width, -1).permute(2, 0, 1)

    def at(self, layer: str) -> Split:
        """Cut at "input", "final" or a layer's name."""
        names = list(dict(self.module.named_children()))
        if layer == "input":
            return Split(lambda x: (x,), self.module, lambda a: a)
        layer = "relu2" if layer == "final" else layer
        if layer not in names:
            raise UsageError(f"unknown layer {layer!r}: this model has input, final, {', '.join(names)}")
        cut = names.index(layer) + 1
        body, head = self.module[:cut], self.module[cut:]
        # The layer after the cut may work in place, and the caller's activation must not change under its hands.
        return Split(lambda x: (body(x),), lambda a: head(a.clone()), lambda a: a)


def tiny_model(input_size: tuple[int, int, int] = (3, 16, 16), classes: int = 4, seed: int = 0) -> Model:
    """A new `TinyModel`; the same arguments give the same weights."""
    return TinyModel(input_size, classes, seed)


def _network(input_size: tuple[int, int, int], classes: int, seed: int) -> nn.Sequential:
    channels = input_size[0]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        normalise = nn.BatchNorm2d(channels, affine=False)  # (x − mean) / std as a standard layer
        normalise.running_mean, normalise.running_var = torch.full((channels,), 0.45), torch.full((channels,), 0.06)
        module = nn.Sequential(OrderedDict(
            normalise=normalise,
            conv1=nn.Conv2d(channels, 6, 3, padding=1, bias=False), norm1=nn.BatchNorm2d(6),
            relu1=nn.ReLU(inplace=True),
            conv2=nn.Conv2d(6, 8, 3, stride=2, padding=1, bias=False), norm2=nn.BatchNorm2d(8),
            relu2=nn.ReLU(inplace=True), pool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(),
            classifier=nn.Linear(8, classes)))
        for name in ("norm1", "norm2"):
            norm = module.get_submodule(name)
            nn.init.uniform_(norm.weight, 0.5, 1.5)  # type: ignore[arg-type]
            nn.init.uniform_(norm.bias, -0.5, 0.5)  # type: ignore[arg-type]
        nn.init.normal_(module.get_submodule("classifier").weight, std=1.0)  # type: ignore[arg-type]
        _settle(module, torch.rand(64, *input_size))
    return module.eval().requires_grad_(False)


@torch.no_grad()
def _settle(module: nn.Sequential, images: Tensor) -> None:
    """Give the batch norms the statistics of some images, as training would have."""
    for name, layer in module.named_children():
        if name.startswith("norm") and isinstance(layer, nn.BatchNorm2d) and name != "normalise":
            layer.running_mean, layer.running_var = images.mean(dim=(0, 2, 3)), images.var(dim=(0, 2, 3))
        images = layer.eval()(images)


def noisy_images(model: Model, count: int, *, sigma: float = 0.15, seed: int = 0) -> Tensor:
    """(count, C,H,W) float32: different images with noise, so partly outside [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    _, height, width = model.input_size
    grid_y, grid_x = torch.meshgrid(torch.linspace(0, 3, height), torch.linspace(0, 5, width), indexing="ij")
    phases = 6.0 * torch.rand(count, model.input_size[0], 1, 1, generator=generator)
    clean = 0.5 + 0.4 * torch.sin(grid_x + 2 * grid_y + phases)
    return clean + sigma * torch.randn(clean.shape, generator=generator)


def rng(copies: Sequence[int], *, seed: int = 0, device: torch.device | str = "cpu") -> CopyRng:
    """The randomness that the kernel gives an attributor for these copies of an image."""
    return CopyRng(seed, "0" * 64, "conformance", copies, device)


def tally(draws: np.ndarray, *, sigma: float = 0.25, cuts: Sequence[int] = (), planned: int = 0,
          nested: bool = False, votes: np.ndarray | None = None) -> Tally:
    """The tally of given levels.

    Args:
        draws: (n,L,h,w), bool for 0/1 levels or float in [0, 1]: what the sparsifier gave for each noisy copy.
        sigma: standard deviation of the noise.
        cuts: numbers of copies at which the counts are kept apart.
        planned: the number of copies that were to be drawn at most; by default n.
        nested: whether level l contains level l+1.
        votes: (n,) predicted class of each copy; by default class 1 of 4, always.
    """
    n, levels = draws.shape[:2]
    edges = [0, *(min(cut, n) for cut in cuts), n]
    unit = 1 if draws.dtype == np.bool_ else REAL_UNIT
    whole = draws.astype(np.int64) if unit == 1 else np.rint(draws * unit).astype(np.int64)
    winners = np.ones(n, dtype=np.int64) if votes is None else votes
    pieces = list(pairwise(edges))
    return Tally(
        segments=np.stack([whole[a:b].sum(axis=0) for a, b in pieces]), copies=((0, n),),
        levels=tuple(f"{100 / 2 ** (level + 1):g}" for level in range(levels)), sigma=sigma, cuts=tuple(cuts),
        planned=planned or n, nested=nested, unit=unit,
        votes=np.stack([np.bincount(winners[a:b], minlength=4) for a, b in pieces]),
        identity={"image": "0" * 64, "noise": "gaussian", "target": 1, "target_name": "class 1",
                  "attributor": "conformance"})


def explanation(model: Model | None = None, *, extras: Mapping[str, Any] | None = None, samples: int = 100,
                tau: float = 0.75, alpha: float = 0.05, seed: int = 0) -> Explanation:
    """An image explained and certified: of its pixels some are certified important, some not, some abstain.

    Args:
        model: carried along, for metrics that require it.
        extras: what the data set knows about the image.
        samples: number of noisy copies.
        tau: probability that a label has to exceed.
        alpha: error of the certificate.
        seed: of map and counts.
    """
    source = model or tiny_model()
    _, height, width = source.input_size
    generator = np.random.default_rng(seed)
    scores = generator.normal(size=(height, width)).astype(np.float32)
    order = scores.ravel().argsort().argsort().reshape(scores.shape) / scores.size
    steepness = 40 * (order[None] - np.array([0.5, 0.75])[:, None, None])
    counts = tally(generator.random((samples, 2, height, width)) < 1 / (1 + np.exp(-steepness)))
    image = noisy_images(source, 1, sigma=0.0)[0].clamp(0, 1)
    return Explanation(
        name="conformance", image=image, target=1, target_name=source.classes[1], confidence=0.7,
        map=torch.from_numpy(scores), tally=counts, certificate=_certify(counts, tau, alpha), label=1, model=model,
        extras=dict(extras or {}))


def _certify(counts: Tally, tau: float, alpha: float) -> Certificate:
    needed = bonferroni_threshold(counts.samples, tau, alpha, counts.pixels)
    labels = np.full(counts.counts.shape, ABSTAIN, dtype=np.int8)
    labels[counts.counts >= needed] = 1
    labels[counts.samples - counts.counts >= needed] = 0
    return Certificate(
        certifier="conformance", options={"tau": tau, "alpha": alpha}, subject="pixel-label", norm="l2",
        radius=smoothing_radius(counts.sigma, tau), confidence=1 - alpha, family=counts.pixels, function="smoothed",
        method="statistical", samples=counts.samples, sigma=counts.sigma, levels=counts.levels, labels=labels,
        statement="The certified pixels keep their label within the radius.")
