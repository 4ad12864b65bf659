"""What the pages say to type exists: commands, options, names, files, links."""

from __future__ import annotations

import math
import re
import shlex
import tomllib

import blocks
import pytest

from certframe.cli.app import walk
from certframe.config import parse_option, resolve
from certframe.registry import HOOKS, default_registry

COMMANDS = {name: command for name, command, _ in walk()}
REFERENCES = {"--attributor": "attributor", "-a": "attributor", "--model": "model", "-m": "model",
              "--sparsifier": "sparsifier", "--certifier": "certifier", "-c": "certifier", "--metric": "metric",
              "--executor": "executor"}


def typed(text):
    """Every command line of certframe in a page: in shell blocks and in inline code."""
    for block in blocks.blocks(text):
        if block.language in ("bash", "console", "sh"):
            for line in block.body.replace("\\\n", " ").splitlines():
                yield from _certframe(line.removeprefix("$ "))
    prose = re.sub(r"^ *```.*?^ *```$", "", text, flags=re.MULTILINE | re.DOTALL)
    for code in re.findall(r"`([^`\n]+)`", prose):
        yield from _certframe(code)


def _certframe(line):
    for part in re.split(r"&&|;", line):
        words = shlex.split(part, comments=True) if part.count("'") % 2 == 0 else []
        if words[:3] == ["python", "-m", "certframe"]:
            words = words[2:]
        if words[:1] == ["certframe"]:
            yield words


def names_in(pages):
    """Names that the pages themselves register, and the one that `plugin new` is shown with."""
    registered = {(hook.removeprefix("certframe_").removesuffix("s"), name) for text in pages.values()
                  for hook, name in re.findall(r"def (certframe_\w+)\(register.*?\bregister\(\s*\"([^\"]+)\"", text,
                                               re.DOTALL)}
    return registered | {("attributor", "edge-energy")}


def problem(words, known):
    """What is wrong with a command line; None when nothing is."""
    name = "certframe"
    rest = words[1:]
    while rest and f"{name} {rest[0]}" in COMMANDS:
        name, rest = f"{name} {rest[0]}", rest[1:]
    if name == "certframe" and rest and ("command", rest[0]) in known:
        return None
    if name == "certframe" and rest and not rest[0].startswith("-") and not rest[0].isupper() and rest[0] != "…":
        return f"no command {rest[0]!r}"
    options = {flag: p for p in COMMANDS[name].params if p.param_type_name == "option"
               for flag in (*p.opts, *p.secondary_opts)}
    positions = 0
    while rest:
        word, rest = rest[0], rest[1:]
        if not word.startswith("-"):
            positions += word != "…"
            continue
        flag, _, value = word.partition("=")
        if flag in ("--help", "-h"):
            continue
        if flag not in options:
            return f"{name} has no option {flag}"
        if not options[flag].is_flag:
            value, rest = (value, rest) if value else (rest[0], rest[1:]) if rest else ("", [])
            if not value:
                return f"{flag} lacks a value"
            found = _wrong_value(flag, value, known)
            if found:
                return found
    arguments = [p for p in COMMANDS[name].params if p.param_type_name == "argument"]
    allowed = math.inf if any(p.nargs == -1 for p in arguments) else len(arguments)
    if positions > allowed and name != "certframe":
        return f"{name} takes {allowed} arguments, not {positions}"
    return None


def _wrong_value(flag, value, known):
    if value.isupper() or value == "…":
        return None
    kind = REFERENCES.get(flag)
    if kind:
        name = value.partition(":")[0]
        if (kind, name) not in known and name not in default_registry().names(kind):
            return f"{flag} {value}: there is no {kind} of that name"
    if flag in ("-o", "--option"):
        parse_option(value)
    return None


def test_every_command_line_in_the_pages_can_be_typed(pages):
    known = names_in(pages)
    lines = [(page, words) for page, text in pages.items() for words in typed(text)]
    assert len(lines) > 60
    wrong = [f"{page}: {' '.join(words)}: {found}" for page, words in lines if (found := problem(words, known))]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(("line", "complaint"), [
    ("certframe rum", "no command 'rum'"), ("certframe run --sigmas 0.1", "no option --sigmas"),
    ("certframe run --sigma", "lacks a value"), ("certframe run --model lite00", "no model"),
    ("certframe describe a b", "takes 1 arguments")])
def test_a_wrong_command_line_is_found(line, complaint):
    assert complaint in problem(line.split(), set())


def test_names_to_describe_and_check_exist(pages):
    known = {name for _, name in names_in(pages)} | {"certframe-rise"}
    known |= {e.name for kind in HOOKS for e in default_registry().entries(kind)}
    for page, text in pages.items():
        for words in typed(text):
            if words[1:2] == ["describe"] or words[1:3] == ["plugin", "check"]:
                name = [w for w in words[2:] if w != "check" and not w.startswith("-")]
                assert not name or name[0].isupper() or name[0].split("/")[-1] in known, f"{page}: {' '.join(words)}"


def test_experiment_files_resolve(pages):
    found = [(page, block) for page, text in pages.items() for block in blocks.blocks(text)
             if block.title and block.title.endswith("experiment.toml")]
    assert found
    for page, block in found:
        config = resolve(tomllib.loads(block.body), source=page)
        assert config.attributor


def test_readme_links_lead_somewhere(pages, root):
    for page in ("README.md", "CONTRIBUTING.md"):
        for target in re.findall(r"\]\(([^)#\s]+)", pages[page]):
            if not target.startswith("http"):
                assert (root / target).exists(), f"{page} links to {target}"


def test_included_files_exist(pages, root):
    included = [name for text in pages.values() for name in re.findall(r'^--8<-- "([^"]+)"$', text, re.MULTILINE)]
    assert included
    assert all((root / name).is_file() for name in included)


def test_pictures_say_what_made_them(pages, root):
    for page, text in pages.items():
        for target in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", text):
            assert (root / page).parent.joinpath(target).is_file()
            after = text.split(target)[1][:1200]
            script = re.search(r"`python (scripts/\S+\.py)`", after)
            assert script, f"{page}: say which command made {target}"
            assert (root / script[1]).is_file()


def test_requirements_install_every_distribution_of_the_repository(root):
    listed = set(re.findall(r"^-e (\S+?)(?:\[.*\])?$", (root / "requirements.txt").read_text(), re.MULTILINE))
    here = {".", *(p.parent.relative_to(root).as_posix() for p in root.glob("plugins/*/pyproject.toml"))}
    assert listed == here
    assert "-r requirements.txt" in (root / "requirements-dev.txt").read_text()
