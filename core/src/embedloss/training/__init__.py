"""Training: settings, the step module, and the trainer. Names are loaded on first use."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from embedloss.training.config import RunConfig
    from embedloss.training.run import RunResult, run_training
    from embedloss.training.step import TrainingStep
    from embedloss.training.trainer import Trainer, TrainingArguments

_LAZY = {
    "RunConfig": "config",
    "RunResult": "run",
    "run_training": "run",
    "TrainingStep": "step",
    "Trainer": "trainer",
    "TrainingArguments": "trainer",
}
__all__ = ["RunConfig", "RunResult", "Trainer", "TrainingArguments", "TrainingStep", "run_training"]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(f"embedloss.training.{_LAZY[name]}"), name)
    raise AttributeError(f"module 'embedloss.training' has no attribute '{name}'")
