"""What transformers' trainer offers, checked before anything is loaded, and handed to it as `TrainingArguments`."""

from __future__ import annotations

import difflib
import importlib.util
import os
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedloss.errors import EmbedlossError
from embedloss.training.config import ON_METRIC, RunConfig

if TYPE_CHECKING:
    from embedloss.encoders import Encoder
    from embedloss.training.data_sets import EvalSource
    from embedloss.training.trainer import Trainer, TrainingArguments

# Where the package that a reporter needs is named otherwise.
PACKAGES = {"comet_ml": "comet-ml", "azure_ml": "azureml-mlflow"}


def near(name: str, known: Iterable[str]) -> str:
    """A hint such as " Did you mean 'cosine'?", or nothing."""
    found = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" Did you mean '{found[0]}'?" if found else ""


def check_options(config: RunConfig) -> None:
    """E401 or E404 for a schedule, precision, reporter, adapter or hub id that cannot be used here."""
    import torch

    schedule(config.scheduler)
    check_reporters(config.report_to)
    static = config.model.startswith("static")
    for key in ("gradient_checkpointing", "compile", "lora"):
        if static and getattr(config, key):
            raise EmbedlossError("E401", f"'{key}' needs a transformer, and a static encoder has none; leave it out.")
    if config.precision == "float16" and not torch.cuda.is_available():
        raise EmbedlossError(
            "E401", "float16 needs a GPU, and there is none: type --precision bfloat16, or leave it out for float32."
        )
    if config.precision == "bfloat16" and torch.cuda.is_available() and not torch.cuda.is_bf16_supported():
        raise EmbedlossError("E401", "this GPU does not compute in bfloat16: type --precision float16.")
    if config.compile and not torch.cuda.is_available():
        compiler = os.environ.get("CXX") or next((c for c in ("g++", "clang++", "cl") if shutil.which(c)), None)
        if compiler is None:
            raise EmbedlossError("E404", "torch.compile needs a C++ compiler on a CPU, such as g++; install one.")
    if config.lora:
        from embedloss.encoders.lora import LoraSettings, need_peft

        LoraSettings.read(config.lora)
        need_peft()
    if config.push_to_hub:
        from embedloss.training.hub import check_hub

        check_hub(config.push_to_hub)


def schedule(text: str) -> tuple[str, dict[str, Any]]:
    """Name and arguments of a transformers schedule written as "cosine" or "cosine_with_min_lr(min_lr=1e-6)".

    Raises:
        EmbedlossError: E401 for an unknown name, or arguments that the schedule does not take.
    """
    if text == "linear":
        return text, {}
    import torch
    from transformers import get_scheduler
    from transformers.trainer_utils import SchedulerType

    from embedloss.expression import Call, parse

    known = [kind.value for kind in SchedulerType]
    call: Any = None
    with suppress(EmbedlossError):
        call = parse(text)
    if not isinstance(call, Call) or call.args:
        raise EmbedlossError("E401", f"schedule '{text}' is not understood; type cosine or cosine_with_min_lr(min_lr=1e-6).")
    name = call.name.replace("-", "_")
    if name not in known:
        raise EmbedlossError("E401", f"unknown schedule '{call.name}'.{near(name, known)} Known: {', '.join(known)}.")
    options = dict(call.kwargs)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    try:
        get_scheduler(name, optimizer, num_warmup_steps=1, num_training_steps=4, scheduler_specific_kwargs=dict(options))
    except (TypeError, ValueError) as exception:
        reason = re.sub(r"^\w+(\.\w+)*\(\) ", "it ", str(exception).splitlines()[0])
        raise EmbedlossError(
            "E401", f"schedule '{text}' cannot be made: {reason}. Arguments go in brackets: {name}(name=value)."
        ) from exception
    return name, options


def check_reporters(names: Iterable[str]) -> None:
    """E401 for a reporter that transformers does not have, E404 for one whose package is missing."""
    names = list(names)
    if not names:
        return
    from transformers.integrations import integration_utils

    known = sorted(integration_utils.INTEGRATION_TO_CALLBACK)
    for name in names:
        if name not in known:
            raise EmbedlossError("E401", f"unknown reporter '{name}'.{near(name, known)} Known: {', '.join(known)}.")
        available = getattr(integration_utils, f"is_{name.replace('_', '')}_available", None) or getattr(
            integration_utils, f"is_{name.partition('_')[0]}_available", None
        )
        there = available() if available else importlib.util.find_spec(name) is not None
        if not there:
            raise EmbedlossError("E404", f"reporting to '{name}' needs a package: pip install {PACKAGES.get(name, name)}")


def check_metric(name: str | None, known: Mapping[str, float]) -> None:
    """E401 for a metric that the evaluation does not give."""
    plain = name.removeprefix("eval_") if name else None
    if plain and known and plain not in known:
        shown = ", ".join(known)
        raise EmbedlossError("E401", f"the evaluation gives no metric '{plain}'.{near(plain, known)} It gives: {shown}.")


def better_when_greater(metric: str) -> bool:
    """Whether more is better: so for all metrics but errors."""
    return not metric.rpartition("/")[2].startswith(("mse", "loss"))


def main_metric(encoder: Encoder, evaluations: Sequence[EvalSource]) -> str | None:
    """The metric to compare runs by; None without evaluation data, or where they give none.

    It is the main one of the data format; of several evaluation sets "mean/main", or that of the first which has one.
    """
    from embedloss.evaluation import primary_metric

    found = {part.name: primary_metric(part.binding.format.name, encoder.similarity, encoder.kind) for part in evaluations}
    if len(found) > 1 and all(found.values()):
        return "mean/main"
    return next((f"{name}/{metric}" if name else metric for name, metric in found.items() if metric), None)


