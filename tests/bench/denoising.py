"""Train the denoising auto-encoder with ours and with sentence-transformers' loss, from one start, on the same damaged texts.

    python tests/bench/denoising.py --model START --data sentences.jsonl --test stsb-test.jsonl [--steps 100]

Prints the losses on the way and Spearman's correlation of cosines with the scores of the test pairs (first, second, score).
docs/results/trained.md has the result.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from typing import Any

import torch
from scipy.stats import spearmanr
from sentence_transformers import SentenceTransformer, losses

import embedloss
from embedloss_reconstruction.functional import delete_words

BATCH = 32


def correlation(model: SentenceTransformer, rows: list[dict[str, Any]]) -> float:
    first, second = (model.encode([r[k] for r in rows], normalize_embeddings=True) for k in ("first", "second"))
    return float(spearmanr((first * second).sum(1), [r["score"] for r in rows]).statistic)


def train(side: str, options: argparse.Namespace, texts: list[str], rows: list[dict[str, Any]]) -> None:
    torch.manual_seed(0)
    model = SentenceTransformer(options.model, device="cpu")
    model.max_seq_length = 128
    before = correlation(model, rows)
    if side == "sentence-transformers":
        loss: Any = losses.DenoisingAutoEncoderLoss(model, tie_encoder_decoder=True)
    else:
        loss = embedloss.for_sentence_transformers(model, "denoising_auto_encoder()")
    parameters = list({id(p): p for p in [*model.parameters(), *loss.parameters()] if p.requires_grad}.values())
    optimizer = torch.optim.AdamW(parameters, lr=options.learning_rate, weight_decay=0.0)
    warm = max(options.steps // 10, 1)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: min((s + 1) / warm, (options.steps - s) / (options.steps - warm))
    )
    rng = random.Random(0)
    model.train()
    loss.train()
    for step in range(options.steps):
        batch = texts[step * BATCH : (step + 1) * BATCH]
        features = [model.preprocess([delete_words(t, 0.6, rng) for t in batch]), model.preprocess(batch)]
        value = loss(features, None)
        total = sum(value.values()) if isinstance(value, dict) else value
        total.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 20 == 0 or step == options.steps - 1:
            print(f"{side:24} step {step + 1:4}  loss {total.item():.4f}", flush=True)
    model.eval()
    print(f"{side:24} spearman {before:.4f} -> {correlation(model, rows):.4f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("model", "data", "test"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--learning-rate", type=float, default=5e-5)
    options = parser.parse_args()
    texts = [json.loads(line)["text"] for line in Path(options.data).read_text(encoding="utf-8").splitlines()]
    random.Random(0).shuffle(texts)
    texts = (texts * (1 + options.steps * BATCH // len(texts)))[: options.steps * BATCH]
    rows = [json.loads(line) for line in Path(options.test).read_text(encoding="utf-8").splitlines()]
    for side in ("sentence-transformers", "embedloss"):
        train(side, options, texts, rows)


if __name__ == "__main__":
    main()
