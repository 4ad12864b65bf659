"""Keep glibc from handing large blocks back to the system after each use.

A model's forward pass on a CPU allocates and frees the same large activations again and again. By default glibc returns
every block above a threshold to the kernel at once, and the page faults of getting it back can cost more than the
convolutions. Raising the thresholds at process start avoids that; the memory stays with the process. The command line
does this for runs on a CPU; importing certframe never does.
"""

from __future__ import annotations

import ctypes
import os
import platform

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
_KEEP = 1 << 30
_PAD = 64 << 20


def tune_allocator() -> bool:
    """Raise the mmap and trim thresholds to 1 GiB; False where the C library is not glibc and nothing was done."""
    if platform.libc_ver()[0] != "glibc":
        return False
    for name, value in (("MMAP_THRESHOLD", _KEEP), ("TRIM_THRESHOLD", 2 * _KEEP - 1), ("TOP_PAD", _PAD)):
        os.environ.setdefault(f"MALLOC_{name}_", str(value))  # for processes that work for this one
    mallopt = ctypes.CDLL(None).mallopt
    return all(mallopt(parameter, value) == 1 for parameter, value in
               ((_M_MMAP_THRESHOLD, _KEEP), (_M_TRIM_THRESHOLD, 2 * _KEEP - 1), (_M_TOP_PAD, _PAD)))
