from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from certframe import hookimpl, registry
from certframe.errors import UsageError
from certframe.protocols import KINDS
from certframe.registry import HOOKS, Registry


def plugin(**hooks: Callable[[Any], None]) -> Any:
    """An object with hooks: ``plugin(attributors=lambda register: register("a", "m:C"))``."""
    found = SimpleNamespace()
    for kind, function in hooks.items():
        def hook(register: Any, function: Any = function) -> None:
            function(register)
        setattr(found, f"certframe_{kind}", hookimpl(hook))
    return found


def one(name: str, target: str = "fractions:Fraction") -> Any:
    return plugin(attributors=lambda register: register(name, target, "a summary"))


@pytest.fixture
def fresh() -> Registry:
    return Registry(external=False)


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(UsageError) as caught:
        call()
    text = str(caught.value)
    assert "\n" not in text
    return text


# -- what is there ----------------------------------------------------------------------------------------------------

def test_built_ins_register_through_the_hooks(fresh: Registry) -> None:
    assert fresh.broken == []
    assert [p.name for p in fresh.plugins] == ["certframe"]
    assert tuple(HOOKS) == KINDS
    for kind in KINDS:
        names = fresh.names(kind)
        assert names
        assert names == sorted(names)
        for entry in fresh.entries(kind):
            assert entry.distribution == "certframe"
            assert entry.summary
            assert "\n" not in entry.summary
            assert entry.qualified == f"certframe/{entry.name}"
    for kind, name in (("certifier", "pixel"), ("sparsifier", "threshold"), ("executor", "local")):
        assert isinstance(fresh.find(kind, name).load(), type)


def test_all_seven_kinds_can_be_registered(fresh: Registry) -> None:
    fresh.add(plugin(**{f"{kind}s": lambda register, kind=kind: register(f"my-{kind}", "fractions:Fraction")
                        for kind in KINDS}), name="mine", distribution="my-dist", version="3.1")
    assert fresh.broken == []
    for kind in KINDS:
        entry = fresh.find(kind, f"my-{kind}")
        assert (entry.kind, entry.distribution, entry.version) == (kind, "my-dist", "3.1")
        assert entry.load().__name__ == "Fraction"
        assert fresh.find(kind, f"my-dist/my-{kind}") is entry


def test_nothing_is_imported_before_it_is_asked_for(fresh: Registry) -> None:
    fresh.add(one("my-later", "no_such_module_anywhere:Thing"), name="lazy")
    assert fresh.broken == []
    assert "my-later" in fresh.names("attributor")
    assert fresh.find("attributor", "my-later").summary == "a summary"


# -- what cannot be found ---------------------------------------------------------------------------------------------

def test_unknown_names_give_close_matches_and_where_to_look(fresh: Registry) -> None:
    text = refusal(lambda: fresh.find("attributor", "grad-cm"))
    assert text.startswith("unknown attributor 'grad-cm'; did you mean 'grad-cam'")
    assert "certframe list attributors" in text
    far = refusal(lambda: fresh.find("metric", "qqqqqq"))
    assert "did you mean" not in far
    assert "certframe list metrics" in far


def test_names_of_another_kind_say_so(fresh: Registry) -> None:
    assert "it is a sparsifier, not an attributor" in refusal(lambda: fresh.find("attributor", "top-k"))
    assert "it is an attributor, not a model" in refusal(lambda: fresh.find("model", "grad-cam"))


@pytest.mark.parametrize(("kind", "name", "package"), [
    ("model", "timm", "certframe-timm"), ("model", "lite0", "certframe-timm"), ("attributor", "rise", "certframe-rise"),
])
def test_names_we_know_say_what_to_install(fresh: Registry, kind: str, name: str, package: str) -> None:
    text = refusal(lambda: fresh.find(kind, name))
    assert f"unknown {kind} '{name}'" in text
    assert f"pip install {package}" in text


def test_a_name_whose_package_is_installed_but_broken_says_so(fresh: Registry) -> None:
    fresh.broken.append(registry.Broken("rise", "certframe-rise", "0.1", "ImportError: no libfoo"))
    text = refusal(lambda: fresh.find("attributor", "rise"))
    assert "certframe-rise is broken (ImportError: no libfoo)" in text
    assert "pip install" not in text


# -- two owners -------------------------------------------------------------------------------------------------------

