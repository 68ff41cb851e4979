"""The settings of a run, as plain data: what `run.yaml` and the options of `embedloss train` hold. Imports no torch."""

from __future__ import annotations

import difflib
import re
import types
import typing
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import yaml

from embedloss.data import SUFFIXES
from embedloss.errors import EmbedlossError
from embedloss.mixing import Mix, Stop, shares
from embedloss.training.data_config import data_sets, fold

ON_METRIC = ("reduce_lr_on_plateau", "greedy")  # schedules that read the evaluation
Sampler = Literal["auto", "random", "no-duplicates", "group-by-label", "length-grouped"]


@dataclass
class RunConfig:
    """One training run.

    Args:
        model: folder, hub id, or "static(dimension=256, vocab_size=30000)" for a new static encoder whose tokenizer is
            trained on the texts of `data`.
        data: training data: file, folder or hub id; or several data sets, name -> settings (`data_config.DataSet`).
        loss: loss expression; of several data sets, of those that have none of their own.
        out: output folder.
        eval_data: data evaluated before and after training, and every `eval_steps`; or several, name -> path.
        mix: how the batches of several data sets are mixed: "proportional" to their size, "round-robin", by "weights" or by
            "temperature"; "auto" is by weights where there are any, else proportional.
        mix_temperature: 1 is proportional, large values come near equal parts.
        streaming: read training data as it arrives, and hold only `shuffle_buffer` rows; needs `max_steps`.
        shuffle_buffer: rows that are shuffled together, per data set.
        stop: when an epoch of several data sets ends: "first-exhausted" or "all-exhausted" (smaller ones begin again).
        map: role -> column, for columns whose names are not known.
        drop: columns to leave out.
        scale_labels: map scores linearly from their range in the data to the loss's range.
        kind: "bi-encoder" or "cross-encoder"; by default what the loss trains.
        max_length: longest text in tokens; by default the model's.
        pooling: mean, cls, max, weightedmean or lasttoken; only for a model that does not say.
        normalize: scale embeddings to length 1, or not; by default as the model does.
        prompts: role -> text put before every text of that role.
        epochs: passes over the data; ignored if `max_steps` is set.
        max_steps: optimizer steps; 0 trains nothing and saves the model as it is.
        batch_size: rows a step on each process.
        sampler: how batches are drawn; "auto" follows the loss's recommendation.
        seed: of everything random.
        learning_rate: peak learning rate of the encoder.
        loss_learning_rate: of the loss's own weights; by default `learning_rate`.
        weight_decay: AdamW's, not on biases and norms.
        warmup: share of the steps (below 1) or number of steps.
        scheduler: transformers schedule, with arguments if need be: "cosine_with_min_lr(min_lr=1e-6)".
        gradient_accumulation: batches an optimizer step; adds no in-batch negatives.
        max_grad_norm: clip gradients to this norm; 0 does not clip.
        precision: "float32", "bfloat16" or "float16" (autocast; float16 needs a GPU).
        gradient_checkpointing: recompute each layer of the transformer in the backward pass (less memory, more time).
        compile: compile the transformer with torch.compile; the first steps take long.
        lora: train LoRA adapters in place of the weights: r, alpha, dropout, target ("query+value"), each with a default.
        lora_merge: add the adapters to the weights when the model is saved, so that it opens without peft.
        chunk_tokens: padded tokens a forward pass holds; by default 16,384 on a GPU, 512 to 2,048 on a CPU.
        recompute: keep the activations of one chunk only, and compute the others again in the backward pass; "auto" does so
            where a step does not fit in memory, with the largest chunk that fits.
        memory_limit: what "auto" may use, such as "4GB"; by default the memory that is free.
        gather: use the texts of all processes as in-batch candidates.
        cache_guide: compute the embeddings of frozen guides once, and read them from a file in later epochs and runs.
        workers: data-loader processes that tokenise.
        logging_steps: steps between log entries.
        probe_steps: steps between looks at how the embeddings of a fixed sample of the training texts spread; 0: never.
        eval_steps: steps between evaluations; 0: only before and after.
        save_steps: steps between checkpoints; 0: only at the end.
        save_total_limit: checkpoints to keep.
        load_best: end with the best of the evaluated checkpoints; one is written at every evaluation.
        early_stopping: end after that many evaluations in a row without a better value.
        metric_for_best: metric that says which is better; by default the main one of the data format.
        report_to: where transformers sends the log as well: tensorboard, wandb, mlflow, ...
        push_to_hub: hub id that the finished model is uploaded to.
        hub_private: make that repository private.
        resume: go on from the last checkpoint in `out`.
        overwrite: replace what is in `out`.
        trust_remote_code: run code that a model repository contains.
        plugins: local plugin files.
    """

    model: str = ""
    data: str | dict[str, dict[str, Any]] = ""
    loss: str = ""
    out: str = ""
    eval_data: str | dict[str, str] | None = None
    mix: Mix = "auto"
    mix_temperature: float | None = None
    stop: Stop = "first-exhausted"
    streaming: bool = False
    shuffle_buffer: int = 10_000
    map: dict[str, str] = field(default_factory=dict)
    drop: list[str] = field(default_factory=list)
    scale_labels: bool = False
    kind: str | None = None
    max_length: int | None = None
    pooling: str | None = None
    normalize: bool | None = None
    prompts: dict[str, str] = field(default_factory=dict)
    epochs: float = 1.0
    max_steps: int | None = None
    batch_size: int = 64
    sampler: Sampler = "auto"
    seed: int = 42
    learning_rate: float | None = None
    loss_learning_rate: float | None = None
    weight_decay: float = 0.0
    warmup: float = 0.1
    scheduler: str = "linear"
    gradient_accumulation: int = 1
    max_grad_norm: float = 1.0
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    gradient_checkpointing: bool = False
    compile: bool = False
    lora: dict[str, str] = field(default_factory=dict)
    lora_merge: bool = False
    chunk_tokens: int | None = None
    recompute: bool | Literal["auto"] = False
    memory_limit: str | None = None
    gather: bool = False
    cache_guide: bool = False
    workers: int = 0
    logging_steps: int = 10
    probe_steps: int = 50
    eval_steps: int = 0
    save_steps: int = 500
    save_total_limit: int = 2
    load_best: bool = False
    early_stopping: int | None = None
    metric_for_best: str | None = None
    report_to: list[str] = field(default_factory=list)
    push_to_hub: str | None = None
    hub_private: bool = False
    resume: bool = False
    overwrite: bool = False
    trust_remote_code: bool = False
    plugins: list[str] = field(default_factory=list)

    def validate(self) -> None:
        """E401 for every setting that is missing or out of range, all at once."""
        faults = [f"'{key}' is missing; type --{key} ..." for key in ("model", "data", "out") if not getattr(self, key)]
        without = [] if self.loss else [s.name for s in data_sets(self) if not s.loss]
        if without and not without[0]:
            faults.insert(2 if len(faults) > 1 else len(faults), "'loss' is missing; type --loss ...")
        elif without:
            faults.append(f"data set '{without[0]}' has no loss; type --loss {without[0]}=EXPR, or --loss EXPR for all")
        mixing = self.mix != "auto" or self.mix_temperature is not None or self.stop != "first-exhausted"
        if isinstance(self.data, str) and mixing:
            faults.append("'mix', 'mix_temperature' and 'stop' are for several data sets; type --data NAME=PATH for each")
        if self.memory_limit is not None and not re.fullmatch(
            r"\s*\d*[1-9]\d*(\.\d+)?\s*[kmgtKMGT]?[iI]?[bB]?\s*", self.memory_limit
        ):
            faults.append(f"'memory_limit' must be a size such as 4GB or 800MB, got '{self.memory_limit}'")
        if self.memory_limit is not None and self.recompute != "auto":
            faults.append("'memory_limit' is for --recompute auto")
        positive = ["batch_size", "gradient_accumulation", "logging_steps", "save_total_limit", "max_length", "chunk_tokens"]
        positive.append("early_stopping")
        for key in positive:
            value = getattr(self, key)
            if value is not None and value < 1:
                faults.append(f"'{key}' must be at least 1, got {value}")
        counts = ("max_steps", "probe_steps", "eval_steps", "save_steps", "workers", "seed")
        for key in (*counts, "warmup", "max_grad_norm", "weight_decay"):
            value = getattr(self, key)
            if value is not None and value < 0:
                faults.append(f"'{key}' must not be negative, got {value}")
        for key in ("learning_rate", "loss_learning_rate"):
            value = getattr(self, key)
            if value is not None and not 0 < value < 10:
                faults.append(f"'{key}' must be positive (2e-5 suits transformers), got {value}")
        if self.max_steps is None and self.epochs <= 0:
            faults.append(f"'epochs' must be positive, got {self.epochs}")
        for key in ("load_best", "early_stopping"):
            missing = [k for k in ("eval_data", "eval_steps") if not getattr(self, k)]
            if getattr(self, key) and missing:
                typed = " ".join(f"--{k.replace('_', '-')} {'DATA' if k == 'eval_data' else 'N'}" for k in missing)
                faults.append(f"'{key}' compares evaluations during training; add {typed}")
        if self.scheduler.startswith(ON_METRIC) and not (self.eval_data and self.eval_steps):
            faults.append(f"'{self.scheduler}' reads evaluations during training; add --eval-data DATA --eval-steps N")
        if self.metric_for_best and not (self.load_best or self.early_stopping or self.scheduler.startswith(ON_METRIC)):
            faults.append("'metric_for_best' has no effect; add --load-best or --early-stopping N")
        for key, needed in (("lora_merge", "lora"), ("hub_private", "push_to_hub")):
            if getattr(self, key) and not getattr(self, needed):
                faults.append(f"'{key}' has no effect without '{needed}'")
        if self.resume and self.overwrite:
            faults.append("'resume' and 'overwrite' exclude each other")
        if self.streaming:
            faults += self._stream_faults()
        elif self.shuffle_buffer != 10_000:
            faults.append("'shuffle_buffer' has no effect without --streaming")
        if isinstance(self.data, dict) and not faults:
            weights = [part.weight for part in data_sets(self)]
            shares(self.mix, [1] * len(weights), weights, self.mix_temperature)  # E401 for what cannot be mixed
        if faults:
            raise EmbedlossError(
                "E401", "\n  ".join(["the configuration cannot be used:", *faults] if len(faults) > 1 else faults)
            )

    def _stream_faults(self) -> list[str]:
        faults = []
        if self.max_steps is None:
            faults.append("a stream has no length; type --max-steps N with --streaming")
        if self.shuffle_buffer < 2:
            faults.append(f"'shuffle_buffer' must be at least 2, got {self.shuffle_buffer}")
        if self.cache_guide:
            faults.append("--cache-guide encodes all texts before training, which a stream does not have; leave one out")
        if self.mix in ("proportional", "temperature"):
            faults.append(f"--mix {self.mix} needs the length of each data set, which a stream does not have; use weights")
        if self.stop != "first-exhausted":
            faults.append("--stop has no effect on streams, which begin again when they end")
        if (isinstance(self.data, dict) or self.data) and any(part.scale_labels for part in data_sets(self)):
            faults.append("--scale-labels needs all labels before training, which a stream does not have")
        return faults

    def to_yaml(self) -> str:
        """The resolved configuration as YAML that `from_mapping` reads back."""
        return yaml.safe_dump(asdict(self), sort_keys=False, allow_unicode=True)

    @classmethod
    def from_mapping(cls, values: typing.Mapping[str, Any], where: str = "the configuration") -> RunConfig:
        """From keys and values (hyphen = underscore); E401 names an unknown key or a value of the wrong type."""
        hints = typing.get_type_hints(cls)
        known = [f.name for f in fields(cls)]
        values = fold(values, where)
        clean: dict[str, Any] = {}
        for raw, value in values.items():
            key = str(raw).replace("-", "_")
            if key not in known:
                near = difflib.get_close_matches(key, known, n=1)
                hint = f" Did you mean '{near[0]}'?" if near else ""
                raise EmbedlossError("E401", f"{where} has the unknown key '{raw}'.{hint} Keys: {', '.join(known)}.")
            several = key in ("data", "eval_data") and isinstance(value, dict)  # in their types already
            clean[key] = value if several else coerce(value, hints[key], key, where)
        return cls(**clean)


