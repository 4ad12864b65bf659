"""Is a run what it says it is? Everything that is stored is computed again, and a part of the counts is drawn again.

The hashes in the ledger find a file that was changed. Certificates are computed again from the tallies and metrics from
the certificates, which also finds a change that was made along with its hash. Tallies are the bottom of it all: for
those, noisy copies are drawn and explained again (`certframe.redrawing`).
"""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from certframe.checking import Check, Findings, Listener, Means, Silent
from certframe.config import Component, RunConfig
from certframe.errors import CertframeError, UsageError
from certframe.noise import image_hash
from certframe.recomputing import recomputed
from certframe.redrawing import redrawn
from certframe.registry import Registry, default_registry
from certframe.store import ImageRecord, Run, image_key, seal
from certframe.worker import guard, to_pixels


@dataclass(frozen=True)
class Verification:
    """The outcome.

    Attributes:
        path: the run.
        checks: in the order in which they were made.
        seed: of the choice of copies that were drawn again.
    """

    path: Path
    checks: tuple[Check, ...]
    seed: int

    @property
    def ok(self) -> bool:
        """Nothing differs."""
        return not any(check.findings for check in self.checks)

    @property
    def complete(self) -> bool:
        """There was nothing that could not be looked at."""
        return not any(check.unchecked for check in self.checks)

    def __repr__(self) -> str:
        """A line for each check and finding."""
        lines = []
        for check in self.checks:
            lines.append(f"{check.state:<12} {check.name}: {check.text}")
            lines += [f"{'':<12}   {line}" for line in (*check.findings, *check.unchecked, *check.notes)]
        return "\n".join(lines)


def verify(run: Run, *, share: float = 0.1, model: bool = True, seed: int = 0, tolerance: float | None = None,
           device: str | None = None, registry: Registry | None = None,
           listener: Listener | None = None) -> Verification:
    """Check everything in a run that can be checked.

    Args:
        run: the run; what an unfinished one has so far is checked.
        share: share of the noisy copies that are drawn and explained again, chosen at random; in [0, 1].
        model: False leaves out all that needs the model: redrawing, the weights' hash, the pictures' preprocessing.
        seed: of that choice.
        tolerance: share of the redrawn counts of a tally that may differ; by default 0 on the type of machine and
            device that made the run, and `certframe.redrawing.OTHER_MACHINE` on another.
        device: where to work; by default where the run says.
        registry: where plugins are looked up.
        listener: hears of progress.

    Raises:
        UsageError: share or tolerance is not in [0, 1], or there is no such device.
    """
    for name, value in (("share", share), ("tolerance", tolerance)):
        if value is not None and not 0.0 <= value <= 1.0:
            raise UsageError(f"{name} = {value:g}: give a number from 0 to 1")
    means = Means(run, registry or default_registry(), listener or Silent(), device=device, model=model)
    return _Verifier(means).verify(share=share, seed=seed, tolerance=tolerance)


