"""What a plan says against counts made by hand, against real runs, and against the published figures."""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import toys

import certframe
from certframe import hookimpl, plan_text, probing
from certframe.config import RunConfig, resolve
from certframe.errors import UsageError
from certframe.pipeline import execute
from certframe.planning import Claim, Plan, plan_run
from certframe.protocols import ABSTAIN, Attribution
from certframe.registry import Registry
from certframe.tally import Tally


@pytest.fixture
def plan(registry: Registry) -> Callable[..., Plan]:
    """``plan(out, probe=…, **settings)``: plan a run of toys."""
    def call(out: Path | None = None, *, probe: bool = False, **settings: Any) -> Plan:
        return plan_run(toys.configure(registry, **settings), out, probe=probe, registry=registry)
    return call


def photograph(**settings: Any) -> dict[str, Any]:
    """A run over a map of 224×224 pixels."""
    return {"options": ["model.side=224", "dataset.side=224", *settings.pop("options", [])], "sigma": [0.15],
            "samples": 100, **settings}


def refusal(call: Callable[[], Any]) -> str:
    with pytest.raises(UsageError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


# -- figures ----------------------------------------------------------------------------------------------------------

class Figure(NamedTuple):
    certifier: str
    samples: int
    votes: int
    voters: int
    radius: float
    options: tuple[str, ...] = ()


PUBLISHED = [
    Figure("pixel", 100, 96, 100, 0.1012),
    Figure("pixel", 100, 88, 90, 0.1012, ("certifier.correction=paper",)),
    Figure("radius", 100, 78, 100, 0.98 * 0.15),
    Figure("radius", 1000, 590, 1000, 2.11 * 0.15),
    Figure("quantile", 100, 93, 100, 0.075, ("sparsifier.t=[0.5]",)),
]


@pytest.mark.parametrize("figure", PUBLISHED, ids=lambda f: f"{f.certifier}-{f.samples}-{f.votes}")
def test_the_published_figures(plan: Callable[..., Plan], figure: Figure) -> None:
    settings = {"sparsifier": "threshold"} if figure.certifier == "quantile" else {}
    claim, = plan(**photograph(certifier=figure.certifier, samples=figure.samples, options=list(figure.options),
                               **settings)).claims
    assert claim.pixels == 224 * 224
    assert claim.exact
    if figure.certifier == "radius" and figure.samples == 100:
        assert claim.votes is not None
        assert abs(claim.votes - figure.votes) <= 1  # the figure is stated for the bound, not for the votes
    else:
        assert (claim.votes, claim.voters) == (figure.votes, figure.voters)
    assert claim.radius == pytest.approx(figure.radius, rel=0.01)


def test_the_fewest_samples_of_the_pixel_certificate(plan: Callable[..., Plan]) -> None:
    assert plan(**photograph()).claims[0].min_samples == 62
    assert plan(**photograph(samples=62)).claims[0].votes == 62
    text = refusal(lambda: plan(**photograph(samples=61)))
    assert "61 samples" in text
    assert "--samples 62" in text


# -- votes, looks and radii against certificates of counts made by hand -----------------------------------------------

CERTIFIERS = [
    ("pixel", ()), ("pixel", ("certifier.correction=bonferroni",)), ("pixel", ("certifier.correction=paper",)),
    ("pixel", ("certifier.family=all",)), ("pixel", ("certifier.tau=0.6", "certifier.alpha=0.2")), ("adaptive", ()),
    ("adaptive", ("certifier.spending=union", "certifier.step_down=false")), ("radius", ()), ("importance-band", ()),
    ("class", ()), ("class", ("certifier.joint=radius",)), ("class", ("certifier.joint=adaptive",)),
]


def by_hand(config: RunConfig, cuts: tuple[int, ...], votes: int, copies: int, spread: Any) -> Tally:
    """One pixel with so many votes, the other fifteen with half; `spread` deals them out to the segments."""
    edges = [0, *(min(cut, copies) for cut in cuts), copies]
    segments = np.zeros((len(edges) - 1, 2, 4, 4), dtype=np.int64)
    for s in range(len(edges) - 1):
        segments[s] = spread(copies // 2, edges[s + 1], copies) - spread(copies // 2, edges[s], copies)
        segments[s, :, 0, 0] = spread(votes, edges[s + 1], copies) - spread(votes, edges[s], copies)
    logits = np.diff(edges)[:, None] * np.array([[1, 0, 0]])
    return Tally(segments, ((0, copies),), ("-20", "60"), 0.25, cuts=cuts, planned=config.samples, nested=True,
                 identity={"target": 0, "sparsifier": config.sparsifier.fingerprint}, votes=logits)


@pytest.mark.parametrize(("certifier", "options"), CERTIFIERS)
@pytest.mark.parametrize("samples", [120, 301])
def test_so_many_votes_certify_and_one_fewer_does_not(plan: Callable[..., Plan], registry: Registry, certifier: str,
                                                      options: tuple[str, ...], samples: int) -> None:
    planned = plan(certifier=certifier, options=list(options), samples=samples)
    claim, = planned.claims
    assert claim.pixels == 16
    assert claim.votes is not None
    prover = planned.config.certifier[0].build(registry)
    schedule = prover.looks(samples)
    cuts = tuple(sorted({n for n in (*prover.cuts, *(schedule.looks if schedule else ())) if n < samples}))
    paper = "certifier.correction=paper" in options

    def certified(votes: int, copies: int) -> bool:
        def spread(total: int, edge: int, copies: int) -> int:
            if paper and votes == total:  # the candidate is chosen by the pilot, whose votes do not count
                return min(edge, 10) + max(0, total) * max(0, edge - 10) // (copies - 10)
            return total * edge // copies
        return bool(prover.certify(by_hand(planned.config, cuts, votes, copies, spread)).labels[0, 0, 0] != ABSTAIN)

    assert claim.voters == (samples - 10 if paper else samples)
    assert certified(claim.votes, samples)
    assert not certified(claim.votes - 1, samples)
    assert bool(claim.looks) == (schedule is not None)
    if schedule is not None:
        assert claim.looks == tuple(schedule.looks)
        assert claim.first_look is not None
        assert claim.first_votes is not None
        assert certified(claim.first_votes, claim.first_look)
        assert not certified(claim.first_votes - 1, claim.first_look)
        assert not any(certified(n, n) for n in claim.looks if n < claim.first_look)


@pytest.mark.parametrize("certifier", ["pixel", "adaptive", "radius", "importance-band", "class"])
def test_at_the_fewest_samples_something_is_certified_and_below_the_run_is_refused(plan: Callable[..., Plan],
                                                                                  certifier: str) -> None:
    needed = plan(certifier=certifier, samples=300).claims[0].min_samples
    claim, = plan(certifier=certifier, samples=needed).claims
    assert claim.votes is not None
    assert claim.votes <= needed
    assert f"at least {needed}" in refusal(lambda: plan(certifier=certifier, samples=needed - 1))


@pytest.mark.parametrize("certifier", ["pixel", "adaptive", "importance-band", "class"])
def test_the_largest_radius_is_that_of_the_largest_tau_that_certifies(plan: Callable[..., Plan],
                                                                      certifier: str) -> None:
    claim, = plan(certifier=certifier, samples=200).claims
    assert claim.largest_radius is not None

    def tau(radius: float) -> str:
        return f"certifier.tau={0.5 * math.erfc(-radius / 0.25 / math.sqrt(2)):.8f}"
    assert plan(certifier=certifier, samples=200, options=[tau(0.999 * claim.largest_radius)]).claims[0].votes == 200
    refusal(lambda: plan(certifier=certifier, samples=200, options=[tau(1.001 * claim.largest_radius)]))


def test_the_largest_radius_where_no_tau_is_chosen(plan: Callable[..., Plan]) -> None:
    claim, = plan(certifier="radius", samples=200).claims
    assert claim.largest_radius == claim.radius
    assert plan(certifier="top-k-overlap").claims[0].largest_radius is None
    assert plan(certifier="top-k-overlap").claims[0].votes is None


def test_a_certifier_that_only_has_what_the_protocol_demands(plan: Callable[..., Plan]) -> None:
    claim, = plan(certifier="toy-early", samples=100, options=["certifier.at=[30, 64]"]).claims
    pixel, = plan(certifier="pixel", samples=100, options=["certifier.alpha=0.1"]).claims
    assert (claim.votes, claim.radius, claim.looks) == (pixel.votes, pixel.radius, (30, 64))


# -- adaptive runs ----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("attributor", "which"), [("toy-constant", 0), ("random", 1)])
@pytest.mark.parametrize("options", [[], ["certifier.target=0.5", "certifier.futility=0.0", "certifier.tau=0.9"]])
def test_runs_stop_where_the_plan_says(plan: Callable[..., Plan], registry: Registry, tmp_path: Path, attributor: str,
                                       which: int, options: list[str]) -> None:
    """The copies of a constant map agree everywhere, those of uniform scores at the threshold ½ nowhere."""
    settings = {"certifier": "adaptive", "samples": 300, "attributor": attributor, "sigma": 0.25,
                "options": ["sparsifier.t=[0.5]", "dataset.count=1", *options]}
    planned = plan(**settings)
    assert planned.stops is not None
    run = execute(toys.configure(registry, **settings), tmp_path / "run", registry=registry)
    row = run.table().to_pylist()[0]
    assert row["samples"] == planned.stops[which]
    assert planned.costs[0].fewest <= row["samples"] <= planned.costs[0].most


def test_only_runs_of_adaptive_certifiers_stop_early(plan: Callable[..., Plan]) -> None:
    assert plan(certifier=["adaptive", "pixel"], samples=200).stops is None
    both = plan(certifier=["adaptive", "class"], samples=200, options=["certifier.class.joint=adaptive"])
    assert both.stops == (96, 96)
    assert both.costs[0].fewest == 2 * 96
    assert both.costs[0].most == 2 * 200


# -- what it costs ----------------------------------------------------------------------------------------------------

class Counter:
    def __init__(self) -> None:
        self.copies = 0

    def __call__(self, inputs: torch.Tensor, targets: torch.Tensor) -> None:
        self.copies += len(inputs)


SWEEP: dict[str, Any] = {"attributor": ["toy-weighted", "toy-random"], "sigma": [0.25, 0.5]}


def test_the_copies_are_those_that_a_run_explains(plan: Callable[..., Plan], registry: Registry,
                                                  tmp_path: Path) -> None:
    planned = plan(**SWEEP, options=["dataset.count=3"], limit=2)
    assert planned.images == 2
    toys.OBSERVERS.append(counter := Counter())
    execute(toys.configure(registry, **SWEEP, options=["dataset.count=3"], limit=2), tmp_path / "r", registry=registry)
    clean = 2 * 2  # every method explains every image once without noise
    assert sum(cost.most for cost in planned.costs) == counter.copies - clean
    assert all(cost.fewest == cost.most for cost in planned.costs)


def test_what_is_left_is_what_a_resumed_run_explains(plan: Callable[..., Plan], registry: Registry,
                                                     tmp_path: Path) -> None:
    config, left = toys.configure(registry, **SWEEP, samples=90, options=["dataset.count=3"]), [19]

    def interrupt(inputs: torch.Tensor, targets: torch.Tensor) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt
    toys.OBSERVERS.append(interrupt)
    with pytest.raises(KeyboardInterrupt):
        execute(config, tmp_path / "r", registry=registry)
    planned = plan_run(config, tmp_path / "r", registry=registry)
    assert planned.resumes
    assert (planned.images, planned.done) == (3, 0)
    assert planned.counted > 0
    toys.OBSERVERS[:] = [counter := Counter()]
    execute(config, tmp_path / "r", registry=registry)
    assert sum(cost.most for cost in planned.costs) == counter.copies - 3 * 2
    finished = plan_run(config, tmp_path / "r", registry=registry)
    assert (finished.done, sum(cost.most for cost in finished.costs)) == (3, 0)
    assert "nothing is left to do" in repr(finished)


def test_the_run_directory_is_looked_at_but_not_touched(plan: Callable[..., Plan], registry: Registry,
                                                        tmp_path: Path) -> None:
    fresh = plan(tmp_path / "new")
    assert (fresh.resumes, fresh.done, fresh.out) == (False, 0, tmp_path / "new")
    assert not (tmp_path / "new").exists()
    execute(toys.configure(registry), tmp_path / "old", registry=registry)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "old").rglob("*")}
    assert plan(tmp_path / "old").resumes
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "old").rglob("*")} == before
    assert "seed is 0 there and 1 here" in refusal(lambda: plan(tmp_path / "old", seed=1))


