"""The triplet losses against plain loops over their definitions, their invariances, and their edges."""

from __future__ import annotations

import itertools
import re
from functools import partial

import pytest
import torch

from embedloss import Embeddings, EmbedlossError, create_loss, list_losses
from embedloss_triplet.functional import batch_all, batch_hard, batch_semi_hard, mined

DISTANCES = ["euclidean", "squared-euclidean", "manhattan", "cosine"]
MINED = ["batch-all-triplet", "batch-hard-triplet", "batch-hard-soft-margin-triplet", "batch-semi-hard-triplet"]


# -- the definitions, one pair or triplet at a time -------------------------------------------------------------------------
def distance(name, x, y):
    if name == "cosine":
        return 1 - (x @ y) / (x.norm() * y.norm())
    if name == "manhattan":
        return (x - y).abs().sum()
    square = ((x - y) ** 2).sum()
    # The square root has no gradient at 0; the loss must have gradient 0 there.
    return square if name == "squared-euclidean" else square.sqrt() if square > 0 else (x - y).sum() * 0


def hinge(value):
    return value if value > 0 else value * 0


def by_definition(loss, x, labels, name, margin):
    rows = range(len(x))
    d = [[distance(name, x[i], x[j]) for j in rows] for i in rows]
    positives = [[p for p in rows if p != a and labels[p] == labels[a]] for a in rows]
    negatives = [[n for n in rows if labels[n] != labels[a]] for a in rows]
    terms = []
    for a in rows:
        if loss == "batch-all-triplet":
            found = [d[a][p] - d[a][n] + margin for p in positives[a] for n in negatives[a]]
            terms += [t for t in found if t > 0]
        elif loss == "batch-semi-hard-triplet":
            for p in positives[a] if negatives[a] else []:
                beyond = [n for n in negatives[a] if d[a][n] > d[a][p]]
                n = min(beyond, key=lambda n: d[a][n]) if beyond else max(negatives[a], key=lambda n: d[a][n])
                terms.append(hinge(d[a][p] - d[a][n] + margin))
        elif positives[a] and negatives[a]:
            gap = max(d[a][p] for p in positives[a]) - min(d[a][n] for n in negatives[a])
            terms.append(hinge(gap + margin) if loss == "batch-hard-triplet" else (1 + gap.exp()).log())
    return sum(terms) / len(terms) if terms else x.sum() * 0


def made(loss, name, margin):
    return create_loss(loss, distance=name) if "soft" in loss else create_loss(loss, distance=name, margin=margin)


def value_and_gradient(function, *tensors):
    leaves = [t.clone().requires_grad_() for t in tensors]
    value = function(*leaves)
    value.backward()
    return value.detach(), [leaf.grad for leaf in leaves]


def batch(seed, rows, classes, dim=5, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, dim, generator=generator, dtype=torch.float64).to(dtype)
    return x, torch.randint(classes, (rows,), generator=generator)


@pytest.mark.parametrize("name", DISTANCES)
@pytest.mark.parametrize("loss", MINED)
@pytest.mark.parametrize("margin", [0.0, 0.3, 5.0])
def test_mined_losses_equal_their_definition(loss, name, margin):
    taught = 0
    for seed, (rows, classes) in enumerate([(1, 1), (2, 1), (2, 2), (7, 2), (7, 5), (13, 3)]):
        x, labels = batch(seed, rows, classes)
        value, (gradient,) = value_and_gradient(lambda t, y=labels: made(loss, name, margin)(Embeddings.of(text=t), y).total, x)
        wanted, (wanted_gradient,) = value_and_gradient(lambda t, y=labels: by_definition(loss, t, y, name, margin), x)
        assert abs(value - wanted) < 1e-10
        assert (gradient - wanted_gradient).abs().max() < 1e-10
        taught += int(wanted_gradient.abs().max() > 1e-3)
    assert taught >= 2


@pytest.mark.parametrize("few", [-1, 100])
@pytest.mark.parametrize("classes", [2, 12])
@pytest.mark.parametrize("loss", ["batch-all-triplet", "batch-semi-hard-triplet"])
def test_triplets_are_found_by_sorting_and_one_positive_after_the_other(loss, few, classes, monkeypatch):
    monkeypatch.setattr("embedloss_triplet.functional.FEW", few)
    x, labels = batch(0, 24, classes)
    value, (gradient,) = value_and_gradient(lambda t: create_loss(loss)(Embeddings.of(text=t), labels).total, x)
    wanted, (expected,) = value_and_gradient(lambda t: by_definition(loss, t, labels, "euclidean", 5), x)
    assert expected.abs().max() > 1e-3
    assert abs(value - wanted) < 1e-10
    assert (gradient - expected).abs().max() < 1e-10


