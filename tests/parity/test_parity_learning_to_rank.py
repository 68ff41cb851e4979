"""Learning to rank against sentence-transformers' cross-encoder losses, on ready logits of ragged lists."""

import itertools
import warnings

import pytest
import torch
from torch import nn

from embedloss import create_loss
from embedloss.embeddings import Scores

pytest.importorskip("sentence_transformers")
from sentence_transformers.cross_encoder import losses as peer

torch.set_num_threads(1)
TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-5}
BITS = {torch.float64: "float64", torch.float32: "float32"}
SCHEMES = {
    "none": peer.NoWeightingScheme,
    "ndcg-loss1": peer.NDCGLoss1Scheme,
    "ndcg-loss2": peer.NDCGLoss2Scheme,
    "lambdarank": peer.LambdaRankScheme,
    "ndcg-loss2++": peer.NDCGLoss2PPScheme,
}
LENGTHS = {
    "one list": [4],
    "ragged": [5, 3, 1, 4, 2],
    "equal": [6, 6, 6],
    "many": [1 + i % 9 for i in range(64)],
}


class Logits:
    """What the peer's losses ask of a CrossEncoder; the score of the pair (query, "7") is number 7."""

    num_labels = 1
    device = torch.device("cpu")

    def __init__(self, values):
        self.values = values

    def preprocess(self, pairs, prompt=None, task=None):
        return {"index": torch.tensor([int(document) for _, document in pairs], dtype=torch.long)}

    def __call__(self, features):
        return {"scores": self.values[features["index"]][:, None]}


