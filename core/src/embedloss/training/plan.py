"""What a run will do, in words, before it starts: the batches, and of several data sets the mixture."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch.distributed as dist

from embedloss.collate import Keyed
from embedloss.mixture import MixtureSampler
from embedloss.streaming import Position, StreamSampler
from embedloss.training.config import RunConfig, read_yaml
from embedloss.training.fit import choose
from embedloss.training.memory import estimate, parse_size
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


def first_batches(trainer: Any, collator: Any, config: RunConfig) -> list[dict[str, Any]]:
    """The first batch of every data set."""
    sampler = trainer.sampler()
    if isinstance(sampler, StreamSampler):
        size, made = config.batch_size, []
        for name, part in sampler.streams.parts.items():
            rows, _ = next(part.batches(Position(), size, sampler.seed))
            made.append((collator.collators[name] if name else collator)(rows))
        return made
    if not isinstance(sampler, MixtureSampler):
        return [collator(Keyed(trainer.train_dataset).__getitems__(next(iter(sampler))))]
    parts = trainer.train_dataset.parts
    return [
        collator.collators[name](Keyed(parts[name].rows).__getitems__(next(iter(own))))
        for name, own in sampler.samplers.items()
    ]


def fit_memory(trainer: Any, collator: Any, config: RunConfig, say: Any) -> RunConfig:
    """With `recompute: auto`, choose whether to recompute and the chunk; a resumed run keeps what its first start chose.

    Returns:
        The settings with the choice in them, which are those that the run folder keeps.
    """
    if config.recompute != "auto":
        return config
    step = trainer.step_module
    kept = Path(config.out) / "run.yaml"
    if config.resume and kept.is_file():
        saved = read_yaml(str(kept))
        recompute, tokens = bool(saved.get("recompute")), saved.get("chunk_tokens")
        say(f"memory\n  as at the first start: recompute {'on' if recompute else 'off'}")
    else:
        limit = parse_size(config.memory_limit) if config.memory_limit else None
        batch = max(first_batches(trainer, collator, config), key=lambda b: sum(c["input_ids"].numel() for c in b["chunks"]))
        recompute, tokens, found, room = choose(step, batch, limit)
        tokens = min(tokens, collator_tokens(collator)) if tokens is not None else config.chunk_tokens
        if trainer.args.world_size > 1:  # the same on every process
            choices: list[Any] = [None] * trainer.args.world_size
            dist.all_gather_object(choices, (recompute, tokens))
            recompute = any(r for r, _ in choices)
            tokens = min((t for _, t in choices if t is not None), default=None)
        plain = found.step(False) / 2**20
        how = f"recompute with chunks of {tokens:,} tokens" if recompute else "no recompute"
        say(f"memory\n  {room / 2**20:,.0f} MiB to use, a plain step takes about {plain:,.0f} MiB: {how}")
    step.recompute = recompute or step.requirements.recompute
    if tokens is not None:
        for part in getattr(collator, "collators", {"": collator}).values():
            part.chunk_tokens = tokens
    return replace(config, recompute=recompute, chunk_tokens=tokens, memory_limit=None)


def collator_tokens(collator: Any) -> int:
    """Tokens of a chunk, the most of any data set."""
    return max(int(part.chunk_tokens) for part in getattr(collator, "collators", {"": collator}).values())


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
    texts = len(batch["place"])
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
    again = forwards - 1 if trainer.step_module.recompute else 0
    lines.append(f"forwards a step: {forwards}" + (f" and {again} again in the backward pass (recompute)" if again else ""))
    found = estimate(trainer.step_module, batch)
    lines.append(
        f"estimated memory: {found.step(trainer.step_module.recompute) / 2**20:,.0f} MiB "
        f"({found.fixed / 2**20:,.0f} MiB weights, gradients and optimizer)"
    )
    if spec.scope == "batch" and "positive" in batch.get("layout", {}):
        documents = sum(end - begin for role, (begin, end) in batch["layout"].items() if role != "anchor")
        joint = documents * (processes if config.gather else 1)
        lines.append(f"negatives per query: {joint - 1}" + (" (gathered)" if config.gather and processes > 1 else ""))
        if config.gradient_accumulation > 1:
            lines.append("note: gradient accumulation adds no in-batch negatives; a larger --batch-size with --recompute does")
    return lines
