"""What users of transformers' trainer expect, through `run_training`, on a tiny real model."""

import inspect
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers

from embedloss import EmbedlossError, create_loss, load_encoder
from embedloss.collate import Collator
from embedloss.testing.models import SENTENCES, tiny_bert
from embedloss.training import RunConfig, Trainer, TrainingArguments, TrainingStep, run_training
from embedloss.training.options import check_options, check_reporters, schedule, training_arguments


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("work")
    tiny_bert(folder / "model")
    rows = [{"anchor": f"{SENTENCES[i % 17]} {i}", "positive": f"{SENTENCES[(i + 1) % 17]} {i}"} for i in range(32)]
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


def config(place, out, **more):
    settings = {"learning_rate": 1e-3, "batch_size": 8, "max_steps": 4, "logging_steps": 1, **more}
    return RunConfig(
        model=str(place / "model"),
        data=str(place / "data.jsonl"),
        loss="mnrl",
        out=str(place / out),
        overwrite=True,
        **settings,
    )


def run(place, out, **more):
    lines = []
    result = run_training(config(place, out, **more), lines.append)
    return result, "\n".join(lines)


def entries(result):
    return [json.loads(line) for line in (Path(result.folder) / "metrics.jsonl").read_text().splitlines()]


def losses(result):
    return [e["loss"] for e in entries(result) if "loss" in e]


def weights(folder):
    return load_encoder(str(folder)).state_dict()


# -- precision, memory, schedules --------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def plain(place):
    return run(place, "plain")[0]


def test_bfloat16_trains_and_float16_says_what_it_needs(place, plain):
    half, _ = run(place, "bfloat16", precision="bfloat16")
    assert losses(half) != losses(plain)
    assert losses(half) == pytest.approx(losses(plain), rel=0.05)
    if not torch.cuda.is_available():
        with pytest.raises(EmbedlossError, match="float16 needs a GPU") as caught:
            run(place, "float16", precision="float16")
        assert caught.value.code == "E401"
        assert not (place / "float16").exists()


def test_gradient_checkpointing_changes_memory_and_nothing_else(place, plain, tmp_path):
    again, _ = run(place, "layers", gradient_checkpointing=True)
    assert losses(again) == losses(plain)
    assert all(torch.equal(a, b) for a, b in zip(weights(again.folder).values(), weights(plain.folder).values(), strict=True))
    # The argument of transformers does the same for users of `Trainer`.
    encoder, loss = load_encoder(str(place / "model")), create_loss("mnrl")
    step = TrainingStep(encoder, loss)
    new = "activation_checkpointing" in inspect.signature(transformers.TrainingArguments).parameters
    name = "activation_checkpointing" if new else "gradient_checkpointing"
    arguments = TrainingArguments(str(tmp_path), max_steps=1, report_to="none", use_cpu=True, **{name: True})
    trainer = Trainer(step, arguments, train_dataset=_rows(place), collator=Collator(encoder.processor, loss, "pairs"))
    trainer.train()
    assert any(getattr(module, "gradient_checkpointing", False) for module in encoder.model.modules())


def _rows(place):
    import datasets

    return datasets.Dataset.from_json(str(place / "data.jsonl"))


def test_accumulated_batches_make_one_step(place):
    found, text = run(place, "accumulated", gradient_accumulation=2, max_steps=2)
    assert found.steps == 2
    assert "gradient accumulation adds no in-batch negatives" in text
    assert entries(found)[-1]["epoch"] == 1.0  # 4 batches


@pytest.mark.parametrize("text", ["cosine", "constant_with_warmup", "polynomial(power=2)", "cosine_with_min_lr(min_lr=1e-4)"])
def test_schedules_of_transformers_with_their_arguments(place, text):
    name, options = schedule(text)
    encoder = load_encoder(str(place / "model"))
    arguments = training_arguments(config(place, "x", scheduler=text), encoder, [])
    assert arguments.lr_scheduler_type == name
    assert arguments.lr_scheduler_kwargs == options


def test_a_schedule_reaches_the_optimizer(place):
    found, _ = run(place, "schedule", scheduler="cosine_with_min_lr(min_lr=5e-4)", warmup=0, max_steps=3)
    rates = [e["learning_rate"] for e in entries(found) if "learning_rate" in e]
    assert rates == sorted(rates, reverse=True)
    assert min(rates) >= 5e-4


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("cosin", "Did you mean 'cosine'"),
        ("cosine(speed=2)", "cannot be made"),
        ("cosine_with_min_lr", "cannot be made"),
        ("1", "not understood"),
        ("reduce_lr_on_plateau", "add --eval-data DATA --eval-steps N"),
    ],
)
def test_a_wrong_schedule_is_said_before_anything_is_loaded(place, text, said):
    with pytest.raises(EmbedlossError, match=said):
        run(place, "never", scheduler=text)
    assert not (place / "never").exists()


