"""Gathering tensors of all processes, with gradients.

Convention: a run's loss is the mean over processes of each process's loss. A gathered tensor therefore sends every process's
gradient back to the process that owns the rows (the sum over processes), and DDP's mean over processes makes the joint
gradient that one process would have on the whole batch.
"""

from __future__ import annotations

import gc
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def world() -> tuple[int, int]:
    """(rank, number of processes); (0, 1) without torch.distributed."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def leave() -> None:
    """Leave the group of processes, if there is one, after all that trained has gone out of scope.

    What still refers to the group, a model wrapped by DDP or a graph with a gather in it, keeps gloo's threads alive, and a
    thread that lets go of a tensor while the interpreter shuts down aborts the process: a whole run would count as failed.
    """
    if dist.is_available() and dist.is_initialized():
        gc.collect()
        dist.destroy_process_group()


def gather_sizes(size: int, device: torch.device) -> list[int]:
    """The number of rows on every process, in rank order."""
    _, count = world()
    if count == 1:
        return [size]
    mine = torch.tensor([size], dtype=torch.int64, device=device)
    sizes = [torch.zeros_like(mine) for _ in range(count)]
    dist.all_gather(sizes, mine)
    return [int(s) for s in sizes]


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, own: Tensor, sizes: list[int]) -> Tensor:
        rank, _ = world()
        ctx.begin, ctx.rows = sum(sizes[:rank]), sizes[rank]
        widest = max(sizes)
        padded = own.new_zeros((widest, *own.shape[1:]))
        padded[: len(own)] = own
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded.contiguous())
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        gradient = gradients[0].contiguous().clone()
        dist.all_reduce(gradient, op=dist.ReduceOp.SUM)
        return gradient[ctx.begin : ctx.begin + ctx.rows], None


def gather_rows(own: Tensor, sizes: list[int]) -> Tensor:
    """Rows of all processes in rank order; gradients of all processes flow back to the owner's rows.

    Args:
        own: (rows, ...) of this process; only the first size may differ between processes.
        sizes: what `gather_sizes` returned.
    """
    if len(sizes) == 1:
        return own
    gathered: Tensor = _Gather.apply(own, sizes)  # type: ignore[no-untyped-call]
    return gathered


def sum_over_processes(value: Tensor) -> Tensor:
    """The sum of a detached number over processes (for divisors such as the count of active triplets)."""
    if world()[1] == 1:
        return value
    total = value.detach().clone()
    dist.all_reduce(total, op=dist.ReduceOp.SUM)
    return total