def test_the_model_is_not_run(plan: Callable[..., Plan], monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*args: Any) -> None:
        raise AssertionError("the model was run")
    monkeypatch.setattr(toys.Exact, "forward", run)
    plan(certifier=["pixel", "adaptive", "radius"], samples=200)
    with pytest.raises(Exception, match="the model was run"):
        plan(probe=True)


def test_the_passes_that_methods_state_are_those_they_make() -> None:
    from certframe.models.digits import Digits
    from certframe.registry import default_registry
    from certframe.testing.fixtures import rng
    model = Digits()
    rows = [0]
    first = next(m for m in model.module.modules() if isinstance(m, torch.nn.Conv2d))
    first.register_forward_pre_hook(lambda _module, given: rows.__setitem__(0, rows[0] + len(given[0])))
    inputs, stated = torch.rand(3, 1, 8, 8), 0
    for entry in default_registry().entries("attributor"):
        if entry.distribution not in ("certframe", "certframe-rise"):
            continue
        attributor = entry.load()()
        passes = getattr(attributor, "passes", None)
        if passes is not None:
            for _ in range(2):  # what belongs to a model may be found out once
                rows[0] = 0
                attributor.attribute(model, inputs, torch.tensor([1, 2, 3]), rng=rng(range(3)))
            stated += 1
            # A reference that is the same for the whole batch (deeplift's) may be one row more.
            assert rows[0] in (3 * passes, 3 * passes + 1), entry.name
    assert stated >= 8


