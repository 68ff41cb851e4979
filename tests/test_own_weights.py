"""Every loss with weights of its own: equal on two processes after 20 steps, in a group of their own, clipped, saved."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from embedloss import create_loss, list_losses, load_encoder
from embedloss.testing.models import SENTENCES, tiny_bert
from embedloss.training import TrainingStep

# Loss with weights of its own -> the data that it is trained on.
CASES = {
    "softmax()": "classes",
    "embed_distill(projection_dim=6)": "vectors",
    "contrastive_tension()": "texts",
    "contrastive_tension_in_batch_negatives()": "texts",
    "denoising_auto_encoder()": "texts",
}

SCRIPT = """
import hashlib, json, sys
import torch
from embedloss.training import run as runs
from embedloss.training import RunConfig, trainer as trainers

torch.set_num_threads(1)
folder, cases = sys.argv[1], json.loads(sys.argv[2])
found = {}
train = trainers.Trainer.train


def watched(self, *args, **kwargs):  # the trainer of a run is nowhere else to be had
    start = {n: p.detach().clone() for n, p in self.step_module.named_parameters()}
    result = train(self, *args, **kwargs)
    digest, moved = hashlib.sha256(), {}
    for name, value in self.step_module.state_dict().items():
        digest.update(name.encode() + value.detach().numpy().tobytes())
    for name, value in self.step_module.named_parameters():
        if not name.startswith("encoder."):
            moved[name] = float((value.detach() - start[name]).abs().max())
    found["hash"], found["moved"] = digest.hexdigest(), moved
    found["rates"] = sorted({round(g["initial_lr"], 6) for g in self.optimizer.param_groups})
    return result


trainers.Trainer.train = watched
results = {}
for number, (loss, data) in enumerate(cases.items()):
    config = RunConfig(
        model=f"{folder}/model", data=f"{folder}/{data}.jsonl", loss=loss, out=f"{folder}/run-{number}",
        max_steps=20, batch_size=4, learning_rate=1e-3, loss_learning_rate=2e-3, save_steps=0, sampler="random",
        max_grad_norm=0.5,
    )
    runs.run_training(config, say=lambda text: None)
    results[loss] = dict(found)
    torch.distributed.barrier()
with open(f"{folder}/found-{torch.distributed.get_rank()}.json", "w") as file:
    json.dump(results, file)
torch.distributed.barrier()
torch.distributed.destroy_process_group()
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("own")
    tiny_bert(path / "model", layers=1, hidden=16, vocabulary=150)
    rows = {
        "classes": [{"first": SENTENCES[i % 17], "second": f"{SENTENCES[i % 13]} {i}", "label": i % 3} for i in range(30)],
        "vectors": [
            {"text": f"{SENTENCES[i % 17]} {i}", "embedding": [float((i * k) % 7) for k in range(1, 7)]} for i in range(30)
        ],
        "texts": [{"text": f"{SENTENCES[i % 17]} {i}"} for i in range(30)],
    }
    for name, content in rows.items():
        (path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content), encoding="utf-8")
    return path


def test_every_loss_with_own_weights_has_a_case(folder):
    missing = []
    for spec in list_losses():
        if spec.modifier or "bi-encoder" not in spec.models:
            continue
        try:
            loss = create_loss(spec.name)
        except Exception:  # has a parameter that must be given, such as a guide: no weights to train
            continue
        step = TrainingStep(load_encoder(str(folder / "model")), loss, num_classes=3, label_dimension=6)
        if (any(True for _ in loss.parameters()) or step.twin is not None) and not any(
            spec.name.replace("-", "_") == case.partition("(")[0] for case in CASES
        ):
            missing.append(spec.name)
    assert not missing


def test_two_processes_have_equal_weights_after_20_steps(folder):
    script = folder / "train.py"
    script.write_text(SCRIPT, encoding="utf-8")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = []
    for rank in range(2):
        environment = {
            **os.environ, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false",
        }  # fmt: skip
        command = [sys.executable, str(script), str(folder), json.dumps(CASES)]
        processes.append(subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment))
    try:
        said = [process.communicate(timeout=200) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert all(process.returncode == 0 for process in processes), [text[1][-3000:] for text in said]
    found = [json.loads(Path(folder / f"found-{rank}.json").read_text(encoding="utf-8")) for rank in range(2)]
    assert set(found[0]) == set(CASES)
    for loss in CASES:
        one, two = (part[loss] for part in found)
        assert one["hash"] == two["hash"], loss
        assert one["moved"], loss
        assert min(one["moved"].values()) > 0 or "twin" in " ".join(one["moved"]), (loss, one["moved"])
        assert max(one["moved"].values()) > 1e-5, loss
    assert found[0]["softmax()"]["rates"] == [0.001, 0.002]


def test_clipping_reaches_the_losses_own_weights(folder):
    step = TrainingStep(load_encoder(str(folder / "model")), create_loss("softmax"), num_classes=3)
    own = {name for name, _ in step.named_parameters() if name.startswith("loss.")}
    assert own
    for parameter in step.parameters():
        parameter.grad = torch.ones_like(parameter)
    torch.nn.utils.clip_grad_norm_(step.parameters(), 0.5)
    assert all(0 < float(p.grad.max()) < 0.5 for n, p in step.named_parameters() if n in own)
