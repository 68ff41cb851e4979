"""Classification losses against plain loops in float64, by what must not change them, and at the edges."""

import math

import pytest
import torch
from torch import nn

from embedloss import Embeddings, EmbedlossError, create_loss
from embedloss.embeddings import Scores
from embedloss.loss import ModelInfo
from embedloss.similarity import unit
from embedloss.testing.processes import Case, evaluate, evaluate_on_processes
from embedloss_classification.losses import BinaryCrossEntropyLoss, CrossEntropyLoss, SoftmaxLoss

SIZES = [1, 2, 7, 64]
PARTS = [(True, True, False), (True, False, False), (False, True, False), (False, False, True), (True, True, True)]


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def classes(rows, count, seed=0):
    return torch.randint(0, count, (rows,), generator=torch.Generator().manual_seed(seed))


def emb(u, v):
    return Embeddings.of(first=u, second=v)


def gradients(function, *tensors):
    leaves = [t.clone().requires_grad_() for t in tensors]
    value = function(*leaves)
    return value.detach(), torch.autograd.grad(value, leaves)


def loop_logits(loss, u, v):
    """Weights times features, one number at a time."""
    weight, bias = loss.classifier.weight.tolist(), loss.classifier.bias.tolist()
    result = []
    for a, b in zip(u.tolist(), v.tolist(), strict=True):
        features = []
        if loss.concatenation_sent_rep:
            features += a + b
        if loss.concatenation_sent_difference:
            features += [abs(p - q) for p, q in zip(a, b, strict=True)]
        if loss.concatenation_sent_multiplication:
            features += [p * q for p, q in zip(a, b, strict=True)]
        result.append([sum(w * f for w, f in zip(row, features, strict=True)) + c for row, c in zip(weight, bias, strict=True)])
    return result


def loop_cross_entropy(logits, target, smoothing=0.0):
    """Of one row; the target is an id or a list of probabilities."""
    count = len(logits)
    wanted = [float(c == target) for c in range(count)] if isinstance(target, int) else target
    wanted = [(1 - smoothing) * w + smoothing / count for w in wanted]
    top = max(logits)
    log_sum = top + math.log(sum(math.exp(z - top) for z in logits))
    return sum(w * (log_sum - z) for w, z in zip(wanted, logits, strict=True))


def loop_binary(z, y, pos_weight=1.0):
    def softplus(t):
        return max(t, 0.0) + math.log1p(math.exp(-abs(t)))

    return pos_weight * y * softplus(-z) + (1 - y) * softplus(z)


# -- softmax ---------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("rows", SIZES)
@pytest.mark.parametrize("parts", PARTS)
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_softmax_equals_loops(rows, parts, smoothing):
    u, v, labels = draw(rows, 5), draw(rows, 5, seed=1), classes(rows, 3)
    loss = SoftmaxLoss(5, 3, *parts, label_smoothing=smoothing).double()
    logits = loop_logits(loss, u, v)
    assert torch.allclose(loss.predict(emb(u, v)), torch.tensor(logits, dtype=torch.float64), atol=1e-12)
    expected = sum(loop_cross_entropy(z, y, smoothing) for z, y in zip(logits, labels.tolist(), strict=True)) / rows
    output = loss(emb(u, v), labels)
    assert float(output.total) == pytest.approx(expected, abs=1e-12)
    right = sum(z.index(max(z)) == y for z, y in zip(logits, labels.tolist(), strict=True)) / rows
    assert float(output.metrics["accuracy"]) == pytest.approx(right)
    probabilities = draw(rows, 3, seed=2).softmax(1)
    expected = sum(loop_cross_entropy(z, y, smoothing) for z, y in zip(logits, probabilities.tolist(), strict=True)) / rows
    assert float(loss(emb(u, v), probabilities).total) == pytest.approx(expected, abs=1e-12)


def test_softmax_multi_margin():
    u, v, labels = draw(7, 5), draw(7, 5, seed=1), classes(7, 3)
    loss = SoftmaxLoss(5, 3, loss_fct="MultiMarginLoss").double()
    logits = loop_logits(loss, u, v)
    expected = sum(
        sum(max(0.0, 1 - z[y] + z[c]) for c in range(3) if c != y) / 3 for z, y in zip(logits, labels.tolist(), strict=True)
    )
    assert float(loss(emb(u, v), labels).total) == pytest.approx(expected / 7, abs=1e-12)
    assert loss.to_expression() == "softmax(embedding_dimension=5, num_labels=3, loss_fct='multi-margin')"
    with pytest.raises(EmbedlossError, match=r"E105.*class ids, not probabilities"):
        loss(emb(u, v), torch.full((7, 3), 1 / 3))


