"""Progress of a run in a terminal, and its interruption."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Iterator
from types import FrameType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:,.1f}/s" if task.speed else "", style="progress.data.speed")


class Terminal:
    """A listener (`certframe.pipeline.Listener`) that shows a bar with rate and remaining time on standard error."""

    def __init__(self, *, quiet: bool) -> None:
        self.console = Console(stderr=True, quiet=quiet)
        self._progress = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("noisy copies"), _Rate(),
            TimeRemainingColumn(compact=True), console=self.console, transient=True, disable=quiet)
        self._task = self._progress.add_task("preparing", total=None, visible=False)

    def __enter__(self) -> Terminal:
        self._progress.__enter__()
        return self

    def __exit__(self, *exc: object) -> None:
        self._progress.__exit__(None, None, None)

    def begin(self, copies: int, done: int) -> None:
        """Show the bar; what was done before does not count as speed."""
        self._progress.reset(self._task, total=copies, completed=done, visible=True)

    def advance(self, copies: int) -> None:
        """Move the bar."""
        self._progress.advance(self._task, copies)

    def image(self, name: str) -> None:
        """Name the image under way."""
        self._progress.update(self._task, description=name)

    def note(self, message: str) -> None:
        """Print a line above the bar."""
        self.console.print(f"note: {message}", highlight=False, markup=False)


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Make SIGTERM an interruption like Ctrl-C, so that counts under way are written before the process ends."""
    def stop(signum: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def warn(message: str) -> None:
    """One line on standard error."""
    print(f"note: {message}", file=sys.stderr)