def test_two_owners_of_a_name_are_both_kept_and_picked_by_owner(fresh: Registry) -> None:
    fresh.add(one("my-cam"), name="a", distribution="dist-a")
    fresh.add(one("my-cam", "decimal:Decimal"), name="b", distribution="dist-b")
    fresh.add(one("my-other"), name="c", distribution="dist-c")
    assert fresh.broken == []
    text = refusal(lambda: fresh.find("attributor", "my-cam"))
    assert "dist-a/my-cam, dist-b/my-cam" in text
    assert "uninstall" in text
    assert fresh.find("attributor", "dist-a/my-cam").load().__name__ == "Fraction"
    assert fresh.find("attributor", "dist-b/my-cam").load().__name__ == "Decimal"
    assert {"dist-a/my-cam", "dist-b/my-cam", "my-other"} <= set(fresh.names("attributor"))
    assert "my-cam" not in fresh.names("attributor")
    assert "unknown" in refusal(lambda: fresh.find("attributor", "dist-c/my-cam"))


def test_a_stranger_cannot_take_a_built_in_name_silently(fresh: Registry) -> None:
    fresh.add(one("gradient"), name="evil", distribution="evil")
    assert "certframe/gradient, evil/gradient" in refusal(lambda: fresh.find("attributor", "gradient"))
    assert fresh.find("attributor", "certframe/gradient").target.startswith("certframe.")


def test_the_same_name_may_be_of_two_kinds(fresh: Registry) -> None:
    fresh.add(plugin(attributors=lambda r: r("x", "fractions:Fraction"), metrics=lambda r: r("x", "decimal:Decimal")),
              name="x")
    assert fresh.find("attributor", "x").load().__name__ == "Fraction"
    assert fresh.find("metric", "x").load().__name__ == "Decimal"


# -- broken plugins ---------------------------------------------------------------------------------------------------

def twice(register: Any) -> None:
    register("my-cam", "fractions:Fraction")
    register("my-cam", "decimal:Decimal")


def falls_over(register: Any) -> None:
    register("good", "fractions:Fraction")
    raise RuntimeError("fell\nover")


@pytest.mark.parametrize(("hook", "reason"), [
    (twice, "attributor 'my-cam' is registered twice by bad-dist"),
    (falls_over, "RuntimeError: fell over"),
    (lambda r: r("Upper", "fractions:Fraction"), "'Upper': use lower-case"),
    (lambda r: r("under_score", "fractions:Fraction"), "'under_score': use lower-case"),
    (lambda r: r("a/b", "fractions:Fraction"), "'a/b': use lower-case"),
    (lambda r: r("a:b", "fractions:Fraction"), "'a:b': use lower-case"),
    (lambda r: r("", "fractions:Fraction"), "'': use lower-case"),
    (lambda r: r("-x", "fractions:Fraction"), "'-x': use lower-case"),
    (lambda r: r("x\n", "fractions:Fraction"), "use lower-case"),
    (lambda r: r("x", "fractions.Fraction"), "'fractions.Fraction' is not of the form"),
    (lambda r: r("x", ":Fraction"), "':Fraction' is not of the form"),
    (lambda r: r("x", "fractions:"), "'fractions:' is not of the form"),
    (lambda r: r("x"), "TypeError"),
    (lambda r: r(3, "fractions:Fraction"), "TypeError"),
])
def test_a_broken_plugin_breaks_itself_alone(fresh: Registry, hook: Any, reason: str) -> None:
    before = {kind: fresh.names(kind) for kind in KINDS}
    fresh.add(plugin(attributors=hook, metrics=lambda r: r("my-innocent", "fractions:Fraction")), name="bad",
              distribution="bad-dist", version="2")
    broken, = fresh.broken
    assert (broken.name, broken.distribution, broken.version) == ("bad", "bad-dist", "2")
    assert reason in broken.reason
    assert "\n" not in broken.reason
    assert {kind: fresh.names(kind) for kind in KINDS} == before
    assert all(p.name != "bad" for p in fresh.plugins)
    assert "bad-dist is broken" in refusal(lambda: fresh.find("attributor", "bad-dist"))
    fresh.add(one("my-fine"), name="good")
    assert fresh.find("attributor", "my-fine")


def test_unknown_hooks_are_named_with_a_close_match(fresh: Registry) -> None:
    fresh.add(plugin(attributers=lambda register: None), name="typo")
    reason = fresh.broken[0].reason
    assert "unknown hook 'certframe_attributers'" in reason
    assert "did you mean 'certframe_attributors'" in reason


def test_functions_without_the_marker_are_no_hooks(fresh: Registry) -> None:
    unmarked = SimpleNamespace(certframe_attributors=lambda register: register("x", "fractions:Fraction"))
    fresh.add(unmarked, name="unmarked")
    assert "x" not in fresh.names("attributor")


def test_one_distribution_may_not_register_a_name_from_two_places(fresh: Registry) -> None:
    fresh.add(one("my-cam"), name="first", distribution="dist")
    fresh.add(one("my-cam", "decimal:Decimal"), name="second", distribution="dist")
    assert fresh.find("attributor", "my-cam").load().__name__ == "Fraction"
    broken, = fresh.broken
    assert broken.name == "second"
    assert "attributor 'my-cam' is registered twice by dist" in broken.reason


