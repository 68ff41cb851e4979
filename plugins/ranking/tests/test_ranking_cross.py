"""The form for cross-encoders: drawing candidates from the batch, and the softmax over their scores."""

from __future__ import annotations

import math
import random
from collections import Counter

import pytest
import torch

from embedloss import Embeddings, EmbedlossError, create_loss
from embedloss.embeddings import Scores
from embedloss_ranking.sampling import with_in_batch_negatives

torch.set_num_threads(1)


def pairs(rows):
    return [{"anchor": f"q{i}", "positive": f"d{i}"} for i in range(rows)]


def drawn(rows, count, seed=0, name="pairs"):
    return with_in_batch_negatives(rows, name, count, random.Random(seed))


# -- drawing ------------------------------------------------------------------------------------------------------------------
def test_all_documents_of_other_rows():
    rows, name = drawn([{"anchor": f"q{i}", "positive": f"d{i}", "negative": [f"n{i}", f"m{i}"]} for i in range(3)], None)
    assert name == "n-tuples"
    for i, row in enumerate(rows):
        others = {f"{kind}{j}" for j in range(3) if j != i for kind in "dnm"}
        assert row["negative"][:2] == [f"n{i}", f"m{i}"]
        assert sorted(row["negative"][2:]) == sorted(others)


@pytest.mark.parametrize("count", [1, 3, 5, 6, 7, 50])
def test_as_many_as_asked_for_and_none_twice(count):
    rows, _ = drawn(pairs(8), count)
    for i, row in enumerate(rows):
        assert len(row["negative"]) == min(count, 7)
        assert len(set(row["negative"])) == len(row["negative"])
        assert f"d{i}" not in row["negative"]
        assert row["anchor"] == f"q{i}"


def test_zero_keeps_own_negatives_only():
    rows, name = drawn(
        [{"anchor": "a", "positive": "b", "negative": "c"}, {"anchor": "d", "positive": "e", "negative": "f"}], 0
    )
    assert name == "n-tuples"
    assert [row["negative"] for row in rows] == [["c"], ["f"]]
    given = pairs(2)
    assert drawn(given, 0) == (given, "pairs")
    assert drawn(pairs(1), 4) == (pairs(1), "pairs")


def test_never_a_text_that_answers_the_query_nor_one_twice():
    rows = [
        {"anchor": "q", "positive": "x", "negative": ["n"]},
        {"anchor": "q", "positive": "y", "negative": ["o"]},  # the same query: y answers row 0 as well
        {"anchor": "r", "positive": "x", "negative": ["n"]},  # the same document, the same hard negative
        {"anchor": "s", "positive": "z", "negative": []},
    ]
    for count in (None, 1, 2, 3, 4):
        for seed in range(20):
            found = [row["negative"] for row in drawn(rows, count, seed)[0]]
            for texts, never, allowed in zip(
                found, ({"x", "y"}, {"x", "y"}, {"x"}, {"z"}), (("n", "o", "z"), ("n", "o", "z"), "nyoz", "xnyo"), strict=True
            ):
                assert not never & set(texts)
                assert max(Counter(texts).values()) == 1
                assert set(texts) <= set(allowed)
            if count is None:
                assert [sorted(texts) for texts in found] == [
                    ["n", "o", "z"],
                    ["n", "o", "z"],
                    ["n", "o", "y", "z"],
                    ["n", "o", "x", "y"],
                ]
            else:
                assert [len(texts) for texts in found] == [
                    min(1 + count, 3),
                    min(1 + count, 3),
                    min(1 + count, 4),
                    min(count, 4),
                ]


def test_uniform_and_repeatable():
    found = Counter()
    for seed in range(3000):
        row = drawn(pairs(6), 2, seed)[0][0]
        found.update(row["negative"])
    assert set(found) == {f"d{j}" for j in range(1, 6)}
    assert all(abs(n - 1200) < 5 * math.sqrt(3000 * 0.4 * 0.6) for n in found.values())
    assert drawn(pairs(9), 3, 5) == drawn(pairs(9), 3, 5)
    assert drawn(pairs(9), 3, 5) != drawn(pairs(9), 3, 6)


def test_the_rows_given_are_not_changed():
    rows = [{"anchor": "a", "positive": "b", "negative": ["c"]}, {"anchor": "d", "positive": "e", "negative": ["f"]}]
    create_loss("ce_mnrl").transform(rows, "n-tuples", random.Random(0))
    assert rows == [{"anchor": "a", "positive": "b", "negative": ["c"]}, {"anchor": "d", "positive": "e", "negative": ["f"]}]


# -- the softmax --------------------------------------------------------------------------------------------------------------
def by_definition(scores, mask, scale, activation):
    terms = []
    for row, there in zip(scores, mask, strict=True):
        z = [scale * (1 / (1 + (-s).exp()) if activation == "sigmoid" else s) for s, t in zip(row, there, strict=True) if t]
        terms.append(sum(v.exp() for v in z).log() - z[0])
    return sum(terms) / len(terms)


