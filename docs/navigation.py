"""Hook of mkdocs: the section "Results" of the navigation lists every page of docs/results."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def on_config(config: Any) -> Any:
    """Fill the section."""
    [section] = [entry for entry in config["nav"] if "Results" in entry]
    section["Results"] = sorted(f"results/{page.name}" for page in (Path(config["docs_dir"]) / "results").glob("*.md"))
    return config