@pytest.mark.parametrize("loss", MINED)
@pytest.mark.parametrize("margin", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("few", [-1, 100])
def test_ties_are_neither_active_nor_beyond(loss, margin, few, monkeypatch):
    """Whole numbers on a line: many distances are equal, or differ by the margin exactly."""
    monkeypatch.setattr("embedloss_triplet.functional.FEW", few)
    wanted = []
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        x = torch.randint(6, (12, 1), generator=generator).double()
        labels = torch.randint(3, (12,), generator=generator)
        wanted.append(by_definition(loss, x, labels, "manhattan", margin))
        assert abs(made(loss, "manhattan", margin)(Embeddings.of(text=x), labels).total - wanted[-1]) < 1e-12
    assert sum(wanted) > 0.1


@pytest.mark.parametrize("name", DISTANCES)
@pytest.mark.parametrize(
    "rule",
    [
        partial(batch_all, margin=0.5),
        partial(batch_hard, margin=0.5),
        partial(batch_hard, margin=None),
        partial(batch_semi_hard, margin=0.5),
    ],
)
def test_blocks_of_any_size_give_the_same(rule, name):
    x, labels = batch(3, 23, 4)
    wanted, (wanted_gradient,) = value_and_gradient(lambda t: mined(rule, t, labels, name)[0], x)
    assert wanted_gradient.abs().max() > 1e-3
    for tile in (1, 7, 22, 23):
        value, (gradient,) = value_and_gradient(lambda t, n=tile: mined(rule, t, labels, name, tile=n)[0], x)
        assert abs(value - wanted) < 1e-12
        assert (gradient - wanted_gradient).abs().max() < 1e-12


def test_nothing_of_the_size_of_the_batch_squared_is_kept():
    x, labels = batch(0, 1024, 9, dtype=torch.float32)
    for loss in MINED:
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, seen=sizes: seen.append(t.numel()) or t, lambda t: t):
            total = create_loss(loss)(Embeddings.of(text=x.requires_grad_()), labels).total
        assert 0 < max(sizes) <= 256 * 1024
        kept = [t.numel() for t in total.grad_fn.saved_tensors]
        assert 0 < max(kept) <= x.numel()


@pytest.mark.parametrize("name", DISTANCES)
def test_batch_all_with_near_duplicates_far_from_the_origin(name):
    x, labels = batch(5, 12, 3)
    x = x + (3.0 if name == "cosine" else 100.0)
    x[1], x[2], x[3] = x[0], x[0] + 1e-4, x[0] - 1e-5
    labels[:4] = torch.tensor([0, 0, 1, 0])
    value, (gradient,) = value_and_gradient(
        lambda t: made("batch-all-triplet", name, 1.0)(Embeddings.of(text=t), labels).total, x
    )
    wanted, (wanted_gradient,) = value_and_gradient(lambda t: by_definition("batch-all-triplet", t, labels, name, 1.0), x)
    assert wanted_gradient.abs().max() > 1e-3
    assert abs(value - wanted) < 1e-10
    assert (gradient - wanted_gradient).abs().max() < 1e-10


@pytest.mark.parametrize("loss", MINED)
def test_float32_near_duplicates_are_not_lost(loss):
    x, labels = batch(5, 12, 3)
    x[1], x[2] = x[0] + 1e-4, x[0] - 2e-4
    labels[:3] = torch.tensor([0, 0, 1])
    single = x.float()
    value, (gradient,) = value_and_gradient(
        lambda t: made(loss, "euclidean", 1e-5)(Embeddings.of(text=t), labels).total, single
    )
    wanted, (wanted_gradient,) = value_and_gradient(
        lambda t: by_definition(loss, t, labels, "euclidean", 1e-5), single.double()
    )
    assert wanted_gradient.abs().max() > 1e-3
    assert abs(value - wanted) < 1e-5 * wanted
    assert (gradient - wanted_gradient).abs().max() < 1e-4 * wanted_gradient.abs().max()


