"""Two real processes under DDP train as one process does on the joint batches."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from embedloss.testing.models import tiny_bert

SCRIPT = """
import os, sys
sys.path.insert(0, {path!r})
import torch, test_training as t
from embedloss import Loss, TrainingStep, load_encoder
from embedloss.collate import Collator
from embedloss.distributed import leave
from embedloss.training import Trainer, TrainingArguments
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


encoder = load_encoder({model!r})
for module in encoder.modules():
    if isinstance(module, nn.Dropout):
        module.p = 0.0
encoder.model.config.attention_probs_dropout_prob = 0.0
for layer in encoder.model.encoder.layer:
    layer.attention.self.dropout_prob = 0.0
step = TrainingStep(encoder, Pooled(), recompute={recompute}, gather=True, seed=3)
rank_count = int(os.environ.get("WORLD_SIZE", "1"))
arguments = TrainingArguments(
    output_dir={out!r}, max_steps=7, per_device_train_batch_size=16 // rank_count, save_steps=7, logging_steps=7,
    learning_rate=1e-3,
    report_to="none", disable_tqdm=True, seed=3, use_cpu=True, optim="sgd", max_grad_norm=1.0,
)
trainer = Trainer(step, arguments, train_dataset=t.pairs(37), collator=Collator(encoder.processor, step.loss, "pairs", 200))
trainer.train()
del trainer, step, encoder
if rank_count > 1:
    torch.distributed.barrier()
leave()
if rank_count > 1:
    threads = [open(f"/proc/self/task/{{thread}}/comm").read().strip() for thread in os.listdir("/proc/self/task")]
    assert not any("gloo" in name for name in threads), threads
"""


def run(tmp_path, model, name, processes, recompute):
    script = tmp_path / f"{name}.py"
    out = tmp_path / name
    script.write_text(SCRIPT.format(path=str(Path(__file__).parent), model=model, out=str(out), recompute=recompute))
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run([*launcher, str(script)], capture_output=True, text=True, timeout=240, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    folder = out / "checkpoint-7"
    return {**load_file(folder / "model.safetensors"), **load_file(folder / "loss.safetensors")}


@pytest.mark.parametrize("recompute", [False, True])
def test_two_processes_equal_one(tmp_path, recompute):
    tiny_bert(tmp_path / "model")
    model = str(tmp_path / "model")
    one = run(tmp_path, model, "one", 1, recompute)
    two = run(tmp_path, model, "two", 2, recompute)
    start = load_file(tmp_path / "model" / "model.safetensors")
    assert set(one) == set(two)
    moved = max(float((one[n] - start[n]).abs().max()) for n in start)
    assert moved > 1e-4
    for name in one:
        assert float((one[name] - two[name]).abs().max()) < 1e-6, name


DISAGREE = """
import os, sys
sys.path.insert(0, {path!r})
import torch, test_training as t
from embedloss import EmbedlossError
from embedloss.distributed import leave

t.plugin_manager().register(t._Plugin(), "test-training")
rank = int(os.environ["RANK"])
try:
    t.make_trainer({model!r}, {out!r}, loss=t.Nce(start=2.0 + rank))
except EmbedlossError as error:
    print(error, flush=True)
torch.distributed.barrier()
leave()
"""


def test_processes_with_different_losses_are_refused(tmp_path):
    tiny_bert(tmp_path / "model")
    script = tmp_path / "disagree.py"
    values = {"path": str(Path(__file__).parent), "model": str(tmp_path / "model"), "out": str(tmp_path / "out")}
    script.write_text(DISAGREE.format(**values))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("E401: the processes train different losses:") == 2
    assert "process 0: test_nce()" in done.stdout
    assert "process 1: test_nce(start=3)" in done.stdout
