"""Similarity losses against plain loops in float64, by what must not change them, and at the edges."""

import functools
import math

import pytest
import torch

from embedloss import Embeddings, EmbedlossError, create_loss
from embedloss.similarity import pairwise
from embedloss.testing.processes import Case, evaluate, evaluate_on_processes
from embedloss_similarity.functional import angle_similarity, cosent, cosent_of_two
from embedloss_similarity.losses import AnglELoss, CoSENTLoss, CosineSimilarityLoss

SIZES = [1, 2, 7, 64]


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def levels(rows, count, seed=0):
    return torch.randint(0, count, (rows,), generator=torch.Generator().manual_seed(seed)).double() / max(count - 1, 1)


def cosine(x, y):
    length = math.sqrt(sum(a * a for a in x)) * math.sqrt(sum(b * b for b in y))
    return sum(a * b for a, b in zip(x, y, strict=True)) / length if length else 0.0


def angle(x, y):
    x, y = list(x), list(y)
    if len(x) % 2:
        x, y = [*x, 0.0], [*y, 0.0]
    half = len(x) // 2
    z, w = ([complex(v[i], v[i + half]) for i in range(half)] for v in (x, y))
    product = sum(a * b.conjugate() for a, b in zip(z, w, strict=True))
    return abs(product.real + product.imag) / (math.sqrt(sum(a * a for a in x)) * math.sqrt(sum(b * b for b in y)))


def loop_cosent(scores, labels):
    exponents = [scores[j] - scores[i] for i in range(len(scores)) for j in range(len(scores)) if labels[i] > labels[j]]
    top = max([0.0, *exponents])
    return top + math.log(math.exp(-top) + sum(math.exp(e - top) for e in exponents))


def pair_cosent(scores, labels):
    """The definition with autograd, O(n^2)."""
    pairs = [scores[j] - scores[i] for i in range(len(scores)) for j in range(len(scores)) if labels[i] > labels[j]]
    return torch.logsumexp(torch.stack([scores.sum() * 0, *pairs]), 0)


def gradients(function, *tensors):
    leaves = [t.clone().requires_grad_() for t in tensors]
    value = function(*leaves)
    return value.detach(), torch.autograd.grad(value, leaves)


# -- values ----------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("rows", SIZES)
@pytest.mark.parametrize("count", [1, 2, 4, 64])
@pytest.mark.parametrize("scale", [1.0, 20.0])
def test_cosent_equals_the_definition(rows, count, scale):
    for seed in range(3):
        labels = levels(rows, count, seed)
        scores = draw(rows, seed=seed).clamp(-1, 1) * scale
        value, (gradient,) = gradients(lambda s, y=labels: cosent(s, y), scores)
        expected, (wanted,) = gradients(lambda s, y=labels: pair_cosent(s, y), scores)
        assert float(value) == pytest.approx(loop_cosent(scores.tolist(), labels.tolist()), abs=1e-10)
        assert torch.allclose(value, expected, atol=1e-10, rtol=0)
        assert bool((wanted != 0).any()) == (len(set(labels.tolist())) > 1)
        assert torch.allclose(gradient, wanted, atol=1e-10, rtol=0)


def test_two_label_values_need_no_sort(monkeypatch):
    scores, labels = draw(50), levels(50, 2)

    def refuse(*arguments, **named):
        raise AssertionError("sorted")

    expected = loop_cosent(scores.tolist(), labels.tolist())
    monkeypatch.setattr(torch.Tensor, "sort", refuse)
    assert float(cosent(scores, labels)) == pytest.approx(expected, abs=1e-12)
    assert float(cosent_of_two(scores[labels == 0], scores[labels == 1])) == pytest.approx(expected, abs=1e-12)
    with pytest.raises(AssertionError, match="sorted"):
        cosent(scores, levels(50, 3))


def test_a_large_batch_needs_no_quadratic_memory():
    scores, labels = draw(200_000, dtype=torch.float32), draw(200_000, seed=1)  # the definition would need 160 GB
    value, (gradient,) = gradients(lambda s: cosent(s * 20, labels), scores)
    assert bool(value.isfinite())
    assert bool(gradient.isfinite().all())
    assert bool((gradient != 0).any())


