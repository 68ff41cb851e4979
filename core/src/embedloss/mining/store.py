"""Arrays on disk that are filled block by block, so that an interrupted run goes on where it stopped."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

Progress = Callable[[str, int, int], None]
"""Called with what is done, how much of it, and of how much."""


def silent(stage: str, done: int, total: int) -> None:
    """No progress shown."""


def key(*parts: Any) -> str:
    """A short name for what an array depends on: texts, numbers, arrays, or lists of texts."""
    digest = hashlib.blake2b(digest_size=10)
    for part in parts:
        if isinstance(part, np.ndarray):
            digest.update(np.ascontiguousarray(part).tobytes())
        else:
            for text in part if isinstance(part, (list, tuple)) else (str(part),):
                raw = str(text).encode("utf-8", "surrogatepass")
                digest.update(len(raw).to_bytes(8, "little") + raw)
        digest.update(b"\xff")
    return digest.hexdigest()


def filled(
    folder: Path,
    name: str,
    shape: tuple[int, ...],
    dtype: Any,
    compute: Callable[[int, int], Any],
    *,
    block: int,
    stage: str,
    progress: Progress = silent,
) -> np.ndarray:
    """An array in a file, mapped; rows that an earlier call has computed are not computed again.

    Args:
        folder: where the file is; made if it is missing.
        name: of the file. It must change with everything that the rows depend on; see `key`.
        shape: rows first.
        dtype: of the array.
        compute: (begin, end) -> these rows.
        block: rows a call of `compute`.
        stage: for `progress`.
        progress: told after every block.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path, counter = folder / f"{name}.npy", folder / f"{name}.done"
    array, done = _opened(path, counter, shape, np.dtype(dtype))
    progress(stage, done, shape[0])
    for begin in range(done, shape[0], block):
        end = min(begin + block, shape[0])
        array[begin:end] = compute(begin, end)
        array.flush()  # the rows are on disk before the count says so
        staged = counter.with_suffix(".writing")
        staged.write_text(str(end))
        os.replace(staged, counter)
        progress(stage, end, shape[0])
    return array


def _opened(path: Path, counter: Path, shape: tuple[int, ...], dtype: np.dtype[Any]) -> tuple[np.memmap[Any, Any], int]:
    with suppress(OSError, ValueError):  # missing or damaged: it is made anew
        found = np.lib.format.open_memmap(path, mode="r+")
        done = int(counter.read_text())
        if found.shape == shape and found.dtype == dtype and 0 <= done <= shape[0]:
            return found, done
    with suppress(FileNotFoundError):
        counter.unlink()
    return np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape), 0


def remove(folder: Path) -> None:
    """Delete the arrays of a folder, and the folder if nothing else is in it."""
    names: Iterable[Path] = folder.iterdir() if folder.is_dir() else ()
    for path in list(names):
        if path.suffix in (".npy", ".done", ".writing"):
            path.unlink()
    with suppress(OSError):
        folder.rmdir()
