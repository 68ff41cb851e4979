"""The ranking losses against sentence-transformers, value and gradient with respect to every embedding."""

from __future__ import annotations

import itertools
import random
import warnings

import pytest
import torch
from torch import nn

from embedloss import Embeddings, create_loss
from embedloss.embeddings import Scores

pytest.importorskip("sentence_transformers")
from sentence_transformers import util
from sentence_transformers.cross_encoder import losses as cross_peer
from sentence_transformers.sentence_transformer import losses as peer

torch.set_num_threads(1)

FUNCTIONS = {"cosine": util.cos_sim, "dot": util.dot_score, "euclidean": util.euclidean_sim, "manhattan": util.manhattan_sim}
SCALES = {"cosine": 20.0, "dot": 0.5, "euclidean": 2.0, "manhattan": 0.5}
ALL = ("query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc")
DIRECTIONS = [("query_to_doc", *rest) for n in range(4) for rest in itertools.combinations(ALL[1:], n)]
PARTITIONS = [(d, "joint") for d in DIRECTIONS] + [(d, "per_direction") for d in (ALL[:1], ("query_to_doc", "doc_to_query"))]
HARDNESS = [(None, 0.0), ("in_batch_negatives", 9.0), ("hard_negatives", 5.0), ("all_negatives", 2.0)]
ROWS = [1, 2, 7, 64]
TYPES = [torch.float64, torch.float32]


# Relative to the loss where it is above 1, and to the largest entry of the gradients where it is above a floor. In batches of
# one and two rows gradients are sums of terms of size `scale` that cancel nearly or wholly, and float32 leaves 4e-6 of these,
# ours and theirs; so the floor is higher there.
def floor(rows):
    return 1.0 if rows < 7 else 1e-2


TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-5}


class Ready(nn.Module):
    """A model of ready embeddings, and enough of a tokenizer for a loss that insists on one."""

    max_seq_length = 512

    def __init__(self):
        super().__init__()
        from transformers import PreTrainedTokenizerFast

        self.tokenizer = PreTrainedTokenizerFast(tokenizer_object=_tokenizer())

    def __getitem__(self, index):
        return self

    def forward(self, features):
        return {"sentence_embedding": features["x"]}


class Guide(Ready):
    def forward(self, features):
        return {"sentence_embedding": features["guide"]}


def _tokenizer():
    from tokenizers import Tokenizer, models

    return Tokenizer(models.WordLevel({"a": 0}, "a"))


def data(rows, columns, dtype, dim=8, seed=0):
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(rows, dim, generator=g, dtype=torch.float64).to(dtype) for _ in range(columns)]


def leaves_of(tensors):
    return [t.clone().requires_grad_() for t in tensors]


def embeddings(tensors):
    roles = {"anchor": tensors[0], "positive": tensors[1]}
    if len(tensors) == 3:
        roles["negative"] = tensors[2]
    if len(tensors) > 3:
        roles["negative"] = torch.stack(tensors[2:], 1)
    return Embeddings.of(**roles)


def value_and_gradients(function, tensors):
    leaves = leaves_of(tensors)
    value = function(leaves)
    gradients = torch.autograd.grad(value, leaves, allow_unused=True)
    return value.detach(), [torch.zeros_like(x) if g is None else g for g, x in zip(gradients, leaves, strict=True)]


def both(mine, theirs, tensors):
    """(value, gradients) of each, from functions of leaves."""
    return value_and_gradients(mine, tensors), value_and_gradients(theirs, tensors)


def assert_equal(mine, theirs, tensors):
    """In float32 theirs loses digits where the loss is small (it subtracts two numbers that are not), so both are held to
    their float64, and to each other as far as theirs is right.

    Returns:
        The largest entry of a gradient, so that a test can say that something was compared.
    """
    (value, gradients), (wanted, wanted_gradients) = both(mine, theirs, tensors)
    tolerance = TOLERANCE[tensors[0].dtype]
    largest = max(float(g.abs().max()) for g in wanted_gradients)
    exact, exact_gradients = wanted, wanted_gradients
    if tensors[0].dtype == torch.float32:
        exact, exact_gradients = value_and_gradients(theirs, [t.double() for t in tensors])
    for found, other, right, size in (
        (value, wanted, exact, max(1.0, float(wanted.abs()))),
        *zip(gradients, wanted_gradients, exact_gradients, [max(largest, floor(len(tensors[0])))] * len(tensors), strict=True),
    ):
        assert (found - right).abs().max() <= tolerance * size
        assert ((found - other).abs() <= tolerance * size + (other - right).abs()).all()
    return largest


