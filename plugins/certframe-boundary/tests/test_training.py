"""Robust training: its terms, resuming, what it brings, and what it refuses."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from certframe_boundary.explanation_attack import AttackOptions
from certframe_boundary.labelled import load
from certframe_boundary.networks import read
from certframe_boundary.training import Images, Training, TrainingOptions, saliency, score
from PIL import Image

import certframe
from certframe.cli import main

QUICK = {"epochs": 3, "batch": 16, "steps": 2, "restarts": 1, "tries": 4, "architecture": "dense", "rho": 1.0}


class Heard:
    def __init__(self, stop_after=10**9):
        self.left, self.epochs = stop_after, []

    def step(self, epoch, done, of):
        self.left -= 1

    def epoch(self, epoch, loss, change):
        self.epochs.append((epoch, loss, change))

    def stopped(self):
        return self.left <= 0


@pytest.fixture(scope="module")
def images():
    """Two classes: which half is bright."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(48) % 2
    x = 0.4 * torch.rand(48, 1, 8, 8, generator=generator)
    for row, label in enumerate(y.tolist()):
        x[row, :, :, 4 * label:4 * label + 4] += 0.5
    return Images(x, y, ("left", "right"))


def test_the_saliency_map_is_the_gradient(images):
    training = Training(images, TrainingOptions(**QUICK))
    x = images.x[:3].clone().requires_grad_()
    logits = training.net(x)
    for row in range(3):
        wanted, = torch.autograd.grad(logits[row, images.y[row]], x, retain_graph=True)
        torch.testing.assert_close(saliency(training.net, images.x[:3], images.y[:3])[row], wanted[row].abs().flatten())


@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_a_stop_changes_nothing(images, tmp_path, weight):
    options = TrainingOptions(weight=weight, **QUICK)
    whole = Training(images, options)
    assert whole.run(Heard())
    first = Training(images, options)
    assert not first.run(Heard(stop_after=4))
    first.save(tmp_path / "state.safetensors")
    second = Training(images, options)
    second.load(tmp_path / "state.safetensors")
    assert second.done == 4
    assert second.run(Heard())
    assert second.history == whole.history
    for (name, a), b in zip(whole.net.state_dict().items(), second.net.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, msg=name)


def test_the_weight_makes_explanations_steadier(images):
    scores = {}
    for weight in (0.0, 5.0):
        training = Training(images, TrainingOptions(**{**QUICK, "weight": weight, "epochs": 25, "steps": 4}))
        assert training.run(Heard())
        scores[weight] = score(training.net, images, AttackOptions(rho=1.0, k=25, steps=6, restarts=2), 24)
    assert scores[0.0].accuracy > 0.9
    assert scores[5.0].overlap > scores[0.0].overlap + 0.03


def folder(place, classes=("cat", "dog"), count=4, labels=True):
    generator = np.random.default_rng(0)
    for number in range(count * len(classes)):
        name = classes[number % len(classes)]
        file = place / name / f"{number}.png" if labels else place / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 255, (10 + number, 12, 3), dtype=np.uint8)).save(file)
    return place


def test_a_folder_of_pictures(tmp_path):
    train, test = load(str(folder(tmp_path / "pictures", count=10)), limit=None, size=8, seed=0)
    assert train.classes == test.classes == ["cat", "dog"]
    assert train.size == (3, 8, 8)
    assert (len(train.x), len(test.x)) == (16, 4)
    again, _ = load(str(tmp_path / "pictures"), limit=5, size=8, seed=0)
    torch.testing.assert_close(again.x, train.x[:5], rtol=0, atol=0)


def test_mnist_from_an_archive(data_dir):
    train, test = load(f"mnist:{data_dir / 'mnist.npz'}", limit=20, size=32, seed=0)
    assert train.size == (1, 28, 28)
    assert (len(train.x), len(test.x)) == (20, 10000)
    assert list(train.classes) == list("0123456789")


def refused(words, capsys, *expected):
    with pytest.raises(SystemExit) as stop:
        main(["train-robust", *words])
    assert stop.value.code == 2
    line, = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert all(word in line for word in expected), line


def test_what_cannot_be_trained_is_refused(tmp_path, capsys):
    out = str(tmp_path / "out")
    bare = folder(tmp_path / "bare", labels=False)
    refused([str(bare), "--out", out], capsys, "has no label", "subfolders")
    one = folder(tmp_path / "one", classes=("cat",))
    refused([str(one), "--out", out], capsys, "only the class 'cat'")
    refused([str(tmp_path / "absent"), "--out", out], capsys, "absent")
    two = str(folder(tmp_path / "two"))
    refused([two, "--out", out, "--weight", "-1"], capsys, "--weight = -1")
    refused([two, "--out", out, "--architecture", "vit"], capsys, "--architecture", "dense")
    refused([two, "--out", out, "--limit", "1"], capsys, "--limit 1")
    refused([two, "--out", out, "--device", "cuda:9"], capsys, "cuda:9")
    assert not (tmp_path / "out").exists()


def test_the_command_trains_resumes_and_its_network_is_a_model(tmp_path, capsys):
    pictures, out = str(folder(tmp_path / "pictures", count=8)), tmp_path / "out"
    words = ["train-robust", pictures, "--out", str(out), "--size", "8", "--batch", "4", "--steps", "1", "--restarts",
             "1", "--tries", "2", "--weight", "0.1", "--rho", "0.5", "--test-images", "3"]
    with pytest.raises(SystemExit) as stop:
        main([*words, "--epochs", "1"])
    assert stop.value.code in (0, None)
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main([*words, "--epochs", "2", "--json"])
    result = json.loads(capsys.readouterr().out)
    assert len(result["history"]) == 2
    assert result == json.loads((out / "scores.json").read_text())
    assert len(read(out / "checkpoint.safetensors")[1]["history"]) == 2
    refused([*words[1:], "--epochs", "2", "--rho", "0.7"], capsys, "another training", "rho is 0.5 there and 0.7 here")
    model = certframe.build("model", f"trained:{out / 'model.safetensors'}")
    assert list(model.classes) == ["cat", "dog"]
    assert model.module(torch.rand(2, 3, 8, 8)).shape == (2, 2)


def test_a_file_that_is_no_network_is_refused(tmp_path):
    (tmp_path / "x.safetensors").write_bytes(b"nothing")
    for name, word in (("x.safetensors", "is not a network"), ("absent.safetensors", "there is no file")):
        with pytest.raises(certframe.UsageError, match=word):
            certframe.build("model", f"trained:{tmp_path / name}")