class _Verifier:
    """Makes the checks one after the other, as far as the plugins that they need are there."""

    def __init__(self, means: Means) -> None:
        self.means, self.run, self.listener = means, means.run, means.listener

    def verify(self, *, share: float, seed: int, tolerance: float | None) -> Verification:
        """All checks; each is told to the listener when it is done."""
        steps: list[Iterator[Check]] = [self._run_file(), self._versions(), self._images(), recomputed(self.means)]
        if self.means.wants_model:
            steps += [self._weights(), self._sources(),
                      redrawn(self.means, share=share, seed=seed, tolerance=tolerance)]
        else:
            steps.append(iter([Check("model", "its weights, its pictures, its attributions and counts",
                                     unchecked=("left out on request",))]))
        checks = []
        for check in itertools.chain.from_iterable(steps):
            self.listener.done(check)
            checks.append(check)
        return Verification(self.run.path, tuple(checks), seed)

    # -- the checks ---------------------------------------------------------------------------------------------------

    def _run_file(self) -> Iterator[Check]:
        """``run.json`` against its own hash, its digest, and the versions that it states twice."""
        found, config = Findings(), self.run.config
        content = json.loads((self.run.path / "run.json").read_text(encoding="utf-8"))
        sealed = content.pop("sha256", None)
        if more := sorted(set(content) - {"format", "digest", "config", "provenance"}):
            found.findings.append(f"it has an entry '{more[0]}' that no certframe writes: it was changed")
        elif sealed is None:
            found.notes.append("it was written before run.json had a hash of its own")
        elif sealed != seal(content):
            found.findings.append("its content does not have the SHA-256 that it states: it was changed")
        if content.get("digest") != config.digest:
            found.findings.append("its configuration does not have the digest that it states: it was changed")
        stated = self.run.provenance.get("plugins", {})
        for c in components_of(config):
            owner = f"{c.distribution} {c.version}"
            if stated.get(f"{c.kind} {c.name}", owner) != owner:
                found.findings.append(f"the provenance says that {c.kind} '{c.name}' is of "
                                      f"{stated[f'{c.kind} {c.name}']}, the configuration {owner}")
        yield found.check("run.json", "digest of the configuration, SHA-256 of the file")

    def _versions(self) -> Iterator[Check]:
        """Plugins and libraries now and then; a difference is no fault, but explains others."""
        found = Findings()
        for c in components_of(self.run.config):
            try:
                entry = self.means.registry.find(c.kind, f"{c.distribution}/{c.name}")
            except UsageError as error:
                found.unchecked.append(str(error))
                continue
            if entry.version != c.version:
                found.notes.append(f"{c.kind} '{c.name}' was made by {c.distribution} {c.version} and {entry.version} "
                                   "is installed: differences below may be due to that")
        for name, then in self.run.provenance.get("versions", {}).items():
            with contextlib.suppress(PackageNotFoundError):
                if (now := version(name)) != then:
                    found.notes.append(f"{name} was {then} then and is {now} now")
        yield found.check("plugins", f"versions of {len(components_of(self.run.config))} plugins and of the libraries")

    def _weights(self) -> Iterator[Check]:
        """The model's weights against the provenance."""
        found, stated, name = Findings(), str(self.run.provenance.get("weights")), self.run.config.model.name
        if isinstance(self.means.model, str):
            found.unchecked.append(self.means.model)
        elif self.means.weights != stated:
            found.findings.append(f"the SHA-256 is {self.means.weights[:12]}… now and was {stated[:12]}… when the run "
                                  "was made: these are other weights")
        yield found.check("weights", f"SHA-256 of the weights of model '{name}'")

    def _images(self) -> Iterator[Check]:
        """The stored images against their content hashes, which also key the noise."""
        found, keys = Findings(), self.run.image_keys()
        self.listener.begin("images", len(keys))
        for key in keys:
            self.listener.advance(1)
            try:
                record = self.run.image(key)
            except CertframeError as error:
                found.findings.append(str(error))
                continue
            found.count += 1
            found.findings += [f"images/{key}: {problem}" for problem in self._image_problems(record)]
            if record.intact is None:
                found.notes.append("image files had no hash of their own then")
        yield found.check("images", f"content hashes of {found.count} stored images")

    def _image_problems(self, record: ImageRecord) -> Iterator[str]:
        prepared = record.prepared
        if record.intact is False:
            yield "the file does not have the SHA-256 that it states: it was changed"
        if image_hash(prepared.image) != prepared.key:
            yield "the picture does not have its content hash: it was changed"
        if image_key(prepared.index, prepared.name) != record.key:
            yield f"it says that it is '{prepared.name}', number {prepared.index} of the data set"
        if prepared.weights != self.run.provenance.get("weights"):
            yield "it was explained by a model with other weights than run.json says"

    def _sources(self) -> Iterator[Check]:
        """The data set's pictures against the stored ones, if data set and model are still there."""
        found, keys = Findings(), self.run.image_keys()
        for missing in (self.means.model, self.means.dataset):
            if isinstance(missing, str):
                found.unchecked.append(missing)
        if not found.unchecked:
            self.listener.begin("pictures", len(keys))
            for key in keys:
                self.listener.advance(1)
                self._source(key, found)
        name = self.run.config.dataset.name
        yield found.check("pictures", f"{found.count} pictures of data set '{name}' against the stored images")

    def _source(self, key: str, found: Findings) -> None:
        model, dataset = self.means.model, self.means.dataset
        assert not isinstance(model, str)
        assert not isinstance(dataset, str)
        with contextlib.suppress(CertframeError):  # a damaged image file was reported before
            prepared = self.run.image(key).prepared
            if prepared.index >= len(dataset) or dataset.name(prepared.index) != prepared.name:
                found.unchecked.append(f"'{prepared.name}' is no longer number {prepared.index} of the data set")
                return
            try:
                sample = dataset.load(prepared.index)
                pixels = guard(self.means.config.model, lambda: to_pixels(model, sample))
            except CertframeError as error:
                found.unchecked.append(str(error))
                return
            found.count += 1
            if image_hash(pixels) != prepared.key:
                found.findings.append(f"'{prepared.name}' gives other pixels than the run has stored: the picture or "
                                      "its preprocessing was changed")
            if sample.label != prepared.label:
                found.findings.append(f"'{prepared.name}' has the label {sample.label} and had {prepared.label} then")


def components_of(config: RunConfig) -> list[Component]:
    """All plugins of a run."""
    return [config.model, config.dataset, *config.attributor, config.sparsifier, *config.certifier, *config.metric,
            config.executor]
