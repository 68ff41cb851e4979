"""Adapters: our losses in the trainers of sentence-transformers, its models and losses in ours.

Nothing here imports sentence-transformers before it is used; it is the extra `embedloss[sentence-transformers]`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from embedloss.adapters.foreign import from_sentence_transformers_loss
    from embedloss.adapters.models import wrap_model
    from embedloss.adapters.sentence_transformers import for_sentence_transformers

_LAZY = {
    "for_sentence_transformers": "embedloss.adapters.sentence_transformers",
    "from_sentence_transformers_loss": "embedloss.adapters.foreign",
    "wrap_model": "embedloss.adapters.models",
}

__all__ = ["for_sentence_transformers", "from_sentence_transformers_loss", "wrap_model"]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'embedloss.adapters' has no attribute '{name}'")
