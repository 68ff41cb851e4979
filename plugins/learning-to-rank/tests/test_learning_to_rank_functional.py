"""The arithmetic against plain loops in float64, its gradients against autograd through those loops, and invariances."""

import itertools
import math

import pytest
import torch

from embedloss_learning_to_rank import functional as F

torch.set_num_threads(1)
BIG = 1e3  # what stands where there is no document, unless a test says otherwise


def lists(seed, lengths=(5, 3, 0, 1, 7), ties=True, spread=1.0):
    """Scores, grades and mask, padded with numbers that would be noticed."""
    g = torch.Generator().manual_seed(seed)
    shape = (len(lengths), max(lengths))
    mask = torch.arange(shape[1])[None] < torch.tensor(lengths)[:, None]
    scores = (spread * torch.randn(*shape, generator=g, dtype=torch.float64)).masked_fill(~mask, BIG)
    grades = torch.randint(0, 4, shape, generator=g).double() if ties else torch.rand(*shape, generator=g, dtype=torch.float64)
    return scores, grades.masked_fill(~mask, 3.0), mask


def rows(scores, grades, mask):
    return [(s[m], y[m]) for s, y, m in zip(scores, grades, mask, strict=True)]


def compare(function, oracle, scores, grades, mask, tolerance=1e-10):
    """Value, count and gradient of a fast form against the loops."""
    one, two = scores.clone().requires_grad_(), scores.clone().requires_grad_()
    value, count = function(one, grades, mask)
    wanted, items = oracle(rows(two, grades, mask))
    assert int(count) == items
    torch.testing.assert_close(value, torch.as_tensor(wanted, dtype=value.dtype), rtol=tolerance, atol=tolerance)
    (1.7 * value).backward()
    (1.7 * wanted).backward()
    assert wanted.item() != 0
    assert two.grad.abs().max() > 0
    torch.testing.assert_close(one.grad, two.grad, rtol=tolerance, atol=tolerance)
    assert one.grad[~mask].abs().max().item() == 0 if (~mask).any() else True


def lambda_oracle(scheme, k, sigma, eps, base, mu):
    def discount(r):
        return math.log2(1 + r)

    def oracle(data):
        total, count = torch.zeros((), dtype=torch.float64), 0
        for s, y in data:
            order = sorted(range(len(s)), key=lambda i: -s[i].item())
            s, y = [s[i] for i in order], [float(y[i]) for i in order]
            top = k or len(s)
            ideal = sorted((max(v, 0.0) for v in y), reverse=True)[:top]
            best = max(sum((2**v - 1) / discount(r) for r, v in enumerate(ideal, 1)), eps)
            gain = [(2 ** max(v, 0.0) - 1) / best for v in y]
            for i, j in itertools.product(range(len(s)), repeat=2):
                if not (i < top or j < top) or not (scheme == "ndcg-loss1" or y[i] > y[j]):
                    continue
                apart = abs(i - j)
                two = 0.0 if i == j else abs(1 / discount(apart) - 1 / discount(apart + 1)) * abs(gain[i] - gain[j])
                rank = abs(1 / discount(i + 1) - 1 / discount(j + 1)) * abs(gain[i] - gain[j])
                weight = {
                    "none": 1.0,
                    "ndcg-loss1": gain[i] / discount(i + 1),
                    "ndcg-loss2": two,
                    "lambdarank": rank,
                    "ndcg-loss2++": mu * two + rank,
                }[scheme]
                total = total + weight * torch.log1p(torch.exp(-sigma * (s[i] - s[j]))) / math.log(base)
                count += 1
        return total, count

    return oracle


@pytest.mark.parametrize("scheme", F.SCHEMES)
@pytest.mark.parametrize("k", [None, 1, 3, 100])
@pytest.mark.parametrize(("sigma", "base"), [(1.0, 2.0), (2.5, math.e)])
def test_lambda_loss_is_the_definition(scheme, k, sigma, base):
    for seed in range(3):
        data = lists(seed)
        compare(
            lambda s, y, m: F.lambda_loss(s, y, m, scheme, k, sigma, 1e-10, base, 7.0),
            lambda_oracle(scheme, k, sigma, 1e-10, base, 7.0),
            *data,
        )


@pytest.mark.parametrize("scheme", F.SCHEMES)
def test_lambda_loss_of_negative_grades(scheme):
    scores, grades, mask = lists(4)
    compare(
        lambda s, y, m: F.lambda_loss(s, y, m, scheme),
        lambda_oracle(scheme, None, 1.0, 1e-10, 2.0, 10.0),
        scores,
        grades - 1,
        mask,
    )


