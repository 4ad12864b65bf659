from __future__ import annotations

import collections
import contextlib
import errno
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import toys

import certframe.pipeline as pipeline_module
from certframe.certifiers.pixel import Pixel
from certframe.config import RunConfig
from certframe.errors import CertframeError, PluginError, UsageError
from certframe.noise import GaussianNoise, image_hash
from certframe.pipeline import Silent, execute
from certframe.protocols import Sample
from certframe.registry import Registry
from certframe.sampling import Cell, Sampler, Subject
from certframe.store import FORMAT, Run, load_run
from certframe.worker import Count, Prepare, Worker, resolve_label

TWO = {"attributor": ["toy-weighted", "toy-random"], "sigma": [0.25, 0.5]}


@pytest.fixture
def go(registry: Registry) -> Callable[..., Run]:
    """``go(out, **settings)``: carry out a run of toys."""
    def call(out: Path, listener: Any = None, **settings: Any) -> Run:
        return execute(toys.configure(registry, **settings), out, registry=registry, listener=listener)
    return call


def tree(out: Path, *, without: tuple[str, ...] = ()) -> dict[str, bytes]:
    """All files of a run but the log and the lock."""
    return {name: p.read_bytes() for p in out.rglob("*") if p.is_file()
            and (name := str(p.relative_to(out))) not in ("log.jsonl", ".lock", *without)}


def refusal(call: Callable[[], Any], kind: type[CertframeError] = UsageError) -> str:
    with pytest.raises(kind) as caught:
        call()
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)
    return str(caught.value)


class Batches:
    """Remembers every batch that attributors were given."""

    def __init__(self) -> None:
        self.seen: list[torch.Tensor] = []
        toys.OBSERVERS.append(lambda inputs, targets: self.seen.append(inputs.clone()))

    @property
    def noisy(self) -> list[torch.Tensor]:
        return [b for b in self.seen if not torch.equal((b * 255).round() / 255, b)]

    @property
    def copies(self) -> int:
        return sum(len(b) for b in self.noisy)


# -- what a run is ----------------------------------------------------------------------------------------------------

def test_a_run_holds_what_the_parts_compute(tmp_path: Path, go: Callable[..., Run]) -> None:
    run = go(tmp_path / "run", **TWO, options=["dataset.label=1"], metric=["certified-rate", "toy-needy"])
    model, data = toys.Toy(), toys.Toys()
    rows = {(r["name"], r["attributor"], r["sigma"], r["metric"]): r for r in run.table().to_pylist()}
    found = list(run.explanations())
    assert len(found) == 2 * 4
    for _, _, _, explanation in found:
        name, sigma = explanation.name, explanation.tally.sigma
        image = data.load(int(name[-1])).image
        attributor: Any = {"toy-weighted": toys.Weighted(), "toy-random": toys.Random()}[
            explanation.tally.identity["attributor"]]
        component = next(c for c in run.config.attributor if c.name == explanation.tally.identity["attributor"])
        sampler = Sampler(model, toys.Above(), batch_size=5, cuts=(10,), upsample=True)
        subject = Subject(name, image, 1, "one", image_hash(image))
        cell = Cell("c", component.name, attributor, component.fingerprint, sigma)
        assert np.array_equal(explanation.tally.segments, sampler.sample(subject, [cell], 0, 48)["c"].segments)
        assert torch.equal(explanation.map, sampler.clean(subject, cell))
        assert torch.equal(explanation.image, image)
        assert (explanation.target, explanation.target_name, explanation.label) == (1, "one", 1)
        certificate = Pixel().certify(explanation.tally)
        assert np.array_equal(explanation.certificate.labels, certificate.labels)
        assert explanation.certificate.statement == certificate.statement
        logits = model.module(image[None])[0]
        assert int(logits.argmax()) != 1  # the label is explained, not the prediction
        assert explanation.confidence == pytest.approx(float(logits.softmax(0)[1]))
        row = rows[name, component.name, sigma, "certified.-20"]
        assert row["value"] == pytest.approx(float((certificate.labels[0] >= 0).mean()))
        assert (row["samples"], row["stopped"]) == (48, "all samples")
        assert rows[name, component.name, sigma, "needy.boxes"]["value"] == 1.0
        assert rows[name, component.name, sigma, "confidence"]["value"] == explanation.confidence


def test_the_provenance_says_what_made_the_run(tmp_path: Path, go: Callable[..., Run]) -> None:
    provenance = go(tmp_path / "run").provenance
    assert provenance["versions"]["torch"] == torch.__version__.split("+")[0]
    assert provenance["plugins"]["attributor toy-weighted"] == "certframe-toys 1.0"
    assert set(provenance) >= {"weights", "noise", "python"}
    content = json.loads((tmp_path / "run" / "run.json").read_text())
    assert content["config"]["seed"] == 0
    assert content["config"]["certifier"][0]["options"]["tau"] == 0.75


