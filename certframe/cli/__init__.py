"""The command line: one module per command. Nothing here imports torch before a command needs it."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from certframe.cli.app import app
from certframe.errors import CertframeError

__all__ = ["app", "main"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit.

    Exit codes: 0 done, 1 failed, 2 wrong use (nothing was written), 3 a gate of --fail-under was not met, 130 stopped
    by the user.
    """
    try:
        app(args=list(arguments) if arguments is not None else None, prog_name="certframe")
    except CertframeError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        sys.exit(130)
