"""The contrastive losses against plain loops over their definitions, their invariances, and their edges."""

from __future__ import annotations

import math
import re
import warnings

import pytest
import torch

from embedloss import Embeddings, EmbedlossError, create_loss, list_losses
from embedloss.loss import ModelInfo
from embedloss.testing.models import tiny_bert
from embedloss_contrastive.functional import draw_partners

DISTANCES = ["cosine", "euclidean", "squared-euclidean", "manhattan"]
LABELLED = ["contrastive", "online-contrastive"]
TENSION = ["contrastive-tension", "contrastive-tension-in-batch-negatives"]


def distance(name, x, y):
    if name == "cosine":
        return 1 - (x @ y) / (x.norm() * y.norm())
    if name == "manhattan":
        return (x - y).abs().sum()
    square = ((x - y) ** 2).sum()
    return square if name == "squared-euclidean" else square.sqrt()


def hinge(value):
    return value if value > 0 else value * 0


def by_definition(loss, x, y, labels, name, margin):
    d = [distance(name, a, b) for a, b in zip(x, y, strict=True)]
    if loss == "contrastive":
        return sum(v**2 / 2 if one else hinge(margin - v) ** 2 / 2 for v, one in zip(d, labels, strict=True)) / len(d)
    p = [v for v, one in zip(d, labels, strict=True) if one]
    q = [v for v, one in zip(d, labels, strict=True) if not one]
    nearest = min(q) if q else sum(p) / len(p)
    farthest = max(p) if p else sum(q) / len(q)
    hard = [v**2 for v in p if v > nearest] + [hinge(margin - v) ** 2 for v in q if v < farthest]
    return sum(hard) if hard else (x * 0).sum() + (y * 0).sum()


def value_and_gradient(function, *tensors):
    leaves = [t.clone().requires_grad_() for t in tensors]
    value = function(*leaves)
    value.backward()
    return value.detach(), [leaf.grad for leaf in leaves]


def agree(function, definition, *tensors, least=1e-3):
    value, gradients = value_and_gradient(function, *tensors)
    wanted, expected = value_and_gradient(definition, *tensors)
    assert abs(value - wanted) < 1e-10
    for gradient, other in zip(gradients, expected, strict=True):
        assert other.abs().max() >= least
        assert (gradient - other).abs().max() < 1e-10
    return value


