"""The mean over two real processes is the loss and the gradient of one process on the joint batch, with uneven shares too."""

from __future__ import annotations

import sys

import torch

from embedloss.testing.processes import process_group, run_processes

PAIRS, GIVEN, SINGLE = ("first", "second"), ("anchor", "positive"), ("text",)
CASES = [
    ("contrastive(margin=1)", PAIRS, True),
    ("contrastive(distance='euclidean', margin=4, reduction='sum')", PAIRS, True),
    ("online_contrastive(margin=1.5)", PAIRS, True),
    ("online_contrastive(distance='manhattan', margin=9)", PAIRS, True),
    ("contrastive_tension", PAIRS, True),
    ("contrastive_tension", GIVEN, False),
    ("contrastive_tension(pos_neg_ratio=4)", SINGLE, False),
    ("contrastive_tension_in_batch_negatives", SINGLE, False),
    ("contrastive_tension_in_batch_negatives(scale=1, similarity_fct='dot')", SINGLE, False),
    ("contrastive_tension_in_batch_negatives(learnable_scale=False)", GIVEN, False),
]
SHARES = [(5, 5), (7, 3), (1, 9)]


def joint_batch(rows=10):
    generator = torch.Generator().manual_seed(4)
    return torch.randn(4, rows, 5, generator=generator, dtype=torch.float64), torch.tensor([1, 0, 0, 1, 1] * (rows // 5))


def check(rank, expression, roles, labelled, shares):
    import torch.distributed as dist

    from embedloss import Embeddings, create_loss

    x, labels = joint_batch()
    mine = slice(0, shares[0]) if rank == 0 else slice(shares[0], None)
    twin = expression.startswith("contrastive_tension")

    def run(rows, gather):
        leaves = [t[rows].clone().requires_grad_() for t in x[: len(roles) * (1 + twin)]]
        emb = Embeddings.of(**dict(zip(roles, leaves, strict=False)))
        if twin:
            emb = emb.with_twin(Embeddings.of(**dict(zip(roles, leaves[len(roles) :], strict=True))))
        if roles == GIVEN:
            second = torch.arange(10) - (0 if "in_batch" in expression else 50 * (1 - labels))
            emb = emb.with_text_ids(anchor=torch.arange(10)[rows], positive=second[rows])
        emb = emb.with_context(seed=1, step=2)
        loss = create_loss(expression).double()
        total = loss(emb.with_gathering() if gather else emb, labels[rows] if labelled else None).total
        total.backward()
        return total.detach(), leaves, [p.grad for p in loss.parameters()]

    joint, whole, parameters = run(slice(None), False)
    value, own, shared = run(mine, True)
    for tensor in (value, *shared):
        dist.all_reduce(tensor)
    assert joint > 1e-2
    assert abs(value / 2 - joint) < 1e-10, (expression, shares)
    assert len(parameters) == ("in_batch" in expression and "False" not in expression)
    for gradient, everything in zip(shared, parameters, strict=True):
        assert everything.abs() > 1e-3
        assert abs(gradient / 2 - everything) < 1e-10
    taught = 0
    for leaf, everything in zip(own, whole, strict=True):
        if everything.grad is None:  # the column that this encoder's side of the loss does not read
            assert leaf.grad is None
            continue
        taught += 1
        assert everything.grad.abs().max() > 1e-3
        assert (leaf.grad / 2 - everything.grad[mine]).abs().max() < 1e-10, (expression, shares)
    assert taught == 2


def test_two_processes_equal_one(tmp_path):
    run_processes([sys.executable, __file__, str(tmp_path)], 2)


if __name__ == "__main__":
    folder, rank, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    with process_group(folder, rank, count):
        for case in CASES:
            for shares in SHARES:
                check(rank, *case, shares)