def learning_rate(config: RunConfig, encoder: Encoder) -> float:
    """The rate asked for; else 2e-5 for a transformer, 2e-4 for its adapters, and 0.05 for a table of vectors."""
    if config.learning_rate:
        return config.learning_rate
    if not encoder.n_layers:
        return 0.05
    return 2e-4 if config.lora else 2e-5


def adapt_encoder(config: RunConfig, encoder: Encoder, say: Any) -> None:
    """Adapters, recomputed layers and compilation, as the settings ask; in place, before the loss copies the encoder."""
    if config.lora:
        from embedloss.encoders.lora import LoraSettings, add_adapters

        say("adapters\n  " + add_adapters(encoder, LoraSettings.read(config.lora), hub_id=config.model))
    if config.gradient_checkpointing:
        enable: Any = encoder.gradient_checkpointing_enable
        enable({"use_reentrant": False})
    if config.compile:
        model: Any = encoder.model
        model.compile(dynamic=True)


def training_arguments(config: RunConfig, encoder: Encoder, evaluations: Sequence[EvalSource]) -> TrainingArguments:
    """The settings as transformers takes them.

    Args:
        config: checked settings.
        encoder: for the default learning rate and the main metric.
        evaluations: evaluation data sets, maybe none.
    """
    from embedloss.training.trainer import TrainingArguments

    name, options = schedule(config.scheduler)
    evaluates = bool(config.eval_steps and evaluations)
    metric = None
    if evaluates and (config.load_best or config.early_stopping or name in ON_METRIC):
        metric = config.metric_for_best or main_metric(encoder, evaluations)
        if metric is None:
            raise EmbedlossError("E401", "nothing is measured on the evaluation data: no checkpoint is better than another.")
    greater = better_when_greater(metric) if metric else None
    if name in ON_METRIC:
        options.setdefault("mode", "max" if greater else "min")
    save_steps = config.eval_steps if config.load_best else config.save_steps
    return TrainingArguments(
        output_dir=config.out,
        run_name=Path(config.out).name,
        num_train_epochs=config.epochs,
        max_steps=config.max_steps if config.max_steps else -1,
        per_device_train_batch_size=config.batch_size,
        gradient_accumulation_steps=config.gradient_accumulation,
        learning_rate=learning_rate(config, encoder),
        loss_learning_rate=config.loss_learning_rate,
        weight_decay=config.weight_decay,
        warmup_steps=config.warmup,
        lr_scheduler_type=name,
        lr_scheduler_kwargs=options,
        max_grad_norm=config.max_grad_norm,
        bf16=config.precision == "bfloat16",
        fp16=config.precision == "float16",
        batch_sampler=config.sampler,
        dataloader_num_workers=config.workers,
        logging_steps=config.logging_steps,
        probe_steps=config.probe_steps,
        eval_strategy="steps" if evaluates else "no",
        eval_steps=config.eval_steps or None,
        save_strategy="steps" if save_steps else "no",
        save_steps=save_steps or 500,
        save_total_limit=config.save_total_limit,
        load_best_model_at_end=config.load_best,
        metric_for_best_model=metric,
        greater_is_better=greater,
        seed=config.seed,
        report_to=config.report_to or "none",
        restore_callback_states_from_checkpoint=config.early_stopping is not None,  # its count goes on where it was
        disable_tqdm=True,
    )


def add_callbacks(trainer: Trainer, config: RunConfig) -> None:
    """Early stopping, an evaluation of the last step, and logs of reporters inside the run folder."""
    import transformers
    from transformers.integrations import TensorBoardCallback

    class LastStep(transformers.TrainerCallback):  # type: ignore[misc]
        """Without it, the last steps could never be the best ones."""

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            """Evaluate the end as well."""
            if state.global_step >= state.max_steps:
                control.should_evaluate = True

    if config.early_stopping:
        trainer.add_callback(transformers.EarlyStoppingCallback(config.early_stopping))
    if trainer.evaluator is not None and config.eval_steps:
        trainer.add_callback(LastStep())
    for callback in trainer.callback_handler.callbacks:
        # Its own default is a folder of the current directory for what is logged before the first step.
        if isinstance(callback, TensorBoardCallback) and callback.logging_dir is None:
            callback.logging_dir = str(Path(config.out) / "tensorboard")


def best_checkpoint(trainer: Trainer) -> dict[str, Any] | None:
    """Step, metric and value of the best evaluation, if the run looked for it."""
    if not trainer.args.load_best_model_at_end or trainer.state.best_metric is None:
        return None
    metric = str(trainer.args.metric_for_best_model).removeprefix("eval_")
    return {"step": trainer.state.best_global_step, "metric": metric, "value": trainer.state.best_metric}


def last_evaluation(trainer: Trainer) -> dict[str, float] | None:
    """The metrics of the model that the run ends with, if it was evaluated on the way."""
    step = trainer.state.best_global_step if trainer.args.load_best_model_at_end else trainer.state.global_step
    for entry in reversed(trainer.state.log_history):
        found = {k.removeprefix("eval_"): v for k, v in entry.items() if k.startswith("eval_")}
        if found and entry["step"] == step:
            return found
    return None


def finish_reports(trainer: Trainer) -> None:
    """Close what reporters opened again for the last evaluation."""
    for callback in trainer.callback_handler.callbacks:
        writer = getattr(callback, "tb_writer", None)
        if writer is not None:
            writer.close()