def pair(seed, rows, dim=5, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.randn(2, rows, dim, generator=generator, dtype=torch.float64).to(dtype)
    return x, y, torch.randint(2, (rows,), generator=generator)


# -- labelled pairs ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", DISTANCES)
@pytest.mark.parametrize("loss", LABELLED)
@pytest.mark.parametrize("margin", [0.5, 4.0, 30.0])
def test_labelled_losses_equal_their_definition(loss, name, margin):
    taught = 0
    for seed, rows in enumerate([1, 2, 7, 7, 20]):
        x, y, labels = pair(seed, rows)

        def ours(a, b, ones=labels):
            return create_loss(loss, distance=name, margin=margin)(Embeddings.of(first=a, second=b), ones).total

        taught += agree(ours, lambda a, b, ones=labels: by_definition(loss, a, b, ones, name, margin), x, y, least=0) > 1e-3
    assert taught >= 2


def test_the_sum_is_the_mean_times_the_rows():
    x, y, labels = pair(1, 7)
    emb = Embeddings.of(first=x, second=y)
    mean, total = (create_loss("contrastive", reduction=r)(emb, labels).total for r in ("mean", "sum"))
    assert mean > 0.01
    assert abs(total - 7 * mean) < 1e-12
    assert create_loss("contrastive(size_average=False)")(emb, labels).total == total
    assert create_loss("contrastive(size_average=True)")(emb, labels).total == mean


@pytest.mark.parametrize("loss", LABELLED)
@pytest.mark.parametrize("label", [0, 1])
def test_labels_of_one_kind(loss, label):
    x, y, _ = pair(3, 9)
    labels = torch.full((9,), label)
    value = agree(
        lambda a, b: create_loss(loss, margin=1.5)(Embeddings.of(first=a, second=b), labels).total,
        lambda a, b: by_definition(loss, a, b, labels, "cosine", 1.5), x, y,
    )  # fmt: skip
    assert value > 0.01


@pytest.mark.parametrize("loss", LABELLED)
def test_order_of_rows_and_columns_and_kinds_of_labels(loss):
    x, y, labels = pair(5, 12)

    def value(a, b, ones):
        return create_loss(loss, margin=1.0)(Embeddings.of(first=a, second=b), ones).total

    plain = value(x, y, labels)
    assert plain > 0.01
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    assert abs(value(x[order], y[order], labels[order]) - plain) < 1e-12
    assert abs(value(y, x, labels) - plain) < 1e-12
    assert abs(value(x * 3, y * 0.1, labels) - plain) < 1e-12  # cosine
    for other in (labels.bool(), labels.float(), labels.int(), labels[:, None], labels.tolist()):
        assert value(x, y, other) == plain


@pytest.mark.parametrize("loss", LABELLED)
@pytest.mark.parametrize("labels", [[2, 1], [0, -1], [0.5, 1.0]])
def test_other_labels_are_refused(loss, labels):
    x, y, _ = pair(0, 2)
    row = 1 if labels[0] not in (0, 1) else 2
    with pytest.raises(EmbedlossError, match=rf"E105.*0 and 1.*row {row}"):
        create_loss(loss)(Embeddings.of(first=x, second=y), torch.tensor(labels))


@pytest.mark.parametrize("loss", LABELLED)
def test_wrong_inputs_and_parameters_are_refused(loss):
    x, y, labels = pair(0, 6)
    emb = Embeddings.of(first=x, second=y)
    with pytest.raises(EmbedlossError, match=r"E206.*6 rows but 4 labels"):
        create_loss(loss)(emb, labels[:4])
    with pytest.raises(EmbedlossError, match=r"E206.*needs labels"):
        create_loss(loss)(emb)
    with pytest.raises(EmbedlossError, match=r"E203.*cosine.*'dot'"):
        create_loss(loss, distance="dot")
    for margin in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(EmbedlossError, match=r"E203.*margin"):
            create_loss(loss, margin=margin)
    with pytest.raises(EmbedlossError, match=r"E203.*reduction"):
        create_loss("contrastive", reduction="none")


@pytest.mark.parametrize("name", DISTANCES)
@pytest.mark.parametrize("loss", LABELLED)
def test_nothing_to_learn_is_exactly_nothing(loss, name):
    x, y, _ = pair(0, 4)
    cases = [(x, x.clone(), [1, 1, 1, 1]), (x[:0], y[:0], [])]
    if name != "cosine":
        cases.append((x, y * 1e3, [0, 0, 0, 0]))  # farther than the margin
    if loss == "online-contrastive":
        cases += [(x[:1], y[:1], [0]), (x[:1], y[:1], [1]), (x, torch.cat([x[:2], -1e3 * x[2:]]), [1, 1, 0, 0])]
    for a, b, labels in cases:
        leaves = [t.clone().requires_grad_() for t in (a, b)]
        output = create_loss(loss, distance=name)(Embeddings.of(first=leaves[0], second=leaves[1]), torch.tensor(labels).long())
        output.total.backward()
        assert abs(output.total) < 1e-30
        if name != "cosine":  # 1 - cosine of equal vectors may be 1e-16
            assert output.metrics["active"] == 0
        assert all(leaf.grad is not None and leaf.grad.abs().sum() < 1e-14 for leaf in leaves)


@pytest.mark.parametrize("name", DISTANCES)
@pytest.mark.parametrize("loss", LABELLED)
@pytest.mark.parametrize("labels", [[1, 0, 1, 0], [0, 0, 0, 0], [1, 1, 1, 1]])
def test_not_a_number_is_never_hidden(loss, name, labels):
    x, y, _ = pair(0, 4)
    for row in (0, 1):
        bad = x.clone()
        bad[row, 2] = float("nan")
        assert create_loss(loss, distance=name)(Embeddings.of(first=bad, second=y), torch.tensor(labels)).total.isnan()


@pytest.mark.parametrize("name", DISTANCES)
@pytest.mark.parametrize("loss", LABELLED)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["duplicates", "zeros", "huge"])
def test_hard_inputs_stay_finite(loss, name, dtype, kind):
    x, y, labels = pair(0, 6, dtype=dtype)
    far = 3.0 if dtype == torch.float16 else 1e4  # beyond that the gradient itself, cubic in the vectors, is no float16
    x, y = {"duplicates": (x, x.clone()), "zeros": (x * 0, y * 0), "huge": (x * far, y * far)}[kind]
    x.requires_grad_()
    output = create_loss(loss, distance=name)(Embeddings.of(first=x, second=y), labels)
    output.total.backward()
    assert output.total.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert output.total.isfinite()
    assert bool(x.grad.isfinite().all())
    if kind == "zeros":
        assert bool((x.grad == 0).all())


