"""One training run of one side in a fresh process: prints JSON with speed, peak memory and the losses of every step.

    python sides.py ours --model FOLDER --data pairs.jsonl --columns query,positive --batch 64 --steps 8 [--recompute]

Both sides use their real trainer, the same rows in the same order, AdamW with the same settings, float32 unless told
otherwise, dropout off (the model folder says so) and texts cut at 256 tokens.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import random
import tempfile
import time
from itertools import cycle, islice
from typing import Any

from fresh import resident

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

ROLES = ("anchor", "positive", "negative")
FIRST = 16  # rows of the first step, which is not timed: it makes the optimizer's state, so that all others have it in memory
ABLATIONS = ("share", "sort", "lookups", "trim", "lean")


def read_rows(path: str, columns: list[str], rows: int) -> Any:
    """So many rows of a file in a random order that is always the same, from its beginning again where there are fewer.

    Files have an order (the first of STS-B are short captions), and both trainers shuffle.
    """
    import datasets

    with open(path, encoding="utf-8") as file:
        whole = [json.loads(line) for line in file]
    random.Random(0).shuffle(whole)
    found = list(islice(cycle(whole), rows))
    return datasets.Dataset.from_dict({name: [r[c] for r in found] for name, c in zip(ROLES, columns, strict=False)})


def batches(rows: int, size: int) -> list[list[int]]:
    """Row numbers of the batches: a small one, then whole ones."""
    return [list(range(FIRST)), *(list(range(begin, begin + size)) for begin in range(FIRST, rows, size))]


def clock() -> Any:
    import transformers

    class Clock(transformers.TrainerCallback):
        """When each step ended."""

        def __init__(self) -> None:
            self.times: list[float] = []

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.times.append(time.perf_counter())

    return Clock()


def settings(options: argparse.Namespace, out: str) -> dict[str, Any]:
    return dict(
        output_dir=out, max_steps=options.steps + 1, per_device_train_batch_size=options.batch, learning_rate=2e-5,
        logging_steps=1, save_strategy="no", report_to="none", disable_tqdm=True, seed=1,
        use_cpu=not options.cuda, warmup_steps=0, bf16=options.bf16,
    )  # fmt: skip


def switch_off(name: str) -> None:
    """Take one optimisation away; `share` is the collator's own option."""
    from embedloss import collate
    from embedloss.encoders import base, recompute

    if name == "sort":  # as many texts a chunk as the peer's mini-batch, in the order given
        collate.plan_chunks = lambda lengths, _: [list(range(b, min(b + 32, len(lengths)))) for b in range(0, len(lengths), 32)]
    elif name == "lookups":  # each chunk makes a gradient of the whole table of word embeddings
        base.shared_lookups = lambda encoder: None
        recompute.shared_lookups = lambda encoder, leaf: None
    elif name == "lean":
        base.lean = recompute.lean = lambda encoder: contextlib.nullcontext()
    elif name == "trim":
        base.TRIM.every = 1 << 60


def ours(options: argparse.Namespace, data: Any, out: str) -> tuple[Any, Any]:
    import numpy as np

    from embedloss import create_loss, load_encoder
    from embedloss.collate import Collator
    from embedloss.samplers import EpochSampler
    from embedloss.training import Trainer, TrainingArguments, TrainingStep

    class InOrder(EpochSampler):
        def joint_batches(self, size: int) -> list[Any]:
            return [np.array(rows) for rows in batches(self.rows, size)]

    class Fixed(Trainer):
        def sampler(self) -> EpochSampler:
            return InOrder(len(self.train_dataset), options.batch)

    switch_off(options.without)
    encoder = load_encoder(options.model, max_length=256)
    step = TrainingStep(encoder, create_loss("mnrl"), recompute=options.recompute)
    name = "triplets" if "negative" in data.column_names else "pairs"
    collator = Collator(encoder.processor, step.loss, name, share=False if options.without == "share" else None)
    if options.chunk_tokens:
        collator.chunk_tokens = options.chunk_tokens
    watch = clock()
    # The sample that shows how embeddings spread is encoded once in 50 steps: in a run of three it would count fifteenfold.
    arguments = TrainingArguments(**settings(options, out), probe_steps=0)
    trainer = Fixed(step, arguments, train_dataset=data, collator=collator, callbacks=[watch])
    return trainer, watch


