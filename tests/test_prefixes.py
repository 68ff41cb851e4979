"""Losses that take all prefixes of `matryoshka` in one pass: the same as one call a size."""

import math

import pytest
import torch

from embedloss import Embeddings, create_loss
from embedloss.products import Dot, Prefixes
from embedloss_modifiers import functional
from embedloss_ranking.losses import GISTEmbedLoss, MultipleNegativesRankingLoss

ROWS, WIDTH = 12, 10
DIMS, WEIGHTS = [10, 2, 7], [1.0, 0.25, 3.0]


def texts(negatives=0, dtype=torch.float64):
    g = torch.Generator().manual_seed(7)
    shapes = {"anchor": (ROWS, WIDTH), "positive": (ROWS, WIDTH)} | (
        {"negative": (ROWS, negatives, WIDTH)} if negatives else {}
    )
    return {role: torch.randn(*shape, generator=g, dtype=dtype).mul(3).requires_grad_() for role, shape in shapes.items()}


def embeddings(leaves, weighted=False):
    g = torch.Generator().manual_seed(8)
    emb = Embeddings.of(**leaves)
    ids = {role: torch.arange(emb.own(role).shape[0]) % 9 for role in leaves}
    emb = emb.with_text_ids(**ids).with_row_ids(torch.arange(ROWS) % 8)
    emb = emb.with_guide(Embeddings.of(**{r: t + torch.randn(t.shape, generator=g) for r, t in leaves.items()}), "guide")
    return emb.with_row_weights(torch.rand(ROWS, generator=g)) if weighted else emb


def apart(loss):
    """The same loss, called once a size: a class with its own `compute` has no `compute_prefixes`."""

    class Apart(type(loss)):
        def compute(self, emb, labels):
            return super().compute(emb, labels)

    loss.__class__ = Apart
    return loss


def both(expression, leaves, weighted=False, **settings):
    """Total, terms, metrics and gradients of `matryoshka` in one pass and one call a size."""
    found = []
    for inside in (create_loss(expression), apart(create_loss(expression))):
        called = []
        inside.register_forward_hook(lambda *_, called=called: called.append(1))
        loss = create_loss("matryoshka(mnrl(), dims=[10, 2, 7])")
        loss.loss, loss.weights = inside, WEIGHTS
        for name, value in settings.items():
            setattr(loss, name, value)
        output = loss(embeddings(leaves, weighted))
        gradients = torch.autograd.grad(output.total, list(leaves.values()))
        found.append((output, gradients, len(called)))
    return found


def assert_equal(found, tolerance=1e-10):
    (one, of_one, _), (many, of_many, _) = found
    assert one.terms.keys() == many.terms.keys()
    assert one.metrics.keys() == many.metrics.keys()
    for a, b in ((one.total, many.total), *((one.terms[k], many.terms[k]) for k in one.terms)):
        assert float(a) == pytest.approx(float(b), rel=tolerance)
    for key in one.metrics:
        assert float(one.metrics[key]) == float(many.metrics[key])
    for a, b in zip(of_one, of_many, strict=True):
        assert b.abs().max() > 1e-3
        assert (a - b).abs().max() <= tolerance * b.abs().max()


SETTINGS = [
    "mnrl()",
    "mnrl(scale=3, similarity_fct='dot')",
    "mnrl(directions=['query_to_doc', 'doc_to_query'])",
    "mnrl(directions=['query_to_doc', 'doc_to_query'], partition_mode='per_direction')",
    "mnrl(directions=['query_to_doc', 'query_to_query', 'doc_to_query', 'doc_to_doc'])",
    "mnrl(hardness_mode='in_batch_negatives', hardness_strength=9)",
    "mnrl(hardness_mode='hard_negatives', hardness_strength=5)",
    "mnrl(hardness_mode='all_negatives', hardness_strength=2)",
    "mnrl(negatives='in-batch')",
    "mnrl(mask_same_text=True)",
    "mnrl(mask_same_id=True)",
    "mnrl(positives='mean')",
    "mnrl(positives='sum')",
    "mnrl(guide='guide', margin=0.1)",
    "cached_mnrl(scale=10)",
    "gist(guide='guide')",
    "gist(guide='guide', contrast_anchors=False, margin=0.05, margin_strategy='relative')",
]


@pytest.mark.parametrize("negatives", [0, 2])
@pytest.mark.parametrize("expression", SETTINGS)
def test_one_pass_is_one_call_a_size(expression, negatives):
    found = both(expression, texts(negatives), weighted="cached" in expression)
    assert [calls for *_, calls in found] == [0, len(DIMS)]
    assert_equal(found)


@pytest.mark.parametrize("rows", [1, 5, 12, 1000])
def test_tiles_change_nothing(rows, monkeypatch):
    monkeypatch.setattr("embedloss.contrast.TILE_ROWS", rows)
    monkeypatch.setattr("embedloss.contrast.TILE_ELEMENTS", 1)
    assert_equal(both(SETTINGS[4], texts(2)))
    assert_equal(both("gist(guide='guide')", texts(2)))
    loss, emb = create_loss("matryoshka(gist(guide='guide'), dims=[10, 2, 7])"), embeddings(texts(2))
    with torch.no_grad():
        alone = loss(emb).total
    assert torch.equal(alone, loss(emb).total)