def record(record_property, name, dtype, *more):
    kind = "float64" if dtype == torch.float64 else "float32"
    for check in (f"value {kind}", f"gradient {kind}", *more):
        record_property("parity", (name, check))


# -- multiple negatives ranking -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("columns", [2, 3, 5])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_multiple_negatives_ranking(record_property, name, columns, rows, dtype):
    if name == "euclidean" and dtype == torch.float32:
        pytest.skip("the two take float32 distances by different formulas; see the next test")
    record(record_property, "multiple-negatives-ranking", dtype)
    moved = 0.0
    for seed, ((directions, partition), (hardness, alpha)) in enumerate(itertools.product(PARTITIONS, HARDNESS)):
        settings = {"scale": SCALES[name], "directions": directions, "partition_mode": partition}
        settings |= {"hardness_mode": hardness, "hardness_strength": alpha}
        loss = create_loss("mnrl", similarity_fct=name, **settings)
        theirs = peer.MultipleNegativesRankingLoss(None, similarity_fct=FUNCTIONS[name], **settings)
        moved += assert_equal(
            lambda x, loss=loss: loss(embeddings(x)).total,
            lambda x, theirs=theirs: theirs.compute_loss_from_embeddings(x, None),
            data(rows, columns, dtype, seed=seed),
        )
    assert moved > 1e-3 or (rows == 1 and columns == 2)


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("columns", [2, 3])
def test_euclidean_in_float32_is_as_near_to_float64_as_theirs(record_property, rows, columns):
    record(record_property, "multiple-negatives-ranking", torch.float32)
    loss = create_loss("mnrl", similarity_fct="euclidean", scale=2.0)
    theirs = peer.MultipleNegativesRankingLoss(None, similarity_fct=util.euclidean_sim, scale=2.0)
    for seed in range(10):
        exact = data(rows, columns, torch.float64, seed=seed)
        functions = (lambda x: loss(embeddings(x)).total), (lambda x: theirs.compute_loss_from_embeddings(x, None))
        _, (wanted, wanted_gradients) = both(*functions, exact)
        for value, gradients in both(*functions, [t.float() for t in exact]):
            assert abs(value - wanted) < 1e-5 * max(1.0, float(wanted))
            for own, other in zip(gradients, wanted_gradients, strict=True):
                assert (own - other).abs().max() < 1e-5 * max(1.0, float(other.abs().max()))


@pytest.mark.parametrize("dtype", TYPES)
def test_at_the_size_of_a_real_model(record_property, dtype):
    record(record_property, "multiple-negatives-ranking", dtype)
    loss, theirs = create_loss("mnrl", directions=list(ALL)), peer.MultipleNegativesRankingLoss(None, directions=ALL)
    tensors = data(300, 3, dtype, dim=384)
    tensors = [tensors[0], tensors[0] + 0.5 * tensors[1], tensors[2]]
    assert_equal(lambda x: loss(embeddings(x)).total, lambda x: theirs.compute_loss_from_embeddings(x, None), tensors)


