"""The losses on embeddings against plain loops over their definitions, their invariances, and their edges."""

from __future__ import annotations

import itertools
import math
import pickle
import re

import pytest
import torch
from torch import nn

from embedloss import Embeddings, EmbedlossError, create_loss, list_losses
from embedloss.contrast import Scored
from embedloss.in_batch import closer
from embedloss.testing.kit import parametrize_with_checks
from embedloss_ranking import functional as F
from embedloss_ranking import losses
from embedloss_ranking.plugin import SPECS

torch.set_num_threads(1)

ALL = ("query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc")
DIRECTIONS = [("query_to_doc", *rest) for n in range(4) for rest in itertools.combinations(ALL[1:], n)]
PARTITIONS = [(d, "joint") for d in DIRECTIONS] + [(d, "per_direction") for d in (ALL[:1], ("query_to_doc", "doc_to_query"))]
HARDNESS = [(None, 0.0), ("in_batch_negatives", 3.0), ("hard_negatives", 2.0), ("all_negatives", 1.5)]
COUNTS = {"pairs": [0] * 5, "triplets": [1] * 5, "ragged": [2, 0, 3, 1, 1]}


# -- the definitions, one number at a time ------------------------------------------------------------------------------------
def similarity(name, x, y):
    if name == "dot":
        return x @ y
    if name == "cosine":
        return (x @ y) / (x.norm() * y.norm())
    return -(x - y).norm() if name == "euclidean" else -(x - y).abs().sum()


def log_sum_exp(values):
    largest = max(v.item() for v in values)
    return sum((v - largest).exp() for v in values).log() + largest


def infonce(
    q, p, negatives, name="cosine", scale=20.0, directions=ALL[:1], partition="joint", hardness=None, alpha=0.0, only="both"
):
    """q, p: one vector a row; negatives: a list of vectors for each row."""
    terms = []
    for i in range(len(q)):
        groups = {direction: [] for direction in directions}
        positive = scale * similarity(name, q[i], p[i])
        for j in range(len(q)):
            for k, document in enumerate([p[j], *negatives[j]]):
                own, hard = i == j, k > 0
                wanted = {"both": True, "own": own, "in-batch": not (own and hard)}[only]
                if wanted:
                    s = similarity(name, q[i], document)
                    raised = {
                        None: False,
                        "in_batch_negatives": not own,
                        "hard_negatives": own and hard,
                        "all_negatives": not own or hard,
                    }[hardness]
                    groups["query_to_doc"].append(scale * s + (alpha * s.detach() if raised else 0))
                if "doc_to_doc" in groups and not own:
                    groups["doc_to_doc"].append(scale * similarity(name, p[i], document))
            if "query_to_query" in groups and i != j:
                groups["query_to_query"].append(scale * similarity(name, q[i], q[j]))
            if "doc_to_query" in groups:
                groups["doc_to_query"].append(scale * similarity(name, q[j], p[i]))
        if partition == "joint":
            terms.append(log_sum_exp([s for group in groups.values() for s in group]) - positive)
        else:
            terms.append(sum(log_sum_exp(group) for group in groups.values()) / len(groups) - positive)
    return sum(terms) / len(terms)


def gist(a, p, negatives, ga, gp, gnegatives, temperature, margin, strategy, anchors, positives):
    def cosine(x, y):
        return similarity("cosine", x, y)

    terms = []
    for i in range(len(a)):
        threshold = cosine(ga[i], gp[i])
        threshold = threshold - (margin if strategy == "absolute" else threshold.abs() * margin)
        kept = [cosine(a[i], p[i])]
        for j in range(len(a)):
            if j != i:
                if not cosine(ga[i], gp[j]) > threshold:
                    kept.append(cosine(a[i], p[j]))
                if anchors and not cosine(ga[i], ga[j]) > threshold:
                    kept.append(cosine(a[i], a[j]))
                if positives and not cosine(gp[i], gp[j]) > threshold:
                    kept.append(cosine(p[i], p[j]))
            for n, gn in zip(negatives[j], gnegatives[j], strict=True):
                if not cosine(ga[i], gn) > threshold:
                    kept.append(cosine(a[i], n))
        terms.append(log_sum_exp([c / temperature for c in kept]) - kept[0] / temperature)
    return sum(terms) / len(terms)


