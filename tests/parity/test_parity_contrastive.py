"""The contrastive losses beside those of sentence-transformers."""

from __future__ import annotations

import pytest
import torch

from embedloss import Embeddings, EmbedlossError, create_loss

pytest.importorskip("sentence_transformers")
from sentence_transformers.sentence_transformer import losses as theirs
from sentence_transformers.util import cos_sim, dot_score

METRIC = {
    "cosine": theirs.SiameseDistanceMetric.COSINE_DISTANCE,
    "euclidean": theirs.SiameseDistanceMetric.EUCLIDEAN,
    "manhattan": theirs.SiameseDistanceMetric.MANHATTAN,
}
EPSILON = {"cosine": 0.0, "euclidean": 1e-6, "manhattan": 1e-6}  # which they add to every coordinate of a difference
LABELLED = {"contrastive": theirs.ContrastiveLoss, "online-contrastive": theirs.OnlineContrastiveLoss}
TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-5}


class Ready(torch.nn.Module):
    """A model whose embeddings are given in its features."""

    def __init__(self, key):
        super().__init__()
        self.key = key

    def forward(self, features):
        return {"sentence_embedding": features[self.key]}


def run(function, tensors):
    leaves = [t.clone().requires_grad_() for t in tensors]
    value = function(*leaves)
    value.backward()
    return value.detach(), [leaf.grad for leaf in leaves]


def same(name, ours, peers, dtype, record_property, least=1e-4):
    """Two results of `run` are equal."""
    tolerance = TOLERANCE[dtype]
    assert ours[0].dtype == dtype
    assert abs(ours[0] - peers[0]) <= tolerance * abs(peers[0])
    record_property("parity", (name, f"value {str(dtype)[6:]}"))
    for gradient, expected in zip(ours[1], peers[1], strict=True):
        assert expected.abs().max() >= least
        assert (gradient - expected).abs().max() <= tolerance * expected.abs().max()
    record_property("parity", (name, f"gradient {str(dtype)[6:]}"))


def random(seed, rows, dtype, dim=16):
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.randn(2, rows, dim, generator=generator, dtype=torch.float64).to(dtype)
    return x, y, torch.randint(2, (rows,), generator=generator)


# -- labelled pairs ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("distance", list(METRIC))
@pytest.mark.parametrize("name", list(LABELLED))
def test_labelled(name, distance, dtype, record_property):
    taught = 0
    wide = {"cosine": 1.2, "euclidean": 6.0, "manhattan": 20.0}[distance]
    for seed, (rows, margin) in enumerate(
        [(1, 0.5), (1, wide), (2, wide), (2, wide), (7, 0.5), (7, wide), (64, 0.5), (64, wide)]
    ):
        x, y, labels = random(seed, rows, dtype)
        for average in (True, False) if name == "contrastive" else (None,):
            options = {} if average is None else {"size_average": average}
            peer = LABELLED[name](torch.nn.Identity(), distance_metric=METRIC[distance], margin=margin, **options)
            loss = create_loss(name, distance_metric=METRIC[distance], margin=margin, **options)
            shift = EPSILON[distance]  # with theirs taken out, by moving the first text, both are equal
            peers = run(lambda a, b, p=peer, y_=labels: p.compute_loss_from_embeddings([a, b], y_), (x, y))
            ours = run(lambda a, b, f=loss, y_=labels, s=shift: f(Embeddings.of(first=a + s, second=b), y_).total, (x, y))
            same(name, ours, peers, dtype, record_property, least=0)
            taught += bool(peers[1][0].abs().max() > 1e-3)
    assert taught >= 5