def test_multiple_negatives_ranking_edges(record_property):
    record_property("parity", ("multiple-negatives-ranking", "edges"))
    tensors = data(4, 3, torch.float64)
    same = [t[:1].repeat(4, 1) for t in tensors]
    for case in ([t[:1] for t in tensors], same, [tensors[0], tensors[0], tensors[2]], [t * 1e6 for t in tensors]):
        for directions in (ALL[:1], ALL):
            loss = create_loss("mnrl", directions=list(directions))
            theirs = peer.MultipleNegativesRankingLoss(None, directions=directions)
            assert_equal(
                lambda x, f=loss: f(embeddings(x)).total, lambda x, f=theirs: f.compute_loss_from_embeddings(x, None), case
            )
    for refused in ({"scale": 0}, {"directions": ()}, {"directions": ("doc_to_doc",)}, {"hardness_strength": -1.0}):
        with pytest.raises(ValueError):
            peer.MultipleNegativesRankingLoss(None, **refused)
        with pytest.raises(Exception, match="E203"):
            create_loss("mnrl", **{k: list(v) if isinstance(v, tuple) else v for k, v in refused.items()})


def test_a_zero_vector_has_no_gradient(record_property):
    """Normalising by a floor of 1e-12 gives a zero vector a gradient of 1e12; clipping it loses the step."""
    record_property("parity", ("multiple-negatives-ranking", "differs on purpose"))
    tensors = data(4, 2, torch.float64)
    tensors[0][1] = 0
    loss, theirs = create_loss("mnrl"), peer.MultipleNegativesRankingLoss(None)
    functions = (lambda x: loss(embeddings(x)).total), (lambda x: theirs.compute_loss_from_embeddings(x, None))
    (value, (gradient, _)), (wanted, (their_gradient, _)) = both(*functions, tensors)
    assert abs(value - wanted) < 1e-10
    assert gradient[1].abs().max() == 0
    assert their_gradient[1].norm() > 1e11
    assert torch.allclose(gradient[[0, 2, 3]], their_gradient[[0, 2, 3]], rtol=0, atol=1e-10)
    assert gradient[0].abs().max() > 1e-3


# -- cached and symmetric names -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("columns", [2, 3, 4])
def test_cached_multiple_negatives_ranking(record_property, rows, columns, dtype):
    record(record_property, "cached-multiple-negatives-ranking", dtype)
    for directions, hardness in ((ALL[:1], (None, 0.0)), (ALL, ("all_negatives", 2.0))):
        settings = {"scale": 10.0, "directions": directions, "hardness_mode": hardness[0], "hardness_strength": hardness[1]}
        theirs = peer.CachedMultipleNegativesRankingLoss(Ready(), mini_batch_size=3, **settings)
        check_cached(create_loss("cached_mnrl", **settings), theirs, data(rows, columns, dtype))


def check_cached(loss, theirs, tensors):
    """Their losses work on mini-batches of embeddings."""

    def chunks(x):
        return theirs.calculate_loss([list(t.split(3)) for t in x])

    return assert_equal(lambda x: loss(embeddings(x)).total, chunks, tensors)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("cached", [False, True])