@pytest.mark.parametrize("certifier", ["pixel", "adaptive", "radius"])
def test_disk_and_memory_are_those_of_a_run(plan: Callable[..., Plan], registry: Registry, tmp_path: Path,
                                            certifier: str) -> None:
    options = ["model.side=64", "dataset.side=64", "dataset.count=2", "sparsifier.t=[-20, 20, 60]"]
    settings = {**SWEEP, "certifier": certifier, "samples": 120, "options": options}
    planned = plan(**settings)
    run = execute(toys.configure(registry, **settings), tmp_path / "run", registry=registry)
    written = sum(p.stat().st_size for p in run.path.rglob("*") if p.is_file())
    assert 0.9 * written < planned.disk < 1.4 * written
    tally = run.tally(run.image_keys()[0], next((run.path / "tallies").glob("*/*")).stem)
    assert planned.memory == 4 * tally.segments.astype(np.int64).nbytes


def test_too_little_space_is_refused(plan: Callable[..., Plan], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**6, 10**6, 1000))  # type: ignore[attr-defined]
    text = refusal(plan)
    assert "1 kB are free" in text
    assert "--limit" in text


def test_sums_of_real_levels_are_planned(plan: Callable[..., Plan]) -> None:
    claim, = plan(sparsifier="toy-soft", certifier="top-k-overlap").claims
    assert (claim.votes, claim.radius, claim.min_samples) == (None, 0.03, 1)


