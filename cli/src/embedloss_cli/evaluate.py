"""`embedloss evaluate`: the metrics that a data set allows, for a model, parts of its embeddings, and baselines."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from embedloss.model_names import check_model_name
from embedloss_cli.model_commands import PANEL, Model
from embedloss_cli.options import Drop, Json, Map, numbers, pairs
from embedloss_cli.output import columns, fitted, number, print_json, wrapped

COUNTS = ("queries", "documents", "queries_excluded", "judgements_excluded", "lists_excluded")


def evaluate(
    model: Model,
    data: Annotated[
        list[str], typer.Argument(metavar="DATA", help="Data sets, or folders that hold corpus, queries and qrels.")
    ],
    mapping: Map = None,
    drop: Drop = None,
    format_: Annotated[
        str | None, typer.Option("--format", metavar="FORMAT", help="How to read the data, where several formats fit.")
    ] = None,
    split: Annotated[str | None, typer.Option("--split", metavar="NAME", help="Of a folder with several qrels.")] = None,
    prompts: Annotated[
        list[str] | None, typer.Option("--prompt", metavar="ROLE=TEXT", help="Put before texts of a role; repeatable.")
    ] = None,
    compare: Annotated[
        str | None, typer.Option("--compare", metavar="MODEL", help="A second model, measured beside the first.")
    ] = None,
    baselines: Annotated[bool, typer.Option("--baselines", help="BM25, random vectors, an untrained static encoder.")] = False,
    metrics: Annotated[
        str | None, typer.Option("--metrics", metavar="A,B", help="Only these, such as ndcg@10,map@100.")
    ] = None,
    k: Annotated[str | None, typer.Option("--k", metavar="N,N", help="Cuts of ranking metrics; 10 by default.")] = None,
    similarity: Annotated[
        str | None, typer.Option("--similarity", metavar="NAME", help="cosine, dot, euclidean or manhattan.")
    ] = None,
    dims: Annotated[str | None, typer.Option("--dims", metavar="N,N", help="Truncated embeddings as well.")] = None,
    layers: Annotated[str | None, typer.Option("--layers", metavar="N,N", help="Earlier layers as well.")] = None,
    precision: Annotated[
        str | None, typer.Option("--precision", metavar="NAME,NAME", help="float32, int8, binary: quantised as well.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE", help="Draw the first metric over --dims or --layers.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure a model on data sets; the metrics follow from the format of each.

    A folder with files named corpus, queries and qrels is a search. On lists of
    documents the given order, a random one and BM25 stand beside the model.

    Examples:
    embedloss evaluate runs/a test.jsonl --compare runs/untrained

    embedloss evaluate runs/a beir/scifact --baselines --dims 384,128
    """
    from embedloss.evaluation import PRECISIONS, check_metric, list_baselines
    from embedloss.evaluation.task import Task

    for name in (model, compare) if compare else (model,):
        check_model_name(name)
    options: dict[str, Any] = {
        "ks": numbers(k, "--k", 1),
        "similarity": similarity,
        "dims": numbers(dims, "--dims", 1),
        "layers": numbers(layers, "--layers", 0),
        "precisions": [p.strip() for p in precision.split(",")] if precision else PRECISIONS[:1],
    }
    wanted = [name.strip() for name in metrics.split(",")] if metrics else []
    given: dict[str, Any] = {"mapping": pairs(mapping, "--map"), "drop": drop or [], "prompts": pairs(prompts, "--prompt")}
    tasks = [Task(source, format_name=format_, split=split, **given) for source in data]
    for task in tasks:  # before a model is loaded
        known = task.names(similarity=similarity, ks=options["ks"])
        for name in wanted:
            check_metric(name, known, f"'{task.source}' ({task.format})")
    from embedloss.encoders import load_encoder

    encoders = {name: load_encoder(name) for name in ([compare] if compare else []) + [model]}
    documents: list[dict[str, Any]] = []
    for task in tasks:
        if not as_json:
            print(("\n" if documents else "") + wrapped(task.describe()))
        found = {name: task.measure(encoder, **options) for name, encoder in encoders.items()}
        others: dict[str, dict[str, float]] = {}
        if baselines:
            others = task.baselines(options["ks"])
        elif task.format == "listwise":
            others = list_baselines(task.rows, ks=options["ks"] or (10,))
        if wanted:
            names = {*wanted, *COUNTS}
            found, others = ({who: _only(of, names) for who, of in each.items()} for each in (found, others))
        document: dict[str, Any] = {"model": model, "data": task.source, "rows": task.size, "format": task.format}
        document["metrics"] = found[model]
        if others:
            document["baselines"] = others
        if compare:
            document["compare"] = {"model": compare, "metrics": found[compare]}
        documents.append(document)
        if not as_json:
            print()
            show(others, found, model)
        if plot is not None:
            curve(found[model], plot if len(tasks) == 1 else plot.with_stem(f"{plot.stem}-{len(documents)}"))
    if as_json:
        print_json(documents[0] if len(documents) == 1 else {"model": model, "results": documents})


