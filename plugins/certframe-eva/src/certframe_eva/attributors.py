"""EVA: the cells of an image whose perturbation brings other classes closest, by verified bounds."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

import certframe
from certframe_eva.grid import cells, grid_size
from certframe_eva.network import Network
from certframe_eva.overlap import overlap
from certframe_eva.regions import Region

Method = Literal["ibp", "forward", "backward", "ibp+forward", "ibp+backward", "forward+backward",
                 "ibp+forward+backward"]


class _Options(certframe.Options):
    """What all variants have in common."""

    grid: int = Field(12, ge=1, description="Cells along each side; at most one for each pixel.")
    eps: float = Field(0.5, gt=0, allow_inf_nan=False,
                       description="Radius ε of the ball of perturbations, in pixel units.")
    p: Literal[1, 2, "inf"] = Field(2, description="Norm of the ball: 1, 2 or inf.")
    method: Method = Field("ibp+forward+backward", description="How logits are bounded: ibp, forward, backward, or an "
                                                               "intersection of them.")
    margin: Literal["separate", "joint"] = Field(
        "separate", description="'separate': upper bound of f_c' minus lower bound of f_c, as published; 'joint': "
                                "bound of the difference, tighter.")
    precision: Literal["float64", "float32"] = Field(
        "float64", description="Arithmetic of the bounds. A map is a difference of nearly equal bounds: float32 is "
                               "faster, and loses what cells of little importance differ in.")


class _Verified(_Options):
    """Options of the variants that bound the whole model."""

    clip: bool = Field(False, description="Keep perturbed pixels within [0, 1] as far as the image is; tighter.")
    relaxation: Literal["shared", "own"] = Field(
        "shared", description="'shared': neurons inside the network are bounded with one linear relaxation for all "
                              "cells; 'own': every cell is bounded as if alone, tighter and many times slower.")
    steps: int = Field(0, ge=0, description="Gradient steps on the lower slopes of unstable rectifiers (α-CROWN), for "
                                            "methods with 'backward'.")
    chunk: int = Field(256, ge=1, description="How many cells' bounds are computed at a time; changes no result.")


class _Networks:
    """Graphs of the models that an instance has met; one is read again when weights have changed."""

    def __init__(self, precision: str) -> None:
        self._dtype = getattr(torch, precision)
        self._known: weakref.WeakKeyDictionary[Any, tuple[Any, Network]] = weakref.WeakKeyDictionary()

    def of(self, model: certframe.Model, function: Callable[[Tensor], Tensor], inputs: Tensor) -> Network:
        """The graph of the model's module, or of a part of it that takes such inputs."""
        module = model.module
        state = tuple((id(t), t._version, t.device, t.dtype) for t in (*module.parameters(), *module.buffers()))
        known = self._known.get(function)
        if known is None or known[0] != state:
            network = Network.of(function, _two(inputs), leaf_modules=getattr(model, "leaf_modules", ()),
                                 leaf_functions=getattr(model, "leaf_functions", ()))
            known = self._known[function] = (state, network.to(self._dtype))
        return known[1]


def _two(inputs: Tensor) -> Tensor:
    """Two different inputs like those that are given."""
    return torch.cat([inputs[:1], inputs[:1].flip(-1) * 0.5 + 0.1])



