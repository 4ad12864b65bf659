from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from certframe.config import Component, RunConfig, parse_option, read_file, resolve
from certframe.errors import UsageError
from certframe.registry import Registry

BASE = {"model": "toy", "dataset": "toys", "attributor": "toy-weighted", "sparsifier": "toy-above", "device": "cpu"}


@pytest.fixture
def make(registry: Registry) -> Any:
    """``make(file, overrides, **command_line)``; the file has what a run of toys needs."""
    def call(file: dict[str, Any] | None = None, overrides: tuple[str, ...] = (), **settings: Any) -> RunConfig:
        return resolve({**BASE, **(file or {})}, overrides, settings=settings, registry=registry, source="run.toml")
    return call


@pytest.fixture
def refusal(make: Any) -> Any:
    def call(*args: Any, **kwargs: Any) -> str:
        with pytest.raises(UsageError) as caught:
            make(*args, **kwargs)
        text = str(caught.value)
        assert "\n" not in text
        assert len(text) < 400
        return text
    return call


# -- precedence -------------------------------------------------------------------------------------------------------

def test_the_command_line_wins_over_the_file_and_the_file_over_defaults(make: Any) -> None:
    assert make().samples == 100
    assert make({"samples": 50}).samples == 50
    assert make({"samples": 50}, samples=70).samples == 70
    assert make({"samples": 50}, samples=None).samples == 50
    assert make({"sigma": 0.3}, sigma=[0.1, 0.2]).sigma == [0.1, 0.2]
    assert make({"attributor": ["toy-random"]}, attributor=["toy-weighted"]).attributor[0].name == "toy-weighted"


@pytest.mark.parametrize(("file", "overrides", "offset"), [
    ({}, (), 0),
    ({"options": {"attributor": {"offset": 1}}}, (), 1),
    ({"options": {"attributor": {"offset": 1, "toy-weighted": {"offset": 2}}}}, (), 2),
    ({"options": {"attributor": {"toy-weighted": {"offset": 2}, "offset": 1}}}, (), 2),
    ({"attributor": {"name": "toy-weighted", "offset": 3},
      "options": {"attributor": {"toy-weighted": {"offset": 2}}}}, (), 3),
    ({"options": {"attributor": {"offset": 1}}}, ("attributor.offset=4",), 4),
    ({"options": {"attributor": {"toy-weighted": {"offset": 2}}}}, ("attributor.offset=4",), 4),
    ({"attributor": [{"name": "toy-weighted", "offset": 3}]}, ("attributor.offset=4",), 4),
    ({}, ("attributor.toy-weighted.offset=5", "attributor.offset=4"), 5),
    ({}, ("attributor.offset=4", "attributor.offset=6"), 6),
])
def test_precedence_of_options(make: Any, file: dict[str, Any], overrides: tuple[str, ...], offset: int) -> None:
    assert make(file, overrides).attributor[0].options == {"offset": offset}


def test_an_argument_on_the_command_line_wins_over_the_file(make: Any) -> None:
    file = {"model": "toy:1", "options": {"model": {"seed": 2}}}
    assert make({"options": {"model": {"seed": 2}}}).model.options["seed"] == 2
    assert make(file, model="toy:3").model.options["seed"] == 3
    assert make(file, ("model.seed=4",), model="toy:3").model.options["seed"] == 4
    assert make({"options": {"dataset": {"path": "dogs"}}}, dataset="./cats").dataset.options["path"] == "cats"


def test_options_for_a_kind_go_to_those_that_have_them(make: Any) -> None:
    config = make({"attributor": ["toy-weighted", "toy-poisoned"]}, ("attributor.pixels=9", "attributor.offset=2"))
    assert config.attributor[0].options == {"offset": 2}
    assert config.attributor[1].options["pixels"] == 9
    assert config.attributor[1].options["offset"] == 2


def test_one_method_twice_with_other_options(make: Any) -> None:
    config = make({"attributor": [{"name": "toy-weighted", "offset": 1}, "toy-weighted"]})
    assert [c.options["offset"] for c in config.attributor] == [1, 0]


# -- references -------------------------------------------------------------------------------------------------------

