"""``certframe run study.toml`` and ``certframe compare``, with the bundled model."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path

import pytest

from certframe.cli import main

STUDY = """
attributor = ["gradient", "random"]
sigma = [0.05, 0.1]
limit = 2
metric = ["certified-rate", {name = "deletion", steps = 4, curve = true}]

[options.sparsifier]
k = [50, 25]

[study]
model = "digits"

[[study.data]]
name = "digits"
dataset = "digits"
"""


def call(*arguments: object) -> tuple[int, str, str]:
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main([str(a) for a in arguments])
        except SystemExit as stop:
            code = int(stop.code or 0)
    return code, out.getvalue(), err.getvalue()


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    (folder / "s.toml").write_text(STUDY)
    code, out, err = call("run", folder / "s.toml", "--out", folder / "out", "--no-tune-allocator")
    assert code == 0, err
    assert "digits/digits: 2 images complete" in out
    assert f"certframe compare {folder / 'out'}" in out
    return folder / "out"


def test_a_study_is_listed_and_compared(study: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    code, out, err = call("compare", study)
    assert code == 0, err
    assert "Certified pixels" in out
    assert "Deletion" in out
    names = {p.name for p in (study / "comparison").iterdir()}
    assert {"index.html", "summary.csv", "summary.parquet", "paired.csv", "paired.parquet"} <= names
    assert "certified-against-radius-digits-digits-K50.svg" in names
    assert "deletion-digits-digits-sigma0.1.png" in names


def test_every_run_of_a_study_is_planned(study: Path) -> None:
    file = study.parent / "s.toml"
    code, out, err = call("plan", file, "--out", study, "--no-tune-allocator")
    assert code == 0, err
    assert out.lstrip().startswith("digits/digits")
    assert "(finished)" in out
    code, out, err = call("plan", file, "--out", study.parent / "new", "--samples", 200, "--json")
    assert code == 0, err
    planned, = json.loads(out).items()
    assert planned[0] == "digits/digits"
    alone = json.loads(call("plan", "--model", "digits", "--data", "digits", "--limit", 2, "-a", "gradient", "-a",
                            "random", "--sigma", 0.05, "--sigma", 0.1, "-k", 50, "-k", 25, "--samples", 200, "--metric",
                            "certified-rate", "--metric", "deletion", "-o", "metric.deletion.steps=4", "-o",
                            "metric.deletion.curve=true", "--out", study.parent / "new/digits/digits", "--json")[1])
    assert {**planned[1], "free_bytes": 0} == {**alone, "free_bytes": 0}
    code, _, err = call("plan", file, "--samples", 12)
    assert code == 2
    assert "setting samples: 12 samples cannot certify anything" in err
    assert not (study.parent / "new").exists()


def test_json_and_choice(study: Path, tmp_path: Path) -> None:
    code, out, err = call("compare", study, "--show", "deletion.auc", "--paired", "deletion.auc", "--no-figures",
                          "--json", "--out", tmp_path / "c")
    assert code == 0, err
    found = json.loads(out)
    assert len(found["paired"]) == 2  # one for each σ
    assert {p.name for p in (tmp_path / "c").iterdir()} == {
        "index.html", "summary.csv", "summary.parquet", "paired.csv", "paired.parquet"}


def test_what_cannot_be_compared(study: Path, tmp_path: Path) -> None:
    code, _, err = call("compare", tmp_path)
    assert (code, "there is no run in" in err) == (2, True)
    code, _, err = call("compare", study, "--show", "bliss")
    assert (code, "nothing called 'bliss' was measured; there are confidence" in err) == (2, True)


def test_failures_are_listed_at_the_end(tmp_path: Path) -> None:
    broken = STUDY.replace('"gradient", "random"', '"random", {name = "cam", layer = "nowhere"}')
    (tmp_path / "s.toml").write_text(broken)
    code, _, err = call("run", tmp_path / "s.toml", "--out", tmp_path / "out", "--limit", 1, "--no-tune-allocator")
    assert code == 1
    assert "digits/digits: 2 failures" in err
    assert "nowhere" in err
    assert "--retry" in err
    (tmp_path / "s.toml").write_text(STUDY.replace("limit = 2", "limti = 2"))
    code, _, err = call("run", tmp_path / "s.toml")
    assert code == 2
    assert "s.toml, line 4: " in err.replace("\n", " ")
