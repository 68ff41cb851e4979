"""What is needed to repeat a run: settings, versions, fingerprints of the data, state of the source tree."""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
import subprocess
from dataclasses import asdict
from pathlib import Path
from typing import Any

from embedloss.training.config import RunConfig

PACKAGES = ("embedloss", "torch", "transformers", "tokenizers", "datasets", "accelerate", "numpy")


def fingerprint(path: str | None) -> str | None:
    """SHA-256 of a data file, or of the names and contents of a folder's files; None for a hub id."""
    if path is None or not Path(path).exists():
        return None
    digest = hashlib.sha256()
    root = Path(path)
    for file in [root] if root.is_file() else sorted(p for p in root.rglob("*") if p.is_file()):
        digest.update(file.name.encode())
        with file.open("rb") as stream:
            for block in iter(lambda: stream.read(1 << 20), b""):
                digest.update(block)
    return digest.hexdigest()


def git_state() -> dict[str, Any] | None:
    """Commit of the current folder and whether it has changes; None outside a git checkout."""
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=True).stdout
        changed = subprocess.run(["git", "status", "--porcelain"], capture_output=True, text=True, timeout=5, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": commit.strip(), "changed": bool(changed.strip())}


def _prints(key: str, sources: Any) -> dict[str, str | None]:
    """The fingerprint of a path, or of every named path: {"data.nli": ...}."""
    if not isinstance(sources, dict):
        return {key: fingerprint(sources)}
    return {f"{key}.{name}": fingerprint(own["path"] if isinstance(own, dict) else own) for name, own in sources.items()}


def manifest(config: RunConfig, expression: str | None, distributions: list[str]) -> dict[str, Any]:
    """The manifest of a run; `embedloss train manifest.json` repeats it.

    Args:
        config: the resolved settings.
        expression: the loss with all its parameters.
        distributions: of the plugins that the loss comes from.
    """
    versions = {}
    for name in (*PACKAGES, *distributions):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "config": asdict(config),
        "expression": expression,
        "data": {**_prints("data", config.data), **_prints("eval_data", config.eval_data)},
        "versions": {"python": platform.python_version(), **versions},
        "machine": platform.platform(),
        "git": git_state(),
    }
