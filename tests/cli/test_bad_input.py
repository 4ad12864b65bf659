"""Every mistake a user can make: one line that names the thing and the way out, exit code 2, nothing written."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from .conftest import SMALL


def refused(outcome, *words: str) -> None:
    """One line of error with all the words, exit code 2, no traceback, nothing written."""
    assert outcome.code == 2, outcome
    assert len(outcome.error_lines) == 1, outcome.err
    assert "Traceback" not in outcome.err
    line = outcome.error_lines[0]
    for word in words:
        assert word in line, line
    assert outcome.out == ""
    assert not Path("runs").exists()


def picture(path: Path, size: tuple[int, int] = (40, 30), mode: str = "RGB", **how: object) -> Path:
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(noise).convert(mode).save(path, **how)
    return path


@pytest.mark.parametrize(("words", "expected"), [
    (("--attributor", "gradiant"), ("unknown attributor 'gradiant'", "did you mean 'gradient'")),
    (("--model", "resnet"), ("unknown model 'resnet'", "certframe list models")),
    (("--attributor", "pixel"), ("'pixel'", "it is a certifier")),
    (("--certifier", "adaptve"), ("unknown certifier 'adaptve'", "'adaptive'")),
    (("--data", "no/such/folder"), ("no/such/folder",)),
    (("-o", "certifier.tua=0.8"), ("unknown option 'tua'", "did you mean 'tau'")),
    (("-o", "certifier.tau=high"), ("tau", "'high'", "number")),
    (("-o", "certifer.tau=0.8"), ("'certifer'", "certifier")),
    (("-o", "nonsense"), ("kind.option=value",)),
    (("-o", "certifier.tau"), ("kind.option=value",)),
    (("-k", "0"), ("(0, 100]", "0")),
    (("-k", "101"), ("(0, 100]", "101")),
    (("-k", "-5"), ("(0, 100]", "-5")),
    (("--tau", "0.49"), ("tau", "0.49", "0.5")),
    (("--tau", "1"), ("tau", "less than 1")),
    (("--alpha", "0"), ("alpha", "greater than 0")),
    (("--sigma", "0"), ("sigma", "greater than 0")),
    (("--sigma", "-0.1"), ("sigma", "greater than 0")),
    (("--sigma", "nan"), ("sigma", "finite")),
    (("--sigma", "0.1", "--sigma", "0.1"), ("sigma", "0.1", "twice")),
    (("--samples", "20"), ("20 samples", "at least", "--samples")),
    (("--samples", "0"), ("samples", "greater than or equal to 1")),
    (("--device", "cuda:7"), ("'cuda:7'", "--device auto")),
    (("--device", "gpu"), ("'gpu'", "--device auto")),
    (("--autocast", "int8"), ("autocast", "'int8'", "bfloat16")),
    (("--batch-size", "0"), ("batch_size", "greater than or equal to 1")),
    (("--limit", "0"), ("limit", "greater than or equal to 1")),
    (("--fail-under", "certified-rate"), ("--fail-under", "METRIC=VALUE")),
    (("--attributor", "gradient:final"), ("'gradient' takes no argument",)),
])
def test_wrong_words(certframe, words, expected):
    refused(certframe(*SMALL, *words), *expected)


def test_a_name_we_know_says_what_to_install(certframe, monkeypatch):
    from certframe import registry
    monkeypatch.setattr(registry, "default_registry", lambda: bare)
    bare = registry.Registry(external=False)
    monkeypatch.setattr("certframe.config.default_registry", lambda: bare)
    refused(certframe(*SMALL, "--attributor", "rise"), "'rise'", "pip install certframe-rise")
    refused(certframe(*SMALL, "--model", "timm:resnet18"), "'timm'", "pip install certframe-timm")


@pytest.mark.parametrize(("text", "expected"), [
    ("sigma = \nsamples = 9", ("not valid TOML", "line 1")),
    ("sigmaa = 0.1", ("unknown setting 'sigmaa'", "did you mean 'sigma'")),
    ("sigma = 'big'", ("sigma", "'big'", "number")),
    ("samples = 1.5", ("samples", "1.5", "integer")),
    ("attributor = ['gradient', 'gradient']", ("gradient", "twice")),
    ("[options.certifier]\ntua = 1", ("unknown option 'tua'", "'tau'")),
    ("[options.certifer]\ntau = 0.8", ("'certifer'", "'certifier'")),
    ("[options.attributor.rise]\nmasks = 10", ("no attributor 'rise'",)),
    ("attributor = [{layer = 'final'}]", ("no name",)),
])
def test_wrong_file(certframe, tmp_path, text, expected):
    (tmp_path / "experiment.toml").write_text(text)
    words = ("run", "experiment.toml", "--model", "digits", "--data", "digits", "--device", "cpu")
    refused(certframe(*words), *expected)


def test_missing_file(certframe):
    refused(certframe("run", "nowhere.toml"), "there is no file nowhere.toml")


def test_wrong_layer(certframe):
    words = [w if w != "gradient" else "grad-cam" for w in SMALL]
    refused(certframe(*words, "-o", "attributor.layer=body.7"), "body.7")


# -- pictures ----------------------------------------------------------------------------------------------------------

DIGITS = ("run", "--model", "digits", "--attributor", "gradient", "--samples", "70", "--device", "cpu")


def _write_bad(directory: Path, kind: str) -> Path:
    path = directory / f"{kind}.png"
    if kind == "corrupt":
        whole = picture(path).read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("not a picture")
    elif kind == "bomb":
        Image.new("L", (10_000, 10_000)).save(path)
    return path


@pytest.mark.parametrize(("kind", "word"), [("corrupt", "corrupt"), ("empty", "empty"), ("text", "text"),
                                            ("bomb", "10000")])
def test_pictures_that_cannot_be_used(certframe, tmp_path, kind, word):
    refused(certframe(*DIGITS, "--data", _write_bad(tmp_path, kind)), word)


@pytest.mark.parametrize("kind", ["CMYK", "L", "RGBA", "P", "I;16", "rotated"])
def test_odd_pictures_are_converted(certframe, tmp_path, kind):
    path = tmp_path / ("picture.jpg" if kind in ("CMYK", "rotated") else "picture.png")
    if kind == "I;16":
        Image.fromarray(np.arange(1200, dtype=np.uint16).reshape(30, 40) * 50).save(path)
    elif kind == "rotated":
        exif = Image.Exif()
        exif[0x0112] = 6
        picture(path, exif=exif)
    else:
        picture(path, mode=kind)
    outcome = certframe(*DIGITS, "--data", path, "--out", "run", "--json")
    assert outcome.code == 0, outcome.err
    assert json.loads(outcome.out)["failures"] == []


def test_a_folder_without_images(certframe, tmp_path):
    (tmp_path / "empty").mkdir()
    refused(certframe(*DIGITS, "--data", tmp_path / "empty"), "empty", ".png")


def test_a_label_outside_the_classes(certframe, tmp_path):
    picture(tmp_path / "a.png")
    (tmp_path / "list.csv").write_text("path,label\na.png,10\n")
    refused(certframe(*DIGITS, "--data", tmp_path / "list.csv"), "label 10", "10 classes")


def test_a_bad_image_among_good_ones_is_recorded_and_the_others_are_done(certframe, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    picture(folder / "a.png")
    _write_bad(folder, "corrupt")
    outcome = certframe(*DIGITS, "--data", folder, "--out", "run", "--json")
    assert outcome.code == 1
    result = json.loads(outcome.out)
    assert [failure["name"] for failure in result["failures"]] == ["corrupt.png"] or \
        "corrupt" in result["failures"][0]["name"]
    assert {row["images"] for row in result["metrics"]} == {1}
    assert Path("run/report.html").exists()


# -- run directories ---------------------------------------------------------------------------------------------------

def test_a_run_directory_of_another_configuration(certframe):
    assert certframe(*SMALL, "--out", "run").code == 0
    outcome = certframe(*SMALL, "--out", "run", "--sigma", "0.3")
    refused(outcome, "another configuration", "sigma", "0.15", "0.3", "--out")


def test_a_run_directory_of_a_newer_version(certframe):
    assert certframe(*SMALL, "--out", "run").code == 0
    file = Path("run/run.json")
    file.write_text(json.dumps({**json.loads(file.read_text()), "format": 99}))
    refused(certframe(*SMALL, "--out", "run"), "newer certframe", "upgrade")
    refused(certframe("report", "run"), "newer certframe", "upgrade")


def test_places_that_are_no_run(certframe, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    (tmp_path / "file").write_text("")
    refused(certframe(*SMALL, "--out", "full"), "full", "not empty", "--out")
    refused(certframe(*SMALL, "--out", "file"), "file", "--out")
    refused(certframe("certify", "nowhere"), "nowhere", "not a run directory")
    refused(certframe("report", "full"), "full", "not a run directory")
    assert sorted(p.name for p in (tmp_path / "full").iterdir()) == ["notes.txt"]


def test_certify_with_what_the_tallies_lack(certframe):
    assert certframe(*SMALL, "--out", "run").code == 0
    paper = ("-o", "certifier.correction=paper", "-o", "certifier.pilot=7")
    refused(certframe("certify", "run", *paper), "first 7 copies")
    refused(certframe("certify", "run", "--certifier", "pixle"), "unknown certifier 'pixle'", "'pixel'")
    refused(certframe("certify", "run", "--tau", "0.2"), "tau", "0.2")
    refused(certframe("certify", "run", "--tau", "0.95"), "the 70 copies", "at least 216", "smaller tau")
    refused(certframe("certify", "run", "--certifier", "quantile"), "thresholds")


def test_a_full_disk(certframe, monkeypatch):
    import errno
    import os

    real = os.replace

    def full(source, target):
        if "tallies" in str(target):
            raise OSError(errno.ENOSPC, "No space left on device")
        real(source, target)

    monkeypatch.setattr(os, "replace", full)
    outcome = certframe(*SMALL, "--out", "run")
    assert outcome.code == 1
    assert "no space left" in outcome.error_lines[0]
    assert "same command" in outcome.error_lines[0]
    monkeypatch.setattr(os, "replace", real)
    assert certframe(*SMALL, "--out", "run").code == 0


def test_too_little_space_is_refused_before_the_work(certframe, monkeypatch):
    import shutil
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1))
    refused(certframe(*SMALL), "free", "--out")
