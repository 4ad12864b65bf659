"""ImageNet's synsets and the class indices that models use: their place in sorted order."""

from __future__ import annotations

import re
from pathlib import Path

from certframe.errors import UsageError

SYNSET = re.compile(r"n\d{8}")
"""How a synset is written."""


def synset_index(path: Path) -> dict[str, int]:
    """Synset → class index, from a file whose lines begin with a synset, in the order of the indices.

    Raises:
        UsageError: there is no such file, or a line begins with something else.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"'{path}' cannot be read ({error}): give a file that lists the synsets, such as ImageNet's "
                         "LOC_synset_mapping.txt") from error
    order: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        found = SYNSET.match(line.strip())
        if found is None or found.group() in order:
            raise UsageError(f"'{path}' line {number}: '{line.strip()[:30]}' does not begin with a new synset such as "
                             "n01440764")
        order[found.group()] = len(order)
    if not order:
        raise UsageError(f"'{path}' lists no synset: give a file such as ImageNet's LOC_synset_mapping.txt")
    return order
