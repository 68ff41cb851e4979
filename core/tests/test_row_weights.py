"""Weights of rows, and rows without a negative: what the losses make of them, and what is refused."""

import datasets
import pytest
import torch

from embedloss import EmbedlossError, TrainingStep, create_loss, list_losses
from embedloss.binding import bind
from embedloss.check import bound_dataset, check_rows, column_kinds
from embedloss.collate import Collator, Keyed
from embedloss.embeddings import Embeddings
from embedloss.encoders import load_encoder
from embedloss.testing.models import tiny_bert

WEIGHTS = torch.tensor([0.5, 2.0, 0.0, 1.5, 1.0], dtype=torch.float64)
ROWS, DIM = len(WEIGHTS), 6
ARGUMENTS = {"gist-embed": "(guide='self')", "cached-gist-embed": "(guide='self')"}
WEIGHING = [spec for spec in list_losses() if spec.row_weights]
MORE = [
    "mnrl(directions=['query_to_doc', 'query_to_query', 'doc_to_query', 'doc_to_doc'])",
    "mnrl(directions=['query_to_doc', 'doc_to_query'], partition_mode='per_direction')",
    "mnrl(negatives='own')",
    "contrastive(reduction='sum')",
    "matryoshka(mnrl(), dims=[6, 3])",
    "0.5 * mnrl() + triplet()",
]


def made(expression):
    return create_loss(expression) if "(" in expression else create_loss(expression + ARGUMENTS.get(expression, ""))


def inputs(fmt, rows=ROWS):
    """Leaves by role, the embeddings and the labels of a format; n-tuples have two, one and no negative in turn."""
    g = torch.Generator().manual_seed(3)
    leaves, roles = {}, {}
    sizes = [2, 1, 0, 2, 1][:rows]
    for role in fmt.roles:
        count = sum(sizes) if role == "negative" and role in fmt.lists else rows
        leaves[role] = torch.randn(count, DIM, generator=g, dtype=torch.float64).requires_grad_()
        roles[role] = list(leaves[role].split(sizes)) if count != rows else leaves[role]
    labels = {
        "binary": torch.arange(rows) % 2,
        "score": torch.linspace(0, 1, rows, dtype=torch.float64),
        "embedding": torch.randn(rows, DIM, generator=g, dtype=torch.float64),
    }
    return leaves, Embeddings.of(**roles), labels.get(fmt.label)


def found(loss, fmt, weights=None):
    leaves, emb, label = inputs(fmt)
    value = loss(emb if weights is None else emb.with_row_weights(weights), label).total
    gradients = torch.autograd.grad(value, list(leaves.values()), allow_unused=True)
    return value.detach(), [torch.zeros(1, dtype=value.dtype) if g is None else g for g in gradients]


@pytest.mark.filterwarnings("ignore:.*deprecated:FutureWarning")
@pytest.mark.parametrize("expression", [s.name for s in WEIGHING] + MORE)
def test_a_weight_multiplies_the_part_of_its_row(expression):
    loss = made(expression)
    for fmt in loss.spec.data_formats():
        if fmt.name == "texts+embedding" or ("own" in expression and "negative" not in fmt.roles):
            continue
        alone = [found(loss, fmt, torch.eye(ROWS, dtype=torch.float64)[i]) for i in range(ROWS)]
        assert len({round(float(value), 12) for value, _ in alone}) > 2
        for weights in (None, torch.ones(ROWS), WEIGHTS):
            value, gradients = found(loss, fmt, weights)
            used = torch.ones(ROWS, dtype=torch.float64) if weights is None else weights.double()
            assert value == pytest.approx(sum(float(w) * float(v) for w, (v, _) in zip(used, alone, strict=True)), rel=1e-10)
            assert max(g.abs().max() for g in gradients if g.numel()) > 1e-4
            for k, gradient in enumerate(gradients):
                expected = sum(w * parts[k] for w, (_, parts) in zip(used, alone, strict=True))
                torch.testing.assert_close(gradient, expected.expand_as(gradient), rtol=1e-9, atol=1e-11)


def test_the_part_of_a_row_of_mnrl_is_its_own_cross_entropy():
    fmt = next(f for f in create_loss("mnrl").spec.data_formats() if f.name == "pairs")
    _, emb, _ = inputs(fmt)
    unit = {role: torch.nn.functional.normalize(emb.own(role)) for role in ("anchor", "positive")}
    rows = torch.nn.functional.cross_entropy(20 * unit["anchor"] @ unit["positive"].T, torch.arange(ROWS), reduction="none")
    assert found(create_loss("mnrl"), fmt, WEIGHTS)[0] == pytest.approx(float((rows * WEIGHTS).mean().detach()), rel=1e-10)


