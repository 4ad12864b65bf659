"""What is stored about finished explanations, computed again from the tallies, without a model."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from certframe.checking import Check, Findings, Means
from certframe.config import component
from certframe.errors import CertframeError
from certframe.files import sha256
from certframe.protocols import Certificate, Certifier
from certframe.proving import prove
from certframe.store import LEDGER, ImageRecord, certificate_bytes, explanation_of
from certframe.tally import Tally
from certframe.worker import component_key, cuts_of, guard

ROUNDING, MODEL_ROUNDING = 1e-9, 1e-5
"""Relative differences that are put down to another version of a numerical library, or to the arithmetic of a model."""


@dataclass(frozen=True)
class Part:
    """One part of the ledger: an image, a cell, a certifier, and the rows about them."""

    image: str
    cell: str
    certifier: str
    rows: list[dict[str, Any]]

    @property
    def name(self) -> str:
        """As in the names of its files."""
        return f"{self.image}/{self.cell}--{self.certifier}"


def recomputed(means: Means) -> Iterator[Check]:
    """Tallies, certificates, metrics and the table of metrics."""
    return _Recomputer(means).checks()


class _Recomputer:
    def __init__(self, means: Means) -> None:
        self.means, self.run, self.config = means, means.run, means.run.config
        self.files, self.tallies, self.certificates, self.metrics = Findings(), Findings(), Findings(), Findings()
        self.certifiers = {component_key(c): means.built(c) for c in self.config.certifier}
        self.own = frozenset(self.certifiers)
        self.measures = [(c, means.built(c)) for c in self.config.metric]
        self.expected = self._expected()

    def checks(self) -> Iterator[Check]:
        """One pass over everything that is finished, then what came of it."""
        parts = list(self._parts())
        self.means.listener.begin("certificates", len(parts))
        groups: dict[tuple[str, str], list[Part]] = {}
        for part in parts:
            groups.setdefault((part.image, part.cell), []).append(part)
        record: ImageRecord | None = None
        for (image, cell), some in groups.items():
            if record is None or record.key != image:
                record = self._record(image)
            self._strangers(some)
            self._group(image, cell, some, record)
        yield self.tallies.check("tallies", f"SHA-256 of {self.tallies.count} tallies, and that they are of this run")
        yield self.certificates.check("certificates", f"SHA-256 of {self.certificates.count} certificates, and that "
                                                      "they follow from their tallies")
        yield self.metrics.check("metrics", f"{self.metrics.count} numbers, from their certificates")
        yield self._table([row for part in parts for row in part.rows])
        yield self._completeness(parts)

    # -- the ledger ---------------------------------------------------------------------------------------------------

    def _parts(self) -> Iterator[Part]:
        for path in sorted((self.run.path / "ledger").glob("*/*.parquet")):
            image, (cell, _, certifier) = path.parent.name, path.stem.partition("--")
            try:
                rows = pq.read_table(path, schema=LEDGER).to_pylist()
            except (pa.ArrowException, OSError, ValueError) as error:
                self.files.findings.append(f"{path} is damaged ({' '.join(str(error).split())})")
                continue
            part = Part(image, cell, certifier, rows)
            if any(value is None for row in rows for value in row.values()):
                self.files.findings.append(f"ledger/{part.name}: a value is missing")
            elif not rows or any((r["image"], r["cell"], r["certifier"]) != (image, cell, certifier) for r in rows):
                self.files.findings.append(f"ledger/{part.name}: its rows are about something else")
            elif cell not in self.means.specs:
                self.files.findings.append(f"ledger/{part.name}: the run has no such method and noise level")
            else:
                yield part

    def _strangers(self, parts: list[Part]) -> None:
        """Certifying again begins when the run's own certifiers are done."""
        missing = sorted(self.own - {part.certifier for part in parts})
        strangers = [part for part in parts if part.certifier not in self.own]
        if missing and strangers:
            self.files.findings.append(f"ledger/{strangers[0].name}: the run has no such certifier, and its own "
                                       f"{missing[0]} has not certified this yet")

    def _record(self, image: str) -> ImageRecord | None:
        try:
            return self.run.image(image)
        except CertframeError as error:
            self.tallies.findings.append(str(error))
            return None

    def _group(self, image: str, cell: str, parts: list[Part], record: ImageRecord | None) -> None:
        """All certificates of one tally."""
        self.means.listener.advance(len(parts))
        path = self.run.tally_path(image, cell)
        try:
            content, tally = path.read_bytes(), self.run.tally(image, cell)
        except (OSError, CertframeError) as error:
            self.tallies.findings.append(f"{path} is missing" if isinstance(error, OSError) else str(error))
            return
        self.tallies.count += 1
        self.means.tallies[image, cell] = tally.samples
        name = f"tallies/{image}/{cell}"
        if any(row["tally_sha256"] != sha256(content) for part in parts for row in part.rows):
            self.tallies.findings.append(f"{name}: the file does not have the SHA-256 in the ledger: it was changed")
        if record is not None:
            self.tallies.findings += [f"{name}: {problem}" for problem in self._foreign(tally, cell, record)]
            for part in parts:
                self._part(part, tally, record)

    # -- one tally ----------------------------------------------------------------------------------------------------

    def _expected(self) -> dict[str, Any]:
        """What all tallies of the run have in common, as far as the plugins are there."""
        config = self.config
        expected: dict[str, Any] = {"planned": config.samples}
        sparsifier = self.means.built(config.sparsifier)
        if not isinstance(sparsifier, str):
            expected |= {"levels": tuple(sparsifier.levels), "nested": sparsifier.nested}
        if not any(isinstance(certifier, str) for certifier in self.certifiers.values()):
            expected["cuts"] = tuple(cuts_of(list(self.certifiers.values()), config.samples))
        return expected

    def _foreign(self, tally: Tally, cell: str, record: ImageRecord) -> Iterator[str]:
        """In what a tally differs from what the run and its image say."""
        config, spec, prepared = self.config, self.means.specs[cell], record.prepared
        method = config.attributor[spec.attributor]
        expected = {
            **self.expected, "sigma": spec.sigma, "copies": ((0, tally.samples),), "image": prepared.key,
            "weights": self.run.provenance.get("weights"), "model": config.model.fingerprint,
            "sparsifier": config.sparsifier.fingerprint, "attributor": method.name,
            "attributor_options": method.fingerprint, "target": prepared.target, "target_name": prepared.target_name,
            "noise": f"gaussian seed={config.seed} {self.run.provenance.get('noise')}", "precision": config.autocast,
            "resolution": config.resolution,
        }
        for key, value in expected.items():
            has = getattr(tally, key) if hasattr(tally, key) else tally.identity.get(key)
            if has != value:
                yield f"its {key} is {_short(has)}, and the run says {_short(value)}"
        if tally.samples > config.samples:
            yield f"it has {tally.samples} copies, and the run {config.samples}"

    # -- one certificate ----------------------------------------------------------------------------------------------

    def _part(self, part: Part, tally: Tally, record: ImageRecord) -> None:
        path = self.run.certificate_path(part.image, part.cell, part.certifier)
        try:
            content = path.read_bytes()
            certificate = self.run.certificate(part.image, part.cell, part.certifier)
        except (OSError, CertframeError) as error:
            self.certificates.findings.append(str(error) if isinstance(error, CertframeError) else
                                              f"{path} is missing")
            return
        self.certificates.count += 1
        name = f"certificates/{part.name}"
        if any(row["certificate_sha256"] != sha256(content) for row in part.rows):
            self.certificates.findings.append(f"{name}: the file does not have the SHA-256 in the ledger: it was "
                                              "changed")
        self._prove(name, part, tally, certificate, content)
        self._measure(part, tally, certificate, record)

    def _prove(self, name: str, part: Part, tally: Tally, certificate: Certificate, content: bytes) -> None:
        """Certify again, with the certifier that the configuration or the certificate names."""
        if part.certifier not in self.certifiers:
            found = self._find(part.certifier, certificate)
            if found is None:
                self.certificates.findings.append(f"{name}: its options are not those of {part.certifier}")
                return
            self.certifiers[part.certifier] = found
        certifier = self.certifiers[part.certifier]
        if isinstance(certifier, str):
            self.certificates.unchecked.append(certifier)
            return
        try:
            fresh = prove(certifier, tally)
        except CertframeError as error:
            self.certificates.findings.append(f"{name}: {error}")
            return
        if certificate_bytes(fresh) == content:
            return
        differing, rounded = differences(certificate, fresh)
        self.certificates.findings += [f"{name}: {line}" for line in differing]
        if rounded:
            self.certificates.notes.append(f"{name}: its numbers differ in the last digits")

    def _find(self, key: str, certificate: Certificate) -> Certifier | str | None:
        """The certifier of `certframe certify`, from the options in its certificate; None when they do not fit."""
        name = key.rpartition("-")[0]
        entries = [entry for entry in self.means.registry.entries("certifier") if entry.name == name]
        for entry in entries:
            with contextlib.suppress(CertframeError):
                found = component("certifier", {"name": entry.qualified, **certificate.options}, self.means.registry)
                if component_key(found) == key:
                    built: Certifier | str = self.means.built(found)
                    return built
        return None if entries else f"no certifier '{name}' is installed"

    # -- its metrics --------------------------------------------------------------------------------------------------

    def _measure(self, part: Part, tally: Tally, certificate: Certificate, record: ImageRecord) -> None:
        spec = self.means.specs[part.cell]
        name = f"ledger/{part.name}"
        facts = {"name": record.prepared.name, "attributor": self.config.attributor[spec.attributor].name,
                 "sigma": spec.sigma, "samples": tally.samples}
        if (stopped := self._stopped(tally)) is not None:
            facts["stopped"] = stopped
        for key, value in facts.items():
            wrong = {row[key] for row in part.rows} - {value}
            if wrong:
                self.metrics.findings.append(f"{name}: {key} is {_short(wrong.pop())} and should be {_short(value)}")
        values, complete = self._values(part, tally, certificate, record)
        stored = {row["metric"]: row["value"] for row in part.rows}
        for metric, (value, slack) in values.items():
            if metric not in stored:
                self.metrics.findings.append(f"{name}: {metric} is missing")
            elif not np.isclose(stored[metric], value, rtol=slack, atol=slack, equal_nan=True):
                self.metrics.findings.append(f"{name}: {metric} is {stored[metric]:.6g} and should be {value:.6g}")
        self.metrics.count += len(values)
        if complete and (more := sorted(set(stored) - set(values))):
            self.metrics.findings.append(f"{name}: nothing measures {more[0]}")

    def _values(self, part: Part, tally: Tally, certificate: Certificate,
                record: ImageRecord) -> tuple[dict[str, tuple[float, float]], bool]:
        """Every metric with the slack that it may have, and whether these are all."""
        explanation = explanation_of(record.prepared, self.means.specs[part.cell].attributor, tally, certificate)
        values, complete = {"confidence": (record.prepared.confidence, ROUNDING)}, True
        for wanted, metric in self.measures:
            if isinstance(metric, str):
                self.metrics.unchecked.append(metric)
                complete = False
                continue
            if not metric.requires <= {"model", *explanation.carries}:
                continue
            needs, model = "model" in metric.requires, None
            if needs and part.certifier not in self.own:
                continue  # certifying again measures what needs no model
            if needs:
                if isinstance(self.means.model, str):
                    self.metrics.unchecked.append(f"metric '{wanted.name}' needs the model: {self.means.model}")
                    complete = False
                    continue
                model = self.means.model
            try:
                subject = replace(explanation, model=model)
                found: Mapping[str, float] = guard(wanted, lambda: metric.compute(subject))  # noqa: B023
            except CertframeError as error:
                self.metrics.findings.append(f"ledger/{part.name}: {error}")
                complete = False
                continue
            values |= {key: (float(v), MODEL_ROUNDING if needs else ROUNDING) for key, v in found.items()}
        return values, complete

    def _stopped(self, tally: Tally) -> str | None:
        """What the ledger says about the end of the sampling; None when a certifier is missing."""
        if tally.samples == self.config.samples:
            return "all samples"
        own = [self.certifiers[component_key(c)] for c in self.config.certifier]
        if any(isinstance(certifier, str) for certifier in own):
            return None
        schedules = [certifier.looks(self.config.samples) for certifier in own]
        verdicts = [s.done(tally) if s is not None and tally.samples in s.looks else (False, "") for s in schedules]
        if not all(stop for stop, _ in verdicts):
            return f"not at {tally.samples}: no certifier had reason to"
        return "; ".join(dict.fromkeys(reason for _, reason in verdicts))

    # -- the whole ----------------------------------------------------------------------------------------------------

    def _table(self, rows: list[dict[str, Any]]) -> Check:
        """``metrics.parquet`` against the parts of the ledger."""
        path, found = self.run.path / "metrics.parquet", self.files
        if not path.exists():
            found.notes.append("there is no metrics.parquet yet: 'certframe run' writes it at the end")
        else:
            try:
                table = pq.read_table(path, schema=LEDGER).to_pylist()
            except (pa.ArrowException, OSError, ValueError) as error:
                found.findings.append(f"{path} is damaged ({' '.join(str(error).split())})")
            else:
                here, there = Counter(map(_frozen, table)), Counter(map(_frozen, rows))
                more, fewer = sum((here - there).values()), sum((there - here).values())
                if more or fewer:
                    found.findings.append(f"metrics.parquet has {more} rows that the ledger has not, and lacks {fewer} "
                                          "that it has")
        return found.check("ledger", f"{len(rows)} rows, and that metrics.parquet has the same")

    def _completeness(self, parts: list[Part]) -> Check:
        """Is the run finished, and is everything in it accounted for?"""
        found, run = Findings(), self.run
        done = [key for key in run.image_keys() if run.is_done(key)]
        dataset = self.means.dataset
        if isinstance(dataset, str):
            found.unchecked.append(f"how many images there should be: {dataset}")
            text = f"{len(done)} images are finished"
        else:
            total = min(len(dataset), self.config.limit or len(dataset))
            failed = run.failures()
            text = f"{len(done)} of {total} images are finished"
            if failed:
                found.notes.append(f"{len(failed)} images could not be used: {', '.join(f['name'] for f in failed[:3])}"
                                   f"{', …' if len(failed) > 3 else ''}")
            if len(done) + len(failed) < total:
                found.notes.append("the run is not finished: what is there was checked; 'certframe run' with the same "
                                   "settings goes on")
            found.findings += [f"'{run.image(key).prepared.name}' is beyond the images of the run" for key in done
                               if int(key[:5]) >= total]
        known = {self.run.tally_path(part.image, part.cell) for part in parts}
        stray = [p for p in sorted((run.path / "tallies").glob("*/*.safetensors")) if p not in known]
        if stray:
            found.notes.append(f"not in the ledger and so not checked: {len(stray)} of the tallies, such as "
                               f"{stray[0].relative_to(run.path)}")
        return found.check("run", text)


