"""Plugins of every kind whose arithmetic is exact, so that a result cannot depend on how copies are batched.

Noisy pixels are rounded to multiples of 1/256 and everything after that is sums of small integers, which float32 holds
without error. `OBSERVERS` see every batch that an attributor is given.
"""

from __future__ import annotations

import queue
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from certframe import hookimpl, protocols
from certframe.certifiers.pixel import Pixel
from certframe.config import RunConfig, resolve
from certframe.errors import UsageError
from certframe.protocols import Attribution, Certificate, Explanation, Sample, Schedule, Split
from certframe.registry import Registry
from certframe.tally import Tally

OBSERVERS: list[Callable[[Tensor, Tensor], None]] = []
"""Called with the inputs and targets of every batch."""


def quantised(x: Tensor) -> Tensor:
    """Integers, in float32."""
    return (x * 256).round()


class Exact(nn.Module):
    """Logits that are exact sums of integers."""

    def __init__(self, side: int, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        weight = torch.randint(-3, 4, (3, side * side), generator=generator).float()
        self.weight = nn.Parameter(weight, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return quantised(x).flatten(1) @ self.weight.T


class Toy:
    """Model: one channel, three classes."""

    class Options(protocols.Options):
        side: int = 4
        seed: int = 0
        broken: bool = False

    argument = "seed"

    def __init__(self, options: Options | None = None) -> None:
        o = self.options = options or self.Options()
        self.input_size = (1, o.side, o.side)
        self.classes = ("zero", "one", "two")
        self.module = Exact(o.side, o.seed).eval()
        if o.broken:
            self.module.weight.fill_(float("nan"))

    def preprocess(self, image: Any) -> Tensor:
        raise UsageError("the toy model takes tensors only: give a data set of tensors")

    def at(self, layer: str) -> Split:
        if layer != "input":
            raise UsageError(f"unknown layer '{layer}': the toy model has only 'input'")
        return Split(body=lambda x: (x,), head=self.module, as_map=lambda a: a)


class Toys:
    """Data set: random pictures; those in `bad` cannot be read."""

    class Options(protocols.Options):
        count: int = 2
        side: int = 4
        bad: tuple[int, ...] = ()
        label: int | None = None
        reverse: bool = False

    def __init__(self, options: Options | None = None) -> None:
        self.options = options or self.Options()
        order = range(self.options.count)
        self._order = list(reversed(order) if self.options.reverse else order)

    def __len__(self) -> int:
        return self.options.count

    def name(self, index: int) -> str:
        return f"toy {self._order[index]}"

    def load(self, index: int) -> Sample:
        which = self._order[index]
        if which in self.options.bad:
            raise UsageError(f"image 'toy {which}' cannot be read: it is a bad toy")
        generator = torch.Generator().manual_seed(1000 + which)
        bits = torch.randint(0, 256, (1, self.options.side, self.options.side), generator=generator)
        return Sample(self.name(index), bits.float() / 255, self.options.label, {"boxes": [[0, 0, 1, which]]})


class Weighted:
    """Attributor: the pixel, with a sign that depends on pixel and class."""

    class Options(protocols.Options):
        offset: int = 0

    needs_gradients = False
    deterministic = True

    def __init__(self, options: Options | None = None) -> None:
        self.options = options or self.Options()

    def attribute(self, model: Any, inputs: Tensor, targets: Tensor, *, rng: Any) -> Attribution:
        for observe in OBSERVERS:
            observe(inputs, targets)
        return Attribution(self.maps(model, inputs, targets, rng), model.module(inputs))

    def maps(self, model: Any, inputs: Tensor, targets: Tensor, rng: Any) -> Tensor:
        signs = model.module.weight.sign()[targets].reshape(inputs.shape[0], *inputs.shape[2:])
        return quantised(inputs[:, 0]) * signs + self.options.offset


class Coarse(Weighted):
    """Attributor: half the resolution, and no logits."""

    def attribute(self, model: Any, inputs: Tensor, targets: Tensor, *, rng: Any) -> Attribution:
        fine = super().attribute(model, inputs, targets, rng=rng).maps
        return Attribution(nn.functional.avg_pool2d(fine[:, None], 2)[:, 0])


class Random(Weighted):
    """Attributor: with fresh integers for every copy."""

    deterministic = False

    def maps(self, model: Any, inputs: Tensor, targets: Tensor, rng: Any) -> Tensor:
        shape = inputs.shape[2:]
        masks = rng.integers(200, *shape) + (rng.uniform(*shape) > 0.5) + rng.shared.integers(9, *shape)
        return super().maps(model, inputs, targets, rng) + masks


class Hungry(Weighted):
    """Attributor: runs out of memory above so many copies at once, and always when its own batch is above 8."""

    class Options(protocols.Options):
        offset: int = 0
        most: int = 4
        own: int = 8
        message: str = "[enforce fail] . DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."

    execution = frozenset({"own"})

    def maps(self, model: Any, inputs: Tensor, targets: Tensor, rng: Any) -> Tensor:
        if len(inputs) > self.options.most or self.options.own > 8:
            raise RuntimeError(self.options.message)
        return super().maps(model, inputs, targets, rng)


class Constant(Weighted):
    """Attributor: nothing is important."""

    def maps(self, model: Any, inputs: Tensor, targets: Tensor, rng: Any) -> Tensor:
        return torch.zeros_like(inputs[:, 0])


class Poisoned(Weighted):
    """Attributor: some scores are NaN or infinite, on clean images, on some noisy copies, or on both."""

    class Options(protocols.Options):
        offset: int = 0
        where: Literal["clean", "noisy", "both"] = "both"
        pixels: int = 3
        infinite: bool = False

    def maps(self, model: Any, inputs: Tensor, targets: Tensor, rng: Any) -> Tensor:
        maps = super().maps(model, inputs, targets, rng)
        clean = bool(((inputs * 255).round() / 255 == inputs).all())
        if self.options.where in ("both", "clean" if clean else "noisy"):
            maps[-1].view(-1)[: self.options.pixels] = float("inf") if self.options.infinite else float("nan")
        return maps


class Failing(Weighted):
    """Attributor: raises."""

    def maps(self, model: Any, inputs: Tensor, targets: Tensor, rng: Any) -> Tensor:
        raise ValueError("the toy\nfell over")


class Above:
    """Sparsifier: 1 where the score exceeds a threshold, nested."""

    class Options(protocols.Options):
        t: tuple[float, ...] = (-20.0, 60.0)

    nested = True
    binary = True

    def __init__(self, options: Options | None = None) -> None:
        self.options = options or self.Options()
        self.levels = tuple(f"{t:g}" for t in self.options.t)

    def sparsify(self, maps: Tensor) -> Tensor:
        return torch.stack([maps > t for t in self.options.t], dim=1)


class Soft:
    """Sparsifier: real values in [0, 1]."""

    class Options(protocols.Options):
        scale: float = 300.0

    nested = False
    binary = False
    levels = ("soft", "half")

    def __init__(self, options: Options | None = None) -> None:
        self.options = options or self.Options()

    def sparsify(self, maps: Tensor) -> Tensor:
        level = (maps / self.options.scale).clamp(0, 1)
        return torch.stack([level, level / 2], dim=1)


class Early:
    """Certifier: `pixel`, but it looks at the counts on the way and stops when enough of them are one-sided."""

    class Options(protocols.Options):
        at: tuple[int, ...] = (40, 64)
        share: float = 0.5

    def __init__(self, options: Options | None = None) -> None:
        self.options = options or self.Options()
        self.cuts = self.options.at
        self._pixel = Pixel(Pixel.Options(alpha=0.1))

    def min_samples(self, pixels: int, levels: int) -> int:
        return min(self.options.at)

    def certify(self, tally: Tally) -> Certificate:
        # A fixed-n test of counts that were stopped early is a peek, and `pixel` would refuse it: this is a toy.
        return replace(self._pixel.certify(replace(tally, planned=0)), certifier="toy-early",
                       options=self.options.model_dump(mode="json"))

    def looks(self, samples: int) -> Schedule:
        return Schedule(self.options.at, self._done)

    def _done(self, tally: Tally) -> tuple[bool, str]:
        assert tally.copies == ((0, tally.samples),)
        assert tally.samples in self.options.at
        share = float((abs(2 * tally.mean - 1) > 0.5).mean())
        return share >= self.options.share, f"{share:.3f} decided at {tally.samples}"


class Needy:
    """Metric: needs boxes and the model."""

    class Options(protocols.Options):
        needs: tuple[str, ...] = ("boxes", "model")

    def __init__(self, options: Options | None = None) -> None:
        self.options = options or self.Options()
        self.requires = frozenset(self.options.needs)

    def compute(self, explanation: Explanation) -> Mapping[str, float]:
        assert explanation.model is not None
        logits = explanation.model.module(explanation.image[None])[0]
        return {"needy.target": float(logits.argmax() == explanation.target), "needy.boxes":
                float(len(explanation.extras["boxes"]))}


class Threads:
    """Executor: places of work in threads, each with a worker of its own, that answer in a random order."""

    class Options(protocols.Options):
        slots: int = 2
        seed: int = 0

    def __init__(self, options: Options | None = None) -> None:
        self.options = options or self.Options()
        self.slots = self.options.slots
        self._tasks: queue.Queue[tuple[Any, Future[Any], float] | None] = queue.Queue()
        self._delays = random.Random(self.options.seed)
        self._threads: list[threading.Thread] = []

    def start(self, factory: Callable[[], Callable[[Any], Any]]) -> None:
        ready: queue.Queue[BaseException | None] = queue.Queue()
        self._threads = [threading.Thread(target=self._work, args=(factory, ready)) for _ in range(self.slots)]
        for thread in self._threads:
            thread.start()
        problems = [ready.get() for _ in self._threads]
        for problem in problems:
            if problem is not None:
                self.close()
                raise problem

    def _work(self, factory: Callable[[], Callable[[Any], Any]], ready: queue.Queue[BaseException | None]) -> None:
        try:
            worker = factory()
        except Exception as error:
            ready.put(error)
            return
        ready.put(None)
        while (item := self._tasks.get()) is not None:
            task, future, delay = item
            try:
                result = worker(task)
            except Exception as error:
                future.set_exception(error)
            else:
                time.sleep(delay)
                future.set_result(result)

    def submit(self, task: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self._tasks.put((task, future, self._delays.choice([0.0, 0.0, 0.004])))
        return future

    def close(self) -> None:
        for _ in self._threads:
            self._tasks.put(None)
        for thread in self._threads:
            thread.join()
        self._threads = []


class ToyPlugin:
    """The hooks."""

    @hookimpl
    def certframe_models(self, register: Any) -> None:
        register("toy", "toys:Toy")

    @hookimpl
    def certframe_datasets(self, register: Any) -> None:
        register("toys", "toys:Toys")

    @hookimpl
    def certframe_attributors(self, register: Any) -> None:
        for cls in (Weighted, Coarse, Random, Constant, Hungry, Poisoned, Failing):
            register(f"toy-{cls.__name__.lower()}", f"toys:{cls.__name__}", f"toy {cls.__name__.lower()}")

    @hookimpl
    def certframe_sparsifiers(self, register: Any) -> None:
        register("toy-above", "toys:Above")
        register("toy-soft", "toys:Soft")

    @hookimpl
    def certframe_certifiers(self, register: Any) -> None:
        register("toy-early", "toys:Early")

    @hookimpl
    def certframe_metrics(self, register: Any) -> None:
        register("toy-needy", "toys:Needy")

    @hookimpl
    def certframe_executors(self, register: Any) -> None:
        register("toy-threads", "toys:Threads")


def registry() -> Registry:
    """The built-ins and the toys."""
    result = Registry(external=False)
    result.add(ToyPlugin(), name="toys", distribution="certframe-toys", version="1.0")
    return result


def configure(registry: Registry, *, options: Sequence[str] = (), **settings: Any) -> RunConfig:
    """A run of toys; settings and options as on the command line."""
    base: dict[str, Any] = {
        "model": "toy", "dataset": "toys", "attributor": ["toy-weighted"], "sparsifier": "toy-above",
        "certifier": ["pixel"], "samples": 48, "batch_size": 16, "sigma": [0.25], "device": "cpu"}
    return resolve(settings={**base, **settings}, overrides=options, registry=registry)
