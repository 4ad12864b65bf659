from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import toys
from hypothesis import given
from hypothesis import strategies as st

from certframe.certifiers.pixel import Pixel
from certframe.errors import CertframeError, UsageError
from certframe.files import sha256
from certframe.protocols import Certificate
from certframe.store import FORMAT, LEDGER, Run, explanation_of, image_key, load_run
from certframe.tally import Tally
from certframe.worker import Prepared, cells_of, component_key


@pytest.fixture
def run(tmp_path: Path, configure: Callable[..., Any]) -> Run:
    """An empty run."""
    return Run.create(tmp_path / "run", configure(attributor=["toy-weighted", "toy-random"], sigma=[0.25, 0.5]),
                      {"weights": "w", "noise": "n"})


def prepared(index: int = 0, **changes: Any) -> Prepared:
    sample = toys.Toys().load(index)
    maps = [torch.randn(4, 4, generator=torch.Generator().manual_seed(i)) for i in range(2)]
    return replace(Prepared(index, sample.name, sample.image, "k" * 64, None, 1, "one", 0.25, {"boxes": [[0, 1, 2, 3]]},
                            maps, "w"), **changes)


def counts() -> Tally:
    segments = np.arange(32).reshape(1, 2, 4, 4) * 3
    return Tally(segments, ((0, 96),), ("50", "5"), 0.25, cuts=(), votes=np.array([[90, 6, 0]]),
                 identity={"target": 1, "attributor": "weighted"})


# -- making and finding -----------------------------------------------------------------------------------------------

def test_a_run_is_loaded_as_it_was_created(run: Run) -> None:
    back = load_run(str(run.path))
    assert back.config == run.config
    assert back.provenance == {"weights": "w", "noise": "n"}
    content = json.loads((run.path / "run.json").read_text())
    assert content["format"] == FORMAT
    assert content["digest"] == run.config.digest
    assert sorted(p.name for p in run.path.iterdir()) == ["run.json"]


def message(call: Callable[[], Any], kind: type[CertframeError] = UsageError) -> str:
    with pytest.raises(kind) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def edit(run: Run, **changes: Any) -> None:
    file = run.path / "run.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def test_directories_that_are_no_runs(tmp_path: Path) -> None:
    assert "not a run directory" in message(lambda: load_run(tmp_path))
    assert "not a run directory" in message(lambda: load_run(tmp_path / "nowhere"))
    (tmp_path / "file").touch()
    message(lambda: load_run(tmp_path / "file"))


@pytest.mark.parametrize("content", ["", "{", "[]", "3", "{}", '{"format": "x"}', '{"format": 1}',
                                     '{"format": 1, "config": {}, "provenance": {}}', "\0\0", "null"])
def test_damaged_descriptions_are_one_line(run: Run, content: str) -> None:
    (run.path / "run.json").write_text(content)
    text = message(lambda: load_run(run.path))
    assert "damaged" in text
    assert "run.json" in text


def test_a_newer_run_asks_for_an_upgrade(run: Run, configure: Callable[..., Any]) -> None:
    edit(run, format=FORMAT + 1, config={"something": "else"})
    for call in (lambda: load_run(run.path), lambda: Run.find(run.path, run.config)):
        text = message(call)
        assert "newer certframe" in text
        assert f"format {FORMAT + 1}" in text
        assert "upgrade" in text


def test_finding_what_can_be_resumed(run: Run, tmp_path: Path, configure: Callable[..., Any]) -> None:
    found = Run.find(run.path, run.config)
    assert found is not None
    assert found.config == run.config
    assert Run.find(tmp_path / "free", run.config) is None
    (tmp_path / "empty").mkdir()
    assert Run.find(tmp_path / "empty", run.config) is None
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.tex").touch()
    assert "is not empty and is not a run" in message(lambda: Run.find(tmp_path / "taken", run.config))
    (tmp_path / "file").touch()
    assert "is a file" in message(lambda: Run.find(tmp_path / "file", run.config))


def test_a_place_where_a_run_was_killed_at_birth_is_free(run: Run, tmp_path: Path) -> None:
    place = tmp_path / "born"
    place.mkdir()
    (place / ".lock").touch()
    (place / ".run.json.abc123.part").write_bytes(b"{")
    assert Run.find(place, run.config) is None