def differences(stored: Certificate, fresh: Certificate) -> tuple[list[str], bool]:
    """In what a certificate differs from the one that its tally gives, and whether it does in rounding."""
    lines, rounded = [], False
    for one in fields(Certificate):
        has, should = getattr(stored, one.name), getattr(fresh, one.name)
        if one.name == "arrays":
            if set(has) != set(should):
                lines.append(f"it has the arrays {', '.join(sorted(has))} and should have {', '.join(sorted(should))}")
            pairs = {f"array {key}": (has[key], should[key]) for key in set(has) & set(should)}
        elif one.name == "labels":
            pairs = {"labels": (has, should)}
        elif isinstance(should, float):
            pairs = {one.name: (np.array(has, dtype=float), np.array(should))}
        else:
            if _plain(has) != _plain(should):
                lines.append(f"{one.name} is {_short(has)} and should be {_short(should)}")
            continue
        for name, (a, b) in pairs.items():
            problem, close = _unequal(np.asarray(a), np.asarray(b))
            rounded |= close
            if problem:
                lines.append(f"{name} {problem}")
    return lines, rounded


def _unequal(stored: np.ndarray, fresh: np.ndarray) -> tuple[str, bool]:
    """What is different about an array, empty if nothing, and whether anything is but for rounding."""
    if stored.shape != fresh.shape or stored.dtype != fresh.dtype:
        return (f"has shape {stored.shape} and type {stored.dtype} and should have {fresh.shape} and {fresh.dtype}",
                False)
    real = np.issubdtype(fresh.dtype, np.floating)
    exact = np.array_equal(stored, fresh, equal_nan=real)
    if exact:
        return "", False
    wrong = ~np.isclose(stored, fresh, rtol=ROUNDING, atol=0.0, equal_nan=True) if real else stored != fresh
    if not wrong.any():
        return "", True
    if wrong.size == 1:
        return f"is {stored.item()!r} and should be {fresh.item()!r}", False
    return f"differs in {int(wrong.sum()):,} of {wrong.size:,} values", False


def _plain(value: Any) -> Any:
    """As it comes back from JSON."""
    return json.loads(json.dumps(value))


def _frozen(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """Hashable, and equal to itself also with NaN in it."""
    return tuple(repr(value) for value in row.values())


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:28]}…{text[-28:]}"
