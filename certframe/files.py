"""Files that are complete or absent, and content hashes."""

from __future__ import annotations

import errno
import hashlib
import os
import tempfile
from pathlib import Path

from certframe.errors import CertframeError

HALF_WRITTEN = ".*.part"
"""The names of files that are being written, or were when their process was killed."""


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file under a temporary name, flush it to the disk and rename it; creates the folder when needed.

    Raises:
        CertframeError: the disk is full or the place cannot be written; in one line.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            Path(temporary).chmod(0o644)
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        _sync_directory(path.parent)
    except OSError as error:
        raise disk_error(error, path) from error


def disk_error(error: OSError, path: Path) -> CertframeError:
    """The one-line form of an operating-system error about a file of a run."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return CertframeError(f"no space left while writing {path}: free some space and run the same command again; "
                              "finished work is kept")
    return CertframeError(f"cannot write {path}: {error.strerror or error}")


def _sync_directory(directory: Path) -> None:
    if os.name != "posix":
        return
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256(data: bytes) -> str:
    """Hexadecimal SHA-256."""
    return hashlib.sha256(data).hexdigest()