def test_references_are_names_arguments_owners_and_tables(make: Any) -> None:
    assert make(model="toy").model.options["seed"] == 0
    assert make(model="toy:5").model.options["seed"] == 5
    assert make(model="certframe-toys/toy:5").model.options["seed"] == 5
    assert make({"model": {"name": "toy:5", "side": 6}}).model.options == {"seed": 5, "side": 6, "broken": False}
    component = make().model
    assert (component.kind, component.name, component.distribution, component.version) == (
        "model", "toy", "certframe-toys", "1.0")


def test_dashes_and_underscores_are_one(make: Any) -> None:
    assert parse_option("attributor.batch-size=3")[2] == "batch_size"
    for file in ({"certifier": {"name": "pixel", "min-gain": 2}}, {"options": {"certifier": {"min-gain": 2}}},
                 {"options": {"certifier": {"pixel": {"min-gain": 2}}}}):
        with pytest.raises(UsageError, match="'min_gain'"):
            make(file)


def test_a_path_is_a_folder_of_pictures(make: Any, tmp_path: Path) -> None:
    for path in (str(tmp_path), "./pictures", "pictures/", "cat.png", str(tmp_path / "no" / "such.csv")):
        component = make(dataset=path).dataset
        assert component.name == "folder"
        assert component.distribution == "certframe"
        assert Path(component.options["path"]) == Path(path)
    assert make(dataset="toys").dataset.name == "toys"


def test_a_word_that_is_neither_data_set_nor_path_is_unknown(refusal: Any, make: Any, tmp_path: Path,
                                                            monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "unknown dataset 'toyz'; did you mean 'toys'" in refusal(dataset="toyz")
    (tmp_path / "toyz").mkdir()
    assert make(dataset="toyz").dataset.name == "folder"
    (tmp_path / "toys").mkdir()
    assert make(dataset="toys").dataset.name == "toys"


# -- refusals ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("file", "said"), [
    ({"sample": 3}, ["run.toml", "unknown setting 'sample'", "did you mean 'samples'"]),
    ({"batch-size": 3}, ["'batch-size'", "did you mean 'batch_size'"]),
    ({"xyzzy": 3}, ["unknown setting 'xyzzy'", "samples"]),
    ({"samples": "many"}, ["samples", "'many'", "integer"]),
    ({"samples": 0}, ["samples", "0", "greater than or equal to 1"]),
    ({"samples": 10.5}, ["samples", "10.5"]),
    ({"samples": [1]}, ["samples"]),
    ({"sigma": 0}, ["sigma", "0", "greater than 0"]),
    ({"sigma": -0.5}, ["sigma", "-0.5"]),
    ({"sigma": float("inf")}, ["sigma", "finite"]),
    ({"sigma": float("nan")}, ["sigma"]),
    ({"sigma": []}, ["sigma", "at least 1"]),
    ({"sigma": [0.1, 0.2, 0.1]}, ["sigma", "0.1 is given twice"]),
    ({"sigma": "loud"}, ["sigma", "'loud'"]),
    ({"seed": -1}, ["seed", "-1"]),
    ({"seed": 2**63}, ["seed"]),
    ({"batch_size": 0}, ["batch_size", "0"]),
    ({"limit": 0}, ["limit", "0"]),
    ({"resolution": "high"}, ["resolution", "'high'", "native"]),
    ({"autocast": "float8"}, ["autocast", "'float8'", "bfloat16"]),
    ({"model": ["toy", "toy:1"]}, ["model", "at most 1"]),
    ({"attributor": []}, ["attributor", "at least 1"]),
    ({"attributor": ["toy-weighted", "toy-weighted"]}, ["attributor", "'toy-weighted' is given twice"]),
    ({"attributor": ["toy-weighted", "certframe-toys/toy-weighted"]}, ["'toy-weighted'", "twice", "same options"]),
    ({"attributor": 3}, ["attributor"]),
    ({"attributor": [3]}, ["attributor"]),
    ({"attributor": {"offset": 3}}, ["attributor", "no name"]),
    ({"attributor": {"name": "toy-weighted", "ofset": 3}}, ["'toy-weighted'", "unknown option 'ofset'", "'offset'"]),
    ({"attributor": {"name": "toy-weighted", "offset": "far"}},
     ["'toy-weighted'", "offset", "'far'", "integer", "describe"]),
    ({"attributor": "toy-weigthed"}, ["unknown attributor 'toy-weigthed'", "did you mean 'toy-weighted'"]),
    ({"attributor": "toy"}, ["unknown attributor 'toy'", "it is a model"]),
    ({"attributor": "toy-weighted:3"}, ["'toy-weighted'", "no argument"]),
    ({"options": {"attributer": {"offset": 1}}}, ["attributer", "did you mean 'attributor'"]),
    ({"options": {"attributor": 3}}, ["options"]),
    ({"options": {"attributor": {"ofset": 1}}}, ["unknown option 'ofset'", "'toy-weighted'", "'offset'"]),
    ({"options": {"attributor": {"toy-random": {"offset": 1}}}},
     ["attributor.toy-random.offset", "no attributor 'toy-random'"]),
    ({"options": {"executor": {"slots": 1}}}, ["unknown option 'slots'", "'local'", "no options"]),
])
def test_what_is_wrong_in_a_file(refusal: Any, file: dict[str, Any], said: list[str]) -> None:
    text = refusal(file)
    for part in said:
        assert part in text, text


