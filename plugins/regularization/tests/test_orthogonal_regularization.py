"""Orthogonal regularisation against plain loops in float64, by what must not change it, and at the edges."""

import math

import pytest
import torch

from embedloss import Embeddings, EmbedlossError, create_loss
from embedloss.testing.processes import Case, evaluate, evaluate_on_processes
from embedloss_regularization.functional import off_diagonal_sums, orthogonality
from embedloss_regularization.losses import GlobalOrthogonalRegularizationLoss as Gor


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def similarity(name, x, y):
    dot = sum(a * b for a, b in zip(x, y, strict=True))
    if name == "cosine":
        length = math.hypot(*x) * math.hypot(*y)
        return dot / length if length else 0.0
    if name == "dot":
        return dot
    return -math.dist(x, y) if name == "euclidean" else -sum(abs(a - b) for a, b in zip(x, y, strict=True))


def loop_terms(x, name="cosine"):
    rows = x.tolist()
    values = [similarity(name, a, b) for i, a in enumerate(rows) for j, b in enumerate(rows) if i != j]
    count = max(len(values), 1)
    return (sum(values) / count) ** 2, max(0.0, sum(v * v for v in values) / count - 1 / x.shape[1])


def dense_sums(x, name):
    x = torch.nn.functional.normalize(x, dim=1) if name == "cosine" else x
    others = (x @ x.T) * (1 - torch.eye(len(x), dtype=x.dtype))
    return others.sum(), others.pow(2).sum()


def gradient_of(function, x):
    leaf = x.clone().requires_grad_()
    value = function(leaf)
    return value.detach(), torch.autograd.grad(value, leaf)[0]


# -- values ----------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("rows", [1, 2, 7, 64])
@pytest.mark.parametrize("dim", [1, 3, 20])
@pytest.mark.parametrize("name", ["cosine", "dot", "euclidean", "manhattan"])
def test_terms_equal_loops(rows, dim, name):
    x = draw(rows, dim) + 0.3
    found = orthogonality(x, name)
    expected = loop_terms(x, name)
    assert [float(t) for t in found] == pytest.approx(list(expected), rel=1e-9, abs=1e-12)
    assert rows == 1 or expected[0] > 0


@pytest.mark.parametrize("rows", [9, 64, 300])
@pytest.mark.parametrize("name", ["cosine", "dot"])
def test_gram_form_equals_the_definition(rows, name):
    x = draw(rows, 8) + 0.2
    for part in (0, 1):
        value, gradient = gradient_of(lambda t, part=part: off_diagonal_sums(t, name)[part] / rows**2, x)
        wanted, reference = gradient_of(lambda t, part=part: dense_sums(t, name)[part] / rows**2, x)
        assert float(reference.norm()) > 1e-3
        assert torch.allclose(value, wanted, rtol=0, atol=1e-10)
        assert torch.allclose(gradient, reference, rtol=0, atol=1e-10)


def test_gram_form_needs_no_quadratic_memory():
    x = draw(300_000, 4, dtype=torch.float32)  # a similarity matrix would need 360 GB
    value, gradient = gradient_of(lambda t: sum(orthogonality(t)), x)
    assert bool(value.isfinite())
    assert float(gradient.norm()) > 0


@pytest.mark.parametrize("aggregation", ["mean", "sum"])
@pytest.mark.parametrize(("mean_weight", "second_moment_weight"), [(1.0, 1.0), (0.5, 3.0), (0, 1.0), (2.0, None)])
def test_columns_are_combined(aggregation, mean_weight, second_moment_weight):
    roles = {"anchor": draw(6, 3), "positive": draw(6, 3, seed=1) + 1, "negative": draw(6, 2, 3, seed=2)}
    columns = [roles["anchor"], roles["positive"], roles["negative"][:, 0], roles["negative"][:, 1]]
    means, moments = zip(*(loop_terms(c) for c in columns), strict=True)
    divisor = 4 if aggregation == "mean" else 1
    output = Gor("cosine", mean_weight, second_moment_weight, aggregation)(Embeddings.of(**roles))
    expected = {"gor_mean": (mean_weight, means), "gor_second_moment": (second_moment_weight, moments)}
    expected = {k: w * sum(v) / divisor for k, (w, v) in expected.items() if w}
    assert {k: float(t) for k, t in output.terms.items()} == pytest.approx(expected)
    assert float(output.total) == pytest.approx(sum(expected.values()))
    assert min(expected.values()) > 0


def test_lists_of_different_length():
    lists = [draw(n, 3, seed=n) for n in (3, 1, 2)]
    columns = [torch.stack([v[k] for v in lists if len(v) > k]) for k in range(3)]
    query = draw(3, 3, seed=9)
    expected = sum(sum(loop_terms(c)) for c in [query, *columns])
    output = Gor(aggregation="sum")(Embeddings.of(query=query, docs=lists))
    assert float(output.total) == pytest.approx(expected)
    assert float(output.metrics["active"]) == 0.75  # one document has rank 3


def test_any_format_and_labels_are_ignored():
    x = draw(5, 3)
    loss = create_loss("gor")
    base = loss(Embeddings.of(text=x)).total
    assert float(base) > 0
    assert loss(Embeddings.of(text=x), torch.tensor([9, -1, 0, 2, 2])).total == base
    assert loss(Embeddings.of(damaged=x, original=x)).total == base