def mega_batch(a, p, positive_margin, negative_margin):
    terms = []
    for i in range(len(a)):
        others = [similarity("cosine", a[i], p[j]) for j in range(len(a)) if j != i]
        terms.append((positive_margin - similarity("cosine", a[i], p[i])).clamp(min=0))
        if others:
            terms.append((max(others) - negative_margin).clamp(min=0))
    return sum(terms) / len(a)


# -- tools --------------------------------------------------------------------------------------------------------------------
def data(counts, dim=4, seed=0, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    rows = len(counts)
    return [torch.randn(n, dim, generator=g, dtype=torch.float64).to(dtype) for n in (rows, rows, sum(counts))]


def leaves_of(tensors):
    return [t.clone().requires_grad_() for t in tensors]


def wrapped(anchor, positive, negative, counts):
    roles = {"anchor": anchor, "positive": positive}
    if sum(counts):
        roles["negative"] = negative if set(counts) == {1} else negative.split(counts)
    return Embeddings.of(**roles)


def gradients(value, leaves):
    found = torch.autograd.grad(value, leaves, allow_unused=True)
    return [torch.zeros_like(leaf) if g is None else g for g, leaf in zip(found, leaves, strict=True)]


def assert_same(loss, definition, tensors, counts, tolerance=1e-10):
    """`loss` on embeddings against `definition(anchor, positive, list of negatives a row)`."""
    wanted_leaves, leaves = leaves_of(tensors), leaves_of(tensors)
    wanted = definition(*wanted_leaves[:2], [list(part) for part in wanted_leaves[2].split(counts)])
    found = loss(wrapped(*leaves, counts)).total
    assert abs(found - wanted) < tolerance
    wanted_gradients = gradients(wanted, wanted_leaves)
    assert max(g.abs().max() for g in wanted_gradients if g.numel()) > 1e-4
    for mine, other in zip(gradients(found, leaves), wanted_gradients, strict=True):
        assert torch.allclose(mine, other, rtol=0, atol=tolerance)


# -- multiple negatives ranking -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", COUNTS)
@pytest.mark.parametrize(("directions", "partition"), PARTITIONS)
def test_every_direction_partition_and_hardness(kind, directions, partition):
    counts = COUNTS[kind]
    for number, (hardness, alpha) in enumerate(HARDNESS):
        loss = create_loss(
            "mnrl",
            scale=7.0,
            directions=list(directions),
            partition_mode=partition,
            hardness_mode=hardness,
            hardness_strength=alpha,
        )
        settings = {"scale": 7.0, "directions": directions, "partition": partition, "hardness": hardness, "alpha": alpha}
        assert_same(loss, lambda *x, s=settings: infonce(*x, **s), data(counts, seed=number), counts)


@pytest.mark.parametrize("name", ["cosine", "dot", "euclidean", "manhattan"])
@pytest.mark.parametrize("hardness", ["in_batch_negatives", "hard_negatives", "all_negatives"])
def test_every_similarity(name, hardness):
    counts = COUNTS["ragged"]
    loss = create_loss(
        "mnrl", scale=1.5, similarity_fct=name, directions=list(ALL), hardness_mode=hardness, hardness_strength=0.7
    )
    settings = {"name": name, "scale": 1.5, "directions": ALL, "hardness": hardness, "alpha": 0.7}
    assert_same(loss, lambda *x: infonce(*x, **settings), data(counts, seed=2), counts)


@pytest.mark.parametrize("only", ["own", "in-batch"])
@pytest.mark.parametrize("name", ["cosine", "euclidean"])
@pytest.mark.parametrize(("hardness", "alpha"), HARDNESS)
def test_own_or_in_batch_negatives_only(only, name, hardness, alpha):
    counts = COUNTS["ragged"]
    loss = create_loss("mnrl", scale=3.0, negatives=only, similarity_fct=name, hardness_mode=hardness, hardness_strength=alpha)
    settings = {"name": name, "scale": 3.0, "hardness": hardness, "alpha": alpha}
    if only == "own":  # a row's candidates are its own documents: the same row with nothing beside it

        def definition(q, p, n):
            rows = [infonce(q[i : i + 1], p[i : i + 1], [n[i]], **settings) for i in range(len(q))]
            return sum(rows) / len(rows)
    else:

        def definition(q, p, n):
            return infonce(q, p, n, only="in-batch", **settings)

    assert_same(loss, definition, data(counts, seed=3), counts)


@pytest.mark.parametrize("tile", [1, 2, 3, 7, 100])
def test_tiles_and_row_ranges_add_up(tile):
    counts = [1, 2, 0, 3, 1, 1, 2]
    anchor, positive, negative = tensors = leaves_of(data(counts))
    rows = torch.arange(7).repeat_interleave(torch.tensor(counts))
    settings = {"directions": ALL, "hardness_mode": "all_negatives", "hardness_strength": 2.0}
    whole, active = F.multiple_negatives_ranking(anchor, positive, negative, rows, tile=1000, **settings)
    wanted = gradients(whole, tensors)
    assert min(g.abs().max() for g in wanted) > 1e-3
    parts = [
        F.multiple_negatives_ranking(anchor, positive, negative, rows, scored=Scored(b, e, 7), tile=tile, **settings)
        for b, e in ((0, 3), (3, 3), (3, 7))
    ]
    total = sum(value for value, _ in parts)
    assert abs(total - whole) < 1e-12
    assert sum(a for _, a in parts) == active == 7
    for mine, other in zip(gradients(total, tensors), wanted, strict=True):
        assert torch.allclose(mine, other, rtol=0, atol=1e-12)


@pytest.mark.parametrize("directions", [ALL[:1], ALL])
def test_a_learnable_scale_gets_its_gradient(directions):
    counts = COUNTS["ragged"]
    tensors = data(counts)
    rows = torch.arange(5).repeat_interleave(torch.tensor(counts))

    def value(scale):
        return F.multiple_negatives_ranking(
            *tensors,
            rows,
            scale=scale,
            directions=directions,
            hardness_mode="in_batch_negatives",
            hardness_strength=1.0,
            tile=2,
        )[0]

    scale = torch.tensor(4.0, dtype=torch.float64, requires_grad=True)
    (found,) = torch.autograd.grad(value(scale), scale)
    with torch.no_grad():
        difference = (value(4.0 + 1e-5) - value(4.0 - 1e-5)) / 2e-5
    assert abs(found) > 1e-3
    assert abs(found - difference) < 1e-8


def test_only_wanted_gradients_are_made():
    counts = [1] * 6
    anchor, positive, negative = data(counts)
    anchor.requires_grad_()
    value = create_loss("mnrl")(Embeddings.of(anchor=anchor, positive=positive, negative=negative)).total
    kept = value.grad_fn.next_functions[0][0].saved_tensors  # nan_unless_finite is added to the kernel's output
    assert [tuple(t.shape) for t in kept] == [(6, 4)]
    value.backward()
    assert anchor.grad.abs().max() > 1e-3
    assert positive.grad is None
    with torch.no_grad():
        silent = create_loss("mnrl")(Embeddings.of(anchor=anchor, positive=positive, negative=negative)).total
    assert not silent.requires_grad
    assert silent == value


def test_a_second_backward_through_the_gradient_is_refused():
    anchor, positive, _ = leaves_of(data([0] * 4))
    value = create_loss("mnrl")(Embeddings.of(anchor=anchor, positive=positive)).total
    (gradient,) = torch.autograd.grad(value, anchor, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_a_well_trained_model_keeps_its_digits():
    """log-sum-exp minus positive cancels in float32 when the loss is small; what is used does not."""
    g = torch.Generator().manual_seed(0)
    anchor = torch.nn.functional.normalize(torch.randn(32, 64, generator=g, dtype=torch.float64), dim=1)
    positive = anchor + 0.01 * torch.randn(32, 64, generator=g, dtype=torch.float64)
    found = []
    for dtype in (torch.float32, torch.float64):
        leaf = anchor.to(dtype).requires_grad_()
        value = create_loss("mnrl", scale=30.0)(Embeddings.of(anchor=leaf, positive=positive.to(dtype))).total
        found.append((value.double(), gradients(value, [leaf])[0].double()))
    (value, gradient), (wanted, wanted_gradient) = found
    assert 0 < wanted < 1e-6
    assert abs(value / wanted - 1) < 1e-4
    assert (gradient - wanted_gradient).norm() / wanted_gradient.norm() < 1e-4


@pytest.mark.parametrize("name", ["cosine", "euclidean"])
def test_masks_of_equal_texts(name):
    """Row 1's positive is row 0's, row 3's anchor is row 2's, and row 4 has a copy of its positive as hard negative."""
    counts = [1, 1, 1, 1, 1]
    anchor, positive, negative = data(counts)
    positive[1], anchor[3], negative[4] = positive[0], anchor[2], positive[4]
    ids = {
        "anchor": torch.tensor([10, 11, 12, 12, 14]),
        "positive": torch.tensor([20, 20, 22, 23, 24]),
        "negative": torch.tensor([30, 31, 32, 33, 24]),
    }
    loss = create_loss("mnrl", scale=2.0, directions=list(ALL), mask_same_text=True, similarity_fct=name)
    terms = []
    q, p, n = wanted_leaves = leaves_of((anchor, positive, negative))
    documents = [(j, ids["positive"][j], p[j]) for j in range(5)] + [(j, ids["negative"][j], n[j]) for j in range(5)]
    for i in range(5):
        own = similarity(name, q[i], p[i])
        candidates = [own]
        for place, (j, text, document) in enumerate(documents):
            if text != ids["positive"][i]:
                candidates.append(similarity(name, q[i], document))
                if j != i:
                    candidates.append(similarity(name, p[i], document))
            assert place != i or text == ids["positive"][i]
        for j in range(5):
            if ids["anchor"][j] != ids["anchor"][i]:
                candidates += [similarity(name, q[i], q[j]), similarity(name, p[i], q[j])]
        candidates.append(own)  # doc_to_query holds the positive once more
        terms.append(log_sum_exp([2.0 * c for c in candidates]) - 2.0 * own)
    wanted = sum(terms) / 5
    leaves = leaves_of((anchor, positive, negative))
    emb = Embeddings.of(**dict(zip(ids, leaves, strict=True))).with_text_ids(**ids)
    found = loss(emb).total
    assert abs(found - wanted) < 1e-10
    wanted_gradients = gradients(wanted, wanted_leaves)
    assert min(g.abs().max() for g in wanted_gradients) > 1e-3
    for mine, other in zip(gradients(found, leaves), wanted_gradients, strict=True):
        assert torch.allclose(mine, other, rtol=0, atol=1e-10)
    plain = create_loss("mnrl", scale=2.0, directions=list(ALL), similarity_fct=name)(emb).total
    assert plain > found + 1e-3
    with pytest.raises(EmbedlossError, match="with_text_ids"):
        loss(Embeddings.of(**dict(zip(ids, leaves, strict=True))))


def test_all_rows_one_text_leaves_nothing_when_masked():
    same = torch.ones(4, 3, dtype=torch.float64)
    leaf = same.clone().requires_grad_()
    ids = torch.zeros(4, dtype=torch.int64)
    emb = Embeddings.of(anchor=leaf, positive=same).with_text_ids(anchor=ids, positive=ids)
    output = create_loss("mnrl(mask_same_text=True)")(emb)
    output.total.backward()
    assert output.total == 0
    assert output.metrics["active"] == 0
    assert leaf.grad.abs().max() == 0
    assert abs(create_loss("mnrl")(emb).total - math.log(4)) < 1e-12


def test_invariances():
    counts = COUNTS["ragged"]
    anchor, positive, negative = data(counts)
    loss = create_loss("mnrl", directions=list(ALL), hardness_mode="all_negatives", hardness_strength=1.0)
    value = loss(wrapped(anchor, positive, negative, counts)).total
    scaled = loss(wrapped(anchor * 3, positive * 0.2, negative * 7, counts)).total
    assert abs(scaled - value) < 1e-12
    rotation = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))).Q
    assert abs(loss(wrapped(anchor @ rotation, positive @ rotation, negative @ rotation, counts)).total - value) < 1e-12
    order = [3, 0, 4, 2, 1]
    shuffled = torch.cat([negative.split(counts)[i] for i in order])
    assert abs(loss(wrapped(anchor[order], positive[order], shuffled, [counts[i] for i in order])).total - value) < 1e-12


