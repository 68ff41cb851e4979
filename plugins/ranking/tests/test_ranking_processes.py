"""The mean over real processes is the loss and the gradient of one process on all rows, however unevenly these lie."""

from __future__ import annotations

import subprocess
import sys
from functools import partial

import pytest
import torch

COUNTS = [2, 0, 1, 3, 1, 1, 0, 2, 1]  # hard negatives of each row
ALL = "directions=['query_to_doc', 'query_to_query', 'doc_to_query', 'doc_to_doc']"
BOTH = "directions=['query_to_doc', 'doc_to_query'], partition_mode='per_direction'"
CASES = [
    ("mnrl(scale=5)", "ragged"),
    ("mnrl(scale=5)", "pairs"),
    (f"mnrl(scale=5, {ALL}, hardness_mode='in_batch_negatives', hardness_strength=2)", "ragged"),
    (f"mnrl(scale=5, {BOTH}, hardness_mode='hard_negatives', hardness_strength=2)", "triplets"),
    (f"mnrl(scale=1, similarity_fct='euclidean', {ALL})", "ragged"),
    (f"mnrl(scale=5, {ALL}, mask_same_text=True)", "ragged"),
    ("mnrl(scale=5, negatives='in-batch')", "ragged"),
    ("mnrl(scale=5, negatives='own')", "ragged"),
    ("gist(guide='g', temperature=0.3, margin=0.1)", "ragged"),
    ("gist(guide='g', temperature=0.3)", "pairs"),
    ("mega_batch(negative_margin=-0.5, mini_batch_size=2)", "pairs"),
]
SHARES = {2: [(5, 4), (8, 1)], 3: [(3, 3, 3), (2, 6, 1)]}


def batch(kind, begin=0, end=9, requires_grad=True):
    """The rows from begin to end: leaves by role, and the embeddings."""
    from embedloss import Embeddings

    g = torch.Generator().manual_seed(3)
    counts = {"ragged": COUNTS, "triplets": [1] * 9, "pairs": [0] * 9}[kind]
    first, last = sum(counts[:begin]), sum(counts[:end])
    leaves, guides, ids = {}, {}, {}
    for role, size, rows in (
        ("anchor", 9, slice(begin, end)),
        ("positive", 9, slice(begin, end)),
        ("negative", sum(counts), slice(first, last)),
    ):
        if size:
            leaves[role] = torch.randn(size, 4, generator=g, dtype=torch.float64)[rows].clone().requires_grad_(requires_grad)
            guides[role] = torch.randn(size, 3, generator=g, dtype=torch.float64)[rows].clone()
            ids[role] = torch.randint(0, 4, (size,), generator=g)[rows].clone()

    def wrapped(tensors):
        if kind == "ragged":
            tensors = {**tensors, "negative": tensors["negative"].split(counts[begin:end])}
        return Embeddings.of(**tensors)

    return leaves, wrapped(leaves).with_text_ids(**ids).with_guide(wrapped(guides))


def check(rank, expression, kind, shares):
    import torch.distributed as dist

    from embedloss import create_loss

    loss = create_loss(expression)
    whole, emb = batch(kind)
    joint = loss(emb)
    joint.total.backward()
    begin = sum(shares[:rank])
    own, emb = batch(kind, begin, begin + shares[rank])
    output = loss(emb.with_gathering())
    output.total.backward()
    mean = output.total.detach() / len(shares)
    dist.all_reduce(mean)
    assert joint.total > 1e-2, expression
    assert abs(mean - joint.total) < 1e-10, (expression, kind, shares)
    rows = {"anchor": slice(begin, begin + shares[rank]), "positive": slice(begin, begin + shares[rank])}
    if "negative" in own:
        first = sum((COUNTS if kind == "ragged" else [1] * 9)[:begin])
        rows["negative"] = slice(first, first + len(own["negative"]))
    for role, leaf in own.items():
        wanted = torch.zeros_like(whole[role]) if whole[role].grad is None else whole[role].grad
        assert wanted.abs().max() > 1e-3, (expression, role)
        assert torch.allclose(leaf.grad / len(shares), wanted[rows[role]], rtol=0, atol=1e-10), (expression, role)


def check_scores(rank, shares):
    import torch.distributed as dist

    from embedloss import create_loss
    from embedloss.embeddings import Scores

    logits = torch.randn(9, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    whole = logits.clone().requires_grad_()
    joint = create_loss("ce_mnrl")(Scores.of(whole)).total
    joint.backward()
    begin = sum(shares[:rank])
    own = logits[begin : begin + shares[rank]].clone().requires_grad_()
    value = create_loss("ce_mnrl")(Scores(own, torch.ones_like(own, dtype=torch.bool), processes=len(shares))).total
    value.backward()
    mean = value.detach() / len(shares)
    dist.all_reduce(mean)
    assert abs(mean - joint) < 1e-10
    assert whole.grad.abs().max() > 1e-3
    assert (own.grad / len(shares) - whole.grad[begin : begin + shares[rank]]).abs().max() < 1e-10


def worker(rank, count, store):
    import torch.distributed as dist

    from embedloss.distributed import leave

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=count)
    for shares in SHARES[count]:
        for expression, kind in CASES:
            check(rank, expression, kind, shares)
        check_scores(rank, shares)
    dist.barrier()
    leave()
    print("checked")


@pytest.mark.parametrize("count", [2, 3])
def test_processes_equal_one(tmp_path, count):
    start = partial(subprocess.Popen, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    processes = [start([sys.executable, __file__, str(rank), str(count), str(tmp_path / "store")]) for rank in range(count)]
    try:
        said = [process.communicate(timeout=120)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [text.strip().splitlines()[-1:] for text in said] == [["checked"]] * count, "\n".join(said)
    assert all(process.returncode == 0 for process in processes)


if __name__ == "__main__":
    worker(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
