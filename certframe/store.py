"""The run directory.

    run.json                          configuration, provenance, format
    images/<image>.safetensors        the preprocessed image, its target, the clean attributions
    partial/<image>/<cell>.…          counts of an image that is under way
    tallies/<image>/<cell>.…          finished counts
    certificates/<image>/<cell>--<certifier>.…
    ledger/<image>/<cell>--<certifier>.parquet   metrics and hashes; written last, so its presence means "done"
    failures/<image>.json             images that could not be used, and why
    sections/<name>.json              what commands such as audit add to the report
    metrics.parquet                   all parts of the ledger in one table
    report.html
    log.jsonl                         times and durations; the only file in which two equal runs differ

Every file is complete or absent. Nothing in it is executable.
"""

from __future__ import annotations

import contextlib
import fcntl
import glob
import hashlib
import io
import json
import re
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from certframe.config import Component, RunConfig, distinct
from certframe.errors import CertframeError, UsageError
from certframe.files import HALF_WRITTEN, disk_error, sha256, write_atomic
from certframe.protocols import Certificate, Explanation
from certframe.sections import Section
from certframe.tally import Tally
from certframe.worker import CellSpec, Prepared, cells_of, component_key

FORMAT = 1
"""Version of the directory's layout."""
LEDGER = pa.schema([
    ("image", pa.string()), ("name", pa.string()), ("cell", pa.string()), ("attributor", pa.string()),
    ("sigma", pa.float64()), ("certifier", pa.string()), ("samples", pa.int64()), ("stopped", pa.string()),
    ("metric", pa.string()), ("value", pa.float64()), ("tally_sha256", pa.string()),
    ("certificate_sha256", pa.string()),
])


def image_key(index: int, name: str) -> str:
    """The image's position and name, fit for a file."""
    return f"{index:05d}-{re.sub(r'[^A-Za-z0-9._-]+', '-', name)[:60].strip('.-') or 'image'}"


@dataclass(frozen=True)
class ImageRecord:
    """An image of a run as it was explained; `intact` says whether the file is as it was written, None if it is old."""

    key: str
    prepared: Prepared
    intact: bool | None = None


