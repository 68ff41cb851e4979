"""Train text-embedding models and rerankers; losses are plugins.

Importing this package is cheap: torch is loaded when a name that needs it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from embedloss import formats
from embedloss.errors import EmbedlossError
from embedloss.hookspecs import hookimpl
from embedloss.spec import LossSpec

if TYPE_CHECKING:
    from embedloss.adapters import for_sentence_transformers, from_sentence_transformers_loss
    from embedloss.embeddings import Embeddings
    from embedloss.encoders import Encoder, load_encoder
    from embedloss.loss import Loss, LossOutput, Modifier, ScoreLoss
    from embedloss.mining import mine
    from embedloss.registry import create_loss, list_losses
    from embedloss.training import Trainer, TrainingArguments, TrainingStep

__version__ = "0.1.0"

_LAZY = {
    "Embeddings": "embedloss.embeddings",
    "Encoder": "embedloss.encoders",
    "load_encoder": "embedloss.encoders",
    "Loss": "embedloss.loss",
    "LossOutput": "embedloss.loss",
    "Modifier": "embedloss.loss",
    "ScoreLoss": "embedloss.loss",
    "create_loss": "embedloss.registry",
    "for_sentence_transformers": "embedloss.adapters",
    "from_sentence_transformers_loss": "embedloss.adapters",
    "list_losses": "embedloss.registry",
    "mine": "embedloss.mining",
    "Trainer": "embedloss.training",
    "TrainingArguments": "embedloss.training",
    "TrainingStep": "embedloss.training",
}

__all__ = [
    "Embeddings",
    "EmbedlossError",
    "Encoder",
    "Loss",
    "LossOutput",
    "LossSpec",
    "Modifier",
    "ScoreLoss",
    "Trainer",
    "TrainingArguments",
    "TrainingStep",
    "__version__",
    "create_loss",
    "for_sentence_transformers",
    "formats",
    "from_sentence_transformers_loss",
    "hookimpl",
    "list_losses",
    "load_encoder",
    "mine",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'embedloss' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)
