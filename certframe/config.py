"""What a run is: from names and options, as a person gives them, to a checked and complete description.

Precedence: command line > file > plugin defaults. One reference string is used everywhere: ``name``,
``name:argument``, ``distribution/name``. Options are ``kind.option=value`` for every chosen plugin of that kind that
has the option, or ``kind.name.option=value`` for one of them.
"""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, cast

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from certframe.errors import UsageError, suggest
from certframe.files import sha256
from certframe.registry import HOOKS, Registry, default_registry

MANY = ("attributor", "certifier", "metric")
"""Kinds of which a run has one or more; it has exactly one of the others."""


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str | int | float | dict) else value


def _distinct(values: list[Any]) -> list[Any]:
    for i, value in enumerate(values):
        if value in values[:i]:
            raise ValueError(f"{value!r} is given twice")
    return values


def _known_kind(kind: str) -> str:
    if kind not in HOOKS:
        raise ValueError(f"{kind!r} is not a plugin kind")
    return kind


Reference = str | dict[str, Any]
References = Annotated[list[Reference], BeforeValidator(_as_list), Field(min_length=1), AfterValidator(_distinct)]


class Settings(BaseModel):
    """The settings of a run that do not belong to one plugin."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sigma: Annotated[list[Annotated[float, Field(gt=0.0, allow_inf_nan=False)]], BeforeValidator(_as_list),
                     Field(min_length=1), AfterValidator(_distinct)] = Field(
        default=[0.15], description="standard deviations of the noise, in pixel units (images are in [0, 1])")
    samples: int = Field(100, ge=1, lt=2**31, description="noisy copies of each image")
    seed: int = Field(0, ge=0, lt=2**63, description="seed of all randomness")
    limit: int | None = Field(None, ge=1, description="use only the first so many images of the data set")
    resolution: Literal["input", "native"] = Field(
        "input", description="certify the pixels of maps upsampled bilinearly to the image, or maps as they are")
    autocast: Literal["off", "bfloat16", "float16"] = Field("off", description="reduced precision of the passes")
    batch_size: int = Field(32, ge=1, description="noisy copies in one pass of the model; changes no result")
    device: str = Field("auto", description="cpu, cuda, cuda:1, … or auto: the first accelerator there is")
    channels_last: bool = Field(False, description="channels-last memory layout, faster for many convolutional nets")
    compile: bool = Field(False, description="torch.compile the model; pays off on long runs on a GPU")


EXECUTION = frozenset({"batch_size", "device", "channels_last", "compile"})
"""Settings that say how a run is carried out, not what it is; a run may be resumed with others."""

PLUGIN_DEFAULTS: Mapping[str, list[Reference]] = {
    "model": ["lite0"], "dataset": ["photos"], "attributor": ["grad-cam"], "sparsifier": ["top-k"],
    "certifier": ["pixel"], "metric": ["certified-rate"], "executor": ["local"],
}


class Request(Settings):
    """A run as a file describes it: settings, references to plugins, options."""

    model: References = Field(default=PLUGIN_DEFAULTS["model"], max_length=1, description="the model")
    dataset: References = Field(default=PLUGIN_DEFAULTS["dataset"], max_length=1,
                                description="the data set: a name, or a path to a picture, a folder or a CSV")
    attributor: References = Field(default=PLUGIN_DEFAULTS["attributor"], description="attribution methods")
    sparsifier: References = Field(default=PLUGIN_DEFAULTS["sparsifier"], max_length=1, description="what is counted")
    certifier: References = Field(default=PLUGIN_DEFAULTS["certifier"], description="certifiers")
    metric: References = Field(default=PLUGIN_DEFAULTS["metric"], description="metrics")
    executor: References = Field(default=PLUGIN_DEFAULTS["executor"], max_length=1, description="where work is done")
    options: dict[str, dict[str, Any]] = Field(default={}, description="options of the plugins, by kind")


class Component(BaseModel):
    """A chosen plugin with all its options filled in."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Annotated[str, AfterValidator(_known_kind)]
    name: str
    options: dict[str, Any]
    distribution: str
    version: str
    execution: tuple[str, ...] = ()
    """Options that say how the work is done and change no result; the plugin class lists them in `execution`."""

    @property
    def essential(self) -> dict[str, Any]:
        """The options that the result depends on."""
        return {name: value for name, value in self.options.items() if name not in self.execution}

    @property
    def fingerprint(self) -> str:
        """Name, owner and options as one line of text: what has to agree for two results to be about one method."""
        return f"{self.distribution}/{self.name} {json.dumps(self.essential, sort_keys=True)}"

    def build(self, registry: Registry | None = None) -> Any:
        """Import the class and construct it."""
        entry = (registry or default_registry()).find(self.kind, f"{self.distribution}/{self.name}")
        cls = entry.load()
        return cls(cls.Options.model_validate(self.options))