# -- refusals ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("settings", "words"), [
    ({"sparsifier": "toy-soft"}, ("real-valued",)),
    ({"certifier": "quantile"}, ("threshold",)),
    ({"options": ["dataset.count=0"]}, ("toys", "no images")),
    ({"samples": 5}, ("5 samples", "--samples")),
    ({"device": "cuda:9"}, ("cuda:9", "--device auto")),
])
def test_what_a_run_would_refuse_is_refused(plan: Callable[..., Plan], registry: Registry, tmp_path: Path,
                                            settings: dict[str, Any], words: tuple[str, ...]) -> None:
    text = refusal(lambda: plan(**settings))
    assert all(word in text for word in words)
    assert refusal(lambda: execute(toys.configure(registry, **settings), tmp_path / "run", registry=registry)) == text
    assert not (tmp_path / "run").exists()


# -- the probe --------------------------------------------------------------------------------------------------------

def test_native_maps_are_at_most_the_image_until_they_are_probed(plan: Callable[..., Plan]) -> None:
    settings = {"attributor": "toy-coarse", "resolution": "native"}
    unknown, known = plan(**settings).claims[0], plan(**settings, probe=True).claims[0]
    assert (unknown.pixels, unknown.exact) == (16, False)
    assert (known.pixels, known.exact) == (4, True)
    assert known.min_samples < unknown.min_samples
    assert plan(attributor="toy-coarse").claims[0].exact
    assert "≤" in repr(plan(**settings))
    assert "≤" not in repr(plan(**settings, probe=True))


