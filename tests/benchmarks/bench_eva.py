"""One explanation by EVA, 145 bound problems on a 12×12 grid, against a single bound problem.

CPU time on one thread, best of alternate runs in one process; random weights, p = 2.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn


def _mlp() -> tuple[nn.Module, tuple[int, int, int], float]:
    """The MNIST network of the paper: 256-128-64-32-10."""
    sizes = (784, 256, 128, 64, 32)
    hidden = [layer for a, b in itertools.pairwise(sizes) for layer in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(32, 10)), (1, 28, 28), 0.5


def _cifar() -> tuple[nn.Module, tuple[int, int, int], float]:
    """The CIFAR-10 network of the paper, convolutions 128-80-64, max pooling, dense 64-10; strides 2, 2, 1."""
    network = nn.Sequential(
        nn.Conv2d(3, 128, 3, 2, 1), nn.ReLU(), nn.Conv2d(128, 80, 3, 2, 1), nn.ReLU(), nn.Conv2d(80, 64, 3, 1, 1),
        nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(64 * 16, 64), nn.ReLU(), nn.Linear(64, 10))
    return network, (3, 32, 32), 0.5


def _best(works: dict[str, Callable[[], Any]], repetitions: int) -> dict[str, float]:
    seconds = dict.fromkeys(works, float("inf"))
    for repetition in range(repetitions + 1):
        for name, work in works.items():
            begin = time.process_time()
            work()
            if repetition:  # the first warms up
                seconds[name] = min(seconds[name], time.process_time() - begin)
    return seconds


@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize("method", ["ibp", "forward", "backward", "ibp+forward", "ibp+forward+backward"])
@pytest.mark.parametrize("network", [_mlp, _cifar], ids=["mlp", "cifar"])
def bench_eva(benchmark, network, method, precision):
    """All cells against the ball alone."""
    pytest.importorskip("certframe_eva", reason="certframe-eva is not installed")
    from certframe_eva.grid import cells
    from certframe_eva.network import Network
    from certframe_eva.overlap import overlap
    from certframe_eva.regions import Region
    torch.set_num_threads(1)
    torch.manual_seed(0)
    module, shape, eps = network()
    dtype = getattr(torch, precision)
    image, targets = torch.rand(1, *shape).to(dtype), torch.tensor([0])
    graph = Network.of(module.eval().requires_grad_(False), torch.rand(2, *shape)).to(dtype)
    alone, every = (Region.ball(image, eps, 2, fixed=fixed) for fixed in (None, cells(12, *shape[1:])))

    def explain() -> Any:
        return overlap(graph, every, targets, method)

    took = _best({"single": lambda: overlap(graph, alone, targets, method), "explanation": explain},
                 5 if shape[0] == 1 else 1)
    ratio = took["explanation"] / took["single"]
    benchmark.extra_info.update({**took, "ratio": ratio, "per_second": 1 / took["explanation"]})
    print(f"\n{method} {precision}: {took['single']:.4f} s one problem, {took['explanation']:.4f} s an explanation, "
          f"ratio {ratio:.1f}, {1 / took['explanation']:.3g} explanations per second")
    benchmark.pedantic(explain, rounds=1)
