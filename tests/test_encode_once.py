"""However many losses, dimensions or layers: one encoder pass per text and step. And recompute changes no gradient."""

import datasets
import pytest
import torch

from embedloss import TrainingStep, create_loss, load_encoder
from embedloss.collate import Collator, Keyed
from embedloss.encoders.base import draws
from embedloss.testing.models import SENTENCES, tiny_bert
from embedloss.training import Trainer, TrainingArguments

EXPRESSIONS = [
    "mnrl()",
    "mnrl() + 0.05 * gor()",
    "matryoshka(mnrl(scale=20), dims=[32, 16, 8, 4])",
    "matryoshka(mnrl(), dims=[32, 16]) + 0.05 * gor() + linear(0, 1, steps=10) * mega_batch_margin()",
    "adaptive_layer(mnrl(), n_layers_per_step=-1)",
    "adaptive_layer(matryoshka(mnrl(), dims=[32, 8]))",
    "matryoshka(adaptive_layer(mnrl() + 0.1 * gor()), dims=[32, 8])",
    "matryoshka_2d(mnrl(), dims=[32, 16, 8])",
]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny_bert(folder, layers=3, hidden=32)
    return str(folder)


def batch_for(encoder, loss, chunk_tokens):
    rows = [{"anchor": f"{text} {i}", "positive": SENTENCES[i - 1]} for i, text in enumerate(SENTENCES)]
    data = datasets.Dataset.from_list(rows)
    return Collator(encoder.processor, loss, "pairs", chunk_tokens)(Keyed(data).__getitems__(list(range(len(rows)))))


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_one_pass_per_chunk(model, expression):
    encoder = load_encoder(model)
    step = TrainingStep(encoder, create_loss(expression)).train()
    batch = batch_for(encoder, step.loss, 200)
    calls = []
    encoder.register_forward_hook(lambda *args: calls.append(1))
    step(batch)["loss"].backward()
    assert len(calls) == len(batch["chunks"]) > 1


@pytest.mark.parametrize("expression", [*EXPRESSIONS, "cached_mnrl()"])
@pytest.mark.parametrize("chunk_tokens", [1, 100, 10**6])
def test_recompute_changes_no_gradient(model, expression, chunk_tokens):
    gradients = []
    for recompute in (False, True):
        encoder = load_encoder(model)
        loss = create_loss(expression.replace("cached_", "") if not recompute else expression)
        step = TrainingStep(encoder, loss, recompute=recompute and "cached" not in expression, seed=5).train()
        assert step.recompute is recompute
        batch = batch_for(encoder, step.loss, chunk_tokens)
        torch.manual_seed(3)  # dropout is on: both runs draw the same masks
        output = step(batch)
        output["loss"].backward()
        gradients.append({n: p.grad for n, p in step.named_parameters() if p.grad is not None})
    plain, again = gradients
    assert set(plain) == set(again)
    assert max(float(g.abs().max()) for g in plain.values()) > 1e-6
    for name, gradient in plain.items():
        assert torch.allclose(gradient, again[name], rtol=1e-5, atol=1e-7), name


def test_terms_are_logged_under_their_names(model):
    encoder = load_encoder(model)
    step = TrainingStep(encoder, create_loss("matryoshka(mnrl(), dims=[32, 8]) + 0.05 * gor()"))
    terms = step(batch_for(encoder, step.loss, 500))["terms"]
    assert "matryoshka/8/loss" in terms
    assert "matryoshka/32/loss" in terms
    assert any(name.startswith("global-orthogonal-regularization/") for name in terms)


# -- equal texts -------------------------------------------------------------------------------------------------------
def repeated_rows():
    rows = [{"anchor": SENTENCES[i % 5], "positive": f"{SENTENCES[i % 7]} {SENTENCES[i % 3]}"} for i in range(24)]
    return Keyed(datasets.Dataset.from_list(rows)).__getitems__(list(range(24)))


def test_equal_texts_are_encoded_once_without_dropout(tmp_path):
    gradients, encoded = [], []
    for share in (False, True):
        encoder = load_encoder(tiny_bert(tmp_path / str(share), dropout=0.0))
        assert not draws(encoder)
        step = TrainingStep(encoder, create_loss("mnrl + 0.1 * gor"), recompute=True).train()
        batch = Collator(encoder.processor, step.loss, "pairs", 100, prompts={"positive": "doc "}, share=share)(repeated_rows())
        encoded.append(sum(len(chunk["input_ids"]) for chunk in batch["chunks"]))
        output = step(batch)
        output["loss"].backward()
        gradients.append((output["loss"], {n: p.grad for n, p in step.named_parameters() if p.grad is not None}))
    assert encoded == [48, 26]  # 5 anchors and 21 positives
    (plain, one), (shared, other) = gradients
    torch.testing.assert_close(plain, shared)
    assert max(float(g.abs().max()) for g in one.values()) > 0.01
    for name, gradient in one.items():
        torch.testing.assert_close(other[name], gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_the_trainer_shares_equal_texts_unless_dropout_makes_them_differ(tmp_path, dropout):
    encoder = load_encoder(tiny_bert(tmp_path / "model", dropout=dropout))
    step = TrainingStep(encoder, create_loss("mnrl"))
    collator = Collator(encoder.processor, step.loss, "pairs")
    assert collator.share is None
    data = datasets.Dataset.from_list([{"anchor": "a", "positive": "b"}] * 4)
    arguments = TrainingArguments(output_dir=str(tmp_path), report_to="none", use_cpu=True)
    Trainer(step, arguments, train_dataset=data, collator=collator)
    assert collator.share is (dropout == 0.0)
    assert draws(encoder) is (dropout > 0.0)


def test_a_dropout_that_only_the_attention_has_counts(tmp_path):
    encoder = load_encoder(tiny_bert(tmp_path / "model", dropout=0.0))
    encoder.model.config.attention_probs_dropout_prob = 0.1
    assert draws(encoder)
