"""Class activation maps whose weights come from running the network again: Ablation-CAM and Score-CAM."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from certframe import protocols
from certframe.attributors.layers import activation_of, layer_option
from certframe.protocols import Attribution

if TYPE_CHECKING:
    from certframe.protocols import Model, Rng, Split


def without_channels(split: Split, activation: tuple[Tensor, ...], targets: Tensor, chunk: int) -> Tensor:
    """(B,K) float32: the target's logit when feature map k is set to 0. Only the head runs, K times for each copy."""
    main, *carried = activation
    copies, channels = split.as_map(main).shape[:2]
    pairs = torch.cartesian_prod(torch.arange(copies), torch.arange(channels)).to(main.device)
    result = torch.empty(len(pairs), dtype=torch.float32, device=main.device)
    for first in range(0, len(pairs), chunk):
        rows, channel = pairs[first:first + chunk].unbind(1)
        changed = main[rows]
        view = split.as_map(changed)
        view[torch.arange(len(rows), device=main.device), channel] = 0.0
        logits = split.head(changed, *(part[rows] for part in carried))
        result[first:first + chunk] = logits.gather(1, targets[rows, None])[:, 0].float()
    return result.view(copies, channels)


def masked_scores(model: Model, inputs: Tensor, maps: Tensor, targets: Tensor, chunk: int) -> Tensor:
    """(B,K) float32: softmax score of the target on x ⊙ A_k, A_k enlarged to the image and scaled to [0, 1]."""
    copies, channels = maps.shape[:2]
    low, high = maps.amin((2, 3), keepdim=True), maps.amax((2, 3), keepdim=True)
    unit = torch.where(high > low, (maps - low) / torch.where(high > low, high - low, 1.0), 0.0)
    pairs = torch.cartesian_prod(torch.arange(copies), torch.arange(channels)).to(inputs.device)
    result = torch.empty(len(pairs), dtype=torch.float32, device=inputs.device)
    for first in range(0, len(pairs), chunk):
        rows, channel = pairs[first:first + chunk].unbind(1)
        mask = functional.interpolate(unit[rows, channel][:, None], size=inputs.shape[-2:], mode="bilinear",
                                      align_corners=False)
        probabilities = model.module(inputs[rows] * mask).float().softmax(dim=1)
        result[first:first + chunk] = probabilities.gather(1, targets[rows, None])[:, 0]
    return result.view(copies, channels)


class AblationCam:
    """Ablation-CAM: relu Σ_k w_k A_k, w_k = (f_c − f_c with A_k := 0) / f_c, f_c the logit.

    K runs of the network behind the layer for each copy, in chunks; at `final` of a convolutional net that is a pooling
    and a linear layer. Where f_c is 0 the fall is not divided.

    S. Desai, H. G. Ramaswamy. Ablation-CAM. WACV 2020.
    """

    class Options(protocols.Options):
        """Options of `ablation-cam`."""

        layer: str = layer_option("final")
        chunk: int = Field(256, ge=1, description="Largest number of activations in one pass; changes no result.")

    needs_gradients: ClassVar[bool] = False
    deterministic: ClassVar[bool] = True
    family: ClassVar[str] = "activation"
    execution: ClassVar[frozenset[str]] = frozenset({"chunk"})

    def __init__(self, options: Options | None = None) -> None:
        self.options = options or self.Options()

    def attribute(self, model: Model, inputs: Tensor, targets: Tensor, *, rng: Rng) -> Attribution:
        """(B,h,w) maps, all ≥ 0, and the logits; one forward pass and K of the head."""
        split = model.at(self.options.layer)
        activation = activation_of(split, inputs)
        with torch.no_grad():
            logits = split.head(*activation).float()
            score = logits.gather(1, targets[:, None])
            fall = score - without_channels(split, activation, targets, self.options.chunk)
            weights = fall / torch.where(score == 0, 1.0, score)
            maps = (weights[:, :, None, None] * split.as_map(activation[0]).float()).sum(1).relu_()
        return Attribution(maps, logits)


class ScoreCam:
    """Score-CAM: relu Σ_k w_k A_k, w_k the softmax score of x ⊙ A_k, A_k enlarged to the image and scaled to [0, 1].

    K forward passes for each copy (1280 for EfficientNet-Lite0), or as many as `channels` allows.

    H. Wang et al. Score-CAM: score-weighted visual explanations for convolutional neural networks. CVPR workshops 2020.
    """

    class Options(protocols.Options):
        """Options of `score-cam`."""

        layer: str = layer_option("final")
        channels: int | None = Field(None, ge=1, description="Use only so many feature maps, those with the largest "
                                                             "mean activation in the copy; by default all.")
        chunk: int = Field(32, ge=1, description="Largest number of masked inputs in one pass; changes no result.")

    needs_gradients: ClassVar[bool] = False
    deterministic: ClassVar[bool] = True
    family: ClassVar[str] = "activation"
    execution: ClassVar[frozenset[str]] = frozenset({"chunk"})

    def __init__(self, options: Options | None = None) -> None:
        self.options = options or self.Options()

    def attribute(self, model: Model, inputs: Tensor, targets: Tensor, *, rng: Rng) -> Attribution:
        """(B,h,w) maps, all ≥ 0, and the logits; a forward pass for every feature map."""
        o, split, x = self.options, model.at(self.options.layer), inputs.detach()
        activation = activation_of(split, x)
        with torch.no_grad():
            logits = split.head(*activation).float()
            maps = split.as_map(activation[0]).float()
            if o.channels is not None and o.channels < maps.shape[1]:
                chosen = maps.mean((2, 3)).topk(o.channels, dim=1).indices
                maps = maps.gather(1, chosen[:, :, None, None].expand(-1, -1, *maps.shape[2:]))
            weights = masked_scores(model, x, maps, targets, o.chunk)
        return Attribution((weights[:, :, None, None] * maps).sum(1).relu_(), logits)