@pytest.mark.parametrize("name", DISTANCES)
@pytest.mark.parametrize("margin", [0.0, 0.3, 5.0])
@pytest.mark.parametrize("rows", [1, 2, 7, 64])
def test_triplet_equals_its_definition(name, margin, rows):
    tensors = [batch(seed, rows, 1)[0] for seed in (1, 2, 3)]

    def definition(a, p, n):
        return sum(hinge(distance(name, a[i], p[i]) - distance(name, a[i], n[i]) + margin) for i in range(rows)) / rows

    def ours(a, p, n):
        return create_loss("triplet", distance=name, margin=margin)(Embeddings.of(anchor=a, positive=p, negative=n)).total

    value, gradients = value_and_gradient(ours, *tensors)
    wanted, wanted_gradients = value_and_gradient(definition, *tensors)
    assert rows < 7 or all(g.abs().max() > 1e-3 for g in wanted_gradients)
    assert abs(value - wanted) < 1e-10
    for gradient, expected in zip(gradients, wanted_gradients, strict=True):
        assert (gradient - expected).abs().max() < 1e-10


def test_triplet_takes_several_negatives_a_row():
    a, p, n = (batch(seed, 3, 1)[0] for seed in (1, 2, 3))
    more = batch(4, 2, 1)[0]
    negatives = [torch.cat([n[0:1], more]), n[1:2], n[2:3]]
    rows = torch.tensor([0, 0, 0, 1, 2])
    loss = create_loss("triplet")
    ragged = loss(Embeddings.of(anchor=a, positive=p, negative=negatives)).total
    flat = loss(Embeddings.of(anchor=a[rows], positive=p[rows], negative=torch.cat(negatives))).total
    assert flat > 1
    assert ragged == flat


# -- invariances --------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("loss", "name"), list(itertools.product(MINED, DISTANCES)))
def test_order_of_rows_names_of_classes_shift_and_scale(loss, name):
    x, labels = batch(7, 12, 3)

    def value(t, y, margin=0.4):
        return made(loss, name, margin)(Embeddings.of(text=t), y).total

    plain = value(x, labels)
    assert plain > 1e-3
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    assert abs(value(x[order], labels[order]) - plain) < 1e-12
    assert abs(value(x, torch.tensor([-70, 3, 2**40])[labels]) - plain) < 1e-12
    assert abs(value(x, labels.double()[:, None] / 3) - plain) < 1e-12
    if name == "cosine":
        assert abs(value(x * torch.rand(12, 1, dtype=torch.float64).add(0.5), labels) - plain) < 1e-12
    else:
        assert abs(value(x + 10, labels) - plain) < 1e-10
        if "soft" not in loss:
            power = 4.0 if name == "squared-euclidean" else 2.0
            assert abs(value(2 * x, labels, 0.4 * power) - power * plain) < 1e-10


def test_labels_are_compared_exactly():
    x, _ = batch(0, 4, 1)
    near = torch.tensor([2**53, 2**53, 2**53 + 1, 2**53 + 1])  # equal once they are floating point
    loss = create_loss("batch_all_triplet")
    assert (
        loss(Embeddings.of(text=x), near).total == loss(Embeddings.of(text=x), torch.tensor([False, False, True, True])).total
    )
    assert loss(Embeddings.of(text=x), near).total > 1


# -- edges --------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", DISTANCES)
@pytest.mark.parametrize("loss", MINED)
@pytest.mark.parametrize("labels", [[0], [3, 3, 3], [0, 1, 2]], ids=["one row", "one class", "all distinct"])
def test_no_valid_triplet_is_exactly_nothing(loss, name, labels):
    x = batch(0, len(labels), 1)[0].requires_grad_()
    output = made(loss, name, 5.0)(Embeddings.of(text=x), torch.tensor(labels))
    output.total.backward()
    assert output.total == 0
    assert output.metrics["active"] == 0
    assert x.grad is not None
    assert bool((x.grad == 0).all())


@pytest.mark.parametrize("loss", MINED)
def test_anchors_without_both_do_not_count(loss):
    x, _ = batch(2, 5, 1)
    alone = made(loss, "euclidean", 1.0)(Embeddings.of(text=x), torch.tensor([0, 0, 1, 2, 3])).total
    wanted = by_definition(loss, x, [0, 0, 1, 2, 3], "euclidean", 1.0)
    assert wanted > 0.1
    assert abs(alone - wanted) < 1e-12


@pytest.mark.parametrize("name", DISTANCES)
@pytest.mark.parametrize("loss", MINED)
@pytest.mark.parametrize("labels", [[0, 0, 1, 1], [0, 0, 0, 0], [0, 1, 2, 3]])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_not_a_number_is_never_hidden(loss, name, labels, bad):
    x, _ = batch(0, 4, 1)
    x[2, 1] = bad
    assert not made(loss, name, 1.0)(Embeddings.of(text=x), torch.tensor(labels)).total.isfinite()