class Wide(torch.overrides.TorchFunctionMode):
    """The peer lifts logits by `.float()` and makes matrices in float32; here that means float64, so that 1e-8 can be asked."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is torch.Tensor.float:
            return args[0].double()
        return function(*args, **(kwargs or {}))


def case(seed, lengths, grades="ties"):
    g = torch.Generator().manual_seed(seed)
    values = torch.randn(sum(lengths), generator=g, dtype=torch.float64) * 2
    if grades == "ties":
        labels = [torch.randint(0, 4, (n,), generator=g).double() for n in lengths]
    elif grades == "real":
        labels = [3 * torch.rand(n, generator=g, dtype=torch.float64) - 0.5 for n in lengths]
    else:
        labels = [torch.zeros(n, dtype=torch.float64) for n in lengths]
    return values, labels


def padded(parts):
    return nn.utils.rnn.pad_sequence(parts, batch_first=True)


def ours(loss, values, labels, dtype):
    leaf = values.detach().to(dtype, copy=True).requires_grad_()
    lengths = [len(y) for y in labels]
    scores, mask = padded(leaf.split(lengths)), padded([torch.ones(n, dtype=torch.bool) for n in lengths])
    value = loss(Scores.of(scores, mask), padded(labels)).total
    value.backward()
    return value.detach(), leaf.grad


def theirs(make, values, labels, dtype):
    leaf = values.detach().to(dtype, copy=True).requires_grad_()
    numbers = iter(range(len(values)))
    docs = [[str(next(numbers)) for _ in y] for y in labels]
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        # The default module of the activation is made at import; nothing here has weights.
        loss = make(Logits(leaf))
        inputs, wanted = [["q"] * len(labels), docs], [y.to(dtype) for y in labels]
        if dtype == torch.float64:
            with Wide():
                value = loss(inputs, wanted)
        else:
            value = loss(inputs, wanted)
    finally:
        torch.set_default_dtype(before)
    assert value.dtype == dtype
    value.backward()
    return value.detach(), torch.zeros_like(leaf) if leaf.grad is None else leaf.grad


def same(record_property, name, expression, make, values, labels, dtype, learns=True):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # input order on shuffled grades
        value, gradient = ours(create_loss(expression), values, labels, dtype)
    wanted, reference = theirs(make, values, labels, dtype)
    record_property("parity", (name, f"value {BITS[dtype]}" if learns else "edges"))
    record_property("parity", (name, f"gradient {BITS[dtype]}" if learns else "edges"))
    if learns:
        assert reference.abs().max() > 0
    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(value, wanted, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(gradient, reference, rtol=tolerance, atol=tolerance * float(reference.abs().max().clamp(max=1)))


DTYPES = pytest.mark.parametrize("dtype", TOLERANCE)


@DTYPES
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("shape", LENGTHS)
def test_lambda_loss(record_property, scheme, shape, dtype):
    options = itertools.product((None, 1, 3), (1.0, 2.0), ("binary", "natural"), ("identity", "sigmoid"), ("ties", "real"))
    for seed, (k, sigma, log, activation, grades) in enumerate(options):
        if shape == "many" and seed % 6:
            continue
        values, labels = case(seed, LENGTHS[shape], grades)
        text = f"lambda_loss('{scheme}', k={k}, sigma={sigma}, reduction_log='{log}', activation_fn='{activation}')"
        function = nn.Sigmoid() if activation == "sigmoid" else nn.Identity()

        def make(model, k=k, sigma=sigma, log=log, function=function):
            return peer.LambdaLoss(model, SCHEMES[scheme](), k=k, sigma=sigma, reduction_log=log, activation_fn=function)

        same(record_property, "lambda-loss", text, make, values, labels, dtype)


@DTYPES
def test_lambda_loss_mu_eps_and_defaults(record_property, dtype):
    values, labels = case(3, LENGTHS["ragged"])
    same(record_property, "lambda-loss", "lambda_loss", peer.LambdaLoss, values, labels, dtype)
    same(
        record_property,
        "lambda-loss",
        "lambda_loss(mu=3, eps=20)",
        lambda m: peer.LambdaLoss(m, peer.NDCGLoss2PPScheme(mu=3.0), eps=20.0),
        values,
        labels,
        dtype,
    )


@DTYPES
@pytest.mark.parametrize("shape", ["ragged", "equal", "many"])
def test_rank_net(record_property, shape, dtype):
    for seed, (k, sigma, log) in enumerate(itertools.product((None, 2), (1.0, 0.5), ("binary", "natural"))):
        values, labels = case(seed, LENGTHS[shape])
        text = f"rank_net(k={k}, sigma={sigma}, reduction_log='{log}')"

        def make(model, k=k, sigma=sigma, log=log):
            return peer.RankNetLoss(model, k=k, sigma=sigma, reduction_log=log)

        same(record_property, "rank-net", text, make, values, labels, dtype)


@DTYPES
@pytest.mark.parametrize("shape", ["one list", "ragged", "equal", "many"])
@pytest.mark.parametrize("grades", ["ties", "real", "zero"])
def test_list_net(record_property, shape, grades, dtype):
    for seed in range(4):
        same(record_property, "list-net", "list_net", peer.ListNetLoss, *case(seed, LENGTHS[shape], grades), dtype)


@DTYPES
@pytest.mark.parametrize("shape", ["one list", "ragged", "equal", "many"])
@pytest.mark.parametrize("respect", [True, False])
def test_list_mle_and_plist_mle(record_property, shape, respect, dtype):
    # Without ties where grades are read: the peer's sort is not stable.
    for seed in range(4):
        values, labels = case(seed, LENGTHS[shape], "ties" if respect else "real")
        for name, cls in (("list-mle", peer.ListMLELoss), ("plist-mle", peer.PListMLELoss)):
            text = f"{name.replace('-', '_')}(respect_input_order={respect})"
            same(record_property, name, text, lambda m, c=cls: c(m, respect_input_order=respect), values, labels, dtype)
        text = f"plist_mle(lambda_weight=None, respect_input_order={respect})"
        same(
            record_property,
            "plist-mle",
            text,
            lambda m: peer.PListMLELoss(m, lambda_weight=None, respect_input_order=respect),
            values,
            labels,
            dtype,
        )


@DTYPES
def test_plist_mle_beyond_127_documents(record_property, dtype):
    values, labels = case(0, [200, 130, 90], "real")
    make = lambda m: peer.PListMLELoss(m, respect_input_order=False)  # noqa: E731
    same(record_property, "plist-mle", "plist_mle(respect_input_order=False)", make, values, labels, dtype)


@DTYPES
@pytest.mark.parametrize("shape", ["one list", "ragged", "equal", "many"])
def test_adr_mse(record_property, shape, dtype):
    for seed, alpha in itertools.product(range(3), (0.5, 1.0, 3.0)):
        values, labels = case(seed, LENGTHS[shape])
        same(
            record_property,
            "adr-mse",
            f"adr_mse(alpha={alpha})",
            lambda m, a=alpha: peer.ADRMSELoss(m, a),
            values,
            labels,
            dtype,
        )


PLAIN = {
    "lambda-loss": peer.LambdaLoss,
    "rank-net": peer.RankNetLoss,
    "list-net": peer.ListNetLoss,
    "list-mle": peer.ListMLELoss,
    "plist-mle": peer.PListMLELoss,
    "adr-mse": peer.ADRMSELoss,
}


@pytest.mark.parametrize("name", PLAIN)
def test_edges(record_property, name):
    """One document a list, and grades that are all zero."""
    for lengths, grades in (([1, 1], "ties"), ([5, 3], "zero"), ([1], "zero")):
        same(record_property, name, name, PLAIN[name], *case(1, lengths, grades), torch.float64, learns=False)


@pytest.mark.parametrize("name", PLAIN)
def test_equal_scores(record_property, name):
    """Equal logits, on lists so short that the peer's sort keeps the given order."""
    values, labels = case(5, [6, 4, 5])
    for tied in (values * 0, values.round()):
        same(record_property, name, name, PLAIN[name], tied, labels, torch.float64)