def coerce(value: Any, hint: Any, key: str, where: str) -> Any:
    """A value as the type of its setting: text from `--set` becomes a number or a switch; E401 where it cannot."""
    kind = typing.get_origin(hint) or hint
    options = typing.get_args(hint)
    if kind in (typing.Union, types.UnionType):
        if value is None or (isinstance(value, str) and value.lower() in ("none", "null", "")):
            return None
        kinds = [o for o in options if o is not type(None)]
        words = [o for o in kinds if typing.get_origin(o) is Literal and value in typing.get_args(o)]
        return coerce(value, (words or kinds)[0], key, where)
    if kind is Literal:
        if value in options:
            return value
        raise EmbedlossError("E401", f"{where}: '{key}' must be one of {', '.join(options)}; got {value!r}.")
    if kind is bool:
        if isinstance(value, bool):
            return value
        if str(value).lower() in ("true", "yes", "on", "1"):
            return True
        if str(value).lower() in ("false", "no", "off", "0"):
            return False
    elif kind in (int, float) and not isinstance(value, bool):
        try:
            number = float(value)
            if kind is float:
                return number
            if number == int(number):
                return int(number)
        except (TypeError, ValueError, OverflowError):
            pass
    elif kind is str and isinstance(value, (str, int, float, Path)):
        return str(value)
    elif kind is list:
        if isinstance(value, (list, tuple)):
            return [str(v) for v in value]
        return [part.strip() for part in str(value).split(",") if part.strip()]
    elif kind is dict:
        if isinstance(value, dict):
            return {str(k): str(v) for k, v in value.items()}
        parts = [part.partition("=") for part in str(value).split(",") if part.strip()]
        if all(middle for _, middle, _ in parts):
            return {k.strip(): v for k, _, v in parts}
    name = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", dict: "key=value"}.get(
        kind, str(kind)
    )
    raise EmbedlossError("E401", f"{where}: '{key}' must be {name}; got {value!r}.")


def read_yaml(path: str) -> dict[str, Any]:
    """A YAML file as a mapping; E401 for a file that is missing or no mapping."""
    file = Path(path)
    if file.suffix.lower() in set(SUFFIXES) - {".json"}:  # JSON is YAML
        raise EmbedlossError("E401", f"'{path}' is data, not a configuration. Type: --data {path}")
    if not file.is_file():
        raise EmbedlossError("E401", f"configuration file '{path}' does not exist.")
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as exception:
        raise EmbedlossError("E401", f"configuration file '{path}' is not YAML: {exception}") from exception
    if not isinstance(values, dict):
        raise EmbedlossError(
            "E401", f"configuration file '{path}' must hold 'key: value' lines, found {type(values).__name__}."
        )
    if isinstance(values.get("config"), dict) and "versions" in values:  # the manifest of a run
        return dict(values["config"])
    return values