def test_softmax_learns_and_its_classifier_is_a_weight():
    u, v, labels = draw(24, 6), draw(24, 6, seed=1), classes(24, 3)
    loss = SoftmaxLoss(6, 3).double()
    assert set(dict(loss.named_parameters())) == {"classifier.weight", "classifier.bias"}
    leaves = [u.requires_grad_(), v.requires_grad_()]
    optimizer = torch.optim.Adam([*leaves, *loss.parameters()], 0.05)
    start = loss(emb(*leaves), labels)
    for _ in range(60):
        optimizer.zero_grad()
        loss(emb(*leaves), labels).total.backward()
        assert all(float(t.grad.norm()) > 0 for t in (*leaves, *loss.parameters()))
        optimizer.step()
    end = loss(emb(*leaves), labels)
    assert float(end.total) < 0.2 * float(start.total)
    assert float(end.metrics["accuracy"]) == 1


def test_rows_in_another_order_give_the_same():
    u, v, labels = draw(9, 4), draw(9, 4, seed=1), classes(9, 3)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(2))
    loss = SoftmaxLoss(4, 3).double()
    assert torch.allclose(loss(emb(u[order], v[order]), labels[order]).total, loss(emb(u, v), labels).total, atol=1e-12)
    symmetric = SoftmaxLoss(4, 3, False, True, True).double()
    assert torch.allclose(symmetric(emb(v, u), labels).total, symmetric(emb(u, v), labels).total, atol=1e-12)
    assert not torch.allclose(loss(emb(v, u), labels).total, loss(emb(u, v), labels).total)


def test_classifier_is_made_for_the_model_and_the_data():
    loss = create_loss("softmax")
    assert loss.classifier is None
    assert list(loss.parameters()) == []
    loss.prepare(ModelInfo(dimension=6, num_classes=4))
    before = loss.classifier.weight.clone()
    assert before.shape == (4, 18)
    loss.prepare(ModelInfo(dimension=6, num_classes=4))
    assert torch.equal(loss.classifier.weight, before)
    assert loss.to_expression() == "softmax()"
    old_name = create_loss("softmax(sentence_embedding_dimension=6, num_labels=2)")
    assert old_name.embedding_dimension == 6
    assert old_name.classifier.weight.shape == (2, 18)


def test_classifier_is_made_at_first_use():
    u, v = draw(4, 6), draw(4, 6, seed=1)
    by_id, by_probability = create_loss("softmax"), create_loss("softmax")
    by_id(emb(u, v), [0, 4, 1, 1])
    by_probability(emb(u, v), torch.full((4, 3), 1 / 3))
    assert (by_id.classifier.out_features, by_probability.classifier.out_features) == (5, 3)
    with pytest.raises(EmbedlossError, match=r"E105.*class 5 in row 2 of this batch, but num_labels is 5"):
        by_id(emb(u, v), [0, 5, 1, 1])
    truncated = create_loss("softmax(num_labels=3)")
    truncated(emb(u, v).map(lambda x: x[:, :2]), [0, 1, 2, 2])
    assert truncated.classifier.in_features == 18


def test_start_depends_on_the_seed_alone():
    def weights(seed, drawn=0):
        torch.manual_seed(seed)
        torch.rand(drawn)
        state = torch.get_rng_state()
        weight = SoftmaxLoss(6, 3).classifier.weight
        assert torch.equal(torch.get_rng_state(), state)
        return weight

    with torch.random.fork_rng():
        assert torch.equal(weights(1), weights(1, drawn=100))
        assert not torch.equal(weights(1), weights(2))
        assert 0.9 / math.sqrt(18) < float(weights(1).abs().max()) <= 1 / math.sqrt(18)


def test_a_state_is_loaded_before_the_sizes_are_known():
    trained = SoftmaxLoss(6, 3)
    fresh = nn.ModuleDict({"loss": create_loss("softmax")})
    fresh.load_state_dict({f"loss.{k}": v for k, v in trained.state_dict().items()})
    u, v = draw(4, 6), draw(4, 6, seed=1)
    assert torch.equal(fresh["loss"].predict(emb(u, v)), trained.predict(emb(u, v)))