@pytest.mark.parametrize("name", ["list-mle", "plist-mle"])
def test_one_document_a_list_stays_connected(record_property, name):
    """The peer returns a new leaf, which DDP takes for unused parameters."""
    record_property("parity", (name, "differs on purpose"))
    values, labels = torch.randn(2, requires_grad=True), [torch.ones(1), torch.ones(1)]
    wanted = PLAIN[name](Logits(values))([["q", "q"], [["0"], ["1"]]], labels)
    assert wanted.item() == 0
    assert wanted.is_leaf
    value = create_loss(name)(Scores.of(values), torch.ones(2, 1)).total
    value.backward()
    assert value.item() == 0
    assert values.grad.tolist() == [0, 0]


def test_list_net_with_an_empty_list(record_property):
    """The peer's softmax over no documents makes the whole batch NaN; here such a list does not count."""
    record_property("parity", ("list-net", "differs on purpose"))
    values, labels = case(0, [3, 0, 2])
    wanted, _ = theirs(peer.ListNetLoss, values, labels, torch.float32)
    assert wanted.isnan()
    value, gradient = ours(create_loss("list_net"), values, labels, torch.float64)
    without, reference = ours(create_loss("list_net"), values, [labels[0], labels[2]], torch.float64)
    assert reference.abs().max() > 0
    torch.testing.assert_close(value, without)
    torch.testing.assert_close(gradient, reference)


@pytest.mark.parametrize("name", ["list-mle", "plist-mle"])
def test_list_mle_with_an_empty_list(record_property, name):
    """The peer counts an empty list as a 0 in the mean over three; here the mean is over two."""
    record_property("parity", (name, "differs on purpose"))
    values, labels = case(0, [3, 0, 2])
    wanted, reference = theirs(lambda m: PLAIN[name](m, respect_input_order=False), values, labels, torch.float64)
    value, gradient = ours(create_loss(name, respect_input_order=False), values, labels, torch.float64)
    assert reference.abs().max() > 0
    torch.testing.assert_close(value * 2 / 3, wanted, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(gradient * 2 / 3, reference, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", PLAIN)
def test_a_batch_of_empty_lists(record_property, name):
    """The peer fails in torch.cat; here the loss is 0."""
    record_property("parity", (name, "differs on purpose"))
    with pytest.raises((ValueError, RuntimeError)):
        PLAIN[name](Logits(torch.zeros(1)))([["q"], [[]]], [torch.zeros(0)])
    assert create_loss(name)(Scores.of(torch.zeros(1, 0)), torch.zeros(1, 0)).total == 0


@pytest.mark.parametrize("name", ["lambda-loss", "rank-net"])
def test_a_nan_score_shows(record_property, name):
    """The peer puts 0 in its place and goes on."""
    record_property("parity", (name, "differs on purpose"))
    values, labels = case(0, [4, 3])
    values[1] = float("nan")
    wanted, _ = theirs(PLAIN[name], values, labels, torch.float32)
    assert wanted.isfinite()
    value, _ = ours(create_loss(name), values, labels, torch.float32)
    assert value.isnan()


def test_own_discount_gets_ranks_and_not_the_mask(record_property):
    """The peer hands the function its boolean mask: uniform weights for the longest list, none for shorter ones."""
    record_property("parity", ("plist-mle", "differs on purpose"))

    def discount(ranks):
        return 1.0 / torch.log1p(ranks)

    values, labels = case(2, [5, 3], "real")
    weight = peer.PListMLELambdaWeight(rank_discount_fn=discount)
    make = lambda m: peer.PListMLELoss(m, lambda_weight=weight, respect_input_order=False)  # noqa: E731
    _, reference = theirs(make, values, labels, torch.float32)
    assert reference[5:].abs().max() < 1e-6
    from embedloss_learning_to_rank import PListMLELoss

    _, gradient = ours(PListMLELoss(discount, respect_input_order=False), values, labels, torch.float32)
    assert gradient[5:].abs().max() > 0.01
