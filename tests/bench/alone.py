"""Losses alone, value and gradient from ready embeddings: seconds and memory beside sentence-transformers 6.2.0.

    python tests/bench/alone.py [--quick] [--only mnrl,gist] [--sizes 256,1024] [--rounds 5] [--threads 2]

Every point is a fresh process; memory is what it took at most beyond what it had before, embeddings included. A side stops at
the first size that takes more than 60 seconds or 8 GB.
"""

from __future__ import annotations

import argparse
import gc
import math
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).parent))

import torch
from fresh import bounded, forget_peak, forked, head, resident, row
from sentence_transformers.sentence_transformer import losses as theirs
from torch import Tensor, nn

from embedloss import Embeddings, create_loss

DIMENSION = 384
SIZES = (256, 1024, 4096, 16384)
DIMS = [384, 192, 96, 48, 24]
SECONDS = 60.0


class Ready(nn.Module):
    """A model of sentence-transformers whose embeddings are given."""

    max_seq_length = 512

    def __init__(self, key: str = "x") -> None:
        super().__init__()
        from tokenizers import Tokenizer, models
        from transformers import PreTrainedTokenizerFast

        self.key = key
        self.tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, "a")))

    def __getitem__(self, index: int) -> Any:
        return self

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"sentence_embedding": features[self.key]}

    def get_embedding_dimension(self) -> int:
        return DIMENSION