@pytest.mark.parametrize("name", list(LABELLED))
def test_edges_of_labelled(name, record_property):
    x, y, _ = random(0, 6, torch.float64)
    same_direction = x * 2
    for a, b, labels in [
        (x, same_direction, [1] * 6),  # nothing to pull
        (x, -x, [0] * 6),  # nothing to push
        (x * 0, y * 0, [1, 0] * 3),  # zero vectors: cosine 0, gradient 0
    ]:
        ones = torch.tensor(labels)
        peers = run(lambda p, q, t=ones: LABELLED[name](torch.nn.Identity()).compute_loss_from_embeddings([p, q], t), (a, b))
        ours = run(lambda p, q, t=ones: create_loss(name)(Embeddings.of(first=p, second=q), t).total, (a, b))
        assert abs(ours[0] - peers[0]) < 1e-12
        for gradient, expected in zip(ours[1], peers[1], strict=True):
            assert gradient.abs().max() < 1e-12
            assert expected.abs().max() < 1e-7
    record_property("parity", (name, "edges"))


@pytest.mark.parametrize("name", list(LABELLED))
@pytest.mark.parametrize("distance", ["euclidean", "manhattan"])
def test_distances_without_an_epsilon_differ_on_purpose(name, distance, record_property):
    """Equal texts are at distance 0 here; there, at 1e-6 in every coordinate, with a gradient that pulls one way."""
    x, y, labels = random(0, 7, torch.float64)
    labels[:3] = torch.tensor([1, 1, 0])
    y[0] = x[0]
    options = {"distance_metric": METRIC[distance], "margin": 9.0}
    peers = run(
        lambda a, b: LABELLED[name](torch.nn.Identity(), **options).compute_loss_from_embeddings([a, b], labels), (x, y)
    )
    ours = run(lambda a, b: create_loss(name, **options)(Embeddings.of(first=a, second=b), labels).total, (x, y))
    assert 1e-9 < abs(ours[0] - peers[0]) < 1e-3
    if name == "contrastive":  # this pair is not hard, so the other loss leaves it out
        assert peers[1][0][0].abs().max() > 1e-7
        assert bool((ours[1][0][0] == 0).all())
    assert ours[1][0][1:].abs().max() > 1e-3
    record_property("parity", (name, "differs on purpose"))


def test_labels_differ_on_purpose(record_property):
    """Other labels are refused: there, they become weights (or are left out), and bool does not work."""
    x, y, _ = random(0, 4, torch.float64)
    half = torch.tensor([1.0, 0.0, 0.5, 0.5])
    peer = theirs.ContrastiveLoss(torch.nn.Identity())
    with pytest.warns(UserWarning, match="binary labels"):
        weighted = peer.compute_loss_from_embeddings([x, y], half)
    assert weighted > 0.1
    with pytest.raises(RuntimeError):
        peer.compute_loss_from_embeddings([x, y], torch.tensor([True, False, True, False]))
    for name in LABELLED:
        with pytest.raises(EmbedlossError, match="E105"):
            create_loss(name)(Embeddings.of(first=x, second=y), half)
        ones = torch.tensor([1, 0, 1, 0])
        values = [create_loss(name)(Embeddings.of(first=x, second=y), t).total for t in (ones, ones.bool())]
        assert values[0] == values[1] > 0
        record_property("parity", (name, "differs on purpose"))


def test_not_a_number_differs_on_purpose(record_property):
    """There, a row that is not a number fails every comparison and is left out; if all are so, the loss is 0."""
    x, y, _ = random(0, 4, torch.float64)
    x[0, 0] = float("nan")
    labels = torch.tensor([1, 0, 1, 0])
    peer = theirs.OnlineContrastiveLoss(torch.nn.Identity())
    assert peer.compute_loss_from_embeddings([x, y], labels).isfinite()
    assert peer.compute_loss_from_embeddings([x * float("nan"), y], labels) == 0
    assert create_loss("online_contrastive")(Embeddings.of(first=x, second=y), labels).total.isnan()
    record_property("parity", ("online-contrastive", "differs on purpose"))


