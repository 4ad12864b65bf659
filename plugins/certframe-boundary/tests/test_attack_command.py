"""``certframe attack`` as a user meets it."""

from __future__ import annotations

import json
import os
import signal

import numpy as np
import pytest
import torch
from certframe_boundary.explanation_attack import AttackOptions
from certframe_boundary.trial import Setting, attempt
from PIL import Image

import certframe
from certframe.cli import main

QUICK = ["--model", "digits", "--steps", "4", "--restarts", "2"]


def run(words):
    with pytest.raises(SystemExit) as stop:
        main(["attack", *words])
    return stop.value.code or 0


def refused(words, capsys, *expected):
    assert run(words) == 2
    line, = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert all(word in line for word in expected), line


@pytest.fixture
def setting():
    return Setting(certframe.build("model", "digits"), certframe.build("attributor", "gradient"), "gradient", "plain",
                   "magnitude", 0.1, 4, 8, 20.0)


def trial(setting, sample, **options):
    return attempt(setting, sample, AttackOptions(**{"rho": 0.5, "steps": 4, "restarts": 2, **options}),
                   torch.device("cpu"))


@pytest.fixture
def sample():
    return certframe.build("dataset", "digits").load(0)


def test_pictures_json_and_table(tmp_path, capsys):
    out = tmp_path / "out"
    assert run([*QUICK, "--data", "digits", "--limit", "2", "--out", str(out)]) == 0
    assert "digit-000" in capsys.readouterr().out
    result = json.loads((out / "attack.json").read_text())
    assert [image["name"] for image in result["images"]] == ["digit-000", "digit-001"]
    for image in result["images"]:
        assert image["overlap"] < image["overlap_of_random_change"]
        assert image["distance"] <= 0.5 * (1 + 1e-5)
    sheets = sorted(out.glob("*.png"))
    assert len(sheets) == 2
    assert np.asarray(Image.open(sheets[0])).std() > 20


def test_an_interrupted_attack_goes_on(tmp_path, capsys, monkeypatch):
    attacked = []

    def interrupted(setting, sample, *others):
        attacked.append(sample.name)
        if len(attacked) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return attempt(setting, sample, *others)

    monkeypatch.setattr("certframe_boundary.trial.attempt", interrupted)
    words = [*QUICK, "--data", "digits", "--limit", "3", "--out", str(tmp_path), "--json"]
    assert run(words) == 130
    captured = capsys.readouterr()
    assert "stopped after 2 of 3 images" in captured.err
    assert len(json.loads(captured.out)["images"]) == 2
    assert run([*words, "--chunk", "3"]) == 0
    names = ["digit-000", "digit-001", "digit-002"]
    assert attacked == names
    whole = capsys.readouterr().out
    assert [image["name"] for image in json.loads(whole)["images"]] == names
    assert whole == (tmp_path / "attack.json").read_text()
    assert run([*words, "--rho", "0.1"]) == 0
    assert attacked == names + names, "with other settings nothing of it is the same"
    (tmp_path / "attack.json").write_text("{")
    assert run(words) == 0
    assert json.loads(capsys.readouterr().out.split("\n}\n")[1] + "\n}") == json.loads(whole)