def test_edges():
    one = create_loss("mnrl")
    anchor, positive, negative = data([1])
    leaf = anchor.clone().requires_grad_()
    output = one(Embeddings.of(anchor=leaf, positive=positive))
    output.total.backward()
    assert output.total == 0
    assert output.metrics["active"] == 0
    assert leaf.grad.abs().max() == 0
    assert one(Embeddings.of(anchor=anchor, positive=positive, negative=negative)).total > 1e-6
    assert (
        abs(create_loss("mnrl", directions=list(ALL))(Embeddings.of(anchor=anchor, positive=positive)).total - math.log(2))
        < 1e-12
    )
    # No row has a negative, with lists for them.
    empty = one(Embeddings.of(anchor=anchor, positive=positive, negative=[torch.zeros(0, 4, dtype=torch.float64)]))
    assert empty.total == 0
    zeros = torch.zeros(3, 4, dtype=torch.float64, requires_grad=True)
    value = one(Embeddings.of(anchor=zeros, positive=torch.ones(3, 4, dtype=torch.float64))).total
    assert abs(value - math.log(3)) < 1e-12
    assert gradients(value, [zeros])[0].abs().max() == 0


@pytest.mark.parametrize("name", ["cosine", "dot", "euclidean", "manhattan"])
@pytest.mark.parametrize("role", [0, 1, 2])
def test_nan_is_never_hidden(name, role):
    for negatives in ("both", "in-batch"):
        for counts in ([1], [1, 1, 1]):
            tensors = data(counts)
            tensors[role][0, 0] = float("nan")
            loss = create_loss("mnrl", similarity_fct=name, negatives=negatives)
            assert loss(wrapped(*tensors, counts)).total.isnan()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    tensors = data([1] * 4, dtype=dtype)
    leaves = leaves_of(tensors)
    value = create_loss("mnrl")(wrapped(*leaves, [1] * 4)).total
    assert value.dtype == torch.float32
    assert abs(value - create_loss("mnrl")(wrapped(*[t.float() for t in tensors], [1] * 4)).total) < 1e-6
    assert all(g.isfinite().all() and g.abs().max() > 0 for g in gradients(value, leaves))