def test_half_precision_differs_on_purpose(record_property):
    """Sums run in float32; there, in the embeddings' precision, which 64 squared distances exceed."""
    x, y, _ = random(0, 64, torch.float16)
    labels = torch.arange(64) % 2
    options = {"distance_metric": METRIC["manhattan"], "margin": 60.0}
    peer = theirs.OnlineContrastiveLoss(torch.nn.Identity(), **options).compute_loss_from_embeddings([x, y], labels)
    ours = create_loss("online_contrastive", **options)(Embeddings.of(first=x, second=y), labels).total
    exact = create_loss("online_contrastive", **options)(Embeddings.of(first=x.double(), second=y.double()), labels).total
    assert peer.dtype == torch.float16
    assert peer.isinf()
    assert abs(ours - exact) < 1e-5 * exact
    record_property("parity", ("online-contrastive", "differs on purpose"))


# -- contrastive tension ----------------------------------------------------------------------------------------------------
def twins(cls, **options):
    """Their loss, whose two encoders read features "one" (f1) and "two" (f2)."""
    peer = cls(Ready("two"), **options)
    peer.model1.key = "one"
    return peer


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_contrastive_tension(dtype, record_property):
    name, loss, peer = "contrastive-tension", create_loss("contrastive_tension"), twins(theirs.ContrastiveTensionLoss)
    for seed, rows in enumerate([1, 2, 7, 64, 64]):
        x, y, labels = random(seed, rows, dtype)

        def peers(a, b, ones=None, ids=(None, None)):
            return peer([{"one": a, "input_ids": ids[0]}, {"two": b, "input_ids": ids[1]}], ones)

        labelled = run(lambda a, b, t=labels, f=peers: f(a, b, t), (x, y))

        def ours(a, b, ones=labels):
            other = torch.zeros_like(a)
            return loss(Embeddings.of(first=other, second=b).with_twin(Embeddings.of(first=a, second=other)), ones).total

        same(name, run(ours, (x, y)), labelled, dtype, record_property)

        first, second = torch.arange(rows), torch.where(labels == 1, torch.arange(rows), -1)

        def by_texts(a, b, i=first, j=second):
            other = torch.zeros_like(a)
            emb = Embeddings.of(anchor=other, positive=b).with_twin(Embeddings.of(anchor=a, positive=other))
            return loss(emb.with_text_ids(anchor=i, positive=j)).total

        tokens = (first[:, None], second[:, None])
        same(name, run(by_texts, (x, y)), run(lambda a, b, i=tokens, f=peers: f(a, b, ids=i), (x, y)), dtype, record_property)


def test_contrastive_tension_at_the_edges(record_property):
    x, y, _ = random(0, 6, torch.float64)
    loss, peer = create_loss("contrastive_tension"), twins(theirs.ContrastiveTensionLoss)
    for a, b, label in [(x * 0, y * 0, 1), (x * 1e3, y * 1e3, 0), (x * 1e3, y * 1e3, 1)]:
        labels = torch.full((6,), label)
        theirs_ = run(lambda p, q, t=labels: peer([{"one": p}, {"two": q}], t), (a, b))
        ours = run(
            lambda p, q, t=labels: loss(Embeddings.of(first=q, second=q).with_twin(Embeddings.of(first=p, second=p)), t).total,
            (a, b),
        )
        assert abs(ours[0] - theirs_[0]) <= 1e-8 * theirs_[0]
        assert all((g - e).abs().max() <= 1e-8 * e.abs().max() for g, e in zip(ours[1], theirs_[1], strict=True))
    record_property("parity", ("contrastive-tension", "edges"))


