"""Distillation against sentence-transformers: on ready embeddings for bi-encoders, on ready logits for cross-encoders."""

import itertools
import math
from contextlib import nullcontext

import pytest
import torch
from torch import nn

from embedloss import Embeddings, EmbedlossError, create_loss
from embedloss.embeddings import Scores
from embedloss_distillation import EmbedDistillLoss, MSELoss

pytest.importorskip("sentence_transformers")
from sentence_transformers import CrossEncoder, util
from sentence_transformers.cross_encoder import losses as cross
from sentence_transformers.sentence_transformer import losses as peer

torch.set_num_threads(1)
TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-5}
BITS = {torch.float64: "float64", torch.float32: "float32"}
DTYPES = pytest.mark.parametrize("dtype", TOLERANCE)
ROWS = pytest.mark.parametrize("rows", [1, 2, 7, 64])
DIM = 6


class Ready(nn.Module):
    """A model whose embeddings are given."""

    device = torch.device("cpu")

    def get_embedding_dimension(self):
        return DIM

    def forward(self, features):
        return {"sentence_embedding": features["x"]}


class Logits(CrossEncoder):
    """A cross-encoder that gives number 7 for the pair (query, "7")."""

    def __init__(self, values):
        nn.Module.__init__(self)
        self.values = values

    num_labels = 1
    device = torch.device("cpu")

    def preprocess(self, pairs, prompt=None, task=None):
        return {"index": torch.tensor([int(document) for _, document in pairs], dtype=torch.long)}

    def forward(self, features):
        return {"scores": self.values[features["index"]][:, None]}