def test_active_is_the_share_of_pairs_with_a_gradient():
    x, y = torch.zeros(5, 1), torch.tensor([[1.0], [0.0], [2.0], [0.5], [9.0]])
    labels = torch.tensor([1, 1, 0, 0, 0])
    emb = Embeddings.of(first=x, second=y)
    assert create_loss("contrastive(distance='euclidean', margin=3)")(emb, labels).metrics["active"] == pytest.approx(3 / 5)
    output = create_loss("online_contrastive(distance='euclidean', margin=3)")(emb, labels)  # 1 > .5; .5 < 1
    assert output.metrics["active"] == pytest.approx(2 / 5)
    assert output.total == 1 + 2.5**2


def test_thresholds_of_online_contrastive_have_no_gradient():
    x, y = torch.zeros(4, 1), torch.tensor([[1.0], [3.0], [2.0], [5.0]], requires_grad=True)
    loss = create_loss("online_contrastive(distance='euclidean', margin=4)")
    loss(Embeddings.of(first=x, second=y), torch.tensor([1, 1, 0, 0])).total.backward()
    assert y.grad[:, 0].tolist() == [0.0, 6.0, -4.0, 0.0]


# -- contrastive tension ----------------------------------------------------------------------------------------------------
def tension_by_definition(scores, same):
    return sum((1 + (-s if one else s).exp()).log() for s, one in zip(scores, same, strict=True))


@pytest.mark.parametrize("rows", [1, 2, 7, 64])
def test_tension_of_given_pairs_equals_its_definition(rows):
    f1, f2, labels = pair(rows, rows)
    unused = torch.randn(2, rows, 5, dtype=torch.float64)
    loss = create_loss("contrastive_tension")

    def ours(a, b):
        twin = Embeddings.of(first=a, second=unused[0])
        return loss(Embeddings.of(first=unused[1], second=b).with_twin(twin), labels).total

    def definition(a, b):
        return tension_by_definition([a[i] @ b[i] for i in range(rows)], labels)

    agree(ours, definition, f1, f2)

    def unlabelled(a, b):
        twin = Embeddings.of(anchor=a, positive=unused[0])
        emb = Embeddings.of(anchor=unused[1], positive=b).with_twin(twin)
        return loss(emb.with_text_ids(anchor=torch.arange(rows), positive=torch.arange(rows) - 99 * (1 - labels))).total

    agree(unlabelled, definition, f1, f2)


@pytest.mark.parametrize("ratio", [1, 2, 8])
@pytest.mark.parametrize("rows", [1, 2, 7, 64])
def test_tension_of_single_texts_is_that_of_the_pairs_drawn(rows, ratio):
    f1, f2, _ = pair(rows, rows)
    loss = create_loss("contrastive_tension", pos_neg_ratio=ratio)

    def emb(a, b):
        return Embeddings.of(text=b).with_twin(Embeddings.of(text=a)).with_context(seed=3, step=5)

    partners = draw_partners(rows, ratio - 1, emb(f1, f2).generator("contrastive-tension"))
    assert partners.shape == (rows, ratio - 1 if rows > 1 else 0)
    assert all(i not in row for i, row in enumerate(partners.tolist()))

    def definition(a, b):
        pairs = [(i, i) for i in range(rows)] + [(i, j) for i, row in enumerate(partners.tolist()) for j in row]
        return tension_by_definition([a[i] @ b[j] for i, j in pairs], [i == j for i, j in pairs])

    agree(lambda a, b: loss(emb(a, b)).total, definition, f1, f2)
    assert loss(emb(f1, f2)).metrics["positives"] == pytest.approx(1 / ratio if rows > 1 else 1)