class Eva:
    """EVA(x, u) = F(B) − F(B_u): how much less other classes can come ahead when cell u is not perturbed.

    F(B) bounds max over c' ≠ c of f_{c'} − f_c over all perturbations δ of the ball B from above; B_u is the ball with
    δ = 0 on cell u. The bounds are verified, but the map is not a certificate: it is a difference of two bounds. The
    map has a value for every cell; with ``resolution=native`` cells are what is counted and certified, else the kernel
    enlarges the map bilinearly. Every noisy copy is explained around itself.

    T. Fel, M. Ducoffe, D. Vigouroux, R. Cadène, M. Capelle, C. Nicodème, T. Serre. Don't lie to me! Robust and
    efficient explainability with verified perturbation analysis. CVPR 2023.
    """

    class Options(_Verified):
        """Options of `eva`."""

    needs_gradients: ClassVar[bool] = False
    deterministic: ClassVar[bool] = True
    family: ClassVar[str] = "perturbation"
    execution: ClassVar[frozenset[str]] = frozenset({"chunk"})

    def __init__(self, options: Options | None = None) -> None:
        self.options = options or self.Options()
        self._networks = _Networks(self.options.precision)

    @classmethod
    def conformance_options(cls, directory: Path) -> dict[str, Any]:
        """A coarse grid, and bounds that cost little."""
        return {"grid": 2, "eps": 0.1, "method": "ibp", "precision": "float32", "chunk": 4}

    def map_size(self, input_size: tuple[int, int, int]) -> tuple[int, int]:
        """h, w of the maps: cells down and across."""
        return grid_size(self.options.grid, *input_size[1:])

    def attribute(self, model: certframe.Model, inputs: Tensor, targets: Tensor, *,
                  rng: certframe.Rng) -> certframe.Attribution:
        """(B,g,g) maps, not negative with ``relaxation=shared``, and the logits.

        Raises:
            UsageError: the model has a layer that cannot be bounded, or one class only.
        """
        _refuse_one_class(model)
        # Slopes are optimised by gradients of our own, also where the caller wants none.
        with torch.inference_mode(False), torch.no_grad():
            inputs = inputs.detach().clone()
            logits = model.module(inputs.clone()).float()
            with certframe.full_precision(inputs.device):
                maps = self._maps(model, inputs, targets, logits)
        return certframe.Attribution(maps.float(), logits)

    def _maps(self, model: certframe.Model, inputs: Tensor, targets: Tensor, logits: Tensor) -> Tensor:
        return self._falls(model, inputs, targets, 0, None)

    def _falls(self, model: certframe.Model, inputs: Tensor, targets: Tensor, sign: int,
               towards: Tensor | None) -> Tensor:
        """F(B) − F(B_u) for perturbations of one sign, (B,g,g)."""
        o = self.options
        network = self._networks.of(model, model.module, inputs)
        height, width = inputs.shape[2:]
        region = Region.ball(inputs.to(getattr(torch, o.precision)), o.eps, float(o.p), sign=sign, clip=o.clip,
                             fixed=cells(o.grid, height, width, inputs.device))
        found = overlap(network, region, targets, o.method, margin=o.margin, towards=towards, relaxation=o.relaxation,
                        chunk=o.chunk, steps=o.steps)
        return (found[:, :1] - found[:, 1:]).view(-1, *grid_size(o.grid, height, width))


class EvaTargeted(Eva):
    """φ⁺ − φ⁻: where adding to (positive) and where taking away from the image (negative) helps another class most.

    φ⁺ is EVA for the difference f_{c'} − f_c alone and perturbations δ ≥ 0, φ⁻ for δ ≤ 0. In red and blue: red where
    brighter pixels, blue where darker ones would turn c into c'. Look at it with ``sparsifier.ranking`` magnitude
    (either sign counts) or signed.

    The same source as `eva`.
    """

    class Options(_Verified):
        """Options of `eva-targeted`."""

        towards: int | None = Field(None, ge=0, description="Index of the class c' to turn the image into; by default "
                                                            "the one with the largest logit beside the explained.")

    def __init__(self, options: Options | None = None) -> None:
        chosen = options or self.Options()
        super().__init__(chosen)
        self.options: EvaTargeted.Options = chosen

    def _maps(self, model: certframe.Model, inputs: Tensor, targets: Tensor, logits: Tensor) -> Tensor:
        chosen = self.options.towards
        others = logits.scatter(1, targets[:, None], -math.inf)
        towards = others.argmax(1)
        if chosen is not None:
            if chosen >= logits.shape[1]:
                raise certframe.UsageError(f"towards={chosen}: the model has {logits.shape[1]} classes, counted from 0")
            # A row whose class is c' itself has nowhere to go; it is explained against the runner-up.
            towards = torch.where(targets == chosen, towards, torch.full_like(towards, chosen))
        return (self._falls(model, inputs, targets, 1, towards)
                - self._falls(model, inputs, targets, -1, towards))


