"""What a finished run leaves for its readers: a model card, a picture of its curves, neighbours before and after."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedloss.reporting.runs import NEIGHBOURS_FILE, is_count, read_run
from embedloss.training.config import RunConfig

if TYPE_CHECKING:
    from embedloss.training.data_sets import Source
    from embedloss.training.run import Prepared, RunResult

# Settings that a reader of the card wants to know; others are in run.yaml.
TOLD = (
    "epochs", "max_steps", "batch_size", "gradient_accumulation", "learning_rate", "loss_learning_rate", "scheduler", "warmup",
    "weight_decay", "max_grad_norm", "precision", "lora", "max_length", "sampler", "recompute", "gather", "seed",
)  # fmt: skip


def draw(out: Path, picture: Path, say: Callable[[str], None]) -> None:
    """Write the picture; a sentence and no more where it cannot be drawn."""
    from embedloss.reporting.curves import draw_curves

    try:
        draw_curves(read_run(out), picture)
    except ImportError:
        say(f"note: {picture.name} is not drawn: pip install matplotlib")
    except Exception as exception:  # a picture is never worth a finished run
        say(f"note: {picture.name} could not be drawn: {type(exception).__name__}: {exception}")


def neighbours_of(out: Path, moment: str, prepared: Prepared, encoder: Any, seed: int) -> None:
    """Add the neighbours of one moment ("before" or "after") to the run's file; those of an interrupted run's start stay."""
    from embedloss.training.neighbours import neighbours

    file = out / NEIGHBOURS_FILE
    known: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if moment == "before" and "before" in known:
        return
    source, prompts = prepared.sources[0], prepared.sources[0].settings.prompts
    data, binding = source.data, source.binding
    if prepared.evaluations:
        part = prepared.evaluations[0]
        data, binding, prompts = part.data, part.binding, part.prompts
    if not hasattr(data, "__len__"):  # a stream has no rows to draw from
        return
    known[moment] = neighbours(encoder, data, binding.format, prompts, seed)
    file.write_text(json.dumps(known, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def card(out: Path, config: RunConfig, prepared: Prepared, step: Any, result: RunResult, rate: float) -> None:
    """Write README.md; `rate` is the learning rate, also where the settings leave it to the model."""
    from embedloss.encoders.card import write_card
    from embedloss.registry import expression_specs
    from embedloss.training.trainer import step_expression

    papers: dict[str, None] = {}
    for spec in (spec for source in prepared.sources for spec in expression_specs(source.settings.loss)):
        papers.update(dict.fromkeys(f"`{spec.name}`: {part.strip()}" for part in spec.citation.split(";") if part.strip()))
    settings = {**{key: getattr(config, key) for key in TOLD}, "learning_rate": f"{rate:g}"}
    shown = {
        key: ", ".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else value
        for key, value in settings.items()
        if value not in (None, False, {}) and not (key == "epochs" and config.max_steps is not None)
    }
    metrics = {k: v for k, v in result.after.items() if not is_count(k, v)}
    write_card(
        out,
        encoder=step.encoder,
        loss=step_expression(step) or "; ".join(f"{s.name}: {s.settings.loss}" for s in prepared.sources) or config.loss,
        citation="\n".join(f"- {paper}" for paper in papers),
        base_model=config.model,
        data="; ".join(_told(source) for source in prepared.sources),
        metrics=metrics or None,
        before=result.before,
        settings=shown,
        picture="curves.png" if (out / "curves.png").is_file() else None,
        optimizer_steps=f"{result.steps:,}",
    )


def _told(source: Source) -> str:
    """One data set in words: name, file, rows and format."""
    path = source.settings.path
    rows = f", {len(source.data):,} rows" if hasattr(source.data, "__len__") else ""
    name = f"{source.name}: " if source.name else ""
    return f"{name}{Path(path).name if Path(path).exists() else path}{rows} ({source.binding.format.name})"