# -- GIST ---------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", COUNTS)
@pytest.mark.parametrize("strategy", ["absolute", "relative"])
@pytest.mark.parametrize("margin", [0.0, 0.2, -0.3])
@pytest.mark.parametrize("anchors", [True, False])
@pytest.mark.parametrize("positives", [True, False])
def test_gist(kind, strategy, margin, anchors, positives):
    counts = COUNTS[kind]
    tensors, guides = data(counts, seed=1), data(counts, dim=3, seed=5)
    settings = {"temperature": 0.3, "margin": margin, "contrast_anchors": anchors, "contrast_positives": positives}
    loss = create_loss("gist", guide="guide", margin_strategy=strategy, **settings)

    def guided(emb):
        return loss(emb.with_guide(wrapped(*guides, counts)))

    def definition(a, p, n):
        split = [list(part) for part in guides[2].split(counts)]
        return gist(a, p, n, guides[0], guides[1], split, 0.3, margin, strategy, anchors, positives)

    assert_same(guided, definition, tensors, counts)


@pytest.mark.parametrize("tile", [1, 3, 50])
def test_gist_in_tiles_and_ranges(tile):
    counts = [1] * 8
    tensors, guides = leaves_of(data(counts)), data(counts, dim=3, seed=5)
    judge = dict(zip(("anchor", "positive", "negative"), guides, strict=True))
    settings = {"scale": 5.0, "directions": ("query_to_query", "positive_to_positive")}
    settings["masks"] = closer(judge, "cosine", lambda found: found)
    whole, _ = F.multiple_negatives_ranking(*tensors, torch.arange(8), **settings)
    wanted = gradients(whole, tensors)
    assert min(g.abs().max() for g in wanted) > 1e-3
    parts = [
        F.multiple_negatives_ranking(*tensors, torch.arange(8), scored=Scored(b, e, 8), tile=tile, **settings)[0]
        for b, e in ((0, 5), (5, 8))
    ]
    assert abs(sum(parts) - whole) < 1e-12
    for mine, other in zip(gradients(sum(parts), tensors), wanted, strict=True):
        assert torch.allclose(mine, other, rtol=0, atol=1e-12)


