"""Names → lazily imported plugin classes and commands.

Built-ins and strangers register through the same hooks. A plugin that cannot be imported, or whose hooks are wrong,
is set aside in `Registry.broken`: it breaks itself and nothing else. Two owners of one name are kept both; the bare
name is then refused and ``distribution/name`` picks one.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pluggy

from certframe import hookspecs
from certframe.errors import UsageError, one_line, suggest

ENTRY_POINT_GROUP = "certframe"
HOOKS = {kind: f"certframe_{kind}s" for kind in
         ("model", "attributor", "sparsifier", "certifier", "metric", "dataset", "executor")}
"""The plugin kinds of which a run is made, and their hooks."""
REGISTERED = {**HOOKS, "command": "certframe_commands"}
"""Everything that can be registered, and its hook."""
INSTALL_HINTS = {
    "timm": "certframe-timm", "lite0": "certframe-timm", "rise": "certframe-rise", "lrp": "certframe-zennit",
    "shapley-sampling": "certframe-captum", "attack": "certframe-boundary", "audit": "certframe-boundary",
    "train-robust": "certframe-boundary",
}
"""Names that first-party distributions bring, for the message when one is not installed."""
_NAME = re.compile(r"[a-z0-9][a-z0-9+-]*")


@dataclass(frozen=True)
class Entry:
    """One registered implementation; `load` imports it."""

    kind: str
    name: str
    target: str
    summary: str
    distribution: str
    version: str

    @property
    def qualified(self) -> str:
        """``distribution/name``."""
        return f"{self.distribution}/{self.name}"

    def load(self) -> Any:
        """Import the class, or the function or ``typer.Typer`` of a command.

        Raises:
            UsageError: it cannot be imported; names the plugin, its distribution and the cause.
        """
        module, _, attribute = self.target.partition(":")
        try:
            found = getattr(importlib.import_module(module), attribute)
        except Exception as error:
            raise UsageError(
                f"{self.kind} '{self.name}' of {self.distribution} {self.version} cannot be imported: "
                f"{one_line(error)} (repair or uninstall {self.distribution})") from error
        if self.kind == "command" and not (callable(found) and not isinstance(found, type)):
            raise UsageError(f"command '{self.name}' of {self.distribution}: {self.target} is neither a function nor a "
                             "typer.Typer")
        if self.kind != "command" and not isinstance(found, type):
            raise UsageError(f"{self.kind} '{self.name}' of {self.distribution}: {self.target} is not a class")
        return found


@dataclass(frozen=True)
class Plugin:
    """A distribution's entry point that has been read."""

    name: str
    distribution: str
    version: str


@dataclass(frozen=True)
class Broken:
    """A plugin that could not be read, and why."""

    name: str
    distribution: str
    version: str
    reason: str


