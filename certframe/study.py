"""A study: models × attributors × layers × noise levels on one or more data sets, as a directory of runs.

A study file is a run's file with more: a table ``[study]`` with the models and layers, and, if wanted, a table
``[[study.data]]`` for each data set, with metrics and a limit of its own. Every model on every data set is one run, in
which all methods and layers share the noise and the clean image:

    <study>/<data>/<model>/      a run directory for each, as `certframe run` writes it
    <study>/study.json           what the study is, and the runs that could not be made

Everything that can be checked without a model is checked before the first is loaded. A method that fails on an image,
an image that cannot be used, a model that cannot be loaded are recorded, and the study goes on.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from certframe.config import Reference, Request, RunConfig, component, read_file, resolve
from certframe.errors import CertframeError, UsageError, one_line
from certframe.feasibility import proof_of
from certframe.files import write_atomic
from certframe.registry import Registry, default_registry

SEVERAL = BeforeValidator(lambda value: [value] if isinstance(value, str | dict) else value)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def _plain(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} is to be the name of a folder: use letters, digits, '.', '_' and '-'")
    return name


class StudyData(BaseModel):
    """A data set of a study, with what is particular to it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, AfterValidator(_plain)] = Field(description="name of the folder of its runs")
    dataset: Reference = Field(description="the data set")
    metric: Annotated[list[Reference], SEVERAL] | None = Field(None, description="metrics, instead of the file's")
    limit: int | None = Field(None, ge=1, description="use only the first so many images, instead of the file's")


class StudyTable(BaseModel):
    """The table ``[study]`` of a study file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: Annotated[list[Reference], SEVERAL, Field(min_length=1)] = Field(description="the models")
    layer: Annotated[list[str], SEVERAL, Field(min_length=1)] | None = Field(
        None, description="layers at which methods explain that have the option; each method's own when left out")
    data: list[StudyData] = Field(default=[], description="data sets, each with metrics and limit of its own")


@dataclass(frozen=True)
class StudyRun:
    """One run of a study: a model on a data set."""

    data: str
    model: str
    config: RunConfig

    @property
    def folder(self) -> str:
        """Where it is in the study's directory."""
        return f"{self.data}/{self.model}"


@dataclass
class Study:
    """A study, checked; `failures` are the runs that could not be made, by folder."""

    source: str
    runs: Sequence[StudyRun]
    failures: dict[str, str] = field(default_factory=dict)


def is_study(content: Mapping[str, Any]) -> bool:
    """Whether the content of a file is a study's."""
    return "study" in content


def read_study(path: Path, overrides: Sequence[str] = (), *, settings: Mapping[str, Any] | None = None,
               registry: Registry | None = None) -> Study:
    """Read a study file and check it: names, options, values, and that the data sets are there.

    Args:
        path: the TOML file.
        overrides: ``kind.option=value`` texts from the command line.
        settings: settings from the command line; they win over the file.
        registry: where names are looked up.

    Raises:
        UsageError: a mistake, in one line with the number of the line it is in; no model has been loaded.
    """
    content = read_file(path)
    text = path.read_text(encoding="utf-8")
    try:
        return Study(str(path), _runs(content, overrides, dict(settings or {}), registry or default_registry()))
    except UsageError as error:
        raise UsageError(located(str(error), text, path)) from error


def _runs(content: Mapping[str, Any], overrides: Sequence[str], settings: dict[str, Any],
          registry: Registry) -> list[StudyRun]:
    table = _table(content["study"])
    base = {key: value for key, value in content.items() if key != "study"}
    if given := sorted({"model", "dataset"} & (set(base) | set(settings)) - ({"dataset"} if not table.data else set())):
        raise UsageError(f"setting '{given[0]}' is given beside [study], which lists what to take: leave it out")
    own = base.get("dataset", Request().dataset)
    sets = table.data or [StudyData(name="data", dataset=own[0] if isinstance(own, list) else own)]
    _distinct("data set", [data.name for data in sets])
    chosen = settings.pop("attributor", None) or base.get("attributor") or Request().attributor
    methods = [chosen] if isinstance(chosen, str | dict) else chosen
    runs = []
    for data in sets:
        for reference in table.model:
            request = {**base, "model": reference, "dataset": data.dataset,
                       "attributor": at_layers(methods, table.layer, registry)}
            request |= {name: value for name in ("metric", "limit") if (value := getattr(data, name)) is not None}
            runs.append(StudyRun(data.name, _folder(reference), resolve(
                request, overrides, settings=settings, registry=registry, source="the study")))
    _distinct("run", [run.folder for run in runs])
    for run in runs:
        proof_of(run.config, registry)  # a model may ask for more copies still, which its run says
    # Data sets that need a model to be made come last: other mistakes are found before it is loaded.
    sets_of_runs = {run.config.dataset.fingerprint: run.config.dataset for run in runs}.values()
    for found in sorted(sets_of_runs, key=lambda c: bool(getattr(
            registry.find("dataset", f"{c.distribution}/{c.name}").load(), "needs_models", False))):
        if len(found.build(registry)) == 0:
            raise UsageError(f"data set '{found.name}' has no images: give one that has")
    return runs


