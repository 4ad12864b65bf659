"""The Python API for a notebook: certify one image, plan or carry out a run."""

from certframe.interactive.one_image import CertifiedExplanation, certify
from certframe.interactive.whole_run import plan, run

__all__ = ["CertifiedExplanation", "certify", "plan", "run"]