def test_another_configuration_says_what_differs(run: Run, configure: Callable[..., Any]) -> None:
    def text(**changes: Any) -> str:
        fields = {"attributor": ["toy-weighted", "toy-random"], "sigma": [0.25, 0.5], **changes}
        return message(lambda: Run.find(run.path, configure(**fields)))

    assert "seed is 0 there and 7 here" in text(seed=7)
    assert "sigma is [0.25, 0.5] there and [0.25] here" in text(sigma=[0.25])
    assert "certifier.0.options.tau is 0.75 there and 0.9 here" in text(options=["certifier.tau=0.9"])
    assert "absent" in text(attributor=["toy-weighted"])
    assert "more" in text(seed=7, samples=99, limit=1, sigma=[0.1])
    assert Run.find(run.path, configure(attributor=["toy-weighted", "toy-random"], sigma=[0.25, 0.5], batch_size=3,
                                        executor="toy-threads")) is not None


def test_a_run_is_worked_on_by_one_process(run: Run) -> None:
    with run.locked():
        assert "another process is working on" in message(lambda: run.locked().__enter__())
    program = ("import fcntl, sys\nwith open(sys.argv[1], 'w') as file:\n    fcntl.flock(file, fcntl.LOCK_EX)\n"
               "    print('locked', flush=True)\n    sys.stdin.read()")
    with subprocess.Popen([sys.executable, "-c", program, str(run.path / ".lock")], stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "locked\n"
        text = message(lambda: run.locked().__enter__())
        assert f"another process is working on {run.path}" in text
        other.kill()
    with run.locked():
        pass


def test_taking_the_lock_clears_what_a_killed_process_has_left(run: Run) -> None:
    image = store(run)[0]
    for cell in cells_of(run.config):
        store(run, cell=cell.key)
    counts().save(run.tally_path(image, "c", partial=True))
    counts().save(run.tally_path("00001-toy-1", "c", partial=True))
    leftovers = [run.path / ".run.json.x1.part", run.path / "images" / ".00000.safetensors.x2.part"]
    for path in leftovers:
        path.write_bytes(b"half")
    kept = {p for p in run.path.rglob("*") if p.is_file()} - {*leftovers, run.tally_path(image, "c", partial=True)}
    with run.locked():
        pass
    assert {p for p in run.path.rglob("*") if p.is_file()} == {*kept, run.path / ".lock"}


# -- images -----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("image", "stored"), [
    (toys.Toys().load(0).image, "U8"), (torch.rand(1, 4, 4, generator=torch.Generator().manual_seed(0)), "F32"),
    (torch.zeros(1, 4, 4), "U8"), (torch.ones(1, 4, 4), "U8"),
    (torch.arange(256).reshape(1, 16, 16).float() / 255, "U8"), (torch.full((1, 4, 4), 0.5), "F32"),
    (toys.Toys(toys.Toys.Options(side=6)).load(1).image.transpose(1, 2), "U8"),
    (torch.rand(4, 5, 3, generator=torch.Generator().manual_seed(1)).permute(2, 0, 1), "F32"),
])
def test_images_come_back_to_the_last_bit(run: Run, image: torch.Tensor, stored: str) -> None:
    before = prepared(image=image, extras={"boxes": [[1, 2]], "array": np.zeros(3)}, label=2,
                      maps=[torch.rand(4, 6).T, torch.rand(2, 2)])
    key = run.save_image(before)
    assert key == "00000-toy-0"
    after = run.image(key).prepared
    assert torch.equal(after.image, image)
    assert after.image.dtype == torch.float32
    assert all(torch.equal(a, b) for a, b in zip(after.maps, before.maps, strict=True))
    for name in ("index", "name", "key", "label", "target", "target_name", "confidence", "weights"):
        assert getattr(after, name) == getattr(before, name), name
    assert after.extras == {"boxes": [[1, 2]]}
    assert f'"{stored}"'.encode() in run._image_path(key).read_bytes()
    again = run._image_path(key).read_bytes()
    run.save_image(before)
    assert run._image_path(key).read_bytes() == again