def test_drawing_is_seeded_by_run_and_step_and_fair():
    f1, f2, _ = pair(0, 40)
    emb = Embeddings.of(text=f2).with_twin(Embeddings.of(text=f1))
    loss = create_loss("contrastive_tension")
    values = [loss(emb.with_context(seed=s, step=t)).total.item() for s, t in [(0, 0), (0, 0), (0, 1), (1, 0)]]
    assert values[0] == values[1]
    assert len(set(values)) == 3
    counts = torch.zeros(6, 6)
    generator = torch.Generator().manual_seed(0)
    for _ in range(500):
        counts.scatter_add_(1, draw_partners(6, 7, generator), torch.ones(6, 7))
    assert bool((counts.diagonal() == 0).all())
    assert counts[~torch.eye(6, dtype=torch.bool)].sub(700).abs().max() < 150


def test_drawing_follows_the_texts_not_the_rows():
    f1, f2, _ = pair(0, 9)
    ids = torch.tensor([5, 900, 3, 77, 12, 6, 1, 40, 8])
    order = torch.randperm(9, generator=torch.Generator().manual_seed(1))
    values = [
        create_loss("ct")(Embeddings.of(text=f2[o]).with_twin(Embeddings.of(text=f1[o])).with_text_ids(text=ids[o])).total
        for o in (torch.arange(9), order)
    ]
    assert values[0] > 1
    assert abs(values[0] - values[1]) < 1e-12


def test_a_text_drawn_twice_is_no_negative_of_itself():
    f1, f2, _ = pair(0, 6)
    emb = Embeddings.of(text=f2).with_twin(Embeddings.of(text=f1)).with_text_ids(text=torch.tensor([4, 4, 4, 4, 4, 4]))
    assert create_loss("ct")(emb).metrics["positives"] == 1


def test_tension_says_what_is_missing():
    x = torch.randn(4, 3)
    loss, twin = create_loss("contrastive_tension"), Embeddings.of(anchor=x, positive=x)
    with pytest.raises(EmbedlossError, match=r"E206.*twin"):
        loss(Embeddings.of(text=x))
    with pytest.raises(EmbedlossError, match=r"E206.*with_text_ids"):
        loss(Embeddings.of(anchor=x, positive=x).with_twin(twin))
    with pytest.raises(EmbedlossError, match=r"E105.*0 and 1"):
        loss(Embeddings.of(first=x, second=x).with_twin(Embeddings.of(first=x, second=x)), torch.tensor([1, 2, 0, 0]))
    for ratio in (0, -3, 2.5, True):
        with pytest.raises(EmbedlossError, match=r"E203.*pos_neg_ratio"):
            create_loss("contrastive_tension", pos_neg_ratio=ratio)
    assert all(create_loss(name).requires().twin for name in TENSION)
    assert not any(create_loss(name).requires().twin for name in LABELLED)


# -- contrastive tension with in-batch negatives -----------------------------------------------------------------------------
def matrix(name, x, y):
    return -torch.stack([torch.stack([distance(name, a, b) for b in y]) for a in x]) + (1 if name == "cosine" else 0)


@pytest.mark.parametrize(("name", "scale"), [("cosine", 20.0), ("dot", 1.0), ("euclidean", 0.5), ("manhattan", 0.5)])
@pytest.mark.parametrize("rows", [2, 7, 30])
def test_in_batch_tension_equals_its_definition(rows, name, scale):
    f1, f2, _ = pair(rows, rows)
    for learnable in (True, False):
        loss = create_loss("ct_in_batch", scale=scale, similarity_fct=name, learnable_scale=learnable).double()
        # The parameter is born in float32.
        factor = loss.log_scale.exp().item() if learnable else scale

        def definition(a, b, factor=factor):
            scores = factor * (a @ b.T if name == "dot" else matrix(name, a, b))
            rows_, columns = (s.exp() / s.exp().sum(1, keepdim=True) for s in (scores, scores.T))
            return -(rows_.diagonal().log().mean() + columns.diagonal().log().mean()) / 2

        def ours(a, b, loss=loss):
            return loss(Embeddings.of(text=b).with_twin(Embeddings.of(text=a))).total

        def ours_in_pairs(a, b, loss=loss):
            unused = torch.randn_like(a.detach())
            twin = Embeddings.of(anchor=a, positive=unused)
            return loss(Embeddings.of(anchor=unused, positive=b).with_twin(twin)).total

        agree(ours, definition, f1, f2)
        agree(ours_in_pairs, definition, f1, f2)


