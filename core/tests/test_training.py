"""The training step and the trainer on a tiny real model: recompute, resume, own weights, health."""

import json
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import datasets
import pytest
import torch
from torch import nn

from embedloss import EmbedlossError, Loss, LossSpec, hookimpl, load_encoder
from embedloss.collate import Collator, Keyed
from embedloss.plugins import plugin_manager
from embedloss.testing.models import SENTENCES, tiny_bert
from embedloss.training import Trainer, TrainingArguments, TrainingStep
from embedloss.training.health import HealthWarning, replay
from embedloss.training.probe import spread
from embedloss.training.run import last_checkpoint
from embedloss.training.trainer import load_step, save_step

SPEC = LossSpec(
    name="test-nce", target=f"{__name__}:Nce", summary="in-batch softmax with an own temperature", family="test",
    formats=["pairs"], scope="batch", citation="none",
)  # fmt: skip


class Nce(Loss):
    spec = SPEC

    def __init__(self, start: float = 2.0, break_at: int = -1, dead: bool = False):
        super().__init__()
        self.start, self.break_at, self.dead = start, break_at, dead
        self.log_scale = nn.Parameter(torch.tensor(start))

    def compute(self, emb, labels):
        anchor, positive = (nn.functional.normalize(emb.own(r), dim=1) for r in ("anchor", "positive"))
        loss = nn.functional.cross_entropy(self.log_scale.exp() * anchor @ positive.T, torch.arange(len(anchor)))
        if self.dead:
            return loss * 0
        return {"nce": loss / (0 if emb.context.step == self.break_at else 1)}


class _Plugin:
    @staticmethod
    @hookimpl
    def embedloss_register_losses():
        return [SPEC]


@pytest.fixture(autouse=True)
def plugin():
    registered = plugin_manager().register(_Plugin(), "test-training")
    yield
    plugin_manager().unregister(registered)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny_bert(folder)
    return str(folder)


def pairs(count=40):
    rows = [{"anchor": f"{SENTENCES[i % 17]} {i}", "positive": " ".join(SENTENCES[: 1 + i % 3])} for i in range(count)]
    return datasets.Dataset.from_list(rows)


def one_step(model, *, recompute, chunk_tokens, seed=7):
    torch.manual_seed(seed)
    encoder = load_encoder(model)
    step = TrainingStep(encoder, Nce(), recompute=recompute).train()
    batch = Collator(encoder.processor, step.loss, "pairs", chunk_tokens)(Keyed(pairs()).__getitems__(list(range(40))))
    torch.manual_seed(seed)
    output = step(batch)
    output["loss"].backward()
    return output["loss"].detach(), {n: p.grad for n, p in step.named_parameters() if p.grad is not None}, batch


@pytest.mark.parametrize("chunk_tokens", [1, 200, 1000, 10**6])
def test_recompute_gives_the_same_gradients_with_dropout(model, chunk_tokens):
    plain_loss, plain, batch = one_step(model, recompute=False, chunk_tokens=chunk_tokens)
    loss, again, _ = one_step(model, recompute=True, chunk_tokens=chunk_tokens)
    assert len(batch["chunks"]) >= 2
    assert loss == plain_loss
    assert set(plain) == set(again)
    assert sum(float(g.abs().sum()) for g in plain.values()) > 0
    for name, gradient in plain.items():
        assert torch.allclose(gradient, again[name], rtol=1e-6, atol=1e-8), name


def make_trainer(model, out, *, loss=None, steps=12, **more):
    torch.manual_seed(0)
    encoder = load_encoder(model)
    step = TrainingStep(encoder, loss or Nce(), seed=3)
    settings = {"save_steps": 4, "logging_steps": 2, "learning_rate": 1e-3, **more}
    arguments = TrainingArguments(
        output_dir=str(out), max_steps=steps, per_device_train_batch_size=8, save_total_limit=2, report_to="none",
        disable_tqdm=True, seed=3, use_cpu=True, **settings,
    )  # fmt: skip
    return Trainer(
        step,
        arguments,
        train_dataset=pairs(),
        collator=Collator(encoder.processor, step.loss, "pairs", 500, source="the pairs"),
    )


def test_a_resumed_run_equals_an_uninterrupted_one(model, tmp_path):
    whole = make_trainer(model, tmp_path / "whole")
    whole.train()
    part = make_trainer(model, tmp_path / "part")
    part.args.max_steps = 12

    class Stop(Exception):
        pass

    original = part.training_step
    calls = []

    def stop_after_ten(*args, **kwargs):
        calls.append(1)
        if len(calls) == 11:
            raise Stop
        return original(*args, **kwargs)

    part.training_step = stop_after_ten
    with pytest.raises(Stop):
        part.train()
    checkpoint = last_checkpoint(tmp_path / "part")
    assert checkpoint.name == "checkpoint-8"
    again = make_trainer(model, tmp_path / "part")
    again.train(resume_from_checkpoint=str(checkpoint))
    expected, found = whole.step_module.state_dict(), again.step_module.state_dict()
    assert set(expected) == set(found)
    assert all(torch.equal(expected[n], found[n]) for n in expected)
    assert float(expected["loss.log_scale"]) != 2.0
    logs = [[e for e in t.state.log_history if "loss" in e] for t in (whole, again)]
    assert [(e["step"], e["loss"]) for e in logs[0]] == [(e["step"], e["loss"]) for e in logs[1]]


