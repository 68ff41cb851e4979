"""Natural language inference with CrossEntropy on a cross-encoder, beside sentence-transformers.

    python tests/bench/rerank_nli.py --data DATA --work FOLDER

Both libraries train from one saved model, whose new head is therefore the same, on the same rows with the same settings; both
results are measured by `embedloss evaluate`. Finished rows are kept in the work folder, together with the table `nli.md` that
`rerank.py` puts on its page.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shlex
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).parent))
from trained import make_start, rows, write

TOKENS, TESTED, CLASSES = 64, 1000, 3
WHOLE = "the whole of MiniLM"
SIDES = {"ours": "embedloss", "peer": "sentence-transformers"}


@dataclass(frozen=True)
class Recipe:
    """How one body is trained."""

    body: str
    steps: int
    batch: int
    rate: str
    seed: int


RATES, SEEDS = ("1e-4", "2e-4"), (1, 2, 3)
RECIPES = [Recipe(WHOLE, 160, 16, rate, seed) for seed in SEEDS for rate in RATES]


def make_data(source: Path, work: Path) -> tuple[str, str]:
    """The pairs of SNLI: those of MultiNLI are longer, and the test has none."""
    made = []
    for name, count in (("train", 10**6), ("test", TESTED)):
        found = [r for r in rows(source / f"nli/{name}.jsonl") if r["source"].startswith("snli") and r["label_id"] >= 0]
        items = [{"first": r["premise"], "second": r["hypothesis"], "label": r["label_id"]} for r in found[:count]]
        made.append(write(work / "data" / f"snli-{name}.jsonl", items))
    return made[0], made[1]


def ours_words(recipe: Recipe, start: str, data: str, out: str) -> list[str]:
    """The command."""
    return [
        "train", "--model", start, "--data", data, "--loss", "cross_entropy()", "--out", out, "--overwrite", "--max-steps",
        str(recipe.steps), "--batch-size", str(recipe.batch), "--max-length", str(TOKENS), "--learning-rate", recipe.rate,
        "--seed", str(recipe.seed), "--save-steps", "0",
    ]  # fmt: skip


def peer(recipe: Recipe, start: str, data: str, out: str) -> None:
    import datasets
    from sentence_transformers import CrossEncoder, CrossEncoderTrainer, CrossEncoderTrainingArguments
    from sentence_transformers.cross_encoder.losses import CrossEntropyLoss

    model = CrossEncoder(start, num_labels=CLASSES, max_length=TOKENS, device="cpu")
    arguments = CrossEncoderTrainingArguments(
        output_dir=out, max_steps=recipe.steps, per_device_train_batch_size=recipe.batch, learning_rate=float(recipe.rate),
        warmup_ratio=0.1, save_strategy="no", report_to="none", use_cpu=True, disable_tqdm=True, seed=recipe.seed,
    )  # fmt: skip
    train = datasets.Dataset.from_list(rows(Path(data)))
    CrossEncoderTrainer(model=model, args=arguments, train_dataset=train, loss=CrossEntropyLoss(model)).train()
    model.save_pretrained(out)


def command(*words: str) -> str:
    done = subprocess.run([sys.executable, "-m", "embedloss_cli", *words], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"embedloss {shlex.join(words)}\n{done.stdout[-2000:]}{done.stderr[-3000:]}")
    return done.stdout


def one(recipe: Recipe, side: str, source: Path, work: Path) -> float:
    """Accuracy after training."""
    import torch

    from embedloss import load_encoder

    torch.set_num_threads(1)
    _, body = make_start(work)
    start, out = work / f"nli-start {recipe.body}".replace(" ", "-"), str(work / f"nli-{side}-{RECIPES.index(recipe)}")
    data, test = make_data(source, work)
    if not start.is_dir():
        load_encoder(body, "cross-encoder", num_labels=CLASSES, max_length=TOKENS, seed=1).save(start)
    if side == "peer":
        peer(recipe, str(start), data, out)
    else:
        command(*ours_words(recipe, str(start), data, out))
    return float(json.loads(command("evaluate", out, test, "--json"))["metrics"]["accuracy"])


def table(done: dict[str, float]) -> str:
    shown = shlex.join(["embedloss", *ours_words(RECIPES[0], "START", "SNLI.jsonl", "OUT")])
    seeds = [f"seed {seed}" for seed in SEEDS]
    lines = [["learning rate", "library", *seeds], ["---:", "---", *["---:"] * len(SEEDS)]]
    for rate, side in itertools.product(RATES, SIDES):
        found = [done.get(f"{side} | {recipe}") for recipe in RECIPES if recipe.rate == rate]
        lines.append([rate, SIDES[side], *(f"{value:.3f}" if value is not None else "not run" for value in found)])
    typed = " \\\n    ".join(textwrap.wrap(shown, 120, break_on_hyphens=False, break_long_words=False))
    shown = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return TEXT.format(typed=typed) + shown + "\n"


TEXT = f"""## Natural language inference

Accuracy on {TESTED:,} pairs of SNLI's test set (1/3 is chance) after `cross_entropy` on the pairs of its development set.
START is a new head on the body, saved once: both libraries train from the same weights, by the command below and by
`CrossEntropyLoss`, each with its own order of the rows and its own dropout, so that equal seeds are not equal runs. After so
few steps, and most at the higher rate, the seed decides whether a run has left chance.

```text
{{typed}}
```

"""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", default="../shared/data")
    parser.add_argument("--work", required=True)
    options = parser.parse_args()
    work = Path(options.work)
    work.mkdir(parents=True, exist_ok=True)
    file = work / "nli.json"
    done: dict[str, float] = json.loads(file.read_text()) if file.is_file() else {}
    for recipe in RECIPES:
        for side in SIDES:
            if (key := f"{side} | {recipe}") not in done:
                done[key] = one(recipe, side, Path(options.data), work)
                file.write_text(json.dumps(done))
                print(key, done[key], flush=True)
            (work / "nli.md").write_text(table(done), encoding="utf-8")


if __name__ == "__main__":
    main()