@pytest.mark.parametrize("dim", [2, 5, 8])
def test_angle_similarity_is_that_of_complex_numbers(dim):
    x, y = draw(20, dim), draw(20, dim, seed=1)
    found = angle_similarity(x, y)
    assert found.tolist() == pytest.approx([angle(a, b) for a, b in zip(x.tolist(), y.tolist(), strict=True)], abs=1e-12)
    assert float(found.max()) <= math.sqrt(2)
    assert torch.allclose(angle_similarity(x, x), torch.ones(20, dtype=torch.float64))
    assert not torch.allclose(found, angle_similarity(y, x))


@pytest.mark.parametrize("similarity", [angle_similarity, functools.partial(pairwise, "cosine")])
def test_similarities_have_a_second_derivative(similarity):
    x, y = draw(4, 6).requires_grad_(), draw(4, 6, seed=1).requires_grad_()
    (first,) = torch.autograd.grad(similarity(x, y).abs().sum(), x, create_graph=True)
    assert first.abs().min() > 0
    assert torch.autograd.gradgradcheck(lambda x, y: similarity(x, y).abs(), (x, y))


@pytest.mark.parametrize("rows", SIZES)
@pytest.mark.parametrize("similarity", ["cosine", "dot", "euclidean", "manhattan"])
def test_cosent_on_embeddings(rows, similarity):
    x, y, labels = draw(rows, 6), draw(rows, 6, seed=1), levels(rows, 4)
    functions = {
        "cosine": cosine,
        "dot": lambda a, b: sum(p * q for p, q in zip(a, b, strict=True)),
        "euclidean": lambda a, b: -math.dist(a, b),
        "manhattan": lambda a, b: -sum(abs(p - q) for p, q in zip(a, b, strict=True)),
    }
    scores = [7 * functions[similarity](a, b) for a, b in zip(x.tolist(), y.tolist(), strict=True)]
    output = CoSENTLoss(7.0, similarity)(Embeddings.of(first=x, second=y), labels)
    assert float(output.total) == pytest.approx(loop_cosent(scores, labels.tolist()), abs=1e-10)
    assert float(output.metrics["active"]) == (len(set(labels.tolist())) > 1)


def angle_pairs(anchor, positive, negatives):
    """Scores of all pairs of tuples and labels 1 for positives, 0 for negatives."""
    scores, labels = [], []
    for a, p, row in zip(anchor, positive, negatives, strict=True):
        scores += [20 * angle(a, p), *(20 * angle(a, n) for n in row)]
        labels += [1, *(0 for _ in row)]
    return scores, labels


@pytest.mark.parametrize("rows", SIZES)
def test_angle_on_pairs_triplets_and_tuples(rows):
    x, y, labels = draw(rows, 6), draw(rows, 6, seed=1), levels(rows, 4)
    scores = [20 * angle(a, b) for a, b in zip(x.tolist(), y.tolist(), strict=True)]
    loss = AnglELoss()
    found = loss(Embeddings.of(first=x, second=y), labels).total
    assert float(found) == pytest.approx(loop_cosent(scores, labels.tolist()), abs=1e-10)
    for n in (1, 3):
        negatives = draw(rows, n, 6, seed=2)
        expected = loop_cosent(*angle_pairs(x.tolist(), y.tolist(), negatives.tolist()))
        given = negatives[:, 0] if n == 1 else negatives
        assert float(loss(Embeddings.of(anchor=x, positive=y, negative=given)).total) == pytest.approx(expected, abs=1e-10)
    ragged = [draw(i % 3, 6, seed=i) for i in range(rows)]  # the first row has none
    expected = loop_cosent(*angle_pairs(x.tolist(), y.tolist(), [r.tolist() for r in ragged]))
    output = loss(Embeddings.of(anchor=x, positive=y, negative=ragged))
    assert float(output.total) == pytest.approx(expected, abs=1e-10)
    assert float(output.metrics["active"]) == (rows > 1)


