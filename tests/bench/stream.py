"""Peak memory of training on generated streams of different lengths: `python tests/bench/stream.py --rows 100000 10000000`.

Each length is trained in a process of its own, one pass, on one thread, with a small static encoder. With `--read` the batches
are drawn (read, checked, shuffled, cut) and not trained on.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BATCH = 5000


class Generated:
    """Rows that are made when they are asked for."""

    def __init__(self, rows: int) -> None:
        self.rows = rows

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for i in range(self.rows):
            yield {"first": f"w{i % 9973} v{i % 101}", "second": f"w{i % 9967} u{i}", "label": (i % 7) / 6}


def resident() -> float:
    """MB held by this process now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


def read(rows: int) -> None:
    """Draw every batch of one pass and print what it took as JSON."""
    from embedloss import create_loss
    from embedloss.streaming import Stream, Streams, StreamSampler

    stream = Stream.of(Generated(rows), create_loss("cosine_similarity").spec, "pairs+score")
    total = rows // BATCH
    held: list[float] = []
    begin = time.perf_counter()
    for number, _ in enumerate(StreamSampler(Streams({"": stream}), BATCH, total), start=1):
        if number % max(total // 4, 1) == 0:
            held.append(round(resident()))
    seconds = time.perf_counter() - begin
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
    print(json.dumps({"rows": rows, "steps": total, "seconds": seconds, "peak": peak, "held": held}))


def train(rows: int, folder: str) -> None:
    """Train one pass and print what it took as JSON."""
    import torch
    import transformers

    from embedloss import Trainer, TrainingArguments, TrainingStep, create_loss
    from embedloss.collate import Collator
    from embedloss.encoders.static import new_static_encoder

    torch.set_num_threads(1)
    held: list[float] = []

    class Watch(transformers.TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step % max(state.max_steps // 4, 1) == 0:
                held.append(round(resident()))

    texts = [text for row in Generated(20_000) for text in (row["first"], row["second"])]
    encoder = new_static_encoder(texts, dimension=16, vocab_size=12_000)
    loss = create_loss("cosine_similarity")
    step = TrainingStep(encoder, loss)
    arguments = TrainingArguments(
        folder, max_steps=max(rows // BATCH, 1), per_device_train_batch_size=BATCH, learning_rate=0.01, report_to="none",
        disable_tqdm=True, save_strategy="no", use_cpu=True, logging_steps=100_000,
    )  # fmt: skip
    collator = Collator(encoder.processor, loss, "pairs+score")
    trainer = Trainer(step, arguments, train_dataset=Generated(rows), collator=collator, callbacks=[Watch()])
    trainer.remove_callback(transformers.PrinterCallback)
    begin = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - begin
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
    print(json.dumps({"rows": rows, "steps": trainer.state.global_step, "seconds": seconds, "peak": peak, "held": held}))


def main() -> None:
    """Every length in turn, as a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 10_000_000])
    parser.add_argument("--work", default="stream-bench")
    parser.add_argument("--read", action="store_true", help="draw the batches only")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        read(args.rows[0]) if args.read else train(args.rows[0], args.work)
        return
    print("| rows | steps | seconds | peak MB | MB after each quarter |\n| --- | --- | --- | --- | --- |", flush=True)
    for rows in args.rows:
        command = [sys.executable, __file__, "--child", "--rows", str(rows), "--work", args.work]
        command += ["--read"] if args.read else []
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(done.stderr)
        found = json.loads(done.stdout.splitlines()[-1])
        held = ", ".join(f"{value:,.0f}" for value in found["held"])
        print(f"| {rows:,} | {found['steps']:,} | {found['seconds']:,.0f} | {found['peak']:,.0f} | {held} |", flush=True)


if __name__ == "__main__":
    main()
