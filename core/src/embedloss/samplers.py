"""Batch samplers: seeded, resumable, and the same on every process.

A sampler makes the batches of *all* processes and yields this process's share of each. No row is lost: a remainder that is too
small for a batch joins the batch before it. An item is `epoch * rows + row`, so that data-loader workers know the epoch.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from torch.utils.data import Sampler

from embedloss.distributed import world
from embedloss.errors import EmbedlossError


def text_id(text: str) -> int:
    """A 63-bit number, equal for equal texts."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


class EpochSampler(Sampler[list[int]]):
    """Base: rows in a new order each epoch, cut into batches of `batch_size` rows a process.

    Args:
        rows: number of rows of the data set.
        batch_size: rows a batch on each process.
        seed: with the epoch it decides the order.
        drop_last: leave out the rows that do not fill a batch.
    """

    def __init__(self, rows: int, batch_size: int, seed: int = 0, drop_last: bool = False) -> None:
        if rows < 1 or batch_size < 1:
            raise EmbedlossError("E106", f"cannot make batches of {batch_size} from {rows} rows.")
        self.rows, self.batch_size, self.seed, self.drop_last = rows, batch_size, seed, drop_last
        self.rank, self.processes = world()
        self.epoch = 0
        self._cached: tuple[int, list[np.ndarray[Any, Any]]] | None = None

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose batches are drawn next."""
        self.epoch = int(epoch)

    def rng(self) -> np.random.Generator:
        """The random generator of this epoch."""
        return np.random.default_rng([self.seed, self.epoch])

    def joint_batches(self, size: int) -> list[np.ndarray[Any, Any]]:
        """Row numbers of every joint batch of the epoch, `size` rows each where possible."""
        order = self.rng().permutation(self.rows)
        return [order[begin : begin + size] for begin in range(0, self.rows, size)]

    def batches(self) -> list[np.ndarray[Any, Any]]:
        """The joint batches of this epoch, remainder joined or dropped."""
        if self._cached is None or self._cached[0] != self.epoch:
            size = self.batch_size * self.processes
            made = self.joint_batches(size)
            if self.drop_last:
                made = [b for b in made if len(b) >= size]
            elif len(made) > 1 and len(made[-1]) < 2 * self.processes:
                made = [*made[:-2], np.concatenate(made[-2:])]
            self._cached = (self.epoch, made)
        return self._cached[1]

    @property
    def left_out(self) -> int:
        """Rows that this epoch does not use (0 unless `drop_last`, or duplicates over several processes)."""
        return self.rows - sum(len(b) for b in self.batches())

    @property
    def short(self) -> int:
        """Batches with less than half of the rows asked for."""
        return sum(2 * len(b) < self.batch_size * self.processes for b in self.batches())

    def __len__(self) -> int:
        return len(self.batches())

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self.batches():
            share = np.array_split(batch, self.processes)[self.rank]
            yield (share + self.epoch * self.rows).tolist()


class RandomSampler(EpochSampler):
    """Rows in random order."""


class NoDuplicatesSampler(EpochSampler):
    """No text occurs twice in a joint batch, so no in-batch negative is secretly a positive.

    Each row goes to the first batch that has room and comes after every batch that holds one of its texts: one pass, O(1) a
    text. A text that occurs more often than there are full batches makes more batches that are smaller, down to half of the
    size; beyond that, batches with hardly any row besides it remain, and `short` counts them.

    Args:
        texts: the text ids of every row.
    """

    def __init__(self, texts: Sequence[Sequence[int]], batch_size: int, seed: int = 0, drop_last: bool = False) -> None:
        super().__init__(len(texts), batch_size, seed, drop_last)
        self.texts = texts
        counts = Counter(text for row in texts for text in row)
        self.most = max(counts.values(), default=0)
        limit = max(self.rows / (4 * batch_size * self.processes), 1)
        frequent = {text for text, count in counts.items() if count > limit}
        self.first = np.array([any(text in frequent for text in row) for row in texts])

    def joint_batches(self, size: int) -> list[np.ndarray[Any, Any]]:
        """As the base, without duplicates."""
        made: list[list[int]] = [[]]
        room = 0  # the first batch that is not full
        used: dict[int, int] = {}  # text -> the last batch that holds it
        if self.most * size > self.rows and 2 * self.rows >= self.most * size:
            size = -(-self.rows // self.most)
        rng = self.rng()
        order = rng.permutation(self.rows)
        # Rows with texts of many rows come first: placed late, they would fill batches of their own at the end.
        for row in [*order[self.first[order]].tolist(), *order[~self.first[order]].tolist()]:
            texts = self.texts[row]
            at = room
            for text in texts:
                last = used.get(text)
                if last is not None and last >= at:
                    at = last + 1
            while at < len(made) and len(made[at]) >= size:
                at += 1
            if at == len(made):
                made.append([])
            made[at].append(row)
            for text in texts:
                used[text] = at
            while room < len(made) and len(made[room]) >= size:
                room += 1
            if room == len(made):
                made.append([])
        return [np.asarray(made[i]) for i in rng.permutation(len(made)) if made[i]]

    def batches(self) -> list[np.ndarray[Any, Any]]:
        """The joint batches of this epoch; a short batch stays alone, because joining it could bring a duplicate back."""
        if self._cached is None or self._cached[0] != self.epoch:
            size = self.batch_size * self.processes
            made = self.joint_batches(size)
            if self.drop_last:
                made = [b for b in made if len(b) >= size]
            if self.processes > 1:  # every process needs a row; `left_out` says how many rows that costs
                made = [b for b in made if len(b) >= self.processes]
            self._cached = (self.epoch, made)
        return self._cached[1]


class GroupByLabelSampler(EpochSampler):
    """At least two classes, and at least two rows of each class, in every joint batch.

    Each class is cut into groups of two (one of three where the class is odd); groups are dealt to batches at random, then a
    batch of a single class trades a group with another. E106 where the data cannot satisfy it.

    Args:
        labels: the class of every row.
    """

    def __init__(self, labels: Sequence[Any], batch_size: int, seed: int = 0, drop_last: bool = False) -> None:
        super().__init__(len(labels), batch_size, seed, drop_last)
        if batch_size * self.processes < 4:
            raise EmbedlossError(
                "E106", f"batches of {batch_size} rows cannot hold two classes of two rows; type --batch-size 4 or more."
            )
        values, inverse, counts = np.unique(np.asarray(labels), return_inverse=True, return_counts=True)
        alone = [str(v) for v, c in zip(values, counts, strict=True) if c < 2]
        if alone:
            raise EmbedlossError(
                "E106",
                f"{len(alone)} class(es) have one row only ({', '.join(alone[:5])}); this loss needs two. Remove these rows.",
            )
        if len(values) < 2:
            raise EmbedlossError("E106", f"all rows have the class {values[0]}; this loss needs at least two classes.")
        order = np.argsort(inverse, kind="stable")
        self.classes = np.split(order, np.cumsum(counts)[:-1])

    def joint_batches(self, size: int) -> list[np.ndarray[Any, Any]]:
        """As the base, by groups."""
        rng = self.rng()
        groups: list[tuple[int, np.ndarray[Any, Any]]] = []
        for number, rows in enumerate(self.classes):
            shuffled = rng.permutation(rows)
            groups += [(number, part) for part in np.array_split(shuffled, len(rows) // 2)]
        groups = [groups[i] for i in rng.permutation(len(groups))]
        made: list[list[tuple[int, np.ndarray[Any, Any]]]] = [[]]
        filled = 0
        for group in groups:
            if filled + len(group[1]) > size and made[-1]:
                made.append([])
                filled = 0
            made[-1].append(group)
            filled += len(group[1])
        self._mix(made)
        return [np.concatenate([rows for _, rows in batch]) for batch in made]

    def _mix(self, made: list[list[tuple[int, np.ndarray[Any, Any]]]]) -> None:
        for i, batch in enumerate(made):
            classes = {number for number, _ in batch}
            if len(classes) > 1 and len(batch) > 1:
                continue
            only = next(iter(classes))
            for j, other in enumerate(made):
                place = next((k for k, (number, _) in enumerate(other) if number != only), None)
                remaining = {n for k, (n, _) in enumerate(other) if k != place} | {only}
                if j == i or place is None or len(remaining) < 2:
                    continue
                if len(batch) > 1:
                    batch[-1], other[place] = other[place], batch[-1]
                else:  # a single group left over at the end: it joins the other batch
                    other.extend(batch)
                    batch.clear()
                break
            else:
                share = max(len(rows) for rows in self.classes) / self.rows
                raise EmbedlossError(
                    "E106",
                    f"one class has {share:.0%} of the rows, so not every batch of {self.batch_size} can hold two classes. "
                    "Use a larger --batch-size, or remove rows of that class.",
                )
        made[:] = [batch for batch in made if batch]


def make_sampler(
    name: str, dataset: Any, roles: Sequence[str], batch_size: int, seed: int, drop_last: bool = False
) -> EpochSampler:
    """The batch sampler of that name over a bound data set (columns named by role, "label").

    Args:
        name: "random", "no-duplicates" or "group-by-label".
        roles: the text roles whose duplicates matter.
    """
    if name == "random":
        return RandomSampler(len(dataset), batch_size, seed, drop_last)
    if name == "group-by-label":
        return GroupByLabelSampler(dataset["label"][:], batch_size, seed, drop_last)
    if name == "no-duplicates":
        columns = [dataset[role][:] for role in roles]
        ids: list[list[int]] = []
        known: dict[str, int] = {}
        for values in zip(*columns, strict=True):
            texts = [t for value in values for t in ([value] if isinstance(value, str) else value)]
            ids.append(list({known.setdefault(text, len(known)) for text in texts}))
        return NoDuplicatesSampler(ids, batch_size, seed, drop_last)
    raise EmbedlossError("E401", f"unknown sampler '{name}'. Samplers: random, no-duplicates, group-by-label.")
