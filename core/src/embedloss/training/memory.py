"""Memory of a long run on the CPU."""

from __future__ import annotations

import ctypes
import sys

M_MMAP_THRESHOLD = -3


def return_freed_memory(threshold: int = 1 << 20) -> bool:
    """Make glibc give large freed blocks back to the system at once.

    By default it keeps them for later, so that the peak of a run with many chunks grows with their number although only one
    chunk's activations are alive. Call it before the first large allocation.

    Args:
        threshold: bytes from which on a block is mapped on its own.

    Returns:
        True if the C library has this switch.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        return bool(ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, threshold))
    except (OSError, AttributeError):
        return False
