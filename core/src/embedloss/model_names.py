"""Whether the name of a model can be one, before data is read or torch is loaded."""

from __future__ import annotations

import os
from pathlib import Path

from embedloss.errors import EmbedlossError

_FILES = ("modules.json", "config.json")


def check_model_name(name: str) -> None:
    """Refuse what is neither a model folder nor the possible id of a model on the hub ("name" or "owner/name").

    Args:
        name: folder or id; whether an id exists is not asked for.

    Raises:
        EmbedlossError: E301, it is a file, a folder without a model, or a path to nothing.
    """
    path = Path(name).expanduser()
    if path.is_file():
        raise EmbedlossError("E301", f"model '{name}' is a file; give the folder that holds {' or '.join(_FILES)}.")
    if path.is_dir():
        if not any((path / file).is_file() for file in _FILES):
            raise EmbedlossError("E301", f"model folder '{name}' holds neither {' nor '.join(_FILES)}.")
    elif name.startswith((".", "/", "~")) or name.count("/") > 1 or (os.sep != "/" and os.sep in name):
        raise EmbedlossError("E301", f"model folder '{name}' does not exist.")