@pytest.mark.parametrize("parts", PARTS)
@pytest.mark.parametrize("width", [1, 3, 6])
def test_truncated_embeddings_use_the_matching_columns(parts, width):
    u, v, labels = draw(7, 6), draw(7, 6, seed=1), classes(7, 3)
    loss = SoftmaxLoss(6, 3, *parts).double()
    padded = [torch.nn.functional.pad(unit(x[:, :width]), (0, 6 - width)) for x in (u, v)]  # zeros multiply the rest away
    view = emb(u, v).map(lambda x: unit(x[..., :width]))
    assert torch.allclose(loss(view, labels).total, loss(emb(*padded), labels).total, atol=1e-12)
    _, grads = gradients(lambda a, b: loss(emb(a, b).map(lambda x: unit(x[..., :width])), labels).total, u, v)
    assert width == 1 or all(float(g[:, :width].norm()) > 0 for g in grads)
    assert all(torch.equal(g[:, width:], torch.zeros(7, 6 - width)) for g in grads)


def test_sizes_that_do_not_fit_are_refused():
    loss = SoftmaxLoss(6, 3)
    with pytest.raises(EmbedlossError, match=r"E203.*embedding_dimension 6, but the model gives 8"):
        loss.prepare(ModelInfo(dimension=8, num_classes=3))
    with pytest.raises(EmbedlossError, match=r"E105.*num_labels 3, but the data has 5"):
        loss.prepare(ModelInfo(dimension=6, num_classes=5))
    with pytest.raises(EmbedlossError, match=r"E203.*number of classes"):
        create_loss("softmax").prepare(ModelInfo(dimension=6))
    with pytest.raises(EmbedlossError, match=r"E206.*dimension 6, got 7"):
        loss(emb(draw(2, 7), draw(2, 7)), [0, 1])
    with pytest.raises(EmbedlossError, match=r"E203.*no classifier"):
        create_loss("softmax").predict(emb(draw(2, 7), draw(2, 7)))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("softmax(6, 0)", "num_labels must be a positive integer"),
        ("softmax(1.5, 2)", "embedding_dimension must be a positive integer"),
        ("softmax(loss_fct='mse')", "loss_fct must be one of cross-entropy, multi-margin"),
        ("softmax(label_smoothing=2)", "label_smoothing must be from 0 to 1"),
        ("softmax(loss_fct='multi-margin', label_smoothing=0.1)", "label_smoothing goes with"),
        ("softmax(concatenation_sent_rep=False, concatenation_sent_difference=False)", "at least one"),
        ("bce(pos_weight=0)", "pos_weight must be above 0"),
        ("bce(activation_fn='gelu')", "activation_fn must be one of identity"),
        ("bce(reduction='none')", "reduction must be mean or sum"),
        ("bce(scale=-1)", "scale must be above 0"),
        ("ce(label_smoothing=-1)", "label_smoothing must be from 0 to 1"),
        ("ce(weight=[1, -1])", "weight must be a list of numbers of at least 0"),
    ],
)
def test_wrong_parameters(text, message):
    with pytest.raises(EmbedlossError, match=f"E203.*{message}"):
        create_loss(text)


@pytest.mark.parametrize(
    "text",
    [
        "softmax(num_labels=3, concatenation_sent_multiplication=True, label_smoothing=0.1)",
        "binary_cross_entropy(activation_fn='sigmoid', pos_weight=4, scale=5)",
        "cross_entropy(weight=[1, 2.5], ignore_index=7, reduction='sum', label_smoothing=0.1)",
    ],
)
def test_expression_round_trip(text):
    assert create_loss(text).to_expression() == text


# -- labels of classes -----------------------------------------------------------------------------------------------------
def class_losses():
    """(name, call) of the two losses that take classes, both of three."""
    softmax, cross = SoftmaxLoss(4, 3).double(), CrossEntropyLoss()
    return [
        ("softmax", lambda x, y: softmax(emb(x, x.flip(0)), y)),
        ("cross-entropy", lambda x, y: cross(Scores.of(x[:, :3]), y)),
    ]


