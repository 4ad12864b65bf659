"""Writes the skeleton of a plugin distribution: small, complete, and passing its own tests as it stands."""

from __future__ import annotations

import importlib.metadata
import keyword
import re
import shutil
import tempfile
from pathlib import Path

import jinja2

from certframe.errors import UsageError, suggest
from certframe.files import disk_error
from certframe.registry import REGISTERED, default_registry

__all__ = ["create"]

_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_FILES = {
    "pyproject.toml": "pyproject.toml.jinja",
    "README.md": "README.md.jinja",
    "src/{package}/__init__.py": "init.py.jinja",
    "src/{package}/py.typed": "py.typed.jinja",
    "src/{package}/{kind}.py": "{kind}.py.jinja",
    "tests/test_{package}.py": "test_{kind}.py.jinja",
}
"""Path in the new distribution → template."""
_EXAMPLES = {
    "model": ("a classifier of colours whose weights are set by hand", ("torch", "pydantic")),
    "attributor": ("the norm of the input gradient over the colour channels", ("torch", "pydantic")),
    "sparsifier": ("1 for the pixels with the largest absolute scores, by their number", ("torch", "pydantic")),
    "certifier": ("pixel labels certified by Clopper-Pearson bounds", ("numpy", "scipy", "pydantic")),
    "metric": ("centre of mass of the certified important pixels", ("numpy",)),
    "dataset": ("discs and squares, drawn", ("pillow", "pydantic")),
    "executor": ("threads of this process", ("pydantic",)),
    "command": ("the images of a run, those of which most is certified first", ("typer",)),
}
"""Kind → what the example does, in one line, and what it imports besides certframe."""


def create(kind: str, name: str, directory: Path) -> list[Path]:
    """Write a new distribution ``certframe-<name>`` with one plugin, a working example of its kind.

    Args:
        kind: a plugin kind, or "command".
        name: name of the plugin: lower-case letters, digits and single dashes, beginning with a letter.
        directory: where the distribution's folder goes; made when it does not exist.

    Returns:
        The files, the distribution's ``pyproject.toml`` first.

    Raises:
        UsageError: the kind or the name cannot be used, somebody registers it already, or the folder exists. Nothing
            has been written.
        CertframeError: the folder cannot be written.
    """
    words = _vocabulary(kind, name)
    target = directory / words["distribution"]
    if target.exists():
        raise UsageError(f"'{target}' exists already: choose another name or directory, or remove it")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=".certframe-new-", dir=directory))
        try:
            files = [_write(draft, path.format(**words), template.format(**words), words)
                     for path, template in _FILES.items()]
            draft.chmod(0o755)
            draft.rename(target)  # complete or absent
        except BaseException:
            shutil.rmtree(draft, ignore_errors=True)
            raise
    except OSError as error:
        raise disk_error(error, target) from error
    return [target / file for file in files]


def _vocabulary(kind: str, name: str) -> dict[str, str]:
    """What the templates talk about.

    Raises:
        UsageError: the kind or the name cannot be used.
    """
    if kind not in REGISTERED:
        raise UsageError(f"unknown plugin kind '{kind}'{suggest(kind, REGISTERED) or ';'} it is one of "
                         f"{', '.join(REGISTERED)}")
    if not _NAME.fullmatch(name):
        raise UsageError(f"plugin name '{name}': use lower-case letters, digits and single dashes between them, "
                         "beginning with a letter, such as edge-energy")
    if name == "certframe" or name.startswith("certframe-"):
        raise UsageError(f"plugin name '{name}': leave 'certframe-' out, the distribution's name begins with it anyway")
    what = "function" if kind == "command" else "class"
    target = "main" if kind == "command" else "".join(word.capitalize() for word in name.split("-"))
    if keyword.iskeyword(target):
        raise UsageError(f"plugin name '{name}': {target} cannot be the name of a class in Python, choose another")
    owners = [entry.distribution for entry in default_registry().entries(kind) if entry.name == name]
    if owners:
        raise UsageError(f"the {kind} '{name}' is registered by {' and '.join(owners)} already: choose another name")
    summary, imports = _EXAMPLES[kind]
    return {
        "kind": kind, "name": name, "target": target, "what": what, "summary": summary,
        "distribution": f"certframe-{name}", "package": f"certframe_{name.replace('-', '_')}",
        "article": "an" if kind[0] in "aeiou" else "a",
        "dependencies": ", ".join(f'"{requirement}"' for requirement in (_certframe(), *imports)),
    }


def _certframe() -> str:
    """The requirement on certframe: at least the minor version that is at hand."""
    try:
        major, minor = importlib.metadata.version("certframe").split(".")[:2]
    except (importlib.metadata.PackageNotFoundError, ValueError):
        return "certframe"
    return f"certframe>={major}.{minor}"


def _write(root: Path, path: str, template: str, words: dict[str, str]) -> Path:
    # Nothing is escaped: what is written is Python and TOML, from words that have been checked.
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("certframe.scaffold"), undefined=jinja2.StrictUndefined, keep_trailing_newline=True,
        autoescape=False, variable_start_string="<<", variable_end_string=">>")
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(environment.get_template(template).render(words), encoding="utf-8")
    return Path(path)
