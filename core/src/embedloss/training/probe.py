"""A fixed sample of the training texts, embedded now and then: a collapse is seen on the same texts each time."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from embedloss.collate import Collator
from embedloss.formats import get_format
from embedloss.mixture import Mixture, MixtureCollator
from embedloss.similarity import unit
from embedloss.streaming import Streams

ROWS = 64  # of all data sets together
LEAST = 8  # rows from which on a spread says something


def spread(x: Tensor, y: Tensor | None = None) -> dict[str, float]:
    """How embeddings spread over the sphere.

    Args:
        x: (rows, dim).
        y: (rows, dim), texts that belong to x, for the alignment.

    Returns:
        similarity: mean cosine of different rows (1: all alike). rank: effective rank of the centred rows, exp of the
        entropy of their normalised singular values. uniformity: log mean exp(-2 |u - v|^2) over different rows.
        alignment: mean |x - y|^2 of unit rows, if y is given (Wang and Isola 2020, arXiv 2005.10242).
        Nothing for less than two rows, or values that are not finite.
    """
    rows = len(x)
    if rows < 2 or not bool(torch.isfinite(x).all()):
        return {}
    x = unit(x.detach().float())
    gram = x @ x.T
    off = ~torch.eye(rows, dtype=torch.bool, device=x.device)
    values = torch.linalg.svdvals(x - x.mean(0))
    share = values / values.sum().clamp(min=1e-12)
    found = {
        "similarity": gram[off].mean(),
        "rank": torch.exp(-(share * share.clamp(min=1e-12).log()).sum()),
        "uniformity": torch.log(torch.exp(-2 * (2 - 2 * gram[off])).mean()),
    }
    if y is not None:
        found["alignment"] = (x - unit(y.detach().float())).pow(2).sum(1).mean()
    return {name: float(value) for name, value in found.items()}


@dataclass(frozen=True)
class Probe:
    """Texts of one data set.

    Args:
        texts: of the first role, all different.
        partners: of the second role, row by row; empty where there is none, or it has several texts a row.
        prompts: of the two roles.
    """

    texts: Sequence[str]
    partners: Sequence[str]
    prompts: tuple[str, str]

    @classmethod
    def draw(cls, data: Any, format_name: str, prompts: Mapping[str, str], seed: int, rows: int = ROWS) -> Probe:
        """Some rows of a bound data set, the same ones for the same seed."""
        roles = get_format(format_name).roles
        order = random.Random(seed).sample(range(len(data)), min(len(data), 4 * rows))
        first: dict[str, Any] = {}
        for row in (data[i] for i in order):
            text = row[roles[0]] if isinstance(row[roles[0]], str) else row[roles[0]][0]
            first.setdefault(text, row)
        chosen = list(first.items())[:rows]
        partners = [row[roles[1]] for _, row in chosen] if len(roles) > 1 else []
        if any(not isinstance(text, str) for text in partners):
            partners = []
        second = prompts.get(roles[1], "") if len(roles) > 1 else ""
        return cls([text for text, _ in chosen], partners, (prompts.get(roles[0], ""), second))

    def measure(self, encoder: Any) -> dict[str, float]:
        """The spread of what the encoder makes of the texts now; nothing of the training is moved by it."""
        # Compiled layers run as they were written: a few texts are not worth compiling a second graph for.
        with torch.compiler.set_stance("force_eager"):
            x = encoder.encode(self.texts, prompt=self.prompts[0])
            y = encoder.encode(self.partners, prompt=self.prompts[1]) if self.partners else None
        return spread(torch.from_numpy(x), None if y is None else torch.from_numpy(y))


def probes(data: Any, collator: Collator | MixtureCollator, seed: int) -> dict[str, Probe]:
    """A probe of each data set by name ("" for the only one); none for pairs that a cross-encoder reads at once.

    Args:
        data: what the trainer draws batches from.
        collator: of the same run.
        seed: draws the rows.
    """
    parts: dict[str, Any] = {"": data}
    if isinstance(data, Mixture):
        parts = {name: part.rows for name, part in data.parts.items()}
    elif isinstance(data, Streams):
        tables = {name: (stream, stream.first.table.select(stream.columns)) for name, stream in data.parts.items()}
        parts = {name: stream.bound(table, range(table.num_rows)) for name, (stream, table) in tables.items()}
    collators = collator.collators if isinstance(collator, MixtureCollator) else {"": collator}
    rows = max(ROWS // len(parts), LEAST)
    found = {}
    for name, part in parts.items():
        own = collators[name]
        if own.kind == "bi-encoder":
            drawn = Probe.draw(part, own.format_name, own.prompts, seed, rows)
            if len(drawn.texts) >= LEAST:
                found[name] = drawn
    return found