@pytest.mark.parametrize("index", [0, 1])
def test_class_labels_are_checked(index):
    name, call = class_losses()[index]
    x = draw(3, 4)
    for labels, message in (
        ([0, 3, 1], "class 3 in row 2 of this batch, but .* 3"),
        ([0, 1, -1], "class -1 in row 3"),
        ([0.0, 1.0, 2.0], "takes class ids"),
        (torch.full((3, 2), 0.5), "2 class probabilities, but .* 3"),
        (torch.tensor([[0.2, 0.3, 0.5], [0.5, 0.5, 0.5], [1, 0, 0]]), "row 2"),
        (torch.tensor([[0.2, 0.3, 0.5], [0, 0, 1], [2.0, -1.0, 0]]), "row 3"),
    ):
        with pytest.raises(EmbedlossError, match=f"E105.*{message}"):
            call(x, labels)
    with pytest.raises(EmbedlossError, match=f"E206.*'{name}' needs labels"):
        call(x, None)


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64, torch.bool])
def test_any_integer_labels_of_any_shape(index, dtype):
    _, call = class_losses()[index]
    x, labels = draw(4, 4), torch.tensor([1, 0, 1, 1])
    base = call(x, labels)
    assert float(base.total) > 0
    assert call(x, labels.to(dtype)).total == call(x, labels[:, None]).total == base.total
    one_hot = torch.nn.functional.one_hot(labels, 3)
    assert torch.allclose(call(x, one_hot).total, base.total)
    assert torch.equal(call(x, one_hot).metrics["accuracy"], base.metrics["accuracy"])


@pytest.mark.parametrize("index", [0, 1])
def test_ignored_rows_do_not_count(index):
    _, call = class_losses()[index]
    x = draw(4, 4) if index else torch.cat([draw(2, 4)] * 2)  # of softmax, row i is paired with row 3 - i
    output = call(x, [1, -100, -100, 1])
    alone = call(x[[0, 3]], [1, 1])
    assert torch.allclose(output.total, alone.total)
    assert float(output.total) > 0
    assert output.metrics["accuracy"] == alone.metrics["accuracy"]
    assert float(output.metrics["active"]) == 0.5
    value, (gradient,) = gradients(lambda t: call(t, [-100] * 4).total, x)
    assert float(value) == 0
    assert torch.equal(gradient, torch.zeros(4, 4))
    assert float(call(x, [-100] * 4).metrics["active"]) == 0


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize("labels", [[0, 1, 2, 1], [-100, 1, 1, 1], [-100] * 4])
def test_nan_in_nan_out(index, labels):
    _, call = class_losses()[index]
    x = draw(4, 4)
    x[0, 0] = torch.nan
    assert bool(call(x, labels).total.isnan())


# -- cross-entropy ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("rows", SIZES)
@pytest.mark.parametrize("count", [2, 3, 10])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("activation", ["identity", "sigmoid", "tanh", "relu"])
def test_cross_entropy_equals_loops(rows, count, smoothing, activation):
    scores, labels = draw(rows, count) * 3, classes(rows, count)
    act = {
        "identity": lambda t: t,
        "sigmoid": lambda t: 1 / (1 + math.exp(-t)),
        "tanh": math.tanh,
        "relu": lambda t: max(t, 0.0),
    }[activation]
    rows_of = [[act(z) for z in row] for row in scores.tolist()]
    terms = [loop_cross_entropy(z, y, smoothing) for z, y in zip(rows_of, labels.tolist(), strict=True)]
    loss = CrossEntropyLoss(activation, label_smoothing=smoothing)
    assert float(loss(Scores.of(scores), labels).total) == pytest.approx(sum(terms) / rows, abs=1e-12)
    loss = CrossEntropyLoss(activation, reduction="sum", label_smoothing=smoothing)
    assert float(loss(Scores.of(scores), labels).total) == pytest.approx(sum(terms), abs=1e-12)


def test_class_weights():
    scores, labels = draw(6, 3), torch.tensor([0, 1, 2, 2, 9, 1])
    weights = [0.1, 0.02, 0.05]
    terms = [(weights[y], loop_cross_entropy(z, y)) for z, y in zip(scores.tolist(), labels.tolist(), strict=True) if y != 9]
    expected = sum(w * t for w, t in terms) / sum(w for w, _ in terms)  # the divisor is below 1
    assert float(CrossEntropyLoss(weight=weights, ignore_index=9)(Scores.of(scores), labels).total) == pytest.approx(expected)
    with pytest.raises(EmbedlossError, match=r"E203.*3 class weights, but the model has 4 outputs"):
        CrossEntropyLoss(weight=weights)(Scores.of(draw(6, 4)), labels)