def test_too_few_samples_for_a_native_map_are_known_after_the_probe(plan: Callable[..., Plan]) -> None:
    settings = {"attributor": "toy-coarse", "resolution": "native", "samples": 28}
    assert plan(**settings).claims[0].min_samples > 28
    assert "2×2 map of toy-coarse" in refusal(lambda: plan(**settings, probe=True))


def test_maps_that_keep_the_channels_apart() -> None:
    planned = certframe.plan(model="digits", dataset="digits", attributor=["gradient", "grad-cam"], resolution="native",
                             options={"attributor.gradient.channels": "stack"})
    assert [(claim.pixels, claim.exact) for claim in planned.claims] == [(64, True), (64, False)]
    gradient = certframe.plan(model="digits", dataset="digits", attributor="gradient").config.attributor[0].build()
    assert gradient.map_size((3, 8, 5)) == (8, 5)
    stacked = planned.config.attributor[0].build()
    assert stacked.map_size((3, 8, 5)) == (24, 5)


def test_a_method_without_logits_is_found_by_the_probe(plan: Callable[..., Plan]) -> None:
    assert plan(attributor="toy-coarse", certifier="class").claims[0].votes is not None
    assert "computes no logits" in refusal(lambda: plan(attributor="toy-coarse", certifier="class", probe=True))


class Sleepy(toys.Weighted):
    """Takes a known time per copy, and much longer at first."""

    class Options(toys.Weighted.Options):
        seconds: float = 0.004

    slow_starts = 1
    passes = 2

    def attribute(self, model: Any, inputs: torch.Tensor, targets: torch.Tensor, *, rng: Any) -> Attribution:
        time.sleep(self.options.seconds * len(inputs) + 0.3 * Sleepy.slow_starts)
        Sleepy.slow_starts = 0
        return super().attribute(model, inputs, targets, rng=rng)


class SleepyPlugin:
    @hookimpl
    def certframe_attributors(self, register: Any) -> None:
        register("sleepy", f"{__name__}:Sleepy")


@pytest.fixture
def sleepy(monkeypatch: pytest.MonkeyPatch) -> Registry:
    import sys
    registry = toys.registry()
    monkeypatch.setitem(sys.modules, __name__, sys.modules[Sleepy.__module__])
    monkeypatch.setattr(Sleepy, "slow_starts", 1)
    registry.add(SleepyPlugin(), name="sleepy", distribution="certframe-sleepy")
    assert not registry.broken
    return registry


def test_the_probe_times_what_a_run_takes(sleepy: Registry) -> None:
    config = toys.configure(sleepy, attributor=["sleepy", "toy-weighted"], samples=64, options=["dataset.count=3"])
    planned = plan_run(config, probe=True, registry=sleepy)
    assert planned.probe is not None
    assert planned.seconds is not None
    slow, fast = planned.probe.methods
    assert 0.0035 < slow.seconds < 0.008  # the slow start of 0.3 s has no part in it
    assert fast.seconds < slow.seconds / 2
    assert slow.copies >= 16
    assert slow.calls >= 3
    assert planned.seconds[0] == planned.seconds[1]
    once, noise = 3 * planned.probe.prepare, 3 * 64 * planned.probe.noise
    assert planned.seconds[0] == pytest.approx(once + noise + 3 * 64 * (slow.seconds + fast.seconds))
    assert planned.costs[0].passes == 2
    assert planned.probe.memory is not None
    assert 10**7 < planned.probe.memory < 10**12
    assert planned.probe.device == "cpu"
    assert planned.probe.device_memory is None


@pytest.mark.parametrize(("seconds", "copies", "calls"), [(0.02, 12, 2), (0.3, 1, 1)])
def test_a_slow_method_is_timed_on_fewer_copies(sleepy: Registry, monkeypatch: pytest.MonkeyPatch, seconds: float,
                                                copies: int, calls: int) -> None:
    monkeypatch.setattr(probing, "LONG_CALL", 0.25)
    monkeypatch.setattr(probing, "ENOUGH_SECONDS", 0.2)
    monkeypatch.setattr(Sleepy, "slow_starts", 0)
    config = toys.configure(sleepy, attributor="sleepy", samples=64, batch_size=64,
                            options=[f"attributor.seconds={seconds}"])
    planned = plan_run(config, probe=True, registry=sleepy)
    assert planned.probe is not None
    method, = planned.probe.methods
    assert 0.9 * seconds < method.seconds < 3 * seconds
    assert 1 <= method.copies <= copies
    assert method.calls >= calls


