"""Memory that glibc keeps after it was freed."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from functools import cache


@cache
def _malloc_trim() -> Callable[[int], int] | None:
    try:
        return ctypes.CDLL(None).malloc_trim if sys.platform.startswith("linux") else None
    except (OSError, AttributeError):  # another C library
        return None


class Trim:
    """Gives the pages of freed blocks back to the system now and then.

    glibc keeps freed blocks and serves the next allocations from them, which is fast. But what outlives a chunk, embeddings and
    the graph, splits the free blocks, the next chunk's activations no longer fit, and the process grows by megabytes a chunk.
    To map every large block on its own instead (`M_MMAP_THRESHOLD`) costs a quarter of a step: each page is cleared anew.

    Args:
        every: padded tokens between two times.
    """

    def __init__(self, every: int) -> None:
        self.every, self._seen = every, 0

    def __call__(self, tokens: int) -> None:
        """Count the tokens of a chunk; give back if it is time."""
        self._seen += tokens
        if self._seen >= self.every and (trim := _malloc_trim()) is not None:
            self._seen = 0
            trim(0)