@pytest.mark.parametrize("name", DISTANCES)
@pytest.mark.parametrize("loss", MINED)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["duplicates", "zeros", "some zeros", "huge"])
def test_hard_inputs_stay_finite(loss, name, dtype, kind):
    x, _ = batch(0, 6, 1, dtype=dtype)
    if kind == "duplicates":
        x = x[:1].repeat(6, 1)
    elif kind == "huge":
        x = x * 1e4
    else:
        x[0 if kind == "some zeros" else slice(None)] = 0
    x.requires_grad_()
    labels = torch.tensor([0, 0, 1, 1, 2, 2])
    output = made(loss, name, 5.0)(Embeddings.of(text=x), labels)
    output.total.backward()
    assert output.total.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert output.total.isfinite()
    assert bool(x.grad.isfinite().all())
    if kind in ("duplicates", "zeros"):
        assert abs(output.total - (torch.tensor(2.0).log() if "soft" in loss else 5.0)) < 1e-5
    if kind == "duplicates":
        assert x.grad.abs().max() < 1e-6
    if kind == "zeros" and name == "cosine":
        assert bool((x.grad == 0).all())


def test_zero_anchor_of_triplet_has_no_gradient_from_a_cosine():
    a, p, n = (batch(seed, 2, 1, dtype=torch.float32)[0] for seed in (1, 2, 3))
    a[0] = 0
    _, gradients = value_and_gradient(
        lambda *t: create_loss("triplet(distance='cosine')")(Embeddings.of(anchor=t[0], positive=t[1], negative=t[2])).total,
        a,
        p,
        n,
    )
    assert bool((gradients[0][0] == 0).all())
    assert gradients[0][1].abs().max() > 1e-3
    assert max(g.abs().max() for g in gradients) < 10


@pytest.mark.parametrize("name", DISTANCES)
def test_triplet_of_equal_vectors_is_the_margin_without_gradient(name):
    a = batch(1, 3, 1)[0]
    loss = create_loss("triplet", distance=name, margin=2.0)
    value, gradients = value_and_gradient(
        lambda *t: loss(Embeddings.of(anchor=t[0], positive=t[1], negative=t[2])).total, a, a, a
    )
    assert abs(value - 2) < 1e-12
    assert all(g.abs().max() < 1e-12 for g in gradients)


def test_triplet_of_no_rows_and_of_a_bad_number():
    empty = torch.zeros(0, 3, requires_grad=True)
    output = create_loss("triplet")(Embeddings.of(anchor=empty, positive=empty, negative=empty))
    output.total.backward()
    assert output.total == 0
    a, p, n = (batch(seed, 2, 1)[0] for seed in (1, 2, 3))
    n[1, 0] = float("nan")
    for name in DISTANCES:
        assert create_loss("triplet", distance=name)(Embeddings.of(anchor=a, positive=p, negative=n)).total.isnan()


def test_the_value_needs_no_graph_and_the_upstream_gradient_counts():
    x, labels = batch(1, 9, 3)
    for loss in MINED:
        x.requires_grad_()
        total = create_loss(loss)(Embeddings.of(text=x), labels).total
        once, twice = (torch.autograd.grad(f * total, x, retain_graph=True)[0] for f in (1.0, -2.5))
        assert once.abs().max() > 1e-3
        assert torch.allclose(twice, -2.5 * once, atol=1e-14)
        with torch.no_grad():
            plain = create_loss(loss)(Embeddings.of(text=x), labels).total
        assert plain == total.detach()
        assert not plain.requires_grad
        assert not create_loss(loss)(Embeddings.of(text=x.detach()), labels).total.requires_grad


def test_active_is_the_share_of_terms_with_a_gradient():
    x = torch.tensor([[0.0], [1.0], [1.5], [9.0]])
    labels = torch.tensor([0, 0, 1, 1])
    # Anchor 0: 1 - 1.5, 1 - 9; anchor 1: 1 - .5, 1 - 8; anchor 2: 7.5 - 1.5, 7.5 - .5; anchor 3: 7.5 - 9, 7.5 - 8.
    for loss, active in {"batch-all-triplet": 3 / 8, "batch-hard-triplet": 2 / 4, "batch-semi-hard-triplet": 1 / 4}.items():
        output = create_loss(loss, margin=0.0)(Embeddings.of(text=x), labels)
        assert output.metrics["active"] == active
    a, p, n = torch.zeros(2, 1), torch.tensor([[1.0], [1.0]]), torch.tensor([[0.5], [3.0]])
    assert create_loss("triplet(margin=0)")(Embeddings.of(anchor=a, positive=p, negative=n)).metrics["active"] == 0.5


