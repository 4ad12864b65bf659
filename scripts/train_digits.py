"""Train the `digits` model and write its weights and the held-out digits: ``python scripts/train_digits.py``.

Needs scikit-learn. Takes about ten seconds; one thread and fixed seeds make it repeatable.
"""

from __future__ import annotations

import numpy as np
import torch
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from torch import Tensor, nn

from certframe.datasets.digits import HELD_OUT, IMAGES, INK
from certframe.models.digits import WEIGHTS, digits_network

SEED = 0
EPOCHS = 60
BATCH = 64
SIGMA = (0.0, 0.3)  # of the noise added in training, drawn for every image from this range


def split() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training images and labels, held-out images and labels; images (N,8,8) uint8 with values 0 to 16."""
    digits = load_digits()
    order = np.random.default_rng(SEED).permutation(len(digits.target))
    images = torch.from_numpy(digits.images[order].astype(np.uint8))
    labels = torch.from_numpy(digits.target[order].astype(np.int64))
    return images[HELD_OUT:], labels[HELD_OUT:], images[:HELD_OUT], labels[:HELD_OUT]


def train(images: Tensor, labels: Tensor) -> nn.Module:
    """Fit the network with Adam and a learning rate that falls to 0, on noisy images."""
    torch.manual_seed(SEED)
    network = digits_network()
    optimiser = torch.optim.Adam(network.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 6e-3, total_steps=EPOCHS * (len(images) // BATCH))
    low, high = SIGMA
    for _ in range(EPOCHS):
        order = torch.randperm(len(images))
        for batch in order[:len(images) // BATCH * BATCH].split(BATCH):
            x = images[batch, None].float() / INK
            sigma = low + (high - low) * torch.rand(BATCH, 1, 1, 1)
            loss = nn.functional.cross_entropy(network(x + sigma * torch.randn_like(x)), labels[batch])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    return network.eval()


def accuracy(network: nn.Module, images: Tensor, labels: Tensor, sigma: float) -> float:
    """Share of right answers, each image with 20 draws of noise."""
    generator = torch.Generator().manual_seed(SEED)
    x = (images[:, None].float() / INK).repeat(20, 1, 1, 1)
    with torch.no_grad():
        answers = network(x + sigma * torch.randn(x.shape, generator=generator)).argmax(1)
    return float((answers == labels.repeat(20)).float().mean())


def main() -> None:
    """Train, report, write."""
    torch.set_num_threads(1)
    images, labels, held_out, held_out_labels = split()
    network = train(images, labels)
    for sigma in (0.0, 0.1, 0.15, 0.25, 0.5):
        print(f"held-out accuracy at sigma {sigma:.2f}: {accuracy(network, held_out, held_out_labels, sigma):.4f}")
    save_file({name: tensor.contiguous() for name, tensor in network.state_dict().items()}, WEIGHTS)
    save_file({"images": held_out.contiguous(), "labels": held_out_labels.to(torch.uint8)}, IMAGES)
    for path in (WEIGHTS, IMAGES):
        print(f"wrote {path.name}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
