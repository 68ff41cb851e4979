"""Softmax, BinaryCrossEntropy and CrossEntropy equal sentence-transformers: value, gradient of every input, own weights."""

import math

import pytest
import torch
from sentence_transformers import CrossEncoder
from sentence_transformers.cross_encoder import losses as cross
from sentence_transformers.sentence_transformer import losses as peer
from torch import nn

from embedloss import Embeddings, EmbedlossError
from embedloss.embeddings import Scores
from embedloss_classification.losses import BinaryCrossEntropyLoss, CrossEntropyLoss, SoftmaxLoss

SIZES = [1, 2, 7, 64]
TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-5}
ACTIVATIONS = {"identity": nn.Identity(), "sigmoid": nn.Sigmoid(), "tanh": nn.Tanh(), "relu": nn.ReLU()}


def draw(*shape, seed, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def classes(rows, count, seed):
    return torch.randint(0, count, (rows,), generator=torch.Generator().manual_seed(seed))


class Ready(nn.Module):
    """An encoder whose texts are embeddings already."""

    device = torch.device("cpu")

    def forward(self, features):
        return {"sentence_embedding": features["x"]}


class ReadyCross(CrossEncoder):
    """A cross-encoder that returns the scores it is given."""

    def __init__(self, scores):
        nn.Module.__init__(self)
        self.scores = scores

    num_labels = property(lambda self: self.scores.shape[1])
    device = torch.device("cpu")

    def preprocess(self, pairs, **options):
        return {}

    def forward(self, features):
        return {"scores": self.scores}


class Lifted(nn.Module):
    """A criterion with labels in the dtype of the scores: the peer makes them float32, and the value with them."""

    def __init__(self, criterion):
        super().__init__()
        self.criterion = criterion

    def forward(self, scores, labels):
        return self.criterion(scores, labels.to(scores.dtype))


def texts(scores):
    return [["a"] * len(scores), ["b"] * len(scores)]


def run(function, tensors):
    leaves = [t.clone().requires_grad_() for t in tensors]
    value = function(leaves)
    return value.detach(), torch.autograd.grad(value, leaves)


def hold_equal(record_property, name, ours, theirs, tensors):
    """`ours` and `theirs` map a list of tensors to a scalar."""
    dtype = tensors[0].dtype
    label = str(dtype).removeprefix("torch.")
    record_property("parity", (name, f"value {label}"))
    record_property("parity", (name, f"gradient {label}"))
    found, gradients = run(ours, tensors)
    wanted, references = run(theirs, tensors)
    assert float((found - wanted).abs()) <= TOLERANCE[dtype] * max(1.0, float(wanted.abs()))
    assert all(bool((g != 0).any()) for g in references)
    size = max(1.0, *(float(g.norm()) for g in references))
    for gradient, reference in zip(gradients, references, strict=True):
        assert float((gradient - reference).norm()) <= TOLERANCE[dtype] * size


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("rows", SIZES)
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "parts", [(True, True, False), (True, False, False), (False, True, False), (False, False, True), (True, True, True)]
)
@pytest.mark.parametrize("labels", ["ids", "probabilities", "smoothed", "multi-margin"])
def test_softmax(record_property, dtype, rows, seed, parts, labels):
    function = {"smoothed": nn.CrossEntropyLoss(label_smoothing=0.2), "multi-margin": nn.MultiMarginLoss()}.get(
        labels, nn.CrossEntropyLoss()
    )
    theirs = peer.SoftmaxLoss(Ready(), 6, 3, *parts, loss_fct=function).to(dtype)
    options = {"label_smoothing": 0.2} if labels == "smoothed" else {"loss_fct": labels} if labels == "multi-margin" else {}
    ours = SoftmaxLoss(6, 3, *parts, **options).to(dtype)
    given = draw(rows, 3, seed=seed, dtype=dtype).softmax(1) if labels == "probabilities" else classes(rows, 3, seed)
    weight = draw(3, ours.classifier.in_features, seed=seed + 20, dtype=dtype) * 0.1  # so that no hinge is flat
    bias = draw(3, seed=seed + 30, dtype=dtype) * 0.1

    def call(loss, embed):
        def value(tensors):  # the classifier's weights are inputs as well, so that their gradients are compared
            u, v, w, b = tensors
            state = {"classifier.weight": w, "classifier.bias": b}
            return embed(loss, state, u, v)

        return value

    def embed_ours(loss, state, u, v):
        return torch.func.functional_call(loss, state, (Embeddings.of(first=u, second=v), given)).total

    def embed_theirs(loss, state, u, v):
        return torch.func.functional_call(loss, state, ([{"x": u}, {"x": v}], given))

    tensors = [draw(rows, 6, seed=seed, dtype=dtype), draw(rows, 6, seed=seed + 50, dtype=dtype), weight, bias]
    hold_equal(record_property, "softmax", call(ours, embed_ours), call(theirs, embed_theirs), tensors)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("rows", SIZES)
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("activation", ["identity", "sigmoid", "tanh"])
@pytest.mark.parametrize("pos_weight", [None, 4.0])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("soft", [False, True])
def test_binary_cross_entropy(record_property, dtype, rows, seed, activation, pos_weight, reduction, soft):
    scores = draw(rows, 1, seed=seed, dtype=dtype) * 3
    labels = draw(rows, seed=seed + 9).sigmoid().float().to(dtype) if soft else classes(rows, 2, seed)
    ours = BinaryCrossEntropyLoss(ACTIVATIONS[activation], pos_weight, reduction)
    weight = None if pos_weight is None else torch.tensor(pos_weight)

    def theirs(tensors):
        loss = cross.BinaryCrossEntropyLoss(ReadyCross(tensors[0]), ACTIVATIONS[activation], weight, reduction=reduction)
        loss.bce_with_logits_loss = Lifted(loss.bce_with_logits_loss)
        return loss(texts(scores), labels)

    hold_equal(record_property, "binary-cross-entropy", lambda t: ours(Scores.of(t[0]), labels).total, theirs, [scores])


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("rows", SIZES)
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("activation", ["identity", "sigmoid", "tanh"])
@pytest.mark.parametrize(
    "options", [{}, {"label_smoothing": 0.2}, {"reduction": "sum"}, {"ignore_index": 1}, {"weight": [0.2, 3.0, 0.1]}]
)
@pytest.mark.parametrize("probabilities", [False, True])
def test_cross_entropy(record_property, dtype, rows, seed, activation, options, probabilities):
    scores = draw(rows, 3, seed=seed, dtype=dtype) * 3
    labels = draw(rows, 3, seed=seed + 9, dtype=dtype).softmax(1) if probabilities else classes(rows, 3, seed)
    if options.get("ignore_index") == 1 and not probabilities:
        labels[0] = 2  # one row has to count
    ours = CrossEntropyLoss(ACTIVATIONS[activation], **options)
    keywords = {k: torch.tensor(v, dtype=dtype) if k == "weight" else v for k, v in options.items()}
    if probabilities:
        keywords.pop("ignore_index", None)

    def theirs(tensors):
        return cross.CrossEntropyLoss(ReadyCross(tensors[0]), ACTIVATIONS[activation], **keywords)(texts(scores), labels)

    hold_equal(record_property, "cross-entropy", lambda t: ours(Scores.of(t[0]), labels).total, theirs, [scores])