def guided(loss, tensors, guides):
    roles = ("anchor", "positive", "negative")
    emb = Embeddings.of(**dict(zip(roles, tensors, strict=False)))
    return loss(emb.with_guide(Embeddings.of(**dict(zip(roles, guides, strict=False)))))


def test_gist_is_softmax_when_the_guide_drops_nothing():
    tensors, guides = data([1] * 6), data([1] * 6, dim=3)
    loss = create_loss("gist", guide="g", temperature=0.1, margin=-10.0, contrast_anchors=False, contrast_positives=False)
    assert abs(guided(loss, tensors, guides).total - create_loss("mnrl", scale=10.0)(wrapped(*tensors, [1] * 6)).total) < 1e-12


def test_gist_when_the_guide_drops_everything():
    tensors, guides = leaves_of(data([1] * 6)), data([1] * 6, dim=3)
    output = guided(create_loss("gist", guide="g", margin=10.0), tensors, guides)
    assert output.total == 0
    assert output.metrics["active"] == 0
    assert all(g.abs().max() == 0 for g in gradients(output.total, tensors))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gist_never_drops_a_copy_of_the_positive_for_rounding(dtype):
    """Not at margin 0: the guide finds the copy exactly as close, whatever the last digits of two products say."""
    g = torch.Generator().manual_seed(0)
    for dim in (3, 17, 384):
        guide = torch.randn(40, dim, generator=g, dtype=dtype)
        copies = torch.randn(1, dim, generator=g, dtype=dtype).repeat(40, 1)
        anchor, positive = torch.randn(2, 40, 8, generator=g, dtype=dtype)
        loss = create_loss("gist", guide="g", temperature=1.0, contrast_anchors=False, contrast_positives=False)
        found = guided(loss, (anchor, positive), (guide, copies)).total
        wanted = create_loss("mnrl", scale=1.0)(Embeddings.of(anchor=anchor, positive=positive)).total
        assert abs(found - wanted) < 1e-5


