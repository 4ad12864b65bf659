"""Audits find nothing in sound runs, and find what is broken."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from certframe_boundary.audit import AuditOptions, Auditor, as_dict, section
from certframe_boundary.claims import bounds, claims_of, most, most_overlap
from scipy.stats import binom

import certframe
from certframe.cli import main

SOUND = ("pixel", "class", "radius", "importance-band")
QUICK = {"steps": 4, "restarts": 1, "copies": 3}


class Silent:
    """Hears nothing; stops after so many images."""

    def __init__(self, stop_after: int = 10**9) -> None:
        self.left, self.done = stop_after, None

    def begin(self, total, done):
        self.done = done

    def advance(self, name):
        self.left -= 1

    def stopped(self):
        return self.left <= 0


def audited(run, folder, **options):
    torch.set_num_threads(1)
    return Auditor(run, AuditOptions(**{**QUICK, **options})).carry_out(folder, Silent())


def a_run(place, **settings):
    return certframe.run(place, model="digits", dataset="digits", device="cpu",
                         **{"attributor": "gradient", "samples": 200, "limit": 2, **settings})


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    return a_run(tmp_path_factory.mktemp("sound") / "run", certifier=list(SOUND), attributor=["gradient", "occlusion"],
                 limit=1)


def broken_certifier(change):
    """A registry with a certifier that claims more than `pixel` proves."""
    pixel = certframe.default_registry().find("certifier", "pixel").load()

    class Broken(pixel):
        """Wrong on purpose."""

        def certify(self, tally):
            return change(super().certify(tally))

    module = ModuleType("certframe_broken_for_tests")
    module.Broken = Broken
    sys.modules[module.__name__] = module

    def certframe_certifiers(register):
        register("broken", f"{module.__name__}:Broken", "wrong on purpose")

    registry = certframe.Registry()
    registry.add(SimpleNamespace(certframe_certifiers=certframe.hookimpl(certframe_certifiers)), name="broken")
    return registry


BROKEN = {
    "ten times the radius": lambda c: replace(c, radius=10 * c.radius),
    "labels turned over": lambda c: replace(c, labels=np.where(c.labels < 0, c.labels, 1 - c.labels).astype(np.int8)),
    "everything important": lambda c: replace(c, labels=np.ones_like(c.labels)),
}


def test_nothing_is_violated_in_a_sound_run(sound, tmp_path):
    found = audited(sound, tmp_path)
    assert found.violated == 0
    assert found.tested > 500
    assert {p.certifier.rpartition("-")[0] for p in found.parts if p.tested} == set(SOUND)
    assert {(p.attributor, p.attack) for p in found.parts} == {
        ("gradient", "explanation"), ("gradient", "class"), ("occlusion", "class"), ("occlusion", "random")}
    assert any("occlusion" in note and "no gradient" in note for note in found.notes)
    assert {p.kind for p in found.parts} == {"pixels", "class"}
    assert all(p.distance <= 0.9 * p.radius * (1 + 1e-5) for p in found.parts if p.tested and p.kind == "class")
    assert any(p.distance > 0.5 * p.radius for p in found.parts)


def test_certificates_that_were_added_are_audited_too(sound, tmp_path):
    place = tmp_path / "run"
    shutil.copytree(sound.path, place)
    with pytest.raises(SystemExit, match="0"):
        main(["certify", str(place), "--tau", "0.6", "--no-report"])
    found = audited(certframe.load_run(place), tmp_path / "parts")
    assert found.violated == 0
    added = [p for p in found.parts if found.certifiers[p.certifier] == "pixel (tau=0.6)" and p.tested]
    assert {p.attack for p in added} == {"explanation", "class", "random"}
    assert max(p.radius for p in added) < max(p.radius for p in found.parts if p.certifier != added[0].certifier)
    names = {row[2] for row in section(found, AuditOptions()).tables[0].rows}
    assert names >= {"pixel (tau=0.6)", "pixel (tau=0.75)", "class"}


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_certifier_is_caught(how, tmp_path):
    registry = broken_certifier(BROKEN[how])
    run = a_run(tmp_path / "run", certifier="broken", registry=registry)
    found = audited(run, tmp_path / "parts", samples=1000)
    assert found.violated > 0
    assert section(found, AuditOptions()).state == "bad"
    assert as_dict(found, AuditOptions(), run.path)["ok"] is False


@pytest.mark.parametrize(("certifier", "sparsifier", "options", "kind"), [
    ("top-k-overlap", "sparsified", {"certifier.rho": 0.02, "sparsifier.tau": 0.2}, "overlap"),
    ("top-k-overlap", "top-k", {"certifier.rho": 0.02, "sparsifier.k": [25]}, "overlap"),
    ("certified-rank", "top-k", {"certifier.rho": 0.02, "sparsifier.k": [25]}, "ranks"),
    ("quantile", "threshold", {"sparsifier.t": [0.1, 0.3, 0.5, 0.7], "sparsifier.relative": True}, "pixels")])
def test_other_certificates(certifier, sparsifier, options, kind, tmp_path):
    run = a_run(tmp_path / "run", certifier=certifier, sparsifier=sparsifier, samples=1000, limit=1, options=options)
    found = audited(run, tmp_path / "parts")
    assert found.violated == 0
    assert {p.kind for p in found.parts} == {kind}
    assert found.tested > 0


@pytest.mark.parametrize(("certifier", "array", "wrong"), [("top-k-overlap", "overlap", 1.0),
                                                           ("certified-rank", "rank", 1)])
def test_overlaps_and_ranks_that_are_too_good_are_caught(certifier, array, wrong, tmp_path):
    run = a_run(tmp_path / "run", certifier=certifier, samples=1000, limit=1,
                options={"certifier.rho": 0.3, "sparsifier.k": [25]})
    _, _, _, explanation = next(run.explanations())
    c = explanation.certificate
    better = replace(c, arrays={**c.arrays, array: np.full_like(c.arrays[array], wrong)})
    claim, = claims_of(replace(explanation, certificate=better))
    bench = certframe.Workbench(run)
    other = explanation.image.flip(-1)  # not within the radius: what counts is that the test can fail
    cell = next(iter(bench.methods))
    tally = bench.tally(cell, other, explanation.target, samples=1000, seed=5)
    assert claim.test(tally, 0.0, 1e-6).violated > 0


def test_an_interrupted_audit_goes_on(sound, tmp_path):
    auditor = Auditor(sound, AuditOptions(**QUICK))
    assert auditor.carry_out(tmp_path, Silent(stop_after=2)) is None
    before = {file: file.stat().st_mtime_ns for file in tmp_path.glob("*.json")}
    assert len(before) == 2
    heard = Silent()
    found = auditor.carry_out(tmp_path, heard)
    assert heard.done == 2
    assert all(file.stat().st_mtime_ns == time for file, time in before.items())
    whole = audited(sound, tmp_path / "other")
    assert found.parts == whole.parts


def test_the_command_writes_the_result_and_a_section(sound, tmp_path, capsys):
    place = tmp_path / "run"
    shutil.copytree(sound.path, place)
    with pytest.raises(SystemExit) as stop:
        main(["audit", str(place), "--limit", "1", "--steps", "4", "--restarts", "1", "--copies", "2", "--json"])
    assert stop.value.code in (0, None)
    result = json.loads(capsys.readouterr().out)
    assert result == json.loads((place / "audit" / "audit.json").read_text())
    assert result["ok"]
    assert result["correction"] == "bonferroni"
    assert result["delta"] == pytest.approx(result["alpha"] / result["comparisons"])
    with pytest.raises(SystemExit):
        main(["report", str(place)])
    assert "is violated significantly." in (place / "report.html").read_text()


def test_the_command_fails_where_something_is_violated(tmp_path, capsys):
    run = a_run(tmp_path / "run", certifier="broken", registry=broken_certifier(BROKEN["labels turned over"]))
    with pytest.raises(SystemExit) as stop:
        main(["audit", str(run.path), "--steps", "2", "--restarts", "1", "--copies", "2"])
    assert stop.value.code == 1
    assert "violated significantly" in " ".join(capsys.readouterr().out.split())


def refused(words, capsys, *expected):
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2
    line, = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert all(word in line for word in expected), line


def test_a_run_without_certificates_is_refused(sound, tmp_path, capsys):
    place = tmp_path / "run"
    shutil.copytree(sound.path, place)
    shutil.rmtree(place / "ledger")
    refused(["audit", str(place)], capsys, "has no certificates yet")


def test_a_run_of_a_model_that_is_gone_is_refused(sound, tmp_path, capsys):
    place = tmp_path / "run"
    shutil.copytree(sound.path, place)
    content = json.loads((place / "run.json").read_text())
    content["config"]["model"]["name"] = "vanished"
    (place / "run.json").write_text(json.dumps(content))
    refused(["audit", str(place)], capsys, "unknown model", "vanished")


def test_senseless_options_are_refused(sound, tmp_path, capsys):
    run = str(sound.path)
    refused(["audit", run, "--fraction", "1.5"], capsys, "--fraction = 1.5")
    refused(["audit", run, "--alpha", "0"], capsys, "--alpha")
    refused(["audit", run, "--seed", "0"], capsys, "run's own seed")
    refused(["audit", str(tmp_path)], capsys, "is not a run directory")


def test_what_is_not_about_the_smoothed_map_is_left_out_with_the_reason(sound):
    _, _, _, explanation = next(sound.explanations())
    base = replace(explanation, certificate=replace(explanation.certificate, function="base"))
    assert "about the base function" in claims_of(base)
    nothing = replace(explanation.certificate, labels=np.full_like(explanation.certificate.labels, -1), arrays={})
    assert claims_of(replace(explanation, certificate=nothing)) == "nothing is certified"


# -- the statistics ---------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("n", "p", "delta"), [(50, 0.5, 1e-3), (200, 0.5, 1e-9), (30, 0.9, 0.05), (5, 0.5, 1e-6)])
def test_the_largest_count_that_is_significant(n, p, delta):
    wanted = max((k for k in range(n + 1) if binom.cdf(k, n, p) <= delta), default=-1)
    assert most(n, p, delta) == wanted


def test_bounds_hold_as_often_as_they_say(sound):
    _, _, _, explanation = next(sound.explanations())
    generator = np.random.default_rng(0)
    share = generator.random(explanation.tally.counts.shape)
    wrong = 0
    for _ in range(40):
        counts = generator.binomial(200, share)
        tally = replace(explanation.tally, segments=counts[None], copies=((0, 200),), cuts=())
        lower, upper = bounds(tally, 0, 0.01)
        wrong += int(((share[0].ravel() < lower) | (share[0].ravel() > upper)).sum())
    assert wrong <= 40 * share[0].size * 0.02 * 1.3


def test_the_largest_overlap_is_that_of_enumeration():
    generator = np.random.default_rng(1)
    for _ in range(50):
        a, b = generator.random((2, 6)), generator.random((2, 6))
        first, second = (np.sort(m, axis=0) for m in (a, b))
        top, best = 2, 0
        for _ in range(400):
            drawn = [m[0] + (m[1] - m[0]) * generator.random(6) for m in (first, second)]
            sets = [set(np.argsort(-d)[:top]) for d in drawn]
            best = max(best, len(sets[0] & sets[1]))
        assert most_overlap((first[0], first[1]), (second[0], second[1]), top) >= best


def test_the_noise_of_an_audit_is_not_that_of_the_run(sound):
    _, cell, _, explanation = next(sound.explanations())
    bench = certframe.Workbench(sound)
    fresh = bench.tally(cell, explanation.image, explanation.target, samples=200, seed=AuditOptions().seed)
    assert not np.array_equal(fresh.counts, explanation.tally.counts)
    np.testing.assert_array_equal(fresh.counts.sum((1, 2)), explanation.tally.counts.sum((1, 2)))