def test_weight_decay_spares_biases_and_norms_and_knows_the_losss_weights(place, tmp_path):
    encoder = load_encoder(str(place / "model"))
    loss = create_loss("softmax")
    step = TrainingStep(encoder, loss, num_classes=3)
    arguments = TrainingArguments(
        str(tmp_path), weight_decay=0.1, learning_rate=1e-3, loss_learning_rate=0.5, report_to="none", use_cpu=True
    )
    trainer = Trainer(step, arguments, train_dataset=[], collator=Collator(encoder.processor, loss, "pairs+class"))
    names = {p: n for n, p in step.named_parameters()}
    found = {(g["lr"], g["weight_decay"]): [names[p] for p in g["params"]] for g in trainer.create_optimizer().param_groups}
    assert set(found) == {(1e-3, 0.1), (1e-3, 0.0), (0.5, 0.1), (0.5, 0.0)} or set(found) == {
        (1e-3, 0.1),
        (1e-3, 0.0),
        (0.5, 0.1),
    }
    assert all("bias" in n or "norm" in n.lower() for n in found[1e-3, 0.0])
    assert not any(n.endswith("bias") or "LayerNorm" in n for n in found[1e-3, 0.1])
    assert all(n.startswith("loss.") for (rate, _), group in found.items() for n in group if rate == 0.5)
    trained = {n for n, p in step.named_parameters() if p.requires_grad}
    assert {n for group in found.values() for n in group} == trained


# -- best checkpoint, early stopping -----------------------------------------------------------------------------------
def test_the_best_evaluated_model_is_kept(place):
    data = str(place / "data.jsonl")
    found, text = run(
        place, "best", eval_data=data, eval_steps=2, load_best=True, max_steps=7, learning_rate=3e-3, save_total_limit=1
    )
    history = {e["step"]: e["eval_ndcg@10"] for e in entries(found) if "eval_ndcg@10" in e}
    assert sorted(history) == [0, 2, 4, 6, 7]  # the last step too
    del history[0]
    best = max(history, key=history.get)
    assert found.best == {"step": best, "metric": "ndcg@10", "value": history[best]}
    assert found.after["ndcg@10"] == history[best]
    assert f"best: ndcg@10 {history[best]:.4f} at step {best}" in text
    kept = Path(found.folder) / f"checkpoint-{best}"
    assert all(torch.equal(a, b) for a, b in zip(weights(kept).values(), weights(found.folder).values(), strict=True))


def test_a_worse_end_is_not_kept_and_training_stops_early(place):
    """A rate that breaks the model: every evaluation is worse than the first."""
    data = str(place / "data.jsonl")
    found, _ = run(
        place, "early", eval_data=data, eval_steps=1, load_best=True, early_stopping=2, max_steps=30, learning_rate=0.5,
        warmup=0, metric_for_best="mrr@10", scheduler="constant",
    )  # fmt: skip
    history = {e["step"]: e["eval_mrr@10"] for e in entries(found) if "eval_mrr@10" in e and e["step"]}
    best = max(history, key=history.get)
    assert found.steps < 30
    assert found.steps == best + 2
    assert found.best["step"] == best
    assert found.after["mrr@10"] == history[best] > history[found.steps] - 1e-12


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"early_stopping": 2}, "add --eval-data DATA --eval-steps N"),
        ({"load_best": True, "eval_steps": 5}, "add --eval-data DATA"),
        ({"early_stopping": 0}, "'early_stopping' must be at least 1"),
        ({"metric_for_best": "ndcg@10"}, "has no effect"),
        ({"lora_merge": True}, "no effect without 'lora'"),
        ({"hub_private": True}, "no effect without 'push_to_hub'"),
    ],
)
def test_settings_that_need_others(place, more, said):
    with pytest.raises(EmbedlossError, match=said) as caught:
        config(place, "never", **more).validate()
    assert caught.value.code == "E401"


def test_an_unknown_metric_is_said_before_training(place):
    data = str(place / "data.jsonl")
    with pytest.raises(EmbedlossError, match=r"no metric 'ndgc@10'. Did you mean 'ndcg@10'"):
        run(place, "never", eval_data=data, eval_steps=1, load_best=True, metric_for_best="ndgc@10")
    assert not list((place / "never").glob("checkpoint-*"))


