"""Comparing tensors of float32 arithmetic."""

from __future__ import annotations

from torch import Tensor

from certframe.testing.kit import require

TOLERANCE = 1e-4
"""Relative to the largest value: what another order of float32 sums, in a batch of another size, may change."""
DEVICE_TOLERANCE = 1e-3
"""The same between two devices."""


def require_close(found: Tensor, expected: Tensor, message: str, tolerance: float = TOLERANCE) -> None:
    """Require that no value is further off than the tolerance times the largest expected one."""
    require(found.shape == expected.shape, f"{message}: shape {tuple(found.shape)} instead of {tuple(expected.shape)}")
    found, expected = found.detach().cpu(), expected.detach().cpu()
    deviation = float((found - expected).abs().max()) / max(float(expected.abs().max()), 1e-30)
    require(deviation <= tolerance, f"{message}: off by {deviation:.2g} of the largest value (allowed: {tolerance:g})")
