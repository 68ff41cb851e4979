"""One run from a `RunConfig`: check everything, say what will happen, train, evaluate, save."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedloss.binding import NOT_TEXTS
from embedloss.errors import EmbedlossError, naming
from embedloss.model_names import check_model_name
from embedloss.reporting.runs import CONFIG_FILE, MANIFEST_FILE, METRICS_FILE, RESULTS_FILE, is_count
from embedloss.training.checkpoints import last_checkpoint
from embedloss.training.config import RunConfig, read_yaml
from embedloss.training.data_config import data_sets

if TYPE_CHECKING:
    from embedloss.encoders import Encoder
    from embedloss.loss import Loss
    from embedloss.spec import LossSpec
    from embedloss.training.data_sets import EvalSource, Source

Say = Callable[[str], None]
PLOT_FILE = "curves.png"
SAME_ON_RESUME = (
    *("model", "data", "loss", "map", "drop", "scale_labels", "kind", "max_length", "batch_size", "sampler", "seed"),
    *("gradient_accumulation", "gather", "mix", "mix_temperature", "stop", "streaming", "shuffle_buffer"),
)


@dataclass
class RunResult:
    """What a run gave.

    Args:
        folder: the saved model.
        before, after: metrics on the evaluation data, empty without any.
        steps: optimizer steps.
        seconds: wall time of the training loop.
        best: step, metric and value of the checkpoint that was kept, where the best was looked for.
        terms: names of the terms of the loss in the log.
        primary: the main metric of the evaluation data's format.
    """

    folder: str
    before: dict[str, float] = field(default_factory=dict)
    after: dict[str, float] = field(default_factory=dict)
    steps: int = 0
    seconds: float = 0.0
    best: dict[str, Any] | None = None
    terms: list[str] = field(default_factory=list)
    primary: str | None = None


@dataclass
class Prepared:
    """Data sets and losses of a run after all checks, before any model is loaded."""

    sources: list[Source]
    evaluations: list[EvalSource]
    spec: LossSpec
    kind: str | None = None

    @property
    def several(self) -> bool:
        """Whether the data sets have names, so that batches and metrics carry them."""
        return bool(self.sources[0].name)

    @property
    def num_classes(self) -> int | None:
        """Of pairs with classes or of the only data set; the number of outputs of a new head."""
        return max((s.num_classes for s in self.sources if s.num_classes), default=None)


def prepare(config: RunConfig, say: Say = print) -> Prepared:
    """Check settings, losses, data and folders. Loads no model, writes nothing; an `EmbedlossError` names every fault."""
    config.validate()
    from embedloss.plugins import plugin_manager
    from embedloss.registry import create_loss
    from embedloss.training.options import check_options

    for file in config.plugins:
        plugin_manager().load_file(file)
    from embedloss.registry import expression_specs

    settings = data_sets(config)
    for data_set in settings:
        expression_specs(data_set.loss)  # a typing mistake answers before torch is loaded
    _check_folder(config)
    if config.model.startswith("static"):
        _static_arguments(config.model)
    else:
        check_model_name(config.model)
    check_options(config)
    from embedloss.training.data_sets import bind_evaluations, bind_sources, evaluation_paths, load_named, open_named

    if config.streaming:
        raws = {data_set.name: open_named(data_set.name, data_set.path, config.shuffle_buffer) for data_set in settings}
    else:
        raws = {data_set.name: load_named(data_set.name, data_set.path) for data_set in settings}
    eval_raws = {name: load_named(name, path) for name, path in evaluation_paths(config).items()}
    from embedloss.training.per_dataset import joint_spec

    losses = {data_set.name: create_loss(data_set.loss) for data_set in settings}
    specs = {name: loss.spec for name, loss in losses.items()}
    spec = joint_spec(specs) if settings[0].name else specs[""]
    local = config.model.startswith("static") or Path(config.model).expanduser().is_dir()
    kind = choose_kind(config, spec) if local else None  # a model of the hub is not loaded before the data is checked
    sources = bind_sources(config, raws, specs)
    for source in sources:
        if losses[source.name].requires().row_ids and source.binding.id is None:
            message = f"'{source.settings.loss}' compares ids of rows, and no column is bound to id. Type: --map id=COLUMN"
            with naming(source.name):
                raise EmbedlossError("E102", message)
    prepared = Prepared(sources, bind_evaluations(config, eval_raws, sources), spec, kind)
    lines = []
    for source in sources:
        notes = [f"note: {note}" for note in source.notes]
        path = source.settings.path
        title = f"{source.name}: {path}" if source.name else path
        loss = [f"loss {source.settings.loss}"] if source.name else []
        rows = "a stream" if config.streaming else f"{len(source.data):,} rows"
        lines += [f"{title}: {rows}", *loss, source.binding.describe(), *notes]
    for found in prepared.evaluations:
        if found.source is None:
            whose = f"evaluation data '{found.name}'" if found.name else "evaluation data"
            lines.append(f"{whose}: read as {found.binding.format.name}, no training data set has this name")
    say("data\n" + _indent("\n".join(lines)))
    return prepared


def _check_folder(config: RunConfig) -> None:
    out = Path(config.out)
    if out.is_file():
        raise EmbedlossError("E402", f"output '{out}' is a file; type --out FOLDER.")
    if out.is_dir() and any(out.iterdir()) and not (config.overwrite or config.resume):
        raise EmbedlossError(
            "E402", f"output folder '{out}' is not empty. Type --overwrite to replace it, or --resume to go on."
        )
    if config.resume and last_checkpoint(out) is None:
        raise EmbedlossError("E403", f"there is no checkpoint in '{out}' to resume from. Leave out --resume to start anew.")
    if config.resume:
        _check_settings(config, out / CONFIG_FILE)
    parent = next(p for p in (out, *out.absolute().parents) if p.exists())
    if not os.access(parent, os.W_OK | os.X_OK):
        raise EmbedlossError("E402", f"no permission to write in '{parent}'.")


def _check_settings(config: RunConfig, file: Path) -> None:
    """E403 where a run is resumed with settings that would train on other batches, or another loss, than it began with."""
    if not file.is_file():
        return
    saved = RunConfig.from_mapping(read_yaml(str(file)), f"'{file}'")
    pairs = [(key, getattr(saved, key), getattr(config, key)) for key in SAME_ON_RESUME]
    changed = [f"{key} was {before}, is {now}" for key, before, now in pairs if before != now]
    if changed:
        raise EmbedlossError(
            "E403",
            f"the checkpoint in '{config.out}' belongs to a run with other settings: {'; '.join(changed)}. "
            "Type the same settings, or --overwrite to start anew.",
        )


def _static_arguments(text: str) -> dict[str, int]:
    from embedloss.expression import Call, parse

    call = parse(text)
    allowed = ("dimension", "vocab_size")
    if not isinstance(call, Call) or call.name != "static" or call.args or any(k not in allowed for k in call.kwargs):
        raise EmbedlossError("E301", f"model '{text}' is not understood; type static(dimension=256, vocab_size=30000).")
    for key, value in call.kwargs.items():
        if not isinstance(value, int) or value < 1:
            raise EmbedlossError("E301", f"'{key}' of the static encoder must be a positive whole number, got {value!r}.")
    return dict(call.kwargs)


def choose_kind(config: RunConfig, spec: LossSpec) -> str:
    """The kind of model that a run trains: the one asked for, else that of the folder, else the first that the loss trains.

    Raises:
        EmbedlossError: E302 where the loss, the folder and what was asked for do not go together.
    """
    from embedloss.encoders import kind_of

    name, wanted = config.model, config.kind
    if wanted not in (None, "bi-encoder", "cross-encoder"):
        raise EmbedlossError("E401", f"'kind' must be bi-encoder or cross-encoder, got '{wanted}'.")
    trains = " and ".join(f"{kind}s" for kind in spec.models)
    if wanted is not None and wanted not in spec.models:
        raise EmbedlossError("E302", f"'{spec.name}' trains {trains}; --kind {wanted} is not possible.")
    if name.startswith("static"):
        if "bi-encoder" not in spec.models or wanted == "cross-encoder":
            raise EmbedlossError("E302", "a static encoder has no transformer, which a cross-encoder needs.")
        return "bi-encoder"
    saved = kind_of(name, trust_remote_code=config.trust_remote_code)
    if saved == "cross-encoder" and wanted == "bi-encoder":
        raise EmbedlossError(
            "E302", f"'{name}' is a cross-encoder: it has a ranking head and gives no embeddings. Leave out --kind bi-encoder."
        )
    if wanted is not None or saved is None:
        return wanted or spec.models[0]
    if saved not in spec.models:
        repair = " Type --kind cross-encoder to put a new ranking head on its transformer." if saved == "bi-encoder" else ""
        raise EmbedlossError("E302", f"'{spec.name}' trains {trains}; '{name}' is a {saved}.{repair}")
    return saved


def texts_of(data: Any) -> list[str]:
    """All texts of a bound data set, row by row; of a stream those of the first rows."""
    if hasattr(data, "first"):
        table = data.first.table.select(data.columns)
        data = data.bound(table, range(table.num_rows))
    found: list[str] = []
    for column in data.column_names:
        if column in NOT_TEXTS:
            continue
        for value in data[column][:]:
            found += [value] if isinstance(value, str) else value
    return found


def training_data(config: RunConfig, sources: list[Source]) -> Any:
    """What the trainer draws batches from: the bound rows, or the mixture of several data sets."""
    from embedloss.mixture import Mixture, Part
    from embedloss.streaming import Streams

    if config.streaming:
        return Streams({s.name: s.data for s in sources}, config.mix)
    if not sources[0].name:
        return sources[0].data
    parts = {s.name: Part(s.data, s.settings.batch_size, s.settings.sampler, s.settings.weight) for s in sources}
    return Mixture(parts, config.mix, temperature=config.mix_temperature, stop=config.stop)


def make_encoder(
    config: RunConfig, sources: list[Source], kind: str, num_classes: int | None = None, say: Say = print
) -> Encoder:
    """The model of a run: loaded, or a new static encoder, or a transformer with a new head of one output a class."""
    from embedloss.encoders import kind_of, load_encoder, new_static_encoder

    if config.model.startswith("static"):
        texts = [text for source in sources for text in texts_of(source.data)]
        return new_static_encoder(texts, seed=config.seed, **_static_arguments(config.model))
    outputs = None
    if kind == "cross-encoder" and kind_of(config.model, trust_remote_code=config.trust_remote_code) != "cross-encoder":
        outputs = num_classes or 1
        say(f"model\n  '{config.model}' has no ranking head: its transformer gets a new one, {outputs} output(s)")
    return load_encoder(
        config.model,
        kind=kind,
        max_length=config.max_length,
        pooling=config.pooling,
        normalize=config.normalize,
        trust_remote_code=config.trust_remote_code,
        num_labels=outputs,
        seed=config.seed,
    )


def run_training(config: RunConfig, say: Say = print, quiet: bool = False) -> RunResult:
    """Run one configuration from data to saved model.

    Args:
        config: the settings.
        say: where sentences for the user go.
        quiet: no progress bar, and no picture of the loss curve.

    Returns:
        The folder and the metrics before and after.

    Raises:
        EmbedlossError: for every mistake in settings, data, model or output folder, before anything is written.
    """
    if os.environ.get("RANK", "0") != "0":  # one process speaks for all
        say = _silent
    prepared = prepare(config, say)
    import transformers

    from embedloss.collate import Collator
    from embedloss.encoders import Encoder, load_encoder, training_chunk
    from embedloss.encoders.lora import merge_adapters
    from embedloss.mixture import MixtureCollator
    from embedloss.registry import create_loss, expression_specs
    from embedloss.training import evidence, options, report
    from embedloss.training.guides import GuideCache
    from embedloss.training.manifest import manifest
    from embedloss.training.per_dataset import PerDataset
    from embedloss.training.step import TrainingStep
    from embedloss.training.trainer import Trainer, save_step, step_expression

    transformers.set_seed(config.seed)
    sources = prepared.sources
    losses = {source.name: create_loss(source.settings.loss) for source in sources}
    loss: Loss = losses[sources[0].name]
    if prepared.several:
        loss = PerDataset(losses, {s.name: s.num_classes for s in sources}, {s.name: s.label_dimension for s in sources})
    kind = prepared.kind or choose_kind(config, loss.spec)
    encoder = make_encoder(config, sources, kind, prepared.num_classes, say)
    options.adapt_encoder(config, encoder, say)
    for source in sources:
        query = source.binding.format.roles[0]
        if kind == "cross-encoder" and any(role != query for role in source.settings.prompts):
            raise EmbedlossError("E401", f"a cross-encoder reads both texts at once: only '{query}' takes a prompt.")
    requirements = loss.requires()
    guides = {key: key if isinstance(key, Encoder) else load_encoder(key) for key in requirements.guides}
    guide_prompts = {key: requirements.guide_prompts.get(key, "") for key in guides}
    caches = {key: GuideCache(guide, guide_prompts[key]) for key, guide in guides.items()} if config.cache_guide else {}
    step = TrainingStep(
        encoder,
        loss,
        recompute=config.recompute is True,
        gather=config.gather,
        guides=dict.fromkeys(guides) if caches else guides,
        seed=config.seed,
        num_classes=sources[0].num_classes,
        label_dimension=sources[0].label_dimension,
    )
    guide_sources: dict[Any, Any] = dict(caches)
    if not caches:
        guide_sources = {key: (guide.processor, guide_prompts[key]) for key, guide in guides.items()}
    collators = {
        source.name: Collator(
            encoder.processor,
            losses[source.name],
            source.binding.format.name,
            config.chunk_tokens or training_chunk(),
            source.settings.prompts,
            kind,
            {key: found for key, found in guide_sources.items() if key in losses[source.name].requires().guides},
            config.seed,
            source.settings.path,
        )
        for source in sources
    }
    collator = MixtureCollator(collators) if prepared.several else collators[""]

    def evaluator(module: Any) -> dict[str, float]:
        from embedloss.evaluation import evaluate, primary_metric
        from embedloss.training.data_sets import mean_metrics

        found, primaries = {}, {}
        for part in prepared.evaluations:
            name = part.binding.format.name
            own = losses[part.source.name] if part.source else None
            found[part.name] = evaluate(
                module.encoder, part.data, name, prompts=part.prompts, loss=own, show_progress="evaluating"
            )
            primaries[part.name] = primary_metric(name, getattr(module.encoder, "similarity", "cosine"), kind)
        return mean_metrics(found, primaries)

    out = Path(config.out)
    arguments = options.training_arguments(config, encoder, prepared.evaluations)
    for key, cache in caches.items():
        with arguments.main_process_first():  # the others read what it wrote
            texts = [text for s in sources if key in losses[s.name].requires().guides for text in texts_of(s.data)]
            made = cache.fill(guides[key].to(arguments.device), texts, show_progress=arguments.process_index == 0)
        say(f"guide\n  '{key}': {made:,} texts encoded, all others of {len(set(texts)):,} read from {cache.folder}")
    trainer = Trainer(
        step,
        arguments,
        train_dataset=training_data(config, sources),
        collator=collator,
        evaluator=evaluator if prepared.evaluations else None,
        callbacks=[report.MetricsFile(out / METRICS_FILE), *([] if quiet else [report.Progress()])],
    )
    trainer.remove_callback(transformers.PrinterCallback)
    options.add_callbacks(trainer, config)
    from embedloss.training.plan import batch_plan, fit_memory

    config = fit_memory(trainer, collator, config, say)
    say("batch plan\n" + _indent(batch_plan(trainer, collator, config)))
    say("configuration\n" + _indent(config.to_yaml().rstrip()))
    if arguments.process_index == 0:
        if config.overwrite and out.is_dir():
            shutil.rmtree(out)
        out.mkdir(parents=True, exist_ok=True)
        (out / CONFIG_FILE).write_text(config.to_yaml(), encoding="utf-8")
        distributions = sorted({s.distribution for source in sources for s in expression_specs(source.settings.loss)})
        facts = manifest(config, step_expression(step), distributions)
        (out / MANIFEST_FILE).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    result = RunResult(str(out), primary=options.main_metric(encoder, prepared.evaluations))
    result.before = _before(trainer, step, out, config)
    if arguments.process_index == 0:
        evidence.neighbours_of(out, "before", prepared, step.encoder, config.seed)
    options.check_metric(arguments.metric_for_best_model, result.before)
    begin = time.perf_counter()
    if config.max_steps != 0:
        _train(trainer, out, config, say)
    result.seconds = time.perf_counter() - begin
    result.steps = trainer.state.global_step
    result.best = options.best_checkpoint(trainer)
    if trainer.evaluator is not None:
        known = options.last_evaluation(trainer) if config.max_steps != 0 else result.before
        result.after = known or {k.removeprefix("eval_"): v for k, v in trainer.evaluate().items()}
    options.finish_reports(trainer)
    if arguments.process_index == 0:
        if config.lora_merge:
            merge_adapters(step.encoder)
        save_step(step, out)
        result.terms = list(trainer.terms)
        (out / RESULTS_FILE).write_text(json.dumps(vars(result), indent=2) + "\n", encoding="utf-8")
        evidence.neighbours_of(out, "after", prepared, step.encoder, config.seed)
        if not quiet:
            evidence.draw(out, out / PLOT_FILE, say)
        evidence.card(out, config, prepared, step, result, arguments.learning_rate)
        if result.before:
            rows = [[k, f"{v:.4f}", f"{result.after[k]:.4f}"] for k, v in result.before.items() if not is_count(k, v)]
            say("\n" + report.table(["metric", "before", "after"], rows))
        if result.best:
            say("\nbest: {metric} {value:.4f} at step {step}; that model is the one that is kept".format(**result.best))
        say(f"\nsaved to {out} after {result.steps} steps in {result.seconds:.1f} s")
        if config.push_to_hub:
            from embedloss.training.hub import upload

            say(f"uploaded to {upload(out, config.push_to_hub, private=config.hub_private)}")
    return result


def _before(trainer: Any, step: Any, out: Path, config: RunConfig) -> dict[str, float]:
    """Metrics of the untrained model; a resumed run reads those of its first start."""
    if trainer.evaluator is None:
        return {}
    stored = out / "before.json"
    if config.resume and stored.is_file():
        found: dict[str, float] = json.loads(stored.read_text(encoding="utf-8"))
        return found
    metrics = {k.removeprefix("eval_"): v for k, v in trainer.evaluate().items()}
    if trainer.is_world_process_zero():
        stored.write_text(json.dumps(metrics) + "\n", encoding="utf-8")
    return metrics


def _train(trainer: Any, out: Path, config: RunConfig, say: Say) -> None:
    checkpoint = last_checkpoint(out, lambda text: say(f"note: {text}")) if config.resume else None
    if checkpoint is not None:
        say(f"resume\n  from {checkpoint}")
    try:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    except KeyboardInterrupt:
        kept = last_checkpoint(out)
        where = (
            f"The last checkpoint is {kept}; the same command with --resume goes on from it."
            if kept
            else (f"No checkpoint was due yet (--save-steps {config.save_steps}); start again with --overwrite.")
        )
        print(f"\ninterrupted at step {trainer.state.global_step}. {where}", file=sys.stderr)
        raise
    except OSError as exception:
        raise EmbedlossError("E402", f"could not write to '{out}': {exception}") from exception


def _indent(text: str) -> str:
    return "\n".join("  " + line for line in text.splitlines())


def _silent(text: str) -> None:
    return None
