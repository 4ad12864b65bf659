"""What the options of a run bring on a CPU: memory layout, compilation, reduced precision, and sharing in a sweep.

Ratios of processor time on one thread, of the best of several repetitions that alternate in one process, with the tuned
allocator on both sides: ``pytest -s tests/benchmarks/bench_settings.py``.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from certframe.config import component
from certframe.sampling import Cell, Sampler, Subject

MODELS = {"lite0": {"name": "lite0"}, "resnet18": {"name": "timm:resnet18", "pretrained": False},
          "vit_tiny": {"name": "timm:vit_tiny_patch16_224", "pretrained": False}}
COPIES, REPETITIONS = 16, 3


@pytest.fixture(autouse=True)
def _one_tuned_thread():
    from certframe.cli.allocator import tune_allocator
    tune_allocator()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def _model(name: str) -> Any:
    torch.manual_seed(0)
    return component("model", dict(MODELS[name])).build()


def _noisy(copies: int = COPIES) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, 3, 224, 224, generator=generator)
    return image + 0.15 * torch.randn(copies, 3, 224, 224, generator=generator)


def _forward(module: Any, x: Tensor) -> Callable[[], Tensor]:
    def run() -> Tensor:
        with torch.no_grad():
            return module(x)
    return run


def _gradient(module: Any, x: Tensor) -> Callable[[], Tensor]:
    def run() -> Tensor:
        leaf = x.detach().requires_grad_()
        return torch.autograd.grad(module(leaf)[:, 5].sum(), leaf)[0]
    return run


def _best(works: dict[str, Callable[[], Any]], repetitions: int = REPETITIONS) -> dict[str, float]:
    """Seconds of processor time of the best repetition; the first of each warms up and does not count."""
    best = dict.fromkeys(works, float("inf"))
    for repetition in range(repetitions + 1):
        for name, work in works.items():
            gc.collect()
            begin = time.process_time()
            work()
            if repetition:
                best[name] = min(best[name], time.process_time() - begin)
    return best


def _report(benchmark: Any, what: str, plain: float, other: float, **more: float) -> None:
    benchmark.extra_info.update({"times_as_fast": plain / other, **more})
    shown = "".join(f", {name} {value:.2g}" for name, value in more.items())
    print(f"\n{what}: {plain / other:.2f} × as fast ({plain:.2f} s without, {other:.2f} s with{shown})")
    benchmark.pedantic(lambda: None, rounds=1)


@pytest.mark.parametrize("passes", ["forward", "gradient"])
@pytest.mark.parametrize("name", MODELS)
def bench_channels_last(benchmark, name, passes):
    """A batch in both layouts, and by how much the results differ."""
    pass_of, x = {"forward": _forward, "gradient": _gradient}[passes], _noisy()
    plain, last = _model(name).module, _model(name).module.to(memory_format=torch.channels_last)
    works = {"plain": pass_of(plain, x), "last": pass_of(last, x.contiguous(memory_format=torch.channels_last))}
    found = _best(works)
    a, b = (work() for work in works.values())
    _report(benchmark, f"channels_last, {name}, {passes}", found["plain"], found["last"],
            difference=float((a - b).abs().max() / a.abs().max()))


@pytest.mark.parametrize("passes", ["forward", "gradient"])
def bench_compile(benchmark, passes):
    """lite0 compiled; the time to compile besides."""
    pass_of, x = {"forward": _forward, "gradient": _gradient}[passes], _noisy()
    plain, compiled = _model("lite0").module, _model("lite0").module
    compiled.compile()
    works = {"plain": pass_of(plain, x), "compiled": pass_of(compiled, x)}
    begin = time.perf_counter()
    works["compiled"]()
    compilation = time.perf_counter() - begin
    found = _best(works)
    _report(benchmark, f"compile, lite0, {passes}", found["plain"], found["compiled"], compilation_s=compilation)


def bench_bfloat16(benchmark):
    """A forward pass of lite0 under autocast, two copies: on a CPU without such arithmetic it is emulated."""
    module, x = _model("lite0").module, _noisy(2)

    def reduced() -> Tensor:
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
            return module(x)

    found = _best({"plain": _forward(module, x), "reduced": reduced}, repetitions=1)
    _report(benchmark, "autocast bfloat16, lite0, forward", found["plain"], found["reduced"])


SWEEPS = {
    "final": ("gradient", "input-x-gradient", "integrated-gradients", "cam", "grad-cam", "grad-cam++", "layer-cam",
              "occlusion"),
    "input": ("gradient", "input-x-gradient", "cam", "grad-cam", "grad-cam++", "layer-cam"),
}


@pytest.mark.parametrize("layer", SWEEPS)
def bench_sharing_in_a_sweep(benchmark, layer):
    """Methods at one layer of lite0, in one run against a run for each."""
    model = _model("lite0")
    image = torch.rand(model.input_size, generator=torch.Generator().manual_seed(0))
    subject = Subject.of("random", image, 5, "class 5")
    sampler = Sampler(model, component("sparsifier", "top-k").build(), batch_size=COPIES)
    cells = []
    for name in SWEEPS[layer]:
        method = component("attributor", {"name": name, "layer": layer})
        cells.append(Cell(name, name, method.build(), method.fingerprint, 0.15))

    def apart() -> None:
        for cell in cells:
            sampler.sample(subject, [cell], 0, COPIES)

    found = _best({"apart": apart, "together": lambda: sampler.sample(subject, cells, 0, COPIES)})
    _report(benchmark, f"{len(cells)} methods at '{layer}' of lite0 in one run", found["apart"], found["together"])
