"""CosineSimilarity, CoSENT and AnglE equal sentence-transformers in value and in the gradient of every embedding."""

import math

import pytest
import torch
from sentence_transformers import util
from sentence_transformers.sentence_transformer import losses as peer
from torch import nn

from embedloss import Embeddings, EmbedlossError
from embedloss_similarity.losses import AnglELoss, CoSENTLoss, CosineSimilarityLoss

SIZES = [1, 2, 7, 64]
SEEDS = range(3)
TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-5}


def draw(*shape, seed, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def scores(rows, seed, kind="levels"):
    """Scores with ties, without ties, of two values, or all equal."""
    generator = torch.Generator().manual_seed(seed)
    if kind == "distinct":
        return torch.rand(rows, generator=generator, dtype=torch.float64)
    count = {"levels": 4, "binary": 2, "equal": 1}[kind]
    return torch.randint(0, count, (rows,), generator=generator).double() / 3


def run(function, tensors):
    leaves = [t.clone().requires_grad_() for t in tensors]
    value = function(leaves)
    return value.detach(), torch.autograd.grad(value, leaves)


def hold_equal(record_property, name, ours, theirs, tensors, *, nothing=False):
    """`ours` and `theirs` map a list of embeddings to a scalar."""
    dtype = tensors[0].dtype
    label = str(dtype).removeprefix("torch.")
    record_property("parity", (name, f"value {label}"))
    record_property("parity", (name, f"gradient {label}"))
    found, gradients = run(ours, tensors)
    wanted, references = run(theirs, tensors)
    assert float((found - wanted).abs()) <= TOLERANCE[dtype] * max(1.0, float(wanted.abs()))
    assert all(bool((g != 0).any()) for g in references) != nothing
    size = max(1.0, *(float(g.norm()) for g in references))
    for gradient, reference in zip(gradients, references, strict=True):
        assert float((gradient - reference).norm()) <= TOLERANCE[dtype] * size


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("rows", SIZES)
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("fct", ["mse", "mae", "huber"])
@pytest.mark.parametrize("transformation", ["identity", "sigmoid", "tanh", "relu"])
def test_cosine_similarity(record_property, dtype, rows, seed, fct, transformation):
    functions = {"mse": nn.MSELoss(), "mae": nn.L1Loss(), "huber": nn.HuberLoss()}
    transformations = {"identity": nn.Identity(), "sigmoid": nn.Sigmoid(), "tanh": nn.Tanh(), "relu": nn.ReLU()}
    tensors = [draw(rows, 6, seed=seed, dtype=dtype).add(1), draw(rows, 6, seed=seed + 50, dtype=dtype).add(1)]
    labels = scores(rows, seed, "distinct").float()  # the peer's step to float32 is exact for these
    compare = functions[fct]  # the peer gives float32 labels, which Huber's gradient cannot mix with float64
    theirs = peer.CosineSimilarityLoss(None, lambda p, y: compare(p, y.to(p.dtype)), transformations[transformation])
    loss = CosineSimilarityLoss(fct, transformation)

    def ours(leaves):
        return loss(Embeddings.of(first=leaves[0], second=leaves[1]), labels).total

    flat = transformation == "relu" and bool((torch.cosine_similarity(*tensors) <= 0).all())
    hold_equal(
        record_property, "cosine-similarity", ours, lambda t: theirs.compute_loss_from_embeddings(t, labels.to(dtype)), tensors,
        nothing=flat,
    )  # fmt: skip


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("rows", SIZES)
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", ["levels", "distinct", "binary", "equal"])
@pytest.mark.parametrize(
    ("similarity", "scale"), [("cosine", 20.0), ("cosine", 1.0), ("dot", 0.5), ("euclidean", 2.0), ("manhattan", 2.0)]
)
def test_cosent(record_property, dtype, rows, seed, kind, similarity, scale):
    functions = {
        "cosine": util.pairwise_cos_sim, "dot": util.pairwise_dot_score, "euclidean": util.pairwise_euclidean_sim,
        "manhattan": util.pairwise_manhattan_sim,
    }  # fmt: skip
    tensors = [draw(rows, 6, seed=seed, dtype=dtype), draw(rows, 6, seed=seed + 50, dtype=dtype)]
    labels = scores(rows, seed, kind)
    theirs = peer.CoSENTLoss(None, scale=scale, similarity_fct=functions[similarity])
    loss = CoSENTLoss(scale, functions[similarity])
    assert loss.similarity_fct == similarity
    hold_equal(
        record_property, "cosent", lambda t: loss(Embeddings.of(first=t[0], second=t[1]), labels).total,
        lambda t: theirs.compute_loss_from_embeddings(t, labels), tensors, nothing=len(set(labels.tolist())) == 1,
    )  # fmt: skip


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("rows", SIZES)
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", ["levels", "distinct", "binary"])
@pytest.mark.parametrize(("dim", "scale"), [(6, 20.0), (5, 20.0), (6, 1.0)])
def test_angle_on_pairs(record_property, dtype, rows, seed, kind, dim, scale):
    tensors = [draw(rows, dim, seed=seed, dtype=dtype), draw(rows, dim, seed=seed + 50, dtype=dtype)]
    labels = scores(rows, seed, kind)
    theirs, loss = peer.AnglELoss(None, scale=scale), AnglELoss(scale)
    hold_equal(
        record_property, "angle", lambda t: loss(Embeddings.of(first=t[0], second=t[1]), labels).total,
        lambda t: theirs.compute_loss_from_embeddings(t, labels), tensors, nothing=len(set(labels.tolist())) == 1,
    )  # fmt: skip


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("rows", SIZES)
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("negatives", [1, 3])
def test_angle_on_tuples(record_property, dtype, rows, seed, negatives):
    tensors = [draw(rows, 6, seed=seed + 50 * i, dtype=dtype) for i in range(2 + negatives)]
    theirs, loss = peer.AnglELoss(None), AnglELoss()

    def ours(leaves):
        anchor, positive, *rest = leaves
        negative = rest[0] if negatives == 1 else torch.stack(rest, 1)
        return loss(Embeddings.of(anchor=anchor, positive=positive, negative=negative)).total

    hold_equal(record_property, "angle", ours, lambda t: theirs.compute_loss_from_embeddings(t, None), tensors)


@pytest.mark.parametrize(
    ("name", "ours", "theirs"), [("cosent", CoSENTLoss(), peer.CoSENTLoss), ("angle", AnglELoss(), peer.AnglELoss)]
)
def test_edges_agree(record_property, name, ours, theirs):
    record_property("parity", (name, "edges"))
    theirs = theirs(None)
    x, y = draw(6, 4, seed=0), draw(6, 4, seed=1)
    half = [x.half(), y.half()]
    cases = {
        "one row": ([x[:1], y[:1]], torch.tensor([1.0])),
        "equal labels": ([x, y], torch.ones(6)),
        "equal vectors": ([x[:1].expand(6, 4), x[:1].expand(6, 4)], torch.arange(6.0)),
        "zero vectors": ([x * 0, y * 0], torch.tensor([0, 0, 1, 1, 2, 2.0])),
        "bool labels": ([x, y], torch.tensor([True, False, True, False, True, True])),
        "huge norms": ([x * 1e12, y], torch.arange(6.0)),
    }
    for case, (tensors, labels) in cases.items():
        found = ours(Embeddings.of(first=tensors[0], second=tensors[1]), labels).total
        assert float(found) == pytest.approx(float(theirs.compute_loss_from_embeddings(tensors, labels)), abs=1e-6), case
    in_half = ours(Embeddings.of(first=half[0], second=half[1]), torch.arange(6.0)).total
    assert float(in_half) == pytest.approx(float(theirs.compute_loss_from_embeddings(half, torch.arange(6.0))), rel=2e-2)


@pytest.mark.parametrize(
    ("name", "ours", "theirs"), [("cosent", CoSENTLoss(), peer.CoSENTLoss), ("angle", AnglELoss(), peer.AnglELoss)]
)
def test_a_nan_label_is_refused_and_not_sorted(record_property, name, ours, theirs):
    record_property("parity", (name, "differs on purpose"))
    x, y = draw(3, 4, seed=0), draw(3, 4, seed=1)
    assert bool(theirs(None).compute_loss_from_embeddings([x, y], torch.tensor([0.0, math.nan, 1.0])).isfinite())
    with pytest.raises(EmbedlossError, match=r"E105.*row 2"):
        ours(Embeddings.of(first=x, second=y), torch.tensor([0.0, math.nan, 1.0]))


@pytest.mark.parametrize(
    ("name", "ours", "theirs"),
    [
        ("cosine-similarity", CosineSimilarityLoss(), peer.CosineSimilarityLoss(None)),
        ("cosent", CoSENTLoss(), peer.CoSENTLoss(None)),
    ],
)
def test_a_zero_vector_gets_no_gradient(record_property, name, ours, theirs):
    record_property("parity", (name, "differs on purpose"))
    labels = torch.tensor([0.5, 0.0, 1.0])
    x, y = draw(3, 4, seed=0), draw(3, 4, seed=1)
    x[0] = 0
    found, (gradient, _) = run(lambda t: ours(Embeddings.of(first=t[0], second=t[1]), labels).total, [x, y])
    wanted, (reference, _) = run(lambda t: theirs.compute_loss_from_embeddings(t, labels), [x, y])
    assert float(found) == pytest.approx(float(wanted), abs=1e-8)
    assert float(gradient[0].norm()) == 0
    assert float(reference[0].norm()) > 1e6  # one over the epsilon of the peer's normalisation
    assert float(gradient[1:].norm()) > 0
    assert torch.allclose(gradient[1:], reference[1:], atol=1e-8)


def test_scores_beyond_the_cosine_are_refused(record_property):
    record_property("parity", ("cosine-similarity", "differs on purpose"))
    x, y = draw(4, 6, seed=0), draw(4, 6, seed=1)
    labels = torch.tensor([0.0, 5.0, 3.0, 1.0])
    assert float(peer.CosineSimilarityLoss(None).compute_loss_from_embeddings([x, y], labels)) > 5
    with pytest.raises(EmbedlossError, match=r"E105.*row 2 of this batch has 5"):
        CosineSimilarityLoss()(Embeddings.of(first=x, second=y), labels)


def test_cosine_similarity_edges(record_property):
    record_property("parity", ("cosine-similarity", "edges"))
    x, y = draw(4, 6, seed=0), draw(4, 6, seed=1)
    for tensors in ([x, x], [x * 0, y * 0], [x * 1e12, y], [x[:1], y[:1]]):
        labels = torch.linspace(-1, 1, len(tensors[0]))
        found = CosineSimilarityLoss()(Embeddings.of(first=tensors[0], second=tensors[1]), labels).total
        wanted = peer.CosineSimilarityLoss(None).compute_loss_from_embeddings(tensors, labels)
        assert float(found) == pytest.approx(float(wanted), abs=1e-8)


def test_labels_keep_their_precision(record_property):
    record_property("parity", ("cosine-similarity", "differs on purpose"))
    x, y, label = draw(1, 6, seed=0), draw(1, 6, seed=1), torch.tensor([0.1], dtype=torch.float64)
    exact = (torch.cosine_similarity(x, y) - label).pow(2).mean()
    found = CosineSimilarityLoss()(Embeddings.of(first=x, second=y), label).total
    wanted = peer.CosineSimilarityLoss(None).compute_loss_from_embeddings([x, y], label)
    assert abs(float(found - exact)) < 1e-15
    assert 1e-12 < abs(float(wanted - exact)) < 1e-8
