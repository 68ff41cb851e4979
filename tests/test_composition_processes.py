"""Modifiers and the denoising auto-encoder on real gloo processes: the mean over processes equals one process on all rows."""

import os
import subprocess
import sys

import pytest
import torch

SCRIPT = """
import sys
import torch, torch.distributed as dist
from types import SimpleNamespace
from transformers import BertConfig, BertModel
from embedloss import Embeddings, create_loss
from embedloss.distributed import leave
from embedloss.loss import ModelInfo

folder, rank, sizes = sys.argv[1], int(sys.argv[2]), [int(n) for n in sys.argv[3].split(",")]
if len(sizes) > 1:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=len(sizes))
rows = slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))
found = {}
for name in (
    "adaptive_layer(cosent(), n_layers_per_step=2)",
    "matryoshka_2d(cosent(), dims=[8, 4, 2])",
    "matryoshka(adaptive_layer(cosent()), dims=[8, 4, 2], n_dims_per_step=2)",
    "tsdae()",
):
    g = torch.Generator().manual_seed(0)
    draw = lambda: torch.randn(7, 8, generator=g, dtype=torch.float64)[rows].clone().requires_grad_()
    roles = ("damaged",) if name == "tsdae()" else ("first", "second")
    stacks = {role: [draw() for _ in range(4)] for role in roles}
    labels = None if name == "tsdae()" else torch.rand(7, generator=g)[rows]
    emb = Embeddings.of(**{role: stack[-1] for role, stack in stacks.items()}).with_layers(**stacks)
    ids = torch.randint(1, 20, (7, 6), generator=g)
    mask = torch.arange(6) < torch.tensor([2, 6, 3, 1, 5, 4, 2])[:, None]
    emb = emb.with_tokens(original=(ids[rows], mask[rows])).with_context(seed=1, step=3)
    torch.manual_seed(0)
    sizes_of = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, initializer_range=0.5)
    loss = create_loss(name)
    loss.prepare(ModelInfo(8, SimpleNamespace(model=BertModel(BertConfig(vocab_size=20, **sizes_of)))))
    loss.double().eval()
    output = loss(emb.with_gathering(), labels)
    output.total.backward()
    found[name] = {
        "value": output.total.detach(),
        "terms": sorted(output.terms),
        "leaves": [torch.zeros_like(x) if x.grad is None else x.grad for stack in stacks.values() for x in stack],
        "own": [torch.zeros_like(p) if p.grad is None else p.grad for p in loss.parameters()],
    }
    del output, emb
torch.save(found, f"{folder}/found-{len(sizes)}-{rank}.pt")
if len(sizes) > 1:
    dist.barrier()
    leave()
"""


def run(folder, sizes):
    """Every process's result, in rank order."""
    script, environment = folder / "script.py", {**os.environ, "OMP_NUM_THREADS": "1"}
    script.write_text(SCRIPT, encoding="utf-8")
    given = ",".join(map(str, sizes))
    started = [
        subprocess.Popen(
            [sys.executable, str(script), str(folder), str(rank), given], stderr=subprocess.PIPE, text=True, env=environment
        )
        for rank in range(len(sizes))
    ]
    for process in started:
        error = process.communicate(timeout=120)[1]
        assert process.returncode == 0, error
    return [torch.load(folder / f"found-{len(sizes)}-{rank}.pt") for rank in range(len(sizes))]


@pytest.mark.slow
def test_two_processes_with_unequal_rows_equal_one(tmp_path):
    pytest.importorskip("embedloss_similarity")
    [alone] = run(tmp_path, [7])
    both = run(tmp_path, [5, 2])
    for name, wanted in alone.items():
        parts = [found[name] for found in both]
        assert parts[0]["terms"] == parts[1]["terms"] == wanted["terms"]  # the same layers and dimensions are drawn
        torch.testing.assert_close((parts[0]["value"] + parts[1]["value"]) / 2, wanted["value"], rtol=1e-10, atol=0)
        assert max(float(g.abs().max()) for g in wanted["leaves"]) > 1e-4
        for i, gradient in enumerate(wanted["leaves"]):
            joint = torch.cat([part["leaves"][i] for part in parts]) / 2
            torch.testing.assert_close(joint, gradient, rtol=1e-9, atol=1e-12)
        for i, gradient in enumerate(wanted["own"]):
            torch.testing.assert_close((parts[0]["own"][i] + parts[1]["own"][i]) / 2, gradient, rtol=1e-9, atol=1e-12)
