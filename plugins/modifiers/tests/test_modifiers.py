"""The modifiers against plain loops in float64, on small losses defined here."""

import math
import warnings

import pytest
import torch

from embedloss import Embeddings, EmbedlossError, LossSpec, create_loss
from embedloss.embeddings import Scores
from embedloss.loss import Loss, LossOutput, ModelInfo, Requirements, ScoreLoss, WeightedSum
from embedloss_modifiers.functional import layer_weight, sample, self_distillation
from embedloss_modifiers.losses import AdaptiveLayerLoss, Matryoshka2dLoss, MatryoshkaLoss

ROWS, WIDTH = 5, 8


def spec(name, formats, **more):
    return LossSpec(name=name, target="none:None", summary="for tests", family="test", formats=formats, **more)


class Dots(Loss):
    """Not invariant to norms, so that normalising shows."""

    spec = spec("dots", ["pairs"])

    def __init__(self, margin: float = 0.5) -> None:
        super().__init__()
        self.margin = margin

    def compute(self, emb, labels):
        return (emb.own("anchor") * emb.pool("positive")).sum(1).sub(self.margin).pow(2).mean()


class Two(Loss):
    spec = spec("two", ["pairs"])

    def compute(self, emb, labels):
        first = (emb.own("anchor") - emb.own("positive")).pow(2).sum(1).mean()
        return LossOutput.of({"near": first, "mean": emb.own("anchor").mean(0).pow(2).sum()}, active=torch.tensor(1.0))


class Vectors(Loss):
    spec = spec("vectors", ["text+embedding", "texts+embedding"])

    def compute(self, emb, labels):
        assert labels is not None
        if "text" in emb.roles:
            return (emb.own("text") - labels).pow(2).mean()
        dense, mask = emb.lists("texts")
        return ((dense - labels) * mask[..., None]).pow(2).mean()


class Wide(Loss):
    """Its labels have, by coincidence, as many columns as the embeddings."""

    spec = spec("wide", ["n-tuples+scores"])

    def compute(self, emb, labels):
        assert labels.shape == (ROWS, WIDTH)
        return (emb.own("query").sum(1, keepdim=True) - labels).pow(2).mean()


class Guided(Loss):
    spec = spec("guided", ["pairs"])

    def requires(self):
        return Requirements(guides=("g",))

    def compute(self, emb, labels):
        assert emb.guide("g").own("anchor").shape[1] == WIDTH + 3
        return (emb.own("anchor") * emb.guide("g").own("anchor").sum(1, keepdim=True)).sum()


class Twins(Loss):
    spec = spec("twins", ["single"])

    def requires(self):
        return Requirements(twin=True)

    def compute(self, emb, labels):
        return (emb.own("text") - emb.twin.own("text")).pow(2).sum()


def leaf(seed, *shape, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype).requires_grad_()


def pairs(dtype=torch.float64, layers=4):
    tensors = {
        role: [leaf(10 * i + r, ROWS, WIDTH, dtype=dtype) for i in range(layers)]
        for r, role in enumerate(("anchor", "positive"))
    }
    emb = Embeddings.of(**{role: values[-1] for role, values in tensors.items()})
    return emb.with_layers(**tensors), tensors


def gradients(value, tensors):
    found = torch.autograd.grad(value, tensors, allow_unused=True, materialize_grads=True)
    return [g.clone() for g in found]


def assert_same(value, expected, tensors, tolerance=1e-10):
    mine, theirs = gradients(value, tensors), gradients(expected, tensors)
    assert max(float(g.abs().max()) for g in theirs) > 1e-6
    assert float((value - expected).detach().abs()) <= tolerance * max(1, abs(float(expected.detach())))
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def cut(row, dim):
    norm = sum(x * x for x in row[:dim]).sqrt()
    return [x / norm for x in row[:dim]]


def dots_oracle(anchors, positives, dim, margin=0.5):
    total = 0.0
    for a, p in zip(anchors, positives, strict=True):
        total = total + (sum(x * y for x, y in zip(cut(a, dim), cut(p, dim), strict=True)) - margin) ** 2
    return total / len(anchors)


@pytest.mark.parametrize("weights", [None, [1.0, 0.3, 2.0]])
def test_matryoshka_equals_the_loop(weights):
    emb, tensors = pairs(layers=1)
    [a], [p] = tensors["anchor"], tensors["positive"]
    dims = [2, 8, 5]
    output = MatryoshkaLoss(Dots(), dims, weights)(emb)
    expected = sum(w * dots_oracle(a, p, d) for d, w in zip(dims, weights or [1, 1, 1], strict=True))
    assert_same(output.total, expected, [a, p])
    assert set(output.terms) == {"matryoshka/2/loss", "matryoshka/8/loss", "matryoshka/5/loss"}