def test_a_share_of_the_rows_takes_its_own_weights():
    from embedloss.contrast import Scored
    from embedloss_ranking.functional import multiple_negatives_ranking as mnrl

    x, y = torch.randn(2, ROWS, DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).unbind()
    parts = [mnrl(x, y, scored=Scored(a, b, ROWS, WEIGHTS[a:b]), tile=2)[0] for a, b in ((0, 2), (2, ROWS))]
    assert float(sum(parts)) == pytest.approx(float(mnrl(x, y, scored=Scored(weights=WEIGHTS))[0]), rel=1e-10)


def test_losses_that_weigh_rows_and_those_that_do_not():
    names = {spec.name for spec in WEIGHING}
    assert {"multiple-negatives-ranking", "triplet", "contrastive", "cosine-similarity", "mse"} <= names
    assert not names & {"cosent", "batch-hard-triplet", "cross-multiple-negatives-ranking", "lambda-loss"}


# -- data ------------------------------------------------------------
PAIR = {"anchor": ["a b", "c d", "e f"], "positive": ["x y", "z w", "u v"]}


def checked(data, loss="mnrl", mapping=None):
    dataset, spec = datasets.Dataset.from_dict(data), create_loss(loss).spec
    kinds = column_kinds(dataset)
    binding = bind(kinds, spec.data_formats(), loss_name=spec.name, weights=spec.row_weights, mapping=mapping)
    report = check_rows(dataset, binding, spec)
    report.raise_if_faulty()
    return bound_dataset(dataset, binding), binding, report


def test_a_column_of_weights_is_bound():
    rows, binding, _ = checked({**PAIR, "sample_weight": [1, 0, 3]})
    assert binding.weight == "sample_weight"
    assert rows["weight"][:] == [1.0, 0.0, 3.0]
    assert "sample_weight (the row's loss is multiplied by it)" in binding.describe()
    rows, binding, _ = checked({**PAIR, "trust": [1, 0.5, 3]}, mapping={"weight": "trust"})
    assert rows["weight"][:] == [1.0, 0.5, 3.0]


@pytest.mark.parametrize(
    ("weights", "mapping", "code", "part"),
    [
        ([1, None, 2], None, "E105", "column 'weight', row 2: the weight of a row must be a finite number from 0"),
        ([1.0, -1.0, float("nan")], None, "E105", "column 'weight', rows 2, 3: the weight"),
        ([0, 0, 0], None, "E105", "every weight is 0"),
        (["a", "b", "c"], {"weight": "weight"}, "E104", "weight <- 'weight': found text"),
    ],
)
def test_weights_that_are_none(weights, mapping, code, part):
    with pytest.raises(EmbedlossError, match=code) as caught:
        checked({**PAIR, "weight": weights}, mapping=mapping)
    assert part in str(caught.value)


def test_a_loss_that_weighs_no_rows_says_which_do(tmp_path):
    data = {"first": ["a", "b", "c"], "second": ["x", "y", "z"], "score": [0.1, 0.2, 0.3], "weight": [1, 2, 3]}
    with pytest.raises(EmbedlossError, match="'cosent' gives rows no weights") as caught:
        checked(data, "cosent")
    assert caught.value.code == "E102"
    assert "cosine-similarity" in str(caught.value)
    assert "--drop weight" in str(caught.value)
    loss = create_loss("cosent")
    processor = load_encoder(str(tiny_bert(tmp_path / "model"))).processor
    with pytest.raises(EmbedlossError, match="'cosent' gives rows no weights"):
        Collator(processor, loss, "pairs+score")([{"first": "a", "second": "b", "label": 1.0, "weight": 2.0}])


def value_of(step, rows, fmt):
    batch = Collator(step.encoder.processor, step.loss, fmt)(Keyed(rows).__getitems__(list(range(len(rows)))))
    return float(step(batch)["loss"])


def test_weights_and_missing_negatives_reach_the_loss(tmp_path):
    step = TrainingStep(load_encoder(str(tiny_bert(tmp_path / "model"))), create_loss("mnrl")).eval()
    plain, _, _ = checked(PAIR)
    whole = value_of(step, plain, "pairs")
    assert whole > 0
    for weights in ([2, 2, 2], [3, 0, 0], [0, 3, 0], [0, 0, 3]):
        rows, _, _ = checked({**PAIR, "weight": weights})
        parts = value_of(step, rows, "pairs")
        assert (parts == pytest.approx(2 * whole, rel=1e-5)) == (weights == [2, 2, 2])
    # null in a plain column, a list without texts, and null in place of a list are the same
    forms = ([None, "s t", None], [[], ["s t"], []], [None, ["s t"], None])
    values = []
    for column in forms:
        rows, binding, report = checked({**PAIR, "negative": column})
        assert rows["negative"][:] == [[], ["s t"], []]
        assert report.warnings == ["2 rows hold no text of 'negative'"]
        values.append(value_of(step, rows, binding.format.name))
    assert values[0] == values[1] == values[2] > whole
    with pytest.raises(EmbedlossError, match="no value \\(null\\) where a text is needed"):
        checked({**PAIR, "negative": forms[0]}, "triplet")
    with pytest.raises(EmbedlossError, match="E104"):
        checked({**PAIR, "negative": [None, "", "x"]})
