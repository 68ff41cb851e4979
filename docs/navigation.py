"""Hook of mkdocs: the section "Results" of the navigation lists every page of docs/results, whose wide tables get the room
of the table of contents, as on pages without sections.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any


def on_config(config: Any) -> Any:
    """Fill the section."""
    [section] = [entry for entry in config["nav"] if "Results" in entry]
    section["Results"] = sorted(f"results/{page.name}" for page in (Path(config["docs_dir"]) / "results").glob("*.md"))
    return config


def on_page_content(html: str, page: Any, **kwargs: Any) -> str:
    """Widen pages of results, and those without sections."""
    if page.file.src_uri.startswith("results/") or not any(heading.children for heading in page.toc):
        page.meta.setdefault("hide", ["toc"])
    return html