def test_full_width_is_normalised_too():
    emb, tensors = pairs(layers=1)
    alone = Dots()(emb).total
    modified = MatryoshkaLoss(Dots(), [WIDTH])(emb).total
    assert float((alone - modified).detach().abs()) > 0.1
    unit = Embeddings.of(**{r: t[0] / t[0].norm(dim=1, keepdim=True) for r, t in tensors.items()})
    torch.testing.assert_close(Dots()(unit).total, modified)


def test_scaling_rows_changes_nothing():
    emb, tensors = pairs(layers=1)
    loss = MatryoshkaLoss(Dots(), [8, 3])
    scaled = Embeddings.of(**{r: t[0] * torch.arange(1, ROWS + 1)[:, None] for r, t in tensors.items()})
    torch.testing.assert_close(loss(emb).total, loss(scaled).total)


def test_terms_have_one_name_alone_and_in_a_sum():
    emb, _ = pairs()
    matryoshka = MatryoshkaLoss(Two(), [8, 4])
    alone = matryoshka(emb)
    assert set(alone.terms) == {f"matryoshka/{d}/{t}" for d in (8, 4) for t in ("near", "mean")}
    assert set(alone.metrics) == {"matryoshka/8/active", "matryoshka/4/active"}
    summed = (matryoshka + 0.5 * Dots() + MatryoshkaLoss(Dots(), [8]))(emb)
    assert set(summed.terms) == {*alone.terms, "dots/loss", "matryoshka#2/8/loss"}
    inside = MatryoshkaLoss(Dots() + 2 * Two(), [8])(emb)
    assert set(inside.terms) == {"matryoshka/8/dots/loss", "matryoshka/8/two/near", "matryoshka/8/two/mean"}
    layered = AdaptiveLayerLoss(matryoshka, n_layers_per_step=-1)(emb)
    assert "adaptive-layer/3/matryoshka/8/near" in layered.terms
    assert {"adaptive-layer/kl/0", "adaptive-layer/kl/2"} <= set(layered.terms)
    flat = Matryoshka2dLoss(Dots(), [8, 4], n_dims_per_step=-1)(emb)
    assert {"matryoshka-2d/3/8/loss", "matryoshka-2d/3/4/loss"} <= set(flat.terms)


def test_embedding_labels_are_truncated_and_normalised():
    text, labels = leaf(0, ROWS, WIDTH), leaf(1, ROWS, WIDTH).detach()
    output = MatryoshkaLoss(Vectors(), [8, 3])(Embeddings.of(text=text), labels)
    expected = 0.0
    for dim in (8, 3):
        squares = [
            (x - y) ** 2 for t, v in zip(text, labels, strict=True) for x, y in zip(cut(t, dim), cut(v, dim), strict=True)
        ]
        expected = expected + sum(squares) / len(squares)
    assert_same(output.total, expected, [text])
    equal = MatryoshkaLoss(Vectors(), [8, 3])(Embeddings.of(text=labels), labels)
    assert float(equal.total) < 1e-25


def test_embedding_labels_one_a_text_and_in_a_sum():
    texts, labels = leaf(0, ROWS, 2, WIDTH), leaf(1, ROWS, 2, WIDTH).detach()
    alone = MatryoshkaLoss(Vectors(), [8, 3])(Embeddings.of(texts=texts), labels).total
    summed = MatryoshkaLoss(WeightedSum([(2.0, Vectors())]), [8, 3])(Embeddings.of(texts=texts), labels.tolist()).total
    torch.testing.assert_close(summed, 2 * alone, rtol=1e-6, atol=0)


def test_other_labels_keep_their_shape():
    query, docs = leaf(0, ROWS, WIDTH), leaf(1, ROWS, WIDTH - 1, WIDTH)
    labels = leaf(2, ROWS, WIDTH).detach()
    emb = Embeddings.of(query=query, positive=leaf(3, ROWS, WIDTH), negative=docs)
    assert torch.isfinite(MatryoshkaLoss(Wide(), [8, 4])(emb, labels).total)