@pytest.mark.parametrize(("target", "cause"), [
    ("no_such_module:Thing", "ModuleNotFoundError"), ("fractions:Fractoin", "AttributeError"),
    ("fractions:gcd_of_nothing.x", "AttributeError"), ("math:pi", "is not a class"), ("math:sqrt", "is not a class"),
])
def test_a_target_that_cannot_be_imported_is_named_when_it_is_asked_for(fresh: Registry, target: str,
                                                                       cause: str) -> None:
    fresh.add(one("my-thing", target), name="p", distribution="my-dist", version="1.2")
    text = refusal(fresh.find("attributor", "my-thing").load)
    assert "attributor 'my-thing' of my-dist" in text
    assert cause in text


# -- installed distributions ------------------------------------------------------------------------------------------

@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Put a distribution with entry points and modules on the path."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def call(name: str, version: str, points: dict[str, str], **modules: str) -> None:
        info = tmp_path / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", encoding="utf-8")
        lines = "".join(f"{point} = {value}\n" for point, value in points.items())
        (info / "entry_points.txt").write_text(f"[certframe]\n{lines}", encoding="utf-8")
        for module, text in modules.items():
            (tmp_path / f"{module}.py").write_text(text, encoding="utf-8")
    return call


HOOK = """
from certframe import hookimpl

@hookimpl
def certframe_attributors(register):
    register("{name}", "{target}", "from a distribution")
"""


def test_plugins_of_installed_distributions_are_found(install: Callable[..., None]) -> None:
    install("ct-good", "1.4", {"good": "ct_good_plugin"},
            ct_good_plugin=HOOK.format(name="ct-good", target="ct_good_impl:Impl"), ct_good_impl="class Impl: pass\n")
    found = Registry()
    entry = found.find("attributor", "ct-good")
    assert (entry.distribution, entry.version, entry.summary) == ("ct-good", "1.4", "from a distribution")
    assert "ct_good_impl" not in sys.modules
    assert entry.load().__name__ == "Impl"
    assert ("good", "ct-good", "1.4") in [(p.name, p.distribution, p.version) for p in found.plugins]


def test_broken_distributions_are_listed_and_everything_else_works(install: Callable[..., None]) -> None:
    install("ct-bad", "0.1", {"bad": "ct_bad_plugin"}, ct_bad_plugin="import ct_missing_library\n")
    install("ct-gone", "0.2", {"gone": "ct_gone_plugin"})
    install("ct-syntax", "0.3", {"syntax": "ct_syntax_plugin"}, ct_syntax_plugin="def (\n")
    install("ct-attribute", "0.4", {"attribute": "ct_attribute_plugin:nothing"}, ct_attribute_plugin="")
    install("ct-fine", "0.5", {"fine": "ct_fine_plugin"},
            ct_fine_plugin=HOOK.format(name="ct-fine", target="fractions:Fraction"))
    found = Registry()
    reasons = {b.distribution: b.reason for b in found.broken if b.distribution.startswith("ct-")}
    assert set(reasons) == {"ct-bad", "ct-gone", "ct-syntax", "ct-attribute"}
    assert "ct_missing_library" in reasons["ct-bad"]
    assert "SyntaxError" in reasons["ct-syntax"]
    assert all("\n" not in reason for reason in reasons.values())
    assert found.find("attributor", "ct-fine").load().__name__ == "Fraction"
    assert found.find("certifier", "pixel")


def test_two_distributions_with_one_name(install: Callable[..., None]) -> None:
    for letter in "ab":
        install(f"ct-two-{letter}", "1", {"p": f"ct_two_{letter}"},
                **{f"ct_two_{letter}": HOOK.format(name="ct-two", target="fractions:Fraction")})
    found = Registry()
    assert "ct-two-a/ct-two, ct-two-b/ct-two" in refusal(lambda: found.find("attributor", "ct-two"))
    assert found.find("attributor", "ct-two-b/ct-two").distribution == "ct-two-b"


def test_external_plugins_can_be_left_out(install: Callable[..., None]) -> None:
    install("ct-out", "1", {"p": "ct_out"}, ct_out=HOOK.format(name="ct-out", target="fractions:Fraction"))
    assert "ct-out" not in Registry(external=False).names("attributor")
    assert "ct-out" in Registry().names("attributor")


def test_the_default_registry_is_read_once() -> None:
    program = ("from certframe.registry import default_registry as d; a = d(); assert a is d(); "
               "print(*a.names('certifier'))")
    out = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout
    assert re.search(r"\bpixel\b", out)
