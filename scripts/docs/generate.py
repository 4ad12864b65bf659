"""Write the pages of docs/reference that are made from the code, or check that they are up to date.

    python scripts/docs/generate.py            # write docs/reference/{cli,options,hooks}.md
    python scripts/docs/generate.py --check    # exit code 1 and a list of the stale pages, nothing is written

The pages describe the kernel and the first-party plugins (the distributions under plugins/), which have to be
installed: ``pip install -r requirements.txt``.
"""

from __future__ import annotations

import argparse
import sys
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import pages_cli
import pages_hooks
import pages_options

ROOT = Path(__file__).resolve().parents[2]
PAGES: dict[str, Callable[[Sequence[str]], str]] = {
    "docs/reference/cli.md": pages_cli.page,
    "docs/reference/options.md": pages_options.page,
    "docs/reference/hooks.md": lambda _: pages_hooks.page(),
}


def first_party() -> list[str]:
    """The names of the distributions of this repository, the kernel first."""
    files = [ROOT / "pyproject.toml", *sorted(ROOT.glob("plugins/*/pyproject.toml"))]
    return [tomllib.loads(file.read_text(encoding="utf-8"))["project"]["name"] for file in files]


def render() -> dict[str, str]:
    """The generated pages: path relative to the repository → content."""
    distributions = first_party()
    return {path: make(distributions) for path, make in PAGES.items()}


def stale() -> list[str]:
    """The pages whose files differ from what the code says now."""
    return [path for path, text in render().items()
            if not (ROOT / path).exists() or (ROOT / path).read_text(encoding="utf-8") != text]


def main() -> int:
    """Write or check; the exit code."""
    parser = argparse.ArgumentParser(description="Write the generated pages of the documentation.")
    parser.add_argument("--check", action="store_true", help="only check; exit code 1 when a page is stale")
    if parser.parse_args().check:
        old = stale()
        for path in old:
            print(f"{path} is stale: run 'python scripts/docs/generate.py'", file=sys.stderr)
        return 1 if old else 0
    for path, text in render().items():
        (ROOT / path).parent.mkdir(parents=True, exist_ok=True)
        (ROOT / path).write_text(text, encoding="utf-8")
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
