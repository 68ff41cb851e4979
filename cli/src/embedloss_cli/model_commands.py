"""Commands that use a model: evaluate, encode, search, init-static. Data and output are checked before a model is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from embedloss.model_names import check_model_name
from embedloss_cli.data_commands import Data, bind_best
from embedloss_cli.options import Drop, Json, Map, check_output, pairs
from embedloss_cli.output import columns, number, print_json, width, wrapped

if TYPE_CHECKING:
    import datasets

PANEL = "Models"
Model = Annotated[str, typer.Argument(metavar="MODEL", help="Folder or hub id.")]
Column = Annotated[str | None, typer.Option("--column", metavar="NAME", help="Column that holds the texts.")]
Prompt = Annotated[str, typer.Option("--prompt", metavar="TEXT", help="Put before every text.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is there already.")]


def texts_of(dataset: datasets.Dataset, column: str | None, source: str) -> list[str]:
    """The texts of one column, all of them non-empty: the named one, or the only one, or one called "text"."""
    from embedloss.binding import bind, did_you_mean
    from embedloss.check import check_rows, column_kinds
    from embedloss.errors import EmbedlossError
    from embedloss.formats import get_format
    from embedloss_cli.data_commands import plain_spec

    kinds = column_kinds(dataset)
    if column is None:
        found = [name for name, kind in kinds.items() if kind == "text"]
        if len(found) > 1:
            found = [name for name in found if name.lower() in ("text", "texts", "document")][:1] or found
        if len(found) != 1:
            names = ", ".join(found) or "none"
            raise EmbedlossError("E102", f"'{source}' has {len(found)} text columns ({names}); type --column NAME.")
        column = found[0]
    if column not in kinds:
        raise EmbedlossError(
            "E102", f"'{source}' has no column '{column}'.{did_you_mean(column, kinds)} Columns: {', '.join(kinds)}."
        )
    fmt = get_format("single")
    binding = bind({column: kinds[column]}, [fmt], loss_name="this command", mapping={"text": column})
    report = check_rows(dataset, binding, plain_spec(fmt))
    report.faults = [fault for fault in report.faults if fault.code != "E106"]  # one text is enough here
    report.raise_if_faulty()
    return (
        [str(text) for text in dataset.data.column(column).to_pylist()] if dataset._indices is None else list(dataset[column])
    )


def evaluate(
    model: Model,
    data: Data,
    mapping: Map = None,
    drop: Drop = None,
    format_: Annotated[
        str | None, typer.Option("--format", metavar="FORMAT", help="How to read the data, where several formats fit.")
    ] = None,
    prompts: Annotated[
        list[str] | None, typer.Option("--prompt", metavar="ROLE=TEXT", help="Put before texts of a role; repeatable.")
    ] = None,
    compare: Annotated[
        str | None, typer.Option("--compare", metavar="MODEL", help="A second model, measured beside the first.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure a model on a data set; the metrics follow from its format.

    On lists of documents the given order, a random one and BM25 stand beside it.

    Example: embedloss evaluate runs/a test.jsonl --compare runs/untrained
    """
    from embedloss.check import bound_dataset
    from embedloss.data import load_rows
    from embedloss.errors import EmbedlossError

    for name in (model, compare) if compare else (model,):
        check_model_name(name)
    dataset = load_rows(data)
    binding, report, _ = bind_best(dataset, pairs(mapping, "--map"), drop or [], format_)
    report.raise_if_faulty()
    role_prompts = pairs(prompts, "--prompt")
    for role in role_prompts:
        if role not in binding.format.roles:
            raise EmbedlossError(
                "E401", f"prompt for the unknown role '{role}'; the roles are {', '.join(binding.format.roles)}."
            )
    rows = bound_dataset(dataset, binding)
    if not as_json:
        print(f"{data}: {len(dataset):,} rows")
        print(wrapped(binding.describe()))
    from embedloss.encoders import load_encoder
    from embedloss.evaluation import evaluate as measure
    from embedloss.evaluation import list_baselines

    metrics = measure(load_encoder(model), rows, binding.format.name, prompts=role_prompts)
    other = measure(load_encoder(compare), rows, binding.format.name, prompts=role_prompts) if compare else {}
    baselines = list_baselines(rows) if binding.format.name == "listwise" else {}
    if as_json:
        found = {"model": model, "data": data, "rows": len(dataset), "format": binding.format.name, "metrics": metrics}
        if baselines:
            found["baselines"] = baselines
        print_json({**found, "compare": {"model": compare, "metrics": other}} if compare else found)
        return
    print()
    if baselines:
        print(orders({**baselines, **({compare: other} if compare else {}), model: metrics}))
        if "BM25" not in baselines:
            print(wrapped("\nBM25 is not measured: pip install 'embedloss[bm25]'"))
        return
    if not compare:
        print(columns([(name, number(value)) for name, value in metrics.items()]))
        return
    from embedloss.training.report import table

    print(table(["metric", compare, model], [[name, number(other[name]), number(value)] for name, value in metrics.items()]))