def _only(metrics: Mapping[str, float], names: set[str]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if name.rsplit("/", 1)[-1] in names}


def show(others: Mapping[str, Mapping[str, float]], found: Mapping[str, Mapping[str, float]], model: str) -> None:
    """A list of metrics; or one line a model, baseline, size, layer and precision, and one column a metric."""
    from embedloss.training.report import table

    metrics = found[model]
    if not metrics:
        from embedloss.errors import EmbedlossError

        raise EmbedlossError("E501", "nothing can be measured here with this kind of model.")
    parts = any("/" in name for name in metrics)
    if not others and not parts:
        if len(found) == 1:
            print(columns([(name, number(value)) for name, value in metrics.items()]))
            return
        names = list(found)
        rows = [[name, *(number(found[who][name]) for who in names)] for name in metrics]
        print(table(["metric", *names], rows))
        return
    lines: list[tuple[str, Mapping[str, float]]] = list(others.items())
    for who, values in found.items():
        views: dict[str, dict[str, float]] = {}
        for name, value in values.items():
            view, _, metric = name.rpartition("/")
            views.setdefault(view, {})[metric] = value
        lines += [(f"  {view}" if view else short(who), each) for view, each in views.items()]
    kinds = [name for name in metrics if "/" not in name and name not in COUNTS]
    if parts:  # the most telling ones, so that a table of sizes and precisions is one table
        kinds = kinds[:3]
    print(fitted("order" if "given order" in others else "model", kinds, lines))
    for name in COUNTS:
        if name in metrics:
            text = {
                "lists_excluded": f"{metrics[name]:,.0f} lists are left out: all their grades are equal",
                "queries_excluded": f"{metrics[name]:,.0f} queries without a relevant document are left out",
                "judgements_excluded": f"{metrics[name]:,.0f} judgements of what is not there are left out",
            }.get(name)
            print(f"\n{text}" if text else "", end="\n" if text else "")
    if others and "BM25" not in others and not bm25_is_there():
        print(wrapped("\nBM25 is not measured: pip install 'embedloss[bm25]'"))


def bm25_is_there() -> bool:
    """Whether BM25 was left out because it has no meaning for the data, and not for want of a package."""
    from embedloss.errors import EmbedlossError
    from embedloss.evaluation import BM25

    try:
        return bool(BM25())
    except EmbedlossError:
        return False


def short(name: str, most: int = 30) -> str:
    """The end of a long path, which tells models apart better than its beginning."""
    return name if len(name) <= most else "..." + name[3 - most :]


def curve(metrics: Mapping[str, float], file: Path) -> None:
    """The first metric over the size of the embeddings, and over the layers, one line a precision."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    from embedloss.errors import EmbedlossError

    first = next(iter(metrics))
    lines: dict[str, list[tuple[int, float]]] = {}
    for name, value in metrics.items():
        view, _, metric = name.rpartition("/")
        words = view.split("/") if view else []
        sizes, layers = [w for w in words if w.isdigit()], [w for w in words if w.startswith("layer")]
        rest = [w for w in words if not w.isdigit() and w not in layers]
        if metric == first and sizes:
            lines.setdefault(" ".join(["size", *layers, *rest]), []).append((int(sizes[0]), value))
        elif metric == first and layers:
            lines.setdefault(" ".join(["layer", *rest]), []).append((int(layers[0][5:]), value))
    if not lines:
        raise EmbedlossError("E401", "--plot draws a metric over --dims or --layers; give one of them.")
    figure, axes = plt.subplots(figsize=(7, 4), dpi=120)
    for name, points in lines.items():
        axes.plot(*zip(*sorted(points), strict=True), marker=".", label=name)
    axes.axhline(metrics[first], linestyle=":", label="whole embedding")
    axes.set_ylabel(first)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    figure.tight_layout()
    figure.savefig(file)
    plt.close(figure)
    print(f"\n{file}: {first}")


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(rich_help_panel=PANEL)(evaluate)
