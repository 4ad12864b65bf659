"""``certframe describe``."""

from __future__ import annotations

import inspect
import json
from typing import Annotated, Any

import typer

from certframe.cli.options import Json, complete_any
from certframe.errors import UsageError, suggest
from certframe.registry import REGISTERED, Entry, default_registry


def describe(
    name: Annotated[str, typer.Argument(help="Name of a plugin of any kind, or distribution/name.",
                                        autocompletion=complete_any, show_default=False)],
    as_json: Json = False,
) -> None:
    """Say what a plugin does and list its options.

    Examples: `certframe describe grad-cam`, `certframe describe certframe-rise/rise`
    """
    registry = default_registry()
    entries = [e for kind in REGISTERED for e in registry.entries(kind) if name in (e.name, e.qualified)]
    if not entries:
        known = [e.name for kind in REGISTERED for e in registry.entries(kind)]
        raise UsageError(f"nothing is called '{name}'{suggest(name, known) or ';'} see 'certframe list'")
    described = [description(entry) for entry in entries]
    if as_json:
        typer.echo(json.dumps(described, indent=2))
        return
    for index, found in enumerate(described):
        if index:
            typer.echo()
        _show(found)


def description(entry: Entry) -> dict[str, Any]:
    """Everything that can be said about a plugin without constructing it."""
    cls = entry.load()
    if entry.kind == "command":
        return _command(entry)
    capabilities = {key: getattr(cls, key) for key in ("needs_gradients", "deterministic", "nested", "binary")
                    if isinstance(getattr(cls, key, None), bool)}
    return {
        "kind": entry.kind, "name": entry.name, "distribution": entry.distribution, "version": entry.version,
        "summary": entry.summary, "text": inspect.getdoc(cls) or "", "argument": getattr(cls, "argument", None),
        "capabilities": capabilities, "options": option_rows(cls),
    }


def _command(entry: Entry) -> dict[str, Any]:
    """The same of a command, whose options are those of the command line."""
    from certframe.cli.app import command_of
    return {"kind": entry.kind, "name": entry.name, "distribution": entry.distribution, "version": entry.version,
            "summary": entry.summary, "text": inspect.cleandoc(command_of(entry).help or ""), "argument": None,
            "capabilities": {}, "options": []}


def option_rows(cls: type[Any]) -> list[dict[str, Any]]:
    """Name, type, default and description of every option of a plugin class."""
    schema = cls.Options.model_json_schema()
    rows = []
    for name, field in cls.Options.model_fields.items():
        rows.append({
            "option": name, "type": _type(schema["properties"].get(name, {})),
            "default": "needed" if field.is_required() else json.dumps(_plain(field.get_default(
                call_default_factory=True))), "description": field.description or "",
        })
    return rows


def _plain(value: Any) -> Any:
    return value if isinstance(value, str | int | float | bool | list | tuple | type(None)) else str(value)


def _type(schema: dict[str, Any]) -> str:
    if "enum" in schema:
        return " | ".join(map(str, schema["enum"]))
    if "anyOf" in schema:
        return " | ".join(_type(option) for option in schema["anyOf"])
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items', {}))}"
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    bounds = [f"{sign} {schema[key]:g}" for key, sign in signs.items() if key in schema]
    return " ".join([str(schema.get("format", schema.get("const", schema.get("type", "any")))), *bounds])


def _show(found: dict[str, Any]) -> None:
    typer.secho(f"{found['kind']} {found['name']}", bold=True, nl=False)
    typer.echo(f"  [{found['distribution']} {found['version']}]\n\n{found['text']}\n")
    if found["capabilities"]:
        typer.echo("  ".join(f"{key.replace('_', ' ')}: {'yes' if value else 'no'}"
                             for key, value in found["capabilities"].items()) + "\n")
    if found["kind"] == "command":
        typer.echo(f"Its options: certframe {found['name']} --help")
        return
    if not found["options"]:
        typer.echo("It has no options.")
        return
    from rich.console import Console
    from rich.table import Table
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("option", "type", "default", "description"):
        table.add_column(column)
    for row in found["options"]:
        table.add_row(f"-o {found['kind']}.{row['option']}", row["type"], row["default"], row["description"])
    Console().print(table)
    if found["argument"]:
        typer.echo(f"\nShort form: {found['name']}:VALUE sets '{found['argument']}'.")