@given(st.integers(0, 99_999), st.text(max_size=100))
def test_image_keys_are_fit_for_files(index: int, name: str) -> None:
    key = image_key(index, name)
    assert key.startswith(f"{index:05d}-")
    assert "/" not in key
    assert len(key.encode()) <= 66
    assert key.isascii()
    assert key.strip(".- ") == key


def test_image_keys_are_told_apart_by_position() -> None:
    assert image_key(3, "cat.png") == "00003-cat.png"
    assert image_key(3, "../../etc/passwd") == "00003-etc-passwd"
    assert image_key(3, "…") == "00003-image"
    assert image_key(1, "a b") != image_key(2, "a b")


def test_missing_and_damaged_images_are_one_line(run: Run) -> None:
    assert "missing" in message(lambda: run.image("00000-nothing"), CertframeError)
    key = run.save_image(prepared())
    path = run._image_path(key)
    good = path.read_bytes()
    for damaged in (b"", good[:-1], good[:30], b"\xff" * 50):
        path.write_bytes(damaged)
        assert "damaged" in message(lambda: run.image(key), CertframeError)


# -- results ----------------------------------------------------------------------------------------------------------

def store(run: Run, index: int = 0, *, value: float = 0.5, cell: str = "") -> tuple[str, str, str, Certificate]:
    image, certifier = run.save_image(prepared(index)), component_key(run.config.certifier[0])
    cell = cell or cells_of(run.config)[0].key
    certificate = Pixel().certify(counts())
    explanation = explanation_of(prepared(index), 0, counts(), certificate)
    run.save_result(explanation, image, cell, "weighted", certifier, metrics={"rate.50": value}, stopped="all samples")
    return image, cell, certifier, certificate


def test_a_study_is_no_run_and_the_message_names_one_of_its_runs(run: Run, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"is not a run directory .*: give the directory that 'certframe run' wrote"):
        load_run(tmp_path / "nothing")
    place = tmp_path / "study" / "data" / "model"
    shutil.copytree(run.path, place)
    with pytest.raises(UsageError, match=rf"it is a study's: give one of its 1 runs, such as {place}$"):
        load_run(tmp_path / "study")


def test_a_result_comes_back(run: Run) -> None:
    image, cell, certifier, certificate = store(run)
    assert run.tally(image, cell).to_bytes() == counts().to_bytes()
    back = run.certificate(image, cell, certifier)
    assert np.array_equal(back.labels, certificate.labels)
    assert back.labels.dtype == np.int8
    assert np.array_equal(back.arrays["vote_thresholds"], certificate.arrays["vote_thresholds"])
    for name in ("certifier", "options", "subject", "norm", "radius", "confidence", "family", "function", "method",
                 "samples", "sigma", "levels", "statement", "warnings"):
        assert getattr(back, name) == getattr(certificate, name), name
    explanation = run.explanation(image, cell, certifier)
    assert (explanation.name, explanation.target, explanation.target_name) == ("toy 0", 1, "one")
    assert torch.equal(explanation.map, prepared().maps[0])
    assert next(run.explanations())[:3] == (image, cell, certifier)
    assert len(list(run.explanations())) == 1
    assert not run.is_done(image)


