"""Memory of a run: how much there is, what a step takes, and whether an error means that it was too little."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from embedloss.encoders.lean import lean, observers


def parse_size(text: str) -> int:
    """Bytes of "4GB", "512 MiB" or "1000000" (a kilobyte has 1,024 bytes); ValueError for anything else or less than 1."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)i?b?\s*", str(text).lower())
    size = int(float(match[1]) * 1024 ** " kmgt".index(match[2] or " ")) if match else 0
    if size < 1:
        raise ValueError(f"must be a size such as 4GB or 800MB, got {text!r}")
    return size


def free_memory(device: torch.device) -> int:
    """Bytes that this process may still allocate: the GPU's free memory, or the least of RAM, control group and RLIMIT_AS."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free)
    import psutil

    limits = [int(psutil.virtual_memory().available)]
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        values = [Path(file).read_text(encoding="ascii").strip() for file in (limit, used) if Path(file).is_file()]
        if len(values) == 2 and all(value.isdigit() for value in values):
            limits.append(int(values[0]) - int(values[1]))
    if sys.platform != "win32":
        import resource

        soft, _ = resource.getrlimit(resource.RLIMIT_AS)
        if soft != resource.RLIM_INFINITY:
            limits.append(soft - psutil.Process().memory_info().vms)
    return max(min(limits), 0)


def out_of_memory(exception: BaseException) -> bool:
    """Whether an allocation failed, on a GPU or on the CPU, where torch says so in words only."""
    if isinstance(exception, (torch.OutOfMemoryError, MemoryError)):
        return True
    # The last is oneDNN's, which cannot place its kernels then.
    words = ("can't allocate memory", "Cannot allocate memory", "out of memory", "could not create a primitive")
    return isinstance(exception, RuntimeError) and any(word in str(exception) for word in words)


class Saved:
    """Counts the bytes that autograd keeps for the backward pass, each storage once, without those of `known`.

    Example:
        >>> with Saved(model.parameters()) as saved:  # doctest: +SKIP
        ...     output = model(batch)
        >>> saved.bytes  # doctest: +SKIP
    """

    def __init__(self, known: Iterable[torch.Tensor] = ()) -> None:
        self.bytes = 0
        self._seen = {t.untyped_storage().data_ptr() for t in known}
        self._kept: list[torch.Tensor] = []  # alive, so that no address is used twice
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda tensor: tensor)

    def _pack(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._seen:
            self._seen.add(storage.data_ptr())
            self._kept.append(tensor.detach())
            self.bytes += storage.nbytes()
        return tensor

    def __enter__(self) -> Saved:
        self._hooks.__enter__()
        observers.append(self._pack)
        return self

    def __exit__(self, *details: Any) -> None:
        observers.remove(self._pack)
        self._hooks.__exit__(*details)
        self._kept.clear()


@dataclass(frozen=True)
class Estimate:
    """Memory of a training step, in bytes.

    Args:
        fixed: weights, gradients and the optimizer's state.
        token: activations a padded token, kept for the backward pass.
        again: those of a token whose chunk is recomputed: nothing of them is left out.
        tokens: padded tokens of the whole batch.
        largest: padded tokens of its largest chunk.
        outputs: the embeddings (or scores) of the batch with their gradients.
    """

    fixed: int
    token: float
    again: float
    tokens: int
    largest: int
    outputs: int

    def step(self, recompute: bool) -> int:
        """Weights and activations of a step: those of all chunks, or of the largest one."""
        return int(self.fixed + self.outputs + (self.again * self.largest if recompute else self.token * self.tokens))


def estimate(step: Any, batch: Mapping[str, Any]) -> Estimate:
    """What a step takes, from the activations of the batch's smallest chunk; runs two forward passes of it.

    Args:
        step: a `TrainingStep`.
        batch: a batch of the collator.
    """
    encoder = step.encoder
    trained = [p for p in step.parameters() if p.requires_grad]
    weights = sum(p.numel() * p.element_size() for p in step.parameters())
    fixed = weights + 3 * sum(p.numel() * p.element_size() for p in trained)  # gradient and AdamW's two moments
    sizes = [int(chunk["input_ids"].numel()) for chunk in batch["chunks"]]
    chunk = min(batch["chunks"], key=lambda c: int(c["input_ids"].numel()))
    features = {name: value.to(encoder.device) for name, value in chunk.items()}
    training = encoder.training
    encoder.train()
    sizes_kept = []
    for context in (lean(encoder), contextlib.nullcontext()):
        with torch.random.fork_rng(), Saved([*encoder.parameters(), *encoder.buffers()]) as saved, context:
            encoder(features, step.requirements.layers)
        sizes_kept.append(saved.bytes)
    encoder.train(training)
    texts = len(batch["place"])
    per_text = 2 * 4 * encoder.dimension * (encoder.n_layers + 1 if step.requirements.layers else 1)
    copies = 2 if step.twin is not None else 1
    token, again = (copies * size / max(min(sizes), 1) for size in sizes_kept)
    return Estimate(fixed, token, again, sum(sizes), max(sizes), copies * texts * per_text)


def reset_peak() -> None:
    """Let `peak_memory` count from here on."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:  # no Linux, or not allowed: the peak is that of the whole process
        return


def peak_memory() -> int:
    """Most bytes in use since `reset_peak`: of the GPU, else resident memory of the process, libraries included."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    try:
        found = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
        return int(found.group(1)) * 1024 if found else 0
    except OSError:
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