def test_guides_keep_their_width_and_twins_are_truncated():
    emb, _ = pairs(layers=1)
    guided = emb.with_guide(Embeddings.of(anchor=leaf(5, ROWS, WIDTH + 3), positive=leaf(6, ROWS, WIDTH + 3)), "g")
    assert MatryoshkaLoss(Guided(), [8, 4]).requires().guides == ("g",)
    assert torch.isfinite(MatryoshkaLoss(Guided(), [8, 4])(guided).total)
    text, twin = leaf(0, ROWS, WIDTH), leaf(1, ROWS, WIDTH)
    value = MatryoshkaLoss(Twins(), [8, 4])(Embeddings.of(text=text).with_twin(Embeddings.of(text=twin))).total
    expected = sum(
        sum((x - y) ** 2 for t, u in zip(text, twin, strict=True) for x, y in zip(cut(t, d), cut(u, d), strict=True))
        for d in (8, 4)
    )
    assert_same(value, expected, [text, twin])


def test_drawn_dims_follow_the_step_and_are_not_rescaled():
    emb, tensors = pairs(layers=1)
    [a], [p] = tensors["anchor"], tensors["positive"]
    dims, seen = [8, 6, 4, 2], set()
    single = {d: float(dots_oracle(a, p, d).detach()) for d in dims}
    for step in range(30):
        loss = MatryoshkaLoss(Dots(), dims, n_dims_per_step=2)
        at = emb.with_context(seed=3, step=step)
        output = loss(at)
        drawn = [int(name.split("/")[1]) for name in output.terms]
        assert len(set(drawn)) == 2
        assert list(loss(at).terms) == list(output.terms)
        assert float(output.total.detach()) == pytest.approx(sum(single[d] for d in drawn), rel=1e-10)
        seen.add(tuple(drawn))
    assert len(seen) > 3
    for everything in (-1, 0, 4, 9):
        assert len(MatryoshkaLoss(Dots(), dims, n_dims_per_step=everything)(emb).terms) == 4


def test_the_draws_are_uniform():
    counts = torch.zeros(5)
    for step in range(2000):
        emb = Embeddings.of(text=torch.zeros(1, 1)).with_context(step=step)
        for i in sample(5, 2, emb.generator("x")):
            counts[i] += 1
    assert ((counts / 2000 - 0.4).abs() < 0.05).all()


@pytest.mark.parametrize("weighting", ["uniform", "log", "linear", lambda i: i + 2.0])
@pytest.mark.parametrize("step_layers", [-1, 2])
def test_adaptive_layer_equals_the_loop(weighting, step_layers):
    emb, tensors = pairs(layers=4)
    loss = AdaptiveLayerLoss(Dots(), step_layers, 0.7, 1.3, 2.0, 0.4, weighting)
    output = loss(emb)
    kls = [int(k.split("/")[-1]) for k in output.terms if "/kl/" in k]
    assert len(kls) == (3 if step_layers == -1 else 2)

    def dots(i):
        values = [
            sum(x * y for x, y in zip(a, p, strict=True))
            for a, p in zip(tensors["anchor"][i], tensors["positive"][i], strict=True)
        ]
        return sum((v - 0.5) ** 2 for v in values) / ROWS

    def softmax(row):
        e = [(x / 0.4).exp() for x in row]
        return [x / sum(e) for x in e]

    expected = 0.7 * dots(3)
    for i in kls:
        omega = (
            {"uniform": 1, "log": 1 / (1 + math.log(1 + i)), "linear": 1 / (1 + i)}.get(weighting)
            if isinstance(weighting, str)
            else i + 2
        )
        expected = expected + 1.3 * omega / len(kls) * dots(i)
        kl = 0.0
        for role in ("anchor", "positive"):
            for student, teacher in zip(tensors[role][i], tensors[role][3], strict=True):
                q, p = softmax(student), softmax(teacher.detach())
                kl = kl + sum(b * (b.log() - a.log()) for a, b in zip(q, p, strict=True))
        expected = expected + 0.4 * 2.0 * kl / (2 * ROWS)
    assert_same(output.total, expected, [t for values in tensors.values() for t in values])


def test_divergence_is_zero_for_equal_layers_and_gives_the_teacher_nothing():
    x = leaf(0, ROWS, WIDTH)
    same = self_distillation(x, x, 0.3, ROWS)
    assert abs(float(same.detach())) < 1e-14
    teacher = leaf(1, ROWS, WIDTH)
    student_gradient, teacher_gradient = gradients(self_distillation(x, teacher, 0.3, ROWS), [x, teacher])
    assert float(student_gradient.abs().max()) > 0.01
    assert float(teacher_gradient.abs().max()) == 0