def test_cross_entropy_needs_one_output_a_class():
    with pytest.raises(EmbedlossError, match=r"E105.*one output a class; this one has 1 output"):
        CrossEntropyLoss()(Scores.of(draw(3)), [0, 0, 0])
    with pytest.raises(EmbedlossError, match=r"E206.*takes Scores.*use softmax"):
        CrossEntropyLoss()(emb(draw(3, 4), draw(3, 4)), [0, 0, 0])
    with pytest.raises(EmbedlossError, match=r"E105.*3 classes, but the number of the model's outputs is 2"):
        CrossEntropyLoss().prepare(ModelInfo(dimension=2, encoder=Outputs(), num_classes=3))
    CrossEntropyLoss().prepare(ModelInfo(dimension=3, encoder=Outputs(), num_classes=3))


class Outputs:
    kind = "cross-encoder"


# -- binary cross-entropy --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("rows", SIZES)
@pytest.mark.parametrize("pos_weight", [None, 4.0])
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("activation", ["identity", "sigmoid"])
def test_binary_cross_entropy_equals_loops(rows, pos_weight, soft, activation):
    scores = draw(rows) * 4
    labels = draw(rows, seed=1).sigmoid() if soft else classes(rows, 2)
    act = (lambda t: 1 / (1 + math.exp(-t))) if activation == "sigmoid" else (lambda t: t)
    terms = [loop_binary(act(z), y, pos_weight or 1) for z, y in zip(scores.tolist(), labels.tolist(), strict=True)]
    loss = BinaryCrossEntropyLoss(activation, pos_weight)
    assert float(loss(Scores.of(scores), labels).total) == pytest.approx(sum(terms) / rows, abs=1e-12)
    loss = BinaryCrossEntropyLoss(activation, pos_weight, reduction="sum")
    assert float(loss(Scores.of(scores), labels).total) == pytest.approx(sum(terms), abs=1e-12)


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_binary_cross_entropy_trains_embeddings(similarity):
    u, v, labels = draw(6, 4), draw(6, 4, seed=1), torch.tensor([1, 0, 0, 1, 1, 0])
    loss = BinaryCrossEntropyLoss(similarity_fct=similarity, scale=5.0)
    values = (u * v).sum(1) if similarity == "dot" else torch.cosine_similarity(u, v)
    expected = loss(Scores.of(5 * values), labels).total
    assert torch.allclose(loss(emb(u, v), labels).total, expected, atol=1e-12)
    _, (du, dv) = gradients(lambda a, b: loss(emb(a, b), labels).total, u, v)
    assert float(du.norm()) > 0
    assert float(loss(emb(u - 0.1 * du, v - 0.1 * dv), labels).total) < float(expected)


def test_masked_candidates_have_no_influence():
    scores, labels = draw(3, 2), torch.tensor([[1, 0], [0, 1], [1, 1]])
    mask = torch.tensor([[True, False], [True, True], [False, False]])
    loss = BinaryCrossEntropyLoss()
    value, (gradient,) = gradients(lambda s: loss(Scores.of(s, mask), labels).total, scores)
    kept = [(0, 0), (1, 0), (1, 1)]
    assert float(value) == pytest.approx(sum(loop_binary(float(scores[i]), int(labels[i])) for i in kept) / 3)
    assert torch.equal(gradient != 0, mask)
    other = torch.where(mask, scores, torch.nan)
    assert torch.equal(loss(Scores.of(other, mask), labels).total, value)
    value, (gradient,) = gradients(lambda s: loss(Scores.of(s, mask & False), labels).total, scores)
    assert float(value) == 0
    assert torch.equal(gradient, torch.zeros(3, 2))


