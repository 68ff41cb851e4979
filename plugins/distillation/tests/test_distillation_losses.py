"""The losses as classes: both kinds of model, shapes of labels, the projection's life, edges, refused input."""

import math
import pickle
import warnings

import pytest
import torch

from embedloss import Embeddings, EmbedlossError, create_loss, list_losses
from embedloss.embeddings import Scores
from embedloss.loss import ModelInfo
from embedloss_distillation import EmbedDistillLoss, MSELoss

torch.set_num_threads(1)
NAMES = ["embed-distill", "mse", "score-mse", "margin-mse", "distill-kl-div"]
VECTORS = ["embed_distill()", "embed_distill(distance_metric='l2')", "embed_distill(distance_metric='mse')", "mse()"]
SCORES = ["score_mse()", "margin_mse()", "distill_kl_div()"]


def randn(seed, *shape, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def backward(output, *leaves):
    output.total.backward()
    return [leaf.grad for leaf in leaves]


def test_the_family_is_complete():
    specs = {s.name: s for s in list_losses(family="distillation")}
    assert set(specs) == set(NAMES)
    for name in NAMES[2:]:
        assert specs[name].models == ("bi-encoder", "cross-encoder")
    for name in NAMES[:2]:
        assert specs[name].format_names() == ("text+embedding", "texts+embedding")
    assert all(s.citation for s in specs.values())


@pytest.mark.parametrize("name", NAMES)
def test_examples_of_the_pages_run(name):
    exec(create_loss(name).spec.doc.split("```python")[1].split("```")[0], {})


@pytest.mark.parametrize(
    "expression",
    [
        *VECTORS, *SCORES, "embed_distill(projection_dim=16)", "mse(projection_dim=3)", "margin_mse(similarity_fct='cosine')",
        "score_mse(activation_fn='sigmoid', reduction='sum')", "distill_kl_div(temperature=2, teacher_temperature=0.5)",
    ],
)  # fmt: skip
def test_expression_round_trip(expression):
    loss = create_loss(expression)
    assert loss.to_expression() == expression
    assert pickle.loads(pickle.dumps(loss)).to_expression() == expression


def test_other_names():
    assert create_loss("embed_distill(distance='l2')").distance_metric == "l2"
    assert create_loss("kl_div", similarity_fct="pairwise_cos_sim").similarity_fct == "cosine"
    assert create_loss("mmse(activation_fn=None)").activation_fn is None


def test_wrong_parameters():
    for text, word in {
        "embed_distill(distance_metric='dot')": "cosine, l2, mse",
        "embed_distill(projection_dim=0)": "projection_dim",
        "mse(projection_dim=2.5)": "projection_dim",
        "score_mse(reduction='none')": "mean, sum",
        "margin_mse(reduction='median')": "mean, sum",
        "margin_mse(similarity_fct='cosinus')": "cosine, dot",
        "distill_kl_div(temperature=0)": "temperature must be above 0",
        "distill_kl_div(student_temperature=-1)": "student_temperature",
        "distill_kl_div(activation_fn='softmax')": "identity, sigmoid",
    }.items():
        with pytest.raises(EmbedlossError, match=f"(?s)E203.*{word}"):
            create_loss(text)
    with pytest.raises(ValueError, match="teacher_temperature"):
        create_loss("distill_kl_div").__class__(teacher_temperature=math.inf)


# -- a teacher's vectors ------------------------------------------------------------
@pytest.mark.parametrize("expression", VECTORS)
def test_shapes_of_vectors(expression):
    loss, x, t = create_loss(expression), randn(0, 4, 3, 6), randn(1, 4, 3, 6)
    columns = [loss(Embeddings.of(text=x[:, c]), t[:, c]).total for c in range(3)]
    torch.testing.assert_close(loss(Embeddings.of(texts=x), t).total, sum(columns) / 3)
    shared = [loss(Embeddings.of(text=x[:, c]), t[:, 0]).total for c in range(3)]
    torch.testing.assert_close(loss(Embeddings.of(texts=x), t[:, 0]).total, sum(shared) / 3)
    assert sum(shared) != sum(columns)
    torch.testing.assert_close(loss(Embeddings.of(text=x[:, 0]), t[:, :1]).total, columns[0])


@pytest.mark.parametrize("expression", VECTORS)
@pytest.mark.parametrize("per_text", [True, False])
def test_rows_with_different_numbers_of_texts(expression, per_text):
    loss, t = create_loss(expression), randn(1, 3, 2, 6)
    rows = [randn(2, 2, 6), randn(3, 0, 6), randn(4, 1, 6)]
    labels = t if per_text else t[:, 0]
    pairs = [(x, (t[i, j] if per_text else t[i, 0])) for i, row in enumerate(rows) for j, x in enumerate(row)]
    wanted = loss(Embeddings.of(text=torch.stack([x for x, _ in pairs])), torch.stack([y for _, y in pairs])).total
    torch.testing.assert_close(loss(Embeddings.of(texts=rows), labels).total, wanted)


@pytest.mark.parametrize("expression", VECTORS)
def test_edges_of_vectors(expression):
    loss = create_loss(expression)
    x = randn(0, 3, 4, dtype=torch.float32).requires_grad_()
    (gradient,) = backward(loss(Embeddings.of(text=x), x.detach()), x)
    assert gradient.abs().max() < 1e-6
    empty = torch.zeros(2, 0, 4, requires_grad=True)
    output = loss(Embeddings.of(texts=empty), torch.zeros(2, 4))
    (gradient,) = backward(output, empty)
    assert output.total == 0
    assert gradient.shape == (2, 0, 4)
    assert loss(Embeddings.of(text=x * float("nan")), x.detach()).total.isnan()
    one = torch.zeros(1, 4, requires_grad=True)
    output = loss(Embeddings.of(text=one), torch.ones(1, 4))
    (gradient,) = backward(output, one)
    assert output.total.isfinite()
    assert gradient.abs().max() <= 1
    far = (x.detach() * 1e15).requires_grad_()
    output = loss(Embeddings.of(text=far), torch.ones(3, 4))
    assert output.total.isfinite()
    assert backward(output, far)[0].isfinite().all()


@pytest.mark.parametrize("expression", [*VECTORS, "embed_distill(projection_dim=5)"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_vectors_are_summed_in_float32(expression, dtype):
    x = randn(0, 3, 4, dtype=dtype).requires_grad_()
    loss, teacher = create_loss(expression), randn(1, 3, 5 if "projection" in expression else 4)
    output = loss(Embeddings.of(text=x), teacher.to(dtype))
    (gradient,) = backward(output, x)
    assert output.total.dtype == torch.float32
    assert gradient.dtype == dtype
    torch.testing.assert_close(output.total, loss(Embeddings.of(text=x.detach().float()), teacher.to(dtype).float()).total)
    assert gradient.abs().max() > 0
    if loss.projection is not None:
        loss.half()  # a trainer may do that to the whole module
        assert loss(Embeddings.of(text=x), teacher).total.dtype == torch.float32


def test_labels_receive_no_gradient():
    x, t = randn(0, 3, 4).requires_grad_(), randn(1, 3, 4).requires_grad_()
    backward(create_loss("mse")(Embeddings.of(text=x), t), x)
    assert t.grad is None


@pytest.mark.parametrize("expression", VECTORS)
def test_refused_vectors(expression):
    loss, emb = create_loss(expression), Embeddings.of(texts=torch.randn(3, 2, 4))
    for labels in (torch.randn(3, 3, 4), torch.randn(3), torch.randn(3, 2, 4, 1)):
        with pytest.raises(EmbedlossError, match=r"E105.*one vector a row, \(3, dim\), or one a text, \(3, 2, dim\)"):
            loss(emb, labels)
    with pytest.raises(EmbedlossError, match=r"E105.*vectors have 5 dimensions.*with 4.*projection_dim=5"):
        loss(emb, torch.randn(3, 5))
    with pytest.raises(EmbedlossError, match=r"E206.*3 rows but 2 labels"):
        loss(emb, torch.randn(2, 4))
    with pytest.raises(EmbedlossError, match=r"E105.*row 2.*not finite"):
        loss(emb, torch.tensor([[0.0] * 4, [0, math.nan, 0, 0], [0] * 4]))
    with pytest.raises(EmbedlossError, match=r"E206.*needs labels"):
        loss(emb)
    with pytest.raises(EmbedlossError, match=r"E105.*vectors have 5 dimensions.*with 4"):
        loss.prepare(ModelInfo(4, label_dimension=5))
    loss.prepare(ModelInfo(4, label_dimension=4))


# -- the projection ------------------------------------------------------------
def projected(seed=0, dim=6, out=4, **parameters):
    torch.manual_seed(seed)
    loss = EmbedDistillLoss(projection_dim=out, **parameters)
    loss.prepare(ModelInfo(dim, label_dimension=out))
    return loss


def test_projection_is_a_seeded_weight_of_the_loss():
    loss = projected()
    assert {name: tuple(p.shape) for name, p in loss.named_parameters()} == {
        "projection.weight": (4, 6),
        "projection.bias": (4,),
    }
    assert torch.equal(loss.projection.weight, projected().projection.weight)
    assert not torch.equal(loss.projection.weight, projected(1).projection.weight)
    assert 0.1 < loss.projection.weight.abs().max() <= 6**-0.5
    before = loss.projection
    loss.prepare(ModelInfo(6))
    assert loss.projection is before
    torch.manual_seed(0)
    late, drawn = EmbedDistillLoss(projection_dim=4), torch.randn(3)
    late(Embeddings.of(text=torch.ones(2, 6)), torch.ones(2, 4))  # made at first use, from the same seed
    assert torch.equal(late.projection.weight, loss.projection.weight)
    torch.manual_seed(0)
    projected_again = EmbedDistillLoss(projection_dim=4)
    projected_again.prepare(ModelInfo(6))
    assert torch.equal(torch.randn(3), drawn)  # the process's random numbers go on as if nothing had been drawn


@pytest.mark.parametrize("distance", ["cosine", "l2", "mse"])
def test_projection_learns(distance):
    loss, x, t = projected(distance_metric=distance), randn(0, 8, 6, dtype=torch.float32), randn(1, 8, 4, dtype=torch.float32)
    x.requires_grad_()
    output = loss(Embeddings.of(text=x), t)
    output.total.backward()
    assert x.grad.abs().max() > 0
    assert loss.projection.weight.grad.abs().max() > 0
    torch.testing.assert_close(output.total, EmbedDistillLoss(distance)(Embeddings.of(text=loss.projection(x)), t).total)
    optimizer = torch.optim.Adam(loss.parameters(), lr=0.05)
    for _ in range(50):
        optimizer.zero_grad()
        later = loss(Embeddings.of(text=x.detach()), t)
        later.total.backward()
        optimizer.step()
    assert later.total < 0.9 * output.total


def test_projection_is_saved_and_loaded(tmp_path):
    loss, emb, t = projected(3), Embeddings.of(text=torch.randn(5, 6)), torch.randn(5, 4)
    wanted = loss(emb, t).total
    state = loss.state_dict()
    for fresh in (EmbedDistillLoss(projection_dim=4), EmbedDistillLoss(), projected(4)):
        assert fresh.projection is None or fresh(emb, t).total != wanted
        fresh.load_state_dict(state)
        assert fresh(emb, t).total == wanted
        assert fresh.projection_dim == 4
    path = tmp_path / "new" / "projection.safetensors"
    loss.save_projection(path)
    for fresh in (EmbedDistillLoss(projection_dim=4), EmbedDistillLoss(), projected(5), MSELoss()):
        fresh.load_projection(path)
        assert torch.equal(fresh.projection.weight, loss.projection.weight)
        assert fresh.projection.weight.requires_grad
        if not isinstance(fresh, MSELoss):
            assert fresh(emb, t).total == wanted
        assert fresh.to_expression().endswith("projection_dim=4)")
    for other in (EmbedDistillLoss(projection_dim=5), projected(dim=7)):
        with pytest.raises(ValueError, match="maps 6 to 4 dimensions"):
            other.load_projection(path)
    late = EmbedDistillLoss()
    late.load_projection(path)
    with pytest.raises(EmbedlossError, match=r"E302.*takes embeddings of 6 dimensions; this model gives 7"):
        late.prepare(ModelInfo(7))
    with pytest.raises(ValueError, match="no projection to save"):
        EmbedDistillLoss().save_projection(path)
    with pytest.raises(EmbedlossError, match="E301"):
        EmbedDistillLoss().load_projection(tmp_path / "none.safetensors")
    path.write_bytes(b"no safetensors")
    with pytest.raises(EmbedlossError, match="E301"):
        EmbedDistillLoss().load_projection(path)


def test_cut_embeddings_use_the_first_inputs():
    loss = projected(dim=6, out=6)
    x, t = torch.randn(3, 6), torch.randn(3, 6)
    weight, bias = loss.projection.weight, loss.projection.bias
    emb = Embeddings.of(text=x).map(lambda e: e[..., :2])
    whole = EmbedDistillLoss()(Embeddings.of(text=x[:, :2] @ weight[:, :2].T + bias), t).total
    torch.testing.assert_close(loss(emb, t).total, whole)  # a whole label meets all outputs
    cut = EmbedDistillLoss()(Embeddings.of(text=x[:, :2] @ weight[:2, :2].T + bias[:2]), t[:, :2]).total
    torch.testing.assert_close(loss(emb, t[:, :2]).total, cut)  # a cut one the first
    torch.manual_seed(0)
    late = EmbedDistillLoss(projection_dim=6)
    late(emb, t)  # first use on a view: made for the model's size all the same
    assert torch.equal(late.projection.weight, weight)


# -- a teacher's scores ------------------------------------------------------------
def tuples(lengths=(2, 2, 2)):
    query, positive = randn(0, len(lengths), 5), randn(1, len(lengths), 5)
    negative = [randn(2 + i, n, 5) for i, n in enumerate(lengths)]
    same = len(set(lengths)) == 1
    return Embeddings.of(query=query, positive=positive, negative=torch.stack(negative) if same else negative)


@pytest.mark.parametrize("similarity", ["dot", "cosine", "euclidean", "manhattan"])
@pytest.mark.parametrize("expression", ["margin_mse", "distill_kl_div"])
def test_embeddings_and_their_similarities_are_the_same(expression, similarity):
    loss = create_loss(expression, similarity_fct=similarity, scale=3.0)
    lengths = (2, 0, 3)
    emb, labels = tuples(lengths), randn(9, 3, 4)
    scores, mask = torch.zeros(3, 4, dtype=torch.float64), torch.zeros(3, 4, dtype=torch.bool)
    negatives, _ = emb.lists("negative")
    functions = {
        "dot": lambda a, b: a @ b,
        "cosine": lambda a, b: a @ b / a.norm() / b.norm(),
        "euclidean": lambda a, b: -(a - b).norm(),
        "manhattan": lambda a, b: -(a - b).abs().sum(),
    }
    for i, n in enumerate(lengths):
        texts = [emb.own("positive")[i], *negatives[i, :n]]
        for j, text in enumerate(texts):
            scores[i, j], mask[i, j] = 3.0 * functions[similarity](emb.own("query")[i], text), True
    wanted = loss(Scores.of(scores, mask), labels)
    assert wanted.total != 0
    torch.testing.assert_close(loss(emb, labels).total, wanted.total)
    assert loss(emb, labels).metrics["active"].item() == pytest.approx(2 / 3)


def test_margins_and_scores_are_the_same_teacher():
    loss, scores = create_loss("margin_mse"), randn(0, 4, 3)
    margins = scores[:, :1] - scores[:, 1:]
    emb = tuples((2, 2, 2, 2))
    assert loss(emb, margins).total > 0
    torch.testing.assert_close(loss(emb, scores).total, loss(emb, margins).total)
    one = tuples((1, 1, 1))
    values = [loss(one, labels).total for labels in (margins[:3, 0], margins[:3, :1], scores[:3, :2])]
    assert values[0] == values[1]
    torch.testing.assert_close(values[0], values[2])
    for integer in (torch.int64, torch.float32):
        assert loss(one, (10 * margins[:3, 0]).to(integer)).total.dtype == torch.float64
    single = loss(Scores.of(randn(1, 3, 2).float()), margins[:3, 0])
    assert single.total.dtype == torch.float32  # float64 labels do not widen the loss


def test_ragged_margins_count_each_the_same():
    lengths = (3, 0, 1)
    emb, labels = tuples(lengths), randn(8, 3, 3)
    query, positive, negative = emb.own("query"), emb.own("positive"), emb.lists("negative")[0]
    places = [(i, j) for i, n in enumerate(lengths) for j in range(n)]
    errors = [query[i] @ positive[i] - query[i] @ negative[i, j] - labels[i, j] for i, j in places]
    torch.testing.assert_close(create_loss("margin_mse")(emb, labels).total, torch.stack(errors).square().mean())


def test_reductions():
    scores = Scores.of(randn(0, 4, 3))
    for name, labels, items in (("margin_mse", randn(1, 4, 2), 8), ("score_mse", randn(1, 4, 3), 12)):
        mean, total = create_loss(name)(scores, labels).total, create_loss(name, reduction="sum")(scores, labels).total
        torch.testing.assert_close(total, mean * items)


def test_activation_acts_on_scores():
    logits, labels = randn(0, 4, 1), randn(1, 4)
    value = create_loss("score_mse(activation_fn='sigmoid')")(Scores.of(logits), labels).total
    torch.testing.assert_close(value, (torch.sigmoid(logits[:, 0]) - labels).square().mean())
    margins = create_loss("margin_mse(activation_fn='sigmoid')")(Scores.of(randn(0, 4, 2)), labels).total
    s = torch.sigmoid(randn(0, 4, 2))
    torch.testing.assert_close(margins, (s[:, 0] - s[:, 1] - labels).square().mean())


def test_score_mse_of_pairs_of_embeddings():
    first, second, labels = randn(0, 4, 5), randn(1, 4, 5), randn(2, 4)
    cosines = torch.cosine_similarity(first, second)
    for shape in (labels, labels[:, None]):
        value = create_loss("score_mse(scale=2)")(Embeddings.of(first=first, second=second), shape).total
        torch.testing.assert_close(value, (2 * cosines - labels).square().mean())


@pytest.mark.parametrize("expression", SCORES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_scores(expression, dtype):
    scores = (10 * randn(0, 4, 3)).to(dtype).requires_grad_()
    output = create_loss(expression)(Scores.of(scores), randn(1, 4, 3))
    (gradient,) = backward(output, scores)
    assert output.total.dtype == torch.float32
    assert gradient.abs().max() > 0
    assert output.total == create_loss(expression)(Scores.of(scores.detach().float()), randn(1, 4, 3)).total


@pytest.mark.parametrize("expression", SCORES)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_scores_that_are_not_finite_show(expression, value):
    scores = randn(0, 4, 3)
    scores[1, 0] = value
    mask = torch.ones(4, 3, dtype=torch.bool)
    mask[1, 1:] = False  # a positive without negatives has no margin, and shows all the same
    assert not create_loss(expression)(Scores.of(scores, mask), randn(1, 4, 3)).total.isfinite()


@pytest.mark.parametrize("expression", SCORES)
def test_nothing_to_learn_from(expression):
    scores = randn(0, 2, 3).requires_grad_()
    output = create_loss(expression)(Scores.of(scores, torch.zeros(2, 3, dtype=torch.bool)), torch.zeros(2, 3))
    (gradient,) = backward(output, scores)
    assert output.total == 0
    assert gradient.abs().max() == 0
    if expression != "score_mse()":
        assert output.metrics["active"] == 0
        only = torch.tensor([[True, False, False]] * 2)
        scores = randn(0, 2, 3).requires_grad_()
        output = create_loss(expression)(Scores.of(scores, only), randn(1, 2, 3))
        (gradient,) = backward(output, scores)
        assert output.total == 0
        assert gradient.abs().max() == 0
        assert output.metrics["active"] == 0


@pytest.mark.parametrize("expression", SCORES)
def test_candidates_that_are_not_there_may_hold_anything(expression):
    loss, labels = create_loss(expression), randn(1, 3, 3)
    mask = torch.tensor([[True, True, True], [True, True, False], [True, False, False]])
    values, gradients = [], []
    for scores, wanted in (
        (randn(0, 3, 3), labels),
        (randn(0, 3, 3).masked_fill(~mask, math.nan), labels.masked_fill(~mask, math.inf)),
    ):
        scores.requires_grad_()
        value = loss.compute_scores(scores, wanted, mask)
        value.backward()
        values.append(value)
        gradients.append(scores.grad)
    assert gradients[0].abs().max() > 0
    assert values[0] == values[1]
    assert torch.equal(*gradients)


def test_refused_scores():
    emb = tuples()
    for labels in (randn(0, 3), randn(0, 3, 1), randn(0, 3, 4), randn(0, 3, 2, 1)):
        with pytest.raises(EmbedlossError, match=r"E206.*margins \(3, 2\) or scores \(3, 3\) for a positive and 2 negatives"):
            create_loss("margin_mse")(emb, labels)
    for labels in (randn(0, 3), randn(0, 3, 2), randn(0, 3, 4)):
        with pytest.raises(EmbedlossError, match=r"E206.*one teacher score a candidate"):
            create_loss("distill_kl_div")(emb, labels)
    with pytest.raises(EmbedlossError, match=r"E206.*at least 2 candidates"):
        create_loss("distill_kl_div")(Scores.of(randn(0, 3, 1)), randn(0, 3, 1))
    with pytest.raises(EmbedlossError, match=r"E206"):
        create_loss("margin_mse")(Scores.of(randn(0, 3, 1)), randn(0, 3, 1))
    with pytest.raises(EmbedlossError, match=r"E206.*labels \(3, 2\) for scores \(3, 3\)"):
        create_loss("score_mse")(Scores.of(randn(0, 3, 3)), randn(0, 3, 2))
    for expression, shape in (("margin_mse", (3, 2)), ("distill_kl_div", (3, 3)), ("score_mse", (3, 3))):
        for value in (math.nan, math.inf):
            labels = torch.zeros(shape)
            labels[1, 1] = value
            inputs = Scores.of(randn(0, 3, 3)) if expression == "score_mse" else emb
            with pytest.raises(EmbedlossError, match=r"E105.*row 2"):
                create_loss(expression)(inputs, labels)
            with pytest.raises(EmbedlossError, match=r"E105.*row 2"):
                create_loss(expression).compute_scores(randn(0, 3, 3), labels, torch.ones(3, 3, dtype=torch.bool))
    labels = torch.zeros(3, 3)
    labels[2] = -math.inf
    with pytest.raises(EmbedlossError, match=r"E105.*row 3.*only teacher scores of -inf"):
        create_loss("distill_kl_div")(emb, labels)


def test_an_excluded_candidate_has_target_zero():
    labels = torch.tensor([[1.0, 0.5, -math.inf]])
    scores = torch.zeros(1, 3, requires_grad=True)
    output = create_loss("distill_kl_div")(Scores.of(scores), labels)
    (gradient,) = backward(output, scores)
    p = labels.softmax(1)
    assert output.total.item() == pytest.approx(float((p[0, :2] * (p[0, :2].log() + math.log(3))).sum()), rel=1e-5)
    torch.testing.assert_close(gradient, 1 / 3 - p)


def test_targets_that_underflow_are_reported_once():
    loss, scores = create_loss("distill_kl_div"), Scores.of(torch.zeros(2, 3))
    labels = torch.tensor([[300.0, 0, 299], [0, 0, -math.inf]])
    with pytest.warns(UserWarning, match=r"up to 300 below.*of 1 of 5 candidates.*teacher_temperature=3"):
        loss(scores, labels)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss(scores, labels)
        create_loss("distill_kl_div(teacher_temperature=3.1)")(scores, labels)
        create_loss("distill_kl_div")(scores, torch.tensor([[50.0, 0, -math.inf], [0, 0, 0]]))