@pytest.mark.parametrize(("option", "said"), [
    ("attributor.offset", ["'attributor.offset'", "kind.option=value"]),
    ("offset=3", ["'offset=3'", "kind.option=value"]),
    ("attributor.a.b.c=3", ["kind.option=value"]),
    ("attributor.=3", ["kind.option=value"]),
    ("=3", ["kind.option=value"]),
    ("atributor.offset=3", ["'atributor'", "did you mean 'attributor'"]),
    ("zzz.offset=3", ["'zzz'", "model, attributor"]),
    ("attributor.ofset=3", ["unknown option 'ofset'", "did you mean 'offset'"]),
    ("attributor.toy-weighted.ofset=3", ["unknown option 'ofset'", "offset"]),
    ("attributor.toy-wieghted.offset=3", ["no attributor 'toy-wieghted'", "did you mean 'toy-weighted'"]),
    ("attributor.offset=far", ["offset", "'far'"]),
    ("attributor.offset=1.5", ["offset", "1.5"]),
    ("certifier.tau=0.4", ["'pixel'", "tau", "0.4", "0.5"]),
    ("certifier.tau=1", ["'pixel'", "tau", "less than 1"]),
    ("certifier.tau=x", ["tau", "'x'"]),
    ("certifier.alpha=0", ["alpha", "0"]),
    ("certifier.correction=bonferoni", ["correction", "'bonferoni'", "bonferroni"]),
])
def test_what_is_wrong_on_the_command_line(refusal: Any, option: str, said: list[str]) -> None:
    text = refusal({}, (option,))
    for part in said:
        assert part in text, text


def test_several_mistakes_are_counted(refusal: Any) -> None:
    assert "(and 1 more)" in refusal({"samples": 0, "seed": -1})


def test_a_plugin_without_options_is_called_broken() -> None:
    class Plugin:
        from certframe import hookimpl as _hookimpl

        @_hookimpl
        def certframe_attributors(self, register: Any) -> None:
            register("bare", "fractions:Fraction")

    registry = Registry(external=False)
    registry.add(Plugin(), name="bare", distribution="bare-dist")
    with pytest.raises(UsageError, match="'bare-dist/bare' is broken: its class has no Options model"):
        resolve({"attributor": "bare", "model": "digits", "dataset": "digits"}, registry=registry)


# -- values -----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("text", "value"), [
    ("3", 3), ("0.5", 0.5), ("true", True), ("[1, 2]", [1, 2]), ('"3"', "3"), ("final", "final"), (" final ", "final"),
    ("", ""), ("a=b", "a=b"), ("layer.4", "layer.4"), ("1e-3", 1e-3), ('{ a = 1 }', {"a": 1}), ("it's", "it's"),
])
def test_values_are_toml_or_else_text(text: str, value: Any) -> None:
    assert parse_option(f"attributor.layer={text}") == ("attributor", None, "layer", value)
    assert parse_option(f"attributor.cam.layer={text}") == ("attributor", "cam", "layer", value)