class EvaHybrid:
    """EVA with bounds that are *not verified*: sampled up to a layer, propagated from there.

    The range of every activation of the layer is taken from samples of δ, uniform in the ball B or B_u, and that box is
    propagated through the rest of the network by verified analysis. A range of samples is smaller than the true range,
    so the result is no bound on the logits; it is the published way to explain large networks. The same draws serve B
    and all B_u.

    The same source as `eva`.
    """

    class Options(_Options):
        """Options of `eva-hybrid`."""

        method: Method = Field("backward", description="How the layers after the cut are bounded: ibp, forward, "
                                                       "backward, or an intersection of them.")
        layer: str = Field("final", description="Where the model is cut: 'final' (last spatial feature map) or a "
                                                "module path.")
        samples: int = Field(10, ge=1, description="Perturbations that are drawn for the ball; each cell takes as many "
                                                   "passes up to the layer.")
        batch: int = Field(64, ge=1, description="Largest number of perturbed images in one pass; changes no result.")

    needs_gradients: ClassVar[bool] = False
    deterministic: ClassVar[bool] = False
    family: ClassVar[str] = "perturbation"
    execution: ClassVar[frozenset[str]] = frozenset({"batch"})

    def __init__(self, options: Options | None = None) -> None:
        self.options = options or self.Options()
        self._networks = _Networks(self.options.precision)

    @classmethod
    def conformance_options(cls, directory: Path) -> dict[str, Any]:
        """A coarse grid and few samples."""
        return {"grid": 3, "samples": 3, "batch": 7}

    def map_size(self, input_size: tuple[int, int, int]) -> tuple[int, int]:
        """h, w of the maps: cells down and across."""
        return grid_size(self.options.grid, *input_size[1:])

    def attribute(self, model: certframe.Model, inputs: Tensor, targets: Tensor, *,
                  rng: certframe.Rng) -> certframe.Attribution:
        """(B,g,g) maps of either sign, and the logits; (1 + g²) · `samples` passes up to the layer for each image.

        Raises:
            UsageError: the model cannot be cut there, or a layer after the cut cannot be bounded.
        """
        o, split = self.options, model.at(self.options.layer)
        _refuse_one_class(model)
        height, width = inputs.shape[2:]
        fixed = cells(o.grid, height, width, inputs.device)
        with torch.inference_mode(False), torch.no_grad():
            inputs = inputs.detach().clone()
            activation, *carried = split.body(inputs)
            if carried:
                raise certframe.UsageError(f"layer '{o.layer}' lies beside a residual connection, so that it alone "
                                           "does not decide the logits: cut after the block that contains it")
            network = self._networks.of(model, split.head, activation)
            logits = split.head(activation.clone()).float()
            draws = [self._drawn(inputs, rng) for _ in range(o.samples)]
            boxes = [self._box(split.body, image, [draw[b] for draw in draws], fixed)
                     for b, image in enumerate(inputs)]
            with certframe.full_precision(inputs.device):
                dtype = getattr(torch, o.precision)
                found = torch.cat([overlap(network, Region.box(low[None].to(dtype), high[None].to(dtype)),
                                           targets[b:b + 1], o.method, margin=o.margin)
                                   for b, (low, high) in enumerate(boxes)])
        maps = (found[:, :1] - found[:, 1:]).view(-1, *grid_size(o.grid, height, width))
        return certframe.Attribution(maps.float(), logits)

    def _drawn(self, inputs: Tensor, rng: certframe.Rng) -> Tensor:
        """One perturbation for every image, uniform in the ball: (B,C,H,W).

        G. Calafiore, F. Dabbene, R. Tempo. Uniform sample generation in l_p balls. CDC 1998.
        """
        shape, size = inputs.shape[1:], math.prod(inputs.shape[1:])
        if self.options.p == "inf":
            return self.options.eps * (2 * rng.uniform(*shape) - 1)
        radius = rng.uniform(1).view(-1, 1, 1, 1) ** (1 / size)
        if self.options.p == 2:
            direction = rng.normal(*shape)
        else:
            direction = -torch.log1p(-rng.uniform(*shape)) * (2 * rng.integers(2, *shape) - 1)
        length = direction.flatten(1).norm(p=self.options.p, dim=1).clamp(min=1e-12).view(-1, 1, 1, 1)
        return self.options.eps * radius * direction / length

    def _box(self, body: Callable[[Tensor], tuple[Tensor, ...]], image: Tensor, draws: list[Tensor],
             fixed: Tensor) -> tuple[Tensor, Tensor]:
        """The smallest and the largest activations over the draws, for B and every B_u: (1 + cells, …) each."""
        lows, highs = [], []
        for sets in fixed.split(max(1, self.options.batch // len(draws))):
            low = high = None
            for some in _groups(draws, max(1, self.options.batch // len(sets))):
                perturbed = image + torch.stack(some)[:, None] * ~sets[None, :, None]
                found = body(perturbed.flatten(0, 1))[0].unflatten(0, perturbed.shape[:2])
                least, most = found.amin(0), found.amax(0)
                low = least if low is None else torch.minimum(low, least)
                high = most if high is None else torch.maximum(high, most)
            assert low is not None
            assert high is not None
            lows.append(low)
            highs.append(high)
        return torch.cat(lows), torch.cat(highs)


def _groups(values: list[Tensor], size: int) -> Iterator[list[Tensor]]:
    return (values[i:i + size] for i in range(0, len(values), size))


def _refuse_one_class(model: certframe.Model) -> None:
    if len(model.classes) < 2:
        raise certframe.UsageError("the model has one class: there is no other that could come ahead")
