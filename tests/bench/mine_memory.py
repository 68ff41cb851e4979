"""Peak memory and time of `mine` on generated pairs: `python tests/bench/mine_memory.py [--pairs 100000] [--dimension 384]`.

Every query is searched among every document, exactly, on one thread, in one process: texts, embeddings and rows included.
A static encoder of random vectors makes the embeddings, so that the time is the search's.
"""

from __future__ import annotations

import argparse
import random
import resource
import time
from collections.abc import Iterator

import torch

from embedloss.encoders.static import new_static_encoder
from embedloss.mining import mine


def pairs(count: int) -> Iterator[dict[str, str]]:
    """Queries and documents of random words, each text once."""
    rng = random.Random(0)
    words = [f"w{i}" for i in range(5000)]
    for i in range(count):
        yield {
            "anchor": f"q{i} " + " ".join(rng.choices(words, k=6)),
            "positive": f"d{i} " + " ".join(rng.choices(words, k=20)),
        }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--pairs", type=int, default=100_000)
    parser.add_argument("--dimension", type=int, default=384)
    options = parser.parse_args()
    torch.set_num_threads(1)
    encoder = new_static_encoder(
        [text for row in pairs(5000) for text in row.values()], dimension=options.dimension, vocab_size=8000
    )
    begin = time.perf_counter()
    mined = mine(list(pairs(options.pairs)), encoder)
    seconds = time.perf_counter() - begin
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    report = mined.report
    print(
        f"{report.queries:,} queries x {report.documents:,} documents, dimension {encoder.dimension}: "
        f"{len(mined.rows):,} rows, {seconds:.0f} s, peak {peak:.2f} GiB"
    )


if __name__ == "__main__":
    main()