@given(st.text(max_size=30))
def test_no_text_is_more_than_one_option(text: str) -> None:
    try:
        kind, _, option, value = parse_option(f"attributor.layer={text}")
    except UsageError as error:
        message = str(error)
        assert "\n" not in message
    else:
        assert (kind, option) == ("attributor", "layer")
        assert not isinstance(value, str) or value == text.strip() or '"' in text or "'" in text


# -- files ------------------------------------------------------------------------------------------------------------

def test_a_file_is_read_and_its_faults_are_named(tmp_path: Path, registry: Registry) -> None:
    path = tmp_path / "run.toml"
    path.write_text('model = "toy:7"\ndataset = "toys"\nsparsifier = "toy-above"\nsamples = 40\nsigma = [0.1, 0.2]\n'
                    '[[attributor]]\nname = "toy-weighted"\noffset = 2\n[[attributor]]\nname = "toy-random"\n'
                    '[options.certifier.pixel]\ntau = 0.8\n[options.sparsifier]\nt = [0.0]\n', encoding="utf-8")
    config = resolve(read_file(path), registry=registry, source=str(path))
    assert config.model.options["seed"] == 7
    assert [c.name for c in config.attributor] == ["toy-weighted", "toy-random"]
    assert config.attributor[0].options == {"offset": 2}
    assert config.certifier[0].options["tau"] == 0.8
    assert config.sparsifier.options["t"] == [0.0]
    assert config.sigma == [0.1, 0.2]
    for content, said in ((b"samples = ", "not valid TOML"), (b"\xff\xfe", "cannot be read"),
                          (b"samples = 1\n= 2", "line 2")):
        path.write_bytes(content)
        with pytest.raises(UsageError, match=said) as caught:
            read_file(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match=r"there is no file .*nowhere\.toml"):
        read_file(tmp_path / "nowhere.toml")
    with pytest.raises(UsageError, match="cannot be read"):
        read_file(tmp_path)


# -- identity ---------------------------------------------------------------------------------------------------------

def test_how_a_run_is_carried_out_does_not_change_what_it_is(make: Any) -> None:
    reference = make()
    for change in ({"batch_size": 5}, {"device": "cuda:7"}, {"channels_last": True}, {"compile": True},
                   {"executor": "toy-threads"}):
        assert make(**change).digest == reference.digest, change
    for change in ({"samples": 99}, {"seed": 1}, {"sigma": 0.2}, {"limit": 1}, {"autocast": "bfloat16"},
                   {"resolution": "native"}, {"attributor": "toy-random"}, {"dataset": "./x"}, {"model": "toy:1"}):
        assert make(**change).digest != reference.digest, change
    for option in ("attributor.offset=1", "sparsifier.t=[1]", "certifier.tau=0.8", "dataset.count=3", "model.side=5"):
        assert make({}, (option,)).digest != reference.digest, option


def test_a_configuration_survives_json(make: Any) -> None:
    config = make({"attributor": ["toy-weighted", "toy-random"]}, sigma=[0.1, 1 / 3])
    back = RunConfig.model_validate_json(config.model_dump_json())
    assert back == config
    assert back.digest == config.digest


def test_a_component_builds_the_class_with_its_options(make: Any, registry: Registry) -> None:
    built = make({}, ("attributor.offset=3",)).attributor[0].build(registry)
    assert type(built).__name__ == "Weighted"
    assert built.options.offset == 3
    stranger = Component(kind="attributor", name="toy-weighted", options={}, distribution="elsewhere", version="1")
    with pytest.raises(UsageError, match="unknown attributor 'elsewhere/toy-weighted'"):
        stranger.build(registry)


def test_the_fingerprint_knows_owner_and_options_but_not_their_order() -> None:
    def fingerprint(**changes: Any) -> str:
        fields = {"kind": "attributor", "name": "cam", "options": {"a": 1, "b": 2}, "distribution": "d", "version": "1"}
        return Component(**{**fields, **changes}).fingerprint

    reference = fingerprint()
    assert fingerprint(options={"b": 2, "a": 1}) == reference
    assert fingerprint(options={"a": 1, "b": 2, "chunk": 7}, execution=("chunk",)) == reference
    for change in ({"name": "grad-cam"}, {"distribution": "e"}, {"options": {"a": 1, "b": 3}}, {"options": {}}):
        assert fingerprint(**change) != reference
