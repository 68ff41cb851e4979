"""What a run will do, in words, before it starts: the batches, and of several data sets the mixture."""

from __future__ import annotations

from typing import Any

from embedloss.collate import Keyed
from embedloss.mixture import MixtureSampler
from embedloss.streaming import Position, StreamSampler
from embedloss.training.config import RunConfig
from embedloss.training.report import table


def batch_plan(trainer: Any, collator: Any, config: RunConfig) -> str:
    """What a step costs, counted on the first batch: rows, texts, chunks, padding, negatives per query."""
    sampler = trainer.sampler()
    if isinstance(sampler, StreamSampler):
        return "\n".join(_streams(sampler, trainer, collator, config))
    updates = -(-len(sampler) // config.gradient_accumulation)
    steps = config.max_steps if config.max_steps is not None else round(updates * config.epochs)
    processes = trainer.args.world_size
    if isinstance(sampler, MixtureSampler):
        lines = _mixture(sampler, processes, steps)
        for name, own in sampler.samplers.items():
            keys = next(iter(own))
            batch = collator.collators[name](Keyed(trainer.train_dataset.parts[name].rows).__getitems__(keys))
            loss = trainer.step_module.loss
            part = loss.of(name) if hasattr(loss, "of") else loss
            lines += [f"{name}: {line}" for line in _first_batch(trainer, collator.collators[name], config, batch, part.spec)]
    else:
        lines = [
            f"{sampler.rows:,} rows, {config.batch_size} a step on {processes} process(es), sampler {type(sampler).__name__}: "
            f"{len(sampler):,} batches an epoch, {steps:,} optimizer steps",
        ]
        batch = collator(Keyed(trainer.train_dataset).__getitems__(next(iter(sampler))))
        lines += _first_batch(trainer, collator, config, batch, trainer.step_module.loss.spec)
    if config.gather and processes == 1:
        lines.append("note: --gather has no effect on one process")
    if sampler.short:
        lines.append(f"note: duplicates make {sampler.short} batches smaller than half of the batch size")
    if sampler.left_out:
        lines.append(f"note: {sampler.left_out} rows find no place in this epoch")
    return "\n".join(lines)


def _streams(sampler: StreamSampler, trainer: Any, collator: Any, config: RunConfig) -> list[str]:
    processes = trainer.args.world_size
    lines = [
        f"{len(sampler) // config.gradient_accumulation:,} optimizer steps on {processes} process(es); "
        f"rows are read as they arrive and shuffled within {config.shuffle_buffer:,}"
    ]
    parts = sampler.streams.parts
    rows = [
        [name, str(part.batch_size or config.batch_size), f"{share:.1%}", part.kind]
        for (name, part), share in zip(parts.items(), sampler.streams.weights, strict=True)
    ]
    lines += table(["data set", "a batch", "share", "sampler"], rows).splitlines() if "" not in parts else []
    if "" in parts:
        lines.append(f"{rows[0][1]} rows a step on each process, sampler {rows[0][3]}")
    for name, part in parts.items():
        first, _ = next(part.batches(Position(), config.batch_size, sampler.seed))
        own, loss = (
            (collator.collators[name], trainer.step_module.loss.of(name)) if name else (collator, trainer.step_module.loss)
        )
        found = _first_batch(trainer, own, config, own(first), loss.spec)
        lines += [f"{name}: {line}" if name else line for line in found]
    return lines


def _mixture(sampler: MixtureSampler, processes: int, steps: int) -> list[str]:
    header = ["data set", "rows", "a batch", "batches", "an epoch", "share", "sampler"]
    return [
        *table(header, sampler.describe()).splitlines(),
        f"{len(sampler):,} batches an epoch on {processes} process(es), one data set a batch; {steps:,} optimizer steps",
    ]


def _first_batch(trainer: Any, collator: Any, config: RunConfig, batch: dict[str, Any], spec: Any) -> list[str]:
    shapes = [c["input_ids"].shape for c in batch["chunks"] if c["input_ids"].ndim == 2]
    processes = trainer.args.world_size
    lines = []
    forwards = len(batch["chunks"])
    texts = len(batch["order"])
    what = "pairs" if collator.kind == "cross-encoder" else "texts"
    if shapes:
        padded = sum(n * width for n, width in shapes)
        real = sum(int(c["attention_mask"].sum()) for c in batch["chunks"])
        lines.append(
            f"first batch: {texts} {what} in {forwards} chunk(s) of at most {collator.chunk_tokens:,} tokens; "
            f"{padded:,} tokens, {1 - real / padded:.1%} padding"
        )
    else:
        lines.append(f"first batch: {texts} texts in one lookup")
    again = max(forwards - 1, 0) if trainer.step_module.recompute else 0
    lines.append(f"forwards a step: {forwards}" + (f" and {again} again in the backward pass (recompute)" if again else ""))
    if spec.scope == "batch" and "positive" in batch.get("layout", {}):
        documents = sum(end - begin for role, (begin, end) in batch["layout"].items() if role != "anchor")
        joint = documents * (processes if config.gather else 1)
        lines.append(f"negatives per query: {joint - 1}" + (" (gathered)" if config.gather and processes > 1 else ""))
        if config.gradient_accumulation > 1:
            lines.append("note: gradient accumulation adds no in-batch negatives; a larger --batch-size with --recompute does")
    return lines