def test_edges(record_property):
    for name in ("softmax", "binary-cross-entropy", "cross-entropy"):
        record_property("parity", (name, "edges"))
    u = draw(4, 6, seed=0)
    loss, theirs = SoftmaxLoss(6, 3).double(), peer.SoftmaxLoss(Ready(), 6, 3).double()
    theirs.load_state_dict(loss.state_dict())
    ids = torch.tensor([0, 2, -100, 1])
    for first, second, labels in ((u, u, ids), (u * 0, u, ids), (u * 1e6, u, ids), (u[:1], u[1:2], ids[:1])):
        found = loss(Embeddings.of(first=first, second=second), labels).total
        assert float(found.detach()) == pytest.approx(float(theirs([{"x": first}, {"x": second}], labels).detach()), rel=1e-8)
    logits = torch.tensor([[1e4], [-1e4], [0.0], [1e4]])
    labels = torch.tensor([1.0, 0.0, 0.5, 0.0])
    wanted = cross.BinaryCrossEntropyLoss(ReadyCross(logits))(texts(logits), labels)
    assert float(BinaryCrossEntropyLoss()(Scores.of(logits), labels).total) == pytest.approx(float(wanted))
    half = logits.bfloat16()
    wanted = cross.BinaryCrossEntropyLoss(ReadyCross(half))(texts(half), labels)
    assert float(BinaryCrossEntropyLoss()(Scores.of(half), labels).total) == pytest.approx(float(wanted))
    logits = torch.cat([logits, -logits], 1)
    for labels in (torch.tensor([0, 1, 1, 1]), torch.tensor([[0], [1], [1], [1]])):
        wanted = cross.CrossEntropyLoss(ReadyCross(logits))(texts(logits), labels)
        assert float(CrossEntropyLoss()(Scores.of(logits), labels).total) == pytest.approx(float(wanted))


def test_all_rows_ignored_is_zero_and_not_nan(record_property):
    for name in ("softmax", "cross-entropy"):
        record_property("parity", (name, "differs on purpose"))
    u, labels = draw(2, 3, seed=0), torch.tensor([-100, -100])
    assert math.isnan(float(peer.SoftmaxLoss(Ready(), 3, 3).double()([{"x": u}, {"x": u}], labels).detach()))
    assert math.isnan(float(cross.CrossEntropyLoss(ReadyCross(u))(texts(u), labels)))
    for ours in (
        lambda t: SoftmaxLoss(3, 3)(Embeddings.of(first=t[0], second=t[0]), labels),
        lambda t: CrossEntropyLoss()(Scores.of(t[0]), labels),
    ):
        value, (gradient,) = run(lambda t, loss=ours: loss(t).total, [u])
        assert float(value) == 0
        assert torch.equal(gradient, torch.zeros_like(gradient))


def test_labels_that_are_no_probabilities_are_refused(record_property):
    record_property("parity", ("binary-cross-entropy", "differs on purpose"))
    logits, labels = torch.tensor([[1.0], [2.0]]), torch.tensor([5.0, 1.0])
    assert float(cross.BinaryCrossEntropyLoss(ReadyCross(logits))(texts(logits), labels)) < 0
    with pytest.raises(EmbedlossError, match=r"E105.*row 1 of this batch has 5"):
        BinaryCrossEntropyLoss()(Scores.of(logits), labels)


def test_a_model_with_one_output_is_refused(record_property):
    record_property("parity", ("cross-entropy", "differs on purpose"))
    logits, labels = torch.tensor([[1.0], [2.0]]), torch.tensor([0, 0])
    assert float(cross.CrossEntropyLoss(ReadyCross(logits))(texts(logits), labels)) == 0
    with pytest.raises(EmbedlossError, match=r"E105.*one output a class"):
        CrossEntropyLoss()(Scores.of(logits), labels)
