"""Embeddings of frozen guides, computed once and kept in Arrow files that later epochs and runs read."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from embedloss.encoders import Encoder
from embedloss.encoders.base import progress_bar
from embedloss.errors import EmbedlossError
from embedloss.samplers import text_id

PART = 65536  # texts of a file, so that an interruption loses no more than these


def cache_folder() -> Path:
    """Where caches are: EMBEDLOSS_CACHE, else the user's cache folder."""
    root = os.environ.get("EMBEDLOSS_CACHE")
    return Path(root) if root else Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "embedloss"


def fingerprint(encoder: Encoder, prompt: str) -> str:
    """Equal for guides that give equal embeddings: weights, tokenizer, longest text, modules and prompt."""
    digest = hashlib.blake2b(digest_size=16)
    tokenizer = getattr(encoder.processor.tokenizer, "backend_tokenizer", encoder.processor.tokenizer)
    described = repr(tokenizer)
    if hasattr(tokenizer, "to_str"):  # its truncation and padding are those of the latest call
        described = json.dumps({**json.loads(tokenizer.to_str()), "truncation": None, "padding": None})
    for text in (str(encoder), described, str(encoder.processor.max_length), prompt):
        digest.update(text.encode() + b"\0")
    for name, tensor in encoder.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


class GuideCache:
    """The embeddings that a guide gives, by text. Holds no weights, so that it may travel into data-loader workers.

    The files hold a number for each text (`samplers.text_id`) and its embedding in float32, and are mapped, not read.

    Args:
        encoder: the guide.
        prompt: put before every text.
        folder: where the files of all guides are; see `cache_folder`.
    """

    def __init__(self, encoder: Encoder, prompt: str = "", folder: str | Path | None = None) -> None:
        self.prompt, self.dimension = prompt, encoder.dimension
        self.folder = Path(folder or cache_folder() / "guides") / fingerprint(encoder, prompt)
        self._open: tuple[np.ndarray, np.ndarray, list[np.ndarray]] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": None}

    def fill(self, encoder: Encoder, texts: Iterable[str], *, show_progress: bool = False) -> int:
        """Compute what is missing.

        Args:
            encoder: the guide that this cache was made for, on the device where it shall run.
            texts: all texts that `lookup` will be asked for.
            show_progress: a progress bar on stderr where anything is missing.

        Returns:
            The number of texts that were computed.
        """
        wanted = {text_id(text): text for text in texts}
        ids, _, _ = self._read()
        for known in ids[np.isin(ids, np.fromiter(wanted, np.int64, len(wanted)))].tolist():
            del wanted[known]
        missing = list(wanted.items())
        bar = progress_bar(len(missing)) if show_progress and missing else None
        for begin in range(0, len(missing), PART):
            block = missing[begin : begin + PART]
            parts = []
            for start in range(0, len(block), 1024):  # so that the bar moves
                some = [text for _, text in block[start : start + 1024]]
                parts.append(encoder.encode(some, prompt=self.prompt))
                if bar is not None:
                    bar.update(len(some))
            self._write([number for number, _ in block], np.concatenate(parts))
        if bar is not None:
            bar.close()
        return len(missing)

    def lookup(self, texts: Sequence[str]) -> Tensor:
        """(texts, dimension) float32; E405 for a text that was never given to `fill`."""
        ids, places, parts = self._read()
        wanted = np.array([text_id(text) for text in texts], dtype=np.int64)
        at = np.searchsorted(ids, wanted)
        known = np.zeros(len(wanted), dtype=bool)
        inside = at < len(ids)
        known[inside] = ids[at[inside]] == wanted[inside]
        if not known.all():
            text = texts[int(np.argmin(known))]
            raise EmbedlossError(
                "E405",
                f"the guide's cache lacks the text '{text[:60]}', which is not in the data but made by the loss. "
                "Leave out --cache-guide.",
            )
        result = np.empty((len(wanted), self.dimension), dtype=np.float32)
        found = places[at]
        for part in np.unique(found[:, 0]):
            rows = found[:, 0] == part
            result[rows] = parts[part][found[rows, 1]]
        return torch.from_numpy(result)

    def _write(self, ids: Sequence[int], embeddings: np.ndarray) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        column = pa.FixedSizeListArray.from_arrays(pa.array(embeddings.reshape(-1)), self.dimension)
        table = pa.table({"id": pa.array(ids, pa.int64()), "embedding": column})
        handle, staged = tempfile.mkstemp(suffix=".writing", dir=self.folder)
        os.close(handle)
        with pa.OSFile(staged, "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
        name = hashlib.blake2b(np.array(ids, dtype=np.int64).tobytes(), digest_size=8).hexdigest()
        os.replace(staged, self.folder / f"{name}.arrow")  # so that a kill never leaves half of a file
        self._open = None

    def _read(self) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
        """Sorted ids, (ids, 2) the part and row of each, and the parts' embeddings."""
        if self._open is None:
            ids, places, parts = [np.zeros(0, np.int64)], [np.zeros((0, 2), np.int64)], []
            for number, file in enumerate(sorted(self.folder.glob("*.arrow"))):
                try:
                    table = pa.ipc.open_file(pa.memory_map(str(file))).read_all().combine_chunks()
                    embeddings = table["embedding"].chunk(0).values.to_numpy().reshape(-1, self.dimension)
                except (pa.ArrowException, ValueError) as exception:
                    raise EmbedlossError(
                        "E405", f"'{file}' is no guide cache, or damaged ({exception}). Delete it."
                    ) from exception
                ids.append(table["id"].to_numpy())
                places.append(np.stack([np.full(len(embeddings), number), np.arange(len(embeddings))], 1))
                parts.append(embeddings)
            joined, where = np.concatenate(ids), np.concatenate(places)
            order = np.argsort(joined, kind="stable")
            self._open = joined[order], where[order], parts
        return self._open