@pytest.mark.parametrize("tile", [2, 256])
def test_equal_texts_are_no_negatives_when_masked(tile, monkeypatch):
    """Texts 0 and 3 are equal, and text 6 has no other text that differs where all ids are one."""
    monkeypatch.setattr("embedloss.contrast.TILE_ELEMENTS", tile)
    monkeypatch.setattr("embedloss.contrast.TILE_ROWS", tile)
    f1, f2, _ = pair(3, 7)
    ids = torch.tensor([1, 2, 3, 1, 4, 5, 3])
    loss = create_loss("ct_in_batch(learnable_scale=False, scale=3, mask_same_text=True)").double()

    def definition(a, b):
        scores = 3 * matrix("cosine", a, b)
        total = 0
        for i in range(7):
            kept = [j for j in range(7) if j == i or ids[j] != ids[i]]
            total = total - scores[i, i] + scores[i, kept].logsumexp(0) / 2 + scores[kept, i].logsumexp(0) / 2
        return total / 7

    def ours(a, b, ids=ids):
        return loss(Embeddings.of(text=b).with_twin(Embeddings.of(text=a)).with_text_ids(text=ids)).total

    agree(ours, definition, f1, f2)
    value, gradients = value_and_gradient(lambda a, b: ours(a, b, torch.ones(7, dtype=torch.int64)), f1, f2)
    assert value == 0
    assert all(bool((g == 0).all()) for g in gradients)
    with pytest.raises(EmbedlossError, match="needs to know equal texts for mask_same_text"):
        loss(Embeddings.of(text=f2).with_twin(Embeddings.of(text=f1)))


def test_blocks_of_any_size_give_the_same(monkeypatch):
    f1, f2, _ = pair(1, 23)

    def run():
        loss = create_loss("ct_in_batch(scale=5)").double()
        total = lambda a, b: loss(Embeddings.of(text=b).with_twin(Embeddings.of(text=a))).total  # noqa: E731
        value, gradients = value_and_gradient(total, f1, f2)
        return value, [*gradients, loss.log_scale.grad]

    wanted, expected = run()
    assert all(g.abs().max() > 1e-3 for g in expected)
    monkeypatch.setattr("embedloss.contrast.TILE_ELEMENTS", 1)
    for tile in (1, 6, 22):
        monkeypatch.setattr("embedloss.contrast.TILE_ROWS", tile)
        value, gradients = run()
        assert abs(value - wanted) < 1e-12
        assert all((g - e).abs().max() < 1e-12 for g, e in zip(gradients, expected, strict=True))


def test_the_scale_is_trained_unless_switched_off():
    f1, f2, _ = pair(0, 6)
    emb = Embeddings.of(text=f2).with_twin(Embeddings.of(text=f1))
    loss = create_loss("ct_in_batch")
    output = loss(emb)
    output.total.backward()
    step = 1e-3
    with torch.no_grad():
        loss.log_scale += step
        above = loss(emb).total
        loss.log_scale -= 2 * step
        below = loss(emb).total
    assert loss.log_scale.grad.abs() > 0.1
    assert abs((above - below) / (2 * step) - loss.log_scale.grad) < 1e-3 * loss.log_scale.grad.abs()
    assert output.metrics["scale"] == pytest.approx(20)
    assert [name for name, _ in loss.named_parameters()] == ["log_scale"]
    fixed = create_loss("ct_in_batch(learnable_scale=False)")
    assert list(fixed.parameters()) == []
    assert fixed(emb).total.item() == pytest.approx(output.total.item(), rel=1e-6)


