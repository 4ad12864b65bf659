"""Train the two networks that [EVA] explains, and store their weights.

    python scripts/reproduction/eva_train.py mnist --data DIR --out runs/eva          # about a minute on one core
    python scripts/reproduction/eva_train.py cifar10 --data DIR --out runs/eva        # longer: go on after a stop

DIR has mnist.npz and cifar10.npz. One thread and fixed seeds make the result repeatable; a state is stored after every
epoch, and the same command goes on from it.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import torch
from eva_nets import (
    MEAN,
    SETS,
    STD,
    cifar10_network,
    data_folder,
    folded,
    images,
    mnist_network,
    model_of,
)
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class Recipe:
    """How a network is trained: by Adam, with a learning rate that rises and falls once.

    Attributes:
        epochs: passes over the training images.
        batch: images in a step.
        rate: the highest learning rate.
        penalty: weight of the squared norm of the weights in the loss, halved. Small weights give tight bounds.
        decay: weight decay of AdamW, beside the loss.
        smoothing: of the labels.
    """

    epochs: int
    batch: int
    rate: float
    penalty: float = 0.0
    decay: float = 0.0
    smoothing: float = 0.0


RECIPES = {"mnist": Recipe(12, 128, 2e-3, penalty=2e-4), "cifar10": Recipe(16, 64, 4e-3, decay=5e-2, smoothing=0.05)}


def shifted(x: Tensor, most: int, generator: torch.Generator) -> Tensor:
    """Every image moved by up to `most` pixels each way; what comes in is its mirrored border."""
    count, _, height, width = x.shape
    padded = functional.pad(x, [most] * 4, mode="reflect")
    rows, columns = (torch.randint(2 * most + 1, (count, 1), generator=generator) + torch.arange(size)
                     for size in (height, width))
    return padded[torch.arange(count)[:, None, None], :, rows[:, :, None], columns[:, None]].permute(0, 3, 1, 2)


def cut_out(x: Tensor, side: int, generator: torch.Generator) -> Tensor:
    """Every image with a grey square at a random place, partly outside perhaps (DeVries, Taylor 2017)."""
    count, _, height, width = x.shape
    inside = []
    for size in (height, width):
        start = torch.randint(size, (count, 1), generator=generator) - side // 2
        steps = torch.arange(size)
        inside.append((steps >= start) & (steps < start + side))
    hole = inside[0][:, None, :, None] & inside[1][:, None, None, :]
    return torch.where(hole, x.mean(dim=(2, 3), keepdim=True), x)


def augmented(x: Tensor, generator: torch.Generator) -> Tensor:
    """Photographs: mirrored half of the time, moved by up to 4 pixels, brighter or darker, with a hole."""
    mirrored = torch.rand(len(x), 1, 1, 1, generator=generator) < 0.5
    x = shifted(torch.where(mirrored, x.flip(3), x), 4, generator)
    gain, offset = (torch.rand(2, len(x), 1, 1, 1, generator=generator) - 0.5) * torch.tensor([0.4, 0.2]).view(
        2, 1, 1, 1, 1)
    return cut_out((x * (1 + gain) + offset).clamp(0, 1), 8, generator)


def normalised(x: Tensor) -> Tensor:
    """Channels of photographs with mean 0 and standard deviation 1."""
    return (x - torch.tensor(MEAN).view(-1, 1, 1)) / torch.tensor(STD).view(-1, 1, 1)


def accuracy(network: nn.Module, x: Tensor, y: Tensor) -> float:
    """Share of right answers."""
    with torch.no_grad():
        return float((torch.cat([network(part) for part in x.split(500)]).argmax(1) == y).float().mean())


def train(network: nn.Sequential, x: Tensor, y: Tensor, recipe: Recipe,
          prepare: Callable[[Tensor, torch.Generator], Tensor], state: Path, seed: int,
          say: Callable[[str], None]) -> nn.Sequential:
    """Fit the network; after every epoch its state is at `state`, from where it goes on when it is there.

    Args:
        network: as drawn from the seed.
        x: (N,C,H,W) training images in [0, 1].
        y: (N,) their classes.
        recipe: epochs, batch and so on.
        prepare: what is done to a batch of images before the network sees it.
        state: where the state is kept.
        seed: of order and augmentation; each epoch has a stream of its own.
        say: is given a line after every epoch.
    """
    steps = len(x) // recipe.batch
    optimiser: torch.optim.Optimizer = (
        torch.optim.Adam(network.parameters(), lr=recipe.rate, weight_decay=recipe.penalty) if recipe.penalty
        else torch.optim.AdamW(network.parameters(), lr=recipe.rate, weight_decay=recipe.decay))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, recipe.rate, total_steps=recipe.epochs * steps)
    parts = {"network": network, "optimiser": optimiser, "schedule": schedule}
    begin = 0
    if state.exists():
        stored = torch.load(state, weights_only=True)
        begin = stored.pop("epoch")
        for name, part in parts.items():
            part.load_state_dict(stored[name])  # type: ignore[attr-defined]
    network.train().to(memory_format=torch.channels_last)
    for epoch in range(begin, recipe.epochs):
        generator, begun, total = torch.Generator().manual_seed(seed * 10_000 + epoch), time.monotonic(), 0.0
        torch.manual_seed(seed * 10_000 + epoch)  # dropout
        for batch in torch.randperm(len(x), generator=generator)[:steps * recipe.batch].split(recipe.batch):
            inputs = prepare(x[batch], generator).contiguous(memory_format=torch.channels_last)
            loss = functional.cross_entropy(network(inputs), y[batch], label_smoothing=recipe.smoothing)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            total += loss.item()
        temporary = state.with_suffix(".part")
        torch.save({"epoch": epoch + 1} | {name: part.state_dict() for name, part in parts.items()},  # type: ignore[attr-defined]
                   temporary)
        temporary.replace(state)
        say(f"epoch {epoch + 1}/{recipe.epochs}: loss {total / steps:.3f}, {time.monotonic() - begun:.0f} s")
    return network.eval()


def weights_of(name: str, folder: Path, out: Path, seed: int = 0) -> tuple[Path, float]:
    """The file of a network's weights, trained first when it is not there, and its accuracy on the test images.

    Args:
        name: ``mnist`` or ``cifar10``.
        folder: has the images, ``name.npz``.
        out: the folder of the weights.
        seed: of initial weights, order and augmentation.
    """
    path, photographs = out / f"{name}.safetensors", name == "cifar10"
    if not path.exists():
        out.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(seed)
        x, y = images(folder / f"{name}.npz", "train")
        network = train(cifar10_network(training=True) if photographs else mnist_network(), x, y, RECIPES[name],
                        (lambda batch, generator: normalised(augmented(batch, generator))) if photographs
                        else lambda batch, generator: batch,
                        out / f"{name}.state", seed, lambda line: print(f"{name}, {line}", flush=True))
        network = folded(network) if photographs else network
        save_file({key: tensor.contiguous() for key, tensor in network.state_dict().items()}, path)
        print(f"wrote {path}")
    test_x, test_y = images(folder / f"{name}.npz", "test")
    return path, accuracy(model_of(name, path).module, test_x, test_y)


def main() -> None:
    """Train, report, store."""
    parser = argparse.ArgumentParser(description="Train a network of the EVA reproduction.")
    parser.add_argument("set", choices=SETS)
    parser.add_argument("--data", type=Path, metavar="DIR", help="folder with mnist.npz and cifar10.npz (default: the "
                        "folder that CERTFRAME_TEST_DATA names)")
    parser.add_argument("--out", type=Path, default=Path("runs/eva"), metavar="DIR", help="weights go here (runs/eva)")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    folder = data_folder(parser, given.data)
    torch.set_num_threads(1)
    path, share = weights_of(given.set, folder, given.out, given.seed)
    print(f"{path}: accuracy on the test images {share:.4f}")


if __name__ == "__main__":
    main()
