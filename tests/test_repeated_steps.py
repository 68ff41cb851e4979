"""A step that ran out of memory is repeated in smaller chunks and leaves what a run with those chunks leaves, bit for bit.

Memory runs out for real, but only for chunks above a size: a hook of the encoder asks the allocator for more than there is.
"""

import copy

import datasets
import pytest
import torch

from embedloss import create_loss, load_encoder
from embedloss.collate import Collator
from embedloss.testing.models import SENTENCES, tiny_bert
from embedloss.training import Trainer, TrainingArguments, TrainingStep
from embedloss.training.memory import out_of_memory

ROWS, LARGE, STEPS = 24, 640, 4


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny_bert(folder, layers=2, hidden=32)  # with dropout
    return str(folder)


def rows(form, count):
    found = [{"anchor": f"{SENTENCES[i % 17]} {i}", "positive": " ".join(SENTENCES[: 1 + i % 4])} for i in range(count)]
    if form == "single":
        found = [{"text": f"{r['positive']} {r['anchor']}"} for r in found]
    if form == "pairs+class":
        found = [{"first": r["anchor"], "second": r["positive"], "label": i % 3} for i, r in enumerate(found)]
    return datasets.Dataset.from_list(found)


def make(model, out, expression, chunk_tokens, accumulate=1):
    torch.manual_seed(0)
    encoder = load_encoder(model)
    step = TrainingStep(encoder, create_loss(expression), recompute=True, seed=3, num_classes=3)
    arguments = TrainingArguments(
        output_dir=str(out), max_steps=STEPS, per_device_train_batch_size=ROWS, save_strategy="no", logging_steps=1,
        learning_rate=1e-3, gradient_accumulation_steps=accumulate, report_to="none", disable_tqdm=True, seed=3, use_cpu=True,
        batch_sampler="random", probe_steps=2,
    )  # fmt: skip
    form = step.loss.spec.format_names()[0]
    collator = Collator(encoder.processor, step.loss, form, chunk_tokens)
    return Trainer(step, arguments, train_dataset=rows(form, ROWS * accumulate), collator=collator)


class Shortage:
    """From a step on, its last batch finds no memory for chunks of more than `limit` tokens, forward or backward."""

    def __init__(self, trainer, step, limit, backward):
        self.trainer, self.step, self.limit, self.backward, self.missed = trainer, step, limit, backward, 0
        # Of the first layer: a chunk that is computed again is not computed to its end.
        trainer.step_module.encoder.model.encoder.layer[0].register_forward_hook(self)

    def __call__(self, module, inputs, output):
        trainer = self.trainer
        early = trainer.state.global_step + 1 < self.step or trainer._substep
        backward = torch._C._current_graph_task_id() != -1  # the chunks after this one have their gradients
        if module.training and not early and inputs[0].shape[:2].numel() > self.limit and backward == self.backward:
            self.missed += 1
            torch.empty(2**50, dtype=torch.uint8)  # dropout has drawn by now


def final(trainer):
    """Weights, optimizer, health and log of a finished run."""
    trainer.train()
    moments = trainer.optimizer.state_dict()["state"]
    timeless = [{k: v for k, v in e.items() if "runtime" not in k and "second" not in k} for e in trainer.state.log_history]
    return (
        {n: p.detach().clone() for n, p in trainer.step_module.state_dict().items()},
        {(i, n): v for i, state in moments.items() for n, v in state.items() if torch.is_tensor(v)},
        timeless,
        copy.deepcopy(trainer.health.state()),
    )


def assert_equal(found, wanted):
    for one, two in zip(found[:2], wanted[:2], strict=True):
        assert list(one) == list(two)
        for name, value in one.items():
            assert torch.equal(value, two[name]), name
    assert found[2] == wanted[2]
    assert found[3] == wanted[3]


def starve(trainer, step, backward):
    """Train with a shortage from a step on; what it ends with."""
    sizes = [c["input_ids"].numel() for c in next(iter(trainer.get_train_dataloader()))["chunks"]]
    shortage = Shortage(trainer, step, max(sizes[:-1]) - 1, backward)
    with pytest.warns(UserWarning, match=rf"memory ran out at step {step} .*The step is repeated"):
        found = final(trainer)
    assert shortage.missed >= 1
    assert trainer.fit.chunk_tokens <= shortage.limit
    return found


@pytest.mark.parametrize(("expression", "backward"), [("mnrl()", False), ("softmax", True)])
def test_a_repeated_step_is_that_of_a_run_with_smaller_chunks(model, tmp_path, expression, backward):
    starved = make(model, tmp_path, expression, LARGE)
    found = starve(starved, 1, backward)
    assert_equal(found, final(make(model, tmp_path, expression, starved.fit.chunk_tokens)))
    large = final(make(model, tmp_path, expression, LARGE))
    assert any(not torch.equal(value, large[0][name]) for name, value in found[0].items())  # other chunks, other dropout


@pytest.mark.parametrize(
    ("expression", "accumulate"),
    [
        ("mnrl() + 0.1 * gor()", 1),
        ("contrastive_tension_in_batch_negatives()", 2),  # a twin, and the gradients of the batch before
    ],
)
def test_a_step_in_the_middle_of_a_run_is_repeated_from_the_same_state(model, tmp_path, expression, accumulate):
    starved = make(model, tmp_path, expression, LARGE, accumulate)
    found = starve(starved, 3, True)
    # The same run, which cuts its chunks from that batch on because it is told to.
    told = make(model, tmp_path, expression, LARGE, accumulate)
    original = told.training_step

    def training_step(*args, **kwargs):
        if told.state.global_step == 2 and told._substep == accumulate - 1:
            told.fit.chunk_tokens = starved.fit.chunk_tokens
        return original(*args, **kwargs)

    told.training_step = training_step
    assert_equal(found, final(told))


def test_the_shortage_is_one():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**50, dtype=torch.uint8)
    assert out_of_memory(caught.value)
