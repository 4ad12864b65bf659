"""Every change of a run is found, however it was made, and nothing else is reported."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import toys
from PIL import Image
from safetensors.torch import load_file, save_file

import certframe.models.digits
from certframe.config import RunConfig, resolve, resolve_component
from certframe.errors import UsageError
from certframe.files import sha256
from certframe.pipeline import execute
from certframe.recertify import recertify
from certframe.registry import Registry
from certframe.store import LEDGER, Run, certificate_bytes, explanation_of, load_run, seal
from certframe.tally import Tally
from certframe.verification import Verification, verify

DIGITS: dict[str, Any] = {"model": "digits", "dataset": "digits", "attributor": ["gradient", "grad-cam"], "limit": 2,
                          "samples": 70, "device": "cpu", "certifier": ["pixel"]}


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of digits, which nobody touches."""
    return execute(resolve(settings=DIGITS), tmp_path_factory.mktemp("original") / "run").path


@pytest.fixture
def run(original: Path, tmp_path: Path) -> Run:
    """A copy of it."""
    return load_run(shutil.copytree(original, tmp_path / "run"))


def findings(run: Run | Path, **how: Any) -> dict[str, list[str]]:
    """What differs, by the check that found it."""
    found = verify(load_run(run.path if isinstance(run, Run) else run), **how)
    assert found.ok == (not any(check.findings for check in found.checks))
    return {check.name: list(check.findings) for check in found.checks if check.findings}


def only(found: dict[str, list[str]], *names: str) -> str:
    """All lines; the findings are of these checks and no others."""
    assert set(found) == set(names), found
    lines = [line for some in found.values() for line in some]
    assert all("\n" not in line for line in lines)
    return " | ".join(lines)


def unchecked(found: Verification) -> str:
    return " | ".join(line for check in found.checks for line in check.unchecked)


def notes(found: Verification) -> str:
    return " | ".join(line for check in found.checks for line in check.notes)


def cell_of(run: Run, index: int = 0) -> tuple[str, str, str]:
    """Image, cell and certifier of one finished explanation."""
    return sorted((image, cell, certifier) for image, cell, certifier, _ in run.explanations())[index]


# -- nothing to find --------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("settings", [
    {}, {"attributor": ["toy-weighted", "toy-random", "toy-coarse"], "sigma": [0.25, 0.5]},
    {"attributor": "toy-coarse", "resolution": "native", "samples": 90},
    {"certifier": ["adaptive", "class"], "options": ["certifier.class.joint=adaptive"], "samples": 300},
    {"certifier": ["pixel", "radius", "importance-band"], "options": ["certifier.pixel.correction=paper"],
     "samples": 100}, {"certifier": ["pixel", "adaptive"], "samples": 120},
    {"sparsifier": "toy-soft", "certifier": ["top-k-overlap", "certified-rank"]},
    {"metric": ["toy-needy", "certified-rate"]}, {"executor": "toy-threads", "samples": 90},
    {"options": ["dataset.count=3", "dataset.bad=[1]"]},
])
def test_an_untouched_run_agrees(registry: Registry, tmp_path: Path, settings: dict[str, Any]) -> None:
    run = execute(toys.configure(registry, **settings), tmp_path / "run", registry=registry)
    found = verify(run, share=1.0, registry=registry)
    assert found.ok, found
    assert found.complete, found
    copies = sum({(r["image"], r["cell"]): r["samples"] for r in run.table().to_pylist()}.values())
    assert f"{copies:,} of {copies:,} noisy copies" in found.checks[-1].text
    assert "all equal" in found.checks[-1].text


def test_a_run_that_was_certified_again_agrees(registry: Registry, tmp_path: Path) -> None:
    run = execute(toys.configure(registry, samples=200, metric=["toy-needy", "certified-rate"]), tmp_path / "run",
                  registry=registry)
    for name in ("radius", "importance-band", "class", "adaptive"):
        recertify(run, resolve_component("certifier", name, registry=registry), registry)
    recertify(run, resolve_component("certifier", "pixel", ["certifier.tau=0.9"], registry=registry), registry)
    recertify(run, run.config.certifier[0], registry)
    found = verify(run, registry=registry)
    assert found.ok, found
    assert found.complete, found
    assert "SHA-256 of 12 certificates" in repr(found)


