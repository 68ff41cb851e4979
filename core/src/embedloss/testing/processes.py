"""A loss on real processes. The mean over processes must be what one process computes on all rows."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from embedloss.distributed import leave
from embedloss.embeddings import Embeddings
from embedloss.loss import Loss
from embedloss.registry import create_loss

Role = Tensor | Sequence[Tensor]


@dataclass(frozen=True)
class JointResult:
    """What all processes computed together.

    Args:
        value: mean of the processes' losses.
        gradients: role -> gradient of that mean, one tensor a row where the role has lists.
        parameters: own weight of the loss -> gradient of that mean.
    """

    value: Tensor
    gradients: dict[str, Tensor | list[Tensor]]
    parameters: dict[str, Tensor]


def _leaf(value: Role) -> Role:
    if isinstance(value, Tensor):
        return value.detach().clone().requires_grad_()
    return [v.detach().clone().requires_grad_() for v in value]


def _gradient(value: Role) -> Any:
    if isinstance(value, Tensor):
        return torch.zeros_like(value) if value.grad is None else value.grad
    return [torch.zeros_like(v) if v.grad is None else v.grad for v in value]


def evaluate(loss: Loss, roles: Mapping[str, Role], labels: Tensor | None = None, *, gather: bool = False) -> JointResult:
    """Value and gradients of a loss in this process, on copies of the embeddings."""
    leaves = {role: _leaf(value) for role, value in roles.items()}
    loss.zero_grad()
    emb = Embeddings.of(**leaves)
    total = loss(emb.with_gathering() if gather else emb, labels).total
    total.backward()
    parameters = {k: p.grad.clone() for k, p in loss.named_parameters() if p.grad is not None}
    return JointResult(total.detach(), {role: _gradient(leaf) for role, leaf in leaves.items()}, parameters)


@dataclass(frozen=True)
class Case:
    """A loss and what it is called with; arguments as in `evaluate`."""

    loss: Loss
    roles: Mapping[str, Role]
    labels: Tensor | None = None

    def part(self, begin: int, end: int) -> dict[str, Any]:
        """The rows of one process, as plain data."""
        roles = {k: v[begin:end].clone() if isinstance(v, Tensor) else list(v[begin:end]) for k, v in self.roles.items()}
        labels = None if self.labels is None else self.labels[begin:end].clone()
        return {"loss": self.loss.to_expression(), "weights": self.loss.state_dict(), "roles": roles, "labels": labels}

    def joined(self, found: Sequence[JointResult]) -> JointResult:
        """What the processes found, as the mean over processes and in the order of all rows."""
        gradients: dict[str, Tensor | list[Tensor]] = {}
        for role, value in self.roles.items():
            rows = [g / len(found) for result in found for g in result.gradients[role]]
            gradients[role] = torch.stack(rows) if isinstance(value, Tensor) else rows
        parameters = {k: torch.stack([r.parameters[k] for r in found]).mean(0) for k in found[0].parameters}
        return JointResult(torch.stack([r.value for r in found]).mean(), gradients, parameters)


def evaluate_on_processes(cases: Sequence[Case], sizes: Sequence[int], timeout: float = 120) -> list[JointResult]:
    """What `len(sizes)` gloo processes compute together for each case; process i gets `sizes[i]` of the rows.

    The losses are made again from their expressions in every process and get copies of the weights. The processes are started
    once for all cases.
    """
    with tempfile.TemporaryDirectory() as folder:
        for rank, size in enumerate(sizes):
            begin = sum(sizes[:rank])
            torch.save([case.part(begin, begin + size) for case in cases], f"{folder}/given-{rank}.pt")
        run_processes([sys.executable, "-m", "embedloss.testing.processes", folder], len(sizes), timeout)
        found = [torch.load(f"{folder}/found-{rank}.pt", weights_only=False) for rank in range(len(sizes))]
    return [case.joined(results) for case, results in zip(cases, zip(*found, strict=True), strict=True)]


def run_processes(command: Sequence[str], count: int, timeout: float = 120) -> list[str]:
    """Run a command `count` times at once, with the rank and the number of processes as its last arguments.

    Returns:
        What each process printed to stdout, by rank.

    Raises:
        RuntimeError: one of them failed; with what all of them printed to stderr.
        subprocess.TimeoutExpired: one of them took longer than `timeout` seconds; all are ended.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen(
            [*command, str(rank), str(count)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        )
        for rank in range(count)
    ]
    try:
        printed = [process.communicate(timeout=timeout) for process in started]
    finally:
        for process in started:
            process.kill()
    if any(process.returncode for process in started):
        raise RuntimeError("\n".join(error for _, error in printed))
    return [text for text, _ in printed]


@contextmanager
def process_group(folder: str | Path, rank: int, count: int) -> Iterator[None]:
    """A gloo group of one-threaded processes that meet in a folder, for the time of a with block."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{Path(folder).resolve()}/store", rank=rank, world_size=count)
    yield
    dist.barrier()
    leave()


def _process(folder: str, rank: int, count: int) -> None:
    results = []
    with process_group(folder, rank, count):
        for given in torch.load(f"{folder}/given-{rank}.pt", weights_only=False):
            loss = create_loss(given["loss"])
            if any(tensor.dtype == torch.float64 for tensor in given["weights"].values()):
                loss.double()
            loss.load_state_dict(given["weights"])
            results.append(evaluate(loss, given["roles"], given["labels"], gather=True))
        torch.save(results, f"{folder}/found-{rank}.pt")


if __name__ == "__main__":
    # Under its importable name, so that what is saved here can be read by the process that started this one.
    from embedloss.testing import processes

    processes._process(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