# -- what must not change it -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("rows", [4, 40])
def test_order_length_and_rotation_do_not_matter(rows):
    x = draw(rows, 6) + 1
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(1))
    rotation = torch.linalg.qr(draw(6, 6, seed=2))[0]
    base = torch.stack(orthogonality(x))
    assert float(base.min()) > 0
    for other in (x[order], x * torch.arange(1, rows + 1)[:, None], x @ rotation):
        assert torch.allclose(torch.stack(orthogonality(other)), base, atol=1e-12)


def test_known_values():
    basis = torch.eye(4, dtype=torch.float64)
    assert [float(t) for t in orthogonality(basis)] == [0, 0]
    assert [float(t) for t in orthogonality(basis[:1].expand(10, 4))] == pytest.approx([1, 1 - 1 / 4])
    spread = orthogonality(draw(4000, 16))  # random directions
    assert float(spread[0]) < 1e-5
    assert float(spread[1]) < 1e-3


def test_descent_spreads_a_crowd():
    x = draw(32, 8) * 0.1 + 1
    start = sum(float(t) for t in orthogonality(x))
    for _ in range(50):
        _, gradient = gradient_of(lambda t: sum(orthogonality(t)), x)
        x = x - 5 * gradient
    assert sum(float(t) for t in orthogonality(x)) < 0.1 * start


def test_gradcheck():
    for rows in (3, 7):
        x = (draw(rows, 4) + 0.5).requires_grad_()
        assert torch.autograd.gradcheck(lambda t: Gor()(Embeddings.of(text=t)).total, x)


# -- edges -----------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["cosine", "dot", "euclidean", "manhattan"])
def test_one_row_is_zero_and_connected(name):
    output = Gor(name)(Embeddings.of(text=draw(1, 4)))
    value, gradient = gradient_of(lambda t: Gor(name)(Embeddings.of(text=t)).total, draw(1, 4))
    assert float(value) == 0
    assert torch.equal(gradient, torch.zeros(1, 4))
    assert float(output.metrics["active"]) == 0


@pytest.mark.parametrize("rows", [3, 12])
def test_zero_vectors_and_duplicates(rows):
    x = draw(rows, 4)
    x[0] = 0
    x[1] = x[2]
    value, gradient = gradient_of(lambda t: sum(orthogonality(t)), x)
    assert float(value) == pytest.approx(sum(loop_terms(x)))
    assert torch.equal(gradient[0], torch.zeros(4))
    assert 0 < float(gradient.abs().max()) < 10


@pytest.mark.parametrize("rows", [1, 3, 12])
@pytest.mark.parametrize("name", ["cosine", "dot", "euclidean", "manhattan"])
@pytest.mark.parametrize("weights", [(1, 1), (1, 0), (0, 1)])
def test_nan_in_nan_out(rows, name, weights):
    x = draw(rows, 4)
    x[-1, 0] = torch.nan
    assert bool(Gor(name, *weights)(Embeddings.of(text=x)).total.isnan())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_and_huge_norms(dtype):
    x = (draw(16, 6) + 0.5).to(dtype)
    value, gradient = gradient_of(lambda t: Gor()(Embeddings.of(text=t)).total, x)
    wanted = Gor()(Embeddings.of(text=x.float())).total
    assert value.dtype == torch.float32
    assert torch.equal(value, wanted)
    assert gradient.dtype == dtype
    assert float(gradient.float().norm()) > 0
    assert torch.allclose(Gor()(Embeddings.of(text=x.float() * 1e15)).total, wanted, rtol=1e-4)


# -- parameters ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gor(mean_weight=0, second_moment_weight=None)", "one of mean_weight and second_moment_weight"),
        ("gor(mean_weight=-1)", "mean_weight must be at least 0"),
        ("gor(aggregation='max')", "aggregation must be mean or sum"),
        ("gor(similarity_fct='hamming')", "similarity_fct must be one of"),
    ],
)
def test_wrong_parameters(text, message):
    with pytest.raises(EmbedlossError, match=f"E203.*{message}"):
        create_loss(text)


def test_expression_round_trip_and_sum():
    text = "global_orthogonal_regularization(similarity_fct='dot', mean_weight=None, aggregation='sum')"
    assert create_loss(text).to_expression() == text
    x = draw(6, 4) + 1
    alone, double = create_loss("gor"), create_loss("gor() + 0.5 * gor(mean_weight=0)")
    output = alone(Embeddings.of(text=x))
    expected = output.total + 0.5 * output.terms["gor_second_moment"]
    assert torch.allclose(double(Embeddings.of(text=x)).total, expected)


# -- processes -------------------------------------------------------------------------------------------------------------
def test_two_processes_equal_one():
    few = {"anchor": draw(7, 8), "negative": [draw(i % 3, 8, seed=i) for i in range(7)]}
    many = {"anchor": draw(7, 3), "positive": draw(7, 3, seed=1)}  # more rows than dimensions
    cases = [Case(create_loss("gor"), roles) for roles in (few, many)] + [
        Case(create_loss("gor(similarity_fct='euclidean')"), many)
    ]
    for case, joint in zip(cases, evaluate_on_processes(cases, [5, 2]), strict=True):
        alone = evaluate(case.loss, case.roles)
        assert float(alone.value) > 0
        assert torch.allclose(joint.value, alone.value, atol=1e-10, rtol=0)
        for role, wanted in alone.gradients.items():
            wanted, found = (torch.cat(g) if isinstance(g, list) else g for g in (wanted, joint.gradients[role]))
            assert float(wanted.norm()) > 0
            assert torch.allclose(found, wanted, atol=1e-10, rtol=0)