def test_a_schedule_that_reads_the_evaluation(place):
    data = str(place / "data.jsonl")
    found, _ = run(
        place, "plateau", eval_data=data, eval_steps=1, scheduler="reduce_lr_on_plateau(patience=0, factor=0.5)", max_steps=4,
        learning_rate=0.3, warmup=0,
    )  # fmt: skip
    rates = [e["learning_rate"] for e in entries(found) if "learning_rate" in e]
    assert rates[-1] < rates[0]


# -- reporters ---------------------------------------------------------------------------------------------------------
def test_tensorboard_gets_every_value(place):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    data = str(place / "data.jsonl")
    found, _ = run(place, "board", report_to=["tensorboard"], eval_data=data, eval_steps=2)
    folder = Path(found.folder) / "tensorboard"
    values = {}
    for file in folder.iterdir():
        events = event_accumulator.EventAccumulator(str(file)).Reload()
        for tag in events.Tags()["scalars"]:
            values.setdefault(tag, []).extend((e.step, e.value) for e in events.Scalars(tag))
    logged = [(e["step"], e["loss"]) for e in entries(found) if "loss" in e]
    assert len(logged) == 4
    assert [step for step, _ in sorted(values["train/loss"])] == [step for step, _ in logged]
    assert [value for _, value in sorted(values["train/loss"])] == pytest.approx([value for _, value in logged])
    assert [step for step, _ in sorted(values["eval/ndcg@10"])] == [0, 2, 4]
    assert not Path("runs").exists()  # the default of transformers


def test_reporters_that_are_unknown_or_not_installed():
    with pytest.raises(EmbedlossError, match="Did you mean 'tensorboard'") as caught:
        check_reporters(["tensorbord"])
    assert caught.value.code == "E401"
    missing = [n for n in ("wandb", "mlflow", "swanlab") if not __import__("importlib.util").util.find_spec(n)]
    if not missing:
        pytest.skip("every reporter is installed")
    with pytest.raises(EmbedlossError, match=f"pip install {missing[0]}") as caught:
        check_reporters([missing[0]])
    assert caught.value.code == "E404"


# -- compile -----------------------------------------------------------------------------------------------------------
@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available() and not shutil.which("g++"), reason="torch.compile needs a compiler")
def test_a_compiled_transformer_trains_alike(place, plain):
    """In a process of its own: what was imported before the compiler's first use must not matter to it."""
    command = [sys.executable, "-m", "embedloss_cli", "train", "--model", str(place / "model")]
    command += ["--data", str(place / "data.jsonl"), "--loss", "mnrl", "--out", str(place / "compiled"), "--compile"]
    command += ["--learning-rate", "1e-3", "--batch-size", "8", "--max-steps", "2", "--logging-steps", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    log = (place / "compiled" / "metrics.jsonl").read_text().splitlines()
    compiled = [e["loss"] for e in map(json.loads, log) if "loss" in e]
    assert compiled[0] == pytest.approx(losses(plain)[0], rel=0.2)  # another stream of dropout
    assert compiled[-1] < compiled[0]
    assert set(weights(place / "compiled")) == set(weights(plain.folder))


def test_a_static_encoder_has_no_layers(place):
    settings = config(place, "never", gradient_checkpointing=True)
    settings.model = "static(dimension=8)"
    with pytest.raises(EmbedlossError, match="'gradient_checkpointing' needs a transformer"):
        check_options(settings)


def test_a_run_resumes_with_early_stopping(place):
    data = str(place / "data.jsonl")
    more = {"eval_data": data, "eval_steps": 2, "load_best": True, "early_stopping": 3, "max_steps": 6}
    whole, _ = run(place, "whole", **more)

    class Kill(transformers.TrainerCallback):
        def on_save(self, args, state, control, **kwargs):
            if state.global_step == 4:
                raise KeyboardInterrupt

    original = Trainer.__init__

    def with_kill(self, *args, **kwargs):
        original(self, *args, **kwargs)
        self.add_callback(Kill())

    Trainer.__init__ = with_kill
    try:
        with pytest.raises(KeyboardInterrupt):
            run(place, "part", **more)
    finally:
        Trainer.__init__ = original
    settings = config(place, "part", **more)
    settings.overwrite, settings.resume = False, True
    part = run_training(settings, lambda text: None)
    assert part.after == whole.after
    assert part.best == whole.best
    assert all(torch.equal(a, b) for a, b in zip(weights(part.folder).values(), weights(whole.folder).values(), strict=True))