def test_divergence_sees_each_text_of_a_ragged_role_once():
    class Ragged(Loss):
        spec = spec("ragged", ["n-tuples"])

        def compute(self, emb, labels):
            return emb.own("anchor").sum() * 0

    a, p, n = leaf(0, 2, 4), leaf(1, 2, 4), leaf(2, 3, 4)
    b, q, m = leaf(3, 2, 4), leaf(4, 2, 4), leaf(5, 3, 4)
    emb = Embeddings.of(anchor=b, positive=q, negative=[m[:1], m[1:]]).with_layers(
        anchor=[a, b], positive=[p, q], negative=[n, m]
    )
    found = AdaptiveLayerLoss(Ragged(), kl_temperature=1.0)(emb).terms["adaptive-layer/kl/0"]
    teacher, student = torch.cat([b, q, m]).softmax(1), torch.cat([a, p, n]).softmax(1)
    torch.testing.assert_close(found, (teacher * (teacher / student).log()).sum(1).mean().detach())


def test_temperature_zero_has_no_divergence():
    emb, _ = pairs()
    output = AdaptiveLayerLoss(Dots(), kl_temperature=0)(emb)
    assert not [k for k in output.terms if "/kl" in k]
    assert torch.isfinite(output.total)


def test_every_prior_layer_is_drawn_and_never_the_final_one():
    emb, _ = pairs(layers=5)
    seen = set()
    for step in range(60):
        output = AdaptiveLayerLoss(Dots())(emb.with_context(step=step))
        layers = [int(k.split("/")[-1]) for k in output.terms if "/kl/" in k]
        assert len(layers) == 1
        seen.update(layers)
    assert seen == {0, 1, 2, 3}


def test_matryoshka_2d_is_the_composition():
    emb, tensors = pairs(layers=4)
    for step in range(5):
        at = emb.with_context(step=step)
        short = Matryoshka2dLoss(Dots(), [8, 4, 2])(at).total
        long = AdaptiveLayerLoss(MatryoshkaLoss(Dots(), [8, 4, 2], n_dims_per_step=1), n_layers_per_step=1)(at).total
        assert_same(short, long, [t for values in tensors.values() for t in values])


def test_matryoshka_2d_draws_dims_anew_for_every_layer():
    emb, _ = pairs(layers=4)
    differ = 0
    for step in range(20):
        terms = Matryoshka2dLoss(Dots(), [8, 4, 2])(emb.with_context(step=step)).terms
        drawn = [k.split("/")[2] for k in terms if "/kl/" not in k]
        assert len(drawn) == 2
        differ += drawn[0] != drawn[1]
    assert 0 < differ < 20


@pytest.mark.parametrize("inner", [Dots, Two])
def test_any_order_of_nesting(inner):
    emb, tensors = pairs(layers=3)
    leaves = [t for values in tensors.values() for t in values]
    outside = MatryoshkaLoss(AdaptiveLayerLoss(inner(), -1), [8, 4])(emb).total
    expected = 0.0
    for dim in (8, 4):
        cuts = {r: [t[:, :dim] / t[:, :dim].norm(dim=1, keepdim=True) for t in values] for r, values in tensors.items()}
        view = Embeddings.of(**{r: values[-1] for r, values in cuts.items()}).with_layers(**cuts)
        expected = expected + AdaptiveLayerLoss(inner(), -1)(view).total
    assert_same(outside, expected, leaves)
    inside = AdaptiveLayerLoss(MatryoshkaLoss(inner(), [8, 4]), -1, kl_temperature=0)(emb).total
    without = MatryoshkaLoss(AdaptiveLayerLoss(inner(), -1, kl_temperature=0), [8, 4])(emb).total
    assert_same(inside, without, leaves)  # without the divergence the two orders are one
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the full dimension
        twice = MatryoshkaLoss(MatryoshkaLoss(inner(), [4, 2]), [8, 6])(emb).total
        once = MatryoshkaLoss(inner(), [4, 2])(emb).total
    assert_same(twice, 2 * once, leaves)


def test_the_graph_takes_a_sum_over_and_beside_the_modifier():
    emb, tensors = pairs(layers=1)
    leaves = [values[0] for values in tensors.values()]
    inside = MatryoshkaLoss(Dots() + 0.5 * Two(), [8, 4])(emb).total
    beside = (MatryoshkaLoss(Dots(), [8, 4]) + 0.5 * MatryoshkaLoss(Two(), [8, 4]))(emb).total
    assert_same(inside, beside, leaves)


