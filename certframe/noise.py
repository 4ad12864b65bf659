"""Smoothing noise and attributor randomness that can be replayed anywhere.

Every noisy copy of every image has a stream of random bits of its own: the counter-based generator Philox4x64-10
(Salmon et al. 2011, as numpy provides it), keyed on a hash of the run's seed and the image's content, with the index
of the copy in the counter. So copy 731 of an image can be drawn without drawing the 730 before it, in any process, in
any order and in any batch, and two images never share a stream. Bits become Gaussian numbers by the Box–Muller
transform on the device that needs them; the bits are the same on every machine, the float32 numbers agree up to the
last digit of that device's log and cos.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from torch import Tensor

STREAM = "philox4x64-boxmuller-1"
"""Name of the definition of the stream; tallies of different definitions refuse to merge."""


def image_hash(image: Tensor) -> str:
    """SHA-256 of an image's content, (C,H,W) float32: its shape and its bytes."""
    array = np.ascontiguousarray(image.detach().cpu().numpy(), dtype="<f4")
    digest = hashlib.sha256(repr(array.shape).encode())
    digest.update(array.tobytes())
    return digest.hexdigest()


def stream_key(*parts: object) -> tuple[int, int]:
    """A 128-bit Philox key from the parts' text; different parts give different keys (up to a hash collision)."""
    digest = hashlib.sha256("\x1f".join(map(str, (STREAM, *parts))).encode()).digest()
    return int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:16], "little")


def _bits(key: tuple[int, int], copy: int) -> np.random.Philox:
    # The copy index sits in a high word of the 256-bit counter: a copy would have to use 2^64 blocks to meet the next.
    return np.random.Philox(key=np.array(key, dtype=np.uint64), counter=np.array([0, copy, 0, 0], dtype=np.uint64))


def _box_muller(bits: Tensor) -> Tensor:
    """(B,2,half) int32 random bits → (B, 2·half) standard normal float32, on the device of the bits.

    The radius uses 31 bits in (0, 1], so tails reach 6.6 σ; the angle uses all 32.
    """
    radius = torch.bitwise_and(bits[:, 0], 0x7FFFFFFF).to(torch.float32).add_(0.5).mul_(2.0**-31)
    radius = radius.clamp_(max=1.0).log_().mul_(-2.0).sqrt_()
    angle = bits[:, 1].to(torch.float32).mul_(math.pi * 2.0**-31)
    out = torch.empty((bits.shape[0], 2, bits.shape[2]), dtype=torch.float32, device=bits.device)
    torch.mul(radius, torch.cos(angle), out=out[:, 0])
    torch.mul(radius, angle.sin_(), out=out[:, 1])
    return out.flatten(1)


class GaussianNoise:
    """The N(0, I) noise of one image; multiply by σ.

    Args:
        seed: the run's seed.
        image: content hash of the image, from `image_hash`.
    """

    def __init__(self, seed: int, image: str) -> None:
        self._key = stream_key("noise", seed, image)

    def draw(self, start: int, stop: int, shape: Sequence[int], device: torch.device | str = "cpu") -> Tensor:
        """Copies start, …, stop − 1 of the noise, (stop − start, *shape) float32 on `device`."""
        size = math.prod(shape)
        half = (size + 1) // 2
        raw = np.empty((stop - start, half), dtype=np.uint64)
        for row, copy in enumerate(range(start, stop)):
            raw[row] = _bits(self._key, copy).random_raw(half)
        bits = torch.from_numpy(raw.view(np.int32).reshape(stop - start, 2, half))
        if torch.device(device).type == "cuda":
            bits = bits.pin_memory()
        normal = _box_muller(bits.to(device, non_blocking=True))
        return normal[:, :size].reshape(stop - start, *shape)


class CopyRng:
    """Randomness for an attributor, one independent stream per copy (protocol `certframe.Rng`).

    Args:
        seed: the run's seed.
        image: content hash of the image.
        salt: whatever makes the method's stream its own: its name and options.
        copies: the index of each copy in the batch; the clean image uses −1.
        device: where the draws are wanted.
    """

    def __init__(self, seed: int, image: str, salt: str, copies: Sequence[int],
                 device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self._seed, self._salt = seed, salt
        key = stream_key("rng", seed, image, salt)
        # Copy −1 (the clean image) and the copies 0, 1, … get the counters 0, 1, 2, …
        self._rows = [_bits(key, copy + 1) for copy in copies]

    def _raw(self, size: int) -> np.ndarray:
        return np.stack([row.random_raw(size) for row in self._rows])

    def normal(self, *shape: int) -> Tensor:
        """Standard normal float32 draws of shape (B, *shape)."""
        size = math.prod(shape)
        half = (size + 1) // 2
        bits = torch.from_numpy(self._raw(half).view(np.int32).reshape(len(self._rows), 2, half))
        return _box_muller(bits.to(self.device))[:, :size].reshape(len(self._rows), *shape)

    def uniform(self, *shape: int) -> Tensor:
        """Float32 draws from [0, 1), multiples of 2^−24, of shape (B, *shape)."""
        raw = (self._raw(math.prod(shape)) >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24)
        return torch.from_numpy(raw).reshape(-1, *shape).to(self.device)

    def integers(self, high: int, *shape: int) -> Tensor:
        """int64 draws from {0, …, high − 1} of shape (B, *shape); high < 2^32, bias below 2^−32."""
        raw = ((self._raw(math.prod(shape)) >> np.uint64(32)) * np.uint64(high)) >> np.uint64(32)
        return torch.from_numpy(raw.astype(np.int64)).reshape(-1, *shape).to(self.device)

    @property
    def shared(self) -> CopyRng:
        """A fresh stream of one row that is the same for all copies and images of the run."""
        return CopyRng(self._seed, "shared", self._salt, [-1], self.device)