@pytest.mark.parametrize("pairs", [1, 7, 20, 64, 200])
def test_blocks_of_pairs_change_nothing(monkeypatch, pairs):
    data = lists(5, (9, 4, 8, 1, 0, 6))
    whole = [F.lambda_loss(*data, scheme=s, k=3) for s in F.SCHEMES], F.adr_mse(*data, alpha=2.0)
    grad = []
    for size in (1 << 20, pairs):
        monkeypatch.setattr(F, "PAIRS_AT_ONCE", size)
        scores = data[0].clone().requires_grad_()
        for scheme in F.SCHEMES:
            F.lambda_loss(scores, *data[1:], scheme=scheme, k=3)[0].backward()
        F.adr_mse(scores, *data[1:], alpha=2.0)[0].backward()
        grad.append(scores.grad)
    assert grad[0].abs().max() > 0
    torch.testing.assert_close(grad[0], grad[1], rtol=1e-12, atol=1e-12)
    small = [F.lambda_loss(*data, scheme=s, k=3) for s in F.SCHEMES], F.adr_mse(*data, alpha=2.0)
    torch.testing.assert_close(whole, small, rtol=1e-12, atol=1e-12)


def mle_oracle(by_label, weights):
    def oracle(data):
        total, count = torch.zeros((), dtype=torch.float64), 0
        for s, y in data:
            n = len(s)
            if not n:
                continue
            count += 1
            order = sorted(range(n), key=lambda i: -float(y[i])) if by_label else range(n)
            s = [s[i] for i in order]
            w = weights(n)
            for r in range(n):
                total = total - w[r] * (s[r] - torch.log(sum(torch.exp(t) for t in s[r:])))
        return total, count

    return oracle


def normalised(function):
    def weights(n):
        w = [function(n, r) for r in range(1, n + 1)]
        return [v / (sum(w) + 1e-10) for v in w]

    return weights


MLE = {
    "list-mle": (None, lambda n: [1.0] * n),
    "plist-mle": ("default", normalised(lambda n, r: 2.0 ** (n - r) - 1)),
    "custom": (lambda ranks: 1 / torch.log1p(ranks), normalised(lambda n, r: 1 / math.log1p(r))),
}


@pytest.mark.parametrize("by_label", [False, True])
@pytest.mark.parametrize("kind", MLE)
def test_list_mle_is_the_definition(kind, by_label):
    discount, weights = MLE[kind]
    for seed, spread in ((0, 1.0), (1, 1.0), (2, 8.0)):
        data = lists(seed, spread=spread)
        compare(lambda s, y, m: F.list_mle(s, y if by_label else None, m, discount), mle_oracle(by_label, weights), *data)


def test_list_mle_of_scores_too_large_for_exp():
    scores = torch.tensor([[2000.0, 0.0, -2000.0]], dtype=torch.float64, requires_grad=True)
    value, _ = F.list_mle(scores, torch.tensor([[0.0, 1.0, 2.0]]), torch.ones(1, 3, dtype=torch.bool))
    assert value.item() == pytest.approx(4000.0 + 2000.0)
    value.backward()
    torch.testing.assert_close(scores.grad, torch.tensor([[2.0, -1.0, -1.0]], dtype=torch.float64))