def peer(options: argparse.Namespace, data: Any, out: str) -> tuple[Any, Any]:
    from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
    from sentence_transformers.sentence_transformer.losses import (
        CachedMultipleNegativesRankingLoss,
        MultipleNegativesRankingLoss,
    )
    from torch.utils.data import BatchSampler, SequentialSampler

    class InOrder(BatchSampler):
        def __iter__(self) -> Any:
            return iter(batches(len(data), self.batch_size))

        def __len__(self) -> int:
            return len(batches(len(data), self.batch_size))

    # Without padding: this attention alone makes it leave the padding out.
    attention = {"attn_implementation": "flash_attention_2"} if options.unpadded else {}
    model = SentenceTransformer(options.model, device="cuda" if options.cuda else "cpu", model_kwargs=attention)
    model.max_seq_length = 256
    if options.recompute:
        budget = {"mini_batch_num_tokens": options.chunk_tokens} if options.chunk_tokens else {"mini_batch_size": 32}
        loss = CachedMultipleNegativesRankingLoss(model, **budget)
    else:
        loss = MultipleNegativesRankingLoss(model)

    def in_order(dataset: Any, batch_size: int, drop_last: bool, **_: Any) -> Any:
        return InOrder(SequentialSampler(dataset), batch_size, drop_last)

    watch = clock()
    arguments = SentenceTransformerTrainingArguments(**settings(options, out), batch_sampler=in_order)
    return SentenceTransformerTrainer(model, args=arguments, train_dataset=data, loss=loss, callbacks=[watch]), watch


def matrix_speed(cuda: bool, half: bool) -> float:
    """Operations a second of this machine now: the best of many matrix products as MiniLM has them."""
    import torch

    rows = 65536 if cuda else 1024
    form: Any = {"device": "cuda" if cuda else "cpu", "dtype": torch.bfloat16 if half else torch.float32}
    x, weight = torch.randn(rows, 384, **form), torch.randn(1536, 384, **form)
    best = math.inf
    for _ in range(200):
        begin = time.perf_counter()
        torch.mm(x, weight.T)
        if cuda:
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - begin)
    return 2 * rows * 384 * 1536 / best


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("side", choices=["ours", "peer"])
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--columns", default="anchor,positive")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=6, help="that are timed, after a small one")
    parser.add_argument("--recompute", action="store_true")
    parser.add_argument("--chunk-tokens", type=int, help="the peer: mini_batch_num_tokens instead of mini-batches of 32")
    parser.add_argument("--cuda", action="store_true")
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--unpadded", action="store_true", help="the peer: flash attention over texts without padding")
    parser.add_argument("--last-untimed", action="store_true", help="where fetching a batch costs: the peer fetches one ahead")
    parser.add_argument("--without", choices=ABLATIONS, help="our side without one of its optimisations")
    options = parser.parse_args()
    data = read_rows(options.data, options.columns.split(","), FIRST + options.batch * options.steps)
    with tempfile.TemporaryDirectory() as out:
        trainer, watch = (ours if options.side == "ours" else peer)(options, data, out)
        trainer.train()
    losses = [float(e["loss"]) for e in trainer.state.log_history if "loss" in e]
    ends = watch.times[:-1] if options.last_untimed else watch.times
    seconds = (ends[-1] - ends[0]) / (len(ends) - 1)
    peak = resident()[1] / 2**20
    if options.cuda:
        import torch

        peak = torch.cuda.max_memory_allocated() / 2**20
    found = {"rows_per_second": options.batch / seconds, "peak_mb": peak, "losses": losses}
    if options.side == "ours":
        found["matrix_speed"] = matrix_speed(options.cuda, options.bf16)
    print("RESULT " + json.dumps(found))


if __name__ == "__main__":
    main()
