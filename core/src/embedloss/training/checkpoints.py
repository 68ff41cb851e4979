"""Checkpoint folders: written beside the others, listed, renamed when whole; found again, or skipped with a reason."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from embedloss.errors import EmbedlossError

STAGING = ".saving"
CONTENTS = "contents.json"
STATE = "trainer_state.json"


def _number(folder: Path) -> int | None:
    tail = folder.name.removeprefix("checkpoint-")
    return int(tail) if tail != folder.name and tail.isdigit() and folder.is_dir() else None


def checkpoints(run: Path) -> list[Path]:
    """All folders of a run that are named as checkpoints, whole or not, oldest step first."""
    if not run.is_dir():
        return []
    found = [(number, p) for p in run.iterdir() if (number := _number(p)) is not None]
    return [p for _, p in sorted(found)]


def seal(folder: Path, **facts: Any) -> None:
    """List the files and their sizes in contents.json, after all of them have reached the disk.

    Args:
        folder: everything else is written.
        facts: kept beside the list, see `facts_of`.
    """
    sizes = {}
    for file in sorted(p for p in folder.rglob("*") if p.is_file() and p.name != CONTENTS):
        with file.open("rb") as stream:
            os.fsync(stream.fileno())
        sizes[file.relative_to(folder).as_posix()] = file.stat().st_size
    text = json.dumps({"files": sizes, **facts}, indent=2) + "\n"
    with (folder / CONTENTS).open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())


def facts_of(folder: Path) -> dict[str, Any]:
    """What `seal` wrote; empty where there is nothing that can be read."""
    try:
        found = json.loads((folder / CONTENTS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def fault(folder: Path) -> str | None:
    """Why a checkpoint is not whole, or None where it is: every file is there in the size that was written."""
    facts = facts_of(folder)
    if not isinstance(facts.get("files"), dict):
        return f"it has no readable {CONTENTS}, which is written last"
    if STATE not in facts["files"]:
        return f"it has no {STATE}"
    for name, size in facts["files"].items():
        file = folder / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != size:
            return f"{name} has {file.stat().st_size:,} bytes of {size:,}"
    return None


def last_checkpoint(run: Path, say: Callable[[str], None] | None = None) -> Path | None:
    """The newest whole checkpoint of a run folder, or None.

    Args:
        run: the output folder.
        say: told about every newer one that is skipped, and why.
    """
    if say is not None:
        for half in checkpoints(run / STAGING):
            say(f"{half.name} was never finished: the run ended while it was written. It is skipped.")
    for folder in reversed(checkpoints(run)):
        reason = fault(folder)
        if reason is None:
            return folder
        if say is not None:
            say(f"{folder.name} is not whole ({reason}). It is skipped; you can delete it.")
    return None


def publish(staged: Path, run: Path) -> Path:
    """Rename a sealed folder to its place in the run; one of that name is replaced."""
    final, old = run / staged.name, staged.with_name(f"old-{staged.name}")
    if final.is_dir():
        final.rename(old)
    staged.rename(final)
    if os.name == "posix":
        handle = os.open(run, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    shutil.rmtree(staged.parent, ignore_errors=True)
    return final


def rotate(run: Path, limit: int | None, keep: Iterable[Path]) -> None:
    """Delete the oldest whole checkpoints down to `limit`.

    Args:
        run: the output folder.
        limit: how many whole ones may stay; None or 0 deletes nothing.
        keep: never deleted (the one just written, the best one).

    A folder that is not whole neither counts nor is deleted, so that it never displaces a good one.
    """
    if not limit:
        return
    kept = {p.resolve() for p in keep}
    whole = [p for p in checkpoints(run) if fault(p) is None]
    old = [p for p in whole if p.resolve() not in kept]
    for folder in old[: max(len(whole) - limit, 0)]:
        (folder / CONTENTS).unlink(missing_ok=True)  # so that a kill in the middle leaves nothing that looks whole
        shutil.rmtree(folder, ignore_errors=True)


def cannot_save(exception: BaseException) -> bool:
    """Whether an exception while saving means that the disk did not take the bytes, in whatever words the writer says so."""
    if isinstance(exception, OSError):
        return True
    text = str(exception)
    words = (
        "PytorchStreamWriter",
        "inline_container",
        "I/O error",
        "IoError",
        "os error",
        "No space left",
        "File too large",
        "iostream error",
    )
    return any(word in text for word in words)


def not_saved(run: Path, name: str, exception: BaseException) -> EmbedlossError:
    """E402 for a checkpoint that could not be written; says what is left and what to do."""
    kept = last_checkpoint(run)
    free = shutil.disk_usage(run if run.is_dir() else run.parent).free
    words = "the disk is full" if free < 2**20 else str(exception).strip().splitlines()[0]  # torch's words name its own files
    reason = getattr(exception, "strerror", None) or words
    left = f"The last whole checkpoint is {kept.name}" if kept is not None else "There is no whole checkpoint yet"
    repair = "the same command with --resume goes on from it" if kept is not None else "start again with --overwrite"
    return EmbedlossError(
        "E402",
        f"{name} could not be written to '{run}': {reason} ({free / 2**20:,.0f} MiB are free). Training stopped. "
        f"{left}; free some space, and {repair}.",
    )