def test_requirements_and_formats_are_those_of_the_inner_loss():
    loss = Matryoshka2dLoss(Guided(), [8])
    assert loss.requires() == Requirements(layers=True, guides=("g",))
    assert not MatryoshkaLoss(Guided(), [8]).requires().layers
    assert loss.spec.format_names() == ("pairs",)
    assert AdaptiveLayerLoss(Vectors()).spec.format_names() == ("text+embedding", "texts+embedding")


def test_zero_vectors_and_half_precision():
    anchor = torch.zeros(2, 4, requires_grad=True)
    positive = torch.tensor([[0.0, 0, 1, 1], [1, 0, 0, 0]], requires_grad=True)
    value = MatryoshkaLoss(Dots(), [4, 2])(Embeddings.of(anchor=anchor, positive=positive)).total
    for gradient in gradients(value, [anchor, positive]):
        assert float(gradient.abs().max()) == 0  # a zero vector has cosine 0 and moves nothing
    half = torch.randn(2, 4).half()
    assert MatryoshkaLoss(Dots(), [4, 2])(Embeddings.of(anchor=half, positive=half)).total.dtype == torch.float32
    tiny = torch.full((2, 4), 1e-7).half().requires_grad_()
    assert torch.isfinite(MatryoshkaLoss(Dots(), [4, 2])(Embeddings.of(anchor=tiny, positive=tiny)).total)


def test_nan_in_nan_out():
    emb, tensors = pairs(layers=2)
    with torch.no_grad():
        tensors["anchor"][0][1, 2] = float("nan")
    assert torch.isnan(AdaptiveLayerLoss(Dots())(emb).total)
    assert torch.isfinite(MatryoshkaLoss(Dots(), [8])(emb).total)
    with torch.no_grad():
        tensors["anchor"][1][1, 7] = float("nan")
    assert torch.isnan(MatryoshkaLoss(Dots(), [8, 2])(emb).total)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_huge_norms_are_finite(dtype):
    emb, tensors = pairs(dtype=dtype, layers=3)
    with torch.no_grad():
        for values in tensors.values():
            for t in values:
                t.mul_(1e15)
    total = Matryoshka2dLoss(Dots(), [8, 4])(emb).total
    assert torch.isfinite(total)
    assert all(torch.isfinite(g).all() for g in gradients(total, [t for v in tensors.values() for t in v]))


def test_dims_above_the_width_name_both():
    emb, _ = pairs(layers=1)
    with pytest.raises(EmbedlossError, match=r"E206.*dimension 16.*8 dimensions"):
        MatryoshkaLoss(Dots(), [16, 8])(emb)
    with pytest.raises(EmbedlossError, match=r"E206.*dimension 16.*model gives 8"):
        MatryoshkaLoss(Dots(), [16, 8]).prepare(ModelInfo(8))
    with pytest.raises(EmbedlossError, match=r"E206.*dimension 8.*label vectors have 4"):
        MatryoshkaLoss(Vectors(), [8, 4])(Embeddings.of(text=leaf(0, ROWS, 8)), torch.ones(ROWS, 4))


def test_a_missing_full_dimension_warns_once():
    emb, _ = pairs(layers=1)
    loss = MatryoshkaLoss(Dots(), [4])
    with pytest.warns(UserWarning, match="full dimension 8"):
        loss(emb)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss(emb)
        MatryoshkaLoss(Dots(), [8, 4])(emb)


def test_static_embeddings_have_no_layers():
    with pytest.raises(EmbedlossError, match="E302"):
        AdaptiveLayerLoss(Dots())(Embeddings.of(anchor=leaf(0, 2, 4), positive=leaf(1, 2, 4)))


