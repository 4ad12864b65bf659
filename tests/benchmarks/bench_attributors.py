"""Every attributor on the same 32 noisy copies, against the fastest package there is for it, and against bare passes.

    pytest -s tests/benchmarks/bench_attributors.py --benchmark-json=FILE
    python scripts/studies/speed.py --docs FILE …

lite0 at 224×224; alternately in one process, with the tuned allocator and one thread for both sides. Seconds are
processor time, which depends less on what else the machine is doing; ratios are medians over pairs of runs. Methods
that take long have fewer steps, patches or masks than by default, on both sides alike. guided-backprop and
deeplift run on a ResNet-18 with random weights: captum's do not see ReLU6 and would treat it as a gradient does.

The cost in passes is counted, not timed: operations of convolutions and matrix products, forward and backward, in units
of those of one forward pass and of one gradient with respect to the input.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import packages
import pytest
import torch
from measure import Ratio, alternate, peak_memory, record, settle
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from certframe.config import component
from certframe.noise import CopyRng

COPIES, TARGET, SIGMA = 32, 5, 0.15
pytestmark = pytest.mark.filterwarnings("ignore")  # of the packages


@dataclass(frozen=True)
class Case:
    """A method, and a package that has it.

    Attributes:
        method: name of the attributor.
        package: the distribution that is compared with; empty when there is none, ``plain`` for code in `packages`.
        options: of the attributor.
        theirs: options of the function in `packages`.
        model: what is explained.
        limit: the ratio that is aimed at.
        copies: how many of the copies the package explains; its time is scaled to all of them.
        passes: for methods made of forward passes: how many they are, for each copy.
        repetitions: how often both sides run.
    """

    method: str
    package: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    theirs: Mapping[str, Any] = field(default_factory=dict)
    model: str = "lite0"
    limit: float = 1.0
    copies: int = COPIES
    passes: int | None = None
    repetitions: int = 4

    @property
    def id(self) -> str:
        """For the command line."""
        return f"{self.method}-{self.package or 'passes'}"

    def described(self, kind: str) -> dict[str, Any]:
        """For the record."""
        setting = ", ".join(f"{name}={value}" for name, value in self.options.items())
        model = "" if self.model == "lite0" else self.model
        return {"kind": kind, "case": self.id, "method": self.method, "package": self.package, "copies": COPIES,
                "setting": ", ".join(filter(None, (model, setting))), "repetitions": self.repetitions}

    @property
    def module(self) -> str:
        """The package as an import."""
        return {"grad-cam": "pytorch_grad_cam"}.get(self.package, self.package)

    def attributor(self) -> Any:
        """The method."""
        return component("attributor", {"name": self.method, **self.options}).build()

    def package_explains(self, model: Any) -> packages.Explain:
        """The package's way."""
        name = f"{self.package}_{self.method}".replace("++", "-plus-plus").replace("-", "_")
        explain: packages.Explain = getattr(packages, name)(model, **self.theirs)
        return explain


_OCCLUSION = {"patch": 112, "stride": 112}
_SMALL = {"layer": "blocks.0"}
"""A layer with 16 feature maps instead of the last one's 1280."""
CASES = (
    Case("gradient", "captum", repetitions=8),
    Case("input-x-gradient", "captum", repetitions=8),
    Case("guided-backprop", "captum", model="resnet18", repetitions=8),
    Case("integrated-gradients", "captum", {"steps": 3}, {"steps": 3}),
    Case("smoothgrad", "captum", {"samples": 3}, {"samples": 3}),
    Case("vargrad", "captum", {"samples": 3}, {"samples": 3}),
    Case("deeplift", "captum", model="resnet18"),
    Case("lrp", "zennit"),
    Case("cam", "torchcam", repetitions=8),
    Case("grad-cam", "torchcam", repetitions=8),
    Case("grad-cam", "captum", repetitions=8),
    Case("grad-cam++", "torchcam", repetitions=8),
    Case("layer-cam", "torchcam", repetitions=8),
    Case("ablation-cam", "grad-cam", limit=0.05, copies=1, repetitions=2),
    Case("score-cam", "torchcam", _SMALL, _SMALL, passes=17, repetitions=2),
    Case("score-cam", "grad-cam", _SMALL, _SMALL, repetitions=2),
    Case("occlusion", "captum", _OCCLUSION, _OCCLUSION, passes=5),
    Case("rise", options={"masks": 8}, passes=8),
)
BY_ID = {case.id: case for case in CASES}


@cache
def model_of(name: str) -> Any:
    if name == "lite0":
        return component("model", "lite0").build()
    torch.manual_seed(0)
    return component("model", {"name": "timm", "architecture": name, "pretrained": False}).build()


def copies() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(COPIES, 3, 224, 224, generator=generator)
    return torch.rand(1, 3, 224, 224, generator=generator) + SIGMA * noise


