"""reference/options.md: the settings of a run and the options of every first-party plugin."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import md

from certframe.cli.describe import description, option_rows
from certframe.config import Request
from certframe.registry import HOOKS, Entry, default_registry

_INTRO = """# Options

An option of a plugin is given as `-o kind.option=value` on the command line, or below `[options.kind]` in an experiment
file. It goes to every chosen plugin of that kind that has it; `kind.name.option` (`[options.kind.name]`) addresses one
of them. Values are read as TOML (`0.5`, `true`, `[50, 5]`, `"text"`) and otherwise taken as text. The command line wins
over the file, the file over the defaults below. An unknown option is an error.

`certframe describe NAME` prints the same for every plugin that is installed, also for one that is not listed here.

## Settings of a run

These are keys of an experiment file and keyword arguments of `certframe.run`; most are options of `certframe run` too.
Where several values are possible, one value may be given without a list.

"""


def page(distributions: Sequence[str]) -> str:
    """The whole page.

    Raises:
        SystemExit: a first-party plugin is not installed, so that the page would be incomplete.
    """
    registry = default_registry()
    missing = set(distributions) - {plugin.distribution for plugin in registry.plugins}
    if missing:
        raise SystemExit(f"not installed or broken: {', '.join(sorted(missing))}; run 'certframe plugins', or install "
                         "them with 'pip install -r requirements.txt'")
    parts = [md.NOTICE, _INTRO, _settings()]
    for kind in HOOKS:
        entries = [e for e in registry.entries(kind) if e.distribution in distributions]
        parts.append(f"\n## {kind.capitalize()}s\n")
        parts += [_entry(entry) for entry in entries]
    return "".join(parts)


def _settings() -> str:
    rows = option_rows(type("Holder", (), {"Options": Request}))
    return md.table(("setting", "type", "default", "meaning"), [
        (md.code(row["option"]), _type(row["type"]), md.code(row["default"]), row["description"])
        for row in rows if row["option"] != "options"])


def _type(text: str) -> str:
    """The type for a reader: no bounds that only the storage sets, no JSON words."""
    if text == "list of string | object":
        return "name, or a table with `name` and options"
    text = re.sub(r" < \d\.\d+e\+\d+", "", text).replace(" | null", " or none")
    return re.sub(r"([≥>] \S+) ([<≤])", r"\1 and \2", text)


def _entry(entry: Entry) -> str:
    found = description(entry)
    parts = [f"\n### `{entry.name}` {{#{entry.kind}-{anchor(entry.name)}}}\n\n",
             f"*{entry.summary}* ({md.code(entry.distribution)})\n\n", md.docstring(found["text"]), "\n"]
    if found["capabilities"]:
        parts.append(", ".join(f"{key.replace('_', ' ')}: {'yes' if value else 'no'}"
                               for key, value in found["capabilities"].items()).capitalize() + ".\n\n")
    parts.append(_options(entry.kind, found["options"]))
    if found["argument"]:
        parts.append(f"\nShort form: `{entry.name}:VALUE` sets `{found['argument']}`.\n")
    return "".join(parts)


def _options(kind: str, rows: Sequence[dict[str, Any]]) -> str:
    if not rows:
        return "No options.\n"
    return md.table(("option", "type", "default", "meaning"), [
        (md.code(f"{kind}.{row['option']}"), _type(row["type"]),
         row["default"] if row["default"] == "needed" else md.code(row["default"]), row["description"])
        for row in rows])


def anchor(name: str) -> str:
    """A plugin's name as part of an HTML id."""
    return name.replace("+", "-plus")
