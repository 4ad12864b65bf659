"""What the parts of a verification share: how a check is reported, and what there is to check with."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

from certframe.config import Component
from certframe.device import resolve_device, weights_hash
from certframe.errors import CertframeError
from certframe.protocols import Dataset, Model
from certframe.registry import Registry
from certframe.store import Run
from certframe.worker import cells_of, guard, load_model


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes:
        name: in a word or two.
        text: what was compared with what.
        findings: what differs, a line each.
        unchecked: what could not be looked at, and why, a line each.
        notes: what a reader should know, a line each.
    """

    name: str
    text: str
    findings: tuple[str, ...] = ()
    unchecked: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def state(self) -> str:
        """``"differs"``, ``"not checked"`` (in part, perhaps) or ``"agrees"``."""
        return "differs" if self.findings else "not checked" if self.unchecked else "agrees"


class Listener(Protocol):
    """Hears how a verification is going."""

    def begin(self, what: str, total: int) -> None:
        """So many steps of something begin."""

    def advance(self, steps: int) -> None:
        """So many of them are done."""

    def done(self, check: Check) -> None:
        """A check is finished."""


class Silent:
    """A listener that does nothing."""

    def begin(self, what: str, total: int) -> None:
        """Ignore."""

    def advance(self, steps: int) -> None:
        """Ignore."""

    def done(self, check: Check) -> None:
        """Ignore."""


@dataclass
class Findings:
    """Lines that come together for one `Check`."""

    findings: list[str] = field(default_factory=list)
    unchecked: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    count: int = 0

    def check(self, name: str, text: str) -> Check:
        """The check; a line that was said before is not said again."""
        return Check(name, text, *(tuple(dict.fromkeys(lines)) for lines in
                                   (self.findings, self.unchecked, self.notes)))


class Means:
    """A run, and the plugins to check it with, as far as they are there.

    Args:
        run: the run.
        registry: where plugins are looked up.
        listener: hears of progress.
        device: where to work, by default where the run says.
        model: whether the model may be used.

    Attributes:
        config: the run's configuration, with the device.
        specs: the run's cells by their key.
        tallies: number of copies of every finished tally that could be read, by image and cell.

    Raises:
        UsageError: the device is not there.
    """

    def __init__(self, run: Run, registry: Registry, listener: Listener, *, device: str | None = None,
                 model: bool = True) -> None:
        self.run, self.registry, self.listener, self.wants_model = run, registry, listener, model
        self.config = run.config.model_copy(update={"device": device}) if device else run.config
        self.device = resolve_device(self.config.device) if model else None
        self.specs = {spec.key: spec for spec in cells_of(run.config)}
        self.tallies: dict[tuple[str, str], int] = {}

    @cached_property
    def model(self) -> Model | str:
        """The run's model on its device, or why there is none."""
        if not self.wants_model or self.device is None:
            return "the model was left out on request"
        try:
            return load_model(self.config, self.device, self.registry)
        except CertframeError as error:
            return str(error)

    @cached_property
    def weights(self) -> str:
        """Hash of the model's weights; empty without a model."""
        return "" if isinstance(self.model, str) else weights_hash(self.model.module)

    @cached_property
    def dataset(self) -> Dataset | str:
        """The run's data set, or why there is none."""
        dataset: Dataset | str = self.built(self.config.dataset)
        return dataset

    def built(self, wanted: Component) -> Any:
        """A plugin of the run, or why it cannot be had."""
        try:
            return guard(wanted, lambda: wanted.build(self.registry))
        except CertframeError as error:
            return str(error)
