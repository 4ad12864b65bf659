"""The scripts of the reproductions are modules of their own folder; they use the studies' tables."""

from __future__ import annotations

import sys
from pathlib import Path

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
sys.path[:0] = [str(SCRIPTS / "reproduction"), str(SCRIPTS / "studies")]