def test_a_twin_without_layers_is_refused():
    text = [leaf(0, 2, 4), leaf(1, 2, 4)]
    emb = Embeddings.of(text=text[1]).with_layers(text=text).with_twin(Embeddings.of(text=leaf(2, 2, 4)))
    with pytest.raises(EmbedlossError, match=r"E302.*twin"):
        AdaptiveLayerLoss(Twins())(emb)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"dims": []}, "positive integers"),
        ({"dims": [8, 0]}, "positive integers"),
        ({"dims": [8, 2.5]}, "positive integers"),
        ({"dims": [8, 4, 4]}, "repeats 4"),
        ({"dims": [8, 4], "weights": [1.0]}, r"2 dims, got \[1.0\]"),
        ({"dims": 8}, "positive integers, got 8"),
        ({"dims": ["8"]}, "positive integers"),
        ({"dims": [8], "weights": 2.0}, "1 dims, got 2.0"),
        ({"dims": [8], "n_dims_per_step": 0.5}, "n_dims_per_step must be an integer"),
    ],
)
def test_wrong_dims(arguments, match):
    for made in (MatryoshkaLoss, Matryoshka2dLoss):
        with pytest.raises(ValueError, match=match):
            made(Dots(), **arguments)


def test_wrong_layer_parameters():
    with pytest.raises(ValueError, match="uniform, log, linear"):
        AdaptiveLayerLoss(Dots(), layer_weighting="square")
    with pytest.raises(ValueError, match="n_layers_per_step must be an integer"):
        AdaptiveLayerLoss(Dots(), n_layers_per_step=1.5)
    with pytest.raises(ValueError, match="at least 0"):
        AdaptiveLayerLoss(Dots(), kl_temperature=-1)
    with pytest.raises(TypeError, match="must be a loss"):
        MatryoshkaLoss("mnrl", [8])
    assert layer_weight("log", 0) == layer_weight("linear", 0) == 1


def test_expressions_round_trip():
    for loss in (
        MatryoshkaLoss(Dots(margin=0.1), [8, 4], [1.0, 0.5], 1),
        AdaptiveLayerLoss(MatryoshkaLoss(Dots() + 0.5 * Two(), [8]), layer_weighting="log"),
        Matryoshka2dLoss(Dots(), [8, 4], n_layers_per_step=2),
    ):
        text = loss.to_expression()
        assert "loss=" in text
        names = {"matryoshka": MatryoshkaLoss, "adaptive_layer": AdaptiveLayerLoss, "matryoshka_2d": Matryoshka2dLoss}
        made = eval(text, {**names, "dots": Dots, "two": Two})
        assert made.to_expression() == text
    with pytest.raises(EmbedlossError, match="cannot be written"):
        AdaptiveLayerLoss(Dots(), layer_weighting=lambda i: 1.0).to_expression()


def test_cross_encoders_have_neither_dims_nor_layers():
    class Ranks(ScoreLoss):
        spec = spec("ranks", ["listwise"], models=("bi-encoder", "cross-encoder"), consumes="scores")

        def compute_scores(self, scores, labels, mask):
            return (scores - labels).pow(2)[mask].mean()

    class Pairs(Ranks):
        spec = spec("pair-scores", ["pairs+score"], models=("cross-encoder",), consumes="scores")

    loss = MatryoshkaLoss(Ranks(), [8, 4])
    assert loss.spec.models == ("bi-encoder",)
    query, docs = leaf(0, 2, 8), leaf(1, 2, 3, 8)
    assert torch.isfinite(loss(Embeddings.of(query=query, docs=docs), torch.ones(2, 3)).total)
    with pytest.raises(EmbedlossError, match=r"E206.*takes Embeddings, got Scores"):
        loss(Scores.of(torch.ones(2, 3)), torch.ones(2, 3))
    with pytest.raises(EmbedlossError, match=r"E101.*'pair-scores' trains cross-encoder"):
        AdaptiveLayerLoss(Pairs())


def test_deviations_of_the_inner_loss_are_kept():
    assert MatryoshkaLoss(AdaptiveLayerLoss(Dots()), [8]).spec.deviations == AdaptiveLayerLoss.spec.deviations


def test_state_of_the_inner_loss_is_saved_once():
    class Weighted(Dots):
        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(()))

    assert list(Matryoshka2dLoss(Weighted(), [8]).state_dict()) == ["loss.scale"]
    assert len(list(Matryoshka2dLoss(Weighted(), [8]).parameters())) == 1


def test_names_in_expressions_point_here():
    from embedloss import list_losses

    names = {s.name: s for s in list_losses(family="modifiers")}
    assert set(names) == {"matryoshka", "adaptive-layer", "matryoshka-2d"}
    assert all(s.modifier and s.citation and "**Formula**" in s.doc for s in names.values())
    with pytest.raises(EmbedlossError, match="E20"):
        create_loss("matryoshka(dims=[8])")
    with pytest.raises(EmbedlossError, match=r"E203.*must be a loss"):
        create_loss("matryoshka(3, dims=[8])")