class Wide(torch.overrides.TorchFunctionMode):
    """The cross-encoder losses make labels float32; here that means float64, so that 1e-8 can be asked."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        return args[0].double() if function is torch.Tensor.float else function(*args, **(kwargs or {}))


def randn(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def leaves(tensors, dtype):
    return [t.detach().to(dtype, copy=True).requires_grad_() for t in tensors]


def same(record_property, name, ours, theirs, tensors, dtype, learns=True):
    """Value and gradient with respect to every tensor; `ours` and `theirs` make a scalar of a list of tensors."""
    one, two = leaves(tensors, dtype), leaves(tensors, dtype)
    value, wanted = ours(one), theirs(two)
    assert value.dtype == wanted.dtype == dtype
    value.backward()
    wanted.backward()
    record_property("parity", (name, f"value {BITS[dtype]}" if learns else "edges"))
    record_property("parity", (name, f"gradient {BITS[dtype]}" if learns else "edges"))
    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(value.detach(), wanted.detach(), rtol=tolerance, atol=tolerance)
    for a, b in zip(one, two, strict=True):
        assert (b.grad.abs().max() > 0) == learns
        torch.testing.assert_close(a.grad, b.grad, rtol=tolerance, atol=tolerance * float(b.grad.abs().max().clamp(max=1)))


# -- vectors ------------------------------------------------------------
@DTYPES
@ROWS
@pytest.mark.parametrize("distance", ["cosine", "l2", "mse"])
@pytest.mark.parametrize("columns", [1, 2, 3])
@pytest.mark.parametrize("shared", [True, False])
def test_embed_distill(record_property, distance, columns, shared, rows, dtype):
    for seed in range(2):
        x = [randn(10 * seed + c, rows, DIM) for c in range(columns)]
        labels = randn(100 + seed, rows, DIM) if shared else randn(100 + seed, rows, columns, DIM)
        labels = labels.to(dtype)

        def ours(e, labels=labels, expression=f"embed_distill(distance_metric='{distance}')"):
            role = {"text": e[0]} if columns == 1 else {"texts": torch.stack(e, 1)}
            return create_loss(expression)(Embeddings.of(**role), labels).total

        def theirs(e, labels=labels, loss=None):
            loss = loss or peer.EmbedDistillLoss(Ready(), distance)
            return loss([{"x": x} for x in e], labels)

        same(record_property, "embed-distill", ours, theirs, x, dtype)
        if distance == "mse":
            same(
                record_property,
                "mse",
                lambda e, ours=ours: ours(e, expression="mse"),
                lambda e, theirs=theirs: theirs(e, loss=peer.MSELoss(Ready())),
                x,
                dtype,
            )


@DTYPES
@pytest.mark.parametrize("distance", ["cosine", "l2", "mse"])
def test_projection(record_property, distance, dtype, tmp_path):
    """Also the gradient of the projection's weights; its file is read by either library."""
    torch.manual_seed(0)
    other = peer.EmbedDistillLoss(Ready(), distance, projection_dim=4).to(dtype)
    other.save_projection(tmp_path / "theirs.safetensors")
    ours = EmbedDistillLoss(distance, projection_dim=4)
    ours.load_projection(tmp_path / "theirs.safetensors")
    labels = randn(5, 7, 4).to(dtype)
    same(
        record_property,
        "embed-distill",
        lambda e: ours(Embeddings.of(texts=torch.stack(e, 1)), labels).total,
        lambda e: other([{"x": x} for x in e], labels),
        [randn(0, 7, DIM), randn(1, 7, DIM)],
        dtype,
    )
    for a, b in zip(ours.projection.parameters(), other.projection.parameters(), strict=True):
        assert b.grad.abs().max() > 0
        torch.testing.assert_close(a.grad, b.grad, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    ours.save_projection(tmp_path / "ours.safetensors")
    fresh = peer.MSELoss(Ready())
    fresh.load_projection(tmp_path / "ours.safetensors")
    again = MSELoss()
    again.load_projection(tmp_path / "theirs.safetensors")
    assert torch.equal(fresh.projection.weight, again.projection.weight)
    if distance == "mse":
        fresh, again = fresh.to(dtype), again.to(dtype)
        same(
            record_property,
            "mse",
            lambda e: again(Embeddings.of(text=e[0]), labels).total,
            lambda e: fresh([{"x": e[0]}], labels),
            [randn(0, 7, DIM)],
            dtype,
        )


@pytest.mark.parametrize("distance", ["cosine", "l2", "mse"])
def test_student_equal_to_teacher(record_property, distance):
    x = randn(0, 5, DIM)
    for name, expression in (("embed-distill", f"embed_distill('{distance}')"), ("mse", "mse")):
        record_property("parity", (name, "edges"))
        (one,), (two,) = leaves([x], torch.float64), leaves([x], torch.float64)
        value = create_loss(expression)(Embeddings.of(text=one), x).total
        wanted = peer.EmbedDistillLoss(Ready(), distance)([{"x": two}], x)
        value.backward()
        wanted.backward()
        torch.testing.assert_close(value, wanted, rtol=0, atol=1e-12)
        torch.testing.assert_close(one.grad, two.grad, rtol=0, atol=1e-12)


def test_zero_student(record_property):
    """The peer's cosine of a zero vector has a gradient of 1e8 or so; here it is 0."""
    record_property("parity", ("embed-distill", "differs on purpose"))
    (one,), (two,) = leaves([torch.zeros(1, DIM)], torch.float32), leaves([torch.zeros(1, DIM)], torch.float32)
    labels = torch.ones(1, DIM)
    value = create_loss("embed_distill")(Embeddings.of(text=one), labels).total
    wanted = peer.EmbedDistillLoss(Ready())([{"x": two}], labels)
    value.backward()
    wanted.backward()
    assert value.item() == wanted.item() == 1
    assert two.grad.norm() > 1e6
    assert one.grad.norm() == 0


@pytest.mark.parametrize("name", ["embed-distill", "mse"])
def test_half_precision_is_summed_in_float32(record_property, name):
    record_property("parity", (name, "differs on purpose"))
    x, labels = randn(0, 64, DIM), randn(1, 64, DIM)
    exact = create_loss(name)(Embeddings.of(text=x.half().double()), labels).total.item()
    value = create_loss(name)(Embeddings.of(text=x.half()), labels).total
    wanted = (peer.MSELoss if name == "mse" else peer.EmbedDistillLoss)(Ready())([{"x": x.half()}], labels)
    assert wanted.dtype == torch.float16
    assert value.dtype == torch.float32
    assert abs(value.item() - exact) < 1e-5 < abs(wanted.item() - exact)


# -- scores on a bi-encoder ------------------------------------------------------------
SIMILARITIES = {"dot": util.pairwise_dot_score, "cosine": util.pairwise_cos_sim, "euclidean": util.pairwise_euclidean_sim}


def as_embeddings(e):
    return Embeddings.of(query=e[0], positive=e[1], negative=torch.stack(e[2:], 1))


@DTYPES
@ROWS
@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("negatives", [1, 3])
def test_margin_mse(record_property, similarity, negatives, rows, dtype):
    for seed, shape in enumerate([(negatives,), (negatives + 1,)] + [()] * (negatives == 1)):
        labels = randn(50 + seed, rows, *shape).to(dtype)
        same(
            record_property,
            "margin-mse",
            lambda e, y=labels: create_loss("margin_mse", similarity_fct=similarity)(as_embeddings(e), y).total,
            lambda e, y=labels: peer.MarginMSELoss(Ready(), SIMILARITIES[similarity]).compute_loss_from_embeddings(e, y),
            [randn(10 * seed + c, rows, DIM) for c in range(2 + negatives)],
            dtype,
        )


@DTYPES
@ROWS
@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("temperatures", [{}, {"temperature": 2.0}, {"student_temperature": 0.5, "teacher_temperature": 3.0}])
def test_distill_kl_div(record_property, similarity, temperatures, rows, dtype):
    ours = create_loss("distill_kl_div", similarity_fct=similarity, **temperatures)
    theirs = peer.DistillKLDivLoss(Ready(), SIMILARITIES[similarity], **temperatures)
    for seed, negatives in enumerate((1, 2, 4)):
        labels = randn(60 + seed, rows, negatives + 1).to(dtype)
        if rows > 1 and negatives > 1:
            labels[0, 1] = -math.inf  # an excluded candidate
        same(
            record_property,
            "distill-kl-div",
            lambda e, y=labels: ours(as_embeddings(e), y).total,
            lambda e, y=labels: theirs.compute_loss_from_embeddings(e, y),
            [randn(10 * seed + c, rows, DIM) for c in range(2 + negatives)],
            dtype,
        )


def test_a_row_of_excluded_candidates(record_property):
    """The peer's loss becomes NaN; here the row is refused by its number."""
    record_property("parity", ("distill-kl-div", "differs on purpose"))
    e, labels = [randn(c, 2, DIM) for c in range(4)], torch.tensor([[1.0, 2, 3], [-math.inf] * 3])
    assert peer.DistillKLDivLoss(Ready()).compute_loss_from_embeddings(e, labels).isnan()
    with pytest.raises(EmbedlossError, match="row 2"):
        create_loss("distill_kl_div")(as_embeddings(e), labels)


def test_a_nan_score_in_a_later_batch(record_property):
    """The peer looks at its first batch only; here every batch is looked at."""
    record_property("parity", ("distill-kl-div", "differs on purpose"))
    e, good = [randn(c, 2, DIM) for c in range(4)], randn(9, 2, 3)
    bad = good.clone()
    bad[1, 1] = math.nan
    theirs, ours = peer.DistillKLDivLoss(Ready()), create_loss("distill_kl_div")
    torch.testing.assert_close(theirs.compute_loss_from_embeddings(e, good), ours(as_embeddings(e), good).total)
    assert theirs.compute_loss_from_embeddings(e, bad).isnan()
    with pytest.raises(EmbedlossError, match=r"E105.*row 2"):
        ours(as_embeddings(e), bad)


def test_float64_labels(record_property):
    """The peer's loss takes the dtype of the labels; here that of the scores."""
    record_property("parity", ("margin-mse", "differs on purpose"))
    e, labels = [randn(c, 3, DIM).float() for c in range(3)], randn(9, 3)
    wanted = peer.MarginMSELoss(Ready()).compute_loss_from_embeddings(e, labels)
    value = create_loss("margin_mse")(as_embeddings(e), labels)
    assert (wanted.dtype, value.total.dtype) == (torch.float64, torch.float32)
    assert value.total.item() == pytest.approx(wanted.item(), rel=1e-5)


# -- scores on a cross-encoder ------------------------------------------------------------
ACTIVATIONS = {"identity": nn.Identity(), "sigmoid": nn.Sigmoid()}


def run_cross(make, values, columns, labels, dtype):
    """A cross-encoder loss on columns of texts; (rows, columns - 1) logits row by row."""
    count = columns - 1
    rows = len(values)
    texts = [["q"] * rows, *([str(r * count + c) for r in range(rows)] for c in range(count))]
    with Wide() if dtype == torch.float64 else nullcontext():
        return make(Logits(values.reshape(-1)))(texts, labels)


@DTYPES
@ROWS
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_score_mse(record_property, activation, reduction, rows, dtype):
    ours = create_loss("score_mse", activation_fn=activation, reduction=reduction)
    for seed in range(3):
        labels = randn(70 + seed, rows).to(dtype)

        def make(model):
            return cross.MSELoss(model, ACTIVATIONS[activation], reduction=reduction)

        same(
            record_property,
            "score-mse",
            lambda e, y=labels: ours(Scores.of(e[0]), y).total,
            lambda e, y=labels: run_cross(make, e[0], 2, y, dtype),
            [randn(seed, rows, 1)],
            dtype,
        )


@DTYPES
@ROWS
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_margin_mse_on_a_cross_encoder(record_property, activation, rows, dtype):
    for seed, (negatives, more, reduction) in enumerate(itertools.product((1, 3), (0, 1), ("mean", "sum"))):
        labels = randn(80 + seed, rows, negatives + more).to(dtype)
        labels = labels[:, 0] if seed < 2 else labels  # margins (B,), as triplets have them

        def make(model, reduction=reduction):
            return cross.MarginMSELoss(model, ACTIVATIONS[activation], reduction=reduction)

        def ours(e, y=labels, reduction=reduction):
            return create_loss("margin_mse", activation_fn=activation, reduction=reduction)(Scores.of(e[0]), y).total

        def theirs(e, y=labels, columns=negatives + 2, make=make):
            return run_cross(make, e[0], columns, y, dtype)

        same(record_property, "margin-mse", ours, theirs, [randn(seed, rows, negatives + 1)], dtype)


def test_margin_that_is_already_right(record_property):
    scores = randn(0, 4, 2)
    labels = scores[:, 0] - scores[:, 1]
    e = [randn(c, 4, DIM) for c in range(3)]
    margins = (e[0] * e[1]).sum(1) - (e[0] * e[2]).sum(1)
    same(
        record_property,
        "margin-mse",
        lambda s: create_loss("margin_mse")(Scores.of(s[0]), labels).total,
        lambda s: run_cross(cross.MarginMSELoss, s[0], 3, labels, torch.float64),
        [scores],
        torch.float64,
        learns=False,
    )
    same(
        record_property,
        "margin-mse",
        lambda e: create_loss("margin_mse")(as_embeddings(e), margins).total,
        lambda e: peer.MarginMSELoss(Ready()).compute_loss_from_embeddings(e, margins),
        e,
        torch.float64,
        learns=False,
    )


def test_scores_that_are_already_right(record_property):
    scores, shifted = randn(0, 4, 1), randn(1, 3, 3)
    same(
        record_property,
        "score-mse",
        lambda s: create_loss("score_mse")(Scores.of(s[0]), scores[:, 0]).total,
        lambda s: run_cross(cross.MSELoss, s[0], 2, scores[:, 0], torch.float64),
        [scores],
        torch.float64,
        learns=False,
    )
    record_property("parity", ("distill-kl-div", "edges"))
    e = [randn(c, 3, DIM) for c in range(4)]
    labels = torch.stack([(e[0] * x).sum(1) for x in e[1:]], 1) + shifted[:, :1]  # a shift of a row changes no distribution
    one, two = leaves(e, torch.float64), leaves(e, torch.float64)
    value = create_loss("distill_kl_div")(as_embeddings(one), labels).total
    wanted = peer.DistillKLDivLoss(Ready()).compute_loss_from_embeddings(two, labels)
    value.backward()
    wanted.backward()
    torch.testing.assert_close(value, wanted, rtol=0, atol=1e-12)
    for a, b in zip(one, two, strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=0, atol=1e-12)
