"""Training for explanations that do not move: cross-entropy, and the change of the saliency map under attack.

A. Levine, S. Singla, S. Feizi. Certifiably robust interpretation in deep learning. 2019, appendix D [LEV].
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

import certframe
from certframe_boundary.explanation_attack import AttackOptions, attack, mean_map, overlap
from certframe_boundary.networks import Architecture, network, read, write


class TrainingOptions(certframe.Options):
    """How a network is trained; the defaults are those of [LEV] where it states them."""

    weight: float = Field(0.0, ge=0.0, allow_inf_nan=False, description="λ, the weight of the change of the saliency "
                                                                        "map under attack; 0 trains without attack.")
    rho: float = Field(3.08, ge=0.0, allow_inf_nan=False, description="l2 norm of the attack, in pixel units; 10 "
                                                                      "standard deviations of MNIST's pixels.")
    epochs: int = Field(30, ge=1, description="Passes over the images.")
    batch: int = Field(512, ge=1, description="Images in a step of Adam.")
    rate: float = Field(1e-3, gt=0.0, allow_inf_nan=False, description="Learning rate of Adam.")
    steps: int = Field(15, ge=1, description="P of the attack while training.")
    tries: int = Field(100, ge=1, description="Q of it.")
    restarts: int = Field(3, ge=1, description="T of it.")
    architecture: Architecture = Field("conv", description="'dense' or 'conv'.")
    beta: float = Field(10.0, gt=0.0, allow_inf_nan=False, description="Sharpness of the softplus units.")
    seed: int = Field(0, ge=0, description="Seed of weights, order of images, and attacks.")


@dataclass(frozen=True)
class Images:
    """Images to train or to test with: (N,C,H,W) float32 in [0, 1], labels (N,) int64, and the names of the classes."""

    x: Tensor
    y: Tensor
    classes: Sequence[str]

    @property
    def size(self) -> tuple[int, int, int]:
        """C, H, W."""
        channels, height, width = self.x.shape[1:]
        return channels, height, width

    @property
    def digest(self) -> str:
        """SHA-256 of all of it."""
        digest = hashlib.sha256(json.dumps([list(self.x.shape), list(self.classes)]).encode())
        digest.update(self.x.numpy().tobytes())
        digest.update(self.y.numpy().tobytes())
        return digest.hexdigest()


class Saliency:
    """|∂f_c/∂x| summed over the channels, as maps for an attack: (R,N) with a graph."""

    def __init__(self, module: nn.Module, targets: Tensor) -> None:
        self.module, self.targets = module, targets

    def __call__(self, z: Tensor, owners: Tensor) -> Iterator[Tensor]:
        """One map for each image."""
        yield saliency(self.module, z, self.targets[owners])


def saliency(module: nn.Module, x: Tensor, targets: Tensor) -> Tensor:
    """|∂f_c/∂x| summed over the channels, (B,N), with a graph back to x, where it has one, and to the weights."""
    with torch.enable_grad():
        x = x if x.requires_grad else x.detach().requires_grad_()
        gradient, = torch.autograd.grad(module(x).gather(1, targets[:, None]).sum(), x, create_graph=True)
    return gradient.abs().sum(1).flatten(1)


class Listener(Protocol):
    """Hears how the training goes."""

    def step(self, epoch: int, done: int, of: int) -> None:
        """A step of an epoch is done."""

    def epoch(self, epoch: int, loss: float, change: float) -> None:
        """An epoch is done: mean cross-entropy, and mean squared change of the saliency map."""

    def stopped(self) -> bool:
        """Whether to stop after this step."""


class Training:
    """A network under training, with all that is needed to go on after a stop.

    Args:
        images: what to train on.
        options: how.
        device: where.
    """

    def __init__(self, images: Images, options: TrainingOptions, device: torch.device | str = "cpu") -> None:
        self.images, self.options, self.device = images, options, torch.device(device)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(options.seed)
            self.net = network(options.architecture, images.size, len(images.classes), options.beta)
        self.net.to(self.device)
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=options.rate)
        self.done = 0  # steps
        self.history: list[dict[str, float]] = []  # an entry for each epoch
        self._sums = [0.0, 0.0]
        self.identity: dict[str, Any] = {"options": options.model_dump(mode="json", exclude={"epochs"}),
                                         "images": images.digest}

    @property
    def steps(self) -> int:
        """Steps in an epoch."""
        return -(-len(self.images.x) // self.options.batch)

    @property
    def finished(self) -> bool:
        """Whether all epochs are done."""
        return self.done >= self.steps * self.options.epochs

    def run(self, listener: Listener) -> bool:
        """Train to the end; False when the listener stopped it before."""
        self.net.train()
        while not self.finished:
            epoch, number = divmod(self.done, self.steps)
            loss, change = self._step(self._rows(epoch, number))
            self._sums = [self._sums[0] + loss, self._sums[1] + change]
            self.done += 1
            listener.step(epoch + 1, number + 1, self.steps)
            if number + 1 == self.steps:
                loss, change = (value / self.steps for value in self._sums)
                self._sums = [0.0, 0.0]
                self.history.append({"loss": loss, "change": change})
                listener.epoch(epoch + 1, loss, change)
            if listener.stopped() and not self.finished:
                return False
        self.net.eval()
        return True

    def _rows(self, epoch: int, number: int) -> Tensor:
        generator = torch.Generator().manual_seed(self.options.seed * 1_000_003 + epoch)
        order = torch.randperm(len(self.images.x), generator=generator)
        return order[number * self.options.batch:(number + 1) * self.options.batch]

    def _step(self, rows: Tensor) -> tuple[float, float]:
        """One step of Adam; the mean cross-entropy and the mean squared change."""
        o = self.options
        x, y = self.images.x[rows].to(self.device), self.images.y[rows].to(self.device)
        change = torch.zeros((), device=self.device)
        if o.weight > 0 and o.rho > 0:
            moved = self._attacked(x, y)
            change = (saliency(self.net, x, y) - saliency(self.net, moved, y)).square().sum(1).mean()
        loss = functional.cross_entropy(self.net(x), y)
        self.optimizer.zero_grad()
        torch.autograd.backward([loss + o.weight * change])
        self.optimizer.step()
        return float(loss.detach()), float(change.detach())

    def _attacked(self, x: Tensor, y: Tensor) -> Tensor:
        self.net.requires_grad_(False)
        try:
            return attack(Saliency(self.net, y), _classes(self.net), x, self._effort(self.done)).images
        finally:
            self.net.requires_grad_(True)

    def _effort(self, seed: int) -> AttackOptions:
        o = self.options
        return AttackOptions(rho=o.rho, k=25.0, steps=o.steps, tries=o.tries, restarts=o.restarts, seed=seed,
                             chunk=4096)

    # -- files

    def header(self) -> dict[str, Any]:
        """What the model's file says."""
        return {"architecture": self.options.architecture, "size": list(self.images.size),
                "classes": list(self.images.classes), "beta": self.options.beta}

    def save(self, path: Path) -> None:
        """Write a state to go on from."""
        tensors = {f"net.{name}": value for name, value in self.net.state_dict().items()}
        for index, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"adam.{index}.{name}": torch.as_tensor(value) for name, value in state.items()}
        write(path, tensors, {**self.header(), "identity": self.identity, "done": self.done, "history": self.history,
                              "sums": self._sums})

    def save_model(self, path: Path) -> None:
        """Write the weights, for the model `trained`."""
        write(path, {f"net.{k}": v for k, v in self.net.state_dict().items()},
              {**self.header(), "identity": self.identity, "history": self.history})

    def load(self, path: Path) -> None:
        """Go on from a state.

        Raises:
            UsageError: it is of another training.
        """
        tensors, header = read(path)
        if header.get("identity") != json.loads(json.dumps(self.identity)):
            there = header.get("identity", {}).get("options", {})
            differs = [f"{key} is {there.get(key)!r} there and {value!r} here" for key, value in
                       self.identity["options"].items() if there.get(key) != value] or ["it has other images"]
            raise certframe.UsageError(f"{path} is of another training ({'; '.join(differs[:3])}): give another "
                                       "directory with --out")
        self.net.load_state_dict({k.removeprefix("net."): v for k, v in tensors.items() if k.startswith("net.")})
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            if name.startswith("adam."):
                _, index, key = name.split(".", 2)
                state.setdefault(int(index), {})[key] = value
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})
        self.done, self.history, self._sums = header["done"], header["history"], header["sums"]


