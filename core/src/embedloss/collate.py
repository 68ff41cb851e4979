"""Rows -> one batch: roles in order, texts tokenised, sorted by length and cut into chunks of bounded tokens.

Runs in data-loader workers; holds tokenizers and no weights. A batch is a plain nested dict of tensors, so that the trainer's
device handling works on it.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from embedloss.binding import weightless
from embedloss.encoders import plan_chunks, training_chunk
from embedloss.encoders.token_cache import TokenCache
from embedloss.formats import get_format
from embedloss.loss import Loss, Row
from embedloss.samplers import text_id

Batch = dict[str, Any]


def labels_tensor(values: Sequence[Any], kind: str) -> Tensor:
    """Labels of a batch as one tensor: integers for classes and 0/1, float32 else; per-candidate labels padded with 0."""
    if kind in ("class", "binary") and not isinstance(values[0], (list, tuple)):
        if all(isinstance(v, (bool, int)) or float(v).is_integer() for v in values):
            return torch.tensor([int(v) for v in values])
        return torch.tensor(values, dtype=torch.float32)
    if isinstance(values[0], (list, tuple)) and values[0] and not isinstance(values[0][0], (list, tuple)):
        width = max(len(v) for v in values)
        return torch.tensor([[*v, *[0.0] * (width - len(v))] for v in values], dtype=torch.float32)
    return torch.tensor(values, dtype=torch.float32)


@dataclass
class Keyed:
    """A data set whose items are asked for by `epoch * rows + row`; each row carries "_row" and "_epoch"."""

    dataset: Any
    source: str = ""

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitems__(self, keys: Sequence[int]) -> list[Row]:
        """The rows of one batch, read at once."""
        count = len(self.dataset)
        columns = self.dataset[[key % count for key in keys]]
        return [
            {**{name: values[i] for name, values in columns.items()}, "_row": key % count, "_epoch": key // count}
            for i, key in enumerate(keys)
        ]

    def __getitem__(self, key: int) -> Row:
        """One row."""
        return self.__getitems__([key])[0]


@dataclass
class Collator:
    """Makes batches for the training step.

    Args:
        processor: the encoder's `TextProcessor`.
        loss: for its `transform` and its requirements.
        format_name: the format of the rows, e.g. "pairs+score".
        chunk_tokens: padded tokens a chunk may hold.
        prompts: role -> text put before every text of that role.
        kind: "bi-encoder" or "cross-encoder".
        guides: processor of each guide and its prompt, or the `GuideCache` with its embeddings; guides see the texts without
            the student's prompts.
        seed: for the loss's `transform`.
        source: name of the data set, for messages.
        share: encode equal texts of a batch once. Right for an encoder without dropout only; None lets the trainer decide.
        cache: keeps tokens across batches.
    """

    processor: Any
    loss: Loss
    format_name: str
    chunk_tokens: int = field(default_factory=training_chunk)
    prompts: Mapping[str, str] = field(default_factory=dict)
    kind: str = "bi-encoder"
    guides: Mapping[Any, Any] = field(default_factory=dict)
    seed: int = 0
    source: str = ""
    share: bool | None = None
    cache: TokenCache = field(default_factory=TokenCache, repr=False)

    def __call__(self, rows: list[Row]) -> Batch:
        """The batch of these rows."""
        name = self.format_name
        keys = ",".join(str(row.get("_row", i)) for i, row in enumerate(rows))
        rng = random.Random(f"{self.seed}/{rows[0].get('_epoch', 0)}/{keys}")
        changed, name = self.loss.transform(rows, name, rng)
        fmt = get_format(name)
        batch: Batch = {"count": len(changed), "format": name, "keys": [row.get("_row", i) for i, row in enumerate(rows)]}
        if "label" in changed[0] and changed[0]["label"] is not None:
            batch["label"] = labels_tensor([row["label"] for row in changed], fmt.label or "score")
        if "id" in changed[0]:
            batch["row_ids"] = torch.tensor([text_id(str(row["id"])) for row in changed])
        if "weight" in changed[0]:
            if not self.loss.spec.row_weights:
                raise weightless(self.loss.spec.name, "weight")
            batch["row_weights"] = torch.tensor([float(row["weight"]) for row in changed])
        if self.kind == "cross-encoder":
            self._pairs(batch, changed, fmt.roles)
            return batch
        tokens = self.loss.requires().tokens
        layout: dict[str, tuple[int, int]] = {}
        owners: dict[str, Tensor | None] = {}
        texts: list[str] = []
        prompts: list[str] = []
        for role in fmt.roles:
            values = [row[role] for row in changed]
            if role in tokens:
                batch.setdefault("tokens", {})[role] = self._token_ids(values)
                continue
            begin = len(texts)
            if any(not isinstance(v, str) for v in values):
                values = [[v] if isinstance(v, str) else list(v) for v in values]
                counts = torch.tensor([len(v) for v in values])
                owners[role] = torch.arange(len(values)).repeat_interleave(counts)
                values = [text for value in values for text in value]
            else:
                owners[role] = None
            texts += values
            prompts += [self.prompts.get(role, "")] * len(values)
            layout[role] = (begin, len(texts))
        batch.update(layout=layout, rows=owners, text_ids=torch.tensor([text_id(t) for t in texts]))
        batch.update(self._chunks(self.processor, texts, prompts, bool(self.share)))
        batch["guides"] = [
            self._chunks(guide[0], texts, [guide[1]] * len(texts), share=True)
            if isinstance(guide, tuple)
            else {"embeddings": guide.lookup(texts)}
            for guide in self.guides.values()
        ]
        return batch

    def _chunks(self, processor: Any, texts: Sequence[str], prompts: Sequence[str], share: bool) -> dict[str, Any]:
        items: list[Any] = [None] * len(texts)
        for prompt in dict.fromkeys(prompts):
            places = [i for i, p in enumerate(prompts) if p == prompt]
            for i, item in zip(places, self.cache.tokenize(processor, [texts[i] for i in places], prompt), strict=True):
                items[i] = item
        return self._plan(processor, items, share)

    def _plan(self, processor: Any, items: Sequence[Any], share: bool) -> dict[str, Any]:
        if not getattr(processor, "chunked", True):
            return {"chunks": [processor.pad(items)], "place": torch.arange(len(items))}
        first: dict[Any, int] = {}  # place of each different text's first occurrence
        firsts = [first.setdefault(item.key if share else i, i) for i, item in enumerate(items)]
        number = {i: n for n, i in enumerate(first.values())}
        different = [items[i] for i in number]
        plan = plan_chunks([len(item) for item in different], self.chunk_tokens)
        row = torch.argsort(torch.tensor([i for chunk in plan for i in chunk]))
        return {
            "chunks": [processor.pad([different[i] for i in chunk]) for chunk in plan],
            "place": row[[number[i] for i in firsts]],
        }

    def _pairs(self, batch: Batch, rows: list[Row], roles: Sequence[str]) -> None:
        """Every row's first role against the texts of its other roles."""
        queries: list[str] = []
        documents: list[str] = []
        owners: list[int] = []
        for i, row in enumerate(rows):
            for role in roles[1:]:
                for text in [row[role]] if isinstance(row[role], str) else row[role]:
                    queries.append(row[roles[0]])
                    documents.append(text)
                    owners.append(i)
        batch["owners"] = torch.tensor(owners, dtype=torch.int64)
        items = self.processor.tokenize_pairs(queries, documents, self.prompts.get(roles[0], ""))
        batch.update(self._plan(self.processor, items, bool(self.share)))

    def _token_ids(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        features = self.processor.pad(self.processor.tokenize(texts, ""))
        mask = features.get("attention_mask")
        return features["input_ids"], torch.ones_like(features["input_ids"]) if mask is None else mask