def test_verifying_changes_nothing(run: Run) -> None:
    before = {p: p.read_bytes() for p in run.path.rglob("*") if p.is_file()}
    verify(run)
    assert {p: p.read_bytes() for p in run.path.rglob("*") if p.is_file()} == before


# -- a changed byte ---------------------------------------------------------------------------------------------------

def flip(path: Path, position: int, bit: int = 0) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1 << bit
    path.write_bytes(content)


@pytest.mark.parametrize("part", ["tallies", "certificates", "images", "ledger", "metrics.parquet", "run.json"])
def test_a_changed_byte_is_found_wherever_it_is(run: Run, part: str) -> None:
    """In Parquet there is slack that nothing reads: a file must be damaged, say something else, or read as before."""
    path = run.path / part if (run.path / part).is_file() else sorted((run.path / part).rglob("*.*"))[0]
    content, table = path.read_bytes(), path.suffix == ".parquet"
    rows = pq.read_table(path, schema=LEDGER) if table else None
    for number, position in enumerate(np.linspace(0, len(content) - 1, 60).astype(int)):
        flip(path, int(position), number % 8)
        try:
            found = bool(findings(run, model=False))
        except UsageError:  # what is left of run.json is no run
            found = part == "run.json"
        assert found or (table and pq.read_table(path, schema=LEDGER) == rows), position
        path.write_bytes(content)
    assert not findings(run, model=False)


def test_an_empty_cell_of_the_ledger_is_found(run: Run) -> None:
    edit_rows(run.ledger_path(*cell_of(run)), lambda rows: [rows[0] | {"value": None}, *rows[1:]])
    assert "a value is missing" in only(findings(run, model=False), "ledger")


def test_an_unknown_entry_of_run_json_is_found(run: Run) -> None:
    edit_run(run, lambda content: content.update(sha257=content.pop("sha256")), forged=False)
    assert "entry 'sha257'" in only(findings(run, model=False), "run.json")


def test_a_changed_count_is_found_by_the_hash_of_its_file(run: Run) -> None:
    image, cell, certifier = cell_of(run)
    flip(run.tally_path(image, cell), -1)
    found = findings(run, share=0)
    text = only({"tallies": found.pop("tallies"), **{k: v for k, v in found.items() if k not in (
        "certificates", "metrics")}}, "tallies")
    assert f"tallies/{image}/{cell}" in text
    assert "SHA-256" in text
    assert certifier


def test_a_file_that_is_not_there_is_found(original: Path, tmp_path: Path) -> None:
    for number, folder in enumerate(("tallies", "certificates", "images")):
        path = shutil.copytree(original, tmp_path / str(number))
        removed = sorted((path / folder).rglob("*.safetensors"))[0]
        removed.unlink()
        lines = [line for some in findings(path).values() for line in some]
        assert any("is missing" in line and removed.name in line for line in lines), folder


# -- forgery: what was changed fits the rest ---------------------------------------------------------------------------

def forge_part(run: Run, image: str, cell: str, certifier: str, **changes: Any) -> None:
    """Write a part of the ledger with other values, the table of metrics too."""
    path = run.ledger_path(image, cell, certifier)
    rows = [{**row, **changes} for row in pq.read_table(path, schema=LEDGER).to_pylist()]
    pq.write_table(pa.Table.from_pylist(rows, schema=LEDGER), path)
    run.write_table()


def forge_tally(run: Run, change: Callable[[Tally], Tally]) -> tuple[str, str, str]:
    """Change counts and make everything that follows from them anew, as if it had come out so."""
    image, cell, certifier = cell_of(run)
    spec = next(i for i, a in enumerate(run.config.attributor) if cell.startswith(f"{a.name}-"))
    tally = change(run.tally(image, cell))
    certificate = run.config.certifier[0].build().certify(tally)
    explanation = explanation_of(run.image(image).prepared, spec, tally, certificate)
    metrics = run.config.metric[0].build().compute(explanation)
    run.save_result(explanation, image, cell, run.config.attributor[spec].name, certifier, metrics=metrics,
                    stopped="all samples")
    run.write_table()
    return image, cell, certifier


def one_more(tally: Tally) -> Tally:
    segments = tally.segments.copy()
    segments[-1, 0, 3, 3] += 1 if segments[-1, 0, 3, 3] < 30 else -1
    return replace(tally, segments=segments)


