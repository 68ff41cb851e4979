"""Two real processes train on mixtures and on streams as one process does: same batches, no row twice, same weights."""

import json
import os
import subprocess
import sys
from pathlib import Path

import torch

from embedloss.testing.models import tiny_bert

SCRIPT = """
import json, os, sys
sys.path.insert(0, {path!r})
import torch, test_training as t, test_streaming as s, test_mixture as m
from embedloss import TrainingStep, load_encoder
from embedloss.collate import Collator
from embedloss.distributed import leave
from embedloss.mixture import Mixture, MixtureCollator, Part
from embedloss.streaming import Stream, Streams
from embedloss.training import Trainer, TrainingArguments
from embedloss.training.per_dataset import PerDataset
from torch import nn

torch.set_num_threads(1)
t.plugin_manager().register(t._Plugin(), "test-training")


class Pooled(t.Nce):
    def compute(self, emb, labels):
        anchor = nn.functional.normalize(emb.own("anchor"), dim=1)
        pool = nn.functional.normalize(emb.pool("positive"), dim=1)
        target = torch.arange(len(anchor)) + emb.row_offset
        loss = nn.functional.cross_entropy(self.log_scale.exp() * anchor @ pool.T, target, reduction="sum")
        return {{"nce": loss * emb.world_size / emb.pool_size}}


processes = int(os.environ.get("WORLD_SIZE", "1"))
rank = int(os.environ.get("RANK", "0"))
mixed = Mixture({{"a": Part(m.pairs(24, "a"), weight=2), "b": Part(m.pairs(16, "b"), weight=1)}})
streams = Streams({{
    name: Stream.of(s.Numbered(50), s.PAIRS, "pairs", 20, sampler="no-duplicates", weight=w)
    for name, w in (("a", 2), ("b", 1))
}})
found = {{}}
for kind, data in (("mixed", mixed), ("streams", streams)):
    torch.manual_seed(0)
    encoder = load_encoder({model!r})
    for module in encoder.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    encoder.model.config.attention_probs_dropout_prob = 0.0
    for layer in encoder.model.encoder.layer:
        layer.attention.self.dropout_prob = 0.0
    loss = PerDataset({{"a": Pooled(start=1.0), "b": Pooled(start=2.0)}})
    step = TrainingStep(encoder, loss, gather=True, seed=3)
    arguments = TrainingArguments(
        output_dir={out!r} + kind, max_steps=6, per_device_train_batch_size=8 // processes, save_strategy="no",
        logging_steps=3, learning_rate=1e-2, report_to="none", disable_tqdm=True, seed=3, use_cpu=True, optim="sgd",
    )
    collators = {{name: Collator(encoder.processor, own, "pairs", 200) for name, own in loss.items()}}
    trainer = Trainer(step, arguments, train_dataset=data, collator=MixtureCollator(collators))
    seen = []
    original = trainer.compute_loss

    def note(module, inputs, *args, **kwargs):
        seen.append([inputs["dataset"], list(inputs["keys"])])
        return original(module, inputs, *args, **kwargs)

    trainer.compute_loss = note
    trainer.train()
    weights = {{n: v.clone() for n, v in step.state_dict().items()}}
    found[kind] = {{"seen": seen, "weights": weights, "logs": [e for e in trainer.state.log_history if "loss" in e]}}
torch.save(found, {out!r} + f"{{rank}}.pt")
del trainer, step, encoder, original
if processes > 1:
    torch.distributed.barrier()
leave()
"""


def run(tmp_path, processes):
    script, out = tmp_path / f"{processes}.py", str(tmp_path / f"out{processes}-")
    script.write_text(SCRIPT.format(path=str(Path(__file__).parent), model=str(tmp_path / "model"), out=out))
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run([*launcher, str(script)], capture_output=True, text=True, timeout=240, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return [torch.load(f"{out}{rank}.pt", weights_only=False) for rank in range(processes)]


def test_two_processes_equal_one(tmp_path):
    tiny_bert(tmp_path / "model")
    (one,) = run(tmp_path, 1)
    first, second = run(tmp_path, 2)
    for kind in ("mixed", "streams"):
        assert {name for name, _ in one[kind]["seen"]} == {"a", "b"}
        for alone, mine, other in zip(one[kind]["seen"], first[kind]["seen"], second[kind]["seen"], strict=True):
            assert alone[0] == mine[0] == other[0]
            assert alone[1] == [*mine[1], *other[1]]
            assert len(mine[1]) == len(other[1]) == 4
        assert (
            max(float((one[kind]["weights"][f"loss.losses.for_{n}.log_scale"] - v).abs()) for n, v in (("a", 1), ("b", 2))) > 0
        )
        for name, value in one[kind]["weights"].items():
            assert torch.allclose(value, first[kind]["weights"][name], atol=1e-6), name
            assert torch.equal(first[kind]["weights"][name], second[kind]["weights"][name]), name
        for alone, mine in zip(one[kind]["logs"], first[kind]["logs"], strict=True):
            for key in ("a/loss", "b/loss"):
                assert (key in alone) == (key in mine)
                assert key not in alone or abs(alone[key] - mine[key]) < 1e-5, json.dumps([alone, mine])
