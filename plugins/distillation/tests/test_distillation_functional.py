"""The arithmetic against plain loops in float64, its gradients against autograd through those loops, and invariances."""

import math

import pytest
import torch

from embedloss_distillation import functional as F

torch.set_num_threads(1)


def tensors(seed, *shapes):
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=g, dtype=torch.float64) for shape in shapes]


def compare(value, wanted, leaf, other):
    (1.7 * value).backward()
    (1.7 * wanted).backward()
    assert other.grad.abs().max() > 0
    torch.testing.assert_close(value.detach(), wanted.detach(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(leaf.grad, other.grad, rtol=1e-12, atol=1e-12)


def pair(x):
    return x.clone().requires_grad_(), x.clone().requires_grad_()


DISTANCES = {
    "cosine": lambda a, b: 1 - (a @ b) / (a @ a).sqrt() / (b @ b).sqrt(),
    "l2": lambda a, b: ((a - b) @ (a - b)).sqrt(),
    "mse": lambda a, b: sum((x - y) ** 2 for x, y in zip(a, b, strict=True)) / len(a),
}


@pytest.mark.parametrize("distance", F.DISTANCES)
def test_embedding_distance_is_the_definition(distance):
    for seed in range(3):
        student, teacher = tensors(seed, (7, 5), (7, 5))
        one, two = pair(student)
        wanted = torch.stack([DISTANCES[distance](a, b) for a, b in zip(two, teacher, strict=True)]).sum()
        compare(F.embedding_distance(one, teacher, distance).sum(), wanted, one, two)


@pytest.mark.parametrize("distance", F.DISTANCES)
def test_equal_and_zero_vectors(distance):
    student = torch.tensor([[1.0, 2, 3], [0, 0, 0]], requires_grad=True)
    value = F.embedding_distance(student, torch.tensor([[1.0, 2, 3], [0, 0, 0]]), distance)
    value.sum().backward()
    assert value[0].item() == pytest.approx(0, abs=1e-6)
    assert value[1].item() == (1 if distance == "cosine" else 0)
    torch.testing.assert_close(student.grad, torch.zeros(2, 3), rtol=0, atol=1e-6)


def test_project_is_a_linear_layer_cut_to_prefixes():
    weight, bias, x = tensors(0, (6, 4), (6,), (3, 4))
    for d in (4, 3, 1):
        for width in (6, 2):
            wanted = [[sum(weight[o, i] * row[i] for i in range(d)) + bias[o] for o in range(width)] for row in x]
            torch.testing.assert_close(F.project(x[:, :d], weight, bias, width), torch.tensor(wanted, dtype=torch.float64))
    assert F.project(x.float(), weight.half(), bias.half(), 6).dtype == torch.float32
    assert F.project(x, weight.float(), bias.float(), 6).dtype == torch.float64


def scored(seed, lengths=(4, 2, 0, 3, 1), filler=1e3):
    width = max(lengths)
    scores, teacher = tensors(seed, (len(lengths), width), (len(lengths), width))
    mask = torch.arange(width)[None] < torch.tensor(lengths)[:, None]
    return scores.masked_fill(~mask, filler), teacher.masked_fill(~mask, 0.0), mask


def test_squared_error_and_margins_are_the_definition():
    for seed in range(4):
        scores, labels, mask = scored(seed)
        one, two = pair(scores)
        value, count = F.squared_error(one, labels, mask)
        there = [(r, c) for r in range(len(mask)) for c in range(mask.shape[1]) if mask[r, c]]
        assert int(count) == len(there) == 10
        compare(value, sum((two[r, c] - labels[r, c]) ** 2 for r, c in there), one, two)
        one, two = pair(scores)
        value, count = F.margin_mse(one, labels[:, 1:], mask)
        negatives = [(r, c) for r, c in there if c > 0]
        assert int(count) == len(negatives) == 6
        compare(value, sum((two[r, 0] - two[r, c] - labels[r, c]) ** 2 for r, c in negatives), one, two)
        assert one.grad[~mask].abs().max() == 0


@pytest.mark.parametrize(("student", "target"), [(1.0, 1.0), (2.0, 0.5), (0.1, 3.0)])
@pytest.mark.parametrize("excluded", [False, True])
def test_kl_divergence_is_the_definition(student, target, excluded):
    for seed in range(3):
        scores, teacher, mask = scored(seed)
        if excluded:
            teacher[0, 2] = -math.inf
        one, two = pair(scores)
        value, count = F.kl_divergence(one, teacher, mask, student, target)
        wanted, rows = torch.zeros((), dtype=torch.float64), 0
        for s, t, m in zip(two, teacher, mask, strict=True):
            if m.any():
                p, q = [math.exp(v / target) for v in t[m].tolist()], [torch.exp(v / student) for v in s[m]]
                p, q, rows = [v / sum(p) for v in p], [v / sum(q) for v in q], rows + 1
                wanted = wanted + student**2 * sum(a * (math.log(a) - torch.log(b)) for a, b in zip(p, q, strict=True) if a)
        assert int(count) == rows == 4
        compare(value, wanted, one, two)
        assert one.grad[~mask].abs().max() == 0


@pytest.mark.parametrize("name", ["squared_error", "margin_mse", "kl_divergence"])
@pytest.mark.parametrize("filler", [0.0, 1e30, float("nan"), float("inf")])
def test_absent_candidates_have_no_influence(name, filler):
    def run(scores, labels, mask):
        scores = scores.clone().requires_grad_()
        extra = (1.0, 1.0) if name == "kl_divergence" else ()
        value, count = getattr(F, name)(scores, labels[:, 1:] if name == "margin_mse" else labels, mask, *extra)
        value.backward()
        assert scores.grad.abs().max() > 0
        return value.detach(), count, scores.grad

    scores, labels, mask = scored(0, filler=0.0)
    for one, two in zip(
        run(scores, labels, mask), run(scores.masked_fill(~mask, filler), labels.masked_fill(~mask, 5.0), mask), strict=True
    ):
        assert torch.equal(one, two)


def test_invariances():
    scores, teacher, mask = scored(2)
    across = torch.tensor([2, 0, 3, 1])
    value = F.kl_divergence(scores, teacher, mask, 2.0, 1.0)[0]
    moved = [t[:, across] for t in (scores, teacher, mask)]
    torch.testing.assert_close(F.kl_divergence(*moved, 2.0, 1.0)[0], value)
    torch.testing.assert_close(F.kl_divergence(scores + 3, teacher - 5, mask, 2.0, 1.0)[0], value)
    margins = F.margin_mse(scores, teacher[:, 1:], mask)[0]
    torch.testing.assert_close(F.margin_mse(scores + 3, teacher[:, 1:], mask)[0], margins)
    behind = torch.tensor([0, 3, 1, 2])
    torch.testing.assert_close(F.margin_mse(scores[:, behind], teacher[:, behind][:, 1:], mask[:, behind])[0], margins)
    same = teacher.masked_fill(~mask, 7.0)
    assert F.kl_divergence(same, teacher, mask, 1.5, 1.5)[0].item() == pytest.approx(0, abs=1e-12)
