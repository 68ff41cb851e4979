"""Peak memory of one training step against the size of the batch, plain and with recomputation at a fixed chunk.

    python tests/bench/recompute_memory.py [--quick]

Each number is the highest resident memory of a process of its own: a random BERT of two layers and 384 dimensions, pairs of
texts of 16 tokens, mnrl, one forward and one backward pass.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile

from fresh import resident

BATCHES = (256, 1024, 4096, 16384)
CHUNK_TOKENS, WORDS, DIMENSION = 512, 14, 384
LARGEST_PLAIN = 1024  # beyond it the activations do not fit into the memory of a small machine


def peak() -> float:
    """Highest resident memory of this process so far, in MB."""
    return resident()[1] / 1e6


def measure(model: str, rows: int, recompute: bool) -> None:
    """Print the peak before the step, after it, and the size of the embeddings, in MB."""
    import random

    import torch

    from embedloss import TrainingStep, create_loss, load_encoder
    from embedloss.collate import Collator

    torch.set_num_threads(1)
    rng = random.Random(0)
    words = [chr(97 + i) for i in range(26)]
    encoder = load_encoder(model)
    step = TrainingStep(encoder, create_loss("mnrl"), recompute=recompute).train()

    def text() -> str:
        return " ".join(rng.choice(words) for _ in range(WORDS))

    pairs = [{"anchor": text(), "positive": text()} for _ in range(rows)]
    batch = Collator(encoder.processor, step.loss, "pairs", CHUNK_TOKENS)(pairs)
    for parameter in step.parameters():
        parameter.grad = torch.zeros_like(parameter)
    before = peak()
    step(batch)["loss"].backward()
    print(before, peak(), 2 * rows * DIMENSION * 4 / 1e6)


def section(quick: bool = False) -> str:
    """Its part of the page, as Markdown."""
    from embedloss.testing.models import tiny_bert

    text_bytes = DIMENSION * 4 + (WORDS + 2) * 8  # an embedding and its token ids
    lines = [
        "Each number is the highest resident memory of a process of its own, on one core: a BERT of two layers and 384",
        f"dimensions, pairs of texts of {WORDS + 2} tokens, `mnrl`, chunks of {CHUNK_TOKENS} tokens, one forward and one",
        f"backward pass: `python tests/bench/recompute_memory.py{' --quick' * quick}`.",
        "",
        "| rows a step | texts | embeddings | plain: peak of the step | `--recompute`: peak of the step | growth a text "
        f"/ {text_bytes:,} B |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    with tempfile.TemporaryDirectory() as folder:
        model = tiny_bert(folder, layers=2, hidden=DIMENSION, heads=12)
        last: tuple[int, float] | None = None
        for rows in BATCHES[:2] if quick else BATCHES:
            cells, size = [], 0.0
            for recompute in (False, True):
                if rows > LARGEST_PLAIN and not recompute:
                    cells.append("not run")
                    continue
                command = [sys.executable, __file__, "--one", model, str(rows), str(int(recompute))]
                said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
                before, after, size = map(float, said.split()[-3:])
                cells.append(f"{after:,.0f} MB ({after - before:,.0f} above the start)")
            growth = "" if last is None else f"{(after - last[1]) * 1e6 / (2 * (rows - last[0])) / text_bytes:.1f}"
            last = rows, after
            lines.append(f"| {rows:,} | {2 * rows:,} | {size:.1f} MB | {cells[0]} | {cells[1]} | {growth} |")
            print(lines[-1], file=sys.stderr, flush=True)
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="up to 1,024 rows")
    parser.add_argument("--one", nargs=3, metavar=("MODEL", "ROWS", "RECOMPUTE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        model, rows, recompute = options.one
        return measure(model, int(rows), recompute == "1")
    print(section(options.quick))
    return None


if __name__ == "__main__":
    main()