def test_without_a_label_the_clean_prediction_is_explained(tmp_path: Path, go: Callable[..., Run]) -> None:
    for _, _, _, explanation in go(tmp_path / "run").explanations():
        assert explanation.target == int(toys.Toy().module(explanation.image[None]).argmax())
        assert explanation.label is None


def test_metrics_get_what_they_require_and_are_left_out_otherwise(tmp_path: Path, go: Callable[..., Run]) -> None:
    run = go(tmp_path / "a", metric=["toy-needy"], options=['metric.needs=["model", "grid"]'])
    assert {row["metric"] for row in run.table().to_pylist()} == {"confidence"}


def test_two_equal_runs_are_equal_in_every_byte(tmp_path: Path, go: Callable[..., Run]) -> None:
    a, b = (go(tmp_path / name, **TWO).path for name in "ab")
    assert tree(a) == tree(b)
    assert len(tree(a)) == 1 + 2 * (1 + 4 * 3) + 1


@pytest.mark.parametrize("change", [
    {"batch_size": 1}, {"batch_size": 5}, {"batch_size": 1000}, {"channels_last": True},
    {"executor": "toy-threads", "options": ["executor.seed=1"]},
    {"executor": "toy-threads", "options": ["executor.slots=3", "executor.seed=2"], "batch_size": 3},
])
def test_how_a_run_is_carried_out_changes_no_byte(tmp_path: Path, go: Callable[..., Run], change: dict[str, Any],
                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    reference = go(tmp_path / "reference", **TWO)
    for name, seconds in (("never", 0.0), ("always", 1e9)):
        monkeypatch.setattr(pipeline_module, "SHARD_SECONDS", seconds)
        run = go(tmp_path / name, **TWO, **change)
        assert run.config.digest == reference.config.digest
        assert tree(run.path, without=("run.json",)) == tree(reference.path, without=("run.json",))


def test_the_order_of_images_changes_no_count(tmp_path: Path, go: Callable[..., Run]) -> None:
    def tallies(run: Run) -> dict[tuple[str, str], bytes]:
        return {(e.name, cell): e.tally.to_bytes() for _, cell, _, e in run.explanations()}

    forward = go(tmp_path / "forward", options=["dataset.count=3"])
    backward = go(tmp_path / "backward", options=["dataset.count=3", "dataset.reverse=true"])
    assert forward.image_keys() == ["00000-toy-0", "00001-toy-1", "00002-toy-2"]
    assert backward.image_keys() == ["00000-toy-2", "00001-toy-1", "00002-toy-0"]
    assert tallies(forward) == tallies(backward)
    assert len(set(tallies(forward).values())) == 3


@pytest.mark.parametrize("settings", [{}, {"certifier": "toy-early", "options": ["certifier.share=1.1"]}])
def test_how_long_ranges_of_copies_are_does_not_change_the_batches(
        tmp_path: Path, go: Callable[..., Run], monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]) -> None:
    """Ranges grow with the speed of the machine; a network's last digits may depend on the batch."""
    seen = []
    for name, seconds in (("never", 0.0), ("always", 1e9)):
        monkeypatch.setattr(pipeline_module, "SHARD_SECONDS", seconds)
        toys.OBSERVERS.clear()
        batches = Batches()
        go(tmp_path / name, samples=150, **settings)
        seen.append({tuple(batch.flatten().tolist()) for batch in batches.noisy})
    assert seen[0] == seen[1]


def test_attributors_and_sigmas_of_a_run_share_the_noise(tmp_path: Path, go: Callable[..., Run]) -> None:
    batches = Batches()
    go(tmp_path / "run", attributor=["toy-weighted", "toy-constant"], sigma=[0.25, 0.5], batch_size=48,
       options=["dataset.count=1"])
    quiet, same, loud, also_loud = batches.noisy
    assert torch.equal(quiet, same)
    assert torch.equal(loud, also_loud)
    image = toys.Toys().load(0).image
    torch.testing.assert_close((quiet - image) / 0.25, (loud - image) / 0.5, atol=1e-5, rtol=0)


def test_a_constant_attribution_is_certified_unimportant_with_a_note(tmp_path: Path, go: Callable[..., Run]) -> None:
    listener = Listener()
    run = go(tmp_path / "run", listener, attributor=["toy-constant"], options=["sparsifier.t=[0.0, 5.0]"])
    for _, _, _, explanation in run.explanations():
        assert (explanation.certificate.labels == 0).all()
        assert any("constant" in warning for warning in explanation.certificate.warnings)
    assert len(listener.notes) == 2
    assert "toy 0, toy-constant, σ = 0.25: no pixel was important" in listener.notes[0]


