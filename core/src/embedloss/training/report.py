"""What a run writes and shows while it goes on: metrics.jsonl, a progress bar, and small tables."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import transformers
from tqdm.auto import tqdm

from embedloss.reporting.runs import read_entries


class MetricsFile(transformers.TrainerCallback):
    """Appends every log entry to metrics.jsonl; on resume, entries after the checkpoint are removed first."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Forget what an interrupted run logged after the checkpoint, which holds what was logged up to it."""
        if state.is_world_process_zero and self.path.is_file():
            entries, history = read_entries(self.path), state.log_history
            before = sum(e["step"] == 0 for e in entries) - sum(e["step"] == 0 for e in history)  # logged before training
            staged = self.path.with_suffix(".writing")
            staged.write_text("".join(json.dumps(e) + "\n" for e in entries[: before + len(history)]), encoding="utf-8")
            os.replace(staged, self.path)

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, float] | None = None, **kwargs: Any) -> None:
        """One line an entry; a NaN is written as null."""
        if state.is_world_process_zero and logs:
            clean = {k: v if not isinstance(v, float) or math.isfinite(v) else None for k, v in logs.items()}
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": state.global_step, **clean}) + "\n")


class Progress(transformers.TrainerCallback):
    """A progress bar with the latest loss; prints no dictionaries."""

    def __init__(self) -> None:
        self.bar: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Open the bar where an interrupted run stopped."""
        if state.is_world_process_zero:
            self.bar = tqdm(total=state.max_steps, initial=state.global_step, desc="training", unit="step", dynamic_ncols=True)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """One step."""
        if self.bar is not None:
            self.bar.update(1)

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, float] | None = None, **kwargs: Any) -> None:
        """Show the loss."""
        if self.bar is not None and logs and "loss" in logs:
            self.bar.set_postfix_str(f"loss {logs['loss']:.4f}")

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Close the bar."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A small text table, first column left, others right."""
    cells = [list(header), *[list(r) for r in rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    lines = [
        "  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        for row in cells
    ]
    return "\n".join([lines[0], "  ".join("-" * w for w in widths), *lines[1:]])