@pytest.mark.parametrize("rows", SIZES)
@pytest.mark.parametrize("name", ["mse", "mae", "huber"])
@pytest.mark.parametrize("transformation", ["identity", "sigmoid", "tanh", "relu"])
def test_cosine_similarity_equals_loops(rows, name, transformation):
    x, y = draw(rows, 5), draw(rows, 5, seed=1)
    labels = draw(rows, seed=2) * 3 if transformation != "identity" else draw(rows, seed=2).clamp(-1, 1)
    change = {
        "identity": lambda t: t,
        "sigmoid": lambda t: 1 / (1 + math.exp(-t)),
        "tanh": math.tanh,
        "relu": lambda t: max(t, 0.0),
    }
    compare = {"mse": lambda d: d * d, "mae": abs, "huber": lambda d: d * d / 2 if abs(d) < 1 else abs(d) - 0.5}
    expected = sum(
        compare[name](change[transformation](cosine(a, b)) - c)
        for a, b, c in zip(x.tolist(), y.tolist(), labels.tolist(), strict=True)
    )
    loss = CosineSimilarityLoss(name, transformation)
    assert float(loss(Embeddings.of(first=x, second=y), labels).total) == pytest.approx(expected / rows, abs=1e-12)


# -- what must not change them ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["cosine-similarity", "cosent", "angle"])
def test_order_of_rows_and_length_of_vectors_do_not_matter(name):
    x, y, labels = draw(9, 6), draw(9, 6, seed=1), levels(9, 4)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(3))
    loss = create_loss(name)
    base = loss(Embeddings.of(first=x, second=y), labels).total
    assert float(base) > 0.01
    moved = loss(Embeddings.of(first=x[order], second=y[order]), labels[order]).total
    longer = loss(Embeddings.of(first=x * 3, second=y * torch.arange(1, 10)[:, None]), labels).total
    assert torch.allclose(base, moved, atol=1e-12)
    assert torch.allclose(base, longer, atol=1e-12)


@pytest.mark.parametrize("name", ["cosent", "angle"])
@pytest.mark.parametrize("labels", [[0, 1, 3, 3, 2], [-7.5, 0.0, 1e9, 1e9, 2.0]])
def test_only_the_order_of_scores_matters(name, labels):
    emb = Embeddings.of(first=draw(5, 4), second=draw(5, 4, seed=1))
    loss = create_loss(name)
    base = loss(emb, torch.tensor([0.0, 0.2, 0.9, 0.9, 0.5])).total
    assert float(base) > 0
    assert torch.allclose(loss(emb, torch.tensor(labels)).total, base)


def test_labels_of_any_kind_and_shape():
    emb = Embeddings.of(first=draw(4, 4), second=draw(4, 4, seed=1))
    values = [create_loss("cosent")(emb, labels).total for labels in ([1, 0, 0, 1], torch.tensor([True, False, False, True]))]
    values.append(create_loss("cosent")(emb, torch.tensor([[1.0], [0.0], [0.0], [1.0]])).total)
    assert values[0] == values[1] == values[2] > 0


def test_gradients_lead_downhill():
    x, y, labels = draw(16, 6), draw(16, 6, seed=1), levels(16, 5)
    for name in ("cosine-similarity", "cosent", "angle"):
        loss = create_loss(name)
        start, (dx, dy) = gradients(lambda a, b, loss=loss: loss(Embeddings.of(first=a, second=b), labels).total, x, y)
        assert float(dx.norm()) > 0
        end = loss(Embeddings.of(first=x - 1e-3 * dx, second=y - 1e-3 * dy), labels).total
        assert float(end) < float(start)


def test_gradcheck():
    x, y, labels = draw(5, 4), draw(5, 4, seed=1), levels(5, 3)
    for name in ("cosine-similarity", "cosent(scale=3)", "angle(scale=3)"):
        loss = create_loss(name)
        leaves = (x.clone().requires_grad_(), y.clone().requires_grad_())
        assert torch.autograd.gradcheck(lambda a, b, loss=loss: loss(Embeddings.of(first=a, second=b), labels).total, leaves)