def test_gist_says_when_the_guide_is_broken_or_absent():
    tensors, guides = data([1] * 4), data([1] * 4)
    loss = create_loss("gist", guide="g")
    for role in range(3):
        broken = [t.clone() for t in guides]
        broken[role][2, 1] = float("nan")
        assert guided(loss, tensors, broken).total.isnan()
    with pytest.raises(EmbedlossError, match="guide"):
        loss(Embeddings.of(anchor=tensors[0], positive=tensors[1]))
    with pytest.raises(EmbedlossError, match="the guide has 3 embeddings of role 'anchor', the model 4"):
        guided(loss, tensors, [t[:3] for t in guides])


def test_gist_names_its_guide_and_never_owns_it():
    guide = nn.Linear(2, 2)
    loss = losses.GISTEmbedLoss(guide, guide_prompt="query: ")
    assert loss.guide is guide
    assert not list(loss.parameters())
    assert not loss.state_dict()
    assert loss.requires().guides == (guide,)
    assert loss.requires().guide_prompts == {guide: "query: "}
    assert not loss.requires().recompute
    assert create_loss("cached_gist(guide='x')").requires().recompute
    named = create_loss("gist(guide='folder', margin=0.1)")
    assert named.to_expression() == "gist_embed(guide='folder', margin=0.1)"
    assert pickle.loads(pickle.dumps(named)).guide == "folder"


