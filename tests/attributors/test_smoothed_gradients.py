"""Scaled and quadratic SmoothGrad (Levine et al. 2019) are `gradient` with the sparsifiers of these names."""

from __future__ import annotations

import pytest
import torch
from disguises import SIZE, Plain, build
from torch import nn

import certframe
from certframe.noise import GaussianNoise, image_hash
from certframe.torch_model import TorchModel


@pytest.mark.parametrize(("name", "power"), [("scaled", 1), ("quadratic", 2)])
@pytest.mark.parametrize("channels", ["sum", "stack"])
def test_the_tally_is_the_mean_over_noisy_copies_of_the_scaled_gradient(name: str, power: int, channels: str) -> None:
    model = TorchModel(build(Plain, nn.SiLU), SIZE)
    image = torch.rand(SIZE, generator=torch.Generator().manual_seed(2))
    sigma, samples, target = 0.2, 60, 3
    found = certframe.certify(model, image, attributor="gradient", sparsifier=name, certifier="top-k-overlap",
                              sigma=sigma, samples=samples, target=target, seed=7, batch_size=16,
                              options={"attributor.channels": channels})
    total = torch.zeros(3, 16, 16, dtype=torch.float64)
    noise = GaussianNoise(7, image_hash(image)).draw(0, samples, SIZE)
    if channels == "sum":
        total = total[0]
    for one in noise:
        x = (image + sigma * one)[None].requires_grad_()
        gradient, = torch.autograd.grad(model.module(x)[0, target], x)
        size = gradient[0].abs() if channels == "stack" else gradient[0].abs().sum(0)
        total += (size / size.max()).double() ** power
    torch.testing.assert_close(torch.from_numpy(found.tally.mean[0]).view(total.shape), total / samples,
                               rtol=1e-4, atol=1e-6)
