"""Warnings come once and only where something is wrong."""

import sys
import warnings
from pathlib import Path

import pytest
import torch

from embedloss import Embeddings, EmbedlossError, create_loss, list_losses, load_encoder
from embedloss.testing.models import tiny_bert
from embedloss.training import TrainingStep
from embedloss.training.health import DEAD_STEPS, Health, HealthWarning
from embedloss.training.scales import mismatch

sys.path.insert(0, str(Path(__file__).parent / "bench"))
from healthy import watch


@pytest.mark.parametrize("spec", list_losses(), ids=lambda spec: spec.name)
def test_healthy_steps_raise_no_alarm(spec):
    name = spec.example or (f"{spec.name}(mnrl)" if spec.modifier else spec.name)
    alarms, value = watch(name, 60)
    assert alarms == []
    assert value == value


def warned(batch, steps=3 * DEAD_STEPS, metrics=None, loss=1.0):
    health = Health(Path("unused"))
    output = {"loss": torch.tensor(loss), "terms": {}, "metrics": metrics or {}}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for step in range(1, steps + 1):
            health.check_output(None, output, batch, step)
    return [str(w.message) for w in caught if issubclass(w.category, HealthWarning)]


@pytest.mark.parametrize(
    ("batch", "metrics", "words"),
    [
        ({"format": "single+class", "label": torch.tensor([2, 2, 2])}, None, "all rows had the same class"),
        ({"format": "single+class", "label": torch.tensor([1, 2, 3])}, None, "every row had a class of its own"),
        ({"format": "pairs+score", "label": torch.tensor([0.5, 0.5])}, None, "all labels were equal"),
        ({"format": "pairs"}, {"active": torch.tensor(0.0)}, "had anything to learn"),
    ],
)
def test_batches_without_anything_to_learn_are_named_once(batch, metrics, words):
    found = warned(batch, metrics=metrics)
    assert len(found) == 1
    assert words in found[0]
    assert f"in each of the last {DEAD_STEPS} batches" in found[0]
    assert warned(batch, DEAD_STEPS - 1, metrics) == []


def test_good_batches_are_not_named():
    assert warned({"format": "single+class", "label": torch.tensor([1, 1, 2, 2])}) == []
    assert warned({"format": "pairs+score", "label": torch.tensor([0.1, 0.5])}) == []
    assert warned({"format": "pairs"}, metrics={"active": torch.tensor(0.1)}) == []


def test_a_diverging_loss_is_named():
    health = Health(Path("unused"))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for step in range(1, 300):
            value = torch.tensor(0.5 if step < 60 else 50.0)
            health.check_output(None, {"loss": value, "terms": {}, "metrics": {}}, {}, step)
    assert len(caught) == 1
    assert "it diverges" in str(caught[0].message)


def test_a_start_where_all_is_alike_is_named():
    health = Health(Path("unused"))
    spread = {"similarity": 0.999, "rank": 3.0}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for step in range(1, 5):
            health.check_spread(dict(spread), step)
    assert len(caught) == 1
    assert "nearly equal at the start" in str(caught[0].message)


@pytest.mark.parametrize(
    ("expression", "labels", "roles", "words"),
    [
        (
            "margin_mse(similarity_fct='cosine')",
            [[12.0], [-9.0], [3.0]],
            ("query", "positive", "negative"),
            "cannot be reached",
        ),
        ("margin_mse(similarity_fct='cosine')", [[0.4], [-0.9], [0.3]], ("query", "positive", "negative"), None),
        ("margin_mse(similarity_fct='dot')", [[12.0], [-9.0], [3.0]], ("query", "positive", "negative"), None),
        ("mse", [[5.0, 5.0]] * 3, ("text",), "cannot reach them"),
        ("mse", [[0.6, 0.8]] * 3, ("text",), None),
        ("embed_distill", [[5.0, 5.0]] * 3, ("text",), None),
    ],
)
def test_scales_that_do_not_go_together_are_named(expression, labels, roles, words):
    inputs = Embeddings.of(**{role: torch.nn.functional.normalize(torch.randn(3, 2), dim=1) for role in roles})
    found = mismatch(create_loss(expression), inputs, torch.tensor(labels))
    assert (found is None) if words is None else (found is not None and words in found)


def test_a_frozen_encoder_is_named(tmp_path):
    tiny_bert(tmp_path / "model", layers=1, hidden=16, vocabulary=150)
    encoder = load_encoder(str(tmp_path / "model")).requires_grad_(False)
    with pytest.raises(EmbedlossError, match="no weight requires a gradient"):
        Health(tmp_path).check_start(TrainingStep(encoder, create_loss("mnrl")))
    with pytest.warns(HealthWarning, match="no weight of the encoder requires a gradient"):
        Health(tmp_path).check_start(TrainingStep(encoder, create_loss("softmax"), num_classes=3))


def test_half_precision_may_overflow_while_its_scale_falls():
    health = Health(Path("unused"))
    assert health.check_overflow(float("inf"), 65536.0)
    assert not health.check_overflow(float("inf"), 0.5)
    assert not health.check_overflow(1.0, 65536.0)


def test_trained_weights_in_half_precision_are_named(tmp_path):
    tiny_bert(tmp_path / "model", layers=1, hidden=16, vocabulary=150)
    encoder = load_encoder(str(tmp_path / "model"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Health(tmp_path).check_start(TrainingStep(encoder, create_loss("mnrl")))
    with pytest.warns(HealthWarning, match="trained weights are bfloat16: small updates are rounded away"):
        Health(tmp_path).check_start(TrainingStep(encoder.bfloat16(), create_loss("mnrl")))