def test_binary_labels_are_checked():
    loss = BinaryCrossEntropyLoss()
    for labels, message in (([0, 5, 1], "row 2 of this batch has 5"), ([0.0, 0.5, -0.25], "row 3 of this batch has -0.25")):
        for inputs in (Scores.of(draw(3)), emb(draw(3, 4), draw(3, 4, seed=1))):
            with pytest.raises(EmbedlossError, match=f"E105.*from 0 to 1; {message}"):
                loss(inputs, labels)
    with pytest.raises(EmbedlossError, match=r"E105.*row 1 .*not finite"):
        loss(Scores.of(draw(3)), [math.nan, 0, 1])
    with pytest.raises(EmbedlossError, match=r"E206.*3 rows but 2 labels"):
        loss(Scores.of(draw(3)), [1, 0])
    with pytest.raises(EmbedlossError, match=r"E206.*one score a label.*\(3, 2\).*use cross-entropy"):
        loss(Scores.of(draw(3, 2)), [1, 0, 1])
    with pytest.raises(EmbedlossError, match=r"E302.*1 output; this one has 3"):
        loss.prepare(ModelInfo(dimension=3, encoder=Outputs()))
    loss.prepare(ModelInfo(dimension=1, encoder=Outputs()))


def test_huge_logits_and_nan():
    loss = BinaryCrossEntropyLoss()
    value, (gradient,) = gradients(lambda s: loss(Scores.of(s), [1, 0, 1, 0]).total, torch.tensor([1e4, -1e4, -1e4, 1e4]))
    assert float(value) == pytest.approx(5000)
    assert gradient.tolist() == [0, 0, -0.25, 0.25]
    assert bool(loss(Scores.of(torch.tensor([0.0, torch.nan])), [1, 0]).total.isnan())
    large = CrossEntropyLoss()(Scores.of(torch.tensor([[1e4, -1e4], [1e4, -1e4]])), [0, 1])
    assert float(large.total) == pytest.approx(1e4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    scores, logits = draw(6).to(dtype), draw(6, 3).to(dtype)
    for loss, values, labels in (
        (BinaryCrossEntropyLoss(), scores, torch.tensor([1, 0, 0.5, 1, 0, 1])),
        (CrossEntropyLoss(), logits, classes(6, 3)),
    ):
        value, (gradient,) = gradients(lambda s, loss=loss, y=labels: loss(Scores.of(s), y).total, values)
        assert value.dtype == torch.float32
        assert torch.equal(value, loss(Scores.of(values.float()), labels).total)
        assert gradient.dtype == dtype
        assert float(gradient.float().norm()) > 0
    u, v = draw(6, 4).to(dtype), draw(6, 4, seed=1).to(dtype)
    loss = SoftmaxLoss(4, 3)
    found = loss(emb(u, v), classes(6, 3)).total
    assert found.dtype == torch.float32
    assert torch.equal(found, loss(emb(u.float(), v.float()), classes(6, 3)).total)


def test_equal_and_zero_vectors():
    u = draw(4, 5)
    u[0] = 0
    loss = SoftmaxLoss(5, 3, False, True, False).double()
    value, (gradient,) = gradients(lambda t: loss(emb(t, t), classes(4, 3)).total, u)
    assert bool(value.isfinite())
    assert torch.equal(gradient, torch.zeros(4, 5))  # |u - u| has no slope
    loss = SoftmaxLoss(5, 3).double()
    value, (gradient,) = gradients(lambda t: loss(emb(t, t), classes(4, 3)).total, u)
    assert bool(value.isfinite())
    assert float(gradient.norm()) > 0


# -- processes -------------------------------------------------------------------------------------------------------------
def test_two_processes_equal_one():
    pairs = {"first": draw(7, 4), "second": draw(7, 4, seed=1)}
    cases = [
        Case(SoftmaxLoss(4, 3).double(), pairs, torch.tensor([0, 1, 2, 2, -100, 1, -100])),
        Case(SoftmaxLoss(4, 3, label_smoothing=0.1).double(), pairs, draw(7, 3).softmax(1)),
        Case(create_loss("bce(pos_weight=3)"), pairs, draw(7).sigmoid()),
    ]
    for case, joint in zip(cases, evaluate_on_processes(cases, [5, 2]), strict=True):
        alone = evaluate(case.loss, case.roles, case.labels)
        assert float(alone.value) > 0
        assert torch.allclose(joint.value, alone.value, atol=1e-10, rtol=0)
        assert set(joint.parameters) == set(alone.parameters) == set(dict(case.loss.named_parameters()))
        found = {**joint.gradients, **joint.parameters}
        for name, wanted in {**alone.gradients, **alone.parameters}.items():
            assert float(wanted.norm()) > 0
            assert torch.allclose(found[name], wanted, atol=1e-10, rtol=0)
