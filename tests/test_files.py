from __future__ import annotations

import errno
import hashlib
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from certframe.errors import CertframeError
from certframe.files import disk_error, sha256, write_atomic


def files(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_content_is_written_and_folders_are_made(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "file.bin"
    write_atomic(path, b"\0one\n\xff")
    assert path.read_bytes() == b"\0one\n\xff"
    write_atomic(path, b"")
    assert path.read_bytes() == b""
    assert files(path.parent) == ["file.bin"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


@pytest.fixture
def fail(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let a function of `os` fail."""
    def install(name: str, number: int) -> None:
        def raising(*args: Any, **kwargs: Any) -> Any:
            raise OSError(number, os.strerror(number))
        monkeypatch.setattr(os, name, raising)
    return install


@pytest.mark.parametrize("where", ["fsync", "replace"])
@pytest.mark.parametrize(("number", "said"), [
    (errno.ENOSPC, "no space left"), (errno.EDQUOT, "no space left"), (errno.EIO, "Input/output error"),
    (errno.EROFS, "Read-only file system"),
])
def test_a_failure_is_one_line_and_leaves_what_was_there(tmp_path: Path, fail: Callable[..., None], where: str,
                                                         number: int, said: str) -> None:
    path = tmp_path / "file"
    write_atomic(path, b"old")
    fail(where, number)
    with pytest.raises(CertframeError, match=said) as caught:
        write_atomic(path, b"new")
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == b"old"
    assert files(tmp_path) == ["file"]


def test_an_interruption_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*args: Any) -> None:
        raise KeyboardInterrupt
    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_atomic(tmp_path / "file", b"new")
    assert files(tmp_path) == []


def test_a_kill_at_the_worst_moment_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomic(path, b"old")
    program = ("import os, signal, sys; from pathlib import Path; from certframe.files import write_atomic\n"
               "os.replace = lambda *a: os.kill(os.getpid(), signal.SIGKILL)\n"
               "write_atomic(Path(sys.argv[1]), b'x' * 100000)")
    done = subprocess.run([sys.executable, "-c", program, str(path)], check=False)
    assert done.returncode == -9
    assert path.read_bytes() == b"old"


def test_data_are_on_the_disk_before_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Written, synced, renamed, and the folder synced: in this order."""
    order: list[str] = []
    fsync, replace = os.fsync, os.replace

    def synced(handle: int) -> None:
        kind = "folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else f"file of {os.fstat(handle).st_size}"
        order.append(f"sync {kind}")
        fsync(handle)

    def renamed(source: Any, target: Any) -> None:
        order.append("rename")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", renamed)
    write_atomic(tmp_path / "file", b"12345")
    assert order == ["sync file of 5", "rename", "sync folder"]


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(CertframeError, match="cannot write"):
        write_atomic(tmp_path / "file" / "below", b"y")
    (tmp_path / "folder").mkdir()
    with pytest.raises(CertframeError, match="cannot write"):
        write_atomic(tmp_path / "folder", b"y")
    assert files(tmp_path) == ["file", "folder"]


def test_disk_errors_say_what_to_do() -> None:
    full = disk_error(OSError(errno.ENOSPC, "No space left on device"), Path("run/x"))
    assert str(full) == ("no space left while writing run/x: free some space and run the same command again; finished "
                         "work is kept")
    assert full.exit_code == 1
    assert str(disk_error(OSError("odd"), Path("run/x"))) == "cannot write run/x: odd"


def test_sha256() -> None:
    assert sha256(b"abc") == hashlib.sha256(b"abc").hexdigest()