class Registry:
    """All implementations that the installed plugins register.

    Args:
        external: read the entry points of installed distributions; False leaves the built-ins alone.
    """

    def __init__(self, *, external: bool = True) -> None:
        self._manager = pluggy.PluginManager(hookspecs.PROJECT)
        self._manager.add_hookspecs(hookspecs)
        self._entries: dict[str, list[Entry]] = {kind: [] for kind in REGISTERED}
        self.plugins: list[Plugin] = []
        self.broken: list[Broken] = []
        builtins = importlib.import_module("certframe.builtins")
        self.add(builtins, name="certframe", distribution="certframe", version=_version("certframe"))
        if external:
            self._read_entry_points()

    def _read_entry_points(self) -> None:
        points = importlib.metadata.entry_points(group=ENTRY_POINT_GROUP)
        for point in sorted(set(points), key=lambda p: (p.dist.name if p.dist else "", p.name)):
            distribution = point.dist.name if point.dist else point.name
            version = point.dist.version if point.dist else "unknown"
            try:
                plugin = point.load()
            except Exception as error:
                self.broken.append(Broken(point.name, distribution, version, one_line(error)))
            else:
                self.add(plugin, name=point.name, distribution=distribution, version=version)

    def add(self, plugin: Any, *, name: str, distribution: str | None = None, version: str = "unknown") -> None:
        """Read a plugin (a module or an object with hook implementations) that is at hand in this process.

        A mistake in it does not raise: the plugin is listed in `broken`.
        """
        owner = distribution or name
        found: list[Entry] = []
        try:
            self._manager.register(plugin, name=f"{owner}:{name}")
            self._check_hook_names(plugin)
            for kind, hook in REGISTERED.items():
                function = getattr(plugin, hook, None)
                if function is not None and self._is_registered(plugin, hook):
                    function(register=_collector(kind, owner, version, found))
            mine = [e for entries in self._entries.values() for e in entries if e.distribution == owner]
            _check_twice((*mine, *found))
        except Exception as error:
            if self._manager.has_plugin(f"{owner}:{name}"):
                self._manager.unregister(name=f"{owner}:{name}")
            self.broken.append(Broken(name, owner, version, one_line(error)))
            return
        for entry in found:
            self._entries[entry.kind].append(entry)
        self.plugins.append(Plugin(name, owner, version))

    def _is_registered(self, plugin: Any, hook: str) -> bool:
        caller = getattr(self._manager.hook, hook)
        return any(impl.plugin is plugin for impl in caller.get_hookimpls())

    def _check_hook_names(self, plugin: Any) -> None:
        known = set(REGISTERED.values())
        unknown = [n for n in dir(plugin) if n.startswith("certframe_") and n not in known
                   and hasattr(getattr(plugin, n), "certframe_impl")]
        if unknown:
            raise UsageError(f"unknown hook {unknown[0]!r}{suggest(unknown[0], known)}")

    def entries(self, kind: str) -> list[Entry]:
        """Everything registered for a kind, ordered by name, then owner; commands as registered, certframe's first."""
        if kind == "command":
            return list(self._entries[kind])
        return sorted(self._entries[kind], key=lambda e: (e.name, e.distribution))

    def names(self, kind: str) -> list[str]:
        """The names that `find` accepts for a kind; names with two owners in their qualified form."""
        entries = self.entries(kind)
        count = {e.name: sum(o.name == e.name for o in entries) for e in entries}
        return [e.name if count[e.name] == 1 else e.qualified for e in entries]

    def find(self, kind: str, name: str) -> Entry:
        """Look a name (or ``distribution/name``) up.

        Raises:
            UsageError: nobody or more than one distribution registers it; the message gives close matches, the package
                to install, or the owners to choose from.
        """
        matches = [e for e in self._entries[kind] if name in (e.name, e.qualified)]
        if len(matches) == 1:
            return matches[0]
        if matches:
            owners = sorted(e.qualified for e in matches)
            raise UsageError(f"two plugins register the {kind} '{name}': pick one of {', '.join(owners)}, "
                             "or uninstall the other")
        raise UsageError(self._unknown(kind, name))

    def _unknown(self, kind: str, name: str) -> str:
        text = f"unknown {kind} '{name}'"
        package = INSTALL_HINTS.get(name)
        broken = [b for b in self.broken if b.distribution == package or name in (b.name, b.distribution)]
        if broken:
            bad = broken[0]
            return f"{text}: the plugin {bad.distribution} is broken ({bad.reason}); see 'certframe plugins'"
        if package:
            return f"{text}: it comes with the package {package}; install it with 'pip install {package}'"
        others = [k for k in REGISTERED if k != kind and any(e.name == name for e in self._entries[k])]
        if others:
            return f"{text}: it is {_article(others[0])}, not {_article(kind)}"
        close = suggest(name, self.names(kind))
        return f"{text}{close or ';'} see 'certframe list {kind}s'"


def _collector(kind: str, owner: str, version: str, found: list[Entry]) -> hookspecs.Register:
    def register(name: str, target: str, summary: str = "") -> None:
        if not _NAME.fullmatch(name):
            raise UsageError(f"{kind} name {name!r}: use lower-case letters, digits, '-' and '+'")
        module, _, attribute = target.partition(":")
        if not module or not attribute:
            raise UsageError(f"{kind} '{name}': target {target!r} is not of the form 'package.module:Class'")
        found.append(Entry(kind, name, target, summary, owner, version))
    return register


def _check_twice(found: Iterable[Entry]) -> None:
    seen: set[tuple[str, str]] = set()
    for entry in found:
        if (entry.kind, entry.name) in seen:
            raise UsageError(f"{entry.kind} '{entry.name}' is registered twice by {entry.distribution}")
        seen.add((entry.kind, entry.name))


def _article(kind: str) -> str:
    return f"an {kind}" if kind[0] in "aeio" else f"a {kind}"


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


@functools.cache
def default_registry() -> Registry:
    """The registry of this process, read once from the installed distributions."""
    return Registry()