def _classes(net: nn.Module) -> Any:
    @torch.no_grad()
    def predict(z: Tensor) -> Tensor:
        found: Tensor = net(z).argmax(1)
        return found
    return predict


@dataclass(frozen=True)
class Score:
    """How good a network is: accuracy on all test images; attacked images and mean overlap over them.

    Attributes:
        accuracy: share of the test images with the right class.
        overlap: mean empirical top-K overlap of those that are classified rightly, and its standard error.
        images: number of images attacked.
        unmoved: of those, images for which no start of the same class was found; they do not count.
    """

    accuracy: float
    overlap: float
    error: float
    images: int
    unmoved: int


def score(net: nn.Module, images: Images, options: AttackOptions, limit: int) -> Score:
    """Attack the saliency maps of the first `limit` test images that are classified rightly."""
    net = net.eval().requires_grad_(False)
    predict = _classes(net)
    device = next(net.parameters()).device
    right = torch.cat([predict(x.to(device)).cpu() for x in torch.split(images.x, 1024)]) == images.y
    rows = torch.nonzero(right)[:limit, 0]
    x, y = images.x[rows].to(device), images.y[rows].to(device)
    accuracy = float(right.float().mean())
    if not len(rows):
        return Score(accuracy, float("nan"), float("nan"), 0, 0)
    maps = Saliency(net, y)
    found = attack(maps, predict, x, options)
    before, after = mean_map(maps, x, options.chunk), mean_map(maps, found.images, options.chunk)
    shares = overlap(before, after, options.k)[found.found].double()
    error = float(shares.std() / len(shares) ** 0.5) if len(shares) > 1 else float("nan")
    return Score(accuracy, float(shares.mean()), error, len(rows), int((~found.found).sum()))