class Run:
    """A run directory, read or written; use `load_run`, `Run.create` or `Run.resume`."""

    def __init__(self, path: Path, config: RunConfig, provenance: Mapping[str, Any]) -> None:
        self.path, self.config, self.provenance = path, config, dict(provenance)

    # -- making and finding -------------------------------------------------------------------------------------------

    @classmethod
    def create(cls, path: Path, config: RunConfig, provenance: Mapping[str, Any]) -> Run:
        """Make the directory and write ``run.json``."""
        content = {"format": FORMAT, "digest": config.digest, "config": config.model_dump(mode="json"),
                   "provenance": dict(provenance)}
        content["sha256"] = seal(content)
        write_atomic(path / "run.json", (json.dumps(content, indent=2, sort_keys=True) + "\n").encode())
        return cls(path, config, provenance)

    @classmethod
    def load(cls, path: Path) -> Run:
        """Open a run directory for reading.

        Raises:
            UsageError: there is no run there, it is damaged, or a newer certframe wrote it.
        """
        file = path / "run.json"
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            version = int(content["format"])
        except FileNotFoundError:
            runs = sorted(path.glob("*/*/run.json"))
            way = f"it is a study's: give one of its {len(runs)} runs, such as {runs[0].parent}" if runs else \
                "give the directory that 'certframe run' wrote"
            raise UsageError(f"{path} is not a run directory (it has no run.json): {way}") from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UsageError(f"{file} is damaged ({' '.join(str(error).split())}): restore it, or run again into "
                             "another directory") from error
        if version > FORMAT:
            raise UsageError(f"{path} was written by a newer certframe (format {version}, this one reads up to "
                             f"{FORMAT}): upgrade certframe")
        try:
            return cls(path, RunConfig.model_validate(content["config"]), content["provenance"])
        except (ValueError, KeyError) as error:
            raise UsageError(f"{file} is damaged ({' '.join(str(error).split())[:120]}): restore it, or run again into "
                             "another directory") from error

    @classmethod
    def find(cls, path: Path, config: RunConfig) -> Run | None:
        """The run that is already there and can be resumed with this configuration; None when the place is free.

        Raises:
            UsageError: the place is taken by something else, or by a run of another configuration; says what differs.
        """
        if not path.exists():
            return None
        if not path.is_dir():
            raise UsageError(f"{path} is a file: give a directory for the run with --out")
        if not (path / "run.json").exists():
            if any(p.name != ".lock" and not p.match(HALF_WRITTEN) for p in path.iterdir()):
                raise UsageError(f"{path} is not empty and is not a run: give another directory with --out")
            return None
        run = cls.load(path)
        if run.config.digest != config.digest:
            raise UsageError(f"{path} holds a run of another configuration ({_difference(run.config, config)}): give "
                             "another directory with --out")
        return run

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from writing to the run, and clear away what a killed one has left."""
        with (self.path / ".lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise UsageError(f"another process is working on {self.path}: wait for it, or give another directory "
                                 "with --out") from None
            self._sweep()
            yield

    def _sweep(self) -> None:
        """Remove half-written files, and counts under way of images that are done."""
        for path in self.path.rglob(HALF_WRITTEN):
            path.unlink(missing_ok=True)
        for folder in (self.path / "partial").glob("*"):
            if self.is_done(folder.name):
                self.drop_partial(folder.name)

    # -- images -------------------------------------------------------------------------------------------------------

    def _image_path(self, key: str) -> Path:
        return self.path / "images" / f"{key}.safetensors"

    def save_image(self, prepared: Prepared) -> str:
        """Store an image with its clean attributions; returns its key."""
        key = image_key(prepared.index, prepared.name)
        image = prepared.image.numpy()
        arrays = {"image": _as_bytes(image)}
        arrays |= {f"map{i}": m.numpy() for i, m in enumerate(prepared.maps)}
        # safetensors writes memory as it lies; a transposed array would come back scrambled.
        arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
        header = {name: getattr(prepared, name) for name in
                  ("index", "name", "key", "label", "target", "target_name", "confidence", "weights")}
        header["extras"] = {k: v for k, v in prepared.extras.items() if _is_json(v)}
        header["sha256"] = seal(header, arrays)
        write_atomic(self._image_path(key),
                     save(arrays, metadata={"certframe.image": json.dumps(header, sort_keys=True)}))
        return key

    def image(self, key: str) -> ImageRecord:
        """Read an image back."""
        header, arrays = _read(self._image_path(key), "certframe.image")
        sealed = header.pop("sha256", None)
        intact = None if sealed is None else sealed == seal(header, arrays)
        try:
            image = arrays.pop("image")
            pixels = image.astype(np.float32) / np.float32(255) if image.dtype == np.uint8 else image
            maps = [torch.from_numpy(arrays[f"map{i}"]) for i in range(len(arrays))]
            return ImageRecord(key, Prepared(image=torch.from_numpy(pixels), maps=maps, **header), intact)
        except (KeyError, TypeError) as error:
            raise _damaged(self._image_path(key), error) from error

    def image_keys(self) -> list[str]:
        """The keys of all images of which something is stored, in the data set's order."""
        return sorted(p.stem for p in (self.path / "images").glob("*.safetensors"))

    # -- tallies ------------------------------------------------------------------------------------------------------

    def tally_path(self, image: str, cell: str, *, partial: bool = False) -> Path:
        """Where the counts of an image and cell are."""
        return self.path / ("partial" if partial else "tallies") / image / f"{cell}.safetensors"

    def tally(self, image: str, cell: str) -> Tally:
        """The finished counts of an image and cell."""
        return Tally.load(self.tally_path(image, cell))

    def partial(self, image: str, cell: str) -> Tally | None:
        """The counts of an image that is under way, or that was finished just before an interruption."""
        for path in (self.tally_path(image, cell), self.tally_path(image, cell, partial=True)):
            if path.exists():
                return Tally.load(path)
        return None

    def drop_partial(self, image: str) -> None:
        """Forget the unfinished counts of an image."""
        shutil.rmtree(self.path / "partial" / image, ignore_errors=True)
        with contextlib.suppress(OSError):
            (self.path / "partial").rmdir()

    # -- certificates and the ledger -----------------------------------------------------------------------------------

    def certificate_path(self, image: str, cell: str, certifier: str) -> Path:
        """Where a certificate is."""
        return self.path / "certificates" / image / f"{cell}--{certifier}.safetensors"

    def ledger_path(self, image: str, cell: str, certifier: str) -> Path:
        """Where the last-written part of an image, cell and certifier is; it exists when they are done."""
        return self.path / "ledger" / image / f"{cell}--{certifier}.parquet"

    def certificate(self, image: str, cell: str, certifier: str) -> Certificate:
        """Read a certificate back."""
        header, arrays = _read(self.certificate_path(image, cell, certifier), "certframe.certificate")
        try:
            labels = arrays.pop("labels")
            header["levels"], header["warnings"] = tuple(header["levels"]), tuple(header["warnings"])
            return Certificate(labels=labels, arrays=arrays, **header)
        except (KeyError, TypeError) as error:
            raise _damaged(self.certificate_path(image, cell, certifier), error) from error

    def save_result(self, explanation: Explanation, image: str, cell: str, attributor: str, certifier: str, *,
                    metrics: Mapping[str, float], stopped: str) -> None:
        """Store tally, certificate and, last, the part of the ledger that says they are there."""
        tally, certificate = explanation.tally.to_bytes(), certificate_bytes(explanation.certificate)
        write_atomic(self.tally_path(image, cell), tally)
        write_atomic(self.certificate_path(image, cell, certifier), certificate)
        common = {
            "image": image, "name": explanation.name, "cell": cell, "attributor": attributor,
            "sigma": explanation.tally.sigma, "certifier": certifier, "samples": explanation.tally.samples,
            "stopped": stopped, "tally_sha256": sha256(tally), "certificate_sha256": sha256(certificate),
        }
        values = {"confidence": explanation.confidence, **metrics}
        rows = [{**common, "metric": name, "value": float(value)} for name, value in values.items()]
        write_atomic(self.ledger_path(image, cell, certifier), _parquet(pa.Table.from_pylist(rows, schema=LEDGER)))

    def metrics(self, image: str, cell: str, certifier: str) -> dict[str, float]:
        """What the ledger says was measured; empty when there is nothing yet."""
        path = self.ledger_path(image, cell, certifier)
        rows = _read_part(path).to_pylist() if path.exists() else []
        return {row["metric"]: row["value"] for row in rows}

    def why_stopped(self, image: str, cell: str) -> str | None:
        """Why the run drew no more copies; None as long as it has not certified them with all of its certifiers."""
        paths = [self.ledger_path(image, cell, component_key(certifier)) for certifier in self.config.certifier]
        return str(_read_part(paths[0])["stopped"][0]) if all(path.exists() for path in paths) else None

    def is_done(self, image: str, cells: Sequence[CellSpec] | None = None) -> bool:
        """Whether every certifier of the run is finished for an image and these cells, by default all of the run."""
        return all(self.ledger_path(image, cell.key, component_key(certifier)).exists()
                   for cell in cells or cells_of(self.config) for certifier in self.config.certifier)

    def table(self) -> pa.Table:
        """All parts of the ledger, a row per image, cell, certifier and metric."""
        parts = sorted((self.path / "ledger").glob("*/*.parquet"))
        tables = [_read_part(path) for path in parts]
        return pa.concat_tables(tables) if tables else LEDGER.empty_table()

    def write_table(self) -> None:
        """Write ``metrics.parquet``."""
        write_atomic(self.path / "metrics.parquet", _parquet(self.table()))

    # -- failures, sections and the log -------------------------------------------------------------------------------

    def save_failure(self, index: int, name: str, reason: str, part: str = "") -> None:
        """Record an image that could not be used, or a part of it: a cell, or a cell and a metric."""
        content = {"index": index, "name": name, "reason": reason} | ({"part": part} if part else {})
        file = f"{image_key(index, name)}{f'--{part}' if part else ''}.json"
        write_atomic(self.path / "failures" / file, (json.dumps(content, indent=2, sort_keys=True) + "\n").encode())

    def has_failed(self, image: str, part: str = "") -> bool:
        """Whether it is recorded that an image, or a part of it, could not be used."""
        return (self.path / "failures" / f"{image}{f'--{part}' if part else ''}.json").exists()

    def clear_failures(self, image: str | None = None) -> None:
        """Forget the recorded failures of an image, or all; what is left to do is then tried again."""
        folder = self.path / "failures"
        if image is not None:
            for file in (folder / f"{image}.json", *folder.glob(f"{glob.escape(image)}--*.json")):
                file.unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                folder.rmdir()
        else:
            shutil.rmtree(folder, ignore_errors=True)

    def failures(self) -> list[dict[str, Any]]:
        """``{"index", "name", "reason"}`` of every image that could not be used; "part" is a cell or metric of it."""
        return [json.loads(p.read_text(encoding="utf-8")) for p in sorted((self.path / "failures").glob("*.json"))]

    def save_section(self, name: str, section: Section) -> Path:
        """Store a section for the report, which shows it from then on; one of the same name is replaced.

        Args:
            name: lower-case letters, digits and ``-``.
            section: what the report shows.

        Raises:
            UsageError: the name cannot be that of a file.
            CertframeError: the disk is full.
        """
        if not re.fullmatch(r"[a-z0-9][a-z0-9-]*", name):
            raise UsageError(f"section name {name!r}: use lower-case letters, digits and '-'")
        path = self.path / "sections" / f"{name}.json"
        write_atomic(path, section.to_json().encode())
        return path

    def sections(self) -> dict[str, Section]:
        """The stored sections by name.

        Raises:
            CertframeError: a file is damaged.
        """
        found = {}
        for path in sorted((self.path / "sections").glob("*.json")):
            try:
                found[path.stem] = Section.from_mapping(json.loads(path.read_text(encoding="utf-8")))
            except (ValueError, TypeError, KeyError) as error:
                raise _damaged(path, error) from error
        return found

    def log(self, event: str, **details: Any) -> None:
        """Append a line to the log."""
        line = json.dumps({"time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "event": event, **details})
        try:
            with (self.path / "log.jsonl").open("a", encoding="utf-8") as file:
                file.write(line + "\n")
        except OSError as error:
            raise disk_error(error, self.path / "log.jsonl") from error

    # -- reading ------------------------------------------------------------------------------------------------------

    def explanation(self, image: str, cell: str, certifier: str, record: ImageRecord | None = None) -> Explanation:
        """One finished explanation, as metrics and the report see it."""
        prepared = (record or self.image(image)).prepared
        spec = next(spec for spec in cells_of(self.config) if spec.key == cell)
        return explanation_of(prepared, spec.attributor, self.tally(image, cell),
                              self.certificate(image, cell, certifier))

    def explanations(self) -> Iterator[tuple[str, str, str, Explanation]]:
        """``(image, cell, certifier, explanation)`` of everything finished, image by image.

        Certificates that `certframe certify` added follow those of the run itself.
        """
        certifiers = list(self.certifier_names())
        for image in self.image_keys():
            record = None
            for cell in cells_of(self.config):
                for key in certifiers:
                    if self.ledger_path(image, cell.key, key).exists():
                        record = record or self.image(image)
                        yield image, cell.key, key, self.explanation(image, cell.key, key, record)

    def certifier_names(self) -> dict[str, str]:
        """Key → name of the run's certifiers, then of those that `certframe certify` added.

        Certifiers of one name have the options with it in which they differ.
        """
        found = {component_key(certifier): certifier for certifier in self.config.certifier}
        for path in sorted((self.path / "ledger").glob("*/*.parquet")):
            cell, _, key = path.stem.rpartition("--")
            if key not in found:
                stated = self.certificate(path.parent.name, cell, key)
                found[key] = Component(kind="certifier", name=key.rpartition("-")[0], options=dict(stated.options),
                                       distribution="", version="")
        return dict(zip(found, distinct(list(found.values())), strict=True))


def load_run(path: str | Path) -> Run:
    """Open a run directory for reading.

    Raises:
        UsageError: there is no run there, it is damaged, or a newer certframe wrote it.
    """
    return Run.load(Path(path))


def seal(header: Mapping[str, Any], arrays: Mapping[str, np.ndarray] | None = None) -> str:
    """SHA-256 over what a file says, by which an accidental or careless change of it is found later."""
    as_read = json.loads(json.dumps(header))  # keys are text then, and sorted as text
    digest = hashlib.sha256(json.dumps(as_read, sort_keys=True).encode())
    for name, array in sorted((arrays or {}).items()):
        digest.update(f"|{name}|{array.dtype}|{array.shape}|".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def explanation_of(prepared: Prepared, attributor: int, tally: Tally, certificate: Certificate) -> Explanation:
    """Put an explanation together."""
    return Explanation(
        name=prepared.name, image=prepared.image, target=prepared.target, target_name=prepared.target_name,
        confidence=prepared.confidence, map=prepared.maps[attributor], tally=tally, certificate=certificate,
        label=prepared.label, extras=prepared.extras)


def certificate_bytes(certificate: Certificate) -> bytes:
    """The file content of a certificate: safetensors with everything but the arrays as JSON in its header."""
    bare = asdict(replace(certificate, labels=np.zeros(0, np.int8), arrays={}))
    header = {k: v for k, v in bare.items() if k not in ("labels", "arrays")}
    arrays = {"labels": certificate.labels, **certificate.arrays}
    return save({k: np.ascontiguousarray(v) for k, v in arrays.items()},
                metadata={"certframe.certificate": json.dumps(header, sort_keys=True)})


def _parquet(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return buffer.getvalue()


def _read_part(path: Path) -> pa.Table:
    try:
        table = pq.read_table(path, schema=LEDGER)
        if not table.num_rows:
            raise ValueError("it has no rows")
    except (pa.ArrowInvalid, OSError, ValueError) as error:
        raise _damaged(path, error) from error
    return table


def _as_bytes(image: np.ndarray) -> np.ndarray:
    """A float image as uint8 when that loses nothing, which is so for every picture file."""
    small = np.rint(image * 255).astype(np.uint8)
    exact = np.array_equal(small.astype(np.float32) / np.float32(255), image)
    return small if exact else image


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return True


def _read(path: Path, key: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    try:
        with safe_open(str(path), framework="numpy") as file:
            header = json.loads((file.metadata() or {})[key])
            return header, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise CertframeError(f"{path} is missing: run the same command again to make it") from None
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> CertframeError:
    return CertframeError(f"{path} is damaged ({' '.join(str(error).split())}): delete it and run the same command "
                          "again")


def _difference(stored: RunConfig, wanted: RunConfig) -> str:
    """The first few settings in which two runs differ."""
    a, b = _flat(stored.identity), _flat(wanted.identity)
    keys = [k for k in {**a, **b} if a.get(k) != b.get(k)]
    shown = "; ".join(f"{k} is {a.get(k, 'absent')!r} there and {b.get(k, 'absent')!r} here" for k in keys[:3])
    return shown + (f"; and {len(keys) - 3} more" if len(keys) > 3 else "")


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    items: Sequence[tuple[Any, Any]]
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, list) and any(isinstance(v, dict | list) for v in value):
        items = list(enumerate(value))
    else:
        return {prefix: value}
    result: dict[str, Any] = {}
    for key, inner in items:
        result |= _flat(inner, f"{prefix}.{key}" if prefix else str(key))
    return result
