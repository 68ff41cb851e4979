"""The optional package."""

from __future__ import annotations

from typing import Any

from embedloss.errors import EmbedlossError


def sentence_transformers() -> Any:
    """The package sentence-transformers; E404 with the command that installs it where it is missing."""
    try:
        import sentence_transformers as package
    except ImportError as exception:
        raise EmbedlossError(
            "E404", f"this needs sentence-transformers ({exception}). Type: pip install 'embedloss[sentence-transformers]'"
        ) from exception
    return package
