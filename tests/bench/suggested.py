"""Does `embedloss suggest` put a sensible loss first, and do its commands run? Real data sets and their conversions.

    python tests/bench/suggested.py --data ../shared/data --work FOLDER [--table docs/results/suggested.md] [--minutes 13]

What is sensible is written down by hand: see `SETS`. The first suggestion, and the first
of those after a conversion, are run as commands for 20 steps on tiny models. What is done already in FOLDER is not done again.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import time
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

STEPS = 20
IN_BATCH = {"multiple-negatives-ranking", "cached-multiple-negatives-ranking", "multiple-negatives-symmetric-ranking"}
CLASSES = {"batch-hard-triplet", "batch-all-triplet", "batch-hard-soft-margin-triplet", "batch-semi-hard-triplet"}
SCORES = {"cosent", "angle", "cosine-similarity"}
BINARY = {"contrastive", "online-contrastive"}
LISTS = {"lambda-loss", "list-net", "rank-net", "plist-mle", "list-mle", "adr-mse"}
TEXTS = {"denoising-auto-encoder", "contrastive-tension", "contrastive-tension-in-batch-negatives"}
TEACHER = {"distill-kl-div", "margin-mse", "mse", "embed-distill"}

# name -> file or the conversion that makes it ("{teacher}": a tiny bi-encoder), what is sensible
SETS: dict[str, tuple[str, set[str]]] = {
    "banking77": ("banking77/train.jsonl", CLASSES),
    "trec_questions": ("trec_questions/train.jsonl", CLASSES),
    "cosqa labelled": ("cosqa/labelled_pairs.jsonl", BINARY),
    "cranfield lists": ("cranfield/listwise_train.jsonl", LISTS),
    "liveqa_med lists": ("liveqa_med/listwise.jsonl", LISTS),
    "medquad": ("medquad/train.jsonl", IN_BATCH),
    "medquad hard": ("medquad/hard_negatives.jsonl", IN_BATCH),
    "nli": ("nli/train.jsonl", {"softmax"}),
    "nli triplets": ("nli/triplets.jsonl", IN_BATCH | {"triplet"}),
    "general sentences": ("sentences/general.jsonl", TEXTS),
    "medical sentences": ("sentences/medical.jsonl", TEXTS),
    "stsb": ("stsb/train.jsonl", SCORES),
    "tatoeba German": ("tatoeba/deu-eng.jsonl", IN_BATCH),
    "tatoeba Japanese": ("tatoeba/jpn-eng.jsonl", IN_BATCH),
    "tldr_commands": ("tldr_commands/train.jsonl", IN_BATCH),
    "banking77 as pairs": ("convert banking77/train.jsonl --drop label_id --to pairs", IN_BATCH),
    "banking77 as pairs+binary": ("convert banking77/train.jsonl --drop label_id --to pairs+binary", BINARY),
    "nli as triplets": ("convert nli/train.jsonl --drop label_id --drop source --to triplets", IN_BATCH | {"triplet"}),
    "stsb as pairs": ("convert stsb/train.jsonl --to pairs --threshold 0.8", IN_BATCH),
    "stsb as pairs+binary": ("convert stsb/train.jsonl --to pairs+binary --threshold 0.6", BINARY),
    "cranfield as n-tuples": ("convert cranfield/listwise_train.jsonl --drop doc_ids --to n-tuples", IN_BATCH),
    "vaswani as n-tuples": (
        "convert --qrels vaswani/qrels.jsonl --corpus vaswani/corpus.jsonl --queries vaswani/queries.jsonl --to n-tuples",
        IN_BATCH,
    ),
    "sentences with words deleted": ("convert sentences/general.jsonl --to source-target", {"denoising-auto-encoder"}),
    "medquad hard, scored": (
        "convert medquad/hard_negatives.jsonl --to n-tuples+scores --teacher {teacher}",
        TEACHER,
    ),
    "tatoeba, vectors": ("convert tatoeba/fra-eng.jsonl --drop lang --to texts+embedding --teacher {teacher}", TEACHER),
}


def command(*words: str) -> tuple[int, str]:
    """Run a command of embedloss in this process; exit status and output."""
    from embedloss_cli.__main__ import run

    output = StringIO()
    with redirect_stdout(output), redirect_stderr(output):
        status = run(list(words))
    return status, output.getvalue()


def make_models(work: Path) -> dict[str, str]:
    from embedloss.testing.models import tiny_bert, tiny_cross_encoder

    folders = {"bi-encoder": work / "bi", "cross-encoder": work / "cross"}
    if not folders["cross-encoder"].is_dir():
        tiny_bert(folders["bi-encoder"])
        tiny_cross_encoder(folders["cross-encoder"])
    return {kind: str(folder) for kind, folder in folders.items()}


def trained(words: list[str], out: Path, models: dict[str, str]) -> str:
    """Run a suggested command for a few steps; "" if it works, else what it says."""
    from embedloss.registry import create_loss

    loss = words[words.index("--loss") + 1].replace("{teacher}", models["bi-encoder"])
    spec = create_loss(loss).spec
    words[words.index("--model") + 1] = models[spec.models[0]]
    words[words.index("--out") + 1] = str(out)
    more = ["--max-steps", str(STEPS), "--save-steps", "0", "--overwrite"]
    status, output = command(*words[1:], *more)
    return "" if status == 0 else output.strip().splitlines()[-1] if output.strip() else f"exit {status}"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", default="../shared/data")
    parser.add_argument("--work", required=True)
    parser.add_argument("--table")
    parser.add_argument("--minutes", type=float, default=1e9, help="begin no further data set after so long")
    options = parser.parse_args()
    from embedloss.suggest import suggest

    data, work = Path(options.data).resolve(), Path(options.work).resolve()
    work.mkdir(parents=True, exist_ok=True)
    models = make_models(work)
    finished = work / "suggested.json"
    done = json.loads(finished.read_text()) if finished.is_file() else {}
    os.chdir(work)  # converted files are written where the command runs
    began = time.perf_counter()
    for name, (source, sensible) in SETS.items():
        if name in done or time.perf_counter() - began > 60 * options.minutes:
            continue
        if source.startswith("convert"):
            words = [str(data / w) if (data / w).is_file() else w.format(teacher=models["bi-encoder"]) for w in source.split()]
            file = work / f"{name.replace(' ', '-').replace('+', '-').replace(',', '')}.jsonl"
            status, output = command(*words, "--out", str(file), "--overwrite")
            if status:
                raise SystemExit(f"{name}: {output}")
        else:
            file = data / source
        answer = suggest(str(file))
        listed = [*answer.as_is[:1], *answer.converted[:1]]  # a data set with faulty rows is converted first
        first = listed[0]
        outcomes = []
        for each in listed:
            status, output = 0, ""
            if each.conversion:
                conversion = shlex.split(each.conversion)
                if "--teacher" in conversion:
                    conversion[conversion.index("--teacher") + 1] = models["bi-encoder"]
                status, output = command(*conversion[1:], "--overwrite")
            outcomes.append(output.strip() if status else trained(shlex.split(each.command), work / "run", models) or "runs")
        done[name] = {
            "rows": answer.found.report.rows,
            "format": first.format,
            "first": first.loss,
            "sensible": first.loss in sensible,
            "said": outcomes[0],
            "after": f"{listed[-1].loss} on {listed[-1].format}: {outcomes[-1]}" if listed[-1].conversion else "",
        }
        finished.write_text(json.dumps(done, indent=1))
        print(name, done[name], flush=True)
    if options.table:
        right = sum(found["sensible"] for found in done.values())
        ran = sum(found["said"] == "runs" for found in done.values())
        lines = [TEXT.format(total=len(done), right=right, ran=ran, steps=STEPS)]
        for name, found in done.items():
            _, sensible = SETS[name]
            mark = "yes" if found["sensible"] else f"no: {', '.join(sorted(sensible))}"
            lines.append(
                f"| {name} | {found['rows']:,} | {found['format']} | `{found['first']}` | {mark} "
                f"| {found['said']} | {found['after']} |"
            )
        waiting = [name for name in SETS if name not in done]
        if waiting:
            lines += ["", f"Not yet run: {'; '.join(waiting)}."]
        Path(options.table).write_text("\n".join(lines) + "\n", encoding="utf-8")


TEXT = """# Suggestions

What `embedloss suggest` names first for {total} data sets and conversions of such: in {right} it is one of the losses that were
written down by hand as sensible. Its command ran {steps} steps on a tiny model in {ran} of {total}; so did, where one
is suggested, the first conversion and the command that follows it, unless the last column says otherwise. Made by

```text
python tests/bench/suggested.py --data ../shared/data --work FOLDER --table docs/results/suggested.md
```

| data | rows | read as | first loss | sensible | its command | after a conversion |
| --- | --- | --- | --- | --- | --- | --- |"""


if __name__ == "__main__":
    main()