class Data:
    """Pairs whose texts are near each other, a guide's view of them, classes of four texts, and labels."""

    def __init__(self, rows: int) -> None:
        g = torch.Generator().manual_seed(rows)

        def near(x: Tensor) -> Tensor:
            return x + torch.randn(rows, DIMENSION, generator=g)

        first = torch.randn(rows, DIMENSION, generator=g)
        self.leaves = [first.requires_grad_(), near(first.detach()).requires_grad_()]
        self.guide = [near(t.detach()) for t in self.leaves]
        self.classes = torch.arange(rows) % max(rows // 4, 1)  # of four texts each
        self.eight = torch.arange(rows) % 8  # eight classes
        self.scores = torch.rand(rows, generator=g)
        self.same = (torch.arange(rows) % 2 == 0).long()


Side = Callable[[Data], Callable[[], Tensor]]
"""What computes the loss of ready data. Made anew for every point; only calling it is timed."""


def ours(text: str, roles: tuple[str, ...] = ("anchor", "positive"), labels: str = "") -> Side:
    def make(data: Data) -> Callable[[], Tensor]:
        loss = create_loss(text)

        def value() -> Tensor:
            leaves = data.leaves[: len(roles)]
            emb = Embeddings.of(**dict(zip(roles, leaves, strict=True)))
            if "gist" in text:
                emb = emb.with_guide(Embeddings.of(**dict(zip(roles, data.guide, strict=True))), "guide")
            if "tension" in text:
                emb = Embeddings.of(text=leaves[0]).with_twin(Embeddings.of(text=data.leaves[1]))
            total: Tensor = loss(emb, getattr(data, labels) if labels else None).total
            return total

        return value

    return make


def peer(name: str, columns: int = 2, labels: str = "", **options: Any) -> Side:
    def make(data: Data) -> Callable[[], Tensor]:
        loss = getattr(theirs, name)(Ready(), **options)
        return lambda: loss.compute_loss_from_embeddings(data.leaves[:columns], getattr(data, labels) if labels else None)

    return make


def peer_cached(name: str, **options: Any) -> Side:
    """Of the losses that cache gradients: the part behind the embeddings, which goes backward as it goes."""

    def make(data: Data) -> Callable[[], Tensor]:
        loss = getattr(theirs, name)(Ready(), **options)
        parts = [[leaf] for leaf in data.leaves]

        def value() -> Tensor:
            return loss.calculate_loss(parts, None, with_backward=True)  # type: ignore[no-any-return]

        return value

    return make


def peer_gist(data: Data) -> Callable[[], Tensor]:
    loss = theirs.GISTEmbedLoss(Ready(), Ready("guide"))  # type: ignore[arg-type]
    return lambda: loss([{"x": x, "guide": g} for x, g in zip(data.leaves, data.guide, strict=True)], None)  # type: ignore[no-any-return]


def peer_cached_gist(data: Data) -> Callable[[], Tensor]:
    loss = theirs.CachedGISTEmbedLoss(Ready(), Ready("guide"))  # type: ignore[arg-type]

    def value() -> Tensor:
        parts, guides = ([[t] for t in texts] for texts in (data.leaves, data.guide))
        return loss.calculate_loss(parts, guides, with_backward=True)  # type: ignore[no-any-return]

    return value


def peer_matryoshka(data: Data) -> Callable[[], Tensor]:
    model = Ready()
    loss = theirs.MatryoshkaLoss(model, theirs.MultipleNegativesRankingLoss(model), DIMS)  # type: ignore[arg-type]
    return lambda: loss([{"x": leaf} for leaf in data.leaves], None)  # type: ignore[no-any-return]


def peer_tension(data: Data) -> Callable[[], Tensor]:
    loss = theirs.ContrastiveTensionLossInBatchNegatives(Ready("two"))  # type: ignore[arg-type]
    loss.model1.key = "one"
    features = [{"two": data.leaves[0], "one": data.leaves[1]}]
    return lambda: loss(features, None)  # type: ignore[no-any-return]


TEXT = ("text",)
PAIR = ("first", "second")
LOSSES: dict[str, tuple[Side, Side]] = {
    "mnrl": (ours("mnrl"), peer("MultipleNegativesRankingLoss")),
    "mnrl, both directions": (
        ours("mnrl(directions=['query_to_doc','doc_to_query'],partition_mode='per_direction')"),
        peer("MultipleNegativesRankingLoss", directions=("query_to_doc", "doc_to_query"), partition_mode="per_direction"),
    ),
    "mnrl, four directions": (
        ours("mnrl(directions=['query_to_doc','doc_to_query','query_to_query','doc_to_doc'])"),
        peer(
            "MultipleNegativesRankingLoss", directions=("query_to_doc", "doc_to_query", "query_to_query", "doc_to_doc")
        ),
    ),
    "mnrl, hardness": (
        ours("mnrl(hardness_mode='in_batch_negatives',hardness_strength=9)"),
        peer("MultipleNegativesRankingLoss", hardness_mode="in_batch_negatives", hardness_strength=9.0),
    ),
    "cached mnrl": (ours("cached_mnrl"), peer_cached("CachedMultipleNegativesRankingLoss")),
    "gist": (ours("gist('guide')"), peer_gist),
    "cached gist": (ours("cached_gist('guide')"), peer_cached_gist),
    "mega-batch margin": (ours("mega_batch_margin"), peer_cached("MegaBatchMarginLoss")),
    "contrastive tension in batch": (ours("contrastive_tension_in_batch_negatives"), peer_tension),
    "batch-all triplet": (ours("batch_all_triplet", TEXT, "classes"), peer("BatchAllTripletLoss", 1, "classes")),
    "batch-all triplet, eight classes": (ours("batch_all_triplet", TEXT, "eight"), peer("BatchAllTripletLoss", 1, "eight")),
    "batch-hard triplet": (ours("batch_hard_triplet", TEXT, "classes"), peer("BatchHardTripletLoss", 1, "classes")),
    "batch-hard soft": (
        ours("batch_hard_soft_margin_triplet", TEXT, "classes"), peer("BatchHardSoftMarginTripletLoss", 1, "classes"),
    ),
    "batch-semi-hard triplet": (
        ours("batch_semi_hard_triplet", TEXT, "classes"), peer("BatchSemiHardTripletLoss", 1, "classes"),
    ),
    "cosent": (ours("cosent", PAIR, "scores"), peer("CoSENTLoss", labels="scores")),
    "angle": (ours("angle", PAIR, "scores"), peer("AnglELoss", labels="scores")),
    "online contrastive": (ours("online_contrastive", PAIR, "same"), peer("OnlineContrastiveLoss", labels="same")),
    "gor": (ours("gor"), peer("GlobalOrthogonalRegularizationLoss")),
    "matryoshka(mnrl), five dims": (ours(f"matryoshka(mnrl, {DIMS})"), peer_matryoshka),
}  # fmt: skip
QUICK = ("mnrl", "gist", "batch-all triplet", "cosent", "matryoshka(mnrl), five dims")


def point(side: Side, rows: int, calls: int, threads: int) -> tuple[float, float, float]:
    """Median seconds of a call, most MB of the first, and its value."""
    torch.set_num_threads(threads)
    warnings.simplefilter("ignore")

    def once(value: Callable[[], Tensor], data: Data) -> float:
        for leaf in data.leaves:
            leaf.grad = None
        total = value()
        total = sum(total.values()) if isinstance(total, dict) else total  # type: ignore[assignment]
        if total.requires_grad:  # else it went backward already
            total.backward()
        assert data.leaves[0].grad is not None
        return float(total.detach())

    small = Data(16)
    once(side(small), small)  # what is made at the first call of anything
    del small
    torch.empty(30 * 2**18)  # once a large block was freed, as in every training, glibc holds smaller ones for the next call
    data = Data(rows)
    value = side(data)
    gc.collect()
    bounded()
    begin = time.perf_counter()
    forget_peak()
    before, _ = resident()
    result = once(value, data)
    _, most = resident()
    took = [time.perf_counter() - begin]
    while (len(took) <= calls or sum(took) < 0.3) and sum(took) < 3.0:  # calls of few ms vary
        begin = time.perf_counter()
        once(value, data)
        took.append(time.perf_counter() - begin)
    return statistics.median(took[1:] or took), (most - before) / 2**20, result


def measured(name: str, rows: int, rounds: int, threads: int, end: float, state: dict[Any, Any]) -> str | None:
    """A row of the table, or None if neither side has anything to measure at this size.

    Args:
        name: of the loss.
        rows: of the batch.
        rounds: processes a side, in turn; one where a call takes longer than two seconds.
        threads: a process.
        end: of the time for the table, by `time.monotonic`.
        state: what is known of (name, side): a text where it has stopped, else the seconds of its last call.
    """
    runs: list[list[Any]] = [[], []]
    for number in range(rounds):
        if number and any(isinstance(s, float) and s > 2.0 for s in (state.get((name, 0)), state.get((name, 1)))):
            break
        for i, side in enumerate(LOSSES[name]):
            last = state.get((name, i), 0.0)
            if isinstance(last, str):
                continue
            # Every size is four times the one before, and its matrices sixteen times.
            if time.monotonic() + (16 * last if not number else 0.0) > end:
                state[name, i] = "not run"
                continue
            result = forked(point, side, rows, 5, threads, seconds=SECONDS)
            state[name, i] = (
                {"time": f"> {SECONDS:.0f} s", "memory": "> 8 GB"}[result] if isinstance(result, str) else result[0]
            )
            runs[i] += [result] * (not isinstance(result, str))
    if not any(runs):
        return None
    cells = []
    for part, factor in ((0, 1e3), (1, 1.0)):
        values = [statistics.median(run[part] for run in side) * factor if side else None for side in runs]
        for i, value in enumerate(values):
            cells.append(state[name, i] if value is None else f"{value:,.{int(value < 100)}f}")
        ours_, peers = values
        cells.append("" if ours_ is None or peers is None else f"{peers / max(ours_, 0.1):.2f}")
    if all(runs) and not math.isclose(a := runs[0][0][2], b := runs[1][0][2], rel_tol=1e-3, abs_tol=1e-4):
        cells[-1] += f" (value {a:.5g}, peer's {b:.5g})"
    return row(name, f"{rows:,}", *cells)


def section(
    quick: bool = False,
    names: list[str] | None = None,
    sizes: tuple[int, ...] | None = None,
    rounds: int | None = None,
    threads: int = 2,
    minutes: float = 25.0,
) -> str:
    """Its part of the page, as Markdown."""
    names, rounds = names or list(QUICK if quick else LOSSES), rounds or (1 if quick else 5)
    sizes = sizes or (SIZES[:1] if quick else SIZES)
    end = time.monotonic() + 60 * minutes
    state: dict[Any, Any] = {}
    found: dict[tuple[str, int], str] = {}
    # By size first, so that what a limit of time leaves out are the largest points.
    for rows in sizes:
        for name in names:
            made = measured(name, rows, rounds, threads, end, state)
            if made is not None:
                found[name, rows] = made
                print(made, file=sys.stderr, flush=True)
    return "\n".join([
        f"Value and gradient from ready embeddings of {DIMENSION} numbers, {threads} thread(s), median of {rounds} fresh",
        "process(es) a point, in turn, one where a call takes over two seconds:",
        f"`python tests/bench/alone.py{' --quick' * quick}`. MB: the most memory of the",
        "first call beyond what there was before.",
        "",
        *head("loss", "rows", "ms", "peer's", "faster", "MB", "peer's", "smaller"),
        *(found[name, rows] for name in names for rows in sizes if (name, rows) in found),
    ])  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round of a few losses at the smallest size")
    parser.add_argument("--only", help="names of losses, with semicolons")
    parser.add_argument("--sizes", help="numbers of rows, with commas")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--minutes", type=float, default=25.0, help="begin no point after so many")
    options = parser.parse_args()
    names = options.only.split(";") if options.only else None
    sizes = tuple(map(int, options.sizes.split(","))) if options.sizes else None
    print(section(options.quick, names, sizes, options.rounds, options.threads, options.minutes))


if __name__ == "__main__":
    main()
