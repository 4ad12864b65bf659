"""From a run directory to its report."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from certframe.config import PLUGIN_DEFAULTS, Component, Settings, distinct
from certframe.errors import UsageError
from certframe.registry import default_registry
from certframe.report.page import Page, Panel, write
from certframe.store import Run
from certframe.worker import cells_of, component_key


def write_report(run: Run, certifier: Component | None = None, path: Path | None = None) -> Path:
    """Write the report of what is finished.

    Args:
        run: the run.
        certifier: show these certificates instead of the run's own.
        path: the HTML file; by default ``report.html`` in the run, or ``report-<certifier>.html``.

    Raises:
        UsageError: nothing is finished yet.
    """
    own = certifier is None or certifier in run.config.certifier
    shown = [certifier] if certifier else run.config.certifier
    target = path or run.path / ("report.html" if own else f"report-{component_key(shown[0])}.html")
    if not any((run.path / "ledger").glob("*/*.parquet")):
        raise UsageError(f"{run.path} has no finished image yet: run the same 'certframe run' command again to go on")
    names = " and ".join(dict.fromkeys(c.name for c in run.config.attributor))
    commands = [command_of(run.config), *([] if own else [certify_command_of(run, shown[0])])]
    write(Page(
        title=f"Certified explanations by {names}", panels=_panels(run, shown), config=run.config.identity,
        provenance=run.provenance, failures=run.failures(), command="\n".join(filter(None, commands)),
        sections=list(run.sections().values())), target)
    return target


def _panels(run: Run, certifiers: list[Component]) -> Iterator[Panel]:
    instances = {component_key(c): (c.build(), name) for c, name in zip(certifiers, distinct(certifiers), strict=True)}
    methods = distinct(run.config.attributor)
    values: dict[tuple[str, str, str], dict[str, float]] = {}
    stopped: dict[tuple[str, str, str], str] = {}
    for row in run.table().to_pylist():
        part = (row["image"], row["cell"], row["certifier"])
        values.setdefault(part, {})[row["metric"]] = row["value"]
        stopped[part] = row["stopped"]
    for image in run.image_keys():
        record = None
        for cell in cells_of(run.config):
            for key, (instance, proof) in instances.items():
                part = (image, cell.key, key)
                if part in values:
                    record = record or run.image(image)
                    yield Panel(methods[cell.attributor], cell.sigma, run.explanation(image, cell.key, key, record),
                                instance, values[part], proof, stopped[part])


def command_of(config: Any) -> str:
    """A command line that makes the same run: everything that differs from the defaults, spelt out.

    Empty when there is none: two plugins of one name with different options are for a file.
    """
    chosen = {"attributor": config.attributor, "sparsifier": [config.sparsifier], "certifier": config.certifier,
              "metric": config.metric}
    if any(len({c.name for c in components}) < len(components) for components in chosen.values()):
        return ""
    words = ["certframe", "run", "--model", _reference(config.model), "--data", _reference(config.dataset)]
    for kind, components in chosen.items():
        names = [component.name for component in components]
        if kind == "attributor" or names != PLUGIN_DEFAULTS[kind]:
            words += [word for name in names for word in (f"--{kind}", name)]
    for sigma in config.sigma:
        words += ["--sigma", f"{sigma:g}"]
    words += ["--samples", str(config.samples)]
    for name, field in Settings.model_fields.items():
        value = getattr(config, name)
        if name in ("seed", "limit", "resolution", "autocast") and value != field.default:
            words += [f"--{name}", str(value)]
    for component in (config.model, config.dataset, *config.attributor, config.sparsifier, *config.certifier,
                      *config.metric):
        words += _options(component)
    return shlex.join(words)


def certify_command_of(run: Run, certifier: Component) -> str:
    """The command line that makes these certificates from the run."""
    return shlex.join(["certframe", "certify", str(run.path), "--certifier", certifier.name, *_options(certifier)])


def _reference(component: Component) -> str:
    argument = _argument(component)
    return f"{component.name}:{component.options[argument]}" if argument else component.name


def _class(component: Component) -> type[Any] | None:
    try:
        found: type[Any] = default_registry().find(component.kind, f"{component.distribution}/{component.name}").load()
    except UsageError:
        return None  # not installed here: the command is then written out in full
    return found


def _argument(component: Component) -> str | None:
    return getattr(_class(component), "argument", None)


def _options(component: Component) -> list[str]:
    """``-o`` words for the options that differ from the plugin's defaults."""
    cls, argument, words = _class(component), _argument(component), []
    fields = cls.Options.model_fields if cls else {}
    defaults = {name: json.loads(json.dumps(field.get_default(call_default_factory=True), default=str))
                for name, field in fields.items() if not field.is_required()}
    for name, value in component.options.items():
        if name != argument and defaults.get(name, object()) != value and value is not None:
            words += ["-o", f"{component.kind}.{component.name}.{name}={_toml(value)}"]
    return words


def _toml(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
