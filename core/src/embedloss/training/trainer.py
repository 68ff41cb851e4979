"""A thin subclass of `transformers.Trainer`: schedules, integrations, DDP, FSDP and DeepSpeed come from there."""

from __future__ import annotations

import json
import os
import pickle
import random
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader

from embedloss.binding import NOT_TEXTS
from embedloss.collate import Collator, Keyed
from embedloss.encoders import load_encoder
from embedloss.encoders.base import draws
from embedloss.errors import EmbedlossError
from embedloss.loss import Loss
from embedloss.mixture import Mixture, MixtureCollator, MixtureSampler
from embedloss.registry import create_loss
from embedloss.samplers import EpochSampler, OwnSampler, make_sampler
from embedloss.streaming import HandedOver, Stream, Streams, StreamSampler
from embedloss.training.checkpoints import (
    STAGING,
    cannot_save,
    facts_of,
    fault,
    last_checkpoint,
    not_saved,
    publish,
    rotate,
    seal,
)
from embedloss.training.fit import Fit
from embedloss.training.health import Health
from embedloss.training.per_dataset import PerDataset
from embedloss.training.probe import Probe, probes
from embedloss.training.step import TrainingStep

LOSS_FILE = "loss.safetensors"
TWIN_FILE = "twin.safetensors"
STREAM_FILE = "stream.json"  # position of the streams that a run reads
PROGRESS_FILE = "progress_{}.json"


@dataclass
class TrainingArguments(transformers.TrainingArguments):
    """`transformers.TrainingArguments` and what is particular to embeddings.

    Args:
        batch_sampler: "auto" (the loss's recommendation), "random", "no-duplicates", "group-by-label" or "length-grouped".
        loss_learning_rate: of the loss's own weights; by default `learning_rate`.
        probe_steps: steps between looks at how the embeddings of a fixed sample of the training texts spread; 0 never looks.
    """

    batch_sampler: str = "auto"
    loss_learning_rate: float | None = None
    probe_steps: int = 50
    logging_nan_inf_filter: bool = field(default=False)  # a NaN is logged as NaN
    remove_unused_columns: bool | None = field(default=False)

    def __post_init__(self) -> None:
        """Processes without an accelerator form a group only if they are told that they run on CPUs."""
        accelerator = getattr(torch, "accelerator", torch.cuda)  # torch.accelerator: since 2.6
        self.use_cpu = self.use_cpu or not accelerator.is_available()  # type: ignore[has-type]
        super().__post_init__()


class _EpochLoader(DataLoader[Any]):
    """A data loader whose batch sampler learns the epoch (accelerate's own is not used: our samplers share out the rows)."""

    def set_epoch(self, epoch: int) -> None:
        self.batch_sampler.set_epoch(epoch)  # type: ignore[union-attr]


class _Epochs(transformers.TrainerCallback):
    """Tells the batch sampler the epoch.

    Up to 5.16 transformers does not, in the epoch in which a run is resumed: the batches to skip were those of epoch 0.
    """

    def on_epoch_begin(self, args: Any, state: Any, control: Any, train_dataloader: Any = None, **kwargs: Any) -> None:
        if isinstance(train_dataloader, _EpochLoader):
            train_dataloader.set_epoch(int(state.epoch or 0))


class _Probes(transformers.TrainerCallback):
    """Looks at the probes before the first step, every `probe_steps`, and after the last one."""

    def __init__(self, look: Callable[[], None]) -> None:
        self.look = look

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if args.probe_steps and state.global_step == 0:
            self.look()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if args.probe_steps and (state.global_step % args.probe_steps == 0 or state.global_step >= state.max_steps):
            due = control.should_log
            self.look()
            control.should_log = due  # a log entry, which this made, resets it