def test_a_forged_count_is_found_by_drawing_again(run: Run) -> None:
    image, cell, _ = forge_tally(run, one_more)
    assert not findings(run, model=False)
    text = only(findings(run, share=1.0), "redrawn")
    assert text == f"tallies/{image}/{cell}, copies 10 to 69: 1 of 202 counts differ, by at most 1"
    assert not findings(run, share=0)


def test_a_forged_vote_is_found_by_drawing_again(run: Run) -> None:
    def other_class(tally: Tally) -> Tally:
        assert tally.votes is not None
        return replace(tally, votes=np.roll(tally.votes, 1, axis=1))
    forge_tally(run, other_class)
    assert "counts differ" in only(findings(run, share=1.0), "redrawn")


def test_a_forged_count_is_found_with_the_share_as_probability(run: Run) -> None:
    forge_tally(run, one_more)
    hits = sum("redrawn" in findings(run, share=0.5, seed=seed) for seed in range(20))
    assert 5 <= hits <= 18


@pytest.mark.parametrize(("identity", "word"), [
    ({"weights": "0" * 64}, "weights"), ({"noise": "gaussian seed=1 philox4x64-boxmuller-1"}, "noise"),
    ({"target": 3}, "target"), ({"image": "0" * 64}, "image"), ({"attributor_options": "x"}, "attributor_options"),
    ({"sparsifier": "x"}, "sparsifier"), ({"resolution": "native"}, "resolution"), ({"precision": "bfloat16"},
                                                                                   "precision")])
def test_counts_of_another_run_are_found(run: Run, identity: dict[str, Any], word: str) -> None:
    forge_tally(run, lambda tally: replace(tally, identity={**tally.identity, **identity}))
    assert f"its {word} is" in only(findings(run, share=0), "tallies")


@pytest.mark.parametrize("change", [{"sigma": 0.3}, {"planned": 71}, {"levels": ("a", "b", "c")}, {"nested": False},
                                    {"copies": ((1, 71),)}])
def test_counts_of_another_kind_are_found(run: Run, change: dict[str, Any]) -> None:
    image, cell, certifier = cell_of(run)
    content = replace(run.tally(image, cell), **change).to_bytes()
    run.tally_path(image, cell).write_bytes(content)
    forge_part(run, image, cell, certifier, tally_sha256=sha256(content))
    assert f"its {next(iter(change))} is" in " | ".join(findings(run, share=0)["tallies"])


# -- certificates -----------------------------------------------------------------------------------------------------

def relabel(labels: np.ndarray) -> np.ndarray:
    changed = labels.copy()
    changed[0, 2, 5] = 1 - abs(changed[0, 2, 5])
    return changed


EDITS: list[tuple[str, Callable[[Any], Any]]] = [
    ("labels", lambda c: replace(c, labels=relabel(c.labels))),
    ("statement", lambda c: replace(c, statement=c.statement.replace("0.999", "0.9999"))),
    ("radius", lambda c: replace(c, radius=c.radius * 1.01)),
    ("confidence", lambda c: replace(c, confidence=0.9999)), ("samples", lambda c: replace(c, samples=1000)),
    ("method", lambda c: replace(c, method="deterministic")), ("warnings", lambda c: replace(c, warnings=("x",))),
    ("options", lambda c: replace(c, options={**c.options, "tau": 0.9})),
    ("array vote_thresholds", lambda c: replace(c, arrays={"vote_thresholds": c.arrays["vote_thresholds"] - 1})),
    ("arrays", lambda c: replace(c, arrays={**c.arrays, "more": np.zeros(3)})),
]


@pytest.mark.parametrize(("field", "edit"), EDITS, ids=[name for name, _ in EDITS])
@pytest.mark.parametrize("forged", [False, True])
def test_an_edited_certificate_is_found(run: Run, field: str, edit: Callable[[Any], Any], forged: bool) -> None:
    image, cell, certifier = cell_of(run)
    content = certificate_bytes(edit(run.certificate(image, cell, certifier)))
    run.certificate_path(image, cell, certifier).write_bytes(content)
    if forged:
        forge_part(run, image, cell, certifier, certificate_sha256=sha256(content))
    found = findings(run, model=False)
    found.pop("metrics", None)  # those of the certificate may follow from the labels that were changed
    text = only(found, "certificates")
    assert f"certificates/{image}/{cell}--{certifier}" in text
    assert field in text
    assert ("SHA-256" in text) == (not forged)