class RunConfig(Settings):
    """A complete, checked description of a run, as it is stored with it."""

    model: Component
    dataset: Component
    attributor: list[Component]
    sparsifier: Component
    certifier: list[Component]
    metric: list[Component]
    executor: Component

    @property
    def identity(self) -> dict[str, Any]:
        """Everything but how the run is carried out; two runs with the same identity have the same results."""
        complete = self.model_dump(mode="json", exclude={*EXECUTION, "executor"})
        return cast("dict[str, Any]", _without_execution(complete))

    @property
    def digest(self) -> str:
        """SHA-256 of the identity."""
        return sha256(json.dumps(self.identity, sort_keys=True).encode())


def _without_execution(value: Any) -> Any:
    """A configuration without the options of its components that change no result."""
    if isinstance(value, list):
        return [_without_execution(item) for item in value]
    if not isinstance(value, dict):
        return value
    skipped = value.get("execution", ())
    return {key: {k: v for k, v in inner.items() if k not in skipped} if key == "options" else _without_execution(inner)
            for key, inner in value.items() if key != "execution"}


def read_file(path: Path) -> dict[str, Any]:
    """The content of a TOML file.

    Raises:
        UsageError: the file is missing or not TOML; names the line.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"there is no file {path}: give a TOML file that describes a run") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{path} is not valid TOML: {error}") from error


def parse_option(text: str) -> tuple[str, str | None, str, Any]:
    """``kind.option=value`` or ``kind.name.option=value`` → (kind, name or None, option, value).

    The value is read as TOML (numbers, true, lists…) and otherwise taken as text.
    """
    key, equals, raw = text.partition("=")
    parts = [part.strip() for part in key.split(".")]
    if not equals or len(parts) not in (2, 3) or not all(parts):
        raise UsageError(f"option {text!r} is not of the form kind.option=value, such as attributor.layer=final")
    if parts[0] not in HOOKS:
        raise UsageError(f"option {text!r}: {parts[0]!r} is not a plugin kind{suggest(parts[0], HOOKS)} "
                         f"(kinds: {', '.join(HOOKS)})")
    try:
        value = tomllib.loads(f"value = {raw.strip()}")["value"]
    except tomllib.TOMLDecodeError:
        value = raw.strip()
    return parts[0], (parts[1] if len(parts) == 3 else None), parts[-1].replace("-", "_"), value


def resolve(request: Mapping[str, Any] | None = None, overrides: Sequence[str] = (), *,
            settings: Mapping[str, Any] | None = None, registry: Registry | None = None,
            source: str = "the configuration") -> RunConfig:
    """Check everything that can be checked without a model, and fill in every default.

    Args:
        request: the content of a file (see `Request`), or nothing.
        overrides: ``kind.option=value`` texts from the command line; they win over the file.
        settings: settings and references from the command line; they win over the file.
        registry: where names are looked up.
        source: the file's name, for messages.

    Raises:
        UsageError: anything wrong, in one line.
    """
    registry = registry or default_registry()
    merged = {**(request or {}), **{k: v for k, v in (settings or {}).items() if v is not None}}
    try:
        full = Request.model_validate(merged)
    except ValidationError as error:
        raise UsageError(f"{source}: {_explain(error, Request, 'setting')}") from error
    plan = _OptionPlan(full.options, [parse_option(text) for text in overrides])
    chosen: dict[str, list[Component]] = {}
    for kind in HOOKS:
        chosen[kind] = [component(kind, reference, registry, plan) for reference in getattr(full, kind)]
        _refuse_twins(kind, chosen[kind])
    plan.refuse_unused()
    plugins = {kind: found if kind in MANY else found[0] for kind, found in chosen.items()}
    return RunConfig(**full.model_dump(include=set(Settings.model_fields)), **plugins)


class _OptionPlan:
    """Which given option goes to which plugin, and which was used by nobody."""

    def __init__(self, from_file: Mapping[str, Mapping[str, Any]],
                 overrides: Sequence[tuple[str, str | None, str, Any]]) -> None:
        self._given: list[tuple[str, str | None, str, Any]] = []
        for kind, table in from_file.items():
            if kind not in HOOKS:
                raise UsageError(f"[options.{kind}]: {kind!r} is not a plugin kind{suggest(kind, HOOKS)} "
                                 f"(kinds: {', '.join(HOOKS)})")
            for key, value in table.items():
                if isinstance(value, dict):
                    self._given += [(kind, key, k.replace("-", "_"), v) for k, v in value.items()]
                else:
                    self._given.append((kind, None, key.replace("-", "_"), value))
        # A plugin's own option wins over one for the whole kind; the command line wins over the file.
        self._given.sort(key=lambda item: item[1] is not None)
        self._overrides = sorted(overrides, key=lambda item: item[1] is not None)
        self._used: set[int] = set()
        self._seen: dict[str, dict[str, set[str]]] = {}

    def collect(self, kind: str, name: str, fields: Iterable[str], inline: Mapping[str, Any]) -> dict[str, Any]:
        known = set(fields)
        self._seen.setdefault(kind, {})[name] = known
        result: dict[str, Any] = {}
        for layer in (self._given, [(kind, name, k, v) for k, v in inline.items()], self._overrides):
            for item in layer:
                if item[0] == kind and (item[1] == name or (item[1] is None and item[2] in known)):
                    self._used.add(id(item))
                    result[item[2]] = item[3]
        return result

    def refuse_unused(self) -> None:
        for item in (*self._given, *self._overrides):
            if id(item) in self._used:
                continue
            kind, name, option, _ = item
            plugins = self._seen.get(kind, {})
            if not plugins:
                raise UsageError(f"option {kind}.{option}: no {kind} is chosen here; options of "
                                 f"{', '.join(self._seen)} can be given")
            if name is not None:
                raise UsageError(f"option {kind}.{name}.{option}: this run has no {kind} '{name}'"
                                 f"{suggest(name, plugins) or '; it has ' + ', '.join(plugins)}")
            known = sorted(set().union(*plugins.values()))
            raise UsageError(f"unknown option '{option}' of {kind} {' or '.join(map(repr, plugins))}"
                             f"{suggest(option, known) or '; it has ' + (', '.join(known) or 'no options')}")


def component(kind: str, reference: Reference, registry: Registry | None = None,
              plan: _OptionPlan | None = None) -> Component:
    """Look a reference up and check its options.

    Args:
        kind: a plugin kind.
        reference: ``name``, ``name:argument``, ``distribution/name``, or a table with ``name`` and options. For data
            sets also a path.
        registry: where names are looked up.
        plan: options given for the kind as a whole.

    Raises:
        UsageError: unknown name, unknown or wrong option, or an argument that the plugin does not take.
    """
    registry = registry or default_registry()
    inline = {k.replace("-", "_"): v for k, v in reference.items()} if isinstance(reference, dict) else {}
    text = str(inline.pop("name", "")) if isinstance(reference, dict) else reference
    if not text:
        raise UsageError(f"a {kind} in the configuration has no name: write {{ name = \"…\" }}")
    name, argument = _split_reference(kind, text, registry)
    entry = registry.find(kind, name)
    cls = entry.load()
    options_class = getattr(cls, "Options", None)
    if not (isinstance(options_class, type) and issubclass(options_class, BaseModel)):
        raise UsageError(f"{kind} '{entry.qualified}' is broken: its class has no Options model")
    if argument is not None:
        field = getattr(cls, "argument", None)
        if field is None:
            raise UsageError(f"{kind} '{text}': '{entry.name}' takes no argument after the colon; give options with "
                             f"-o {kind}.option=value")
        inline.setdefault(field, argument)
    given = (plan or _OptionPlan({}, [])).collect(kind, entry.name, options_class.model_fields, inline)
    try:
        options = options_class.model_validate(given)
    except ValidationError as error:
        raise UsageError(f"{kind} '{entry.name}': {_explain(error, options_class, 'option')}"
                         f" (see 'certframe describe {entry.name}')") from error
    return Component(kind=kind, name=entry.name, options=options.model_dump(mode="json"),
                     distribution=entry.distribution, version=entry.version,
                     execution=tuple(sorted(getattr(cls, "execution", ()))))


def resolve_component(kind: str, reference: Reference, overrides: Sequence[str] = (), *,
                      registry: Registry | None = None) -> Component:
    """One plugin by itself, with ``kind.option=value`` texts for it.

    Raises:
        UsageError: unknown name, or an option that it does not have.
    """
    plan = _OptionPlan({}, [parse_option(text) for text in overrides])
    found = component(kind, reference, registry, plan)
    plan.refuse_unused()
    return found


def build(kind: str, reference: Reference, options: Sequence[str] = (), *, registry: Registry | None = None) -> Any:
    """Construct a plugin that a user has named, as the commands do.

    Args:
        kind: "model", "attributor", "sparsifier", "certifier", "metric", "dataset" or "executor".
        reference: ``name``, ``name:argument`` or ``distribution/name``; for a data set also a path.
        options: ``kind.option=value`` texts.
        registry: where names are looked up.

    Raises:
        UsageError: there is no such plugin, or an option is wrong or not its own.
    """
    return resolve_component(kind, reference, options, registry=registry).build(registry)


def _split_reference(kind: str, text: str, registry: Registry) -> tuple[str, str | None]:
    name, colon, argument = text.partition(":")
    if kind == "dataset" and not any(e.name == name or e.qualified == name for e in registry.entries("dataset")):
        path = Path(text).expanduser()
        if path.exists() or any(mark in text for mark in "/\\."):
            return "folder", str(path)
    return name, (argument if colon else None)


def _refuse_twins(kind: str, components: Sequence[Component]) -> None:
    for i, found in enumerate(components):
        if found in components[:i]:
            raise UsageError(f"the {kind} '{found.name}' is given twice with the same options: give it once")


def _explain(error: ValidationError, model: type[BaseModel], what: str) -> str:
    """The first problem of a pydantic validation error, in our words."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"] if not isinstance(part, int) or len(first["loc"]) > 1)
    name = str(first["loc"][0]) if first["loc"] else ""
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if first["type"] == "extra_forbidden":
        close = difflib.get_close_matches(name, model.model_fields, n=1, cutoff=0.5)
        hint = f"did you mean '{close[0]}'?" if close else f"it has {', '.join(model.model_fields) or 'none'}"
        return f"unknown {what} '{name}'; {hint}{more}"
    if first["type"] == "missing":
        return f"{what} '{name}' is needed{more}"
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "value_error":  # a validator's own words, which show the value; about several when no name
        return f"{what} {where.split('.')[0]}: {message}{more}" if where else f"{message}{more}"
    value = first.get("input")
    shown = f" = {value!r}" if isinstance(value, str | int | float | bool | type(None)) else ""
    label = where.split(".")[0] if where else what
    return f"{what} {label}{shown}: {message[:1].lower()}{message[1:]}{more}"


def distinct(components: Sequence[Component]) -> list[str]:
    """A name for each component: its own, with the options in which components of one name differ."""
    result = []
    for component in components:
        same = [other.options for other in components if other.name == component.name]
        differing = [f"{key}={_shown(value)}" for key, value in component.options.items()
                     if any(options.get(key) != value for options in same)]
        result.append(f"{component.name} ({', '.join(differing)})" if differing else component.name)
    return result


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