class Trainer(transformers.Trainer):
    """Trains a `TrainingStep`.

    Args:
        model: the step (encoder and loss).
        args: training arguments.
        train_dataset: a bound data set: columns named by role, and "label"; a `Mixture` of several; or `Streams`. A
            `datasets.IterableDataset`, or anything that is iterated and has no length, is read as a stream.
        collator: makes the batches; a `MixtureCollator` for a mixture.
        batch_sampler: an order of batches of one's own (`embedloss.samplers.JointBatches`).
        evaluator: called with the encoder, returns metrics by name; runs on the first process only.
        callbacks: as in transformers.
    """

    def __init__(
        self,
        model: TrainingStep,
        args: TrainingArguments,
        *,
        train_dataset: Any,
        collator: Collator | MixtureCollator,
        batch_sampler: Any = None,
        evaluator: Callable[[Any], Mapping[str, float]] | None = None,
        callbacks: list[Any] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
    ) -> None:
        for part in getattr(collator, "collators", {"": collator}).values():
            if getattr(part, "share", True) is None:
                part.share = not draws(model)
        self.evaluator = evaluator
        self.own_sampler = batch_sampler
        self.terms: dict[str, None] = {}  # names, in order
        self._stream_start: dict[str, Any] | None = None
        self._stream_sampler: StreamSampler | None = None
        if train_dataset is not None and not hasattr(train_dataset, "__len__") and not isinstance(train_dataset, Streams):
            assert isinstance(collator, Collator)
            kind = args.batch_sampler
            stream = Stream.of(train_dataset, model.loss.spec, collator.format_name, sampler=kind)
            train_dataset = Streams({"": stream})
        if isinstance(train_dataset, Streams) and args.max_steps <= 0:
            raise EmbedlossError("E401", "a stream has no length; give max_steps.")
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}
        self._run_loss = [0.0, 0]
        self._substep = 0
        self._staging = False
        self._batch: Mapping[str, Any] = {}
        self._probes: dict[str, Probe] | None = None
        self.fit = Fit(self)
        self.health = Health(Path(args.output_dir), collator.source)
        self.optimizer: Any = None
        self.control: Any = None
        if isinstance(model.loss, PerDataset) and args.ddp_find_unused_parameters is None:
            # A step trains the own weights of one data set's loss only; DDP would wait for the others.
            args.ddp_find_unused_parameters = any(True for _ in model.loss.parameters())
        super().__init__(
            model=model,
            args=args,
            data_collator=collator,
            train_dataset=train_dataset,
            eval_dataset={} if evaluator else None,
            callbacks=[_Epochs(), _Probes(self._look), *(callbacks or [])],
            optimizers=optimizers,
        )
        self.model_accepts_loss_kwargs = False
        if not self.args.max_grad_norm:  # so that the norm is computed, and looked at, where it is not clipped
            self.args.max_grad_norm = float("inf")
        self.health.check_start(self.step_module)
        self._check_agreement()

    def _check_agreement(self) -> None:
        """E401 where processes were started with different losses: their gradients would be averaged all the same."""
        if self.args.world_size > 1:
            found: list[Any] = [None] * self.args.world_size
            dist.all_gather_object(found, step_expression(self.step_module))
            if len(set(found)) > 1:
                shown = "\n".join(f"  process {i}: {expression}" for i, expression in enumerate(found))
                raise EmbedlossError("E401", f"the processes train different losses:\n{shown}")

    @property
    def step_module(self) -> TrainingStep:
        """The unwrapped training step."""
        module = self.accelerator.unwrap_model(self.model)
        assert isinstance(module, TrainingStep)
        return module

    # -- data --------------------------------------------------------------------------------------------------------
    def sampler(self) -> EpochSampler | MixtureSampler | StreamSampler:
        """The batch sampler of this run, for this process."""
        assert isinstance(self.args, TrainingArguments)
        loss = self.step_module.loss
        if self.own_sampler is not None:
            return OwnSampler(self.own_sampler, len(self.train_dataset))  # type: ignore[arg-type]
        name = loss.spec.sampler if self.args.batch_sampler == "auto" else self.args.batch_sampler
        columns = getattr(self.train_dataset, "column_names", [])
        roles = [c for c in columns if c not in NOT_TEXTS]
        seed = self.args.data_seed if self.args.data_seed is not None else self.args.seed
        if isinstance(self.train_dataset, Streams):
            total = self.args.max_steps * self.args.gradient_accumulation_steps
            size = self.args.per_device_train_batch_size
            return StreamSampler(self.train_dataset, size, total, seed, self._stream_start)
        if isinstance(self.train_dataset, Mixture):
            parts = loss.items() if isinstance(loss, PerDataset) else [(part, loss) for part in self.train_dataset.parts]
            names = {part: str(own.spec.sampler) if self.args.batch_sampler == "auto" else name for part, own in parts}
            batch_size, drop_last = self.args.per_device_train_batch_size, self.args.dataloader_drop_last
            return self.train_dataset.sampler(names, batch_size, seed, drop_last)
        return make_sampler(
            name, self.train_dataset, roles, self.args.per_device_train_batch_size, seed, self.args.dataloader_drop_last
        )

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Batches of this process; every process draws the same joint batches and takes its share."""
        workers = self.args.dataloader_num_workers
        sampler = self.sampler()
        self._stream_sampler = sampler if isinstance(sampler, StreamSampler) else None
        # Streams: the sampler gives the rows themselves, so that the workers, which tokenise, need not have them.
        rows = HandedOver() if self._stream_sampler is not None else self.train_dataset
        return _EpochLoader(
            rows if isinstance(rows, (Mixture, HandedOver)) else Keyed(rows),  # type: ignore[arg-type]
            batch_sampler=sampler,
            collate_fn=self.data_collator,
            num_workers=workers,
            pin_memory=self.args.dataloader_pin_memory and torch.cuda.is_available(),
            persistent_workers=workers > 0,
            generator=torch.Generator().manual_seed(0),  # so that making an iterator does not move the global generator
        )

    # -- one step ----------------------------------------------------------------------------------------------------
    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """As in transformers, with the step number handed to the loss's random generators."""
        module = self.step_module
        module.step = self.state.global_step * self.args.gradient_accumulation_steps + self._substep
        self._substep = 0 if self.accelerator.sync_gradients else self._substep + 1

        def run(batch: dict[str, Any]) -> Tensor:
            result: Tensor = super(Trainer, self).training_step(model, batch, num_items_in_batch)
            return result

        return self.fit.step(run, inputs)

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The loss of a batch; its terms and metrics are averaged until the next log entry."""
        output = model(inputs)
        self._batch = inputs
        self.health.check_scale(self.step_module.scale_note)
        self.health.check_output(self.step_module, output, inputs, self.state.global_step + 1)
        self._run_loss = [self._run_loss[0] + float(output["loss"].detach()), self._run_loss[1] + 1]
        terms = output["terms"] if set(output["terms"]) != {"loss"} else {}
        parts = [*terms.items(), *output["metrics"].items()]
        if "dataset" in inputs:  # each data set is averaged over its own steps
            parts = [(f"{inputs['dataset']}/{name}", value) for name, value in [("loss", output["loss"]), *parts]]
            terms = {f"{inputs['dataset']}/{name}": value for name, value in {"loss": output["loss"], **terms}.items()}
        self.terms.update(dict.fromkeys(terms))
        for name, value in (*parts, ("loss", output["loss"])):
            value = value.detach().float()
            self._sums[name] = self._sums[name] + value if name in self._sums else value
            self._counts[name] = self._counts.get(name, 0) + 1
        return (output["loss"], output) if return_outputs else output["loss"]

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        norm = super()._clip_grad_norm(model)
        value = float(norm) if norm is not None else 0.0
        scaler = getattr(self.accelerator, "scaler", None)
        if scaler is not None and self.health.check_overflow(value, float(scaler.get_scale())):
            return norm
        self.health.check_gradient(self.step_module, value, self._batch, self.state.global_step + 1)
        return norm

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the mean of the loss, every term and metric since the last training entry, over all processes.

        The means are our own, also that of the loss: they are in the checkpoints, so that a resumed run logs the same.
        """
        if "loss" in logs and self._sums:
            logs.update(self._averages())
            self._sums, self._counts = {}, {}
        if "train_loss" in logs and self._run_loss[1]:
            logs["train_loss"] = self._run_loss[0] / self._run_loss[1]
        super().log(logs, start_time)

    def _look(self) -> None:
        """Log how the embeddings of the probes spread, and warn of a collapse; on the first process."""
        sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled  # no process can run the encoder by itself
        if sharded or not self.is_world_process_zero():
            return
        found: dict[str, float] = {}
        with unmoved_generators():
            if self._probes is None:
                self._probes = probes(self.train_dataset, self.data_collator, self.args.seed)
            for name, probe in self._probes.items():
                spread = probe.measure(self.step_module.encoder)
                self.health.check_spread(spread, self.state.global_step, name)
                found.update({f"probe/{name}/{k}" if name else f"probe/{k}": v for k, v in spread.items()})
        if found:
            self.log(found)

    def _averages(self) -> dict[str, float]:
        names = sorted(self._sums)
        pairs = torch.stack([torch.stack([self._sums[n], self._sums[n].new_tensor(float(self._counts[n]))]) for n in names])
        if self.args.world_size > 1:
            gathered: list[Any] = [None] * self.args.world_size
            dist.all_gather_object(gathered, {n: pair for n, pair in zip(names, pairs.tolist(), strict=True)})
            names = sorted({n for part in gathered for n in part})
            totals = {n: [sum(part.get(n, (0, 0))[k] for part in gathered) for k in (0, 1)] for n in names}
            return {n: total / max(count, 1) for n, (total, count) in totals.items()}
        return {n: total / count for n, (total, count) in zip(names, pairs.tolist(), strict=True)}

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """As in transformers, with the loss's own weights in a group of their own where they have their own rate."""
        assert isinstance(self.args, TrainingArguments)
        rate = self.args.loss_learning_rate
        if self.optimizer is None and rate is not None:
            target = self.model if model is None else model
            decays = set(self.get_decay_parameter_names(target))
            groups: dict[tuple[bool, bool], list[Tensor]] = {}
            for name, parameter in target.named_parameters():
                if parameter.requires_grad:
                    own = name.removeprefix("module.").startswith("loss.")
                    groups.setdefault((own, name in decays), []).append(parameter)
            cls, kwargs = self.get_optimizer_cls_and_kwargs(self.args, target)
            self.optimizer = cls(
                [
                    {"params": p, "weight_decay": self.args.weight_decay if decay else 0.0, **({"lr": rate} if own else {})}
                    for (own, decay), p in groups.items()
                ],
                **kwargs,
            )
        made: torch.optim.Optimizer = super().create_optimizer(model)
        return made

    # -- evaluation --------------------------------------------------------------------------------------------------
    def evaluate(self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """Run the evaluator on the first process; every process gets the metrics."""
        metrics: list[dict[str, float] | None] = [None]
        if self.evaluator is not None and self.is_world_process_zero():
            with unmoved_generators():
                metrics[0] = {f"{metric_key_prefix}_{k}": float(v) for k, v in self.evaluator(self.step_module).items()}
        if self.args.world_size > 1:
            dist.broadcast_object_list(metrics, src=0)
        found = metrics[0] or {}
        self.log(dict(found))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, found)
        return found

    # -- checkpoints -------------------------------------------------------------------------------------------------
    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """As in transformers, from a checkpoint that is known to be whole.

        Args:
            resume_from_checkpoint: a checkpoint, or True for the newest whole one of the output folder.
            args, kwargs: as in transformers.

        Raises:
            EmbedlossError: E403 where there is no whole checkpoint, or it is of another number of processes.
        """
        checkpoint: str | None = None
        if resume_from_checkpoint is True:
            found = last_checkpoint(Path(self.args.output_dir), warnings.warn)
            if found is None:
                raise EmbedlossError("E403", f"there is no checkpoint in '{self.args.output_dir}' to resume from.")
            checkpoint = str(found)
        elif resume_from_checkpoint:
            checkpoint = str(resume_from_checkpoint)
            reason = fault(Path(checkpoint))
            if reason is not None:
                raise EmbedlossError("E403", f"checkpoint '{checkpoint}' is not whole: {reason}.")
        self._read_progress(checkpoint)
        return super().train(checkpoint, *args, **kwargs)

    def _read_progress(self, checkpoint: str | None) -> None:
        """What the log and the health checks had counted at a checkpoint; nothing at the start of a run."""
        self._sums, self._counts, self._run_loss, self._substep = {}, {}, [0.0, 0], 0
        if checkpoint is None:
            return
        saved = int(facts_of(Path(checkpoint)).get("processes", 1))
        if saved != self.args.world_size:
            raise EmbedlossError(
                "E403",
                f"checkpoint '{checkpoint}' was saved by {saved} process(es), this run has {self.args.world_size}: the batches "
                f"would not be the same. Start {saved} process(es).",
            )
        file = Path(checkpoint) / PROGRESS_FILE.format(self.args.process_index)
        progress = json.loads(file.read_text(encoding="utf-8"))
        self._sums = {name: torch.tensor(value, device=self.args.device) for name, value in progress["sums"].items()}
        self._counts, self._run_loss = progress["counts"], progress["run_loss"]
        self.health.load_state(progress["health"])
        self.fit.chunk_tokens = progress["chunk_tokens"]

    def _write_progress(self, folder: Path) -> None:
        progress = {
            "sums": {name: float(value) for name, value in self._sums.items()},
            "counts": self._counts,
            "run_loss": self._run_loss,
            "health": self.health.state(),
            "chunk_tokens": self.fit.chunk_tokens,
        }
        file = folder / PROGRESS_FILE.format(self.args.process_index)
        file.write_text(json.dumps(progress) + "\n", encoding="utf-8")

    def _get_output_dir(self, trial: Any) -> str:
        folder: str = super()._get_output_dir(trial)
        return os.path.join(folder, STAGING) if self._staging else folder

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Write the checkpoint beside the others and rename it when it is whole, so that a kill never leaves half of one."""
        run = Path(self.args.output_dir)
        name = f"checkpoint-{self.state.global_step}"
        staged = run / STAGING / name
        if self.args.should_save:
            shutil.rmtree(run / STAGING, ignore_errors=True)
        self._barrier()
        try:
            self._stage(model, trial, run, staged)
            self._barrier()
            if self.args.should_save:
                seal(staged, step=self.state.global_step, processes=self.args.world_size)
                final = publish(staged, run)
                best = self.state.best_model_checkpoint
                rotate(run, self.args.save_total_limit, [final, *([Path(best)] if best else [])])
        except Exception as exception:
            shutil.rmtree(run / STAGING, ignore_errors=True)
            if cannot_save(exception):
                raise not_saved(run, name, exception) from exception
            raise

    def _stage(self, model: nn.Module, trial: Any, run: Path, staged: Path) -> None:
        """Write a checkpoint's files to the staging folder."""
        best = self.state.best_model_checkpoint
        self._staging = True
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self._staging = False
        self._write_progress(staged)
        self.state.best_model_checkpoint = best
        if self.state.best_global_step:
            self.state.best_model_checkpoint = str(run / f"checkpoint-{self.state.best_global_step}")
        if self.args.should_save:
            self.state.save_to_json(str(staged / "trainer_state.json"))

    def _barrier(self) -> None:
        if self.args.world_size > 1:
            dist.barrier()

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        folder = Path(output_dir or self.args.output_dir)
        save_step(self.step_module, folder, training=folder.name.startswith("checkpoint-"))
        if self._stream_sampler is not None and folder.name.startswith("checkpoint-"):
            batches = self.state.global_step * self.args.gradient_accumulation_steps
            position = json.dumps(self._stream_sampler.position(batches))
            (folder / STREAM_FILE).write_text(position, encoding="utf-8")

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with refuse_pickles(checkpoint):
            super()._load_optimizer_and_scheduler(checkpoint)

    def _load_scaler(self, checkpoint: str | None) -> None:
        with refuse_pickles(checkpoint):
            super()._load_scaler(checkpoint)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with refuse_pickles(checkpoint):
            super()._load_rng_state(checkpoint)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        load_step(self.step_module, resume_from_checkpoint)
        if isinstance(self.train_dataset, Streams):
            file = Path(resume_from_checkpoint) / STREAM_FILE
            if not file.is_file():
                raise EmbedlossError("E403", f"checkpoint '{resume_from_checkpoint}' has no {STREAM_FILE}; it read no stream.")
            self._stream_start = json.loads(file.read_text(encoding="utf-8"))

    def _load_best_model(self) -> None:
        if self.state.best_model_checkpoint:
            load_step(self.step_module, self.state.best_model_checkpoint)