def _table(content: Any) -> StudyTable:
    try:
        return StudyTable.model_validate(content)
    except ValidationError as error:
        # A misspelt name is both unknown and missing: say the former.
        first = min(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
        place = [str(part) for part in first["loc"] if not isinstance(part, int)]
        known = StudyData.model_fields if place[:1] == ["data"] else StudyTable.model_fields
        name = place[-1] if place else "study"
        if first["type"] == "extra_forbidden":
            raise UsageError(f"unknown setting '{name}' in [study]; it has {', '.join(known)}") from error
        if first["type"] == "missing":
            where = "[[study.data]]" if place[:1] == ["data"] else "[study]"
            raise UsageError(f"setting '{name}' is needed in {where}") from error
        message = first["msg"].removeprefix("Value error, ")
        raise UsageError(f"setting {name} of [study]: {message[:1].lower()}{message[1:]}") from error


def at_layers(methods: Sequence[Reference], layers: Sequence[str] | None, registry: Registry) -> list[Reference]:
    """Every method at every layer; those without the option, and those whose layer is given, once."""
    if layers is None:
        return list(methods)
    found: list[Reference] = []
    for method in methods:
        settled = component("attributor", method, registry)
        inline = isinstance(method, dict) and "layer" in method
        if "layer" not in settled.options or inline:
            found.append(method)
        else:
            options = dict(method) if isinstance(method, dict) else {"name": method}
            found += [{**options, "layer": layer} for layer in layers]
    return found


def _folder(reference: Reference) -> str:
    """A model's name, fit for a folder."""
    name = str(reference.get("name", "model")) if isinstance(reference, dict) else reference
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "model"


def _distinct(what: str, names: Sequence[str]) -> None:
    for i, name in enumerate(names):
        if name in names[:i]:
            raise UsageError(f"two {what}s of the study are called '{name}': give each a name of its own")


def located(message: str, text: str, path: Path) -> str:
    """The message with the file and, where it can be found, the line of what it quotes or names first."""
    quoted = re.findall(r"^setting ([\w.-]+):", message) + re.findall(r"'([^']+)'", message)
    quoted += re.findall(r"(?:setting|option) ([\w.-]+)", message)
    lines = [line.split("#")[0] for line in text.splitlines()]
    for word in quoted:
        for short in dict.fromkeys((word, word.rsplit(".", 1)[-1])):
            pattern = re.compile(rf"(?<![\w-]){re.escape(short)}(?![\w-])")
            if (number := next((i for i, line in enumerate(lines, 1) if pattern.search(line)), None)) is not None:
                return f"{path}, line {number}: {message}"
    return f"{path}: {message}"


class StudyListener:
    """Hears which run of a study is under way; runs report to the pipeline's own listener."""

    def run(self, number: int, total: int, folder: str) -> None:
        """A run begins."""

    def failed(self, folder: str, reason: str) -> None:
        """A run could not be made."""


def execute_study(study: Study, out: Path, carry_out: Callable[[RunConfig, Path], None],
                  listener: StudyListener | None = None) -> Study:
    """Carry out what is not done yet; a run that fails is recorded, and the others go on.

    Args:
        study: from `read_study`.
        out: the study's directory.
        carry_out: executes a run in a directory; `certframe.pipeline.execute` with ``keep_going``.
        listener: hears of the runs.
    """
    listener = listener or StudyListener()
    study.failures.clear()
    for number, run in enumerate(study.runs, 1):
        listener.run(number, len(study.runs), run.folder)
        try:
            carry_out(run.config, out / run.folder)
        except CertframeError as error:
            study.failures[run.folder] = str(error)
        except Exception as error:  # a model that cannot be loaded raises whatever its library does
            study.failures[run.folder] = one_line(error)
        if run.folder in study.failures:
            listener.failed(run.folder, study.failures[run.folder])
        _save(study, out)
    return study


def _save(study: Study, out: Path) -> None:
    content = {"format": 1, "source": study.source, "runs": [run.folder for run in study.runs],
               "failures": study.failures}
    write_atomic(out / "study.json", (json.dumps(content, indent=2, sort_keys=True) + "\n").encode())
