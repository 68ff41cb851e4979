"""The triplet losses beside those of sentence-transformers."""

from __future__ import annotations

import pytest
import torch

from embedloss import Embeddings, create_loss

pytest.importorskip("sentence_transformers")
from sentence_transformers.sentence_transformer import losses as theirs
from sentence_transformers.sentence_transformer.losses.batch_hard_triplet import BatchHardTripletLossDistanceFunction

MATRIX = {
    "euclidean": BatchHardTripletLossDistanceFunction.euclidean_distance,
    "squared-euclidean": lambda x: BatchHardTripletLossDistanceFunction.euclidean_distance(x, squared=True),
    "cosine": BatchHardTripletLossDistanceFunction.cosine_distance,
}
PAIRWISE = {
    "euclidean": theirs.TripletDistanceMetric.EUCLIDEAN,
    "manhattan": theirs.TripletDistanceMetric.MANHATTAN,
    "cosine": theirs.TripletDistanceMetric.COSINE,
}
MINED = {
    "batch-all-triplet": theirs.BatchAllTripletLoss,
    "batch-hard-triplet": theirs.BatchHardTripletLoss,
    "batch-hard-soft-margin-triplet": theirs.BatchHardSoftMarginTripletLoss,
    "batch-semi-hard-triplet": theirs.BatchSemiHardTripletLoss,
}
TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-5}


def both(name, distance, margin, tensors, labels=None):
    """Value and gradients of ours and of theirs."""
    mined = name in MINED
    options = {} if "soft" in name else {"margin" if mined else "triplet_margin": margin}
    function = (MATRIX if mined else PAIRWISE)[distance]
    peer = (MINED[name] if mined else theirs.TripletLoss)(torch.nn.Identity(), distance_metric=function, **options)
    loss = create_loss(name, distance=distance, **options)
    results = []
    for kind in ("ours", "theirs"):
        leaves = [t.clone().requires_grad_() for t in tensors]
        if kind == "theirs":
            value = peer.compute_loss_from_embeddings(leaves, labels)
        else:
            roles = ("text",) if mined else ("anchor", "positive", "negative")
            value = loss(Embeddings.of(**dict(zip(roles, leaves, strict=True))), labels).total
        value.backward()
        results += [value.detach(), [leaf.grad for leaf in leaves]]
    return results


def same(name, ours, gradients, peers, peers_gradients, dtype, record_property, least=1e-4):
    tolerance = TOLERANCE[dtype]
    assert ours.dtype == dtype
    assert abs(ours - peers) <= tolerance * abs(peers)
    record_property("parity", (name, f"value {str(dtype)[6:]}"))
    for gradient, expected in zip(gradients, peers_gradients, strict=True):
        assert expected.abs().max() >= least
        assert (gradient - expected).abs().max() <= tolerance * expected.abs().max()
    record_property("parity", (name, f"gradient {str(dtype)[6:]}"))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("distance", list(MATRIX))
@pytest.mark.parametrize("name", list(MINED))
def test_mined(name, distance, dtype, record_property):
    for seed, rows, classes, margin in [(0, 7, 3, 5.0), (1, 7, 3, 0.2), (2, 64, 10, 5.0), (3, 64, 32, 0.2), (4, 64, 3, 0.0)]:
        x = torch.randn(rows, 16, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)
        labels = torch.arange(rows) % classes
        same(name, *both(name, distance, margin, [x], labels), dtype, record_property)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("distance", list(PAIRWISE))
def test_triplet(distance, dtype, record_property):
    for seed, rows, margin in [(0, 1, 5.0), (1, 2, 5.0), (2, 7, 0.2), (3, 64, 5.0), (4, 64, 0.2), (5, 64, 0.0)]:
        generator = torch.Generator().manual_seed(seed)
        tensors = [torch.randn(rows, 16, generator=generator, dtype=torch.float64).to(dtype) for _ in range(3)]
        same("triplet", *both("triplet", distance, margin, tensors), dtype, record_property)


@pytest.mark.parametrize("distance", list(MATRIX))
def test_edges_of_batch_all(distance, record_property):
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for labels in ([0], [0, 1], [0, 0], [0] * 6, [0, 1, 2, 3, 4, 5]):
        for value in both("batch-all-triplet", distance, 5.0, [x[: len(labels)]], torch.tensor(labels))[::2]:
            assert value == 0
    ours, gradients, peers, peers_gradients = both(
        "batch-all-triplet", distance, 5.0, [x[:1].repeat(6, 1)], torch.tensor([0, 0, 1, 1, 2, 2])
    )
    assert abs(ours - 5) < 1e-7
    assert abs(peers - 5) < 1e-7
    assert gradients[0].abs().max() < 1e-7
    assert peers_gradients[0].abs().max() < 1e-7
    record_property("parity", ("batch-all-triplet", "edges"))


