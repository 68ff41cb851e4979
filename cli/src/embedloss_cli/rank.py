"""`embedloss rank`: documents in the order in which a model puts them for a query."""

from __future__ import annotations

from typing import Annotated

import typer

from embedloss.model_names import check_model_name
from embedloss_cli.model_commands import PANEL, Column, Model, print_documents, texts_of
from embedloss_cli.options import Json


def rank(
    model: Model,
    query: Annotated[str, typer.Option("--query", metavar="TEXT", help="What the documents are ranked for.")],
    docs: Annotated[str, typer.Option("--docs", metavar="DATA", help="Documents: file, folder or hub id.")],
    column: Column = None,
    top: Annotated[int | None, typer.Option(min=1, metavar="N", help="Only the first N; by default all.")] = None,
    as_json: Json = False,
) -> None:
    """Rank documents for a query with a cross-encoder; a bi-encoder ranks by similarity.

    Every document is read together with the query: made for tens or hundreds of
    candidates. To find them in a large file: embedloss search.

    Example: embedloss rank runs/a --query "open a file" --docs docs.jsonl --top 5
    """
    from embedloss.data import load_rows
    from embedloss.errors import EmbedlossError

    if not query.strip():
        raise EmbedlossError("E104", "the query is empty.")
    check_model_name(model)
    texts = texts_of(load_rows(docs), column, docs)
    import numpy as np

    from embedloss.encoders import CrossEncoder, load_encoder

    encoder = load_encoder(model)
    prompt = encoder.prompts.get("query", "")
    if isinstance(encoder, CrossEncoder):
        if encoder.num_labels > 1:
            raise EmbedlossError(
                "E302", f"'{model}' gives {encoder.num_labels} classes a pair; ranking needs a model with one score."
            )
        scores = encoder.predict([(query, text) for text in texts], prompt=prompt, show_progress=len(texts) > 1000)
    else:
        import torch

        from embedloss.similarity import matrix

        documents = encoder.encode(texts, prompt=encoder.prompts.get("document", ""), show_progress=len(texts) > 1000)
        wanted = encoder.encode([query], prompt=prompt)
        scores = matrix(encoder.similarity, torch.from_numpy(wanted), torch.from_numpy(documents))[0].numpy()
    best = np.argsort(-scores, kind="stable")[:top]
    print_documents([(float(scores[i]), int(i)) for i in best], texts, as_json)


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(rich_help_panel=PANEL)(rank)