def orders(found: dict[str, dict[str, float]]) -> str:
    """One line an order of the documents, one column a metric; lists of equal grades have no right order."""
    from embedloss.training.report import table

    first = next(iter(found.values()))
    names = [name for name in first if name != "lists_excluded"]
    shown = table(["order", *names], [[who, *(number(values[name]) for name in names)] for who, values in found.items()])
    if "lists_excluded" not in first:
        return shown
    return f"{shown}\n\n{first['lists_excluded']:,.0f} lists are left out: all their grades are equal"


def encode(
    model: Model,
    data: Data,
    out: Annotated[str, typer.Option("--out", metavar="FILE", help="Embeddings: .npy, or .parquet with the texts.")],
    column: Column = None,
    prompt: Prompt = "",
    normalize: Annotated[bool, typer.Option("--normalize", help="Scale every embedding to length 1.")] = False,
    truncate_dim: Annotated[int | None, typer.Option(min=1, metavar="N", help="Keep the first N dimensions.")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Embed the texts of one column and write them to a file.

    Example: embedloss encode runs/a docs.jsonl --column text --out docs.npy
    """
    from embedloss.data import load_rows
    from embedloss.errors import EmbedlossError

    path = Path(out)
    if path.suffix not in (".npy", ".parquet"):
        raise EmbedlossError("E402", f"'{out}': the file must end in .npy or .parquet.")
    check_output(out, overwrite)
    check_model_name(model)
    texts = texts_of(load_rows(data), column, data)
    from embedloss.encoders import load_encoder

    encoder = load_encoder(model)
    if encoder.kind == "cross-encoder":
        raise EmbedlossError("E302", f"'{model}' is a cross-encoder, which gives no embeddings. Type: embedloss rank")
    vectors = encoder.encode(
        texts, prompt=prompt, normalize=normalize, truncate_dim=truncate_dim, show_progress=len(texts) > 1000
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        import numpy

        numpy.save(path, vectors)
    else:
        import pyarrow
        import pyarrow.parquet

        flat = pyarrow.array(vectors.reshape(-1))
        lists = pyarrow.FixedSizeListArray.from_arrays(flat, vectors.shape[1])
        pyarrow.parquet.write_table(pyarrow.table({"text": texts, "embedding": lists}), path)
    print(f"{out}: {vectors.shape[0]:,} embeddings of dimension {vectors.shape[1]}")


def search(
    model: Model,
    query: Annotated[str, typer.Argument(metavar="QUERY", help="What to look for.")],
    docs: Annotated[str, typer.Option("--docs", metavar="DATA", help="Documents: file, folder or hub id.")],
    column: Column = None,
    top: Annotated[int, typer.Option(min=1, metavar="N", help="Number of results.")] = 5,
    as_json: Json = False,
) -> None:
    """Find the documents nearest to a query.

    Example: embedloss search runs/a "open a compressed file" --docs docs.jsonl
    """
    from embedloss.data import load_rows
    from embedloss.errors import EmbedlossError

    if not query.strip():
        raise EmbedlossError("E104", "the query is empty.")
    check_model_name(model)
    texts = texts_of(load_rows(docs), column, docs)
    import torch

    from embedloss.encoders import load_encoder
    from embedloss.similarity import matrix

    encoder = load_encoder(model)
    if encoder.kind == "cross-encoder":
        raise EmbedlossError("E302", f"'{model}' is a cross-encoder, which scores pairs. Type: embedloss rank")
    prompts = encoder.prompts
    documents = encoder.encode(texts, prompt=prompts.get("document", ""), show_progress=len(texts) > 1000)
    wanted = encoder.encode([query], prompt=prompts.get("query", ""))
    scores = matrix(encoder.similarity, torch.from_numpy(wanted), torch.from_numpy(documents))[0]
    best = scores.topk(min(top, len(texts)))
    found = [(float(s), int(i)) for s, i in zip(best.values, best.indices, strict=True)]
    print_documents(found, texts, as_json)


def print_documents(found: list[tuple[float, int]], texts: list[str], as_json: bool) -> None:
    """(score, index of the text) one a line, best first; a text is cut to the width of the terminal."""
    if as_json:
        print_json([{"score": score, "row": i + 1, "text": texts[i]} for score, i in found])
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 1), show_edge=False)
    table.add_column("score", justify="right", no_wrap=True, min_width=6)
    table.add_column("row", justify="right", no_wrap=True, min_width=max(3, len(str(len(texts)))))
    table.add_column("text", no_wrap=True, overflow="ellipsis")
    for score, i in found:
        table.add_row(f"{score:.3f}", str(i + 1), Text(" ".join(texts[i].split())))
    Console(width=width(), highlight=False).print(table)


def init_static(
    data: Data,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder of the new model.")],
    column: Column = None,
    dim: Annotated[int, typer.Option(min=1, metavar="N", help="Dimension of the embeddings.")] = 256,
    vocab_size: Annotated[int, typer.Option(min=100, metavar="N", help="Largest vocabulary.")] = 30_000,
    seed: Annotated[int, typer.Option(metavar="N", help="Of the random vectors.")] = 0,
    overwrite: Overwrite = False,
) -> None:
    """Make an untrained static encoder; its tokenizer is learnt from DATA.

    All text columns are used unless --column names one.

    Example: embedloss init-static train.jsonl runs/untrained
    """
    from embedloss.check import column_kinds
    from embedloss.data import load_rows
    from embedloss.errors import EmbedlossError

    check_output(str(out), overwrite)
    dataset = load_rows(data)
    if column is not None:
        texts = texts_of(dataset, column, data)
    else:
        texts = []
        for name, kind in column_kinds(dataset).items():
            values = dataset.data.column(name).to_pylist() if kind in ("text", "texts") else []
            for value in values:
                texts += [value] if isinstance(value, str) else [v for v in value or () if v is not None]
    if not any(text.strip() for text in texts):
        raise EmbedlossError("E104", f"'{data}' holds no texts.")
    from embedloss.encoders import new_static_encoder

    encoder = new_static_encoder(texts, dimension=dim, vocab_size=vocab_size, seed=seed)
    encoder.save(out)
    print(f"{out}: static encoder, {encoder.embedding.num_embeddings:,} tokens, dimension {encoder.dimension}")


def replay(
    folder: Annotated[str, typer.Argument(metavar="FOLDER", help="A folder named nonfinite-step-... of a run.")],
    as_json: Json = False,
) -> None:
    """Run again the step at which a run became non-finite.

    Example: embedloss replay runs/a/nonfinite-step-12
    """
    from embedloss.training.health import replay as run_again

    found = run_again(folder)
    if as_json:
        print_json(dict(found))
        return
    print(columns(found))


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    for command in (evaluate, encode, search, replay):
        app.command(rich_help_panel=PANEL)(command)
    app.command("init-static", rich_help_panel=PANEL)(init_static)
