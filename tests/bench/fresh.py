"""Seconds and memory of a piece of work in a fresh process, under limits of time and memory."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

LIMIT_BYTES = 8 * 2**30


def row(*cells: Any) -> str:
    """A row of a Markdown table."""
    return "| " + " | ".join(map(str, cells)) + " |"


def head(*names: str) -> list[str]:
    """The first two rows of a Markdown table: a text, then numbers."""
    return [row(*names), row("---", *["---:"] * (len(names) - 1))]


def resident() -> tuple[int, int]:
    """Resident memory of this process now and at most so far, in bytes.

    What `getrusage` calls its most begins with that of the process which started this one.
    """
    found = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("Vm"))
    return tuple(int(found[name].split()[0]) * 1024 for name in ("VmRSS", "VmHWM"))  # type: ignore[return-value]


def forget_peak() -> None:
    """Begin to count the most resident memory anew, at what is resident now."""
    Path("/proc/self/clear_refs").write_text("5")


def bounded(more: int = LIMIT_BYTES) -> None:
    """Allow this process so many bytes of address space beyond what it has."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * os.sysconf("SC_PAGE_SIZE") + more
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def forked(work: Callable[..., Any], *arguments: Any, seconds: float = 60.0) -> Any:
    """What `work(*arguments)` returns in a fork of this process; or why it returned nothing: "time", "memory".

    The fork shares what is imported, so that a point costs no imports and its memory begins behind them. Call it before this
    process computes anything with several threads: a fork has one.
    """
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe(duplex=False)

    def run() -> None:
        try:
            there.send(work(*arguments))
        except (MemoryError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and not any(w in str(error) for w in ("memory", "alloc")):
                raise
            there.send("memory")

    process = context.Process(target=run)
    begin = time.perf_counter()
    process.start()
    there.close()
    found: Any = "time"
    try:
        if here.poll(seconds - (time.perf_counter() - begin)):
            found = here.recv()
    except EOFError:
        found = "failed"
    if process.is_alive() and isinstance(found, str) and process.pid:
        os.kill(process.pid, signal.SIGKILL)
    process.join()
    if found == "failed":
        # The kernel ends a process that takes too much memory.
        if process.exitcode == -signal.SIGKILL:
            return "memory"
        raise RuntimeError(f"exit {process.exitcode}")
    return found