# -- mega-batch margin --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("rows", [1, 2, 7])
@pytest.mark.parametrize("size", [1, 3, 50])
@pytest.mark.parametrize("mini_batched", [True, False])
def test_mega_batch_margin(rows, size, mini_batched):
    loss = create_loss("mega-batch", use_mini_batched_version=mini_batched, mini_batch_size=size, negative_margin=-0.2)
    assert_same(loss, lambda a, p, _: mega_batch(a, p, 0.8, -0.2), data([0] * rows, seed=6), [0] * rows)


def test_mega_batch_margin_edges():
    loss = create_loss("mega-batch")
    zeros = torch.zeros(3, 4, dtype=torch.float64, requires_grad=True)
    value = loss(Embeddings.of(anchor=zeros, positive=torch.ones(3, 4, dtype=torch.float64))).total
    assert abs(value - 0.8) < 1e-12
    assert gradients(value, [zeros])[0].abs().max() == 0
    eye = torch.eye(4, dtype=torch.float64, requires_grad=True)
    output = loss(Embeddings.of(anchor=eye, positive=eye.detach()))
    assert output.total == 0
    assert output.metrics["active"] == 0
    bad = torch.randn(3, 4)
    bad[1, 1] = float("nan")
    assert loss(Embeddings.of(anchor=torch.randn(3, 4), positive=bad)).total.isnan()


# -- names, parameters, errors ------------------------------------------------------------------------------------------------
def test_cached_and_symmetric_names():
    anchor, positive, negative = data([1] * 5)
    emb = Embeddings.of(anchor=anchor, positive=positive, negative=negative)
    cached = create_loss("cached_mnrl(scale=5)")
    assert cached.requires().recompute
    assert cached(emb).total == create_loss("mnrl(scale=5)")(emb).total
    with pytest.warns(UserWarning, match="chunks are the encoder's"):
        assert create_loss("cached_mnrl(mini_batch_size=16)").mini_batch_size == 16
    assert create_loss("mnrl").requires().recompute is False
    wanted = create_loss("mnrl(directions=['query_to_doc', 'doc_to_query'], partition_mode='per_direction')")(emb).total
    for name, replacement in (("mnsrl", "multiple_negatives_ranking"), ("cmnsrl", "cached_multiple_negatives_ranking")):
        with pytest.warns(FutureWarning, match=re.escape(f"Type: {replacement}(directions=")):
            loss = create_loss(name)
        assert loss(emb).total == wanted
        assert loss.requires().recompute is name.startswith("c")
        assert create_loss(loss.spec.deprecated_by)(emb).total == wanted


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("mnrl(scale=0)", "scale must be above 0"),
        ("mnrl(scale=-1)", "scale must be above 0"),
        ("mnrl(directions=[])", "must contain query_to_doc"),
        ("mnrl(directions=['doc_to_query'])", "must contain query_to_doc"),
        ("mnrl(directions=['query_to_doc', 'up'])", "directions must be one of query_to_doc"),
        ("mnrl(partition_mode='both')", "partition_mode must be one of joint, per_direction"),
        ("mnrl(directions=['query_to_doc', 'doc_to_doc'], partition_mode='per_direction')", "lack the positive"),
        ("mnrl(hardness_mode='all')", "hardness_mode must be one of"),
        ("mnrl(hardness_strength=-1)", "hardness_strength must be at least 0"),
        ("mnrl(similarity_fct='cosine2')", "similarity_fct must be one of cosine, dot, euclidean, manhattan"),
        ("mnrl(negatives='some')", "negatives must be one of both, own, in-batch"),
        ("mnrl(negatives='own', mask_same_text=True)", "negatives='own' uses no other rows"),
        ("mnrl(gather_across_devices=True)", "has no parameter 'gather_across_devices'"),
        ("gist(guide='')", "guide must name a model"),
        ("gist()", "guide"),
        ("gist(guide='g', temperature=0)", "temperature must be above 0"),
        ("gist(guide='g', margin_strategy='ratio')", "margin_strategy must be one of absolute, relative"),
        ("mega_batch(positive_margin=2)", "positive_margin must be a cosine, so in [-1, 1]"),
        ("mega_batch(mini_batch_size=0)", "mini_batch_size must be a positive integer"),
    ],
)
def test_wrong_parameters_are_refused(expression, message):
    with pytest.raises(EmbedlossError, match=re.escape(message)) as found:
        create_loss(expression)
    assert found.value.code == "E203"


