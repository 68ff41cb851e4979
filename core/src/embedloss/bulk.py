"""Embeddings of a file: in bounded memory, on several processes, and on from where an interrupted run stopped."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from embedloss.binding import did_you_mean
from embedloss.chunks import Chunks
from embedloss.errors import EmbedlossError
from embedloss.mining.store import Progress, filled, key, remove, silent

BLOCK = 8192  # texts between two writes to disk, on each process


def encode_file(
    model: str,
    source: str,
    out: str | Path,
    *,
    column: str | None = None,
    prompt: str = "",
    normalize: bool = False,
    truncate_dim: int | None = None,
    processes: int = 1,
    progress: Progress = silent,
) -> tuple[int, int]:
    """Embed one column of a data set and write the embeddings to a file.

    What is done is kept in a folder beside the file, named `OUT.parts`, until all is done; the same call goes on from there.

    Args:
        model: folder or hub id of a bi-encoder.
        source: as in `load_rows`; a .jsonl, .csv, .tsv or .parquet file is read in chunks.
        out: .npy, (texts, dimension) float32; or .parquet with the columns "text" and "embedding".
        column: that holds the texts; needed where several do.
        prompt, normalize, truncate_dim: as in `Encoder.encode`.
        processes: how many encode; each loads the model.
        progress: told after every block.

    Returns:
        Numbers of texts and dimensions.

    Raises:
        EmbedlossError: E102 if no column is named and several hold texts, E104 for an empty text, E302 for a cross-encoder.
    """
    chunks = Chunks(source)
    name = text_column(chunks.kinds(), column, source)
    count, digest = _look(chunks, name, source)
    from embedloss.encoders import load_encoder
    from embedloss.training.guides import fingerprint

    encoder = load_encoder(model)
    if encoder.kind == "cross-encoder":
        raise EmbedlossError("E302", f"'{model}' is a cross-encoder, which gives no embeddings. Type: embedloss rank")
    path = Path(out)
    folder = path.with_name(f"{path.name}.parts")
    options: dict[str, Any] = {"prompt": prompt, "normalize": normalize, "truncate_dim": truncate_dim}
    width = min(truncate_dim or encoder.dimension, encoder.dimension)
    made = key(fingerprint(encoder, prompt), digest, str(normalize), str(truncate_dim))
    waiting: Iterator[str] | None = None
    with ExitStack() as stack:
        pool: Any = None
        if processes > 1:
            threads = max((os.cpu_count() or 1) // processes, 1)
            context = multiprocessing.get_context("spawn")
            pool = stack.enter_context(context.Pool(processes, _load, (model, options, threads)))

        def compute(begin: int, end: int) -> Any:
            nonlocal waiting
            if waiting is None:
                waiting = islice(_texts(chunks, name), begin, None)
            texts = list(islice(waiting, end - begin))
            if pool is None:
                return encoder.encode(texts, **options)
            # Every part gets long and short texts alike.
            parts = [texts[place::processes] for place in range(processes)]
            found = np.zeros((len(texts), width), dtype=np.float32)
            for place, part in enumerate(pool.map(_encode, parts, chunksize=1)):
                found[place::processes] = part
            return found

        block = BLOCK * processes
        vectors = filled(folder, made, (count, width), np.float32, compute, block=block, stage="encode", progress=progress)
    if path.suffix == ".parquet":
        _write_parquet(path, chunks, name, vectors)
    del vectors  # the mapping must not outlive the name of the file
    if path.suffix != ".parquet":
        os.replace(folder / f"{made}.npy", path)
    remove(folder)
    return count, width


def text_column(kinds: Mapping[str, str], column: str | None, source: str) -> str:
    """The named column, or the only one of texts, or one called "text"; E102 where that leaves none or several."""
    if column is None:
        found = [name for name, kind in kinds.items() if kind == "text"]
        if len(found) > 1:
            found = [name for name in found if name.lower() in ("text", "texts", "document")][:1] or found
        if len(found) != 1:
            names = ", ".join(found) or "none"
            raise EmbedlossError("E102", f"'{source}' has {len(found)} text columns ({names}); type --column NAME.")
        return found[0]
    if column not in kinds:
        raise EmbedlossError(
            "E102", f"'{source}' has no column '{column}'.{did_you_mean(column, kinds)} Columns: {', '.join(kinds)}."
        )
    if kinds[column] != "text":
        raise EmbedlossError("E102", f"column '{column}' of '{source}' holds no texts but {kinds[column]}.")
    return column


def _texts(chunks: Chunks, column: str) -> Iterator[Any]:
    for table in chunks:
        yield from table[column].to_pylist()


def _look(chunks: Chunks, column: str, source: str) -> tuple[int, str]:
    """Number of texts and their hash; E104 for those that are null or empty."""
    digest, count = hashlib.blake2b(digest_size=16), 0
    faulty: list[int] = []
    for count, text in enumerate(_texts(chunks, column), start=1):
        if text is None or not text.strip():
            faulty.append(count)
            continue
        raw = text.encode("utf-8", "surrogatepass")
        digest.update(len(raw).to_bytes(8, "little") + raw)
    if faulty:
        shown = ", ".join(map(str, faulty[:5])) + (", ..." if len(faulty) > 5 else "")
        raise EmbedlossError(
            "E104",
            f"column '{column}' of '{source}' has {len(faulty)} null or empty texts: rows {shown}. Repair or remove them.",
        )
    return count, digest.hexdigest()


def _write_parquet(path: Path, chunks: Chunks, column: str, vectors: Any) -> None:
    import pyarrow as pa
    import pyarrow.parquet

    staged, begin = path.with_name(f"{path.name}.writing"), 0
    schema = pa.schema({"text": pa.string(), "embedding": pa.list_(pa.float32(), vectors.shape[1])})
    with pyarrow.parquet.ParquetWriter(staged, schema) as writer:
        for table in chunks:
            part = np.ascontiguousarray(vectors[begin : begin + table.num_rows])
            lists = pa.FixedSizeListArray.from_arrays(pa.array(part.reshape(-1)), vectors.shape[1])
            writer.write_table(pa.table([table[column].cast(pa.string()), lists], schema=schema))
            begin += table.num_rows
    os.replace(staged, path)


# -- in a process of its own ------------------------------------------------------------------------------------------
_WORKER: dict[str, Any] = {}


def _load(model: str, options: dict[str, Any], threads: int) -> None:
    import torch

    from embedloss.encoders import load_encoder

    torch.set_num_threads(threads)
    _WORKER.update(encoder=load_encoder(model), options=options)


def _encode(texts: list[str]) -> Any:
    return _WORKER["encoder"].encode(texts, **_WORKER["options"])
