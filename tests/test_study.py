"""Study files: what they become, where a mistake is, and that what fails does not stop the rest."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import toys

from certframe.errors import CertframeError, UsageError
from certframe.pipeline import execute
from certframe.registry import Registry
from certframe.store import load_run
from certframe.study import Study, StudyData, StudyTable, at_layers, execute_study, is_study, read_study

STUDY = """
sparsifier = "toy-above"
samples = 48
sigma = [0.25, 0.5]
batch_size = 16
attributor = ["toy-weighted", "toy-random"]

[study]
model = ["toy"]

[[study.data]]
name = "two"
dataset = {name = "toys", count = 2}

[[study.data]]
name = "three"
dataset = {name = "toys", count = 3}
limit = 1
metric = ["certified-rate", "toy-needy"]
"""


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], Path]:
    def call(text: str) -> Path:
        (tmp_path / "study.toml").write_text(text)
        return tmp_path / "study.toml"
    return call


@pytest.fixture
def carry_out(registry: Registry) -> Callable[..., Study]:
    def call(study: Study, out: Path) -> Study:
        return execute_study(study, out, lambda config, place: execute(config, place, registry=registry,
                                                                       keep_going=True))
    return call


def refusal(write: Callable[[str], Path], registry: Registry, text: str) -> str:
    with pytest.raises(UsageError) as caught:
        read_study(write(text), registry=registry)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_study_is_a_run_for_every_model_and_data_set(write: Callable[[str], Path], registry: Registry) -> None:
    study = read_study(write(STUDY), registry=registry)
    assert [run.folder for run in study.runs] == ["two/toy", "three/toy"]
    two, three = (run.config for run in study.runs)
    assert [c.name for c in two.attributor] == ["toy-weighted", "toy-random"]
    assert (two.sigma, two.samples, two.limit) == ([0.25, 0.5], 48, None)
    assert [c.name for c in two.metric] == ["certified-rate"]
    assert (three.limit, [c.name for c in three.metric]) == (1, ["certified-rate", "toy-needy"])
    assert read_study(write(STUDY), ["dataset.side=4"], settings={"samples": 60}, registry=registry).runs[0] \
        .config.samples == 60
    assert is_study({"study": {}})
    assert not is_study({"model": "toy"})


def test_methods_are_taken_at_every_layer_that_they_can_have(registry: Registry) -> None:
    found = at_layers(["toy-weighted", "grad-cam", {"name": "occlusion", "patch": 2}, {"name": "cam", "layer": "x"}],
                      ["input", "final"], registry)
    assert found == [
        "toy-weighted", {"name": "grad-cam", "layer": "input"}, {"name": "grad-cam", "layer": "final"},
        {"name": "occlusion", "patch": 2, "layer": "input"}, {"name": "occlusion", "patch": 2, "layer": "final"},
        {"name": "cam", "layer": "x"}]
    assert at_layers(["grad-cam"], None, registry) == ["grad-cam"]


@pytest.mark.parametrize(("old", "new", "line", "said"), [
    ('"toy-random"', '"toy-randon"', 6, "toy-randon"),
    ("samples = 48", "sampels = 48", 3, "unknown setting 'sampels'"),
    ("sigma = [0.25, 0.5]", "sigma = [0.25, -0.5]", 4, "sigma"),
    ('model = ["toy"]', 'model = ["toi"]', 9, "toi"),
    ('model = ["toy"]', "modle = 3", 9, "modle"),
    ("count = 2", "cuont = 2", 13, "cuont"),
    ("limit = 1", "limit = 0", 18, "limit"),
    ('name = "three"', 'name = "two"', 12, "two data sets of the study are called 'two'"),
    ('name = "three"', 'name = "a/b"', 16, "'a/b' is to be the name of a folder"),
    ("samples = 48", "samples = ", 3, "not valid TOML"),
    ("samples = 48", 'model = "toy"', 3, "'model' is given beside [study]"),
    ("count = 3", "count = 0", 1, "has no images"),
    ("samples = 48", "samples = 5", 3, "5 samples cannot certify anything: certifier 'pixel' needs at least"),
    ('sparsifier = "toy-above"', 'sparsifier = "toy-soft"', 1, "certifier 'pixel' counts 0/1 levels"),
])
def test_a_mistake_is_refused_with_its_line(write: Callable[[str], Path], registry: Registry, old: str, new: str,
                                            line: int, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def loaded(self: Any, *args: Any) -> None:
        raise AssertionError("a model was loaded")
    monkeypatch.setattr(toys.Toy, "__init__", loaded)
    assert old in STUDY
    text = refusal(write, registry, STUDY.replace(old, new))
    assert said in text
    assert f"line {line}" in text or line == 1


def test_what_is_done_is_not_done_again(write: Callable[[str], Path], registry: Registry, tmp_path: Path,
                                        carry_out: Callable[..., Study]) -> None:
    seen: list[int] = []
    toys.OBSERVERS.append(lambda inputs, targets: seen.append(len(inputs)))
    study = carry_out(read_study(write(STUDY), registry=registry), tmp_path / "out")
    assert study.failures == {}
    assert len(load_run(tmp_path / "out" / "two" / "toy").image_keys()) == 2
    three = load_run(tmp_path / "out" / "three" / "toy")
    assert "needy.boxes" in {row["metric"] for row in three.table().to_pylist()}
    done = len(seen)
    assert done > 0
    carry_out(read_study(write(STUDY), registry=registry), tmp_path / "out")
    assert len(seen) == done


def test_a_method_that_fails_on_an_image_is_recorded_and_the_others_go_on(
        write: Callable[[str], Path], registry: Registry, tmp_path: Path, carry_out: Callable[..., Study],
        monkeypatch: pytest.MonkeyPatch) -> None:
    """On toy 1 one method falls over on the clean image, and another on noisy copies; toy 0 is complete."""
    cursed = toys.Toys(toys.Toys.Options(count=2)).load(1).image
    maps = toys.Random.maps

    def sometimes(self: Any, model: Any, inputs: Any, targets: Any, rng: Any) -> Any:
        if float((inputs[0] - cursed).abs().mean()) < 0.45 and len(inputs) > 1 and not (inputs[0] == inputs[-1]).all():
            raise RuntimeError("out of luck")
        return maps(self, model, inputs, targets, rng)

    monkeypatch.setattr(toys.Random, "maps", sometimes)
    text = STUDY.replace('"toy-random"', '"toy-random", "toy-failing"')
    study = carry_out(read_study(write(text), registry=registry), tmp_path / "out")
    assert study.failures == {}
    run = load_run(tmp_path / "out" / "two" / "toy")
    methods = {(row["name"], row["attributor"], row["sigma"]) for row in run.table().to_pylist()}
    assert {(f"toy {i}", "toy-weighted", s) for i in (0, 1) for s in (0.25, 0.5)} <= methods
    assert not any(method == "toy-failing" for _, method, _ in methods)
    reasons = {(f["name"], f["part"].split("-s")[0].rsplit("-", 1)[0]): f["reason"] for f in run.failures()}
    assert all("toy fell over" in reasons[f"toy {i}", "toy-failing"] for i in (0, 1))
    assert "out of luck" in reasons["toy 1", "toy-random"]
    before = {p: p.read_bytes() for p in run.path.rglob("*") if p.is_file() and p.suffix != ".jsonl"}
    carry_out(read_study(write(text), registry=registry), tmp_path / "out")
    assert {p: p.read_bytes() for p in run.path.rglob("*") if p.is_file() and p.suffix != ".jsonl"} == before


def test_images_and_runs_that_fail_do_not_stop_the_study(write: Callable[[str], Path], registry: Registry,
                                                         tmp_path: Path, carry_out: Callable[..., Study]) -> None:
    text = STUDY.replace("count = 2}", "count = 2, bad = [0, 1]}").replace("count = 3}", "count = 3, bad = [0]}") \
        .replace("limit = 1", "limit = 2")
    study = carry_out(read_study(write(text), registry=registry), tmp_path / "out")
    assert list(study.failures) == ["two/toy"]
    assert "cannot be read" in study.failures["two/toy"]
    run = load_run(tmp_path / "out" / "three" / "toy")
    assert [f["name"] for f in run.failures()] == ["toy 0"]
    assert len(run.image_keys()) == 1


def test_without_going_on_a_plugin_that_falls_over_ends_the_run(registry: Registry, tmp_path: Path) -> None:
    config = toys.configure(registry, attributor=["toy-weighted", "toy-failing"])
    with pytest.raises(CertframeError, match="the toy fell over"):
        execute(config, tmp_path / "run", registry=registry)
    run = execute(config, tmp_path / "run", registry=registry, keep_going=True)
    assert {row["attributor"] for row in run.table().to_pylist()} == {"toy-weighted"}


def test_a_metric_that_fails_leaves_the_others(registry: Registry, tmp_path: Path,
                                               monkeypatch: pytest.MonkeyPatch) -> None:
    def fall(self: Any, explanation: Any) -> Any:
        raise ZeroDivisionError("no boxes")

    monkeypatch.setattr(toys.Needy, "compute", fall)
    config = toys.configure(registry, metric=["certified-rate", "toy-needy"])
    with pytest.raises(CertframeError, match="no boxes"):
        execute(config, tmp_path / "a", registry=registry)
    run = execute(config, tmp_path / "b", registry=registry, keep_going=True)
    assert {row["metric"].split(".")[0] for row in run.table().to_pylist()} >= {"certified", "confidence"}
    assert all(f["part"].endswith("--toy-needy") and "no boxes" in f["reason"] for f in run.failures())
    assert len(run.failures()) == len(run.image_keys())


def test_every_key_of_a_study_is_documented() -> None:
    page = (Path(__file__).parents[1] / "docs" / "compare.md").read_text(encoding="utf-8")
    table = page.split("| key | |")[1].split("```")[0]
    assert all(f"`study.{name}`" in table for name in StudyTable.model_fields)
    assert all(f"`{name}`" in table for name in StudyData.model_fields)