# -- edges -----------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["cosent", "angle"])
@pytest.mark.parametrize("labels", [[0.3], [0.5, 0.5, 0.5]])
def test_nothing_to_order_is_zero_and_connected(name, labels):
    x = draw(len(labels), 4)
    loss = create_loss(name)
    value, (dx, dy) = gradients(lambda a, b: loss(Embeddings.of(first=a, second=b), labels).total, x, x + 1)
    assert float(value) == 0
    assert torch.equal(dx, torch.zeros_like(dx))
    assert torch.equal(dy, torch.zeros_like(dy))
    assert float(loss(Embeddings.of(first=x, second=x), labels).metrics["active"]) == 0


def test_tuples_without_negatives_are_zero_and_connected():
    x = draw(3, 4)
    value, (dx,) = gradients(
        lambda a: AnglELoss()(Embeddings.of(anchor=a, positive=a + 1, negative=[a[:0], a[:0], a[:0]])).total, x
    )
    assert float(value) == 0
    assert torch.equal(dx, torch.zeros_like(dx))


@pytest.mark.parametrize("name", ["cosine-similarity", "cosent", "angle"])
def test_zero_vectors_and_duplicates(name):
    x, y = draw(6, 4), draw(6, 4, seed=1)
    x[0], x[1], y[1], y[2] = 0, 0, 0, x[2]
    labels = torch.tensor([0, 0.5, 1, 0.2, 0.9, 0.4])
    loss = create_loss(name)
    value, (dx, dy) = gradients(lambda a, b: loss(Embeddings.of(first=a, second=b), labels).total, x, y)
    assert bool(value.isfinite())
    assert torch.equal(dx[:2], torch.zeros(2, 4))
    assert torch.equal(dy[:2], torch.zeros(2, 4))
    assert float(dx[3:].norm()) > 0
    assert float(dx.abs().max()) < 1e3


def test_all_pairs_equally_similar_count_the_pairs():
    zero = torch.zeros(7, 4)
    labels = torch.tensor([0, 0, 1, 1, 1, 2, 2])  # 6 + 4 + 6 ordered pairs
    assert float(CoSENTLoss()(Embeddings.of(first=zero, second=zero), labels).total) == pytest.approx(math.log(17))


@pytest.mark.parametrize("name", ["cosine-similarity", "cosent", "angle"])
@pytest.mark.parametrize("labels", [[0.5, 0.5, 0.5, 0.5], [0, 1, 1, 0], [0, 0.3, 0.6, 1]])
def test_nan_in_nan_out(name, labels):
    for row in range(4):
        x = draw(4, 4)
        x[row, 1] = torch.nan
        assert bool(create_loss(name)(Embeddings.of(first=x, second=draw(4, 4, seed=1)), labels).total.isnan())


def test_nan_in_tuples():
    for role in ("anchor", "positive", "negative"):
        given = {"anchor": draw(2, 4), "positive": draw(2, 4, seed=1), "negative": draw(2, 2, 4, seed=2)}
        given[role].view(-1)[0] = torch.nan
        assert bool(AnglELoss()(Embeddings.of(**given)).total.isnan())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["cosine-similarity", "cosent", "angle"])
def test_half_precision_and_huge_norms(dtype, name):
    x, y = draw(8, 6).to(dtype), draw(8, 6, seed=1).to(dtype)
    labels = levels(8, 3)
    loss = create_loss(name)
    value, (dx, _) = gradients(lambda a, b: loss(Embeddings.of(first=a, second=b), labels).total, x, y)
    wanted = loss(Embeddings.of(first=x.float(), second=y.float()), labels).total
    assert value.dtype == torch.float32
    assert torch.equal(value, wanted)
    assert dx.dtype == dtype
    assert float(dx.float().norm()) > 0
    huge = loss(Embeddings.of(first=x.float() * 1e15, second=y.float()), labels).total
    assert torch.allclose(huge, wanted, rtol=1e-4)