def test_symmetric(record_property, cached, name, rows, dtype):
    if name == "euclidean" and dtype == torch.float32:
        pytest.skip("covered by the test of the plain loss")
    record(record_property, "cached-" * cached + "multiple-negatives-symmetric-ranking", dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loss = create_loss("cmnsrl" if cached else "mnsrl", scale=SCALES[name], similarity_fct=name)
        make = peer.CachedMultipleNegativesSymmetricRankingLoss if cached else peer.MultipleNegativesSymmetricRankingLoss
        theirs = make(Ready(), scale=SCALES[name], similarity_fct=FUNCTIONS[name])
    moved = 0.0
    for columns in (2, 3):
        tensors = data(rows, columns, dtype)
        if cached:
            moved += check_cached(loss, theirs, tensors)
        else:
            moved += assert_equal(
                lambda x: loss(embeddings(x)).total,
                lambda x: theirs.compute_loss_from_embeddings(x, None),
                tensors,
            )

    assert moved > 1e-3 or rows == 1


# -- GIST ---------------------------------------------------------------------------------------------------------------------
def gist_pair(tensors, guides, **settings):
    loss = create_loss("gist", guide="guide", **settings)
    theirs = peer.GISTEmbedLoss(Ready(), Guide(), **settings)
    return (
        lambda x: loss(embeddings(x).with_guide(embeddings(guides))).total,
        lambda x: theirs([{"x": t, "guide": g} for t, g in zip(x, guides, strict=True)], None),
    )


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("columns", [2, 3])
@pytest.mark.parametrize("strategy", ["absolute", "relative"])
def test_gist(record_property, strategy, columns, rows, dtype):
    record(record_property, "gist-embed", dtype)
    moved = 0.0
    for seed, (margin, anchors, positives, temperature) in enumerate(
        itertools.product([0.0, 0.1, -0.2], [True, False], [True, False], [0.01, 0.3])
    ):
        settings = {"margin_strategy": strategy, "margin": margin, "temperature": temperature}
        settings |= {"contrast_anchors": anchors, "contrast_positives": positives}
        tensors, guides = data(rows, columns, dtype, seed=seed), data(rows, columns, dtype, dim=16, seed=100 + seed)
        # From 1 on, they let a text be its own negative; see below.
        assert below_one(guides, margin, strategy)
        moved += assert_equal(*gist_pair(tensors, guides, **settings), tensors)
    assert moved > 1e-3 or rows == 1


def below_one(guides, margin, strategy):
    cosine = torch.nn.functional.cosine_similarity(guides[0], guides[1])
    return bool((cosine - (cosine.abs() * margin if strategy == "relative" else margin) < 1).all())


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("columns", [2, 3, 5])
def test_cached_gist(record_property, columns, rows, dtype):
    record(record_property, "cached-gist-embed", dtype)
    moved = 0.0
    for strategy, margin in itertools.product(["absolute", "relative"], [0.0, 0.1]):
        settings = {"margin_strategy": strategy, "margin": margin, "temperature": 0.1}
        tensors, guides = data(rows, columns, dtype), data(rows, columns, dtype, dim=5, seed=9)
        loss = create_loss("cached_gist", guide="guide", **settings)
        theirs = peer.CachedGISTEmbedLoss(Ready(), Guide(), **settings, mini_batch_size=3)
        split = [list(g.split(3)) for g in guides]
        moved += assert_equal(
            lambda x, f=loss, g=guides: f(embeddings(x).with_guide(embeddings(g))).total,
            lambda x, f=theirs, g=split: f.calculate_loss([list(t.split(3)) for t in x], g),
            tensors,
        )
    assert moved > 1e-3 or rows == 1


def test_gist_edges(record_property):
    record_property("parity", ("gist-embed", "edges"))
    tensors, guides = data(6, 2, torch.float64), data(6, 2, torch.float64, dim=5, seed=3)
    dropped = gist_pair(tensors, guides, margin=5.0)
    (value, gradients), (wanted, _) = both(*dropped, tensors)
    assert value == wanted == 0
    assert all(g.abs().max() == 0 for g in gradients)
    copies = [guides[0], guides[1][:1].repeat(6, 1)]  # every row's positive is the same text: none is dropped for rounding
    settings = {"contrast_anchors": False, "contrast_positives": False, "temperature": 0.1}
    assert_equal(*gist_pair(tensors, copies, **settings), tensors)


def test_a_text_is_never_its_own_negative(record_property):
    """With a guide that gives the positive a cosine of 1, their anchors and positives become negatives of themselves."""
    record_property("parity", ("gist-embed", "differs on purpose"))
    tensors, guides = data(6, 2, torch.float64), data(6, 1, torch.float64, dim=5, seed=3) * 2
    mine, theirs = gist_pair(tensors, guides, margin=-0.01, temperature=0.1)
    (value, gradients), (other, _) = both(mine, theirs, tensors)
    cosines = [[torch.nn.functional.cosine_similarity(x[:, None], y[None], dim=2) for y in tensors] for x in tensors]
    off = torch.eye(6, dtype=torch.bool)
    logits = torch.cat([cosines[0][1], *(cosines[k][k].masked_fill(off, -torch.inf) for k in (0, 1))], 1) / 0.1
    assert abs(value - torch.nn.functional.cross_entropy(logits, torch.arange(6))) < 1e-10
    with_itself = torch.cat([cosines[0][1], cosines[0][0], cosines[1][1]], 1) / 0.1
    assert abs(other - torch.nn.functional.cross_entropy(with_itself, torch.arange(6))) < 1e-8
    assert other > value + 0.1
    assert max(g.abs().max() for g in gradients) > 1e-3


def test_a_broken_guide_is_seen(record_property):
    record_property("parity", ("gist-embed", "differs on purpose"))
    tensors, guides = data(6, 2, torch.float64), data(6, 2, torch.float64, dim=5, seed=3)
    guides[0][2] = float("nan")
    (value, _), (other, _) = both(*gist_pair(tensors, guides), tensors)
    assert value.isnan()
    assert other.isfinite()


def test_gist_takes_n_tuples(record_property):
    """Their plain class refuses four columns, their cached one takes them; ours is the same loss under both names."""
    record_property("parity", ("gist-embed", "differs on purpose"))
    tensors, guides = data(5, 4, torch.float64), data(5, 4, torch.float64, dim=5, seed=3)
    mine, theirs = gist_pair(tensors, guides)
    with pytest.raises(ValueError, match="Expected 2 or 3 embeddings"):
        theirs(tensors)
    cached = peer.CachedGISTEmbedLoss(Ready(), Guide())
    assert_equal(mine, lambda x: cached.calculate_loss([[t] for t in x], [[g] for g in guides]), tensors)


# -- mega-batch margin --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("mini_batched", [True, False])
def test_mega_batch_margin(record_property, mini_batched, rows, dtype):
    record(record_property, "mega-batch-margin", dtype)
    moved = 0.0
    for seed, (positive, negative, size) in enumerate(itertools.product([0.8, 0.1], [0.3, -0.4], [50, 3])):
        settings = {"positive_margin": positive, "negative_margin": negative, "mini_batch_size": size}
        loss = create_loss("mega-batch", use_mini_batched_version=mini_batched, **settings)
        theirs = peer.MegaBatchMarginLoss(Ready(), use_mini_batched_version=False, **settings)
        moved += assert_equal(
            lambda x, f=loss: f(embeddings(x)).total,
            lambda x, f=theirs: f([{"x": t} for t in x], None),
            data(rows, 2, dtype, seed=seed),
        )
    assert moved > 1e-3 or rows == 1


def test_mega_batch_margin_edges(record_property):
    record_property("parity", ("mega-batch-margin", "edges"))
    tensors = data(5, 2, torch.float64)
    zeros = [torch.zeros_like(tensors[0]), tensors[1]]
    loss, theirs = create_loss("mega-batch"), peer.MegaBatchMarginLoss(Ready(), use_mini_batched_version=False)
    functions = (lambda x: loss(embeddings(x)).total), (lambda x: theirs([{"x": t} for t in x], None))
    for case in ([t[:1] for t in tensors], [t * 1e6 for t in tensors], [tensors[0], tensors[0]]):
        assert_equal(*functions, case)
    (value, gradients), (wanted, their_gradients) = both(*functions, zeros)
    assert value == wanted == 0.8
    assert gradients[0].abs().max() == 0
    assert their_gradients[0].abs().max() > 1e10


# -- cross-encoders -----------------------------------------------------------------------------------------------------------
class PairScores(nn.Module):
    """A stand-in for a cross-encoder whose logit for (query, document) is an entry of a table of leaves."""

    num_labels = 1
    device = torch.device("cpu")

    def __init__(self, table):
        super().__init__()
        self.table = table

    def preprocess(self, pairs, **_):
        return {"pairs": pairs}

    def forward(self, features):
        return {"scores": torch.stack([self.table[pair] for pair in features["pairs"]])[:, None]}


def cross_pair(rows, columns, dtype, name="ce_mnrl", **settings):
    """(ours, theirs) as functions of one leaf (rows, documents): the logit of every query with every document."""
    own = [[f"d{j}c{k}" for j in range(rows)] for k in range(columns)]
    documents = [text for column in own for text in column]
    place = {text: i for i, text in enumerate(documents)}
    loss = create_loss(name, **settings)

    def mine(leaves):
        data_rows = [
            {"anchor": f"q{i}", "positive": own[0][i], "negative": [column[i] for column in own[1:]]} for i in range(rows)
        ]
        made, _ = loss.transform(data_rows, "n-tuples", random.Random(0))
        lists = [[row["positive"], *row["negative"]] for row in made]
        index = torch.tensor([[place[text] for text in texts] for texts in lists])
        return loss(Scores.of(leaves[0].gather(1, index))).total

    def theirs(leaves):
        table = {(f"q{i}", text): leaves[0][i, place[text]] for i in range(rows) for text in documents}
        model = PairScores(table)
        activation = {"sigmoid": nn.Sigmoid(), "identity": nn.Identity(), None: None}[settings["activation_fn"]]
        given = {**settings, "activation_fn": activation}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("sentence_transformers.cross_encoder.losses.multiple_negatives_ranking.CrossEncoder", PairScores)
            return cross_peer.MultipleNegativesRankingLoss(model, **given)([[f"q{i}" for i in range(rows)], *own], None)

    return (
        mine,
        theirs,
        [torch.randn(rows, len(documents), generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)],
    )


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("rows", [1, 2, 7, 20])
@pytest.mark.parametrize("columns", [1, 2, 4])
@pytest.mark.parametrize("activation", ["sigmoid", "identity", None])
@pytest.mark.parametrize("name", ["ce_mnrl", "ce_cmnrl"])
def test_cross_multiple_negatives_ranking(record_property, name, activation, columns, rows, dtype):
    """With all in-batch negatives; which ones are drawn otherwise is chance, theirs and ours."""
    record(record_property, "cached-" * (name == "ce_cmnrl") + "cross-multiple-negatives-ranking", dtype)
    moved = 0.0
    for scale in (10.0, 1.0, None):
        *functions, leaves = cross_pair(rows, columns, dtype, name, num_negatives=None, scale=scale, activation_fn=activation)
        moved += assert_equal(*functions, leaves)
        if dtype == torch.float64:
            *functions, leaves = cross_pair(
                rows, columns, dtype, name, num_negatives=1000, scale=scale, activation_fn=activation
            )
            moved += assert_equal(*functions, leaves)
    assert moved > 1e-3 or rows == columns == 1


def test_sampled_candidates_have_the_same_distribution(record_property):
    """The mean over draws: each row's sampled negatives are uniform over the documents of other rows, theirs and ours."""
    record_property("parity", ("cross-multiple-negatives-ranking", "edges"))
    theirs = cross_peer.MultipleNegativesRankingLoss.__new__(cross_peer.MultipleNegativesRankingLoss)
    nn.Module.__init__(theirs)
    theirs.num_negatives = 2
    columns = [[f"d{j}c{k}" for j in range(4)] for k in range(2)]
    rows = [{"anchor": f"q{i}", "positive": columns[0][i], "negative": [columns[1][i]]} for i in range(4)]
    torch.manual_seed(0)
    counts = [dict.fromkeys(columns[0] + columns[1], 0) for _ in range(2)]
    for seed in range(1500):
        for texts in theirs.get_in_batch_negatives(["q"] * 4, columns):
            counts[0][texts[0]] += 1
        for text in create_loss("ce_mnrl(num_negatives=2)").transform(rows, "n-tuples", random.Random(seed))[0][0]["negative"][
            1:
        ]:
            counts[1][text] += 1
    for found in counts:
        assert found["d0c0"] == found["d0c1"] == 0
        assert all(abs(n - 500) < 100 for text, n in found.items() if not text.startswith("d0"))


def test_no_sampled_negatives(record_property):
    record_property("parity", ("cross-multiple-negatives-ranking", "differs on purpose"))
    mine, theirs, leaves = cross_pair(4, 2, torch.float64, num_negatives=0, scale=10.0, activation_fn="sigmoid")
    with pytest.raises(RuntimeError):
        theirs(leaves)
    logits = 10 * torch.stack([leaves[0][:, :4].diagonal(), leaves[0][:, 4:].diagonal()], 1).sigmoid()
    assert abs(mine(leaves) - torch.nn.functional.cross_entropy(logits, torch.zeros(4, dtype=torch.long))) < 1e-12