def test_all_tiles_take_the_same_memory():
    leaves = {role: text.detach() for role, text in texts().items()}
    totals = {role: torch.zeros_like(text) for role, text in leaves.items()}
    one = Dot(leaves["anchor"], leaves["positive"], 1.0, totals["anchor"], totals["positive"])
    several = Prefixes(leaves, totals, [2, 7], [1.0, 1.0], 1.0).product("anchor", "positive")
    for product, levels in ((one, 1), (several, 2)):
        places = set()
        for rows in (slice(0, 5), slice(5, 10), slice(10, 12)):
            for level in range(levels):
                logits = product.logits(level, rows)
                places.add(logits.data_ptr())
                product.take(logits)
            product.finish()
        assert len(places) == levels
    assert totals["positive"].abs().max() > 1e-3


def test_drawn_sizes_and_single_ones():
    leaves = texts()
    found = both("mnrl()", leaves, n_dims_per_step=2)
    assert [calls for *_, calls in found] == [0, 2]
    assert_equal(found)
    assert [calls for *_, calls in both("mnrl()", leaves, n_dims_per_step=1)] == [1, 1]  # nothing to share


@pytest.mark.parametrize(
    "expression",
    ["mnrl(guide='self')", "gist(guide='self')", "mnrl(similarity_fct='euclidean')", "mega_batch_margin()"],
)
def test_what_has_no_common_pass_is_called_once_a_size(expression):
    found = both(expression, texts())
    assert [calls for *_, calls in found] == [len(DIMS), len(DIMS)]
    assert_equal(found)


def test_only_own_negatives_have_no_common_pass():
    found = both("mnrl(negatives='own')", texts(2))
    assert [calls for *_, calls in found] == [len(DIMS), len(DIMS)]
    assert_equal(found)


def test_in_float32_within_its_rounding():
    assert_equal(both("mnrl()", texts(dtype=torch.float32)), tolerance=2e-6)


def test_frozen_texts_and_no_gradient():
    leaves = texts(2)
    whole = torch.autograd.grad(create_loss("matryoshka(mnrl(), dims=[10, 2, 7])")(embeddings(leaves)).total, leaves["anchor"])
    leaves["positive"].requires_grad_(False)
    leaves["negative"].requires_grad_(False)
    loss = create_loss("matryoshka(mnrl(), dims=[10, 2, 7])")
    output = loss(embeddings(leaves))
    found = torch.autograd.grad(output.total, leaves["anchor"])
    assert found[0].abs().max() > 1e-3
    assert torch.equal(found[0], whole[0])
    with torch.no_grad():
        assert torch.equal(loss(embeddings(leaves)).total, output.total)


def test_a_prefix_of_zeros_has_cosine_0_and_gets_no_gradient():
    leaves = texts()
    with torch.no_grad():
        leaves["anchor"][3, :7] = 0
    found = both("mnrl()", leaves)
    assert_equal(found)
    loss = create_loss("matryoshka(mnrl(), dims=[2, 7])")
    (gradient,) = torch.autograd.grad(loss(embeddings(leaves)).total, leaves["anchor"])
    assert gradient[4].abs().max() > 1e-3
    assert gradient[3].abs().max() == 0


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_stays_visible(bad):
    leaves = texts()
    with torch.no_grad():
        leaves["positive"][2, 9] = bad
    output = create_loss("matryoshka(mnrl(), dims=[10, 2, 7])")(embeddings(leaves))
    assert output.total.isnan()
    emb = embeddings(texts())
    with torch.no_grad():
        emb.guide("guide").own("anchor")[0, 0] = bad
    output = create_loss("matryoshka(mnrl(guide='guide'), dims=[10, 2, 7])")(emb)
    assert output.total.isnan()
    assert all(term.isnan() for term in output.terms.values())


def test_masks_are_asked_for_once_a_tile(monkeypatch):
    asked = []
    original = GISTEmbedLoss.masks

    def counting(self, emb):
        found = original(self, emb)

        def masks(left, right):
            mask = found(left, right)
            return lambda begin, end: asked.append((left, right)) or mask(begin, end)

        return masks

    monkeypatch.setattr(GISTEmbedLoss, "masks", counting)
    create_loss("matryoshka(gist(guide='guide'), dims=[10, 2, 7])")(embeddings(texts()))
    assert sorted(asked) == [("anchor", "anchor"), ("anchor", "positive"), ("positive", "positive")]


def test_a_class_with_its_own_compute_is_called():
    class Doubled(MultipleNegativesRankingLoss):
        def compute(self, emb, labels):
            return 2 * super().compute(emb, labels).total

    class Mixin:
        def compute(self, emb, labels):
            return 2 * super().compute(emb, labels).total

    class Mixed(Mixin, MultipleNegativesRankingLoss):
        pass

    emb = embeddings(texts())
    expected = 2 * float(create_loss("matryoshka(mnrl(), dims=[10, 2, 7])")(emb).total)
    loss = create_loss("matryoshka(mnrl(), dims=[10, 2, 7])")
    for inside in (Doubled(), Mixed()):
        loss.loss = inside
        assert float(loss(emb).total) == pytest.approx(expected, rel=1e-10)


def test_the_definition_by_hand():
    leaves = texts()
    emb, total = embeddings(leaves), 0.0
    for dim, weight in zip(DIMS, WEIGHTS, strict=True):
        anchor, positive = (functional.truncate(t.detach(), dim).tolist() for t in leaves.values())
        for i, a in enumerate(anchor):
            scores = [20 * sum(x * y for x, y in zip(a, p, strict=True)) for p in positive]
            total += weight * (math.log(sum(math.exp(s) for s in scores)) - scores[i]) / ROWS
    loss = create_loss(f"matryoshka(mnrl(), dims={DIMS}, weights={WEIGHTS})")
    assert float(loss(emb).total) == pytest.approx(total, rel=1e-10)