# -- errors ----------------------------------------------------------------------------------------------------------------
def test_scores_that_no_cosine_can_reach_are_refused():
    emb = Embeddings.of(first=draw(3, 4), second=draw(3, 4))
    with pytest.raises(EmbedlossError, match=r"E105.*row 3 of this batch has 5") as caught:
        create_loss("cosine-similarity")(emb, [0.5, -1.0, 5.0])
    assert "--scale-labels" in str(caught.value)
    transformed = create_loss("cosine_similarity(cos_score_transformation='relu')")
    assert transformed.spec.label_range is None
    assert create_loss("cosine-similarity").spec.label_range == (-1, 1)
    assert float(transformed(emb, [0.5, -1.0, 5.0]).total) > 1


@pytest.mark.parametrize("name", ["cosine-similarity", "cosent", "angle"])
def test_wrong_labels_are_refused(name):
    loss, emb = create_loss(name), Embeddings.of(first=draw(3, 4), second=draw(3, 4))
    for labels, message in (
        ([0.1, float("nan"), 0.2], "E105.*row 2"),
        ([0.1, 0.2], "E206.*3 rows but 2 labels"),
        (torch.rand(3, 2), "E206.*one label a row"),
        (None, "E206.*needs labels"),
    ):
        with pytest.raises(EmbedlossError, match=message):
            loss(emb, labels)


def test_angle_takes_no_label_on_tuples():
    x = draw(3, 4)
    with pytest.raises(EmbedlossError, match=r"E206.*no label"):
        AnglELoss()(Embeddings.of(anchor=x, positive=x, negative=x), [1.0, 0.0, 1.0])


@pytest.mark.parametrize("scale", [0, -1, math.inf, math.nan])
def test_scale_must_be_positive(scale):
    with pytest.raises(ValueError, match="scale must be positive"):
        CoSENTLoss(scale)
    with pytest.raises(ValueError, match="scale must be positive"):
        AnglELoss(scale)


def test_names_of_functions():
    assert CosineSimilarityLoss(torch.nn.HuberLoss, torch.nn.Sigmoid()).to_expression() == (
        "cosine_similarity(loss_fct='huber', cos_score_transformation='sigmoid')"
    )
    with pytest.raises(EmbedlossError, match=r"E203.*loss_fct must be one of mse, mae, huber; got 'cubic'"):
        create_loss("cosine_similarity(loss_fct='cubic')")
    with pytest.raises(EmbedlossError, match=r"E203.*cos_score_transformation must be one of identity"):
        create_loss("cosine_similarity(cos_score_transformation='cubic')")
    with pytest.raises(EmbedlossError, match=r"E203.*similarity_fct must be one of"):
        create_loss("cosent(similarity_fct='cubic')")


@pytest.mark.parametrize(
    "text", ["cosine_similarity(loss_fct='mae')", "cosent(scale=5, similarity_fct='dot')", "angle(scale=3)"]
)
def test_expression_round_trip(text):
    loss = create_loss(text)
    assert loss.to_expression() == text
    assert create_loss(loss.to_expression()).to_expression() == text


# -- processes -------------------------------------------------------------------------------------------------------------
def test_two_processes_equal_one():
    pairs = {"first": draw(7, 4), "second": draw(7, 4, seed=1)}
    cases = [Case(create_loss(name), pairs, levels(7, 4)) for name in ("cosine-similarity", "cosent", "angle")]
    tuples = {"anchor": draw(7, 4), "positive": draw(7, 4, seed=1), "negative": [draw(i % 3, 4, seed=i) for i in range(7)]}
    cases.append(Case(create_loss("angle"), tuples))
    for case, joint in zip(cases, evaluate_on_processes(cases, [5, 2]), strict=True):
        alone = evaluate(case.loss, case.roles, case.labels)
        assert float(alone.value) > 0
        assert torch.allclose(joint.value, alone.value, atol=1e-10, rtol=0)
        for role, wanted in alone.gradients.items():
            wanted, found = (torch.cat(g) if isinstance(g, list) else g for g in (wanted, joint.gradients[role]))
            assert float(wanted.norm()) > 0
            assert torch.allclose(found, wanted, atol=1e-10, rtol=0)