@contextmanager
def refuse_pickles(checkpoint: str | None) -> Iterator[None]:
    """E403 for a file of a checkpoint that holds more than tensors and plain values; nothing of it has been run."""
    try:
        yield
    except pickle.UnpicklingError as exception:
        reason = str(exception).splitlines()[0]
        message = f"a file in '{checkpoint}' is damaged, or would run code when read: {reason}"
        raise EmbedlossError("E403", message) from exception


@contextmanager
def unmoved_generators() -> Iterator[None]:
    """The global generators are afterwards as they were: whether, and when, a run evaluates does not change its training."""
    python, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002  what libraries draw from
    with torch.random.fork_rng():
        yield
    random.setstate(python)
    np.random.set_state(numpy_state)  # noqa: NPY002


def save_step(step: TrainingStep, folder: str | os.PathLike[str], training: bool = False) -> None:
    """Write the encoder (sentence-transformers layout) and the loss's own weights.

    Args:
        step: what to save.
        folder: made if it does not exist.
        training: also what only further training needs (the twin encoder).
    """
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    step.encoder.save(path)
    state = {name: tensor.contiguous() for name, tensor in step.loss.state_dict().items()}
    if state:
        save_file(state, path / LOSS_FILE)
    described: dict[str, Any] = {"expression": step_expression(step)}
    if isinstance(step.loss, PerDataset) and described["expression"]:
        described["losses"] = step.loss.expressions()
        described |= {"num_classes": step.loss.num_classes, "label_dimension": step.loss.label_dimension}
    (path / "loss.json").write_text(json.dumps(described) + "\n", encoding="utf-8")
    if training and step.twin is not None:
        save_file({name: tensor.contiguous() for name, tensor in step.twin.state_dict().items()}, path / TWIN_FILE)


