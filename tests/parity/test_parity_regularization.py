"""GlobalOrthogonalRegularization equals sentence-transformers in value and in the gradient of every embedding."""

import pytest
import torch
from sentence_transformers import util
from sentence_transformers.sentence_transformer.losses import GlobalOrthogonalRegularizationLoss as Peer

from embedloss import Embeddings
from embedloss_regularization.losses import GlobalOrthogonalRegularizationLoss as Ours

NAME = "global-orthogonal-regularization"
TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-5}


def draw(*shape, seed, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def run(function, tensors):
    leaves = [t.clone().requires_grad_() for t in tensors]
    value = function(leaves)
    return value.detach(), torch.autograd.grad(value, leaves, allow_unused=True)


def embeddings(leaves):
    if len(leaves) == 1:
        return Embeddings.of(text=leaves[0])
    if len(leaves) == 2:
        return Embeddings.of(anchor=leaves[0], positive=leaves[1])
    return Embeddings.of(anchor=leaves[0], positive=leaves[1], negative=torch.stack(leaves[2:], 1))


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("rows", [1, 2, 7, 64])
@pytest.mark.parametrize("dim", [6, 80])
@pytest.mark.parametrize("similarity", ["cosine", "dot", "euclidean", "manhattan"])
@pytest.mark.parametrize("columns", [1, 2, 4])
def test_value_and_gradient(record_property, dtype, rows, dim, similarity, columns):
    label = str(dtype).removeprefix("torch.")
    record_property("parity", (NAME, f"value {label}"))
    record_property("parity", (NAME, f"gradient {label}"))
    functions = {
        "cosine": util.cos_sim,
        "dot": util.dot_score,
        "euclidean": util.euclidean_sim,
        "manhattan": util.manhattan_sim,
    }
    options = [(1.0, 1.0, "mean"), (1.0, 1.0, "sum"), (0.0, 2.0, "sum"), (0.3, None, "mean")]
    for seed, (mean, second, aggregation) in enumerate(options):
        tensors = [draw(rows, dim, seed=seed + 10 * i, dtype=dtype) * 0.5 + 0.5 for i in range(columns)]
        ours = Ours(functions[similarity], mean, second, aggregation)
        theirs = Peer(None, functions[similarity], mean, second, aggregation)
        assert ours.similarity_fct == similarity
        terms, wanted_terms = ours(embeddings(tensors)).terms, theirs.compute_loss_from_embeddings(tensors)
        assert set(terms) == set(wanted_terms)
        for name, wanted in wanted_terms.items():
            assert float((terms[name] - wanted).abs()) <= TOLERANCE[dtype] * max(1.0, float(wanted.abs()))
        _, found = run(lambda t, loss=ours: loss(embeddings(t)).total, tensors)
        _, wanted = run(lambda t, loss=theirs: sum(loss.compute_loss_from_embeddings(t).values()), tensors)
        reference = torch.stack(wanted)
        assert bool((reference != 0).any()) == (rows > 1)
        assert float((torch.stack(found) - reference).norm()) <= TOLERANCE[dtype] * max(1.0, float(reference.norm()))


def test_edges(record_property):
    record_property("parity", (NAME, "edges"))
    x = draw(6, 4, seed=0)
    cases = {
        "one row": x[:1],
        "equal rows": x[:1].expand(6, 4),
        "equal rows, more dimensions": draw(1, 9, seed=1).expand(6, 9),
        "zero rows": torch.cat([x, x[:2] * 0]),
        "all zero": x * 0,
        "huge norms": x * 1e12,
    }
    for case, tensor in cases.items():
        found = Ours()(Embeddings.of(text=tensor)).terms
        wanted = Peer(None).compute_loss_from_embeddings([tensor])
        assert {k: float(v) for k, v in found.items()} == pytest.approx({k: float(v) for k, v in wanted.items()}, abs=1e-9), (
            case
        )


def test_a_zero_vector_gets_no_gradient(record_property):
    record_property("parity", (NAME, "differs on purpose"))
    x = draw(3, 8, seed=0)
    x[0] = 0
    _, (found,) = run(lambda t: Ours()(embeddings(t)).total, [x])
    _, (wanted,) = run(lambda t: sum(Peer(None).compute_loss_from_embeddings(t).values()), [x])
    assert float(found[0].norm()) == 0
    assert float(wanted[0].norm()) > 1e8  # one over the epsilon of the peer's normalisation
    assert float(found[1:].norm()) > 0
    assert torch.allclose(found[1:], wanted[1:], atol=1e-8)