def test_own_weights_are_clipped_saved_and_have_their_own_rate(model, tmp_path):
    trainer = make_trainer(
        model, tmp_path / "run", steps=4, loss_learning_rate=0.5, max_grad_norm=1e-4, lr_scheduler_type="constant"
    )
    trainer.train()
    rates = {g["lr"] for g in trainer.optimizer.param_groups}
    assert rates == {0.5, 1e-3}
    moved = float(trainer.step_module.loss.log_scale.detach())
    assert moved != 2.0
    fresh = TrainingStep(load_encoder(model), Nce())
    load_step(fresh, tmp_path / "run" / "checkpoint-4")
    assert float(fresh.loss.log_scale.detach()) == moved


def test_a_checkpoint_is_a_model_folder(model, tmp_path):
    trainer = make_trainer(model, tmp_path / "run", steps=8)
    trainer.train()
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == ["checkpoint-4", "checkpoint-8"]
    encoder = load_encoder(str(tmp_path / "run" / "checkpoint-8"))
    ours = trainer.step_module.encoder.encode(["a cat"])
    assert abs(encoder.encode(["a cat"]) - ours).max() < 1e-6


def test_half_a_checkpoint_is_skipped(model, tmp_path):
    trainer = make_trainer(model, tmp_path / "run", steps=8)
    trainer.train()
    (tmp_path / "run" / "checkpoint-12").mkdir()
    (tmp_path / "run" / ".saving" / "checkpoint-16").mkdir(parents=True)
    assert last_checkpoint(tmp_path / "run").name == "checkpoint-8"


def test_a_checkpoint_of_another_loss_is_refused(model, tmp_path):
    step = TrainingStep(load_encoder(model), Nce())
    save_step(step, tmp_path / "saved")
    (tmp_path / "saved" / "loss.safetensors").unlink()
    with pytest.raises(EmbedlossError, match=r"has no loss\.safetensors") as caught:
        load_step(step, tmp_path / "saved")
    assert caught.value.code == "E403"


def test_nonfinite_loss_stops_the_run_and_can_be_replayed(model, tmp_path):
    trainer = make_trainer(model, tmp_path / "run", loss=Nce(break_at=5))
    with pytest.raises(EmbedlossError) as caught:
        trainer.train()
    message = str(caught.value)
    assert caught.value.code == "E207"
    assert "the loss (nce) became non-finite at step 6, in rows" in message
    assert "of the pairs" in message
    assert last_checkpoint(tmp_path / "run").name == "checkpoint-4"
    values = dict(replay(str(tmp_path / "run" / "nonfinite-step-6")))
    assert values["term nce"] == "inf"
    assert "0 of 8 rows non-finite" in values["embeddings of anchor"]


def test_nonfinite_gradient_stops_before_the_optimizer(model, tmp_path):
    trainer = make_trainer(model, tmp_path / "run", steps=3)
    module = trainer.step_module

    def poison(gradient):
        return gradient * float("nan")

    module.loss.log_scale.register_hook(poison)
    before = {n: p.detach().clone() for n, p in module.named_parameters()}
    with pytest.raises(EmbedlossError, match="a gradient became non-finite at step 1"):
        trainer.train()
    assert all(torch.equal(before[n], p) for n, p in module.named_parameters())


def test_dead_loss_warns_once(model, tmp_path):
    trainer = make_trainer(model, tmp_path / "run", loss=Nce(dead=True), steps=30, save_steps=100)
    with pytest.warns(HealthWarning, match="no gradient for 25 steps") as caught:
        trainer.train()
    assert sum(issubclass(w.category, HealthWarning) for w in caught) == 1


def test_probe_knows_spread_from_collapse():
    generator = torch.Generator().manual_seed(0)
    wide = spread(torch.randn(64, 32, generator=generator))
    alike = spread(torch.randn(1, 32, generator=generator) + 1e-3 * torch.randn(64, 32, generator=generator))
    assert abs(wide["similarity"]) < 0.05
    assert wide["rank"] > 20
    assert alike["similarity"] > 0.99
    assert spread(torch.randn(1, 4)) == {}


KILLED = """
import sys
sys.path[:0] = {path!r}
import test_training as t
t.plugin_manager().register(t._Plugin(), "test-training")
trainer = t.make_trainer({model!r}, {out!r}, steps=40)
import os, signal
step = trainer.training_step
def kill(*a, **k):
    if trainer.state.global_step == 10:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(*a, **k)
trainer.training_step = kill
trainer.train()
"""


def test_a_killed_process_leaves_whole_checkpoints(model, tmp_path):
    script = textwrap.dedent(KILLED.format(path=[str(Path(__file__).parent)], model=model, out=str(tmp_path / "run")))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stderr
    checkpoint = last_checkpoint(tmp_path / "run")
    assert checkpoint.name == "checkpoint-8"
    assert json.loads((checkpoint / "trainer_state.json").read_text())["global_step"] == 8
    trainer = make_trainer(model, tmp_path / "run", steps=12)
    trainer.train(resume_from_checkpoint=str(checkpoint))
    assert trainer.state.global_step == 12
