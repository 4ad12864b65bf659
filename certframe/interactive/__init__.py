"""The Python API for a notebook: certify one image, or carry out a run."""

from certframe.interactive.one_image import CertifiedExplanation, certify
from certframe.interactive.whole_run import run

__all__ = ["CertifiedExplanation", "certify", "run"]