def test_the_probe_passes_over_images_that_cannot_be_used(plan: Callable[..., Plan]) -> None:
    assert plan(probe=True, options=["dataset.count=3", "dataset.bad=[0]"]).probe is not None
    assert "bad toy" in refusal(lambda: plan(probe=True, options=["dataset.count=2", "dataset.bad=[0, 1]"]))


# -- words ------------------------------------------------------------------------------------------------------------

def test_a_plan_is_readable_and_fit_for_scripts(plan: Callable[..., Plan], tmp_path: Path) -> None:
    planned = plan(tmp_path / "there", **SWEEP, certifier=["pixel", "adaptive"], samples=400, probe=True)
    text = repr(planned)
    for word in ("all methods", "pixel", "adaptive", "of 400", "1,600 noisy copies", "looks after 96, 136", "on disk",
                 "(new)", "about", "by toy-weighted"):
        assert word in text, word
    assert max(map(len, text.split("\n\n", maxsplit=1)[0].splitlines())) <= 100
    values = json.loads(json.dumps(plan_text.as_dict(planned)))
    assert values["claims"][0]["votes"] == planned.claims[0].votes
    assert values["costs"][0] == {"attributor": "toy-weighted", "fewest": 1600, "most": 1600, "passes": None}
    assert values["out"] == str(tmp_path / "there")
    assert values["seconds"][1] > 0
    assert values["evaluations"] is None


def test_methods_share_a_row_when_the_same_can_be_said(plan: Callable[..., Plan]) -> None:
    rows = plan_text.rows(plan(attributor=["toy-weighted", "toy-coarse", "toy-random"]))
    assert [row[0] for row in rows] == ["all methods"]
    probed = plan_text.rows(plan(attributor=["toy-weighted", "toy-coarse", "toy-random"], resolution="native",
                                 probe=True))
    assert [row[0] for row in probed] == ["toy-weighted, toy-random", "toy-coarse"]


def test_methods_of_one_name_are_told_apart(registry: Registry) -> None:
    methods = [{"name": "toy-weighted", "offset": offset} for offset in (1, 2)]
    config = resolve(settings={"model": "toy", "dataset": "toys", "sparsifier": "toy-above", "samples": 48,
                               "attributor": methods}, registry=registry)
    planned = plan_run(config, registry=registry)
    assert [claim.attributor for claim in planned.claims] == ["toy-weighted (offset=1)", "toy-weighted (offset=2)"]


@pytest.mark.parametrize(("seconds", "text"), [
    (0.00012, "0.12 ms"), (0.034, "34 ms"), (0.25, "0.25 s"), (1.25, "1.2 s"), (9.99, "10.0 s"), (59.4, "59 s"),
    (60, "1 min"), (200, "3 min 20 s"), (3599.7, "1 h"), (3660, "1 h 1 min"), (86_400, "1 d"), (190_000, "2 d 4 h")])
def test_durations(seconds: float, text: str) -> None:
    assert plan_text.duration(seconds) == text


@pytest.mark.parametrize(("count", "text"), [
    (0, "0 B"), (999, "999 B"), (1000, "1 kB"), (2_408_448, "2.41 MB"), (999_600, "1 MB"), (1.5e9, "1.5 GB"),
    (2e13, "20 TB")])
def test_sizes(count: float, text: str) -> None:
    assert plan_text.size(count) == text


def test_a_claim_without_labels_and_looks_without_effect() -> None:
    claim = Claim("m", "c", 0.1, 16, True, None, 100, 0.03, None, 1, looks=(96, 100))
    assert plan_text._row(claim, ["m"]) == ("m", "0.1", "c", "–", "0.03", "–", "1")
    assert "none of them can certify" in plan_text._looks([claim])


def test_plan_from_python_takes_a_file_and_settings(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text("model = 'digits'\ndataset = 'digits'\nattributor = 'gradient'\nsamples = 200\n")
    planned = certframe.plan(file, limit=2, options={"certifier.tau": 0.6})
    assert isinstance(planned, certframe.Plan)
    assert (planned.config.samples, planned.images) == (200, 2)
    assert planned.evaluations == (400, 400)
    assert planned.claims[0].radius == pytest.approx(0.15 * 0.2533, rel=1e-3)
