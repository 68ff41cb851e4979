"""`embedloss train`: YAML, then options, then --set, make one `RunConfig`; `embedloss.training` does the rest."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from embedloss_cli.options import PLUGIN_FILES, Drop, Map, pairs

PANEL = "Models"

MODEL, TIME, BATCH, OUTPUT = "Model", "Optimisation", "Batches and memory", "Output"
SEVERAL = "Several data sets"
BEST = "Checkpoints and reports"


def train(
    config: Annotated[
        str | None, typer.Argument(metavar="[CONFIG.yaml]", help="Settings; options and --set override them.")
    ] = None,
    model: Annotated[str | None, typer.Option(metavar="MODEL", help="Folder, hub id, or static(dimension=256).")] = None,
    data: Annotated[
        list[str] | None, typer.Option(metavar="DATA", help="File, folder or hub id; several: NAME=DATA, repeated.")
    ] = None,
    loss: Annotated[
        list[str] | None,
        typer.Option(metavar="EXPR", help="Such as mnrl(scale=20) or mnrl + 0.1 * gor; of one data set: NAME=EXPR."),
    ] = None,
    out: Annotated[str | None, typer.Option(metavar="DIR", help="Output folder.")] = None,
    eval_data: Annotated[
        list[str] | None, typer.Option(metavar="DATA", help="Evaluated before and after training; several: NAME=DATA.")
    ] = None,
    sets: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any setting; repeatable.")] = None,
    mapping: Map = None,
    drop: Drop = None,
    scale_labels: Annotated[
        bool | None, typer.Option("--scale-labels", help="Scale labels to the loss's range.", rich_help_panel="Columns")
    ] = None,
    weights: Annotated[
        list[str] | None,
        typer.Option("--weight", metavar="NAME=X", help="Share of the steps of a data set.", rich_help_panel=SEVERAL),
    ] = None,
    mix: Annotated[
        str | None,
        typer.Option(metavar="HOW", help="proportional, round-robin, weights, temperature.", rich_help_panel=SEVERAL),
    ] = None,
    mix_temperature: Annotated[
        float | None, typer.Option(metavar="T", help="1: proportional; large: equal parts.", rich_help_panel=SEVERAL)
    ] = None,
    stop: Annotated[
        str | None, typer.Option(metavar="WHEN", help="first-exhausted, all-exhausted.", rich_help_panel=SEVERAL)
    ] = None,
    streaming: Annotated[
        bool | None,
        typer.Option("--streaming", help="Read rows as they arrive; needs --max-steps.", rich_help_panel=BATCH),
    ] = None,
    shuffle_buffer: Annotated[
        int | None, typer.Option(metavar="ROWS", help="Rows of a stream shuffled together.", rich_help_panel=BATCH)
    ] = None,
    kind: Annotated[
        str | None, typer.Option(metavar="KIND", help="bi-encoder or cross-encoder.", rich_help_panel=MODEL)
    ] = None,
    max_length: Annotated[int | None, typer.Option(metavar="TOKENS", help="Longest text.", rich_help_panel=MODEL)] = None,
    pooling: Annotated[
        str | None, typer.Option(metavar="NAME", help="mean, cls, max, weightedmean, lasttoken.", rich_help_panel=MODEL)
    ] = None,
    normalize: Annotated[
        bool | None, typer.Option("--normalize/--no-normalize", help="Scale embeddings to length 1.", rich_help_panel=MODEL)
    ] = None,
    prompts: Annotated[
        list[str] | None,
        typer.Option("--prompt", metavar="ROLE=TEXT", help="Before texts of a role; or NAME.ROLE=TEXT.", rich_help_panel=MODEL),
    ] = None,
    trust_remote_code: Annotated[
        bool | None, typer.Option("--trust-remote-code", help="Run code the model brings along.", rich_help_panel=MODEL)
    ] = None,
    lora: Annotated[
        str | None,
        typer.Option(metavar="r=16", help="Train adapters: r=16,alpha=32,dropout=0.05,target=A+B.", rich_help_panel=MODEL),
    ] = None,
    lora_merge: Annotated[
        bool | None, typer.Option("--lora-merge", help="Save weights with the adapters added.", rich_help_panel=MODEL)
    ] = None,
    compile: Annotated[
        bool | None, typer.Option("--compile", help="Compile the transformer (torch.compile).", rich_help_panel=MODEL)
    ] = None,
    epochs: Annotated[float | None, typer.Option(metavar="N", help="Passes over the data.", rich_help_panel=TIME)] = None,
    max_steps: Annotated[int | None, typer.Option(metavar="N", help="Steps, in place of epochs.", rich_help_panel=TIME)] = None,
    learning_rate: Annotated[
        float | None, typer.Option(metavar="X", help="Peak, of the encoder.", rich_help_panel=TIME)
    ] = None,
    loss_learning_rate: Annotated[
        float | None, typer.Option(metavar="X", help="Of the loss's own weights.", rich_help_panel=TIME)
    ] = None,
    weight_decay: Annotated[float | None, typer.Option(metavar="X", help="Of AdamW.", rich_help_panel=TIME)] = None,
    warmup: Annotated[float | None, typer.Option(metavar="X", help="Share (below 1) or steps.", rich_help_panel=TIME)] = None,
    scheduler: Annotated[
        str | None, typer.Option(metavar="NAME", help="linear, cosine, polynomial(power=2), ...", rich_help_panel=TIME)
    ] = None,
    max_grad_norm: Annotated[
        float | None, typer.Option(metavar="X", help="Clip to this; 0: off.", rich_help_panel=TIME)
    ] = None,
    precision: Annotated[
        str | None, typer.Option(metavar="NAME", help="float32, bfloat16 or float16.", rich_help_panel=TIME)
    ] = None,
    seed: Annotated[int | None, typer.Option(metavar="N", help="Of everything random.", rich_help_panel=TIME)] = None,
    batch_size: Annotated[int | None, typer.Option(metavar="N", help="Rows a step and process.", rich_help_panel=BATCH)] = None,
    sampler: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="auto, random, no-duplicates, group-by-label, length-grouped.", rich_help_panel=BATCH
        ),
    ] = None,
    chunk_tokens: Annotated[
        int | None, typer.Option(metavar="N", help="Padded tokens a forward pass holds.", rich_help_panel=BATCH)
    ] = None,
    recompute: Annotated[
        bool | None,
        typer.Option("--recompute", help="Less memory: one chunk's activations. Or: --recompute auto.", rich_help_panel=BATCH),
    ] = None,
    memory_limit: Annotated[
        str | None, typer.Option(metavar="SIZE", help="What --recompute auto may use, as 4GB.", rich_help_panel=BATCH)
    ] = None,
    gradient_checkpointing: Annotated[
        bool | None,
        typer.Option("--gradient-checkpointing", help="Less memory: compute layers again.", rich_help_panel=BATCH),
    ] = None,
    gather: Annotated[
        bool | None, typer.Option("--gather", help="In-batch candidates of all processes.", rich_help_panel=BATCH)
    ] = None,
    cache_guide: Annotated[
        bool | None, typer.Option("--cache-guide", help="Encode texts with frozen guides once.", rich_help_panel=BATCH)
    ] = None,
    processes: Annotated[
        int, typer.Option(metavar="N", help="Processes on this machine that train together.", rich_help_panel=BATCH)
    ] = 1,
    gradient_accumulation: Annotated[
        int | None, typer.Option(metavar="N", help="Batches an optimizer step.", rich_help_panel=BATCH)
    ] = None,
    workers: Annotated[int | None, typer.Option(metavar="N", help="Processes that tokenise.", rich_help_panel=BATCH)] = None,
    logging_steps: Annotated[
        int | None, typer.Option(metavar="N", help="Steps between log lines.", rich_help_panel=OUTPUT)
    ] = None,
    probe_steps: Annotated[
        int | None, typer.Option(metavar="N", help="Steps between looks at how embeddings spread.", rich_help_panel=OUTPUT)
    ] = None,
    eval_steps: Annotated[
        int | None, typer.Option(metavar="N", help="Steps between evaluations.", rich_help_panel=OUTPUT)
    ] = None,
    save_steps: Annotated[
        int | None, typer.Option(metavar="N", help="Steps between checkpoints.", rich_help_panel=OUTPUT)
    ] = None,
    save_total_limit: Annotated[int | None, typer.Option(metavar="N", help="Checkpoints kept.", rich_help_panel=OUTPUT)] = None,
    load_best: Annotated[
        bool | None, typer.Option("--load-best", help="End with the best evaluated model.", rich_help_panel=BEST)
    ] = None,
    early_stopping: Annotated[
        int | None, typer.Option(metavar="N", help="End after N evaluations without a better one.", rich_help_panel=BEST)
    ] = None,
    metric_for_best: Annotated[
        str | None, typer.Option(metavar="NAME", help="What is better, such as ndcg@10.", rich_help_panel=BEST)
    ] = None,
    report_to: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="tensorboard, wandb, mlflow, ...; repeatable.", rich_help_panel=BEST),
    ] = None,
    push_to_hub: Annotated[
        str | None, typer.Option(metavar="ID", help="Upload the finished model to the hub.", rich_help_panel=BEST)
    ] = None,
    hub_private: Annotated[
        bool | None, typer.Option("--hub-private", help="Make that repository private.", rich_help_panel=BEST)
    ] = None,
    resume: Annotated[
        bool | None, typer.Option("--resume", help="Go on from the last checkpoint.", rich_help_panel=OUTPUT)
    ] = None,
    overwrite: Annotated[
        bool | None, typer.Option("--overwrite", help="Replace what is in DIR.", rich_help_panel=OUTPUT)
    ] = None,
) -> None:
    """Train a model from options, a YAML file, or both.

    Keys of the file are the long options with underscores. The resolved settings
    are saved beside the model as run.yaml.

    Examples:
    embedloss train --model M --data pairs.jsonl --loss mnrl --out runs/a

    embedloss train run.yaml --set epochs=3

    embedloss train --model M --data qa=qa.jsonl --loss qa=mnrl --data sts=sts.csv --loss sts=cosent --out runs/b
    """
    given: dict[str, Any] = dict(locals())
    from embedloss.errors import EmbedlossError
    from embedloss.training.config import RunConfig, read_yaml

    values = {k.replace("-", "_") if isinstance(k, str) else k: v for k, v in (read_yaml(config) if config else {}).items()}
    for key, option in (("weights", "--weight"), ("data", "--data"), ("eval_data", "--eval-data"), ("loss", "--loss")):
        if given[key]:
            given[key] = _once(given[key], option)
    for key in ("config", "sets", "mapping", "drop", "prompts", "processes"):
        del given[key]
    if mapping:
        values["map"] = {**_mapping(values.get("map")), **pairs(mapping, "--map")}
    if prompts:
        values["prompts"] = {**_mapping(values.get("prompts")), **pairs(prompts, "--prompt")}
    if drop:
        before = values.get("drop") or []
        values["drop"] = list(dict.fromkeys([*(before if isinstance(before, list) else [before]), *drop]))
    values.update({key: value for key, value in given.items() if value is not None})
    where = f"'{config}'" if config else "the command line"
    run_config = RunConfig.from_mapping(values, where)
    for item in sets or ():
        key, equals, value = item.partition("=")
        if not equals:
            raise EmbedlossError("E401", f"--set {item}: type --set key=value, such as --set epochs=3.")
        key = key.strip()
        values[key if key.startswith("data.") else key.replace("-", "_")] = value
    if sets:
        run_config = RunConfig.from_mapping(values, "--set")
    run_config.plugins = list(dict.fromkeys([*run_config.plugins, *PLUGIN_FILES]))
    if processes != 1:
        from embedloss.training.launch import launch

        raise typer.Exit(launch(run_config, processes))
    from embedloss.distributed import leave
    from embedloss.training import run_training

    run_training(run_config)
    leave()


def _once(items: list[str], option: str) -> list[str]:
    """The values of an option that may be repeated; a usage error where the same data set is named twice."""
    names = [item.partition("=")[0] for item in items if "=" in item]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise typer.BadParameter(f"'{twice}' is given twice", param_hint=option)
    return items


def _mapping(value: Any) -> dict[str, str]:
    return dict(value) if isinstance(value, dict) else {}


def register(app: typer.Typer) -> None:
    """Add the command of this file."""
    app.command(rich_help_panel=PANEL)(train)
