"""What the commands share: options, progress, and a stop that loses nothing."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer

import certframe

if TYPE_CHECKING:
    from pathlib import Path

    from rich.progress import Progress

Json = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, … or auto.")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of all randomness.")]


class Stop:
    """Turns Ctrl-C and SIGTERM into a wish that is asked for between two steps; a second one interrupts at once."""

    def __init__(self) -> None:
        self.wished = False

    @contextmanager
    def watched(self) -> Iterator[None]:
        """While this is open, signals set `wished`."""
        def note(signum: int, frame: FrameType | None) -> None:
            if self.wished:
                raise KeyboardInterrupt
            self.wished = True
        before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def progress(*, quiet: bool) -> Progress:
    """A bar on standard error."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    return Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
                    TimeRemainingColumn(compact=True), console=Console(stderr=True, quiet=quiet), transient=True,
                    disable=quiet)


def write_json(path: Path, value: Any) -> None:
    """Write a file of JSON; it is complete or absent."""
    certframe.write_atomic(path, as_text(value).encode())


def as_text(value: Any) -> str:
    """JSON with an end of line; NaN, which JSON does not have, becomes null."""
    return json.dumps(_clean(value), indent=2, ensure_ascii=False) + "\n"


def _clean(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _clean(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_clean(inner) for inner in value]
    return None if isinstance(value, float) and value != value else value


def options_of(model: type[Any], **given: Any) -> Any:
    """Options from the command line, checked.

    Raises:
        UsageError: a value is not allowed; names the option.
    """
    import pydantic
    try:
        return model.model_validate(given)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        message = f"{first['msg'][:1].lower()}{first['msg'][1:]}"
        raise certframe.UsageError(f"--{name.replace('_', '-')} = {given[name]!r}: {message}") from error


def device_of(name: str) -> Any:
    """The torch device of a name.

    Raises:
        UsageError: it is not there.
    """
    import torch
    if name == "auto":
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        first = " ".join(str(error).split()).split(". ")[0]
        raise certframe.UsageError(f"device {name!r} is not there ({first}): use --device auto") from error
    return device
