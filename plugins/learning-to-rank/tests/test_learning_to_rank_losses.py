"""The losses as classes: both kinds of model, edges, refused input, warnings, expressions."""

import math
import pickle
import warnings

import pytest
import torch

from embedloss import Embeddings, EmbedlossError, create_loss, list_losses
from embedloss.embeddings import Scores
from embedloss_learning_to_rank import ListMLELoss, PListMLELambdaWeight, PListMLELoss

torch.set_num_threads(1)
SCHEMES = ["none", "ndcg-loss1", "ndcg-loss2", "lambdarank", "ndcg-loss2++"]
NAMES = ["lambda-loss", "rank-net", "list-net", "list-mle", "plist-mle", "adr-mse"]
EVERY = [
    *(f"lambda_loss(weighting_scheme='{s}')" for s in SCHEMES),
    "rank_net(k=2, reduction_log='natural')",
    "list_net()",
    "list_net(activation_fn='sigmoid')",
    "list_mle(respect_input_order=False)",
    "plist_mle(respect_input_order=False)",
    "plist_mle(lambda_weight=None, respect_input_order=False)",
    "adr_mse(alpha=2)",
]


def data(seed=0, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    mask = torch.arange(5)[None] < torch.tensor([5, 3, 1, 4])[:, None]
    scores = torch.randn(4, 5, generator=g, dtype=torch.float64).masked_fill(~mask, 0).to(dtype)
    grades = torch.randint(0, 4, (4, 5), generator=g).masked_fill(~mask, 0)
    grades[0, 0], grades[0, 1] = 3, 0
    return scores, grades, mask


def run(loss, scores, grades, mask):
    scores = scores.clone().requires_grad_()
    output = loss(Scores.of(scores, mask), grades)
    output.total.backward()
    return output, scores.grad


def test_the_family_is_complete_and_serves_both_kinds_of_model():
    specs = {s.name: s for s in list_losses(family="learning-to-rank")}
    assert set(specs) == set(NAMES)
    for spec in specs.values():
        assert spec.models == ("bi-encoder", "cross-encoder")
        assert spec.format_names() == ("listwise",)
        assert spec.citation


@pytest.mark.parametrize("name", NAMES)
def test_examples_of_the_pages_run(name):
    code = create_loss(name).spec.doc.split("```python")[1].split("```")[0]
    exec(code, {})


@pytest.mark.parametrize("expression", EVERY)
def test_expression_round_trip(expression):
    loss = create_loss(expression)
    again = create_loss(loss.to_expression())
    assert again.to_expression() == loss.to_expression()
    scores, grades, mask = data()
    assert again.compute_scores(scores, grades, mask) == loss.compute_scores(scores, grades, mask)
    assert pickle.loads(pickle.dumps(loss)).to_expression() == loss.to_expression()


def test_names_of_the_field():
    assert create_loss("lambda_loss(weighting_scheme='NDCGLoss2PPScheme')").weighting_scheme == "ndcg-loss2++"
    assert create_loss("lambda_loss(weighting_scheme=None)").to_expression() == "lambda_loss(weighting_scheme=None)"
    scores, grades, mask = data()
    plain = create_loss("lambda_loss(weighting_scheme=None)").compute_scores(scores, grades, mask)
    assert plain == create_loss("ranknet").compute_scores(scores, grades, mask)
    assert create_loss("list_net(activation_fn=None)").compute_scores(scores, grades, mask) == create_loss(
        "listnet"
    ).compute_scores(scores, grades, mask)


@pytest.mark.parametrize("expression", EVERY)
def test_embeddings_and_their_similarities_as_scores_are_the_same(expression):
    g = torch.Generator().manual_seed(1)
    query = torch.randn(3, 6, generator=g, dtype=torch.float64, requires_grad=True)
    docs = [torch.randn(n, 6, generator=g, dtype=torch.float64, requires_grad=True) for n in (4, 0, 2)]
    grades = torch.tensor([[2.0, 0, 1, 0], [0, 0, 0, 0], [1, 3, 0, 0]])
    loss = create_loss(expression)
    output = loss(Embeddings.of(query=query, docs=docs), grades)
    output.total.backward()
    scores, mask = torch.zeros(3, 4, dtype=torch.float64), torch.zeros(3, 4, dtype=torch.bool)
    for i, texts in enumerate(docs):
        for j, text in enumerate(texts):
            scores[i, j] = 20 * torch.cosine_similarity(query[i], text, dim=0).detach()
            mask[i, j] = True
    assert output.total.item() == pytest.approx(float(loss(Scores.of(scores, mask), grades).total), rel=1e-10)
    assert query.grad[0].abs().max() > 0
    assert query.grad[1].abs().max() == 0
    assert output.metrics["active"] == 1


@pytest.mark.parametrize("name", NAMES)
def test_parameters_of_a_bi_encoder(name):
    query, docs = torch.randn(2, 6), torch.randn(2, 3, 6)
    grades = torch.tensor([[2.0, 1, 0], [1, 1, 0]])
    loss = create_loss(name, similarity_fct="dot_score", scale=0.5)
    assert (loss.similarity_fct, loss.scale) == ("dot", 0.5)
    scores = 0.5 * torch.einsum("bd,bnd->bn", query, docs)
    torch.testing.assert_close(loss(Embeddings.of(query=query, docs=docs), grades).total, loss(Scores.of(scores), grades).total)


@pytest.mark.parametrize("expression", EVERY)
@pytest.mark.parametrize("lengths", [[0, 0], [1, 1], [1, 0]])
def test_nothing_to_order_gives_zero_with_gradient_zero(expression, lengths):
    mask = torch.arange(2)[None] < torch.tensor(lengths)[:, None]
    scores = torch.randn(2, 2)
    output, gradient = run(create_loss(expression), scores, torch.ones(2, 2), mask)
    assert gradient is not None
    assert gradient.abs().max() == 0
    assert output.metrics["active"] == 0
    # a document of grade 1 with itself is a pair of "ndcg-loss1", with weight 1 and probability 1/2
    constant = 1.0 if "ndcg-loss1" in expression and 1 in lengths else 0.0
    assert output.total.item() == pytest.approx(constant, abs=1e-6)


@pytest.mark.parametrize("expression", [e for e in EVERY if "lambda_loss" in e or "rank_net" in e])
@pytest.mark.parametrize("grade", [0.0, 2.0])
def test_equal_grades_give_pairs_nothing_to_learn(expression, grade):
    output, gradient = run(create_loss(expression), torch.randn(3, 4), torch.full((3, 4), grade), torch.ones(3, 4).bool())
    if "ndcg-loss1" not in expression:  # that one keeps pairs of equal grades
        assert output.total == 0
        assert gradient.abs().max() == 0
    assert output.metrics["active"] == 0
    assert gradient.isfinite().all()


@pytest.mark.parametrize("expression", EVERY)
def test_batch_without_width(expression):
    scores = torch.zeros(2, 0, requires_grad=True)
    output = create_loss(expression)(Scores.of(scores, torch.zeros(2, 0, dtype=torch.bool)), torch.zeros(2, 0))
    output.total.backward()
    assert output.total == 0
    assert scores.grad.shape == (2, 0)


@pytest.mark.parametrize("expression", [e for e in EVERY if "ndcg-loss1" not in e])
def test_empty_lists_do_not_count(expression):
    scores, grades, mask = data()
    loss = create_loss(expression)
    wanted = loss.compute_scores(scores, grades, mask)
    more = [torch.cat([t, torch.zeros(3, 5, dtype=t.dtype)]) for t in (scores, grades, mask)]
    assert wanted != 0
    torch.testing.assert_close(loss.compute_scores(*more), wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("expression", EVERY)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_float32(expression, dtype):
    scores, grades, mask = data(dtype=dtype)
    output, gradient = run(create_loss(expression), scores * 20, grades, mask)
    wanted, reference = run(create_loss(expression), (scores * 20).float(), grades, mask)
    assert output.total.dtype == torch.float32
    assert output.total == wanted.total
    assert reference.abs().max() > 0
    torch.testing.assert_close(gradient, reference.to(dtype))


@pytest.mark.parametrize("expression", EVERY)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_scores_that_are_not_finite_show(expression, value):
    scores, grades, mask = data()
    scores[2, 0] = value  # a list of one document, which no pair would see
    output, _ = run(create_loss(expression), scores, grades, mask)
    assert not output.total.isfinite()


@pytest.mark.parametrize("expression", EVERY)
@pytest.mark.parametrize("spread", [1e4, 1e8])
def test_huge_scores_keep_their_gradient(expression, spread):
    mask = torch.ones(1, 3, dtype=torch.bool)
    scores = torch.tensor([[-spread, 0.0, spread]])
    output, gradient = run(create_loss(expression), scores, torch.tensor([[2.0, 1.0, 0.0]]), mask)
    assert output.total.isfinite()
    assert gradient.isfinite().all()
    if "sigmoid" not in expression and "adr" not in expression:  # bounded, so they saturate
        assert gradient[0, 0] < 0


def test_list_net_leaves_out_grades_of_minus_infinity():
    scores, mask = torch.tensor([[0.3, -0.2, 0.9]], dtype=torch.float64), torch.ones(1, 3, dtype=torch.bool)
    value = create_loss("list_net").compute_scores(scores, torch.tensor([[1.0, 0.0, -math.inf]]), mask)
    p, q = torch.tensor([1.0, 0.0], dtype=torch.float64).softmax(0), scores[0].log_softmax(0)
    assert value.item() == pytest.approx(-(p[0] * q[0] + p[1] * q[1]).item(), rel=1e-12)
    with pytest.raises(EmbedlossError, match="row 1 of this batch has only grades of -inf"):
        create_loss("list_net")(Scores.of(scores), torch.full((1, 3), -math.inf))


@pytest.mark.parametrize("name", NAMES)
def test_refused_labels(name):
    loss, scores = create_loss(name), Scores.of(torch.randn(3, 4))
    for labels in (torch.zeros(3, 3), torch.zeros(3), torch.zeros(3, 4, 1)):
        with pytest.raises(EmbedlossError, match=r"E206.*one grade a document"):
            loss(scores, labels)
    with pytest.raises(EmbedlossError, match=r"E206.*3 rows but 2 labels"):
        loss(scores, torch.zeros(2, 4))
    with pytest.raises(EmbedlossError, match=r"E206.*needs labels"):
        loss(scores)
    bad = torch.zeros(3, 4)
    bad[1, 2] = float("nan")
    with pytest.raises(EmbedlossError, match=r"E105.*row 2"):
        loss(scores, bad)
    bad[1, 2] = float("inf")
    with pytest.raises(EmbedlossError, match=r"E105.*row 2.*inf"):
        loss(scores, bad)
    with pytest.raises(EmbedlossError, match=r"E206.*takes query, docs; found anchor, positive"):
        loss(Embeddings.of(anchor=torch.randn(3, 2), positive=torch.randn(3, 2)), torch.zeros(3, 1))
    mask = torch.ones(3, 4, dtype=torch.bool)
    mask[1, 2] = False  # what stands in the padding is nobody's grade
    assert loss(Scores.of(torch.randn(3, 4), mask), bad).total.isfinite()


def test_grades_whose_gain_overflows_are_refused_where_gains_are_used():
    scores, grades = Scores.of(torch.randn(1, 2)), torch.tensor([[61.0, 0.0]])
    for scheme in SCHEMES[1:]:
        with pytest.raises(EmbedlossError, match=r"E105.*grade 61.*up to 60"):
            create_loss("lambda_loss", weighting_scheme=scheme)(scores, grades)
        assert create_loss("lambda_loss", weighting_scheme=scheme)(scores, torch.tensor([[60.0, 0.0]])).total.isfinite()
    assert create_loss("rank_net")(scores, grades).total > 0


def test_wrong_parameters():
    for text, word in {
        "lambda_loss(weighting_scheme='ndcg')": "ndcg-loss2",
        "lambda_loss(k=0)": "k must be",
        "lambda_loss(k=2.5)": "k must be",
        "lambda_loss(sigma=0)": "sigma",
        "lambda_loss(eps=0)": "eps",
        "lambda_loss(mu=-1)": "mu",
        "rank_net(reduction_log='decimal')": "binary, natural",
        "list_net(activation_fn='softmax')": "identity, sigmoid",
        "list_net(similarity_fct='cosinus')": "cosine, dot",
        "list_net(scale=0)": "scale",
        "adr_mse(alpha=0)": "alpha",
        "plist_mle(lambda_weight='log')": "lambda_weight",
        "list_mle(respect_input_order=1)": "respect_input_order",
    }.items():
        with pytest.raises(EmbedlossError, match=rf"E203.*{word}"):
            create_loss(text)


@pytest.mark.parametrize("name", NAMES)
def test_mini_batch_size_is_accepted_with_a_warning(name):
    with pytest.warns(UserWarning, match="mini_batch_size has no effect"):
        loss = create_loss(name, mini_batch_size=16)
    scores, grades, mask = data()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert loss.compute_scores(scores, grades, mask) == create_loss(name).compute_scores(scores, grades, mask)


@pytest.mark.parametrize("name", ["list-mle", "plist-mle"])
def test_input_order_is_the_default_and_warns_once_when_grades_disagree(name):
    scores, mask = torch.randn(2, 3), torch.tensor([[True, True, True], [True, True, False]])
    falling, rising = torch.tensor([[2.0, 1, 1], [3, 0, 9]]), torch.tensor([[0.0, 1, 2], [3, 0, 9]])
    loss = create_loss(name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        first = loss.compute_scores(scores, falling, mask)  # the 9 is padding
        create_loss(name, respect_input_order=False).compute_scores(scores, rising, mask)
    with pytest.warns(UserWarning, match=r"1 of 2 lists.*respect_input_order=False"):
        second = loss.compute_scores(scores, rising, mask)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss.compute_scores(scores, rising, mask)
    assert first == second
    by_grade = create_loss(name, respect_input_order=False)
    assert by_grade.compute_scores(scores, rising, mask) != second
    turned = loss.compute_scores(scores[:1].flip(1), rising[:1].flip(1), mask[:1])
    torch.testing.assert_close(by_grade.compute_scores(scores[:1], rising[:1], mask[:1]), turned)


def test_own_discount_gets_ranks():
    seen = []

    def discount(ranks):
        seen.append(ranks)
        return 1 / torch.log1p(ranks)

    scores, grades, mask = data()
    loss = PListMLELoss(PListMLELambdaWeight(discount), respect_input_order=False)
    assert loss.lambda_weight is discount
    value = loss.compute_scores(scores, grades, mask)
    assert seen[0].tolist() == [1, 2, 3, 4, 5]
    assert value == PListMLELoss(discount, respect_input_order=False).compute_scores(scores, grades, mask)
    assert value != PListMLELoss(respect_input_order=False).compute_scores(scores, grades, mask)
    with pytest.raises(EmbedlossError, match="E203"):
        loss.to_expression()
    with pytest.raises(EmbedlossError, match="one weight a rank"):
        PListMLELoss(lambda ranks: ranks[:1], respect_input_order=False).compute_scores(scores, grades, mask)
    assert PListMLELoss(PListMLELambdaWeight()).to_expression() == "plist_mle()"
    assert PListMLELoss(None).to_expression() == "plist_mle(lambda_weight=None)"
    without = PListMLELoss(None, respect_input_order=False).compute_scores(scores, grades, mask)
    assert without == ListMLELoss(respect_input_order=False).compute_scores(scores, grades, mask)


@pytest.mark.parametrize("expression", EVERY)
def test_training_on_scores_puts_the_best_documents_first(expression):
    grades = torch.tensor([[0.0, 3, 1, 2], [1, 0, 2, 3]])
    scores = torch.tensor([[2.0, -1, 0, 1], [0, 3, 1, -2]], requires_grad=True)

    def misordered():
        higher = grades[:, :, None] > grades[:, None, :]
        return int((higher & (scores[:, :, None] < scores[:, None, :])).sum())

    assert misordered() == 10
    loss, optimizer = create_loss(expression), torch.optim.Adam([scores], lr=0.1)
    for _ in range(150):
        optimizer.zero_grad()
        loss(Scores.of(scores), grades).total.backward()
        optimizer.step()
    assert torch.equal(scores.argmax(1), grades.argmax(1))
    assert misordered() <= 3  # lambdarank and k = 2 look at the top, and a sigmoid saturates: they leave some at the end
