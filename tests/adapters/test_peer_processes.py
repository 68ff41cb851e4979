"""SentenceTransformerTrainer on two real processes: the step that one process takes on the joint batch."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("sentence_transformers")

from embedloss.testing.models import tiny_bert

SCRIPT = """
import sys
import torch
torch.set_num_threads(1)
import embedloss
from datasets import Dataset
from embedloss.distributed import leave
from embedloss.testing.models import SENTENCES
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments

folder, out, processes, options = sys.argv[1], sys.argv[2], int(sys.argv[3]), eval(sys.argv[4])
model = SentenceTransformer(folder, device="cpu")
data = Dataset.from_dict({"anchor": list(SENTENCES[:8]), "positive": list(SENTENCES[8:16])})
loss = embedloss.for_sentence_transformers(model, "mnrl()", **options)
args = SentenceTransformerTrainingArguments(
    output_dir=out, max_steps=2, per_device_train_batch_size=8 // processes, learning_rate=0.1, lr_scheduler_type="constant",
    optim="sgd", max_grad_norm=0.0, report_to="none", save_strategy="no", disable_tqdm=True, use_cpu=True,
)
trainer = SentenceTransformerTrainer(model=model, args=args, train_dataset=data, loss=loss)
trainer.train()
wrapped = isinstance(loss.model, torch.nn.parallel.DistributedDataParallel)
assert wrapped == (processes > 1)
torch.save({k: v.detach() for k, v in model.state_dict().items()}, f"{out}/found-{args.process_index}.pt")
if processes > 1:
    loss.model = trainer.model_wrapped = None
    torch.distributed.barrier()
del trainer, loss, model
leave()
"""


def weights(folder, out, processes, options):
    Path(out).mkdir()
    script = Path(out) / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable]
    if processes > 1:
        command += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [*command, str(script), folder, str(out), str(processes), repr(options)],
        env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return [torch.load(f"{out}/found-{rank}.pt") for rank in range(processes)]


@pytest.mark.slow
def test_two_processes_step_as_one(tmp_path):
    folder = tiny_bert(tmp_path / "model", dropout=0)
    (alone,) = weights(folder, tmp_path / "one", 1, {})
    options = {"gather": True, "recompute": True, "chunk_tokens": 40}
    both = weights(folder, tmp_path / "two", 2, options)
    moved = max(float((alone[k] - v).abs().max()) for k, v in both[0].items())
    from sentence_transformers import SentenceTransformer

    before = SentenceTransformer(folder, device="cpu").state_dict()
    assert max(float((alone[k] - v).abs().max()) for k, v in before.items() if v.is_floating_point()) > 1e-2
    assert moved < 1e-5
    assert all(torch.equal(both[0][k], both[1][k]) for k in both[0])