def test_an_edited_certificate_that_was_made_later_is_found(run: Run) -> None:
    key = recertify(run, resolve_component("certifier", "radius", ["certifier.alpha=0.01"]))
    assert not findings(run)
    image, cell, _ = cell_of(run)
    certificate = run.certificate(image, cell, key)
    content = certificate_bytes(replace(certificate, arrays={"radius": certificate.arrays["radius"] + 0.01}))
    run.certificate_path(image, cell, key).write_bytes(content)
    forge_part(run, image, cell, key, certificate_sha256=sha256(content))
    assert "array radius differs in" in only(findings(run), "certificates")
    again = certificate_bytes(replace(certificate, options={"alpha": 0.5}))
    run.certificate_path(image, cell, key).write_bytes(again)
    forge_part(run, image, cell, key, certificate_sha256=sha256(again))
    assert "options" in only(findings(run), "certificates")


def test_an_edited_reason_of_a_certificate_that_was_made_later_is_found(run: Run) -> None:
    key = recertify(run, resolve_component("certifier", "radius"))
    image, cell, _ = cell_of(run)
    forge_part(run, image, cell, key, stopped="little was to come")
    assert f"ledger/{image}/{cell}--{key}: stopped is" in only(findings(run, model=False), "metrics")


def test_another_version_of_a_numerical_library_may_round_differently(run: Run) -> None:
    key = recertify(run, resolve_component("certifier", "radius"))
    image, cell, _ = cell_of(run)
    certificate = run.certificate(image, cell, key)
    radius = certificate.arrays["radius"] * (1 + 1e-13)
    content = certificate_bytes(replace(certificate, arrays={"radius": radius}))
    run.certificate_path(image, cell, key).write_bytes(content)
    forge_part(run, image, cell, key, certificate_sha256=sha256(content))
    found = verify(run, model=False)
    assert found.ok
    assert "last digits" in notes(found)


# -- the ledger and its table -----------------------------------------------------------------------------------------

@pytest.mark.parametrize(("column", "value"), [("name", "other"), ("attributor", "rise"), ("sigma", 0.5),
                                               ("samples", 1000), ("stopped", "only 1 % could be certified")])
def test_an_edited_row_is_found(run: Run, column: str, value: Any) -> None:
    image, cell, certifier = cell_of(run)
    forge_part(run, image, cell, certifier, **{column: value})
    text = only(findings(run, model=False), "metrics")
    assert f"ledger/{image}/{cell}--{certifier}: {column} is" in text


def edit_rows(path: Path, change: Callable[[list[dict[str, Any]]], list[dict[str, Any]]]) -> None:
    rows = change(pq.read_table(path, schema=LEDGER).to_pylist())
    pq.write_table(pa.Table.from_pylist(rows, schema=LEDGER), path)


def better(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**row, "value": row["value"] + 0.01} if row["metric"] == "certified.50" else row for row in rows]


def test_an_edited_metric_is_found_in_the_ledger_and_in_the_table(run: Run) -> None:
    edit_rows(run.ledger_path(*cell_of(run)), better)
    assert "certified.50 is" in only(findings(run, model=False), "metrics", "ledger")
    run.write_table()
    assert "certified.50 is" in only(findings(run, model=False), "metrics")
    edit_rows(run.path / "metrics.parquet", lambda rows: [rows[0] | {"value": 0.5}, *rows[1:]])
    assert "1 rows that the ledger has not" in only(findings(run, model=False), "metrics", "ledger")


def test_an_edited_confidence_is_found(run: Run) -> None:
    edit_rows(run.ledger_path(*cell_of(run)), lambda rows: [
        row | {"value": 1.0} if row["metric"] == "confidence" else row for row in rows])
    run.write_table()
    assert "confidence is 1 and should be" in only(findings(run, model=False), "metrics")


def test_a_missing_an_additional_and_a_misplaced_row_are_found(run: Run) -> None:
    path = run.ledger_path(*cell_of(run))
    edit_rows(path, lambda rows: [row for row in rows if row["metric"] != "certified.25"])
    edit_rows(run.ledger_path(*cell_of(run, 1)), lambda rows: [*rows, rows[0] | {"metric": "beauty"}])
    run.write_table()
    text = only(findings(run, model=False), "metrics")
    assert "certified.25 is missing" in text
    assert "nothing measures beauty" in text
    shutil.copy(path, run.ledger_path(*cell_of(run, 2)))
    run.write_table()
    assert "something else" in " | ".join(findings(run, model=False)["ledger"])