def example(seed=0):
    g = torch.Generator().manual_seed(seed)
    mask = torch.arange(6)[None] < torch.tensor([6, 1, 3, 4, 2])[:, None]
    return torch.randn(5, 6, generator=g, dtype=torch.float64), mask


@pytest.mark.parametrize("name", ["ce_mnrl", "ce_cmnrl"])
@pytest.mark.parametrize("activation", ["sigmoid", "identity", None])
@pytest.mark.parametrize("scale", [10.0, 1.0, 0, None])
def test_against_the_definition(name, activation, scale):
    scores, mask = example()
    loss = create_loss(name, scale=scale, activation_fn=activation)
    leaf, other = scores.clone().requires_grad_(), scores.clone().requires_grad_()
    output = loss(Scores.of(leaf.masked_fill(~mask, 99.0), mask))
    wanted = by_definition(other, mask, scale or 1.0, activation)
    output.total.backward()
    wanted.backward()
    assert other.grad.abs().max() > 1e-3
    assert abs(output.total - wanted) < 1e-12
    assert torch.allclose(leaf.grad, other.grad, rtol=0, atol=1e-12)
    assert output.metrics["active"] == 0.8
    assert loss.compute_scores(scores, None, mask).total == output.total
    assert loss.requires().recompute is (name == "ce_cmnrl")


def test_candidates_may_stand_in_any_order_and_shift():
    scores, mask = example()
    loss = create_loss("ce_mnrl(activation_fn=None)")
    value = loss(Scores.of(scores, mask)).total
    order = [0, 4, 2, 5, 1, 3]
    assert abs(loss(Scores.of(scores[:, order], mask[:, order])).total - value) < 1e-12
    shifted = scores + torch.arange(5, dtype=torch.float64)[:, None]
    assert abs(loss(Scores.of(shifted, mask)).total - value) < 1e-12


@pytest.mark.parametrize("width", [1, 3])
def test_nothing_to_learn_from(width):
    leaf = torch.randn(4, width, dtype=torch.float64, requires_grad=True)
    mask = torch.zeros(4, width, dtype=torch.bool)
    mask[:, 0] = True
    output = create_loss("ce_mnrl")(Scores.of(leaf, mask))
    output.total.backward()
    assert output.total == 0
    assert output.metrics["active"] == 0
    assert leaf.grad.abs().max() == 0


def test_saturation_is_seen():
    wrong = torch.tensor([[-30.0, 30.0], [-30.0, 30.0]], requires_grad=True)
    output = create_loss("ce_mnrl(scale=4)")(Scores.of(wrong))
    output.total.backward()
    assert abs(output.total - 4.018) < 1e-3
    assert wrong.grad.abs().max() < 1e-9
    assert output.metrics["saturated"] == 1
    assert "saturated" not in create_loss("ce_mnrl(activation_fn=None)")(Scores.of(wrong)).metrics


def test_nan_and_half():
    scores, mask = example()
    for place in ((0, 0), (2, 1)):
        broken = scores.clone()
        broken[place] = float("nan")
        assert create_loss("ce_mnrl")(Scores.of(broken, mask)).total.isnan()
    assert create_loss("ce_mnrl")(Scores.of(torch.full((2, 1), float("nan")))).total.isnan()
    assert create_loss("ce_mnrl")(Scores.of(scores.half(), mask)).total.dtype == torch.float32


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("ce_mnrl(num_negatives=-1)", "num_negatives must be a whole number"),
        ("ce_mnrl(num_negatives=1.5)", "num_negatives must be a whole number"),
        ("ce_mnrl(scale=-1)", "scale must be at least 0"),
        ("ce_mnrl(activation_fn='step')", "activation_fn must be one of"),
    ],
)
def test_wrong_parameters(expression, message):
    with pytest.raises(EmbedlossError, match=message):
        create_loss(expression)


def test_embeddings_are_refused():
    x = torch.randn(3, 4)
    with pytest.raises(EmbedlossError, match="takes scores of a cross-encoder"):
        create_loss("ce_mnrl")(Embeddings.of(anchor=x, positive=x))


def test_torch_modules_name_the_activation():
    assert create_loss("ce_mnrl", activation_fn=None).activation_fn is None
    from embedloss_ranking import CrossMultipleNegativesRankingLoss

    assert CrossMultipleNegativesRankingLoss(activation_fn=torch.nn.Sigmoid()).activation_fn == "sigmoid"
    assert CrossMultipleNegativesRankingLoss(activation_fn=torch.nn.Identity()).activation_fn == "identity"
    with pytest.warns(UserWarning, match="no effect"):
        assert create_loss("ce_cmnrl(mini_batch_size=8)").to_expression() == (
            "cached_cross_multiple_negatives_ranking(mini_batch_size=8)"
        )
