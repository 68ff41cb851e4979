"""Uneven shares of lists on two real processes: the mean over processes is one process on all lists."""

import torch

from embedloss import create_loss
from embedloss.embeddings import Scores
from embedloss.testing.processes import Case, evaluate, evaluate_on_processes

torch.set_num_threads(1)


def test_uneven_shares():
    g = torch.Generator().manual_seed(0)
    roles = {
        "query": torch.randn(5, 4, generator=g, dtype=torch.float64),
        "docs": [torch.randn(n, 4, generator=g, dtype=torch.float64) for n in (6, 1, 3, 0, 6)],
    }
    labels = torch.randint(0, 3, (5, 6), generator=g)
    names = ["lambda_loss(k=2)", "rank_net()", "list_net()", "plist_mle(respect_input_order=False)", "adr_mse()"]
    cases = [Case(create_loss(name), roles, labels) for name in names]
    # Shares of lists, of documents and of pairs all differ.
    for case, joint in zip(cases, evaluate_on_processes(cases, [1, 4]), strict=True):
        wanted = evaluate(case.loss, roles, labels)
        torch.testing.assert_close(joint.value, wanted.value, rtol=1e-10, atol=1e-12)
        assert wanted.gradients["query"].abs().max() > 0
        torch.testing.assert_close(joint.gradients, wanted.gradients, rtol=1e-8, atol=1e-10)


def test_scores_of_a_cross_encoder_are_weighted_too(monkeypatch):
    """Three other processes with 5 pairs each: this one's 3 pairs are a sixth of the mean, four times as much in its share."""
    loss = create_loss("rank_net")
    scores, grades = torch.randn(1, 3), torch.tensor([[2, 1, 0]])
    alone = loss(Scores(scores, torch.ones(1, 3, dtype=torch.bool)), grades).total
    monkeypatch.setattr("embedloss.loss.sum_over_processes", lambda count: count + 15)
    shared = loss(Scores(scores, torch.ones(1, 3, dtype=torch.bool), processes=4), grades).total
    torch.testing.assert_close(shared, alone * 4 * 3 / 18)
