"""Ways in which a training goes wrong: what sentence-transformers logs, and what embedloss does.

    python tests/bench/failures.py --write docs/results/failures.md

Each failure is provoked for real, on a tiny model, in both libraries, for the same number of steps.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import torch
from torch import nn

from embedloss import EmbedlossError, Loss, LossSpec, create_loss, load_encoder
from embedloss.collate import Collator
from embedloss.testing.models import SENTENCES, tiny_bert
from embedloss.training import RunConfig, Trainer, TrainingArguments, TrainingStep, run_training

STEPS = 60
ROWS = 96


def text(i: int) -> str:
    """A text, another one for every number."""
    return f"{SENTENCES[i % 17]} {SENTENCES[(7 * i) % 13]} {i}"


def pairs(n: int = ROWS) -> list[dict[str, Any]]:
    """Texts that belong together."""
    return [{"anchor": text(i), "positive": text(i + 1)} for i in range(n)]


def scored(score: Callable[[int], float]) -> list[dict[str, Any]]:
    """Pairs with a score."""
    return [{"sentence1": text(i), "sentence2": text(i + 1), "score": score(i)} for i in range(ROWS)]


def classes(label: Callable[[int], int]) -> list[dict[str, Any]]:
    """Texts with a class."""
    return [{"text": text(i), "label": label(i)} for i in range(ROWS)]


class Broken(Loss):
    """A loss that becomes NaN, or whose gradient does, at a step."""

    spec = LossSpec(
        name="broken", target=f"{__name__}:Broken", summary="breaks", family="test", formats=["pairs"], citation="none"
    )

    def __init__(self, how: str = "loss") -> None:
        super().__init__()
        self.how = how

    def compute(self, emb: Any, labels: Any) -> Any:
        """The distance of the two texts, broken."""
        return broken(emb.own("anchor"), emb.own("positive"), self.how, emb.context.step)


def broken(first: torch.Tensor, second: torch.Tensor, how: str, step: int) -> Any:
    """The same arithmetic for both libraries."""
    good = (first - second).pow(2).mean()
    if step < 5:
        return good
    if how == "loss":
        return good / 0
    if how == "gradient":
        return good + (first - first).pow(2).sum(1).sqrt().mean()  # 0, with a gradient of NaN
    return good * float("nan")


class PeerBroken(nn.Module):
    """`Broken` for sentence-transformers."""

    def __init__(self, model: Any, how: str) -> None:
        super().__init__()
        self.model, self.how, self.step = model, how, 0

    def forward(self, features: Any, labels: Any) -> Any:
        """As sentence-transformers calls it."""
        first, second = (self.model(f)["sentence_embedding"] for f in features)
        self.step += 1
        return broken(first, second, self.how, self.step - 1)


class Failures:
    """The catalogue. Each method of `all` gives rows, the loss here and there, and settings."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        tiny_bert(folder / "model", layers=1, hidden=16, vocabulary=150)
        tiny_bert(folder / "unit", layers=1, hidden=16, vocabulary=150, normalize=True)
        tiny_bert(folder / "calm", layers=1, hidden=16, vocabulary=150, dropout=0.0)
        for name, change in {"nan": self._nan, "alike": self._alike, "huge": self._huge}.items():
            encoder = load_encoder(str(folder / "model"))
            with torch.no_grad():
                change(dict(encoder.named_parameters()))
            encoder.save(folder / name)

    @staticmethod
    def _nan(weights: dict[str, Any]) -> None:
        next(w for n, w in weights.items() if n.endswith("output.dense.weight"))[0, 0] = float("nan")

    @staticmethod
    def _alike(weights: dict[str, Any]) -> None:
        for name, weight in weights.items():
            if name.endswith("output.LayerNorm.weight"):
                weight.mul_(1e-4)
            if name.endswith("output.LayerNorm.bias"):
                weight.fill_(1.0)

    @staticmethod
    def _huge(weights: dict[str, Any]) -> None:
        for name, weight in weights.items():
            if name.endswith("output.LayerNorm.weight"):
                weight.mul_(1e30)

    def all(self) -> list[tuple[str, dict[str, Any]]]:
        """Name -> what to run. `peer` makes the loss of sentence-transformers from the model."""
        from sentence_transformers import losses as st

        half = [{"anchor": text(0), "positive": text(0)} for _ in range(ROWS)]
        triplets = [{"anchor": text(i), "positive": text(i), "negative": text(i + 1)} for i in range(ROWS)]
        teacher = [
            {"query": text(i), "positive": text(i + 1), "negative": text(i + 5), "label": 30.0 * (-1) ** i} for i in range(ROWS)
        ]
        vectors = [{"sentence": text(i), "label": [5.0] * 16} for i in range(ROWS)]
        mnrl = st.MultipleNegativesRankingLoss
        return [
            ("NaN from step 6 on", {"rows": pairs(), "ours": Broken("nan"), "peer": lambda m: PeerBroken(m, "nan")}),
            ("infinite from step 6 on", {"rows": pairs(), "ours": Broken("loss"), "peer": lambda m: PeerBroken(m, "loss")}),
            (
                "finite loss, gradient NaN from step 6 on",
                {"rows": pairs(), "ours": Broken("gradient"), "peer": lambda m: PeerBroken(m, "gradient")},
            ),
            ("a NaN among the model's weights", {"rows": pairs(), "ours": "mnrl", "peer": mnrl, "model": "nan"}),
            ("activations overflow", {"rows": pairs(), "ours": "mnrl", "peer": mnrl, "model": "huge"}),
            ("a NaN among the labels", {
                "rows": scored(lambda i: float("nan") if i == 40 else 0.5 * (i % 3)), "ours": "cosent", "peer": st.CoSENTLoss,
            }),
            ("scores of 0 to 5 where cosines are compared", {
                "rows": scored(lambda i: float(i % 6)), "ours": "cosine_similarity", "peer": st.CosineSimilarityLoss,
            }),
            ("all labels equal", {"rows": scored(lambda i: 1.0), "ours": "cosent", "peer": st.CoSENTLoss}),
            ("batches of one class", {
                "rows": classes(lambda i: 3), "ours": "batch_hard_triplet", "peer": st.BatchHardTripletLoss,
            }),
            ("every row a class of its own", {
                "rows": classes(lambda i: i), "ours": "batch_all_triplet", "peer": st.BatchAllTripletLoss,
            }),
            ("batches of one row", {"rows": pairs(), "ours": "mnrl", "peer": mnrl, "batch_size": 1}),
            ("all rows are duplicates", {"rows": half, "ours": "mnrl", "peer": mnrl}),
            ("no active triplet", {
                "rows": triplets, "ours": "triplet(margin=0.0001)", "peer": lambda m: st.TripletLoss(m, triplet_margin=0.0001),
                "model": "calm",
            }),
            ("the weights in half precision", {"rows": pairs(), "ours": "mnrl", "peer": mnrl, "half": True}),
            ("a learning rate of 5", {"rows": pairs(), "ours": "mnrl", "peer": mnrl, "learning_rate": 5.0}),
            ("the model starts collapsed", {"rows": pairs(), "ours": "mnrl", "peer": mnrl, "model": "alike"}),
            ("the encoder is frozen", {"rows": pairs(), "ours": "mnrl", "peer": mnrl, "frozen": True}),
            ("the encoder is frozen, the loss has weights", {
                "rows": [{"sentence1": text(i), "sentence2": text(i + 1), "label": i % 3} for i in range(ROWS)],
                "ours": "softmax", "peer": lambda m: st.SoftmaxLoss(m, 16, 3), "frozen": True,
            }),
            ("a teacher's margins of 30, cosines here", {
                "rows": teacher, "ours": "margin_mse(similarity_fct='cosine')",
                "peer": lambda m: st.MarginMSELoss(m, similarity_fct=st_cosine()),
            }),
            ("a teacher's vectors of length 20, the model's of 1", {
                "rows": vectors, "ours": "mse", "peer": st.MSELoss, "model": "unit",
            }),
        ]  # fmt: skip

    def ours(self, case: dict[str, Any], number: int) -> str:
        """What embedloss does: the first words of its error or warnings, or the losses it logs."""
        out = self.folder / f"ours-{number}"
        model = str(self.folder / case.get("model", "model"))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                history = self._train(case, model, out)
            except EmbedlossError as error:
                return f"stops: {shortened(str(error), out)}"
        said = [shortened(str(w.message), out) for w in caught if w.category.__name__ == "HealthWarning"]
        return "warns: " + " / ".join(said) if said else f"logs {shown(history)}"

    def _train(self, case: dict[str, Any], model: str, out: Path) -> list[float]:
        settings = {"learning_rate": case.get("learning_rate", 1e-3), "max_steps": STEPS, "logging_steps": 5}
        if isinstance(case["ours"], str) and not (case.get("frozen") or case.get("half")):
            file = Path(f"{out}.jsonl")
            file.write_text("".join(json.dumps(row) + "\n" for row in case["rows"]), encoding="utf-8")
            config = RunConfig(
                model=model, data=str(file), loss=case["ours"], out=str(out), batch_size=case.get("batch_size", 8),
                sampler="random", save_steps=0, warmup=0, **settings,
            )  # fmt: skip
            run_training(config, say=lambda text: None)
            entries = [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
            return [e["loss"] for e in entries if "loss" in e]
        loss = case["ours"] if isinstance(case["ours"], Loss) else create_loss(case["ours"])
        encoder = load_encoder(model)
        if case.get("frozen"):
            encoder.requires_grad_(False)
        if case.get("half"):
            encoder.half()
        rows = [{{"sentence1": "first", "sentence2": "second"}.get(k, k): v for k, v in row.items()} for row in case["rows"]]
        step = TrainingStep(encoder, loss, num_classes=3)
        arguments = TrainingArguments(
            output_dir=str(out), per_device_train_batch_size=8, save_strategy="no", report_to="none", disable_tqdm=True,
            batch_sampler="random", use_cpu=True, **settings,
        )  # fmt: skip
        name = loss.spec.format_names()[0]
        collator = Collator(encoder.processor, loss, name)
        trainer = Trainer(step, arguments, train_dataset=datasets.Dataset.from_list(rows), collator=collator)
        trainer.train()
        return [e["loss"] for e in trainer.state.log_history if "loss" in e]

    def theirs(self, case: dict[str, Any], number: int) -> str:
        """What sentence-transformers logs."""
        from sentence_transformers import (
            SentenceTransformer,
            SentenceTransformerTrainer,
            SentenceTransformerTrainingArguments,
        )

        model = SentenceTransformer(str(self.folder / case.get("model", "model")), device="cpu")
        loss = case["peer"](model)
        if case.get("frozen"):
            model.requires_grad_(False)
        if case.get("half"):
            model.half()
        arguments = SentenceTransformerTrainingArguments(
            output_dir=str(self.folder / f"peer-{number}"), max_steps=STEPS, logging_steps=5, save_strategy="no",
            per_device_train_batch_size=case.get("batch_size", 8), learning_rate=case.get("learning_rate", 1e-3),
            report_to="none", disable_tqdm=True, use_cpu=True,
        )  # fmt: skip
        data = datasets.Dataset.from_list(case["rows"])
        with warnings.catch_warnings(record=True):
            warnings.simplefilter("always")
            try:
                trainer = SentenceTransformerTrainer(model=model, args=arguments, train_dataset=data, loss=loss)
                trainer.train()
            except Exception as exception:
                words = str(exception).strip().splitlines()
                return f"stops: {type(exception).__name__}: {words[0][:150] if words else ''}"
        return f"logs {shown([e['loss'] for e in trainer.state.log_history if 'loss' in e])}"


def st_cosine() -> Any:
    """The cosine of pairs, as sentence-transformers has it."""
    from sentence_transformers.util import pairwise_cos_sim

    return pairwise_cos_sim


def shown(losses: list[Any]) -> str:
    """The first, the middle and the last loss."""
    some = [losses[0], losses[len(losses) // 2], losses[-1]] if losses else []
    return ", ".join("NaN" if v is None or math.isnan(v) else f"{v:.4g}" for v in some)


def shortened(message: str, out: Path) -> str:
    """The first sentence or two, without this machine's paths."""
    words = " ".join(message.replace(str(out.parent), "...").split())
    return words if len(words) <= 230 else words[:227] + "..."


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description="Provoke failures in both libraries.")
    parser.add_argument("--write", default=None, help="a page")
    parser.add_argument("--only", default="", help="failures whose name holds this")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    begin, lines, silent = time.perf_counter(), [], 0
    with tempfile.TemporaryDirectory() as folder:
        failures = Failures(Path(folder))
        for number, (name, case) in enumerate(failures.all()):
            if options.only not in name:
                continue
            theirs, ours = failures.theirs(case, number), failures.ours(case, number)
            silent += ours.startswith("logs")
            print(f"{name}\n  peer      {theirs}\n  embedloss {ours}", flush=True)
            lines.append(f"| {name} | {theirs} | {ours} |".replace("||", "\\|\\|"))
    print(f"{len(lines)} failures, {silent} of them unnoticed by embedloss, {time.perf_counter() - begin:.0f} s")
    if options.write:
        head = [
            "# Failures, and who notices", "",
            f"{len(lines)} ways in which a training goes wrong, each provoked in both libraries on the same tiny model,",
            f"{STEPS} steps, in one run of `python tests/bench/failures.py --write docs/results/failures.md`. For",
            "sentence-transformers 6.2.0: the loss that it logs after 5 steps, in the middle and at the end, or its error. For",
            "embedloss: the error that stops the run, or the warnings.", "",
            "| failure | sentence-transformers 6.2.0 | embedloss |", "| --- | --- | --- |",
        ]  # fmt: skip
        Path(options.write).write_text("\n".join([*head, *lines]) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
