"""Small rectifier networks on images of two pixels, whose nearest boundary can be enumerated."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn


class TwoPixels(nn.Module):
    """Logits V relu(W x + b) + d of images (1,1,2)."""

    def __init__(self, seed: int, hidden: int = 6, classes: int = 3) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(seed)
        self.w, self.b = 3 * torch.randn(hidden, 2, generator=g), torch.randn(hidden, generator=g)
        self.v, self.d = torch.randn(classes, hidden, generator=g), 0.3 * torch.randn(classes, generator=g)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x.flatten(1) @ self.w.T + self.b) @ self.v.T + self.d


@dataclass(frozen=True)
class Nearest:
    """The nearest boundary point of a class, its distance, and the gradient of the class's logit there."""

    point: np.ndarray
    distance: float
    gradient: np.ndarray


def enumerated(network: TwoPixels, image: Tensor, label: int) -> Nearest | None:
    """Every activation pattern has a polygon, in which f_k = f_c is a line: the nearest point of all the segments."""
    w, b, v, d = (t.double().numpy() for t in (network.w, network.b, network.v, network.d))
    x = image.double().numpy().ravel()
    best: Nearest | None = None
    box, room = np.array([[1.0, 0], [-1, 0], [0, 1], [0, -1]]), np.array([1.0, 0, 1, 0])  # box · z ≤ room
    for on in itertools.product((0.0, 1.0), repeat=len(b)):
        sign = 1 - 2 * np.array(on)
        inside, limit = np.vstack([sign[:, None] * w, box]), np.concatenate([-sign * b, room])
        slope, offset = (v * on) @ w, (v * on) @ b + d
        for other in range(len(d)):
            if other == label:
                continue
            normal, level = slope[other] - slope[label], offset[other] - offset[label]
            length = np.linalg.norm(normal)
            if length < 1e-12:
                continue
            foot = x - normal * (normal @ x + level) / length**2  # then along the line, as far as the polygon goes
            along = np.array([-normal[1], normal[0]]) / length
            low, high = -np.inf, np.inf
            for row, most in zip(inside, limit, strict=True):
                rate, left = row @ along, most - row @ foot
                if abs(rate) < 1e-12:
                    low, high = (low, high) if left >= -1e-12 else (1.0, 0.0)
                elif rate > 0:
                    high = min(high, left / rate)
                else:
                    low = max(low, left / rate)
            if low > high:
                continue
            point = foot + along * min(max(0.0, low), high)
            distance = float(np.linalg.norm(point - x))
            if best is None or distance < best.distance:
                best = Nearest(point, distance, slope[label])
    return best