def test_the_ledger_is_written_last_and_knows_the_hashes(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    import certframe.store as store_module
    write = store_module.write_atomic

    def recorded(path: Path, data: bytes) -> None:
        order.append(path.relative_to(run.path).parts[0])
        write(path, data)

    monkeypatch.setattr(store_module, "write_atomic", recorded)
    image, cell, certifier, _ = store(run)
    assert order == ["images", "tallies", "certificates", "ledger"]
    rows = pq.read_table(run.ledger_path(image, cell, certifier)).to_pylist()
    assert [(row["metric"], row["value"]) for row in rows] == [("confidence", 0.25), ("rate.50", 0.5)]
    for row in rows:
        assert row["tally_sha256"] == sha256(run.tally_path(image, cell).read_bytes())
        assert row["certificate_sha256"] == sha256(run.certificate_path(image, cell, certifier).read_bytes())
        assert (row["image"], row["name"], row["cell"], row["certifier"]) == (image, "toy 0", cell, certifier)
        assert (row["attributor"], row["sigma"], row["samples"]) == ("weighted", 0.25, 96)
        assert row["stopped"] == "all samples"


def test_the_table_has_all_parts_in_order(run: Run) -> None:
    assert run.table().schema == LEDGER
    assert run.table().num_rows == 0
    store(run, 1, value=0.75)
    store(run, 0)
    run.write_table()
    table = pq.read_table(run.path / "metrics.parquet")
    assert table.schema == LEDGER
    assert [(row["name"], row["metric"], row["value"]) for row in table.to_pylist()] == [
        ("toy 0", "confidence", 0.25), ("toy 0", "rate.50", 0.5), ("toy 1", "confidence", 0.25),
        ("toy 1", "rate.50", 0.75)]


def test_a_damaged_part_of_the_ledger_is_one_line(run: Run) -> None:
    image, cell, certifier, _ = store(run)
    path = run.ledger_path(image, cell, certifier)
    good = path.read_bytes()
    for damaged in (b"", good[:-5], b"x" * 100):
        path.write_bytes(damaged)
        text = message(run.table, CertframeError)
        assert "damaged" in text
        assert str(path) in text


def test_a_damaged_certificate_is_one_line(run: Run) -> None:
    image, cell, certifier, _ = store(run)
    path = run.certificate_path(image, cell, certifier)
    path.write_bytes(path.read_bytes()[:-1])
    assert "damaged" in message(lambda: run.certificate(image, cell, certifier), CertframeError)
    path.unlink()
    assert "missing" in message(lambda: run.certificate(image, cell, certifier), CertframeError)


# -- progress ---------------------------------------------------------------------------------------------------------

def test_partial_counts(run: Run) -> None:
    assert run.partial("00000-toy-0", "c") is None
    counts().save(run.tally_path("00000-toy-0", "c", partial=True))
    found = run.partial("00000-toy-0", "c")
    assert found is not None
    assert found.samples == 96
    finished = replace(counts(), copies=((0, 96), (96, 97)))
    finished.save(run.tally_path("00000-toy-0", "c"))
    assert run.partial("00000-toy-0", "c").samples == 97  # type: ignore[union-attr]
    run.drop_partial("00000-toy-0")
    run.drop_partial("00000-toy-0")
    assert not (run.path / "partial").exists()


def test_failures_are_recorded_and_forgotten(run: Run) -> None:
    run.save_failure(3, "b.png", "cannot be read")
    run.save_failure(1, "a.png", "has no pixels")
    assert run.failures() == [{"index": 1, "name": "a.png", "reason": "has no pixels"},
                              {"index": 3, "name": "b.png", "reason": "cannot be read"}]
    run.clear_failures()
    run.clear_failures()
    assert run.failures() == []
    assert not (run.path / "failures").exists()


def test_the_log_is_json_lines(run: Run) -> None:
    run.log("begin", images=3)
    run.log("end")
    lines = [json.loads(line) for line in (run.path / "log.jsonl").read_text().splitlines()]
    assert [(line["event"], line.get("images")) for line in lines] == [("begin", 3), ("end", None)]
    assert all(line["time"] for line in lines)


# -- columns ----------------------------------------------------------------------------------------------------------

def test_every_column_of_a_run_has_a_key_of_its_own(configure: Callable[..., Any]) -> None:
    config = configure(attributor=["toy-weighted", {"name": "toy-weighted", "offset": 1}, "toy-random"],
                       sigma=[0.25, 0.5, 0.1234567, 0.1234568, 1e-9, 1.0])
    cells = cells_of(config)
    assert len({cell.key for cell in cells}) == len(cells) == 18
    assert all(set(cell.key) <= set("abcdefghijklmnopqrstuvwxyz0123456789-.+") for cell in cells)
    assert cells[0].key.startswith("toy-weighted-")
    assert cells[0].key.endswith("-s0.25")
    assert (cells[5].attributor, cells[5].sigma) == (2, 0.5)
    assert cells_of(configure(attributor=["toy-weighted"]))[0].key == cells[0].key