def read_expression(folder: str | os.PathLike[str]) -> str:
    """The loss expression of a saved folder; E403 if there is none."""
    file = Path(folder) / "loss.json"
    expression = json.loads(file.read_text(encoding="utf-8")).get("expression") if file.is_file() else None
    if not expression:
        raise EmbedlossError("E403", f"'{folder}' does not say which loss it was trained with.")
    return str(expression)


def read_loss(folder: str | os.PathLike[str]) -> Loss:
    """The loss of a saved folder without its weights: one, or one a data set; E403 if the folder does not say."""
    expression = read_expression(folder)
    described = json.loads((Path(folder) / "loss.json").read_text(encoding="utf-8"))
    if "losses" not in described:
        return create_loss(expression)
    losses = {name: create_loss(text) for name, text in described["losses"].items()}
    return PerDataset(losses, described.get("num_classes"), described.get("label_dimension"))


def step_expression(step: TrainingStep) -> str | None:
    """The loss as text, or None where a parameter has no text (a model object)."""
    try:
        return step.loss.to_expression()
    except EmbedlossError:  # a parameter such as a model object has no text
        return None


def load_step(step: TrainingStep, folder: str | os.PathLike[str]) -> None:
    """Read what `save_step` wrote into an existing step; E403 if something is missing."""
    path = Path(folder)
    encoder = load_encoder(str(path), kind=step.encoder.kind)
    step.encoder.load_state_dict(encoder.state_dict())
    for module, name in ((step.loss, LOSS_FILE), (step.twin, TWIN_FILE)):
        if module is not None and module.state_dict():
            if not (path / name).is_file():
                raise EmbedlossError("E403", f"checkpoint '{path}' has no {name}; it belongs to a run with another loss.")
            module.load_state_dict(load_file(path / name))