def test_damaged_tables_are_found(run: Run) -> None:
    (run.path / "metrics.parquet").write_bytes(b"PAR1")
    assert "metrics.parquet is damaged" in only(findings(run, model=False), "ledger")
    run.write_table()
    run.ledger_path(*cell_of(run)).write_bytes(b"")
    assert "is damaged" in " | ".join(findings(run, model=False)["ledger"])


def test_values_of_metrics_that_need_the_model(registry: Registry, tmp_path: Path) -> None:
    run = execute(toys.configure(registry, metric=["toy-needy"]), tmp_path / "run", registry=registry)
    edit_rows(run.ledger_path(*cell_of(run)), lambda rows: [
        row | {"value": 1.0 - row["value"]} if row["metric"] == "needy.target" else row for row in rows])
    run.write_table()
    assert "needy.target" in only(findings(run, registry=registry), "metrics")
    found = verify(run, registry=registry, model=False)
    assert found.ok
    assert "'toy-needy' needs the model" in unchecked(found)


# -- run.json ---------------------------------------------------------------------------------------------------------

def edit_run(run: Run, change: Callable[[dict[str, Any]], Any], *, forged: bool) -> None:
    path = run.path / "run.json"
    content = json.loads(path.read_text())
    change(content)
    if forged:
        content["digest"] = RunConfig.model_validate(content["config"]).digest
        content.pop("sha256")
        content["sha256"] = seal(content)
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")


CHANGES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "seed": lambda c: c["config"].update(seed=1), "samples": lambda c: c["config"].update(samples=71),
    "tau": lambda c: c["config"]["certifier"][0]["options"].update(tau=0.8),
    "weights": lambda c: c["provenance"].update(weights="0" * 64),
    "noise": lambda c: c["provenance"].update(noise="other"),
    "resolution": lambda c: c["config"].update(resolution="native"),
    "k": lambda c: c["config"]["sparsifier"]["options"].update(k=[50.0, 25.0, 4.0]),
    "sigma": lambda c: c["config"].update(sigma=[0.16]),
    "attributor": lambda c: c["config"]["attributor"][1]["options"].update(layer="input"),
    "plugins": lambda c: c["provenance"]["plugins"].update({"model digits": "certframe 9.9"}),
}
HARMLESS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "batch_size": lambda c: c["config"].update(batch_size=7), "python": lambda c: c["provenance"].update(python="2.7"),
    "device": lambda c: c["provenance"].update(device="cuda"), "digest": lambda c: c.update(digest="0" * 64),
    "version": lambda c: c["provenance"]["versions"].update(torch="1.0"),
}


@pytest.mark.parametrize("name", [*CHANGES, *HARMLESS])
def test_an_edited_run_json_is_found(run: Run, name: str) -> None:
    edit_run(run, {**CHANGES, **HARMLESS}[name], forged=False)
    assert findings(run, model=False)["run.json"]


@pytest.mark.parametrize("name", CHANGES)
def test_a_forged_run_json_does_not_fit_the_rest(run: Run, name: str) -> None:
    edit_run(run, CHANGES[name], forged=True)
    assert findings(run, model=False)


def test_a_run_without_hashes_of_its_own_is_not_blamed_for_it(run: Run) -> None:
    edit_run(run, lambda content: content.pop("sha256"), forged=False)
    found = verify(run, model=False)
    assert found.ok
    assert "before run.json had a hash" in notes(found)


# -- the model and the pictures ---------------------------------------------------------------------------------------

