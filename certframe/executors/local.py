"""Work in this process, one task after the other."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from certframe import protocols
from certframe.errors import CertframeError


class Local:
    """Runs every task in this process when it is submitted; the model's own threads use the cores."""

    class Options(protocols.Options):
        """`local` has no options."""

    slots = 1

    def __init__(self, options: Options | None = None) -> None:
        self.options = options or self.Options()
        self._worker: Callable[[Any], Any] | None = None

    def start(self, factory: Callable[[], Callable[[Any], Any]]) -> None:
        """Build the worker here."""
        self._worker = factory()

    def submit(self, task: Any) -> Future[Any]:
        """Run the task now; a failure is carried by the future, an interruption is raised.

        Raises:
            CertframeError: `start` has not been called, or `close` has.
        """
        if self._worker is None:
            raise CertframeError("executor 'local' has not been started: call start() first")
        future: Future[Any] = Future()
        try:
            future.set_result(self._worker(task))
        except Exception as error:
            future.set_exception(error)
        return future

    def close(self) -> None:
        """Forget the worker, and with it the model."""
        self._worker = None
