"""Columns of a foreign trainer: which role each has, and how their texts are cut into chunks of similar length."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from embedloss.encoders import plan_chunks
from embedloss.errors import EmbedlossError
from embedloss.formats import DataFormat, get_format
from embedloss.spec import LossSpec

Features = Mapping[str, Any]
# Tensors with one entry a token; with any other tensor a column is not cut.
_TOKENS = ("input_ids", "attention_mask", "token_type_ids")


# -- roles -----------------------------------------------------------------------------------------------------------------
def roles_of_columns(form: DataFormat, columns: int) -> tuple[str, ...] | None:
    """One role a column, the last one several times where it takes lists; None if the format has another number."""
    roles = form.roles
    if roles[-1] in form.lists and columns > len(roles):
        return (*roles, *[roles[-1]] * (columns - len(roles)))
    return roles if columns == len(roles) else None


def find_format(spec: LossSpec, columns: int, labelled: bool, roles: Sequence[str] | None = None) -> DataFormat:
    """The format of a foreign data set, by the number of its text columns and whether it has labels.

    Args:
        spec: of the loss.
        columns: number of text columns.
        labelled: whether there are labels.
        roles: one role a column, where the number of columns does not decide.

    Raises:
        EmbedlossError: E101, the loss takes no such data, or roles are needed.
    """
    if roles is not None and len(roles) != columns:
        raise EmbedlossError("E101", f"there are {columns} text columns but {len(roles)} roles ({', '.join(roles)}).")
    formats = spec.data_formats()
    if spec.any_format and not formats:
        formats, labelled = tuple(get_format(name) for name in ("single", "pairs", "triplets", "n-tuples")), False
    by_columns = [f for f in formats if roles_of_columns(f, columns) is not None]
    fits = [f for f in by_columns if bool(f.label) == labelled]
    if roles is not None:
        fits = [f for f in fits if set(f.roles) == set(roles)]
    fits = [f for f in fits if len(f.roles) == columns and not f.lists] or fits
    found = f"{columns} text column{'s' * (columns > 1)} and {'a' if labelled else 'no'} label"
    takes = "; ".join(f"{f.name} ({', '.join(f.roles)}{', label' if f.label else ''})" for f in formats)
    if not fits:
        extra = ""
        if by_columns and labelled:
            extra = " Leave the label out: dataset.remove_columns('label')."
        elif roles is not None:
            extra = f" The roles given are {', '.join(roles)}."
        raise EmbedlossError("E101", f"'{spec.name}' cannot be trained on {found}. It takes {takes}.{extra}")
    if roles is None and len({f.roles for f in fits}) > 1:
        raise EmbedlossError(
            "E101",
            f"'{spec.name}' takes {found} in several ways: {takes}. Say which with roles=[...], such as "
            f"roles={list(roles_of_columns(fits[0], columns) or ())}.",
        )
    return fits[0]


# -- chunks ----------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Chunk:
    """Features of some texts, and the place of each among all texts of the batch."""

    features: dict[str, Any]
    places: list[int]


def count_texts(features: Features) -> int:
    """Number of texts in a column."""
    if "cu_seq_lens_q" in features:  # packed without padding
        return len(features["cu_seq_lens_q"]) - 1
    if "offsets" in features:
        return len(features["offsets"])
    first = features.get("input_ids")
    tensor = first if first is not None else next(v for v in features.values() if isinstance(v, Tensor))
    return len(tensor)


def is_plain(features: Features) -> bool:
    """Whether a column is padded token ids and nothing else, so that its padding can be cut off and made anew."""
    ids, mask = features.get("input_ids"), features.get("attention_mask")
    if not isinstance(ids, Tensor) or not isinstance(mask, Tensor) or ids.ndim != 2 or mask.shape != ids.shape:
        return False
    others = [k for k, v in features.items() if isinstance(v, Tensor) and k not in _TOKENS and k != "prompt_length"]
    return not others and "cu_seq_lens_q" not in features


def prompt_length(features: Features) -> int:
    """Tokens of the prompt at the beginning of each text of a column."""
    value = features.get("prompt_length")
    if isinstance(value, Tensor):
        return int(value.reshape(-1)[0])
    return int(value or 0)


def token_ids(features: Features) -> list[list[int]] | None:
    """The tokens of each text of a column without padding; None where they are not known."""
    if "offsets" in features:
        ids, offsets = features["input_ids"].tolist(), [*features["offsets"].tolist(), len(features["input_ids"])]
        return [ids[begin:end] for begin, end in itertools.pairwise(offsets)]
    if not is_plain(features):
        return None
    pairs = zip(features["input_ids"].tolist(), features["attention_mask"].tolist(), strict=True)
    return [[i for i, m in zip(ids, mask, strict=True) if m] for ids, mask in pairs]


def make_chunks(columns: Sequence[Features], chunk_tokens: int | None, padding_id: int) -> list[Chunk]:
    """All texts of all columns in chunks; texts are counted column after column.

    Args:
        columns: as a collator of sentence-transformers makes them.
        chunk_tokens: padded tokens of a chunk; None makes one chunk a column.
        padding_id: what `input_ids` is padded with.

    Returns:
        Chunks of texts of similar length from any column. A column that is no plain token ids is a chunk of its own, and
        texts of different prompts or tasks never meet in one.
    """
    begins = [sum(count_texts(c) for c in columns[:i]) for i in range(len(columns))]
    places = [range(begin, begin + count_texts(c)) for begin, c in zip(begins, columns, strict=True)]
    chunks: list[Chunk] = []
    groups: dict[Any, list[int]] = {}
    for number, column in enumerate(columns):
        if chunk_tokens is None or not is_plain(column):
            chunks.append(Chunk(dict(column), list(places[number])))
            continue
        extras = {k: v for k, v in column.items() if k not in _TOKENS and k != "prompt_length"}
        key = (prompt_length(column), _left(column), tuple(k for k in _TOKENS if k in column), repr(sorted(extras.items())))
        groups.setdefault(key, []).append(number)
    for (_, left, keys, _), numbers in groups.items():
        assert chunk_tokens is not None
        chunks += _cut(
            [columns[i] for i in numbers], [p for i in numbers for p in places[i]], keys, left, chunk_tokens, padding_id
        )
    return chunks


def _left(column: Features) -> bool:
    """Whether the padding comes before the tokens."""
    mask = column["attention_mask"]
    return bool((mask[:, 0] < mask[:, -1]).any())


def _cut(
    columns: Sequence[Features], places: list[int], keys: Sequence[str], left: bool, chunk_tokens: int, padding_id: int
) -> list[Chunk]:
    width = max(c["input_ids"].shape[1] for c in columns)

    def together(key: str) -> Tensor:
        value = padding_id if key == "input_ids" else 0
        parts = []
        for column in columns:
            missing = width - column[key].shape[1]
            parts.append(nn.functional.pad(column[key], (missing, 0) if left else (0, missing), value=value))
        return torch.cat(parts)

    tensors = {key: together(key) for key in keys}
    lengths = tensors["attention_mask"].sum(1).clamp(min=1).tolist()
    rest = {k: v for k, v in columns[0].items() if k not in _TOKENS}
    chunks = []
    for rows in plan_chunks(lengths, chunk_tokens):
        longest = max(lengths[i] for i in rows)
        index = torch.tensor(rows, device=tensors["input_ids"].device)
        cut = {k: v[index][:, width - longest :] if left else v[index][:, :longest] for k, v in tensors.items()}
        chunks.append(Chunk({**cut, **rest}, [places[i] for i in rows]))
    return chunks