def test_drawn_pairs_are_theirs_once_made(record_property):
    """Single texts: the pairs that the loss draws, written out for theirs, which needs a data loader for that."""
    x, y, _ = random(0, 16, torch.float64)
    loss, peer = create_loss("contrastive_tension"), twins(theirs.ContrastiveTensionLoss)
    emb = Embeddings.of(text=y)
    from embedloss_contrastive.functional import draw_partners

    partners = draw_partners(16, 7, emb.generator("contrastive-tension"))
    first = torch.arange(16).repeat_interleave(8)
    second = torch.cat([torch.arange(16)[:, None], partners], 1).flatten()
    labels = (first == second).long()
    assert labels.sum() * 8 == len(labels)
    ours = run(lambda a, b: loss(Embeddings.of(text=b).with_twin(Embeddings.of(text=a))).total, (x, y))
    peers = run(lambda a, b: peer([{"one": a[first]}, {"two": b[second]}], labels), (x, y))
    same("contrastive-tension", ours, peers, torch.float64, record_property)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("similarity", "scale"), [(cos_sim, 20.0), (cos_sim, 2.0), (dot_score, 1.0)])
@pytest.mark.parametrize("learnable", [True, False])
def test_contrastive_tension_in_batch(similarity, scale, learnable, dtype, record_property):
    name = "contrastive-tension-in-batch-negatives"
    for seed, rows in enumerate([2, 7, 64]):
        x, y, _ = random(seed, rows, dtype)
        peer = twins(theirs.ContrastiveTensionLossInBatchNegatives, scale=scale, similarity_fct=similarity).to(dtype)
        loss = create_loss(name, scale=scale, similarity_fct=similarity, learnable_scale=learnable).to(dtype)
        if dtype == torch.float64:  # theirs is born in float32 as well
            peer.logit_scale.data.fill_(torch.tensor(scale, dtype=dtype).log())
            if learnable:
                loss.log_scale.data.fill_(torch.tensor(scale, dtype=dtype).log())
        ours = run(lambda a, b, f=loss: f(Embeddings.of(text=b).with_twin(Embeddings.of(text=a))).total, (x, y))
        peers = run(lambda a, b, p=peer: p([{"one": a, "two": b}], None), (x, y))
        same(name, ours, peers, dtype, record_property)
        if learnable:
            expected = peer.logit_scale.grad
            assert expected.abs() > 1e-3
            assert abs(loss.log_scale.grad - expected) <= TOLERANCE[dtype] * expected.abs().clamp(min=1)


def test_contrastive_tension_in_batch_at_the_edges(record_property):
    name = "contrastive-tension-in-batch-negatives"
    x, y, _ = random(0, 6, torch.float64)
    peer, loss = twins(theirs.ContrastiveTensionLossInBatchNegatives), create_loss(name)
    for a, b in [(x[:1], y[:1]), (x * 0, y * 0)]:
        ours = run(lambda p, q: loss(Embeddings.of(text=q).with_twin(Embeddings.of(text=p))).total, (a, b))
        peers = run(lambda p, q: peer([{"one": p, "two": q}], None), (a, b))
        assert abs(ours[0] - peers[0]) < 1e-12
        assert all(bool((g == 0).all()) for g in (*ours[1], *peers[1]))
    record_property("parity", (name, "edges"))


def test_a_second_column_differs_on_purpose(record_property):
    """There, a second column is not read; here, its texts have to be those of the first."""
    x, y, _ = random(0, 4, torch.float64)
    name = "contrastive-tension-in-batch-negatives"
    peer, loss = twins(theirs.ContrastiveTensionLossInBatchNegatives), create_loss(name)
    assert peer([{"one": x, "two": y}, {"one": y, "two": x}], None) == peer([{"one": x, "two": y}], None)
    emb = Embeddings.of(anchor=y, positive=y).with_twin(Embeddings.of(anchor=x, positive=x))
    equal = emb.with_text_ids(anchor=torch.arange(4), positive=torch.arange(4))
    assert abs(loss(equal).total - peer([{"one": x, "two": y}], None)) < 1e-6
    with pytest.raises(EmbedlossError, match="E105"):
        loss(emb.with_text_ids(anchor=torch.arange(4), positive=torch.arange(4) + 1))
    record_property("parity", (name, "differs on purpose"))


def test_their_enumerations_are_understood():
    for name in LABELLED:
        assert [create_loss(name, distance_metric=metric).distance for metric in METRIC.values()] == list(METRIC)
