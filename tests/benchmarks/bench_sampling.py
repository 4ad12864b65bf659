"""What counting costs on top of the model, memory, and the allocator. Run on lite0, 224×224, two threads."""

from __future__ import annotations

import torch
from measure import alternate, fresh, peak_memory, record, settle

from certframe.certifiers.pixel import Pixel
from certframe.config import component
from certframe.sampling import Cell, Sampler, Subject

_COPIES, _BATCH = 200, 32


def _lite0():
    return component("model", "lite0").build()


def _subject(model) -> Subject:
    generator = torch.Generator().manual_seed(0)
    return Subject.of("random", torch.rand(model.input_size, generator=generator), 5, "class 5")


def _sampler(model, batch: int = _BATCH) -> tuple[Sampler, Cell]:
    method = component("attributor", "gradient")
    sampler = Sampler(model, component("sparsifier", "top-k").build(), batch_size=batch, cuts=(10,))
    return sampler, Cell("gradient", "gradient", method.build(), method.fingerprint, 0.15)


def _bare(model, image: torch.Tensor) -> None:
    """The same forward and backward passes in the same batches, and nothing else."""
    for start in range(0, _COPIES, _BATCH):
        x = image.expand(min(_BATCH, _COPIES - start), -1, -1, -1).clone().requires_grad_()
        torch.autograd.grad(model.module(x)[:, 5].sum(), x)


def bench_overhead_of_certifying(benchmark):
    """A gradient run of 200 copies with three K, counted and certified, against the bare passes; allocator tuned."""
    settle(threads=2)
    model = _lite0()
    subject = _subject(model)
    sampler, cell = _sampler(model)

    def certified() -> None:
        Pixel().certify(sampler.sample(subject, [cell], 0, _COPIES)["gradient"])

    ratio = alternate(certified, lambda: _bare(model, subject.image), repetitions=5)
    record(benchmark, "gradient run of 200 copies of lite0 over the bare passes", ratio)
    benchmark.pedantic(certified, rounds=1)


_MEMORY = """
import bench_sampling as b
model = b._lite0()
subject = b._subject(model)
sampler, cell = b._sampler(model, 8)
"""


def bench_memory_is_constant_in_n(benchmark):
    """How much the peak grows from n = 200 to n = 2000 in one process, in units of what a batch of the model takes.

    Two processes differ by more than that: the allocator settles during the first batches, and not always alike.
    """
    first = peak_memory(_MEMORY, "sampler.sample(subject, [cell], 0, 100)")
    settled = f"{_MEMORY}sampler.sample(subject, [cell], 0, 200)\n"
    later = peak_memory(settled, "sampler.sample(subject, [cell], 200, 2000)")
    batch = first["peak"] - first["base"]
    share = (later["peak"] - later["base"]) / batch
    benchmark.extra_info.update({"batch_MB": batch, "growth_of_a_batch": share})
    print(f"\npeak memory from n = 200 to n = 2000: {share:+.2%} of a batch ({batch:.0f} MB)")
    benchmark.pedantic(lambda: None, rounds=1)


_ALLOCATOR = """
import json, time
if {tuned}:
    from certframe.cli.allocator import tune_allocator
    assert tune_allocator()
import bench_sampling as b, torch
torch.set_num_threads(2)
model = b._lite0()
subject = b._subject(model)
sampler, cell = b._sampler(model)
sampler.sample(subject, [cell], 0, 32)
best = 1e9
for _ in range(3):
    begin = time.perf_counter(); sampler.sample(subject, [cell], 0, 96); best = min(best, time.perf_counter() - begin)
x = subject.image.expand(32, -1, -1, -1).clone()
forward = 1e9
with torch.no_grad():
    model.module(x)
    for _ in range(5):
        begin = time.perf_counter(); model.module(x); forward = min(forward, time.perf_counter() - begin)
print(json.dumps([best, forward]))
"""


def bench_allocator(benchmark):
    """The same counting with and without the tuned allocator, in fresh processes, twice alternately."""
    def seconds(tuned: bool) -> list[float]:
        return fresh(_ALLOCATOR.format(tuned=tuned))

    runs = [(seconds(True), seconds(False)) for _ in range(2)]
    tuned, plain = ([min(run[side][i] for run in runs) for i in (0, 1)] for side in (0, 1))
    benchmark.extra_info.update({"gradients_faster": plain[0] / tuned[0], "forward_faster": plain[1] / tuned[1]})
    print(f"\ntuned allocator: gradients {plain[0] / tuned[0]:.2f}×, forward {plain[1] / tuned[1]:.2f}× as fast")
    benchmark.pedantic(lambda: None, rounds=1)
