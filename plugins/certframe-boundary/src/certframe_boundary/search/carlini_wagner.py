"""The attack of Carlini and Wagner: the smallest change whose size and margin together are least."""

from __future__ import annotations

import torch
from torch import Tensor

from certframe_boundary.search.balls import pixel_range
from certframe_boundary.search.closest import Adversarial, Closest, Function, gradient_of, margin, refuse_one_class

_INSIDE = 1 - 1e-6
"""Pixels at the end of their range have no finite place on the tanh's axis: all are drawn in by a millionth."""


def carlini_wagner(function: Function, images: Tensor, labels: Tensor, *, steps: int = 100, rate: float = 0.01,
                   rounds: int = 9, constant: float = 1e-3, bounds: tuple[float, float] = (0.0, 1.0)) -> Adversarial:
    """The closest image in l2 that is not given the label, by Adam on ‖z − x‖² + k · max(f_c − max_{c'≠c} f_{c'}, 0).

    z = tanh of what Adam moves, so pixels stay in their range. Every round begins at the image, with k of each row ten
    times larger after a round without success as long as there was none, else by halving the interval of constants.
    Makes rounds · (steps + 1) forward passes, and rounds · steps backward.

    N. Carlini, D. Wagner. Towards evaluating the robustness of neural networks. IEEE S&P 2017.

    Args:
        function: pixels → logits, a model's `module`.
        images: (N,C,H,W).
        labels: (N,) int64, the class to be lost.
        steps: steps of Adam in a round.
        rate: Adam's learning rate.
        rounds: how many constants are tried for each row.
        constant: the first one.
        bounds: least and largest value of a pixel.

    Raises:
        UsageError: the model has one class only, or its logits no gradient.
    """
    images, (low, high) = images.detach(), pixel_range(images.detach(), bounds)
    best = Closest(images, labels, "l2")
    middle, half = (low + high) / 2, (high - low) / 2
    start = torch.atanh((images - middle) / half * _INSIDE)
    k = images.new_full((len(images),), constant)
    small, large = torch.zeros_like(k), torch.full_like(k, float("inf"))
    z, logits = images, images.new_zeros(0)
    for _ in range(rounds):
        place = start.clone().requires_grad_()
        adam = torch.optim.Adam([place], lr=rate)
        done = torch.zeros_like(labels, dtype=torch.bool)
        for _ in range(steps):
            with torch.enable_grad():
                z = middle + half * torch.tanh(place)
                logits = function(z)
                refuse_one_class(logits)
                short = (-margin(logits, labels)).clamp(min=0)
                loss = (z - images).flatten(1).square().sum(1) + k * short
                place.grad = gradient_of(loss, place)
            done |= best.note(z.detach(), logits.detach())
            adam.step()
        with torch.no_grad():
            z = middle + half * torch.tanh(place)
            logits = function(z)
        done |= best.note(z, logits)
        large = torch.where(done, torch.minimum(large, k), large)
        small = torch.where(done, small, torch.maximum(small, k))
        k = torch.where(large.isfinite(), (small + large) / 2, k * 10)
    return best.result(z, logits.argmax(1))
