"""Gathering over gloo processes: seconds and bytes of a step, beside the formula of docs/scaling.md.

    python tests/bench/scale.py [--quick] [--rows 256]

`mnrl` from ready embeddings of 384 numbers on 2 and 4 one-threaded processes of this machine. The bytes are counted where
torch.distributed is called.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).parent))

from fresh import head, row

DIMENSION = 384


def child(folder: str, rows: int, steps: int, rank: int, count: int) -> None:
    """One process: print the medians of a step with and without gathering, and what it handed to torch.distributed."""
    import torch
    import torch.distributed as dist

    from embedloss import Embeddings, create_loss
    from embedloss.testing.processes import process_group

    sent = {"all_gather": 0, "all_reduce": 0}
    gather, reduce = dist.all_gather, dist.all_reduce

    def counted_gather(parts: Any, own: Any, *args: Any, **kwargs: Any) -> Any:
        sent["all_gather"] += (len(parts) - 1) * own.numel() * own.element_size()  # what is received
        return gather(parts, own, *args, **kwargs)

    def counted_reduce(value: Any, *args: Any, **kwargs: Any) -> Any:
        sent["all_reduce"] += value.numel() * value.element_size()
        return reduce(value, *args, **kwargs)

    dist.all_gather, dist.all_reduce = counted_gather, counted_reduce
    found: dict[str, Any] = {}
    with process_group(folder, rank, count):
        generator = torch.Generator().manual_seed(rank)
        texts = [torch.randn(rows, DIMENSION, generator=generator).requires_grad_() for _ in range(2)]
        loss = create_loss("mnrl")
        for gathered in (False, True):
            took = []
            sent.update(all_gather=0, all_reduce=0)
            for step in range(steps + 1):
                if step == 1:
                    sent.update(all_gather=0, all_reduce=0)
                dist.barrier()
                begin = time.perf_counter()
                emb = Embeddings.of(anchor=texts[0], positive=texts[1])
                loss(emb.with_gathering() if gathered else emb).total.backward()
                took.append(time.perf_counter() - begin)
            found["on" if gathered else "off"] = {"s": statistics.median(took[1:]), **{k: v / steps for k, v in sent.items()}}
        # Two constants of the machine: the latency of a call, and bytes a second of a large all_reduce.
        for name, numbers in (("latency", 1), ("large", 2**22)):
            value = torch.zeros(numbers)
            took = []
            for _ in range(8):
                dist.barrier()
                begin = time.perf_counter()
                reduce(value)
                took.append(time.perf_counter() - begin)
            found[name] = statistics.median(took[1:])
    if rank == 0:
        print("RESULT", json.dumps(found))


def formula(count: int, rows: int, roles: int = 2) -> tuple[float, float]:
    """Bytes that a process receives forward, and that it hands to all_reduce backward."""
    size = DIMENSION * 4
    return roles * (count - 1) * rows * size, roles * count * rows * size


def section(quick: bool = False, rows: int = 256, steps: int | None = None) -> str:
    """Its part of the page, as Markdown."""
    from embedloss.testing.processes import run_processes

    steps = steps or (5 if quick else 25)
    names = [
        "s a step, off",
        "on",
        "received forward",
        "formula",
        "to `all_reduce`",
        "formula",
        "one call",
        "large `all_reduce`",
    ]
    lines = [
        f"`mnrl`, {rows} pairs a process, `d = {DIMENSION}`, median of {steps} steps of the loss alone, gloo, one thread a",
        f"process, {os.cpu_count()} cores: `python tests/bench/scale.py{' --quick' * quick}`.",
        "",
        *head("processes", *names),
    ]
    rate = latency = 0.0
    for count in (2, 4):
        with tempfile.TemporaryDirectory() as folder:
            said = run_processes([sys.executable, __file__, "--child", folder, str(rows), str(steps)], count, 240)[0]
        found = json.loads(said.split("RESULT")[1])
        forward, backward = formula(count, rows)
        on = found["on"]
        latency = found["latency"]
        rate = 2 * (count - 1) / count * 2**24 / found["large"]
        sent = [f"{number:,.0f}" for number in (on["all_gather"], forward, on["all_reduce"], backward)]
        seconds = [f"{found['off']['s']:.4f}", f"{on['s']:.4f}"]
        lines.append(row(count, *seconds, *sent, f"{1e3 * latency:.1f} ms", f"{rate / 1e6:,.0f} MB/s a process"))
        print(lines[-1], file=sys.stderr, flush=True)
    return "\n".join([*lines, "", *paper(rate, latency)])


def paper(rate: float, latency: float) -> list[str]:
    """The formula at 64 devices and 1,000,000 rows, with this machine's constants and with those of a fast network."""
    devices, epoch = 64, 1_000_000
    lines = [
        f"On paper, {devices} devices, {epoch:,} pairs an epoch, two pooled roles; seconds of transfer = bytes / rate + 4",
        "calls, with the constants measured above for 4 processes, and with 25 GB/s and 20 µs a call (assumed, not measured):",
        "",
        *head(
            "pairs a device", "joint batch", "steps an epoch", "MB a step", "MB a matrix of scores", "s here", "s at 25 GB/s"
        ),
    ]
    for rows in (64, 256, 1024):
        forward, _ = formula(devices, rows)
        total = 3 * forward  # (W - 1) n d 4 a role forward, twice that backward
        scores = rows * rows * devices * 4
        slow, fast = total / max(rate, 1.0) + 4 * latency, total / 25e9 + 4 * 20e-6
        sizes = [f"{rows:,}", f"{rows * devices:,}", f"{-(-epoch // (rows * devices)):,}"]
        lines.append(row(*sizes, f"{total / 1e6:,.1f}", f"{scores / 1e6:,.1f}", f"{slow:.2f}", f"{fast:.4f}"))
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="five steps")
    parser.add_argument("--rows", type=int, default=256)
    if sys.argv[1:2] == ["--child"]:
        folder, rows, steps, rank, count = sys.argv[2:]
        return child(folder, int(rows), int(steps), int(rank), int(count))
    options = parser.parse_args()
    print(section(options.quick, options.rows))
    return None


if __name__ == "__main__":
    main()
