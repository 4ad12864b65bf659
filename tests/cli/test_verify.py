"""``certframe verify`` as a user meets it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from .conftest import SMALL


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run, made once."""
    from certframe.config import resolve
    from certframe.pipeline import execute
    settings = {"model": "digits", "dataset": "digits", "attributor": "gradient", "limit": 2, "samples": 70,
                "device": "cpu"}
    return execute(resolve(settings=settings), tmp_path_factory.mktemp("made") / "run").path


@pytest.fixture
def run(made, tmp_path):
    """A copy of it, called ``run``, in the directory where commands are called."""
    return shutil.copytree(made, tmp_path / "run")


def test_a_good_run(certframe, run):
    outcome = certframe("verify", "run", "--share", "1", "--seed", "5")
    assert outcome.code == 0, outcome
    lines = outcome.out.splitlines()
    assert len(lines) <= 20
    assert [line.split()[1] for line in lines if line[:1] == "✓"] == [
        "run.json", "plugins", "images", "tallies", "certificates", "metrics", "ledger", "run", "weights", "pictures",
        "clean", "redrawn"]
    assert "140 of 140 noisy copies, chosen with seed 5: 808 counts, all equal" in outcome.out
    assert lines[-1] == "all that was checked agrees"


def test_without_a_model(certframe, run):
    outcome = certframe("verify", "run", "--no-model")
    assert outcome.code == 0
    assert "left out on request" in outcome.out
    assert outcome.out.splitlines()[-1] == "all that was checked agrees; not everything could be checked"


def test_a_changed_run(certframe, run):
    tally = next(Path("run/tallies").rglob("*.safetensors"))
    content = bytearray(tally.read_bytes())
    content[-1] ^= 1
    tally.write_bytes(content)
    outcome = certframe("verify", "run", "--no-model")
    assert outcome.code == 1
    assert outcome.err == ""
    assert f"tallies/{tally.parent.name}/{tally.stem}: the file does not have the SHA-256 in the ledger" in outcome.out
    assert "✗ tallies" in outcome.out
    assert outcome.out.splitlines()[-1].endswith("differs") or outcome.out.splitlines()[-1].endswith("differ")


def test_json(certframe, run):
    outcome = certframe("verify", "run", "--json")
    values = json.loads(outcome.out)
    assert outcome.err == ""
    assert (values["ok"], values["complete"], values["run"]) == (True, True, "run")
    again = json.loads(certframe("verify", "run", "--json", "--seed", values["seed"]).out)
    assert again == values
    Path("run/metrics.parquet").write_bytes(b"")
    outcome = certframe("verify", "run", "--json", "--no-model")
    assert outcome.code == 1
    ledger = next(check for check in json.loads(outcome.out)["checks"] if check["name"] == "ledger")
    assert ledger["state"] == "differs"
    assert "metrics.parquet is damaged" in ledger["findings"][0]


def test_many_findings_are_not_all_printed(certframe, run):
    for path in Path("run/ledger").rglob("*.parquet"):
        path.write_bytes(b"")
    for number in range(9):
        path = Path(f"run/ledger/0000{number}-x/a--b.parquet")
        path.parent.mkdir()
        path.write_bytes(b"")
    outcome = certframe("verify", "run", "--no-model")
    assert outcome.code == 1
    assert "more, all in --json" in outcome.out
    assert len(outcome.out.splitlines()) < 30


@pytest.mark.parametrize(("words", "expected"), [
    (("nowhere",), ("nowhere", "not a run directory")), ((".",), ("not a run directory",)),
    (("run", "--share", "2"), ("share = 2", "from 0 to 1")), (("run", "--tolerance", "-1"), ("tolerance = -1",)),
    (("run", "--device", "cuda:7"), ("cuda:7", "--device auto"))])
def test_what_cannot_be_verified(certframe, run, words, expected):
    outcome = certframe("verify", *words)
    assert outcome.code == 2
    assert len(outcome.error_lines) == 1
    assert all(word in outcome.error_lines[0] for word in expected)


def test_a_run_that_is_made_and_certified_again_on_the_command_line(certframe):
    assert certframe(*SMALL, "--out", "r", "--no-report").code == 0
    assert certframe("certify", "r", "--certifier", "radius", "--no-report").code == 0
    assert certframe("verify", "r").code == 0