def test_nothing_is_left_of_an_image_that_has_been_replaced(tmp_path, capsys):
    pixels = np.random.default_rng(0).integers(0, 255, (8, 8), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    (tmp_path / "list.csv").write_text("path,label\na.png,3\n")
    words = [*QUICK, "--data", str(tmp_path / "list.csv"), "--out", str(tmp_path / "out"), "--json"]
    assert run(words) == 0
    (tmp_path / "a.png").rename(tmp_path / "b.png")
    (tmp_path / "list.csv").write_text("path,label\nb.png,77\n")
    capsys.readouterr()
    assert run(words) == 1
    result = json.loads(capsys.readouterr().out)
    assert (result["images"], len(result["failures"])) == ([], 1)
    assert json.loads((tmp_path / "out" / "attack.json").read_text()) == result


@pytest.mark.parametrize("variant", ["smoothed", "sparsified"])
def test_other_maps_and_norms(tmp_path, capsys, variant):
    assert run([*QUICK, "--data", "digits", "--limit", "1", "--map", variant, "--copies", "3", "--measured", "8",
                "--norm", "linf", "--rho", "0.1", "--attributor", "integrated-gradients", "-o", "attributor.steps=4",
                "--out", str(tmp_path), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["images"][0]["distance"] <= 0.1 * (1 + 1e-5)


def test_a_misclassified_image_is_said_to_be_one(setting, sample):
    label = (sample.label + 1) % 10
    wrong = certframe.Sample(sample.name, sample.image, label)
    found = trial(setting, wrong)
    assert found.target == str(label)
    assert found.prediction == str(sample.label)
    assert "the model takes the image for" in found.notes[0]


def test_rho_0_and_no_start_are_said(setting, sample):
    nothing = trial(setting, sample, rho=0.0)
    assert (nothing.overlap, nothing.distance) == (1.0, 0.0)
    assert "ρ = 0 allows no change" in nothing.notes[0]
    lost = trial(setting, sample, rho=40.0, tries=3)
    if not lost.found:
        assert "the attack has no start" in lost.notes[0]
        assert lost.overlap == 1.0


def test_an_attack_that_never_starts(setting, sample):
    class Brittle(torch.nn.Module):
        def __init__(self, inner, image):
            super().__init__()
            self.inner, self.image = inner, image

        def forward(self, z):
            same = (z == self.image).flatten(1).all(1, keepdim=True)
            logits = self.inner(z)
            return torch.where(same, logits, logits.flip(1))
    model = setting.model
    other = certframe.TorchModel(Brittle(model.module, sample.image[None]), model.input_size, model.classes)
    found = trial(Setting(other, *list(vars(setting).values())[1:]), sample, tries=7)
    assert not found.found
    assert found.overlap == 1.0
    assert "none of 7 random changes" in found.notes[0]


def test_images_at_the_edge_of_the_box_stay_in_it(setting, sample):
    for value in (0.0, 1.0):
        found = trial(setting, certframe.Sample("edge", torch.full_like(sample.image, value)))
        assert float(found.moved.min()) >= 0
        assert float(found.moved.max()) <= 1


def test_what_cannot_be_attacked_is_refused(tmp_path, capsys):
    here = [*QUICK, "--data", "digits", "--out", str(tmp_path / "out")]
    refused([*here, "--attributor", "occlusion"], capsys, "'occlusion'", "no gradient")
    refused([*here, "--map", "plian"], capsys, "--map 'plian'", "did you mean 'plain'")
    refused([*here, "--rho", "-1"], capsys, "--rho = -1")
    refused([*here, "--norm", "l1"], capsys, "--norm", "'l1'")
    refused([*here, "--beta", "0"], capsys, "--beta 0")
    refused([*here, "-o", "certifier.tau=1"], capsys, "only options of model, dataset, attributor")
    refused([*here, "-o", "attributor.layr=input"], capsys, "unknown option 'layr'")
    assert not (tmp_path / "out").exists()


def test_an_image_that_fails_is_named_and_the_others_are_done(tmp_path, capsys):
    (tmp_path / "list.csv").write_text("path,label\na.png,3\nb.png,77\n")
    for name in "ab":
        pixels = np.random.default_rng(0).integers(0, 255, (8, 8), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    assert run([*QUICK, "--data", str(tmp_path / "list.csv"), "--out", str(tmp_path / "out")]) == 1
    assert "has label 77, and the model has 10 classes" in capsys.readouterr().err
    result = json.loads((tmp_path / "out" / "attack.json").read_text())
    assert (len(result["images"]), len(result["failures"])) == (1, 1)