def work_of(case: Case, *, package: bool, count: int = COPIES) -> Callable[[], Tensor]:
    """What is measured: maps of so many copies, by certframe or by the package."""
    model, x = model_of(case.model), copies()[:count]
    if package:
        explain = case.package_explains(model)
        return lambda: explain(x, TARGET)
    method = case.attributor()

    def ours() -> Tensor:
        rng = CopyRng(0, "benchmark", case.method, range(count))
        return method.attribute(model, x, torch.full((count,), TARGET), rng=rng).maps
    return ours


def installed(case: Case) -> None:
    """Skip when the method's plugin or the package is not there."""
    from certframe.errors import UsageError
    if case.package not in ("", "plain"):
        pytest.importorskip(case.module, reason=f"the package {case.package} is not installed")
    try:
        case.attributor()
    except UsageError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("case", [case for case in CASES if case.package], ids=lambda case: case.id)
def bench_against_a_package(benchmark: Any, case: Case) -> None:
    """Ours over theirs."""
    installed(case)
    settle(threads=1)
    ours, theirs = work_of(case, package=False), work_of(case, package=True, count=case.copies)
    ratio = alternate(ours, theirs, case.repetitions, time.process_time)
    scale = COPIES / case.copies
    scaled = Ratio(ratio.ours, ratio.theirs * scale, tuple(pair / scale for pair in ratio.pairs))
    record(benchmark, case.id, scaled, **case.described("package"), **scaled.paired, limit=case.limit)
    benchmark.pedantic(lambda: None, rounds=1)


@pytest.mark.parametrize("case", [case for case in CASES if case.passes], ids=lambda case: case.id)
def bench_against_bare_passes(benchmark: Any, case: Case) -> None:
    """Methods made of forward passes, over as many forward passes of the model in batches of 32."""
    installed(case)
    settle(threads=1)
    model, x = model_of(case.model), copies()

    def bare() -> None:
        with torch.no_grad():
            for _ in range(case.passes or 0):
                model.module(x)

    ratio = alternate(work_of(case, package=False), bare, case.repetitions, time.process_time)
    record(benchmark, f"{case.method} over {case.passes} passes", ratio, **case.described("passes"),
           **ratio.paired, passes=case.passes, limit=1.1)
    benchmark.pedantic(lambda: None, rounds=1)


class Counter(TorchDispatchMode):
    """Counts the operations of convolutions and matrix products.

    torch's own FlopCounterMode puts hooks on modules, which `autograd.grad` with respect to a module's input refuses.
    """

    def __init__(self) -> None:
        super().__init__()
        self.forward, self.backward = 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket in flop_registry:
            count = flop_registry[func.overloadpacket](*args, **(kwargs or {}), out_val=result)
            if "backward" in func.name():
                self.backward += count
            else:
                self.forward += count
        return result


def operations(work: Callable[[], Any]) -> tuple[int, int]:
    """Operations forward and backward, without what a method does once for a model."""
    work()
    with Counter() as counter:
        work()
    return counter.forward, counter.backward


def sides(case: Case) -> list[str]:
    """Ours, and theirs where there is a package."""
    return ["ours", "theirs"] if case.package else ["ours"]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def bench_cost(benchmark: Any, case: Case) -> None:
    """Passes for each copy, of both sides."""
    installed(case)
    unit = operations(work_of(Case("gradient", model=case.model), package=False, count=1))
    found: dict[str, float] = {}
    for side in sides(case):
        counted = operations(work_of(case, package=side == "theirs", count=1))
        found[f"{side}_forward"], found[f"{side}_backward"] = (
            count / one for count, one in zip(counted, unit, strict=True))
    benchmark.extra_info.update({**case.described("cost"), **found})
    print(f"\n{case.id}: " + ", ".join(f"{name} {value:.4g}" for name, value in found.items()))
    benchmark.pedantic(lambda: None, rounds=1)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def bench_memory(benchmark: Any, case: Case) -> None:
    """Peak memory of the batch on top of the model, of both sides, in MB."""
    installed(case)
    found: dict[str, float] = {}
    for side in sides(case):
        package, count = side == "theirs", case.copies if side == "theirs" else COPIES
        memory = peak_memory(f"import bench_attributors as b\nb.copies()\nb.model_of({case.model!r})",
                             f"b.work_of(b.BY_ID[{case.id!r}], package={package}, count={count})()", threads=1)
        found[f"{side}_MB"] = memory["peak"] - memory["base"]
    benchmark.extra_info.update({**case.described("memory"), **found})
    print(f"\n{case.id}: " + ", ".join(f"{name} {value:.0f}" for name, value in found.items()))
    benchmark.pedantic(lambda: None, rounds=1)
