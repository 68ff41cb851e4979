"""Rerankers: every loss of scores, trained through the command line on both kinds of model; writes docs/results/rerankers.md.

    python tests/bench/rerank.py --data DATA --work FOLDER [--sections cranfield,liveqa] [--minutes 13]
    python tests/bench/rerank.py --work FOLDER --table docs/results/rerankers.md

A row is one `embedloss train` and one `embedloss evaluate`, run in this process so that torch is loaded once. Finished rows are
kept in the work folder, one line each, and are not run again: several calls share the work, and the second form writes the page
from what is there. The tables of memory and of NLI come from `rerank_memory.py` and `rerank_nli.py` in the same folder.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import random
import shlex
import sys
import textwrap
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).parent))
from trained import make_start, rows, write

BI, CROSS = "bi-encoder", "cross-encoder"
STEPS, LONGER, BATCH, DOCS, TOKENS, FOLDS = 40, 200, 4, 6, 64, 3
RATES = {BI: "1e-4", CROSS: "2e-4"}
WARM_UP = ("ce_mnrl(num_negatives=3)", 16, 200, "3e-4")  # loss, batch, steps, learning rate
SEEDED = ["list_net()", "lambda_loss()"]
SEEDS = (1, 2, 3)
TAUGHT = 400  # questions that the teacher scores


# -- data -------------------------------------------------------------------------------------------------------------
def pieces(row: dict[str, Any], size: int, rng: random.Random) -> list[dict[str, Any]]:
    """A list cut into lists of at most `size` documents, dealt out by grade so that each piece has all grades if it can."""
    found = [(d, s) for d, s in zip(row["docs"], row["scores"], strict=True) if d.strip()]
    rng.shuffle(found)
    found.sort(key=lambda pair: -pair[1])
    count = -(-len(found) // size)
    made = []
    for i in range(count):
        part = found[i::count]
        rng.shuffle(part)
        if len({s for _, s in part}) > 1:
            made.append({"query": row["query"], "docs": [d for d, _ in part], "grades": [s for _, s in part]})
    return made


def short(items: list[dict[str, Any]], rng: random.Random) -> list[dict[str, Any]]:
    made = [piece for row in items for piece in pieces(row, DOCS, rng)]
    rng.shuffle(made)
    return made


def whole(items: list[dict[str, Any]], rng: random.Random) -> list[dict[str, Any]]:
    return [piece for row in items for piece in pieces(row, 10**6, rng)]


def folds(source: Path) -> dict[str, list[dict[str, Any]]]:
    """LiveQA-Med, whose questions have no split: training and test lists of each fold."""
    rng = random.Random(0)
    found = [{**r, "query": r["summary"]} for r in rows(source / "liveqa_med/listwise.jsonl")]
    rng.shuffle(found)
    made = {}
    for fold in range(FOLDS):
        made[f"liveqa-{fold}"] = short([r for i, r in enumerate(found) if i % FOLDS != fold], rng)
        made[f"liveqa-{fold}-test"] = whole(found[fold::FOLDS], rng)
    return made


def make_data(source: Path, work: Path, teacher: str) -> dict[str, str]:
    """Every training and test file, by name."""
    from embedloss import load_encoder

    rng = random.Random(0)

    def pairs(items: list[dict[str, Any]], best: float) -> list[dict[str, Any]]:
        made = [
            {"first": row["query"], "second": d, "score": s / best}
            for row in items
            for d, s in zip(row["docs"], row["grades"], strict=True)
        ]
        rng.shuffle(made)
        return made

    def tuples(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The best document against those of grade 0."""
        made = []
        for row in items:
            ranked = sorted(zip(row["grades"], row["docs"], strict=True), key=lambda pair: -pair[0])
            none = [d for s, d in ranked if s == 0]
            if none and ranked[0][0] > 0:
                made.append({"anchor": row["query"], "positive": ranked[0][1], "negative": none})
        return made

    cranfield = short(rows(source / "cranfield/listwise_train.jsonl"), rng)
    medquad = [{"anchor": r["query"], "positive": r["positive"]} for r in rows(source / "medquad/train.jsonl")]
    random.Random(0).shuffle(medquad)
    medquad = medquad[:6000]
    seen = {text for pair in medquad for text in pair.values()}

    def unseen(row: dict[str, Any]) -> bool:
        return seen.isdisjoint([row["query"], row["positive"], *row["negatives"]])

    def judged(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
        found = [{"query": r["query"], "docs": [r["positive"], *r["negatives"]]} for r in items]
        return [{**r, "scores": [1] + [0] * (len(r["docs"]) - 1)} for r in found]

    hard = [r for r in rows(source / "medquad/hard_negatives.jsonl") if r["negatives"]]
    hard, hard_test = [r for r in hard if not unseen(r)], [r for r in hard if unseen(r)]

    model = load_encoder(teacher, max_length=TOKENS)
    taught = []
    for r in hard[:TAUGHT]:
        query, *vectors = model.encode([r["query"], r["positive"], *r["negatives"]], normalize=True)
        scores = [round(20 * float(query @ v), 4) for v in vectors]
        taught.append({"query": r["query"], "positive": r["positive"], "negative": r["negatives"], "scores": scores})
    margins = [
        {**{k: v for k, v in r.items() if k != "scores"}, "margins": [round(r["scores"][0] - s, 4) for s in r["scores"][1:]]}
        for r in taught
    ]

    def stsb(name: str) -> list[dict[str, Any]]:
        found = rows(source / f"stsb/{name}.jsonl")
        return [{"first": r["sentence1"], "second": r["sentence2"], "score": r["score"]} for r in found]

    made = {
        "warm-up": medquad,
        "cranfield": cranfield,
        "cranfield-pairs": pairs(cranfield, 4.0),
        "cranfield-tuples": tuples(cranfield),
        "cranfield-test": whole(rows(source / "cranfield/listwise_test.jsonl"), rng),
        "hard": whole(judged(hard), rng),
        "hard-tuples": [{"anchor": r["query"], "positive": r["positive"], "negative": r["negatives"]} for r in hard],
        "hard-scores": taught,
        "hard-margins": margins,
        "hard-test": whole(judged(hard_test), rng),
        "stsb": stsb("train"),
        "stsb-test": stsb("test"),
    }
    made.update(folds(source))
    return {name: write(work / "data" / f"{name}.jsonl", items) for name, items in made.items()}


# -- rows -------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Trained:
    """One training and its measurement; `start` is "body" (two layers, no ranking head) or "warm" (after the warm-up)."""

    kind: str
    loss: str
    data: str
    test: str
    start: str = "body"
    seed: int = 1
    batch: int = BATCH
    steps: int = STEPS
    rate: str = ""

    @property
    def key(self) -> str:
        return " | ".join(str(value) for value in vars(self).values())

    def words(self, model: str, data: str, out: str) -> list[str]:
        """The command."""
        kind = [] if self.start == "warm" else ["--kind", self.kind]
        return [
            "train", *kind, "--model", model, "--data", data, "--loss", self.loss, "--out", out, "--overwrite",
            "--max-steps", str(self.steps), "--batch-size", str(self.batch), "--max-length", str(TOKENS),
            "--learning-rate", self.rate or RATES[self.kind], "--seed", str(self.seed), "--save-steps", "0",
        ]  # fmt: skip


def begin(kind: str) -> str:
    return "warm" if kind == CROSS else "body"


MLE = ["list_mle(respect_input_order=False)", "plist_mle(respect_input_order=False)"]
SCHEMES = [f"lambda_loss('{scheme}')" for scheme in ("lambdarank", "ndcg-loss2", "ndcg-loss1")]
LISTWISE = [*SEEDED, "rank_net()", *MLE, "adr_mse()", *SCHEMES]
MARGIN = "margin_mse(similarity_fct='cosine', scale=20)"
KL = "distill_kl_div(similarity_fct='cosine', scale=20)"
PAIR_BATCH = BATCH * DOCS


def pair_losses(kind: str) -> list[str]:
    """Losses of pairs with a score from 0 to 1; what of it a bi-encoder's cosine needs."""
    return ["bce()", "score_mse(activation_fn='sigmoid')"] if kind == CROSS else ["bce(scale=5)", "score_mse()"]


def tuple_loss(kind: str) -> str:
    return "ce_mnrl(num_negatives=3)" if kind == CROSS else "mnrl()"


def cranfield(kind: str) -> list[Trained]:
    test = "cranfield-test"
    return [
        *[Trained(kind, loss, "cranfield", test, begin(kind)) for loss in LISTWISE],
        *[Trained(kind, loss, "cranfield-pairs", test, begin(kind), batch=PAIR_BATCH) for loss in pair_losses(kind)],
        Trained(kind, tuple_loss(kind), "cranfield-tuples", test, begin(kind)),
    ]


def seeds(kind: str) -> list[Trained]:
    return [Trained(kind, loss, "cranfield", "cranfield-test", begin(kind), s) for s in SEEDS[1:] for loss in SEEDED]


def bodies() -> list[Trained]:
    return [Trained(CROSS, loss, "cranfield", "cranfield-test") for loss in SEEDED[:1]]


def longer(kind: str) -> list[Trained]:
    return [Trained(kind, SEEDED[0], "cranfield", "cranfield-test", begin(kind), steps=LONGER)]


def liveqa(kind: str) -> list[Trained]:
    return [Trained(kind, loss, f"liveqa-{f}", f"liveqa-{f}-test", begin(kind)) for loss in SEEDED[:1] for f in range(FOLDS)]


def hard(kind: str) -> list[Trained]:
    cases = [(tuple_loss(kind), "hard-tuples"), ("list_net()", "hard"), (MARGIN, "hard-margins"), (KL, "hard-scores")]
    return [Trained(kind, loss, data, "hard-test", begin(kind)) for loss, data in cases]


def others() -> list[Trained]:
    made = []
    for kind in (CROSS, BI):
        made += [Trained(kind, loss, "stsb", "stsb-test", begin(kind), batch=32) for loss in pair_losses(kind)]
    return made


SECTIONS: dict[str, list[Trained]] = {
    "cranfield": sorted(
        (t for pair in zip(cranfield(CROSS), cranfield(BI), strict=True) for t in pair), key=lambda t: t.loss in SCHEMES
    ),
    "hard": [*hard(CROSS), *hard(BI)],
    "others": others(),
    "longer": [*longer(CROSS), *longer(BI)],
    "liveqa": [*liveqa(CROSS), *liveqa(BI)],
    "seeds": [*bodies(), *sorted([*seeds(CROSS), *seeds(BI)], key=lambda t: t.loss != SEEDED[0])],
}


# -- work -------------------------------------------------------------------------------------------------------------
def command(*words: str) -> str:
    """One `embedloss` command in this process; its standard output."""
    from embedloss_cli.__main__ import run

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = run(words)
    if status:
        raise RuntimeError(f"embedloss {shlex.join(words)}\n{out.getvalue()[-2000:]}{err.getvalue()[-2000:]}")
    return out.getvalue()


class Kept:
    """Finished rows by key, one JSON line each, so that two processes may write."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def read(self) -> dict[str, Any]:
        return {r["key"]: r["found"] for r in rows(self.file)} if self.file.is_file() else {}

    def add(self, key: str, found: Any) -> None:
        with self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"key": key, "found": found}) + "\n")


def plain(test: str, who: str) -> str:
    return f"{who} | {test}"


def work_on(options: argparse.Namespace, work: Path, kept: Kept) -> None:
    from embedloss import load_encoder

    start, teacher = make_start(work)
    names = work / "files.json"
    if not names.is_file():
        names.write_text(json.dumps(make_data(Path(options.data), work, teacher)))
    files: dict[str, str] = json.loads(names.read_text())
    warm, out = str(work / "warm"), str(work / f"out-{os.getpid()}")
    end = time.monotonic() + 60 * options.minutes
    if not Path(warm).is_dir():
        loss, batch, steps, rate = WARM_UP
        made = Trained(CROSS, loss, "warm-up", "", batch=batch, steps=steps, rate=rate)
        command(*made.words(start, files["warm-up"], warm + "-unfinished"))
        Path(warm + "-unfinished").rename(warm)
    models = {"the start": start, "MiniLM": teacher}
    for who in models:
        short = work / f"{who}-{TOKENS}".replace(" ", "-")  # as many tokens as the trained models read
        if not short.is_dir():
            load_encoder(models[who], max_length=TOKENS).save(short)
        models[who] = str(short)
    models["warm"] = warm

    def measured(model: str, test: str) -> dict[str, Any]:
        found = json.loads(command("evaluate", model, files[test], "--json"))
        return {"metrics": found["metrics"], "baselines": found.get("baselines", {})}

    def todo() -> Iterator[tuple[str, Any]]:
        for section in options.sections.split(","):
            for row in SECTIONS[section]:
                for who in ("the start", "MiniLM", "warm"):
                    yield plain(row.test, who), lambda who=who, row=row: measured(models[who], row.test)
                yield row.key, lambda row=row: trained(row)

    def trained(row: Trained) -> dict[str, Any]:
        command(*row.words(warm if row.start == "warm" else start, files[row.data], out))
        return measured(out, row.test)

    for key, make in todo():
        if time.monotonic() > end:
            print("stopped; call again to go on", flush=True)
            return
        if key not in kept.read():
            begun = time.process_time()
            found = make()
            kept.add(key, found)
            print(f"{key}: {found['metrics']} ({time.process_time() - begun:.0f} s of CPU)", flush=True)


# -- page -------------------------------------------------------------------------------------------------------------
def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def cell(values: list[float]) -> str:
    """The mean of several seeds with the lowest and the highest, or the one value; "not run" without any."""
    if not values:
        return "not run"
    return f"{mean(values):.3f}" + (f" ({min(values):.3f} to {max(values):.3f})" if len(values) > 1 else "")


def table(head: list[str], lines: list[list[str]]) -> str:
    line = ["| " + " | ".join(cells) + " |" for cells in [head, ["---"] + ["---:"] * (len(head) - 1), *lines]]
    return "\n".join(line)


def section(title: str, text: str, shown: str) -> str:
    return f"## {title}\n\n{textwrap.fill(text, 128, break_on_hyphens=False)}\n\n{shown}"


def typed(words: list[str]) -> str:
    """A command over several lines."""
    lines = textwrap.wrap(shlex.join(["embedloss", *words]), 120, break_on_hyphens=False, break_long_words=False)
    return " \\\n    ".join(lines)


def page(done: dict[str, Any], tables: list[str]) -> str:
    def value(key: str, metric: str = "ndcg@10") -> list[float]:
        return [done[key]["metrics"][metric]] if key in done else []

    def floors(tests: list[str], metric: str = "ndcg@10") -> list[list[str]]:
        """Orders and models that nothing was trained for; the mean over the tests."""
        lines = []
        known = [done[key]["baselines"] for t in tests if (key := plain(t, "warm")) in done]
        if len(known) == len(tests):
            lines = [[who, f"{mean([k[who][metric] for k in known]):.3f}", ""] for who in ("random order", "BM25")]
        for who, name, column in (("warm", "after the warm-up", 1), ("the start", "two layers of MiniLM, the start", 2),
                                  ("MiniLM", "the whole of MiniLM", 2)):  # fmt: skip
            found = [v for t in tests for v in value(plain(t, who), metric)]
            if len(found) == len(tests):
                lines.append([name, "", ""])
                lines[-1][column] = f"{mean(found):.3f}"
        return lines

    def both(make: Any, group: Any = lambda row: [row]) -> list[list[str]]:
        lines = []
        for one, two in zip(make(CROSS), make(BI), strict=True):
            cells = [cell([v for row in group(r) for v in value(row.key)]) for r in (one, two)]
            name = f"`{one.loss}`" if one.loss == two.loss else f"`{one.loss}`; `{two.loss}`"
            lines.append([name, *cells])
        return lines

    def with_seeds(row: Trained) -> list[Trained]:
        more = [r for r in SECTIONS["seeds"] if r.loss == row.loss and r.kind == row.kind and r.start == row.start]
        return [row, *more]

    head = ["order, model or loss", CROSS, BI]
    example = Trained(CROSS, "lambda_loss()", "", "", "warm")
    loss, batch, steps, rate = WARM_UP
    before_it = Trained(CROSS, loss, "", "", batch=batch, steps=steps, rate=rate)
    warmed, shown = before_it.words("START", "MEDQUAD.jsonl", "WARM"), example.words("WARM", "TRAIN.jsonl", "OUT")
    parts = [
        HEAD.format(
            warmed=typed(warmed),
            shown=typed(shown),
            steps=STEPS,
            batch=BATCH,
            docs=DOCS,
            tokens=TOKENS,
            cross=RATES[CROSS],
            bi=RATES[BI],
        )
    ]
    more = [
        [f"`{one.loss}`, {LONGER} steps", cell(value(one.key)), cell(value(two.key))]
        for one, two in zip(longer(CROSS), longer(BI), strict=True)
    ]
    more += [[f"`{r.loss}`, no warm-up", cell(value(r.key)), ""] for r in bodies()]
    spread = "Each was trained once, with one seed, so small differences say nothing. "
    if any(row.key in done for kind in (CROSS, BI) for row in seeds(kind)):
        spread = (
            "Values with a range are means over several seeds, with the lowest and the highest; all others were trained once, "
            "and differences smaller than these ranges say nothing. "
        )
    text = (
        f"nDCG@10 on the 50 test queries with all of their documents (12 to 39). {spread}"
        f"Losses of pairs ({PAIR_BATCH} a step) saw the grade divided by 4 as score, losses of tuples the "
        "best document of a list "
        f"against those of grade 0; the others saw {BATCH} lists of at most {DOCS} documents a step. "
        "`rank_net` is `lambda_loss` "
        "without weights."
    )
    lists = [*floors(["cranfield-test"]), *both(cranfield, with_seeds), *more]
    parts.append(section("Cranfield", text, table(head, lists)))
    tests = [f"liveqa-{f}-test" for f in range(FOLDS)]
    lines = []
    for name in SEEDED[:1]:
        cells = []
        for kind in (CROSS, BI):
            found = [v for r in liveqa(kind) if r.loss == name for v in value(r.key)]
            cells.append(cell(found if len(found) == FOLDS else []))
        lines.append([f"`{name}`", *cells])
    text = (
        f"nDCG@10, cross-validated in {FOLDS} folds of questions (their one-sentence summaries; grades 0 to "
        "3): the mean over the "
        "folds, with the lowest and the highest fold. Questions whose answers all have the same grade are left out. The "
        "warm-up saw answers of the same collection, with other questions."
    )
    parts.append(section("LiveQA-Med", text, table(head, [*floors(tests), *lines])))
    text = (
        "nDCG@10 of one right answer among up to three answers to other questions about the same subject. Measured on the 156 "
        "questions of which the warm-up saw no text, trained on the others. The teacher of `margin_mse` and "
        "`distill_kl_div` is "
        f"the whole of MiniLM (cosine times 20), on {TAUGHT} questions; after the warm-up a cross-encoder is better than this "
        "teacher, and has nothing to gain from it."
    )
    parts.append(section("MedQuAD with hard negatives", text, table(head, [*floors(["hard-test"]), *both(hard)])))
    lines = []
    for row in others():
        metric, who = ("spearman", "warm") if row.kind == CROSS else ("spearman_cosine", "the start")
        before = [f"{v:.3f}" for v in value(plain(row.test, who), metric)]
        lines.append([f"{row.data} ({row.kind})", f"`{row.loss}`", metric, *(before or ["-"]), cell(value(row.key, metric))])
    text = (
        "STS-B (its test set; cross-encoders after the warm-up). On a bi-encoder `bce` is a poor choice: the score "
        "is a multiple of the "
        "cosine, and a probability near 0 asks for vectors that point in opposite directions."
    )
    parts.append(section("Scores of pairs", text, table(["data", "loss", "metric", "before", "after"], lines)))
    return "\n\n".join(part.strip() for part in [*parts, *tables]) + "\n"


HEAD = """# Rerankers

Every loss of scores, trained through the command line on both kinds of model. Made by

```text
python tests/bench/rerank.py --data ../shared/data --work FOLDER
python tests/bench/rerank_nli.py --data ../shared/data --work FOLDER
python tests/bench/rerank_memory.py --work FOLDER
python tests/bench/rerank.py --work FOLDER --table docs/results/rerankers.md
```

**How far these numbers go.** One thread of a shared CPU had to do: the start is the first two layers of MiniLM, a training
is {steps} steps of {batch} queries with at most {docs} documents, and all models read {tokens} tokens. The tables say whether
each loss trains both kinds of model, and how losses compare under equal and very short training. They do not say how good a
reranker becomes. Learning rates were not tuned by loss: {cross} for cross-encoders, {bi} for bi-encoders.

A bi-encoder starts from similarities that already mean something; a cross-encoder starts with a new head, on a body that has
never seen two texts at once. So that {steps} steps show something, the cross-encoders here first learnt on pairs of MedQuAD to
tell an answer from the answers to other questions, by the first of these commands; every row is then one command like the
second. START is the body without a ranking head.

```text
{warmed}
{shown}
```"""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", default="../shared/data")
    parser.add_argument("--work", required=True)
    parser.add_argument("--sections", default=",".join(SECTIONS))
    parser.add_argument("--minutes", type=float, default=10**6, help="begin no row after so many")
    parser.add_argument("--table", help="write this page, train nothing")
    options = parser.parse_args()
    work = Path(options.work)
    work.mkdir(parents=True, exist_ok=True)
    kept = Kept(work / "rerank.jsonl")
    if not options.table:
        work_on(options, work, kept)
        return
    tables = [file.read_text(encoding="utf-8") for name in ("nli.md", "memory.md") if (file := work / name).is_file()]
    Path(options.table).parent.mkdir(parents=True, exist_ok=True)
    Path(options.table).write_text(page(kept.read(), tables), encoding="utf-8")


if __name__ == "__main__":
    main()
