"""Errors that certframe raises on purpose.

Every message is one line that names the thing, the value and the way out; the CLI prints it without a traceback and
exits with the class's `exit_code`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class CertframeError(Exception):
    """Something went wrong while working (exit code 1)."""

    exit_code = 1


class PluginError(CertframeError):
    """A plugin raised something of its own (exit code 1)."""


class UsageError(CertframeError):
    """What was asked for is wrong: a name, an option, a file, a value (exit code 2). Nothing has been written."""

    exit_code = 2


def suggest(word: str, known: Iterable[str]) -> str:
    """A ``; did you mean …?`` clause for the closest of the `known` words, or an empty string."""
    close = difflib.get_close_matches(word, list(known), n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(repr(c) for c in close)}?" if close else ""


def one_line(error: BaseException) -> str:
    """The text of any exception, folded into one line and prefixed with its type unless it is one of ours."""
    text = " ".join(str(error).split()) or "no message"
    return text if isinstance(error, CertframeError) else f"{type(error).__name__}: {text}"