def test_wrong_inputs_are_refused():
    anchor, positive, negative = data([1] * 3)
    with pytest.raises(EmbedlossError, match="takes no label"):
        create_loss("mnrl")(Embeddings.of(anchor=anchor, positive=positive), torch.ones(3))
    with pytest.raises(EmbedlossError, match="takes anchor, positive"):
        create_loss("mega-batch")(Embeddings.of(anchor=anchor, positive=positive, negative=negative))
    with pytest.raises(EmbedlossError, match="needs hard negatives"):
        create_loss("mnrl(negatives='own')")(Embeddings.of(anchor=anchor, positive=positive))


def test_hardness_without_strength_is_warned_about():
    with pytest.warns(UserWarning, match="no effect"):
        create_loss("mnrl(hardness_mode='all_negatives')")


def test_parameters_survive_the_expression():
    text = (
        "multiple_negatives_ranking(scale=15, similarity_fct='dot', directions=('query_to_doc', 'doc_to_query'), "
        "partition_mode='per_direction', hardness_mode='hard_negatives', hardness_strength=5, mask_same_text=True)"
    )
    loss = create_loss(text)
    assert loss.to_expression() == text
    assert create_loss("mnrl(directions=['query_to_doc'])").to_expression() == "multiple_negatives_ranking()"


def test_specs():
    mine = {spec.name for spec in SPECS}
    assert {spec.name for spec in list_losses(family="ranking")} == mine
    headings = ["Formula", "Inputs", "Parameters", "When to use it", "Relations", "Example"]
    for spec in SPECS:
        assert spec.citation
        assert [h for h in headings if f"**{h}**" in spec.doc] == headings
        assert spec.load().__name__ == spec.target.partition(":")[2]


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_the_example_of_the_page_runs(spec):
    found = re.findall(r"```python\n(.*?)```", spec.doc, re.S)
    assert len(found) == 1
    exec(found[0], {})


CONFORMING = [spec.name if not spec.example else spec.example for spec in SPECS if not spec.name.startswith("cached")]
TWICE = {"nothing_to_learn": "the positive is in the sum twice, as published, so one row alone gives log 2"}


@pytest.mark.filterwarnings("ignore::FutureWarning")
@parametrize_with_checks(CONFORMING)
def test_conformance(case, check):
    check(case)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@parametrize_with_checks(
    ["mnrl(directions=['query_to_doc', 'query_to_query', 'doc_to_query', 'doc_to_doc'])"], expected_failures=TWICE
)
def test_conformance_of_all_directions(case, check):
    check(case)
