"""Memory of a step of LambdaLoss on a cross-encoder by the length of the lists, beside sentence-transformers.

    python tests/bench/rerank_memory.py --work FOLDER

Every number is the peak RSS of a fresh process. Finished ones are kept in the work folder, together with the table
`memory.md` that `rerank.py` puts on its page.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).parent))
from trained import make_start, rows, write

LENGTHS, TOKENS, STEPS, PAIRS = (16, 64, 256, 512), 32, 2, 16
SIDES = {
    "ours": "embedloss `--recompute`",
    "peer": f"sentence-transformers, `mini_batch_size={PAIRS}`",
    "plain": "embedloss, nothing recomputed",
}


def make_data(work: Path, length: int) -> str:
    """Two queries with `length` documents each, longer than what the model reads."""
    rng = random.Random(length)
    words = [a + b for a in ("air", "wing", "heat", "flow", "wave") for b in ("", "foil", "speed", "shock", "layer", "line")]

    def text(count: int) -> str:
        return " ".join(rng.choice(words) for _ in range(count))

    found = [
        {"query": text(8), "docs": [text(60) for _ in range(length)], "grades": [rng.randrange(4) for _ in range(length)]}
        for _ in range(2)
    ]
    return write(work / "data" / f"memory-{length}.jsonl", found)


def ours(start: str, data: str, out: str, more: list[str]) -> None:
    from embedloss_cli.__main__ import run

    status = run([
        "train", "--kind", "cross-encoder", "--model", start, "--data", data, "--loss", "lambda_loss()", "--out", out,
        "--overwrite", "--max-steps", str(STEPS), "--batch-size", "1", "--max-length", str(TOKENS), "--save-steps", "0", *more,
    ])  # fmt: skip
    if status:
        raise SystemExit(status)


def peer(start: str, data: str, out: str) -> None:
    import datasets
    from sentence_transformers import CrossEncoder, CrossEncoderTrainer, CrossEncoderTrainingArguments
    from sentence_transformers.cross_encoder.losses import LambdaLoss

    model = CrossEncoder(start, num_labels=1, max_length=TOKENS, device="cpu")
    lists = [{"query": r["query"], "docs": r["docs"], "labels": r["grades"]} for r in rows(Path(data))]
    arguments = CrossEncoderTrainingArguments(
        output_dir=out, max_steps=STEPS, per_device_train_batch_size=1, save_strategy="no", report_to="none", use_cpu=True,
        disable_tqdm=True, seed=1,
    )  # fmt: skip
    loss = LambdaLoss(model, mini_batch_size=PAIRS)
    CrossEncoderTrainer(model=model, args=arguments, train_dataset=datasets.Dataset.from_list(lists), loss=loss).train()
    model.save_pretrained(out)


def one(options: argparse.Namespace, work: Path) -> None:
    """Train in this process, then say what it took at most, in MB."""
    import resource

    import torch

    torch.set_num_threads(1)
    start, _ = make_start(work)
    data, out = make_data(work, options.length), str(work / f"memory-{options.side}")
    if options.side == "peer":
        peer(start, data, out)
    else:
        chunk = str(PAIRS * TOKENS if options.side == "ours" else 10**7)  # tokens a forward pass: as the peer's, or all
        ours(start, data, out, [*["--recompute"] * (options.side == "ours"), "--chunk-tokens", chunk])
    print("RESULT", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--work", required=True)
    parser.add_argument("--side", choices=list(SIDES), help="one number in this process")
    parser.add_argument("--length", type=int)
    parser.add_argument("--minutes", type=float, default=10**6, help="begin no process after so many")
    options = parser.parse_args()
    work = Path(options.work)
    work.mkdir(parents=True, exist_ok=True)
    if options.side:
        one(options, work)
        return
    file = work / "memory.json"
    end = time.monotonic() + 60 * options.minutes
    done: dict[str, float] = json.loads(file.read_text()) if file.is_file() else {}
    for side in SIDES:
        for length in LENGTHS:
            key = f"{side} {length} {TOKENS}"
            if key in done:
                continue
            if time.monotonic() > end:
                raise SystemExit("stopped; call again to go on")
            arguments = [sys.executable, __file__, "--work", str(work), "--side", side, "--length", str(length)]
            ran = subprocess.run(arguments, capture_output=True, text=True)
            if ran.returncode:
                raise SystemExit(ran.stderr[-3000:])
            done[key] = float(ran.stdout.split("RESULT")[1])
            file.write_text(json.dumps(done))
            (work / "memory.md").write_text(table(done), encoding="utf-8")
            print(key, round(done[key]), "MB", flush=True)


def table(done: dict[str, float]) -> str:
    def cell(key: str) -> str:
        return f"{done[key]:,.0f} MB" if key in done else "not run"

    lines = [["documents a query", *SIDES.values()], ["---:"] * (1 + len(SIDES))]
    lines += [[str(n), *(cell(f"{side} {n} {TOKENS}") for side in SIDES)] for n in LENGTHS]
    return TEXT + "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


TEXT = f"""## Memory by the length of the lists

Peak memory (RSS) of a fresh process, libraries and model included: {STEPS} steps of LambdaLoss on one query a step, pairs of
{TOKENS} tokens, two layers of MiniLM, float32 on the CPU. `mini_batch_size` and the chunks of `--recompute` put the same
{PAIRS} pairs through the model at a time (`--chunk-tokens {PAIRS * TOKENS}`).

"""


if __name__ == "__main__":
    main()
