"""A classifier whose logits are linear in the pixels, and explanations of it: metrics have closed forms there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from certframe import Explanation, TorchModel
from certframe.certifiers.pixel import Pixel
from certframe.tally import Tally


def linear_model(weights: Tensor) -> TorchModel:
    """Two logits on images of the weights' shape (C,H,W): the weighted sum of the pixels, and 0."""
    layer = nn.Linear(weights.numel(), 2, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.stack([weights.flatten(), torch.zeros(weights.numel())]))
    channels, height, width = weights.shape
    return TorchModel(nn.Sequential(nn.Flatten(), layer), (channels, height, width), ("sum", "zero"))


def explained(image: Tensor, attribution: Tensor, *, model: Any = None, labels: np.ndarray | None = None,
              counts: np.ndarray | None = None, samples: int = 50, target: int = 0,
              extras: Mapping[str, Any] | None = None) -> Explanation:
    """An explanation with that map (h,w), these labels (L,h,w) and these counts (L,h,w) of copies."""
    if labels is None:
        labels = np.full((1, *attribution.shape), -1, np.int8)
    if counts is None:
        counts = np.zeros(labels.shape, np.int64)
    levels = tuple(f"{50 / 2 ** level:g}" for level in range(len(labels)))
    tally = Tally(counts[None].astype(np.int64), ((0, samples),), levels, 0.1)
    certificate = replace(Pixel().certify(tally), labels=labels.astype(np.int8))
    return Explanation("x", image, target, "sum", 0.5, attribution, tally, certificate, model=model,
                       extras=dict(extras or {}))
