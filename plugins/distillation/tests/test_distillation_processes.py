"""Uneven shares of rows, texts and negatives on two real processes: the mean over them is one process on all rows."""

import torch

from embedloss import Embeddings, create_loss
from embedloss.testing.processes import Case, evaluate, evaluate_on_processes

torch.set_num_threads(1)


def randn(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_uneven_shares():
    lists = [randn(2 + i, n, 4) for i, n in enumerate((3, 1, 0, 3, 1))]
    tuples = {"query": randn(0, 5, 4), "positive": randn(1, 5, 4), "negative": lists}
    scored = ["margin_mse()", "margin_mse(reduction='sum')", "distill_kl_div()"]
    cases = [Case(create_loss(expression), tuples, randn(9, 5, 4)) for expression in scored]
    projected = create_loss("embed_distill(projection_dim=3)")
    projected(Embeddings.of(texts=lists), randn(9, 5, 3))  # so that there are weights to copy
    cases += [Case(projected, {"texts": lists}, randn(9, 5, 3)), Case(create_loss("mse"), {"texts": lists}, randn(9, 5, 4))]
    pairs = {"first": randn(0, 5, 4), "second": randn(1, 5, 4)}
    cases += [Case(create_loss("score_mse"), pairs, randn(9, 5))]
    for case, joint in zip(cases, evaluate_on_processes(cases, [1, 4]), strict=True):
        wanted = evaluate(case.loss, case.roles, case.labels)
        torch.testing.assert_close(joint.value, wanted.value, rtol=1e-10, atol=1e-12)
        assert all(torch.cat(list(g)).abs().max() > 0 for g in wanted.gradients.values())
        torch.testing.assert_close(joint.gradients, wanted.gradients, rtol=1e-8, atol=1e-10)
        assert bool(wanted.parameters) == (case.loss is projected)
        torch.testing.assert_close(joint.parameters, wanted.parameters, rtol=1e-8, atol=1e-10)