def test_in_batch_tension_at_the_edges():
    x = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    loss = create_loss("ct_in_batch")
    one = loss(Embeddings.of(text=x[:1]).with_twin(Embeddings.of(text=x[1:2])))
    one.total.backward()
    assert one.total == 0
    assert bool((x.grad == 0).all())
    assert loss.log_scale.grad == 0
    zeros = torch.zeros(5, 4, requires_grad=True)
    output = loss(Embeddings.of(text=zeros).with_twin(Embeddings.of(text=zeros.detach())))
    output.total.backward()
    assert output.total.item() == pytest.approx(math.log(5))
    assert bool((zeros.grad == 0).all())
    for rows in (1, 5):
        bad = x.detach()[:rows].clone()
        bad[0, 0] = float("nan")
        assert loss(Embeddings.of(text=bad).with_twin(Embeddings.of(text=x.detach()[:rows]))).total.isnan()
        assert loss(Embeddings.of(text=x.detach()[:rows]).with_twin(Embeddings.of(text=bad))).total.isnan()
        ct = create_loss("ct")
        assert ct(Embeddings.of(text=bad).with_twin(Embeddings.of(text=x.detach()[:rows]))).total.isnan()


@pytest.mark.parametrize("name", TENSION)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_tension_of_huge_half_precision_vectors_is_finite(name, dtype):
    x, y, _ = pair(0, 6, dtype=dtype)
    x = (x * 1e4).requires_grad_()
    output = create_loss(name)(Embeddings.of(text=x).with_twin(Embeddings.of(text=y)))
    output.total.backward()
    assert output.total.dtype == torch.float32
    assert output.total.isfinite()
    assert bool(x.grad.isfinite().all())


def test_unequal_pairs_are_refused():
    x = torch.randn(3, 4)
    emb = Embeddings.of(anchor=x, positive=x).with_twin(Embeddings.of(anchor=x, positive=x))
    loss = create_loss("ct_in_batch")
    assert loss(emb.with_text_ids(anchor=torch.tensor([1, 2, 3]), positive=torch.tensor([1, 2, 3]))).total.isfinite()
    with pytest.raises(EmbedlossError, match=r"E105.*row 3.*--drop"):
        loss(emb.with_text_ids(anchor=torch.tensor([1, 2, 3]), positive=torch.tensor([1, 2, 4])))
    for scale in (0.0, -1.0, float("inf")):
        with pytest.raises(EmbedlossError, match=r"E203.*scale"):
            create_loss("ct_in_batch", scale=scale)


# -- expressions and pages ----------------------------------------------------------------------------------------------------
def test_expressions_and_other_names():
    loss = create_loss("contrastive(size_average=False, distance_metric='SiameseDistanceMetric.EUCLIDEAN', margin=1)")
    assert loss.to_expression() == "contrastive(distance='euclidean', margin=1, reduction='sum')"
    assert create_loss(loss.to_expression()).to_expression() == loss.to_expression()
    text = "contrastive_tension_in_batch_negatives(scale=5, similarity_fct='dot', learnable_scale=False)"
    assert create_loss(text).to_expression() == text
    for alias in ("siamese", "ct", "ct_in_batch", "ctib"):
        assert create_loss(alias).to_expression() == create_loss(alias).spec.name.replace("-", "_") + "()"
    assert [(m.distance, m.margin) for m in map(create_loss, LABELLED)] == [("cosine", 0.5)] * 2


@pytest.mark.parametrize("spec", list_losses(family="contrastive"), ids=lambda s: s.name)
def test_specs_and_examples(spec, capsys):
    formats = {
        "contrastive-tension": ("single", "pairs", "pairs+binary"),
        "contrastive-tension-in-batch-negatives": ("single", "pairs"),
    }
    assert spec.format_names() == formats.get(spec.name, ("pairs+binary",))
    assert spec.sampler == ("no-duplicates" if "in-batch" in spec.name else "random")
    assert spec.label_range == (None if "in-batch" in spec.name else (0, 1))
    assert spec.citation
    assert spec.field_name == spec.load().__name__
    (code,) = re.findall(r"```python\n(.*?)```", spec.doc, re.DOTALL)
    exec(code, {})
    assert capsys.readouterr().out


def test_tension_warns_of_embeddings_of_length_one(tmp_path):
    from embedloss import load_encoder

    tiny_bert(tmp_path)
    loss = create_loss("contrastive-tension")
    with pytest.warns(UserWarning, match="--no-normalize"):
        loss.prepare(ModelInfo(8, load_encoder(tmp_path, normalize=True)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss.prepare(ModelInfo(8, load_encoder(tmp_path, normalize=False)))