@pytest.mark.parametrize("name", list(MINED)[1:])
def test_edges_of_the_hardest(name, record_property):
    """Labels of one column, negative labels, and two rows of two classes."""
    x = torch.randn(4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    wanted = both(name, "euclidean", 1.0, [x], torch.tensor([-3, -3, 9, 9])[:, None])
    assert wanted[3][0].abs().max() > 1e-3
    same(name, *wanted, torch.float64, record_property)
    record_property("parity", (name, "edges"))


@pytest.mark.parametrize("distance", list(PAIRWISE))
def test_edges_of_triplet(distance, record_property):
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ours, gradients, peers, peers_gradients = both("triplet", distance, 5.0, [x, x, x])
    assert abs(ours - 5) < 1e-12
    assert abs(peers - 5) < 1e-12
    assert all(g.abs().max() < 1e-12 for g in (*gradients, *peers_gradients))
    record_property("parity", ("triplet", "edges"))


# Anchors that lack a positive or a negative: the documentation says that valid triplets count. There, an absent positive is a
# distance of 0 and an absent negative is the largest (or nearest) of the row, so that batches without any triplet have a value,
# and some of them a gradient.
@pytest.mark.parametrize(
    ("name", "labels", "value", "gradient"),
    [
        ("batch-hard-triplet", [0, 1, 2, 3, 4, 5], None, 0.1),
        ("batch-hard-triplet", [0, 0, 0, 0, 0, 0], 5.0, None),
        ("batch-hard-soft-margin-triplet", [0, 1, 2, 3, 4, 5], None, 0.01),
        ("batch-hard-soft-margin-triplet", [0, 0, 0, 0, 0, 0], 0.6931471805599453, None),
        ("batch-semi-hard-triplet", [0, 0, 0, 0, 0, 0], None, 0.1),
    ],
)
def test_no_valid_triplet_differs_on_purpose(name, labels, value, gradient, record_property):
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ours, gradients, peers, peers_gradients = both(name, "euclidean", 5.0, [x], torch.tensor(labels))
    assert peers > 0.05
    assert value is None or abs(peers - value) < 1e-9
    assert (peers_gradients[0].abs().max() > gradient) if gradient else peers_gradients[0].abs().max() < 1e-9
    assert ours == 0
    assert bool((gradients[0] == 0).all())
    record_property("parity", (name, "differs on purpose"))


def test_zero_anchor_differs_on_purpose(record_property):
    """A zero vector has cosine 0 and gradient 0; there, clipping a gradient of 1e11 erases the rest of the step."""
    x = [torch.randn(3, 4, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    x[0][0] = 0
    ours, gradients, peers, peers_gradients = both("triplet", "cosine", 5.0, x)
    assert abs(ours - peers) < 1e-5
    assert peers_gradients[0][0].abs().max() > 1e6
    assert bool((gradients[0][0] == 0).all())
    assert torch.allclose(gradients[0][1:], peers_gradients[0][1:], rtol=1e-5, atol=1e-7)
    assert gradients[0][1:].abs().max() > 1e-3
    record_property("parity", ("triplet", "differs on purpose"))


@pytest.mark.parametrize("name", [*MINED, "triplet"])
def test_their_enumerations_are_understood(name):
    for metric, wanted in [
        (BatchHardTripletLossDistanceFunction.euclidean_distance, "euclidean"),
        (BatchHardTripletLossDistanceFunction.eucledian_distance, "euclidean"),
        (BatchHardTripletLossDistanceFunction.cosine_distance, "cosine"),
        *((getattr(theirs.TripletDistanceMetric, key), key.lower()) for key in ("EUCLIDEAN", "MANHATTAN", "COSINE")),
        (theirs.SiameseDistanceMetric.EUCLIDEAN, "euclidean"),
        (theirs.SiameseDistanceMetric.MANHATTAN, "manhattan"),
        (theirs.SiameseDistanceMetric.COSINE_DISTANCE, "cosine"),
    ]:
        assert create_loss(name, distance_metric=metric).distance == wanted
