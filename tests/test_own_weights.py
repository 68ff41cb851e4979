"""Weights that belong to a loss (classifier, projection, temperature, twin, decoder) stay equal on two real processes.

Run as a script it is one of the processes.
"""

import hashlib
import json
import os
import sys
from pathlib import Path

import datasets
import pytest
import torch

from embedloss import create_loss, list_losses, load_encoder
from embedloss.collate import Collator
from embedloss.loss import ModelInfo
from embedloss.testing.models import SENTENCES, tiny_bert
from embedloss.testing.processes import process_group, run_processes
from embedloss.training import Trainer, TrainingArguments, TrainingStep

STEPS = 20
WIDTH, TEACHER = 16, 12
# A mean over tokens does not use BERT's pooler; attention to one vector, the text's embedding, gives it weight 1 in any case.
IDLE = ("pooler", "crossattention.self.query", "crossattention.self.key")
# Weights that a loss has only when asked for; what a loss has by itself is found in the registry.
PROJECTED = "embed_distill(projection_dim=12)"
UNTIED = "denoising_auto_encoder(decoder_name_or_path={!r}, tie_encoder_decoder=False)"


def with_weights(model):
    """Every loss that has weights of its own or a twin, by trying all that are registered."""
    encoder = load_encoder(model)
    found = []
    for spec in list_losses():
        if spec.modifier or "bi-encoder" not in spec.models or spec.consumes == "scores":
            continue
        loss = create_loss(spec.example or spec.name)
        loss.prepare(ModelInfo(encoder.dimension, encoder, 3, encoder.dimension))
        if list(loss.parameters()) or loss.requires().twin:
            found.append(spec.example or spec.name)
    return [*found, PROJECTED, UNTIED.format(model)]


def rows_of(form, count=48):
    """Rows of a data format, each with texts and a label of its own."""
    generator = torch.Generator().manual_seed(0)
    labels = {
        "class": lambda i: i % 3,
        "binary": lambda i: i % 2,
        "score": lambda i: (i % 7) / 7,
        "embedding": lambda i: torch.randn(TEACHER, generator=generator).tolist(),
    }
    rows = []
    for i in range(count):
        row = {role: f"{SENTENCES[(i + 5 * k) % 17]} {i + k}" for k, role in enumerate(form.roles)}
        rows.append(row if form.label is None else {**row, "label": labels[form.label](i)})
    return rows


def digest(tensors):
    """One hash of tensors by name."""
    found = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        found.update(name.encode() + str(tensor.dtype).encode() + tensor.detach().contiguous().numpy().tobytes())
    return found.hexdigest()


def train(expression, model, folder):
    """Train with a loss; hashes of what it ends with, and what this process has seen."""
    torch.manual_seed(0)
    encoder = load_encoder(model)
    loss = create_loss(expression)
    form = loss.spec.data_formats()[0]
    step = TrainingStep(encoder, loss, gather=True, seed=3, num_classes=3, label_dimension=TEACHER)
    own = {n: p.detach().clone() for n, p in step.named_parameters() if not n.startswith("encoder.")}
    start = {n: p.detach().clone() for n, p in step.encoder.named_parameters()}
    arguments = TrainingArguments(
        output_dir=f"{folder}/run", max_steps=STEPS, per_device_train_batch_size=4, save_strategy="no", logging_steps=10,
        learning_rate=1e-3, loss_learning_rate=1e-2, report_to="none", disable_tqdm=True, seed=3, use_cpu=True,
    )  # fmt: skip
    collator = Collator(encoder.processor, loss, form.name, 200)
    trainer = Trainer(step, arguments, train_dataset=datasets.Dataset.from_list(rows_of(form)), collator=collator)
    seen, original = [], trainer.compute_loss

    def note(module, inputs, *args, **kwargs):
        seen.append(list(inputs["keys"]))
        return original(module, inputs, *args, **kwargs)

    trainer.compute_loss = note
    trainer.train()
    moments = trainer.optimizer.state_dict()["state"]
    return {
        "weights": digest(step.state_dict()),
        "optimizer": digest({f"{i}/{n}": v for i, s in moments.items() for n, v in s.items() if torch.is_tensor(v)}),
        "own": sorted(own),
        "still": sorted(n for n, p in step.named_parameters() if n in own and torch.equal(p, own[n])),
        "moved": any(not torch.equal(p, start[n]) for n, p in step.encoder.named_parameters()),
        "seen": seen,
    }


def process(folder, rank, count):
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(count), LOCAL_WORLD_SIZE=str(count),
        MASTER_ADDR="127.0.0.1", MASTER_PORT="29500",
    )  # fmt: skip
    found = {}
    with process_group(folder, rank, count):
        for expression in json.loads(Path(folder, "losses.json").read_text(encoding="utf-8")):
            found[expression] = train(expression, f"{folder}/model", folder)
    Path(folder, f"found-{rank}.json").write_text(json.dumps(found), encoding="utf-8")


@pytest.mark.slow
def test_two_processes_hold_the_same_weights_after_20_steps(tmp_path):
    pytest.importorskip("embedloss_classification")
    model = tiny_bert(tmp_path / "model", layers=1, hidden=WIDTH, vocabulary=150)
    losses = with_weights(model)
    assert {"softmax", "contrastive-tension", "contrastive-tension-in-batch-negatives", "denoising-auto-encoder"} <= set(losses)
    (tmp_path / "losses.json").write_text(json.dumps(losses), encoding="utf-8")
    run_processes([sys.executable, __file__, str(tmp_path)], 2)
    one, two = (json.loads((tmp_path / f"found-{rank}.json").read_text(encoding="utf-8")) for rank in range(2))
    assert list(one) == list(two) == losses
    for name, first in one.items():
        second = two[name]
        assert first["weights"] == second["weights"], name
        assert first["optimizer"] == second["optimizer"], name
        assert len(first["seen"]) == STEPS, name
        assert not set(map(tuple, first["seen"])) & set(map(tuple, second["seen"])), name  # they did not train on the same rows
        assert first["own"], name
        assert first["moved"], name
        # Every one of the loss's weights has learned, but those that nothing depends on.
        assert [n for n in first["still"] if not any(part in n for part in IDLE)] == [], name
        assert first["still"] == second["still"], name


if __name__ == "__main__":
    process(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