class Noting(Silent):
    """Remembers the notes."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)


@pytest.mark.parametrize("executor", ["local", "toy-threads"])
def test_smaller_batches_are_noted_in_the_run_once_and_change_no_result(
        tmp_path: Path, go: Callable[..., Run], executor: str) -> None:
    listener = Noting()
    run = go(tmp_path / "run", listener=listener, attributor=["toy-hungry"], executor=executor)
    said = [f"attributor 'toy-hungry': {n} noisy copies at once do not fit into memory; it goes on with {n // 2} "
            f"(begin with --batch-size {n // 2} to save the attempt)" for n in (16, 8)]
    assert sorted(listener.notes) == sorted(said)
    lines = [json.loads(line) for line in (run.path / "log.jsonl").read_text().splitlines()]
    assert sorted(line["text"] for line in lines if line["event"] == "note") == sorted(said)
    roomy = go(tmp_path / "roomy", attributor=["toy-hungry"], batch_size=4)
    for (*_, found), (*_, expected) in zip(run.explanations(), roomy.explanations(), strict=True):
        assert found.tally.to_bytes() == expected.tally.to_bytes()


class Listener(Silent):
    """Remembers everything."""

    def __init__(self) -> None:
        self.begun: list[tuple[int, int]] = []
        self.advanced = 0
        self.images: list[str] = []
        self.notes: list[str] = []

    def begin(self, copies: int, done: int) -> None:
        self.begun.append((copies, done))

    def advance(self, copies: int) -> None:
        self.advanced += copies

    def image(self, name: str) -> None:
        self.images.append(name)

    def note(self, message: str) -> None:
        self.notes.append(message)


def test_progress_counts_every_copy_once(tmp_path: Path, go: Callable[..., Run]) -> None:
    listener = Listener()
    go(tmp_path / "run", listener, **TWO)
    assert listener.begun == [(2 * 4 * 48, 0)]
    assert listener.advanced == 2 * 4 * 48
    assert listener.images == ["toy 0", "toy 1"]
    early = Listener()
    go(tmp_path / "early", early, certifier="toy-early", samples=200, options=["certifier.share=0.0"])
    assert early.advanced == early.begun[0][0] == 2 * 200


@pytest.mark.parametrize("settings", [{}, {"certifier": "toy-early", "options": ["certifier.share=0.68"]}])
def test_progress_ends_at_the_end_after_interruptions_and_failures(tmp_path: Path, go: Callable[..., Run],
                                                                   settings: dict[str, Any]) -> None:
    settings = {"attributor": ["toy-weighted", "toy-random"], "sigma": 0.5, "samples": 90, **settings}
    image = toys.Toys().load(1).image
    for calls in (5, 7, 16, None):
        left = [calls]

        def trouble(inputs: torch.Tensor, targets: torch.Tensor, left: list[Any] = left) -> None:
            if left[0] is not None:
                left[0] -= 1
                if left[0] == 0:
                    raise KeyboardInterrupt
            cursed = torch.add(image, GaussianNoise(0, image_hash(image)).draw(33, 34, image.shape), alpha=0.5)
            if (inputs == cursed).flatten(1).all(1).any():
                raise UsageError("the curse of toy 1")

        toys.OBSERVERS[:] = [trouble]
        listener = Listener()
        options = [*settings.get("options", []), "dataset.count=3"]
        with contextlib.suppress(KeyboardInterrupt):
            run = go(tmp_path / "run", listener, **{**settings, "options": options})
        (total, done), = listener.begun
        assert total == 3 * 2 * 90
        assert done + listener.advanced <= total
    assert done > 0
    assert done + listener.advanced == total
    assert [f["reason"] for f in run.failures()] == ["the curse of toy 1"]


def test_a_limit(tmp_path: Path, go: Callable[..., Run]) -> None:
    assert go(tmp_path / "one", limit=1, options=["dataset.count=5"]).image_keys() == ["00000-toy-0"]
    assert len(go(tmp_path / "all", limit=99, options=["dataset.count=3"]).image_keys()) == 3


# -- adaptive stopping ------------------------------------------------------------------------------------------------

def stopped(run: Run) -> dict[str, tuple[int, str]]:
    return {row["name"]: (row["samples"], row["stopped"]) for row in run.table().to_pylist()}


@pytest.mark.parametrize("executor", ["local", "toy-threads"])
def test_a_certifier_that_has_seen_enough_stops_the_counting(tmp_path: Path, go: Callable[..., Run],
                                                             executor: str) -> None:
    batches = Batches()
    run = go(tmp_path / "run", certifier="toy-early", samples=200, executor=executor, sigma=0.5,
             options=["certifier.share=0.68", "dataset.count=4"])
    looks = stopped(run)
    assert {samples for samples, _ in looks.values()} == {40, 64, 200}
    for samples, reason in looks.values():
        assert reason == "all samples" if samples == 200 else f"decided at {samples}" in reason
    assert batches.copies == sum(samples for samples, _ in looks.values())
    for _, _, _, explanation in run.explanations():
        assert explanation.tally.copies == ((0, looks[explanation.name][0]),)
        assert explanation.certificate.samples == looks[explanation.name][0]


def test_every_cell_stops_by_itself(tmp_path: Path, go: Callable[..., Run]) -> None:
    run = go(tmp_path / "run", certifier="toy-early", samples=200, sigma=[0.05, 0.25, 2.0],
             options=["certifier.share=0.6", "dataset.count=1"])
    samples = [e.tally.samples for *_, e in run.explanations()]
    assert samples[0] == 40
    assert samples[2] == 200
    for *_, explanation in run.explanations():
        alone = go(tmp_path / f"{explanation.tally.sigma}", certifier="toy-early", samples=200,
                   sigma=[explanation.tally.sigma], options=["certifier.share=0.6", "dataset.count=1"])
        assert next(alone.explanations())[3].tally.to_bytes() == explanation.tally.to_bytes()


def test_all_certifiers_have_to_be_content(tmp_path: Path, go: Callable[..., Run]) -> None:
    run = go(tmp_path / "run", certifier=["toy-early", "pixel"], samples=100, options=["certifier.share=0.0"])
    assert {samples for samples, _ in stopped(run).values()} == {100}


def test_a_look_beyond_the_last_copy_is_none(tmp_path: Path, go: Callable[..., Run]) -> None:
    run = go(tmp_path / "run", certifier="toy-early", samples=50, options=["certifier.share=1.1"])
    assert {samples for samples, _ in stopped(run).values()} == {50}


# -- failing images ---------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("executor", ["local", "toy-threads"])
@pytest.mark.parametrize("bad", [(0,), (1,), (3,), (0, 1), (0, 2, 3)])
def test_a_bad_image_among_good_ones_is_recorded_and_passed_over(tmp_path: Path, go: Callable[..., Run],
                                                                 bad: tuple[int, ...], executor: str) -> None:
    listener = Listener()
    run = go(tmp_path / "run", listener, executor=executor, options=["dataset.count=4", f"dataset.bad={list(bad)}"])
    assert [(f["index"], f["name"]) for f in run.failures()] == [(i, f"toy {i}") for i in bad]
    assert all("cannot be read" in f["reason"] for f in run.failures())
    assert run.image_keys() == [f"{i:05d}-toy-{i}" for i in range(4) if i not in bad]
    assert {row["name"] for row in run.table().to_pylist()} == {f"toy {i}" for i in range(4) if i not in bad}
    assert sorted(note.split(":")[0] for note in listener.notes) == [f"skipped toy {i}" for i in bad]


def test_images_that_failed_are_tried_again_and_good_ones_are_not(tmp_path: Path, go: Callable[..., Run],
                                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    options = ["dataset.count=3", "dataset.bad=[1]"]
    first = go(tmp_path / "run", options=options)
    before = tree(first.path)
    batches = Batches()
    again = go(tmp_path / "run", options=options)
    assert batches.seen == []
    assert tree(again.path) == before
    load = toys.Toys.load
    monkeypatch.setattr(toys.Toys, "load", lambda self, index: load(toys.Toys(toys.Toys.Options(count=3)), index))
    mended = go(tmp_path / "run", options=options)
    assert mended.failures() == []
    assert batches.copies == 48
    assert len(mended.image_keys()) == 3
    assert {k: v for k, v in tree(mended.path).items() if "toy-1" in k} != {}


@pytest.mark.parametrize("checkpoint", [0.0, 1e9])
def test_scores_that_are_nan_fail_the_image_and_leave_no_counts(
        tmp_path: Path, go: Callable[..., Run], checkpoint: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline_module, "CHECKPOINT_SECONDS", checkpoint)
    monkeypatch.setattr(pipeline_module, "SHARD_SECONDS", 0.0)
    maps, image = toys.Weighted.maps, toys.Toys().load(1).image
    cursed = torch.add(image, GaussianNoise(0, image_hash(image)).draw(20, 21, image.shape), alpha=0.25)

    def poison(self: Any, model: Any, inputs: torch.Tensor, targets: torch.Tensor, rng: Any) -> torch.Tensor:
        found = maps(self, model, inputs, targets, rng)
        found[(inputs == cursed).flatten(1).all(1), 0, :2] = float("nan")
        return found

    monkeypatch.setattr(toys.Weighted, "maps", poison)
    run = go(tmp_path / "run", options=["dataset.count=3"])
    failure, = run.failures()
    assert failure["name"] == "toy 1"
    for said in ("'toy-weighted'", "2 NaN or infinite scores", "'toy 1'", "noisy copies 16 to 31"):
        assert said in failure["reason"]
    assert not (run.path / "partial").exists()
    assert {row["name"] for row in run.table().to_pylist()} == {"toy 0", "toy 2"}


# -- refusals: one line, and nothing written --------------------------------------------------------------------------

@pytest.mark.parametrize(("settings", "said"), [
    ({"options": ["dataset.bad=[0, 1]"]}, "image 'toy 0' cannot be read"),
    ({"options": ["dataset.count=0"]}, "no images"),
    ({"options": ["dataset.label=3"]}, "image 'toy 0' has label 3, and the model has 3 classes (0 to 2)"),
    ({"options": ["dataset.label=-1"]}, "label -1"),
    ({"options": ["dataset.side=5"]}, "has shape (1, 5, 5) and the model takes (1, 4, 4)"),
    ({"options": ["model.broken=true"]}, "the model returns NaN or infinite logits for image 'toy 0'"),
    ({"attributor": ["toy-poisoned"]}, "attributor 'toy-poisoned' gives 3 NaN or infinite scores on image 'toy 0'"),
    ({"attributor": ["toy-poisoned"], "options": ["attributor.where=clean", "attributor.infinite=true"]},
     "3 NaN or infinite scores"),
    ({"samples": 20}, "certifier 'pixel' needs at least 25 for one pixel"),
    ({"samples": 33}, "needs at least 34 for the 4×4 map of toy-weighted"),
    ({"device": "cuda:77"}, "device 'cuda:77' is not there"),
])
def test_what_cannot_be_done_is_refused_before_anything_is_written(tmp_path: Path, go: Callable[..., Run],
                                                                   settings: dict[str, Any], said: str) -> None:
    batches = Batches()
    text = refusal(lambda: go(tmp_path / "deep" / "run", **settings))
    assert said in text
    assert list(tmp_path.iterdir()) == []
    assert batches.copies == 0


@pytest.mark.parametrize("executor", ["local", "toy-threads"])
def test_a_plugin_that_falls_over_is_named_in_one_line(tmp_path: Path, go: Callable[..., Run], executor: str) -> None:
    text = refusal(lambda: go(tmp_path / "run", attributor=["toy-failing"], executor=executor), PluginError)
    assert text == "attributor 'toy-failing' (certframe-toys 1.0) failed: ValueError: the toy fell over"
    assert list(tmp_path.iterdir()) == []


def test_images_outside_the_unit_interval_are_refused(configure: Callable[..., RunConfig], registry: Registry,
                                                      monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    load = toys.Toys.load
    for low, high in ((-1.0, 1.0), (0.0, 255.0), (float("nan"), 1.0)):
        def scaled(self: Any, index: int, low: float = low, high: float = high) -> Any:
            sample = load(self, index)
            return type(sample)(sample.name, low + (high - low) * sample.image)
        monkeypatch.setattr(toys.Toys, "load", scaled)
        text = refusal(lambda: execute(configure(), tmp_path / "run", registry=registry))
        assert "image 'toy 0' has values from" in text
        assert "[0, 1]" in text
        assert not (tmp_path / "run").exists()


def test_a_disk_without_room_is_refused(tmp_path: Path, go: Callable[..., Run],
                                        monkeypatch: pytest.MonkeyPatch) -> None:
    full = collections.namedtuple("usage", "total used free")(10**9, 10**9, 100)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: full)
    text = refusal(lambda: go(tmp_path / "run"))
    assert "GB free" in text
    assert "--out" in text
    assert list(tmp_path.iterdir()) == []


def test_places_that_are_taken_stay_as_they_are(tmp_path: Path, go: Callable[..., Run]) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis.tex").write_text("mine")
    newer = go(tmp_path / "newer")
    description = json.loads((newer.path / "run.json").read_text())
    (newer.path / "run.json").write_text(json.dumps({**description, "format": FORMAT + 1}))
    damaged = go(tmp_path / "damaged")
    (damaged.path / "run.json").write_text("{")
    other = go(tmp_path / "other", seed=1)
    before = {name: tree(tmp_path / name) for name in ("newer", "damaged", "other", "folder")}
    logs = {name: (tmp_path / name / "log.jsonl").read_bytes() for name in ("newer", "damaged", "other")}
    batches = Batches()
    for name, said in (("file", "is a file"), ("folder", "not empty and is not a run"), ("newer", "newer certframe"),
                       ("damaged", "is damaged"), ("other", "seed is 1 there and 0 here")):
        assert said in refusal(lambda name=name: go(tmp_path / name))
    assert before == {name: tree(tmp_path / name) for name in before}
    assert logs == {name: (tmp_path / name / "log.jsonl").read_bytes() for name in logs}
    assert (tmp_path / "file").read_text() == "mine"
    assert batches.seen == []
    assert other.path == tmp_path / "other"


def test_a_run_that_somebody_is_working_on_is_left_alone(tmp_path: Path, go: Callable[..., Run]) -> None:
    run = go(tmp_path / "run")
    with run.locked():
        assert "another process is working on" in refusal(lambda: go(tmp_path / "run"))


def test_other_weights_are_refused_on_resume(tmp_path: Path, go: Callable[..., Run],
                                             monkeypatch: pytest.MonkeyPatch) -> None:
    run = go(tmp_path / "run")
    shutil.rmtree(run.path / "ledger" / "00001-toy-1")
    before = tree(run.path)
    init = toys.Exact.__init__

    def changed(self: Any, side: int, seed: int) -> None:
        init(self, side, seed)
        self.weight += 1

    monkeypatch.setattr(toys.Exact, "__init__", changed)
    assert "other model weights" in refusal(lambda: go(tmp_path / "run"))
    assert tree(run.path) == before


# -- resuming, in this process ----------------------------------------------------------------------------------------

def test_a_finished_run_is_not_done_again(tmp_path: Path, go: Callable[..., Run],
                                          monkeypatch: pytest.MonkeyPatch) -> None:
    run = go(tmp_path / "run", **TWO)
    before = tree(run.path)
    (run.path / "metrics.parquet").unlink()
    batches = Batches()
    monkeypatch.setattr(Worker, "__init__", None)  # no model is needed
    again = go(tmp_path / "run", **TWO, batch_size=7, executor="toy-threads")
    assert batches.seen == []
    assert tree(again.path) == before


class Stop(BaseException):
    """Not an error that anybody handles."""


@pytest.mark.parametrize("error", [KeyboardInterrupt, Stop, SystemExit])
@pytest.mark.parametrize("settings", [{}, {"certifier": "toy-early", "options": ["certifier.share=0.6"]}])
def test_an_interruption_keeps_the_counts_of_the_image_under_way(
        tmp_path: Path, go: Callable[..., Run], monkeypatch: pytest.MonkeyPatch, error: type[BaseException],
        settings: dict[str, Any]) -> None:
    monkeypatch.setattr(pipeline_module, "SHARD_SECONDS", 0.0)
    settings = {**TWO, "samples": 90, **settings}
    reference = go(tmp_path / "reference", **settings)
    batches, interruptions = Batches(), 0
    for calls in (7, 1, 12, 3, 20, 2):
        left = [calls]

        def interrupt(inputs: torch.Tensor, targets: torch.Tensor, left: list[int] = left) -> None:
            left[0] -= 1
            if left[0] == 0:
                raise error

        toys.OBSERVERS.append(interrupt)
        with contextlib.suppress(error):
            go(tmp_path / "run", **settings)
        toys.OBSERVERS.remove(interrupt)
        interruptions += left[0] <= 0
    assert interruptions >= 4
    go(tmp_path / "run", **settings)
    assert tree(tmp_path / "run") == tree(reference.path)
    # Every interruption costs the range under way (16 copies for each of 4 cells) at most.
    wanted = sum(e.tally.samples for *_, e in reference.explanations())
    assert wanted <= batches.copies <= wanted + interruptions * 16 * 4


def test_a_run_may_go_on_with_another_batch_size_and_executor(tmp_path: Path, go: Callable[..., Run]) -> None:
    reference = go(tmp_path / "reference", **TWO)
    for k, change in enumerate(({"batch_size": 5}, {"executor": "toy-threads"}, {"batch_size": 11})):
        def interrupt(inputs: torch.Tensor, targets: torch.Tensor, calls: list[int] = [0], k: int = k) -> None:  # noqa: B006
            calls[0] += 1
            if calls[0] == 6 + k:
                raise RuntimeError("lost")
        toys.OBSERVERS.append(interrupt)
        assert "failed: RuntimeError: lost" in refusal(lambda change=change: go(tmp_path / "run", **TWO, **change),
                                                       PluginError)
        toys.OBSERVERS.clear()
    go(tmp_path / "run", **TWO)
    assert tree(tmp_path / "run", without=("run.json",)) == tree(reference.path, without=("run.json",))


def test_a_full_disk_at_any_write_is_one_line_and_the_run_goes_on_later(tmp_path: Path, go: Callable[..., Run],
                                                                       monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline_module, "CHECKPOINT_SECONDS", 0.0)
    reference = tree(go(tmp_path / "reference", options=["dataset.count=1"]).path)
    fsync, left = os.fsync, [0]

    def full(handle: int) -> None:
        left[0] -= 1
        if left[0] <= 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(handle)

    for moment in range(1, 40, 2):  # every write syncs its file, then its folder
        left[0] = moment
        monkeypatch.setattr(os, "fsync", full)
        out = tmp_path / f"{moment}"
        try:
            go(out, options=["dataset.count=1"])
        except CertframeError as error:
            message = str(error)
            assert message.startswith(f"no space left while writing {out}")
            assert "\n" not in message
        else:
            assert left[0] > 0
            assert moment > 10
            break
        finally:
            monkeypatch.setattr(os, "fsync", fsync)
        go(out, options=["dataset.count=1"])
        assert tree(out) == reference
    else:
        pytest.fail("the run has more writes than were tried")


def test_a_damaged_checkpoint_says_so(tmp_path: Path, go: Callable[..., Run]) -> None:
    def interrupt(inputs: torch.Tensor, targets: torch.Tensor, calls: list[int] = [0]) -> None:  # noqa: B006
        calls[0] += 1
        if calls[0] == 3:
            raise KeyboardInterrupt

    toys.OBSERVERS.append(interrupt)
    with pytest.raises(KeyboardInterrupt):
        go(tmp_path / "run")
    toys.OBSERVERS.clear()
    checkpoint, = (tmp_path / "run" / "partial").rglob("*.safetensors")
    checkpoint.write_bytes(b"x")
    text = refusal(lambda: go(tmp_path / "run"), CertframeError)
    assert "is damaged" in text
    assert str(checkpoint) in text
    checkpoint.unlink()
    go(tmp_path / "run")
    assert tree(tmp_path / "run") == tree(go(tmp_path / "reference").path)


# -- killed -----------------------------------------------------------------------------------------------------------

class Forks:
    """Runs in child processes of a server that has imported everything."""

    def __init__(self, path: Path) -> None:
        script = Path(toys.__file__).with_name("forks.py")
        self.path, self._stderr = path, (path / "stderr").open("w+")
        self._server = subprocess.Popen([sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        stderr=self._stderr, text=True)

    def run(self, **job: Any) -> int:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps(job) + "\n")
        self._server.stdin.flush()
        return int(self._server.stdout.readline())

    def close(self) -> str:
        self._server.communicate()
        self._stderr.seek(0)
        text = self._stderr.read()
        self._stderr.close()
        return text


@pytest.fixture(scope="module")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    server = Forks(tmp_path_factory.mktemp("forks"))
    yield server
    assert server.close() == ""


KILLED = {
    "fixed": {"attributor": ["toy-weighted", "toy-random"], "samples": 49, "options": ["dataset.count=2"]},
    "adaptive": {"sigma": [0.1, 0.5], "samples": 100, "certifier": "toy-early",
                 "options": ["certifier.share=0.68", "dataset.count=2"]},
}
CELLS, BATCH = 2, 16
Reference = tuple[str, Path, collections.Counter[str], dict[str, int]]


def lines(path: Path) -> collections.Counter[str]:
    return collections.Counter(path.read_text().split()) if path.exists() else collections.Counter()


@pytest.fixture(scope="module", params=list(KILLED))
def reference(request: pytest.FixtureRequest, forks: Forks) -> Reference:
    """An uninterrupted run: its name, directory, the copies that it explained, and its calls of os functions."""
    out = forks.path / f"reference-{request.param}"
    files = {name: str(out) + f".{name}" for name in ("journal", "count")}
    assert forks.run(out=str(out), settings=KILLED[request.param], **files) == 0
    counts = json.loads(Path(files["count"]).read_text())
    return request.param, out, lines(Path(files["journal"])), counts


def check_resumed(out: Path, journals: list[Path], reference: Reference) -> None:
    """The same bytes, and no more copies explained twice than were under way."""
    _, whole, wanted, _ = reference
    assert tree(out) == tree(whole)
    assert not any(p.name.startswith(".") and p.name != ".lock" for p in out.rglob("*"))
    done = sum((lines(journal) for journal in journals), collections.Counter[str]())
    assert wanted - done == collections.Counter()
    clean = {hashlib.sha256(toys.Toys().load(i).image.numpy().tobytes()).hexdigest()[:16] for i in range(2)}
    repeated = done - wanted
    noisy = sum(number for copy, number in repeated.items() if copy not in clean)
    assert noisy <= CELLS * BATCH * (len(journals) - 1)


@pytest.mark.parametrize(("function", "after"), [("fsync", False), ("replace", False), ("replace", True),
                                                 ("rmtree", False), ("log", True)])
def test_a_kill_at_any_write_is_mended_by_the_next_start(forks: Forks, reference: Reference, function: str, after: bool,
                                                         tmp_path: Path) -> None:
    name, _, _, counts = reference
    assert counts[function] >= 2
    # After every rename the directory is in a new state; of the moments in between a few are enough.
    step = (1 if name == "fixed" else 2) if (function, after) == ("replace", True) else counts[function] // 5 or 1
    for moment in range(1, counts[function] + 1, step):
        out = tmp_path / f"{moment}"
        journals = [tmp_path / f"{moment}.first", tmp_path / f"{moment}.second"]
        killed = forks.run(out=str(out), settings=KILLED[name], journal=str(journals[0]), crash=[function, moment],
                           after=after)
        assert killed == -signal.SIGKILL
        finished = load_run(out) if (out / "run.json").exists() else None
        ready = [key for key in finished.image_keys() if finished.is_done(key)] if finished else []
        assert forks.run(out=str(out), settings=KILLED[name], journal=str(journals[1])) == 0
        check_resumed(out, journals, reference)
        again = lines(journals[1])
        for key in ready:  # an image that was done has not been looked at again
            image = toys.Toys().load(int(key[-1])).image
            assert hashlib.sha256(image.numpy().tobytes()).hexdigest()[:16] not in again
        shutil.rmtree(out)


@pytest.mark.parametrize("kind", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_killed_again_and_again_ends_as_if_nothing_had_happened(
        forks: Forks, reference: Reference, kind: signal.Signals, tmp_path: Path) -> None:
    name, _, _, _ = reference
    out, journals, statuses = tmp_path / "run", [], []
    for attempt in range(40):
        journals.append(tmp_path / f"journal{attempt}")
        statuses.append(forks.run(out=str(out), settings=KILLED[name], journal=str(journals[-1]), pause=0.02,
                                  kill=[kind, 0.06 + 0.013 * attempt]))
        if statuses[-1] == 0:
            break
    assert statuses[-1] == 0
    assert len(statuses) > 2
    assert set(statuses[:-1]) <= ({130} if kind == signal.SIGINT else {-kind})
    check_resumed(out, journals, reference)


# -- the worker -------------------------------------------------------------------------------------------------------

def test_a_worker_counts_images_that_it_has_not_prepared(configure: Callable[..., RunConfig],
                                                         registry: Registry) -> None:
    config = configure(**TWO)
    here, there = Worker(config, registry), Worker(config, registry)
    here(Prepare(0))
    cells = tuple(here.cells)
    for index, start in ((0, 0), (1, 16), (0, 32)):
        task = Count(index, cells, start, start + 16)
        a, b = here(task).tallies, there(task).tallies
        assert {key: t.to_bytes() for key, t in a.items()} == {key: t.to_bytes() for key, t in b.items()}


def test_a_label_may_be_the_name_of_a_class() -> None:
    def label(names: list[str], class_name: Any, given: int | None = None) -> int | None:
        model = toys.Toy()
        model.classes = tuple(names)
        return resolve_label(model, Sample("x", torch.zeros(1, 4, 4), given, {"class_name": class_name}))

    names = ["cat", "Dog", "crane", "crane"]
    assert label(names, "cat") == 0
    assert label(names, "DOG") == 1
    assert label(names, "crane") is None  # a bird and a machine
    assert label(names, "horse") is None
    assert label(names, "cat", given=2) == 2


def test_what_is_not_measured_is_said_once(tmp_path: Path, go: Callable[..., Run]) -> None:
    class Notes(Silent):
        def __init__(self) -> None:
            self.notes: list[str] = []

        def note(self, message: str) -> None:
            self.notes.append(message)

    listener = Notes()
    go(tmp_path / "run", listener=listener, metric=["certified-rate", "toy-needy"],
       options=['metric.toy-needy.needs=["model", "grid"]'])
    assert [n for n in listener.notes if n.startswith("metric")] == [
        "metric 'toy-needy' is left out where an image has no grid, as toy 0: it is measured on data sets that give "
        "them"]
