"""Commands that use a model: encode, search, init-static, replay. Data and output are checked before a model is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from embedloss.model_names import check_model_name
from embedloss_cli.data_commands import Data
from embedloss_cli.options import Json, check_output
from embedloss_cli.output import columns, print_json, width

if TYPE_CHECKING:
    import datasets

PANEL = "Models"
Model = Annotated[str, typer.Argument(metavar="MODEL", help="Folder or hub id.")]
Column = Annotated[str | None, typer.Option("--column", metavar="NAME", help="Column that holds the texts.")]
Prompt = Annotated[str, typer.Option("--prompt", metavar="TEXT", help="Put before every text.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is there already.")]


def texts_of(dataset: datasets.Dataset, column: str | None, source: str) -> list[str]:
    """The texts of one column, all of them non-empty: the named one, or the only one, or one called "text"."""
    from embedloss.binding import bind
    from embedloss.bulk import text_column
    from embedloss.check import check_rows, column_kinds
    from embedloss.examine import plain_spec
    from embedloss.formats import get_format

    kinds = column_kinds(dataset)
    column = text_column(kinds, column, source)
    fmt = get_format("single")
    binding = bind({column: kinds[column]}, [fmt], loss_name="this command", mapping={"text": column})
    report = check_rows(dataset, binding, plain_spec(fmt))
    report.faults = [fault for fault in report.faults if fault.code != "E106"]  # one text is enough here
    report.raise_if_faulty()
    return (
        [str(text) for text in dataset.data.column(column).to_pylist()] if dataset._indices is None else list(dataset[column])
    )


def encode(
    model: Model,
    data: Data,
    out: Annotated[str, typer.Option("--out", metavar="FILE", help="Embeddings: .npy, or .parquet with the texts.")],
    column: Column = None,
    prompt: Prompt = "",
    normalize: Annotated[bool, typer.Option("--normalize", help="Scale every embedding to length 1.")] = False,
    truncate_dim: Annotated[int | None, typer.Option(min=1, metavar="N", help="Keep the first N dimensions.")] = None,
    processes: Annotated[int, typer.Option(min=1, metavar="N", help="How many encode at a time.")] = 1,
    overwrite: Overwrite = False,
) -> None:
    """Embed the texts of one column and write them to a file.

    Memory does not grow with the file. After an interruption the same command
    goes on: what is done is kept in OUT.parts until all is done.

    Example: embedloss encode runs/a docs.jsonl --column text --out docs.npy
    """
    from embedloss.errors import EmbedlossError

    path = Path(out)
    if path.suffix not in (".npy", ".parquet"):
        raise EmbedlossError("E402", f"'{out}': the file must end in .npy or .parquet.")
    check_output(out, overwrite)
    check_model_name(model)
    from embedloss.bulk import encode_file

    with Bar() as bar:
        count, width = encode_file(
            model, data, path, column=column, prompt=prompt, normalize=normalize, truncate_dim=truncate_dim,
            processes=processes, progress=bar,
        )  # fmt: skip
    print(f"{out}: {count:,} embeddings of dimension {width}")


class Bar:
    """A progress bar that counts texts, for more than a thousand of them."""

    def __init__(self) -> None:
        self.bar: Any = None

    def __call__(self, stage: str, done: int, total: int) -> None:
        """So many are done."""
        from tqdm.auto import tqdm

        if self.bar is None and total > 1000:
            self.bar = tqdm(total=total, initial=done, desc=stage, unit="text", dynamic_ncols=True)
        elif self.bar is not None:
            self.bar.update(done - self.bar.n)

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *error: object) -> None:
        if self.bar is not None:
            self.bar.close()


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
    for command in (encode, search, replay):
        app.command(rich_help_panel=PANEL)(command)
    app.command("init-static", rich_help_panel=PANEL)(init_static)