# -- parameters, errors, pages ------------------------------------------------------------------------------------------------
def euclidean_distance(x, y):
    raise AssertionError("only its name is read")


class TheirEnumeration:
    MANHATTAN = lambda x, y: x  # noqa: E731 - the form that other libraries use
    COSINE_DISTANCE = lambda x, y: y  # noqa: E731


@pytest.mark.parametrize("loss", [*MINED, "triplet"])
@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("euclidean", "euclidean"),
        ("EUCLIDEAN", "euclidean"),
        ("squared_euclidean", "squared-euclidean"),
        ("TripletDistanceMetric.COSINE", "cosine"),
        ("eucledian_distance", "euclidean"),
        (euclidean_distance, "euclidean"),
        (TheirEnumeration.MANHATTAN, "manhattan"),
        (TheirEnumeration.COSINE_DISTANCE, "cosine"),
    ],
)
def test_names_of_distances(loss, given, name):
    assert create_loss(loss, distance_metric=given).distance == name


def test_expressions_and_other_names():
    loss = create_loss("triplet(triplet_margin=1, distance_metric='TripletDistanceMetric.MANHATTAN')")
    assert (loss.margin, loss.distance) == (1, "manhattan")
    assert create_loss(loss.to_expression()).to_expression() == "triplet(distance='manhattan', margin=1)"
    for alias in ("batch_all", "batch-hard", "soft-margin-triplet", "semi-hard", "triplet-margin"):
        assert create_loss(alias).to_expression() == create_loss(alias).spec.name.replace("-", "_") + "()"
    defaults = [create_loss(s.name) for s in list_losses(family="triplet")]
    assert [(m.distance, getattr(m, "margin", 5.0)) for m in defaults] == [("euclidean", 5.0)] * 5


@pytest.mark.parametrize("loss", [*MINED, "triplet"])
def test_wrong_parameters_name_what_is_allowed(loss):
    with pytest.raises(EmbedlossError, match=r"E203.*euclidean, squared-euclidean, manhattan, cosine.*'dot'"):
        create_loss(loss, distance="dot")
    with pytest.raises(EmbedlossError, match=r"E203.*lambda"):
        create_loss(loss, distance=lambda x, y: x)
    for margin in [] if "soft" in loss else [-1.0, float("nan"), float("inf")]:
        with pytest.raises(EmbedlossError, match=r"E203.*margin"):
            create_loss(loss, margin=margin)


def test_wrong_inputs_are_refused():
    x, loss = torch.randn(6, 3), create_loss("batch_all_triplet")
    with pytest.raises(EmbedlossError, match=r"E206.*6 rows but 2 labels"):
        loss(Embeddings.of(text=x), torch.tensor([0, 1]))
    with pytest.raises(EmbedlossError, match=r"E206.*needs labels"):
        loss(Embeddings.of(text=x))
    with pytest.raises(EmbedlossError, match=r"E206.*takes text"):
        loss(Embeddings.of(anchor=x, positive=x), torch.arange(6))
    with pytest.raises(EmbedlossError, match=r"E105.*row 2"):
        loss(Embeddings.of(text=x), torch.tensor([0, float("nan"), 1, 1, 2, 2]))
    with pytest.raises(EmbedlossError, match=r"E206.*no label"):
        create_loss("triplet")(Embeddings.of(anchor=x, positive=x, negative=x), torch.arange(6))


@pytest.mark.parametrize("spec", list_losses(family="triplet"), ids=lambda s: s.name)
def test_specs_and_examples(spec, capsys):
    wanted = ("single+class",) if spec.name in MINED else ("triplets", "n-tuples")
    assert spec.format_names() == wanted
    assert spec.sampler == ("group-by-label" if spec.name in MINED else "random")
    assert spec.scope == ("batch" if spec.name in MINED else "row")
    assert "arXiv" in spec.citation
    assert spec.field_name == spec.load().__name__
    (code,) = re.findall(r"```python\n(.*?)```", spec.doc, re.DOTALL)
    exec(code, {})
    assert capsys.readouterr().out
