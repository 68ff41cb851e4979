"""Fitting a step into memory: the chunk is chosen before the run, and halved where memory runs out all the same."""

from __future__ import annotations

import copy
import gc
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from embedloss.encoders.base import smaller_chunks
from embedloss.encoders.text import pad_id
from embedloss.errors import EmbedlossError
from embedloss.training.memory import Estimate, estimate, free_memory, out_of_memory

MARGIN = 0.8  # of the memory is planned with; the rest is for what lives for a moment only


def choose(step: Any, batch: Mapping[str, Any], limit: int | None) -> tuple[bool, int | None, Estimate, int]:
    """Whether to recompute, and the largest chunk that fits.

    Args:
        step: the training step.
        batch: a batch of the collator.
        limit: bytes that weights, optimizer and activations may take; by default what is free, and the weights.

    Returns:
        recompute; tokens of a chunk, None where it need not change; the estimate; the limit.

    Raises:
        EmbedlossError: E401 where not even the weights and the longest text fit.
    """
    found = estimate(step, batch)
    weights = sum(p.numel() * p.element_size() for p in step.parameters())
    limit = limit or free_memory(step.encoder.device) + weights
    room = MARGIN * limit
    if found.step(False) <= room:
        return False, None, found, limit
    longest = max(int(c["input_ids"].shape[1]) if c["input_ids"].ndim == 2 else 1 for c in batch["chunks"])
    tokens = int((room - found.fixed - found.outputs) / max(found.again, 1e-9))
    if tokens < longest:
        raise EmbedlossError(
            "E401",
            f"a step does not fit in {limit / 2**20:,.0f} MiB: weights, gradients and optimizer take "
            f"{found.fixed / 2**20:,.0f} MiB, the embeddings of a batch {found.outputs / 2**20:,.0f} MiB and the longest text "
            f"({longest} tokens) {found.again * longest / 2**20:,.0f} MiB. Use a smaller --batch-size, --max-length or model.",
        )
    return True, max(2 ** (tokens.bit_length() - 1), longest), found, limit


class Fit:
    """Repeats a step with smaller chunks when memory runs out.

    A repeated step starts from the same generators, gradients, counters and buffers, so that it gives what a run with the
    smaller chunks from the start would have given in this step.

    Args:
        trainer: whose steps these are.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.chunk_tokens: int | None = None

    def step(self, run: Callable[[Any], Tensor], batch: dict[str, Any]) -> Tensor:
        """`run(batch)`, with chunks of at most `chunk_tokens`; E401 where not even single texts fit."""
        while True:
            before = self._remember()
            try:
                return run(self.cut(batch))
            except (RuntimeError, MemoryError) as exception:
                if not out_of_memory(exception):
                    raise
                reason = str(exception).strip().splitlines()[0] if str(exception) else type(exception).__name__
            # Outside of the handler, whose traceback keeps the failed step's tensors alive.
            self._restore(before)
            del before
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            self._halve(batch, reason)

    def cut(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The same batch in chunks of at most `chunk_tokens`."""
        if self.chunk_tokens is None:
            return batch
        padding = pad_id(self.trainer.step_module.encoder.processor.tokenizer)
        return {**batch, "chunks": smaller_chunks(batch["chunks"], self.chunk_tokens, padding)}

    def _halve(self, batch: dict[str, Any], reason: str) -> None:
        trainer, step = self.trainer, self.trainer.step_module
        number = trainer.state.global_step + 1
        shapes = [tuple(c["input_ids"].shape) for c in self.cut(batch)["chunks"]]
        if trainer.args.world_size > 1 or not step.recompute:
            how = "a smaller --chunk-tokens" if step.recompute else "--recompute auto"
            raise EmbedlossError(
                "E401", f"memory ran out at step {number} ({reason}). Type {how}, or a smaller --batch-size or --max-length."
            )
        largest = max((n * width for n, width in shapes if n > 1), default=0) if all(len(s) == 2 for s in shapes) else 0
        if not largest:
            raise EmbedlossError(
                "E401",
                f"memory ran out at step {number} with one text a forward pass ({reason}). "
                "Use a smaller --batch-size, --max-length or model.",
            )
        self.chunk_tokens = max(largest // 2, 1)
        warnings.warn(
            f"memory ran out at step {number} ({reason}). The step is repeated, and the run goes on, with chunks of "
            f"{self.chunk_tokens:,} tokens.",
            stacklevel=2,
        )

    def _remember(self) -> dict[str, Any]:
        trainer = self.trainer
        module = trainer.step_module
        repeats = module.recompute and trainer.args.world_size == 1  # otherwise there is only an error to raise
        return {
            "cpu": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
            "log": (dict(trainer._sums), dict(trainer._counts), list(trainer._run_loss)),
            "gradients": {n: p.grad.clone() for n, p in module.named_parameters() if repeats and p.grad is not None},
            "buffers": {n: b.clone() for n, b in module.loss.named_buffers()},
            "health": copy.deepcopy(trainer.health.state()),
        }

    def _restore(self, before: dict[str, Any]) -> None:
        trainer = self.trainer
        module = trainer.step_module
        torch.set_rng_state(before["cpu"])
        if before["cuda"] is not None:
            torch.cuda.set_rng_state(before["cuda"])
        trainer._sums, trainer._counts, trainer._run_loss = before["log"]
        for name, parameter in module.named_parameters():
            parameter.grad = before["gradients"].get(name)
        with torch.no_grad():
            for name, buffer in module.loss.named_buffers():
                buffer.copy_(before["buffers"][name])
        said = trainer.health.warned  # once, also where the step is repeated
        trainer.health.load_state(before["health"])
        trainer.health.warned |= said
