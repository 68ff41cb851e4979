"""The mean over two real processes is the loss and the gradient of one process on the joint batch, with uneven shares too."""

from __future__ import annotations

import sys

import torch

from embedloss.testing.processes import process_group, run_processes

EXPRESSIONS = [
    "batch_all_triplet(margin=0.5)",
    "batch_all_triplet(distance='cosine', margin=0.2)",
    "batch_hard_triplet(distance='manhattan', margin=3)",
    "batch_hard_soft_margin_triplet()",
    "batch_semi_hard_triplet(distance='squared-euclidean', margin=1)",
]
SHARES = [(6, 6), (7, 5), (2, 10), (1, 11)]


def joint_batch(rows=12):
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(4, rows, 5, generator=generator, dtype=torch.float64)
    return x, torch.arange(rows) % 5 // 2


def check(rank, expression, shares):
    import torch.distributed as dist

    from embedloss import Embeddings, create_loss

    x, labels = joint_batch()
    mine = slice(0, shares[0]) if rank == 0 else slice(shares[0], None)
    loss = create_loss(expression)
    roles = ("text",) if "batch" in expression else ("anchor", "positive", "negative")

    whole = [x[i].clone().requires_grad_() for i in range(len(roles))]
    joint = loss(Embeddings.of(**dict(zip(roles, whole, strict=True))), labels if "batch" in expression else None)
    joint.total.backward()
    own = [x[i, mine].clone().requires_grad_() for i in range(len(roles))]
    emb = Embeddings.of(**dict(zip(roles, own, strict=True))).with_gathering()
    output = loss(emb, labels[mine] if "batch" in expression else None)
    output.total.backward()
    mean = output.total.detach().clone()
    dist.all_reduce(mean)
    assert joint.total > 1e-2
    assert abs(mean / 2 - joint.total) < 1e-10, (expression, shares)
    if "batch" in expression:
        assert output.metrics["active"] == joint.metrics["active"]
    for leaf, everything in zip(own, whole, strict=True):
        assert everything.grad.abs().max() > 1e-3
        assert (leaf.grad / 2 - everything.grad[mine]).abs().max() < 1e-10, (expression, shares)


def test_two_processes_equal_one(tmp_path):
    run_processes([sys.executable, __file__, str(tmp_path)], 2)


if __name__ == "__main__":
    folder, rank, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    with process_group(folder, rank, count):
        for expression in [*EXPRESSIONS, "triplet(margin=1)"]:
            for shares in SHARES:
                check(rank, expression, shares)
