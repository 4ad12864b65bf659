"""The Python API for a notebook: certify one image, or carry out a run."""

from certframe.interactive.certify import CertifiedExplanation, certify
from certframe.interactive.run import run

__all__ = ["CertifiedExplanation", "certify", "run"]
