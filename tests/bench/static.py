"""Static encoders beside sentence-transformers 6.2.0, and what prepares data: plans and checks of 1,000,000 rows.

    python tests/bench/static.py [--quick] [--rounds 5] [--rows 1000000]

Training: the docstring pairs of `embedloss demo-data`, an untrained static encoder, mnrl, batch 2,048, the trainers of both
sides (`sides.py`), each run a fresh process. Rows for plans and checks are generated.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).parent))

import check_scale
from fresh import forget_peak, forked, head, resident, row

HERE = Path(__file__).parent
BATCH = 2048
EPOCHS = ("first epoch", 12), ("four epochs", 50)  # of the 25,500 pairs
QUICK = (("a third of the first epoch", 4),)
PEER_SECONDS = 60.0


def command(*words: str) -> str:
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return done.stdout


def one_side(arguments: list[str]) -> None:
    """`sides.py` in this process; it cuts texts at 256 tokens, for which the peer's static encoder has no setter."""
    import sides
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding

    def cut(module: Any, tokens: int) -> None:
        module.tokenizer.enable_truncation(tokens)

    StaticEmbedding.max_seq_length = property(StaticEmbedding.max_seq_length.fget, cut)
    sys.argv[1:] = arguments
    sides.main()


def prepare(folder: Path) -> None:
    """The pairs and the untrained encoder."""
    data = folder / "demo"
    command("-m", "embedloss_cli", "demo-data", str(data))
    command("-m", "embedloss_cli", "init-static", str(data / "train.jsonl"), str(folder / "static"))


def training(folder: Path, rounds: int, name: str, steps: int) -> str:
    """A row of the table: both sides' trainings of so many steps."""
    data, model = folder / "demo", folder / "static"
    runs: dict[str, list[dict[str, Any]]] = {"ours": [], "peer": []}
    words = ["--model", str(model), "--data", str(data / "train.jsonl"), "--batch", str(BATCH), "--steps", str(steps)]
    words.append("--last-untimed")  # in the first step, not timed either, the peer tokenises two batches, in the last one none
    columns = list(json.loads((data / "train.jsonl").open(encoding="utf-8").readline()))[:2]
    for _ in range(rounds):
        for side, found in runs.items():
            said = command(__file__, "--side", side, *words, "--columns", ",".join(columns))
            found.append(json.loads(said.split("RESULT ")[1].splitlines()[0]))
    speed, memory = ({s: statistics.median(r[k] for r in f) for s, f in runs.items()} for k in ("rows_per_second", "peak_mb"))
    ratio = statistics.median(
        o["rows_per_second"] / p["rows_per_second"] for o, p in zip(runs["ours"], runs["peer"], strict=True)
    )
    gap = max(abs(a - b) for a, b in zip(runs["ours"][0]["losses"], runs["peer"][0]["losses"], strict=True))
    cells = [f"{2 * speed[side]:,.0f}" for side in runs] + [f"{ratio:.2f}"] + [f"{memory[side]:,.0f}" for side in runs]
    made = row(f"static, batch {BATCH:,}, {name}", *cells, f"{gap:.0e}")
    print(made, file=sys.stderr, flush=True)
    return made


def plan(file: str, side: str) -> tuple[float, float]:
    """Seconds and most MB of planning one epoch without duplicates in a batch."""
    import datasets

    data = datasets.Dataset.from_parquet(file)
    forget_peak()
    before, _ = resident()
    begin = time.perf_counter()
    if side == "ours":
        from embedloss.samplers import make_sampler

        batches = len(make_sampler("no-duplicates", data, data.column_names, 256, 0).batches())
    else:
        from sentence_transformers.base.sampler import NoDuplicatesBatchSampler

        batches = sum(1 for _ in NoDuplicatesBatchSampler(data, batch_size=256, drop_last=False))
    assert batches >= len(data) // 256
    return time.perf_counter() - begin, (resident()[1] - before) / 2**20


def scale(folder: Path, rows: int) -> list[str]:
    lines, columns = folder / "rows.jsonl", folder / "rows.parquet"
    check_scale.write(lines, rows)
    command("-m", "embedloss_cli", "convert", str(lines), "--to", "pairs", "--out", str(columns))
    made = head(f"{rows:,} rows", "seconds", "MB")
    for side, name in (("ours", "no-duplicates, embedloss"), ("peer", "no-duplicates, sentence-transformers")):
        found = forked(plan, str(columns), side, seconds=120 if side == "ours" else PEER_SECONDS)
        shown = (f"> {PEER_SECONDS:.0f}", "") if isinstance(found, str) else (f"{found[0]:.1f}", f"{found[1]:,.0f}")
        made.append(row(name, *shown))
        print(made[-1], file=sys.stderr, flush=True)
    for file in (lines, columns):
        seconds, memory = check_scale.measured("check", str(file), "--loss", "mnrl")
        made.append(row(f"`embedloss check`, {file.suffix}", f"{seconds:.1f}", f"{memory:,} (whole process)"))
        print(made[-1], file=sys.stderr, flush=True)
    return made


def section(quick: bool = False, rounds: int | None = None, rows: int | None = None) -> str:
    """Its part of the page, as Markdown."""
    rounds = rounds or (1 if quick else 5)
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder))
        lines = [
            f"Median of {rounds} round(s): `python tests/bench/static.py{' --quick' * quick}`. Both sides tokenise",
            "the texts of the first epoch as they come, on one thread; ours keeps their tokens for those that follow.",
            "",
            *head("training", "texts/s", "peer's", "faster", "peak MB", "peer's", "losses differ"),
            *(training(Path(folder), rounds, *length) for length in (QUICK if quick else EPOCHS)),
        ]
        if rows or not quick:
            lines += ["", *scale(Path(folder), rows or 1_000_000)]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round of a third of an epoch, no plans and checks")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--rows", type=int)
    if sys.argv[1:2] == ["--side"]:
        return one_side(sys.argv[2:])
    options = parser.parse_args()
    print(section(options.quick, options.rounds, options.rows))
    return None


if __name__ == "__main__":
    main()