@pytest.mark.parametrize("length", [126, 127, 128, 129, 300, 2000])
def test_default_discount_of_long_lists_is_finite_and_right(length):
    ranks = torch.arange(1, length + 1, dtype=torch.float32)
    weights = F.exponential_discount(torch.tensor([[float(length)]]), ranks)
    share = (weights / weights.sum()).double()[0]
    exact = [2 ** (length - r) - 1 for r in range(1, length + 1)]
    wanted = torch.tensor([w * 10**30 // sum(exact) / 1e30 for w in exact], dtype=torch.float64)
    assert weights.isfinite().all()
    torch.testing.assert_close(share, wanted, rtol=1e-6, atol=1e-12)


def list_net_oracle(data):
    total, count = torch.zeros((), dtype=torch.float64), 0
    for s, y in data:
        if not len(s):
            continue
        count += 1
        wanted, found = [math.exp(float(v)) for v in y], [torch.exp(t) for t in s]
        for w, f in zip(wanted, found, strict=True):
            total = total - w / sum(wanted) * torch.log(f / sum(found))
    return total, count


@pytest.mark.parametrize("ties", [True, False])
def test_list_net_is_the_definition(ties):
    for seed in range(4):
        compare(F.list_net, list_net_oracle, *lists(seed, ties=ties))


def adr_oracle(alpha):
    def oracle(data):
        total, count = torch.zeros((), dtype=torch.float64), 0
        for s, y in data:
            for i in range(len(s)):
                near = 1 + sum(torch.sigmoid(alpha * (s[j] - s[i])) for j in range(len(s)) if j != i)
                true = sum(float(v > y[i]) for v in y) + (sum(float(v == y[i]) for v in y) + 1) / 2
                total = total + (true - near) ** 2 / math.log2(1 + true)
                count += 1
        return total, count

    return oracle


@pytest.mark.parametrize("alpha", [0.3, 1.0, 4.0])
def test_adr_mse_is_the_definition(alpha):
    for seed in range(3):
        compare(lambda s, y, m: F.adr_mse(s, y, m, alpha), adr_oracle(alpha), *lists(seed))


ALL = {
    **{f"lambda {s}": (lambda s, y, m, n=s: F.lambda_loss(s, y, m, n, 3)) for s in F.SCHEMES},
    "list-net": F.list_net,
    "list-mle": F.list_mle,
    "plist-mle": lambda s, y, m: F.list_mle(s, y, m, "default"),
    "adr-mse": F.adr_mse,
}


def value_and_gradient(function, scores, grades, mask):
    scores = scores.clone().requires_grad_()
    value, count = function(scores, grades, mask)
    value.backward()
    return value.detach(), count, scores.grad


@pytest.mark.parametrize("name", ALL)
def test_order_of_lists_documents_and_padding_does_not_matter(name):
    scores, grades, mask = lists(3, ties=False)  # equal grades keep the given order in list-mle
    value, count, gradient = value_and_gradient(ALL[name], scores, grades, mask)
    assert gradient.abs().max() > 0
    g = torch.Generator().manual_seed(0)
    down, across = torch.randperm(len(scores), generator=g), torch.randperm(scores.shape[1], generator=g)
    moved = [t[down][:, across] for t in (scores, grades, mask)]
    assert not torch.equal(moved[2], mask)  # documents stand anywhere now, also behind gaps
    other, others, back = value_and_gradient(ALL[name], *moved)
    assert int(others) == int(count)
    torch.testing.assert_close(other, value, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(back, gradient[down][:, across], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("filler", [0.0, -1e30, float("nan"), float("inf")])
def test_absent_documents_have_no_influence_and_no_gradient(name, filler):
    scores, grades, mask = lists(6)
    value, _, gradient = value_and_gradient(ALL[name], scores, grades, mask)
    assert gradient.abs().max() > 0
    other, _, back = value_and_gradient(ALL[name], scores.masked_fill(~mask, filler), grades.masked_fill(~mask, 60.0), mask)
    assert torch.equal(other, value)
    assert torch.equal(back, gradient)
    wide = [torch.cat([t, torch.zeros(len(t), 4, dtype=t.dtype)], 1) for t in (scores, grades, mask)]
    torch.testing.assert_close(ALL[name](*wide)[0], value, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ALL)
def test_a_constant_added_to_all_scores_of_a_list_changes_nothing(name):
    scores, grades, mask = lists(7)
    value, _, gradient = value_and_gradient(ALL[name], scores, grades, mask)
    assert gradient.abs().max() > 0
    other, _, back = value_and_gradient(ALL[name], scores + torch.randn(len(scores), 1, dtype=torch.float64), grades, mask)
    torch.testing.assert_close(other, value, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(back, gradient, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(gradient.sum(1), torch.zeros(len(scores), dtype=torch.float64), rtol=0, atol=1e-12)


def test_equal_scores_keep_the_given_order():
    scores, grades = torch.zeros(1, 40, dtype=torch.float64), torch.arange(40.0)[None] % 3
    mask = torch.ones(1, 40, dtype=torch.bool)
    value, _ = F.lambda_loss(scores, grades, mask)
    nearly = -1e-9 * torch.arange(40, dtype=torch.float64)[None]
    assert value.item() == pytest.approx(F.lambda_loss(nearly, grades, mask)[0].item(), rel=1e-6)


def test_second_derivatives_are_refused_and_not_wrong():
    scores, grades, mask = lists(8)
    scores.requires_grad_()
    (gradient,) = torch.autograd.grad(F.lambda_loss(scores, grades, mask)[0], scores, create_graph=True)
    with pytest.raises(RuntimeError):
        gradient.square().sum().backward()


def test_memory_of_the_graph_does_not_grow_with_the_square_of_the_list():
    kept = []
    scores = torch.randn(2, 600, dtype=torch.float64, requires_grad=True)
    grades, mask = torch.randint(0, 3, (2, 600)), torch.ones(2, 600, dtype=torch.bool)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        (F.lambda_loss(scores, grades, mask)[0] + F.adr_mse(scores, grades, mask)[0]).backward()
    assert kept
    assert max(kept) <= scores.numel()
