"""Any `torch.nn.Module` as a certframe model: pixels in, logits out, cut at any layer."""

from __future__ import annotations

import copy
import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from certframe.errors import UsageError, one_line
from certframe.images import as_image
from certframe.protocols import Model, Split
from certframe.splitting import find_submodule, record_outputs, split_module

__all__ = ["TorchModel", "check", "split_module"]

INTERPOLATIONS = {
    "nearest": Image.Resampling.NEAREST, "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC, "lanczos": Image.Resampling.LANCZOS,
}
_MODES = {1: "L", 3: "RGB"}
_PREFIX_TOKENS = 8  # class, distillation and register tokens before the patches; more have not been seen


class Normalise(nn.Module):
    """(x − mean) / std for every channel; its two buffers move with the module.

    Args:
        mean: one value per channel, in pixel units.
        std: likewise, positive.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(-1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(B,C,H,W) in pixel units → the same shape, normalised."""
        return (x - self.mean) / self.std


class TorchModel:
    """Makes a classifier that is a `torch.nn.Module` usable everywhere in certframe (protocol `certframe.Model`).

    The module that is given stays as it is. `TorchModel` works on a copy of its structure that is in eval mode and
    frozen and shares the memory of its weights. Layers are named as in ``network.named_modules()``.

    Args:
        network: (B,C,H,W) → logits (B, classes).
        input_size: C, H, W.
        classes: one name per logit; when omitted, the logits are counted in a dry run and named ``"0"``, ``"1"``, ….
        mean: per channel, in pixel units, subtracted before the network runs; 0 when omitted.
        std: per channel, divided by after that; 1 when omitted.
        interpolation: how pictures are resized: nearest, bilinear, bicubic or lanczos.
        crop_pct: the part of the resized picture's shorter side that the centre crop keeps, in (0, 1].

    Attributes:
        module: (B,C,H,W) in pixel units → logits (B, classes): normalisation, then the copy of the network.
        leaf_modules: classes that `torch.fx` must not trace into when the model is cut.
        leaf_functions: functions that `torch.fx` must not trace into.

    Raises:
        UsageError: an argument is out of range or of the wrong length, the network cannot be copied, or, when its
            logits are to be counted, it is not a classifier of such inputs (see `check`).
    """

    leaf_modules: Sequence[type[nn.Module]] = ()
    leaf_functions: Sequence[Callable[..., Any]] = ()
    classes: Sequence[str]

    def __init__(self, network: nn.Module, input_size: tuple[int, int, int], classes: Sequence[str] | None = None, *,
                 mean: Sequence[float] | None = None, std: Sequence[float] | None = None,
                 interpolation: str = "bicubic", crop_pct: float = 0.875) -> None:
        self.input_size = _checked_size(input_size)
        channels = self.input_size[0]
        if interpolation not in INTERPOLATIONS:
            raise UsageError(f"interpolation '{interpolation}': choose one of {', '.join(INTERPOLATIONS)}")
        if not 0 < crop_pct <= 1:
            raise UsageError(f"crop_pct={crop_pct}: give the part of the shorter side to keep, above 0 and up to 1")
        self.interpolation, self.crop_pct = interpolation, crop_pct
        parts = OrderedDict(normalise=_normalisation(mean, std, channels), network=_frozen(network))
        self.module = nn.Sequential(parts)
        self.module.eval().requires_grad_(False)
        self._splits: dict[str, Split] = {}
        self.classes = (tuple(str(i) for i in range(_dry_run(self.module, self.input_size).shape[1]))
                        if classes is None else tuple(classes))

    @property
    def network(self) -> nn.Module:
        """The frozen copy of the network, without the normalisation."""
        return self.module.get_submodule("network")

    @property
    def layers(self) -> list[str]:
        """What `at` accepts: ``"input"``, ``"final"`` and every module path."""
        return ["input", "final", *(name for name, _ in self.network.named_modules(remove_duplicate=False) if name)]

    # -- pictures

    def preprocess(self, image: Image.Image) -> Tensor:
        """Turn a picture of any size and mode into (C,H,W) float32 in [0, 1].

        It is converted to grey or RGB as `certframe.images` describes, then resized and cropped by `fit`.

        Raises:
            UsageError: the model has neither 1 nor 3 channels, or the picture cannot be converted.
        """
        channels = self.input_size[0]
        if channels not in _MODES:
            raise UsageError(f"a picture cannot be made into {channels} channels: give the model's inputs as tensors "
                             f"{self.input_size} in [0, 1]")
        picture = as_image(image)
        if isinstance(picture, Tensor):
            raise UsageError("a tensor needs no preprocessing: give it to the model as it is")
        pixels = np.asarray(self.fit(picture.convert(_MODES[channels])), dtype=np.float32) / np.float32(255)
        return torch.from_numpy(pixels.reshape(*pixels.shape[:2], channels)).permute(2, 0, 1).contiguous()

    def fit(self, picture: Image.Image) -> Image.Image:
        """Resize until the picture just covers the crop window divided by `crop_pct`, then crop its centre."""
        (width, height), (left, top) = self._placement(*picture.size)
        if (width, height) != picture.size:
            picture = picture.resize((width, height), INTERPOLATIONS[self.interpolation])
        return picture.crop((left, top, left + self.input_size[2], top + self.input_size[1]))

    def window(self, width: int, height: int) -> tuple[float, float, float, float]:
        """The part of a picture of that size that the model sees after `fit`.

        Returns:
            left, top, right and bottom in pixels of the picture, pixel 0 reaching from 0 to 1; beyond the picture where
            the crop is larger than it. A point at x of the picture is at (x − left) · W / (right − left) of the input.
        """
        (wide, tall), (left, top) = self._placement(width, height)
        across, down = width / wide, height / tall
        return (left * across, top * down, (left + self.input_size[2]) * across, (top + self.input_size[1]) * down)

    def _placement(self, wide: int, tall: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """The size that a picture of this width and height is resized to, and the left upper corner of the crop."""
        _, height, width = self.input_size
        most_tall, most_wide = math.floor(height / self.crop_pct), math.floor(width / self.crop_pct)
        if wide * most_tall <= tall * most_wide:
            size = most_wide, max(most_tall, most_wide * tall // wide)
        else:
            size = max(most_wide, most_tall * wide // tall), most_tall
        return size, (round((size[0] - width) / 2), round((size[1] - height) / 2))

    # -- layers

    def at(self, layer: str) -> Split:
        """Cut the model; splits are kept, so asking again is free.

        Args:
            layer: ``"input"``; ``"final"``, the last spatial feature map (for a transformer, the last tokens through
                which the patches reach the logits); or a module path of the network (see `layers`).

        Raises:
            UsageError: the layer does not exist or the model cannot be cut there.
        """
        if layer not in self._splits:
            if layer == "input":
                self._splits[layer] = Split(body=_alone, head=self.module, as_map=_same)
            elif layer == "final":
                self._splits[layer] = self.final()
            else:
                self._splits[layer] = self.cut(layer)
        return self._splits[layer]

    def cut(self, path: str) -> Split:
        """Cut at a module path; what `at` does for one, without keeping the result."""
        find_submodule(self.network, path)
        normalise = self.module.get_submodule("normalise")
        body, head = split_module(self.network, path, normalise(self.example()), leaf_modules=self.leaf_modules,
                                  leaf_functions=self.leaf_functions)
        return Split(body=lambda x: body(normalise(x)), head=head, as_map=self.as_map)

    def final(self) -> Split:
        """The cut called ``"final"``; a subclass that knows its architecture better may override it."""
        example = self.module.get_submodule("normalise")(self.example())
        return self.cut(_final_path(self.network, example, self.input_size))

    def as_map(self, activation: Tensor) -> Tensor:
        """View an activation as feature maps (B,K,h,w).

        Four axes are read as (B,K,h,w), or as (B,h,w,K) when only that has the proportions of the input. Three axes
        (B,N,D) are tokens: up to eight before the patch grid are dropped.

        Raises:
            UsageError: the activation has no spatial layout.
        """
        return as_map(activation, self.input_size)

    def example(self) -> Tensor:
        """Two different inputs for dry runs, (2,C,H,W) in [0, 1], on the module's device; always the same."""
        return _example(self.module, self.input_size)


def check(model: Model) -> None:
    """Run a model once on two made-up images and say in one line what is wrong with it, if anything is.

    Raises:
        UsageError: the module fails on `input_size`, does not return one tensor of logits (B, classes), returns NaN
            or infinite values, has another number of classes than names, or changes its input.
    """
    logits = _dry_run(model.module, model.input_size)
    if logits.shape[1] != len(model.classes):
        raise UsageError(f"the model returns {logits.shape[1]} logits but has {len(model.classes)} class names: give "
                         "one name per logit")


def as_map(activation: Tensor, input_size: tuple[int, int, int]) -> Tensor:
    """View an activation as feature maps (B,K,h,w), judging by its shape; see `TorchModel.as_map`."""
    layout = _layout(activation.shape, input_size)
    if layout is None:
        raise UsageError(f"an activation of shape {tuple(activation.shape[1:])} is not a map: take a layer whose "
                         "output has two spatial axes, or tokens on a patch grid")
    prefix, height, width = layout
    if activation.ndim == 3:
        return activation[:, prefix:].transpose(1, 2).reshape(len(activation), -1, height, width)
    return activation if (height, width) == tuple(activation.shape[2:]) else activation.permute(0, 3, 1, 2)


# -- helpers ------------------------------------------------------------------------------------------------------


def _alone(x: Tensor) -> tuple[Tensor, ...]:
    return (x,)


def _same(x: Tensor) -> Tensor:
    return x


def _checked_size(size: Sequence[int]) -> tuple[int, int, int]:
    if len(size) != 3 or any(int(v) != v or v < 1 for v in size):
        raise UsageError(f"input_size={tuple(size)}: give three positive whole numbers, channels, height and width")
    channels, height, width = (int(v) for v in size)
    return channels, height, width


def _normalisation(mean: Sequence[float] | None, std: Sequence[float] | None, channels: int) -> nn.Module:
    if mean is None and std is None:
        return nn.Identity()
    mean = (0.0,) * channels if mean is None else mean
    std = (1.0,) * channels if std is None else std
    for name, values in (("mean", mean), ("std", std)):
        if len(values) != channels or not all(math.isfinite(v) for v in values):
            raise UsageError(f"{name}={tuple(values)}: give one finite number for each of the {channels} channels")
    if min(std) <= 0:
        raise UsageError(f"std={tuple(std)}: every value must be above 0")
    return Normalise(mean, std)


def _frozen(network: nn.Module) -> nn.Module:
    """A structural copy whose parameters and buffers are views of the original's memory, without gradients."""
    try:
        memo: dict[int, Any] = {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in network.parameters()}
        memo.update({id(b): b.detach() for b in network.buffers()})
        frozen: nn.Module = copy.deepcopy(network, memo)
    except Exception as error:
        raise UsageError(f"the network cannot be copied ({one_line(error)}): copy.deepcopy has to work on it; "
                         "old-style weight_norm, for instance, must be removed first") from error
    return frozen


def _example(module: nn.Module, input_size: tuple[int, int, int]) -> Tensor:
    weight = next((t for t in (*module.parameters(), *module.buffers()) if t.is_floating_point()), torch.empty(0))
    pixels = torch.rand(2, *input_size, generator=torch.Generator().manual_seed(0))
    return pixels.to(device=weight.device, dtype=weight.dtype)


def _dry_run(module: nn.Module, input_size: tuple[int, int, int]) -> Tensor:
    x = _example(module, input_size)
    given = x.clone()
    size = "×".join(map(str, input_size))
    try:
        with torch.no_grad():
            logits = module(x)
    except Exception as error:
        raise UsageError(f"the model fails on an input of {size} (channels, height, width): {one_line(error)}; give "
                         "the input_size it was made for") from error
    if not isinstance(logits, Tensor):
        raise UsageError(f"the model returns a {type(logits).__name__}, not a tensor of logits: wrap it in a module "
                         "that returns the logits alone")
    if logits.ndim != 2 or len(logits) != len(x):
        raise UsageError(f"the model returns shape {tuple(logits.shape)} for {len(x)} images of {size}, not (images, "
                         "classes): certframe explains image classifiers")
    if not bool(torch.isfinite(logits).all()):
        bad = int((~torch.isfinite(logits)).sum())
        raise UsageError(f"the model returns {bad} NaN or infinite logits of {logits.numel()} for made-up images of "
                         f"{size}: look for broken weights or normalisation")
    if not torch.equal(x, given):
        raise UsageError("the model changes its input in place: let it work on a copy (x = x.clone())")
    return logits


def _layout(shape: Sequence[int], input_size: tuple[int, int, int]) -> tuple[int, int, int] | None:
    """(tokens to drop, h, w) of an activation of this shape, or None when it is not spatial."""
    _, height, width = input_size
    if len(shape) == 4:
        def distortion(h: int, w: int) -> float:
            return abs(math.log((h / w) / (height / width)))
        first = distortion(shape[2], shape[3]) <= distortion(shape[1], shape[2])
        return (0, shape[2], shape[3]) if first else (0, shape[1], shape[2])
    if len(shape) == 3:
        for prefix in range(min(_PREFIX_TOKENS, shape[1] - 1) + 1):
            tokens = shape[1] - prefix
            h = round(math.sqrt(tokens * height / width))
            if h and tokens % h == 0 and round(h * width / height) == tokens // h:
                return prefix, h, tokens // h
    return None


def _proportionate(layout: tuple[int, int, int], input_size: tuple[int, int, int]) -> bool:
    """Whether a layout has several cells and the proportions of the input, up to one cell of rounding."""
    _, h, w = layout
    return h * w > 1 and abs(h * input_size[2] / input_size[1] - w) <= 1


def _final_path(module: nn.Module, example: Tensor, input_size: tuple[int, int, int]) -> str:
    """The last module whose output is a spatial map; among nested modules with the same output, the outermost."""
    with torch.no_grad():
        outputs = [(path, output.shape) for path, output in record_outputs(module, example)
                   if path and isinstance(output, Tensor) and len(output) == len(example)]
    found, grid, tokens = "", None, None
    for path, shape in outputs:
        layout = _layout(shape, input_size)
        if layout is None or not _proportionate(layout, input_size):
            continue
        if len(shape) == 4:
            found, grid, tokens = path, layout[1:], None
        elif layout[1:] == grid:  # tokens of the patches that the last map was cut into
            tokens = shape[1:]
    if tokens is not None:
        return _last_mixing_tokens(module, example, input_size, tokens)
    if not found:
        raise UsageError("the model has no spatial feature map to call 'final': name a layer, or take 'input'")
    return found


def _last_mixing_tokens(module: nn.Module, example: Tensor, input_size: tuple[int, int, int],
                        tokens: torch.Size) -> str:
    """The last token sequence in which the patches, or most of them, can still move the logits.

    After the last attention of a network that reads its class token only, the patch tokens have no influence left,
    and a gradient with respect to them is 0.
    """
    x = example.clone().requires_grad_()
    with torch.enable_grad():
        outputs = record_outputs(module, x)
        logits = outputs.pop()[1]
        candidates = [(path, out) for path, out in outputs
                      if isinstance(out, Tensor) and out.requires_grad and out.shape[1:] == tokens]
        gradients = torch.autograd.grad(_score(logits), [out for _, out in candidates], allow_unused=True)
    for (path, _), gradient in zip(reversed(candidates), reversed(gradients), strict=True):
        if gradient is not None and float((as_map(gradient, input_size).abs().sum(1) > 0).float().mean()) > 0.5:
            return path
    return candidates[-1][0]  # the logits are constant: nothing has influence, and the maps will say so


def _score(logits: Tensor) -> Tensor:
    weights = torch.rand(logits.shape[1], generator=torch.Generator().manual_seed(1)) - 0.5
    return (logits * weights.to(logits)).sum()
