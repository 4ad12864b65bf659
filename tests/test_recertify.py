"""Certifying again loses nothing that the run knew, and adds nothing that is not so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import toys

from certframe.comparing import values_of
from certframe.config import resolve_component
from certframe.errors import UsageError
from certframe.pipeline import execute
from certframe.recertify import recertify
from certframe.registry import Registry
from certframe.store import Run
from certframe.verification import verify
from certframe.worker import component_key


@pytest.fixture
def registry() -> Registry:
    return toys.registry()


def made(registry: Registry, path: Path, **settings: Any) -> Run:
    return execute(toys.configure(registry, **settings), path, registry=registry)


def ledger(run: Run, certifier: str) -> dict[tuple[str, str], tuple[float, str, int]]:
    return {(r["image"], r["metric"]): (r["value"], r["stopped"], r["samples"]) for r in run.table().to_pylist()
            if r["certifier"] == certifier}


def test_with_the_run_s_own_certifier_nothing_changes(registry: Registry, tmp_path: Path) -> None:
    """Neither why it stopped, nor what was measured with a model that is not there any more."""
    run = made(registry, tmp_path / "run", certifier="adaptive", metric=["toy-needy", "certified-rate"], samples=400)
    own = component_key(run.config.certifier[0])
    before, content = ledger(run, own), run.ledger_path(run.image_keys()[0], "0", own).parent
    files = {path.name: path.read_bytes() for path in content.iterdir()}
    assert any(metric == "needy.target" for _, metric in before)
    assert {stopped for _, stopped, _ in before.values()} != {"all samples"}
    assert recertify(run, run.config.certifier[0], registry) == own
    assert ledger(run, own) == before
    assert {path.name: path.read_bytes() for path in content.iterdir()} == files
    assert verify(run, registry=registry).ok


def test_another_certifier_knows_why_the_copies_ended(registry: Registry, tmp_path: Path) -> None:
    run = made(registry, tmp_path / "run", certifier="adaptive", samples=400)
    key = recertify(run, resolve_component("certifier", "adaptive", ["certifier.tau=0.6"], registry=registry), registry)
    first = ledger(run, component_key(run.config.certifier[0]))
    for part, (_, stopped, samples) in ledger(run, key).items():
        assert (stopped, samples) == first[part][1:]


def test_certificates_that_were_added_are_read_with_the_others_and_told_apart(registry: Registry,
                                                                              tmp_path: Path) -> None:
    run = made(registry, tmp_path / "run", samples=400)
    own = component_key(run.config.certifier[0])
    assert run.certifier_names() == {own: "pixel"}
    key = recertify(run, resolve_component("certifier", "pixel", ["certifier.tau=0.6"], registry=registry), registry)
    assert run.certifier_names() == {own: "pixel (tau=0.75)", key: "pixel (tau=0.6)"}
    found = [(image, cell, certifier) for image, cell, certifier, _ in run.explanations()]
    assert found == [(image, cell, certifier) for image, cell in dict.fromkeys(part[:2] for part in found)
                     for certifier in (own, key)]
    radii = {certifier: explanation.certificate.radius for *_, certifier, explanation in run.explanations()}
    assert radii[key] < radii[own]
    assert {group.certifier for group in (value.group for value in values_of([run], registry))} == {
        "pixel (tau=0.75)", "pixel (tau=0.6)"}


def test_an_image_whose_copies_ended_early_may_abstain(registry: Registry, tmp_path: Path) -> None:
    """It is no reason to refuse the run: another image of it may have all copies."""
    run = made(registry, tmp_path / "run", certifier="adaptive", samples=400, options=["certifier.enough=0.3"])
    again = resolve_component("certifier", "adaptive", ["certifier.tau=0.93"], registry=registry)
    first = run.tally(run.image_keys()[0], run.table()["cell"][0].as_py())
    needed = again.build(registry).min_samples(first.pixels, len(first.levels))
    assert first.samples < needed <= first.planned
    key = recertify(run, again, registry)
    assert all(value == 0 for (image, metric), (value, _, _) in ledger(run, key).items()
               if image == run.image_keys()[0] and metric.startswith("certified."))
    with pytest.raises(UsageError, match="the 400 copies of this run cannot certify anything"):
        recertify(run, resolve_component("certifier", "adaptive", ["certifier.tau=0.99"], registry=registry), registry)


@pytest.mark.parametrize("name", ["top-k-overlap", "certified-rank"])
def test_areas_of_labels_are_measured_only_where_labels_are_claimed(registry: Registry, tmp_path: Path,
                                                                     name: str) -> None:
    run = made(registry, tmp_path / "run")
    key = recertify(run, resolve_component("certifier", name, registry=registry), registry)
    assert {metric for _, metric in ledger(run, key)} == {"confidence"}
    assert any(metric.startswith("certified.") for _, metric in ledger(run, component_key(run.config.certifier[0])))
    run = made(registry, tmp_path / "direct", certifier=[name, "importance-band"])
    own, band = (ledger(run, component_key(component)) for component in run.config.certifier)
    assert {metric for _, metric in own} == {"confidence"}
    assert any(metric.startswith("certified.") for _, metric in band)


def test_what_the_run_has_not_finished_is_left_to_it(registry: Registry, tmp_path: Path) -> None:
    """A part of the ledger made here would be without the metrics that need the model, and would pass for finished."""
    run = made(registry, tmp_path / "run", certifier=["pixel", "radius"], metric=["toy-needy", "certified-rate"])
    whole = ledger(run, component_key(run.config.certifier[1]))
    images = run.image_keys()
    for image in images:
        for path in (run.path / "ledger" / image).glob("*--radius-*"):
            path.unlink()
    with pytest.raises(UsageError, match="no finished image yet"):
        recertify(run, run.config.certifier[1], registry)
    assert not list((run.path / "ledger").glob("*/*--radius-*"))
    run = execute(run.config, run.path, registry=registry)
    assert ledger(run, component_key(run.config.certifier[1])) == whole