def test_a_changed_weight_is_found(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = load_file(certframe.models.digits.WEIGHTS)
    name = sorted(weights)[0]
    weights[name].view(-1)[0] += 1e-6
    save_file(weights, tmp_path / "weights.safetensors")
    monkeypatch.setattr(certframe.models.digits, "WEIGHTS", tmp_path / "weights.safetensors")
    found = verify(run)
    assert "other weights" in only(findings(run), "weights")
    assert "nothing can be drawn again" in unchecked(found)
    assert not findings(run, model=False)


def test_a_changed_pixel_of_a_stored_image_is_found(run: Run) -> None:
    image = cell_of(run)[0]
    prepared = run.image(image).prepared
    pixels = prepared.image.clone()
    pixels[0, 4, 4] = 1.0 - pixels[0, 4, 4]
    run.save_image(replace(prepared, image=pixels))  # with a new hash of the file
    text = only(findings(run, model=False), "images")
    assert image in text
    assert "content hash" in text


@pytest.mark.parametrize(("changes", "check"), [
    ({"target": 3, "target_name": "3"}, "tallies"), ({"key": "0" * 64}, "images"), ({"weights": "0" * 64}, "images"),
    ({"confidence": 0.5}, "metrics")])
def test_a_forged_header_of_an_image_is_found(run: Run, changes: dict[str, Any], check: str) -> None:
    run.save_image(replace(run.image(cell_of(run)[0]).prepared, **changes))
    assert findings(run, model=False)[check]


def test_a_forged_clean_attribution_is_found_by_the_model(run: Run) -> None:
    for image in run.image_keys():
        prepared = run.image(image).prepared
        run.save_image(replace(prepared, maps=[torch.flip(m, (0,)) for m in prepared.maps]))
    assert not findings(run, model=False)
    assert "comes out differently" in only(findings(run, share=1.0), "clean")


def test_another_name_of_the_class_or_of_the_image_is_found(run: Run) -> None:
    first, second = run.image_keys()
    run.save_image(replace(run.image(first).prepared, target_name="zero"))
    shutil.copy(run.path / "images" / f"{first}.safetensors", run.path / "images" / f"{second}.safetensors")
    text = " | ".join(line for some in findings(run, share=1.0).values() for line in some)
    assert "is called" in text
    assert "it says that it is" in text


@pytest.fixture
def pictures(tmp_path: Path) -> Run:
    """A run over picture files and their labels in a CSV."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (3, 8, 8), dtype=np.uint8)
    for i, pixels in enumerate(noise):
        Image.fromarray(pixels).save(folder / f"{i}.png")
    (folder / "list.csv").write_text("path,label\n0.png,1\n1.png,2\n2.png,\n")
    return execute(resolve(settings={**DIGITS, "limit": 3, "dataset": str(folder / "list.csv")}), tmp_path / "run")


def test_a_changed_picture_file_is_found(pictures: Run) -> None:
    assert not findings(pictures)
    path = Path(pictures.config.dataset.options["path"]).parent / "1.png"
    with Image.open(path) as image:
        pixels = np.array(image)
    pixels[3, 3] ^= 1
    Image.fromarray(pixels).save(path)
    assert only(findings(pictures), "pictures").startswith("'1.png' gives other pixels")
    assert not findings(pictures, model=False)


def test_changed_labels_and_removed_pictures(pictures: Run) -> None:
    table = Path(pictures.config.dataset.options["path"])
    table.write_text("path,label\n0.png,1\n1.png,3\n2.png,\n")
    assert "'1.png' has the label 3 and had 2 then" in only(findings(pictures), "pictures")
    table.write_text("path,label\n0.png,1\n2.png,\n")
    text = unchecked(verify(pictures))
    assert "'1.png' is no longer number 1" in text
    assert "'2.png' is no longer number 2" in text
    table.unlink()
    found = verify(pictures)
    assert found.ok
    assert "list.csv" in unchecked(found)
    assert "all equal" in found.checks[-1].text  # the stored images are enough to draw again


# -- unfinished runs --------------------------------------------------------------------------------------------------

def test_what_an_unfinished_run_has_is_checked(registry: Registry, tmp_path: Path) -> None:
    config, left = toys.configure(registry, samples=64, options=["dataset.count=3"]), [8]

    def interrupt(inputs: torch.Tensor, targets: torch.Tensor) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt
    toys.OBSERVERS.append(interrupt)
    with pytest.raises(KeyboardInterrupt):
        execute(config, tmp_path / "run", registry=registry)
    toys.OBSERVERS.clear()
    run = load_run(tmp_path / "run")
    found = verify(run, registry=registry, share=1.0)
    assert found.ok, found
    assert "1 of 3 images are finished" in repr(found)
    assert "not finished" in notes(found)
    assert "64 of 64 noisy copies" in found.checks[-1].text
    flip(run.tally_path(*cell_of(run)[:2]), -1)
    assert findings(run, registry=registry)["tallies"]


def test_an_empty_run(registry: Registry, tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", toys.configure(registry), {})
    found = verify(run, registry=registry, model=False)
    assert found.ok
    assert "0 of 2 images are finished" in repr(found)


def test_images_that_failed_are_named(registry: Registry, tmp_path: Path) -> None:
    config = toys.configure(registry, options=["dataset.count=3", "dataset.bad=[1]"])
    found = verify(execute(config, tmp_path / "run", registry=registry), registry=registry)
    assert "could not be used: toy 1" in notes(found)
    assert "not finished" not in notes(found)


def test_tallies_that_the_ledger_does_not_know(run: Run) -> None:
    image, cell, certifier = cell_of(run)
    run.ledger_path(image, cell, certifier).unlink()
    found = verify(run, model=False)
    assert "not in the ledger and so not checked: 1" in notes(found)
    assert not found.ok  # the table of metrics still has its rows
    run.write_table()
    assert verify(run, model=False).ok


# -- plugins ----------------------------------------------------------------------------------------------------------

class Less:
    """The toys without some hooks."""

    def __init__(self, *missing: str, version: str = "1.0") -> None:
        self.registry = Registry(external=False)
        hooks = {name: getattr(toys.ToyPlugin, name) for name in dir(toys.ToyPlugin)
                 if name.startswith("certframe_") and name.split("_")[1] not in missing}
        self.registry.add(type("Plugin", (), hooks)(), name="toys", distribution="certframe-toys", version=version)
        assert not self.registry.broken


@pytest.mark.parametrize(("missing", "what", "still"), [
    ("models", "unknown model", ("clean", "redrawn", "weights")), ("datasets", "unknown dataset", ("pictures", "run")),
    ("attributors", "unknown attributor", ("clean", "redrawn")), ("sparsifiers", "unknown sparsifier", ("redrawn",)),
    ("certifiers", "unknown certifier", ("certificates",)), ("metrics", "unknown metric", ("metrics",))])
def test_a_missing_plugin_leaves_something_unchecked(registry: Registry, tmp_path: Path, missing: str, what: str,
                                                     still: tuple[str, ...]) -> None:
    config = toys.configure(registry, certifier=["toy-early", "pixel"], metric=["toy-needy", "certified-rate"])
    run = execute(config, tmp_path / "run", registry=registry)
    found = verify(run, registry=Less(missing).registry)
    assert found.ok, found
    assert not found.complete
    assert what in unchecked(found)
    states = {check.name: check.state for check in found.checks}
    for name in ("plugins", *still):
        assert states[name] == "not checked", name
    assert states["tallies"] == "agrees"
    flip(run.tally_path(*cell_of(run)[:2]), -1)
    assert findings(run, registry=Less(missing).registry)["tallies"]


def test_a_certifier_of_later_that_is_not_there(registry: Registry, tmp_path: Path) -> None:
    run = execute(toys.configure(registry), tmp_path / "run", registry=registry)
    recertify(run, resolve_component("certifier", "toy-early", ["certifier.at=[48]"], registry=registry), registry)
    found = verify(run, registry=registry)
    assert found.ok, found
    assert found.complete
    assert "no certifier 'toy-early' is installed" in unchecked(verify(run, registry=Less("certifiers").registry))


def test_another_version_of_a_plugin_is_noted(registry: Registry, tmp_path: Path) -> None:
    run = execute(toys.configure(registry), tmp_path / "run", registry=registry)
    found = verify(run, registry=Less(version="2.0").registry)
    assert found.ok
    assert "certframe-toys 1.0 and 2.0 is installed" in notes(found)


# -- the choice of what is drawn again --------------------------------------------------------------------------------

def chosen(run: Run, share: float, seed: int) -> list[str]:
    """Images whose copies were drawn, as the segments that were counted."""
    import certframe.redrawing as redrawing
    from certframe.checking import Means, Silent
    from certframe.registry import default_registry
    means = Means(run, default_registry(), Silent())
    means.tallies = {(image, cell): run.tally(image, cell).samples for image, cell, _, _ in run.explanations()}
    total = sum(means.tallies.values())
    return [segment.name for segment in redrawing._Redrawer(means, share, seed, None)._choose(total)]


def test_the_choice_follows_the_seed_and_the_share(run: Run) -> None:
    assert chosen(run, 0.0, 1) == []
    assert len(chosen(run, 1e-9, 1)) == 1
    assert len(chosen(run, 1.0, 1)) == 8  # 2 images, 2 methods, copies 0 to 9 and 10 to 69
    assert chosen(run, 0.5, 1) == chosen(run, 0.5, 1)
    counts = Counter(name for seed in range(400) for name in chosen(run, 1e-9, seed))
    assert len(counts) == 8
    assert min(counts.values()) > 25
    assert max(counts.values()) < 80


class Batches:
    """The batches that attributors were given."""

    def __init__(self) -> None:
        self.seen: set[bytes] = set()

    def __call__(self, inputs: torch.Tensor, targets: torch.Tensor) -> None:
        self.seen.add(inputs.numpy().tobytes())


@pytest.mark.parametrize("settings", [{"samples": 100}, {"samples": 300, "certifier": "adaptive", "options": [
    "certifier.futility=0.0"]}, {"samples": 90, "certifier": "toy-early", "options": ["certifier.share=1.0"]}])
def test_copies_are_drawn_in_the_batches_that_the_run_had(registry: Registry, tmp_path: Path,
                                                          settings: dict[str, Any]) -> None:
    """The last digits of a network's output may depend on the batch."""
    toys.OBSERVERS[:] = [then := Batches()]
    run = execute(toys.configure(registry, **settings), tmp_path / "run", registry=registry)
    toys.OBSERVERS[:] = [now := Batches()]
    assert verify(run, registry=registry, share=1.0).ok
    assert now.seen == then.seen
    for seed in range(5):
        toys.OBSERVERS[:] = [now := Batches()]
        assert verify(run, registry=registry, share=0.2, seed=seed).ok
        assert now.seen < then.seen


# -- other machines ---------------------------------------------------------------------------------------------------

def elsewhere(run: Run) -> Run:
    """As if it had been made on a GPU."""
    edit_run(run, lambda content: content["provenance"].update(device="cuda"), forged=True)
    return load_run(run.path)


def test_on_another_device_a_few_counts_may_differ(run: Run) -> None:
    forge_tally(run, one_more)
    assert "redrawn" in findings(elsewhere(run), share=1.0)  # 1 of 202 counts is more than 0.1 %
    assert "redrawn" in findings(run, share=1.0, tolerance=0.0)
    found = verify(load_run(run.path), share=1.0, tolerance=0.01)
    assert found.ok
    assert "1 differ" in found.checks[-1].text
    assert "by at most 1" in found.checks[-1].text
    assert "made on" in notes(found)
    assert "cuda" in notes(found)


def test_sums_of_real_levels_may_round_differently_elsewhere(registry: Registry, tmp_path: Path) -> None:
    settings = {"sparsifier": "toy-soft", "certifier": "top-k-overlap", "metric": "certified-rate"}
    run = execute(toys.configure(registry, **settings), tmp_path / "run", registry=registry)
    image, cell, certifier = cell_of(run)
    tally = run.tally(image, cell)
    segments = np.where(tally.segments > 10, tally.segments - 10, tally.segments)  # 10 · 2⁻³⁰ is a rounding error
    content = replace(tally, segments=segments).to_bytes()
    run.tally_path(image, cell).write_bytes(content)
    forge_part(run, image, cell, certifier, tally_sha256=sha256(content))
    assert "redrawn" in findings(run, share=1.0, registry=registry)
    assert "redrawn" not in findings(elsewhere(run), share=1.0, registry=registry)


# -- bad input --------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("how", "word"), [({"share": 1.5}, "share = 1.5"), ({"share": -0.1}, "share = -0.1"),
                                           ({"tolerance": 2.0}, "tolerance = 2"), ({"device": "cuda:9"}, "cuda:9"),
                                           ({"share": float("nan")}, "share = nan")])
def test_bad_settings_are_refused(run: Run, how: dict[str, Any], word: str) -> None:
    with pytest.raises(UsageError) as caught:
        verify(run, **how)
    assert word in str(caught.value)


def test_the_listener_hears_every_check_and_every_copy(run: Run) -> None:
    class Ear:
        def __init__(self) -> None:
            self.totals: dict[str, int] = {}
            self.steps: dict[str, int] = {}
            self.checks: list[str] = []

        def begin(self, what: str, total: int) -> None:
            self.what, self.totals[what], self.steps[what] = what, total, 0

        def advance(self, steps: int) -> None:
            self.steps[self.what] += steps

        def done(self, check: Any) -> None:
            self.checks.append(check.name)
    found = verify(run, share=0.5, listener=(ear := Ear()))
    assert ear.checks == [check.name for check in found.checks]
    assert ear.steps == ear.totals
    assert ear.totals["certificates"] == 4
    assert ear.totals["noisy copies"] >= 140
