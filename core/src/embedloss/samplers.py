"""Batch samplers: seeded, resumable, and the same on every process.

A sampler makes the batches of *all* processes and yields this process's share of each. No row is lost: a remainder that is too
small for a batch joins the batch before it. An item is `epoch * rows + row`, so that data-loader workers know the epoch.
Every epoch has as many batches as the first, because schedules and resuming count on it.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import pyarrow.compute as pc
from torch.utils.data import Sampler

from embedloss.distributed import world
from embedloss.errors import EmbedlossError


def text_id(text: str) -> int:
    """A 63-bit number, equal for equal texts."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


class JointBatches(Protocol):
    """An order of batches of one's own, for `Trainer(batch_sampler=...)`: an object with these three methods."""

    def set_epoch(self, epoch: int) -> None:
        """Called before every epoch, with 0, 1, 2, ...; the order may depend on nothing else but a seed."""

    def __len__(self) -> int:
        """Number of batches, the same in every epoch."""

    def __iter__(self) -> Iterator[Sequence[int]]:
        """Row numbers of each batch, those of all processes together."""


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
        self.length: int | None = None
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

    def finished(self, made: list[np.ndarray[Any, Any]], size: int) -> list[np.ndarray[Any, Any]]:
        """The joint batches, remainder joined or dropped."""
        if self.drop_last:
            return [b for b in made if len(b) >= size]
        if len(made) > 1 and len(made[-1]) < 2 * self.processes:
            return [*made[:-2], np.concatenate(made[-2:])]
        return made

    def spread(self, made: list[np.ndarray[Any, Any]], extra: list[np.ndarray[Any, Any]]) -> None:
        """Give the rows of batches that are too many to the smallest of the others."""
        for rows in extra:
            smallest = min(range(len(made)), key=lambda i: len(made[i]))
            made[smallest] = np.concatenate([made[smallest], rows])

    def halves(self, batch: np.ndarray[Any, Any]) -> list[np.ndarray[Any, Any]]:
        """A batch in two, or nothing where it cannot be divided."""
        return np.array_split(batch, 2) if len(batch) >= 2 * self.processes else []

    def _fit(self, made: list[np.ndarray[Any, Any]], length: int) -> list[np.ndarray[Any, Any]]:
        """As many batches as the first epoch has."""
        made = list(made)
        extra = []
        while len(made) > length:
            extra.append(made.pop(min(range(len(made)), key=lambda i: len(made[i]))))
        if extra and not self.drop_last:
            self.spread(made, extra)
        while len(made) < length:
            largest = max(range(len(made)), key=lambda i: len(made[i]))
            parts = self.halves(made[largest])
            if parts and not self.drop_last:
                made[largest : largest + 1] = parts
            else:  # rather a batch twice than an epoch that ends early
                made.append(made[int(self.rng().integers(len(made)))])
        return made

    def batches(self) -> list[np.ndarray[Any, Any]]:
        """The joint batches of this epoch."""
        if self._cached is None or self._cached[0] != self.epoch:
            length = len(self)
            if self._cached is None or self._cached[0] != self.epoch:
                self._cached = (self.epoch, self._fit(self._planned(), length))
        return self._cached[1]

    def _planned(self) -> list[np.ndarray[Any, Any]]:
        size = self.batch_size * self.processes
        made = self.finished(self.joint_batches(size), size)
        if not made:
            raise EmbedlossError(
                "E106", f"{self.rows} rows make no batch of {size} on {self.processes} process(es); type a smaller batch size."
            )
        return made

    @property
    def left_out(self) -> int:
        """Rows that this epoch does not use (0 unless `drop_last`, or duplicates over several processes)."""
        return max(self.rows - sum(len(b) for b in self.batches()), 0)

    @property
    def short(self) -> int:
        """Batches with less than half of the rows asked for."""
        return sum(2 * len(b) < self.batch_size * self.processes for b in self.batches())

    def __len__(self) -> int:
        if self.length is None:
            epoch, self.epoch = self.epoch, 0
            try:
                made = self._planned()
            finally:
                self.epoch = epoch
            self.length, self._cached = len(made), (0, made)
        return self.length

    def shares(self, begin: int = 0) -> Iterator[list[int]]:
        """The rows of this process, of every batch from number `begin` on."""
        for batch in self.batches()[begin:]:
            yield np.array_split(batch, self.processes)[self.rank].tolist()

    def __iter__(self) -> Iterator[list[int]]:
        for rows in self.shares():
            yield [row + self.epoch * self.rows for row in rows]


class RandomSampler(EpochSampler):
    """Rows in random order."""


class RowTexts:
    """The numbers of the texts of every row, each once a row.

    Args:
        numbers: (texts,) from 0, row after row.
        starts: (rows + 1,) where each row begins, and the end.
    """

    BLOCK = 1 << 16  # rows that are Python objects at a time

    def __init__(self, numbers: np.ndarray[Any, Any], starts: np.ndarray[Any, Any]) -> None:
        self.numbers, self.starts = numbers, starts

    @classmethod
    def of(cls, texts: Sequence[Sequence[int]]) -> RowTexts:
        """From a list of any ids for every row."""
        flat = np.fromiter((text for row in texts for text in row), dtype=np.int64)
        owners = np.repeat(np.arange(len(texts)), [len(row) for row in texts])
        return cls.owned(np.unique(flat, return_inverse=True)[1], owners, len(texts))

    @classmethod
    def owned(cls, numbers: np.ndarray[Any, Any], owners: np.ndarray[Any, Any], rows: int) -> RowTexts:
        """From numbers in any order, each with its row."""
        many = int(numbers.max(initial=0)) + 1
        keys = np.unique(owners * many + numbers)
        return cls(keys % many, np.searchsorted(keys, np.arange(rows + 1) * many))

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, row: int) -> list[int]:
        found: list[int] = self.numbers[self.starts[row] : self.starts[row + 1]].tolist()
        return found

    def owners(self) -> np.ndarray[Any, Any]:
        """The row of each text, (texts,)."""
        return np.repeat(np.arange(len(self)), np.diff(self.starts))

    def read(self, rows: np.ndarray[Any, Any]) -> Iterator[tuple[int, list[int]]]:
        """Each of these rows with its texts."""
        for begin in range(0, len(rows), self.BLOCK):
            block = rows[begin : begin + self.BLOCK]
            counts = self.starts[block + 1] - self.starts[block]
            cuts = np.concatenate([[0], counts.cumsum()])
            places = np.arange(cuts[-1]) + np.repeat(self.starts[block] - cuts[:-1], counts)
            texts, ends = self.numbers[places].tolist(), cuts.tolist()
            for row, a, b in zip(block.tolist(), ends, ends[1:], strict=False):
                yield row, texts[a:b]


class NoDuplicatesSampler(EpochSampler):
    """No text occurs twice in a joint batch, so no in-batch negative is secretly a positive.

    Each row goes to the first batch that has room and comes after every batch that holds one of its texts: one pass, O(1) a
    text. A text that occurs more often than there are full batches makes more batches that are smaller, down to half of the
    size; beyond that, batches with hardly any row besides it remain, and `short` counts them.

    Args:
        texts: the text ids of every row.
    """

    def __init__(
        self, texts: RowTexts | Sequence[Sequence[int]], batch_size: int, seed: int = 0, drop_last: bool = False
    ) -> None:
        super().__init__(len(texts), batch_size, seed, drop_last)
        self.texts = texts if isinstance(texts, RowTexts) else RowTexts.of(texts)
        counts = np.bincount(self.texts.numbers)
        self.most = int(counts.max(initial=0))
        limit = max(self.rows / (4 * batch_size * self.processes), 1)
        self.first = np.zeros(self.rows, dtype=bool)
        self.first[self.texts.owners()[(counts > limit)[self.texts.numbers]]] = True

    def joint_batches(self, size: int) -> list[np.ndarray[Any, Any]]:
        """As the base, without duplicates."""
        made: list[Any] = [[]]  # lists; arrays where they are full
        room = 0  # the first batch that is not full
        used = array("q", [-1]) * (int(self.texts.numbers.max(initial=-1)) + 1)  # text -> the last batch that holds it
        if self.most * size > self.rows and 2 * self.rows >= self.most * size:
            size = -(-self.rows // self.most)
        rng = self.rng()
        order = rng.permutation(self.rows)
        # Rows with texts of many rows come first: placed late, they would fill batches of their own at the end.
        order = np.concatenate([order[self.first[order]], order[~self.first[order]]])
        for row, texts in self.texts.read(order):
            at = room
            for text in texts:
                if used[text] >= at:
                    at = used[text] + 1
            while at < len(made) and len(made[at]) >= size:
                at += 1
            if at == len(made):
                made.append([])
            made[at].append(row)
            if len(made[at]) == size:
                made[at] = np.array(made[at])
            for text in texts:
                used[text] = at
            while room < len(made) and len(made[room]) >= size:
                room += 1
            if room == len(made):
                made.append([])
        return [np.asarray(made[i]) for i in rng.permutation(len(made)) if len(made[i])]

    def finished(self, made: list[np.ndarray[Any, Any]], size: int) -> list[np.ndarray[Any, Any]]:
        """The joint batches; a short batch stays alone, because joining it could bring a duplicate back."""
        if self.drop_last:
            made = [b for b in made if len(b) >= size]
        # Every process needs a row; `left_out` says how many rows that costs.
        return [b for b in made if len(b) >= self.processes] if self.processes > 1 else made

    def spread(self, made: list[np.ndarray[Any, Any]], extra: list[np.ndarray[Any, Any]]) -> None:
        """One by one to the smallest batch that holds none of a row's texts; a row that fits nowhere is left out."""
        order = sorted(range(len(made)), key=lambda i: len(made[i]))
        held: dict[int, set[int]] = {}
        for row in (row for rows in extra for row in rows.tolist()):
            for place in order:
                if place not in held:
                    held[place] = {text for other in made[place].tolist() for text in self.texts[other]}
                if held[place].isdisjoint(self.texts[row]):
                    made[place] = np.append(made[place], row)
                    held[place].update(self.texts[row])
                    break


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

    def halves(self, batch: np.ndarray[Any, Any]) -> list[np.ndarray[Any, Any]]:
        """Nothing: half a batch may hold one class only."""
        return []

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


class LengthGroupedSampler(EpochSampler):
    """Rows of similar length in a batch, so that less of it is padding.

    Rows are drawn at random into groups of 50 batches, sorted by length within the group, and cut; the batches come in random
    order, the longest first, because if it fits into memory all do.

    Args:
        lengths: of every row, in any unit.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int = 0, drop_last: bool = False) -> None:
        super().__init__(len(lengths), batch_size, seed, drop_last)
        self.lengths = np.asarray(lengths)

    def joint_batches(self, size: int) -> list[np.ndarray[Any, Any]]:
        """As the base, of similar lengths."""
        rng = self.rng()
        order = rng.permutation(self.rows)
        made = []
        for begin in range(0, self.rows, 50 * size):
            group = order[begin : begin + 50 * size]
            group = group[np.argsort(-self.lengths[group], kind="stable")]
            made += [group[i : i + size] for i in range(0, len(group), size)]
        whole = [b for b in made if len(b) == size]
        longest = max(range(len(whole)), key=lambda i: int(self.lengths[whole[i][0]]), default=0)
        places = [int(i) for i in rng.permutation(len(whole)) if i != longest]
        return [*whole[longest : longest + 1], *(whole[i] for i in places), *(b for b in made if len(b) < size)]


class OwnSampler(EpochSampler):
    """Joint batches that an object of somebody else's makes (`JointBatches`), shared out over the processes.

    Args:
        own: the object.
        rows: number of rows of the data set.

    Raises:
        EmbedlossError: E401 for an object without the three methods, and, when its batches are drawn, for a row that does not
            exist, a batch with fewer rows than processes, or another number of batches than it says.
    """

    def __init__(self, own: Any, rows: int) -> None:
        missing = [name for name in ("set_epoch", "__len__", "__iter__") if not callable(getattr(own, name, None))]
        if missing:
            raise EmbedlossError(
                "E401", f"the batch sampler {type(own).__name__} has no {' and no '.join(missing)}; see embedloss.samplers."
            )
        super().__init__(rows, 1)
        self.own = own

    def __len__(self) -> int:
        return len(self.own)

    @property
    def short(self) -> int:
        """0: how many rows a batch has is up to the object."""
        return 0

    def batches(self) -> list[np.ndarray[Any, Any]]:
        """What the object gives for this epoch, checked."""
        if self._cached is None or self._cached[0] != self.epoch:
            self.own.set_epoch(self.epoch)
            made = [np.asarray(list(batch), dtype=np.int64) for batch in self.own]
            name = type(self.own).__name__
            if len(made) != len(self.own):
                raise EmbedlossError("E401", f"{name} says {len(self.own)} batches and gave {len(made)} in epoch {self.epoch}.")
            for number, batch in enumerate(made):
                if len(batch) < self.processes:
                    raise EmbedlossError(
                        "E401", f"{name}: batch {number} has {len(batch)} rows for {self.processes} process(es)."
                    )
                if batch.min() < 0 or batch.max() >= self.rows:
                    raise EmbedlossError("E401", f"{name}: batch {number} asks for a row outside 0 to {self.rows - 1}.")
            self._cached = (self.epoch, made)
        return self._cached[1]


def make_sampler(
    name: str, dataset: Any, roles: Sequence[str], batch_size: int, seed: int, drop_last: bool = False
) -> EpochSampler:
    """The batch sampler of that name over a bound data set (columns named by role, "label").

    Args:
        name: "random", "no-duplicates", "group-by-label" or "length-grouped".
        roles: the text roles whose duplicates and lengths matter. Rows with equal "id" are duplicates as well.
    """
    if name == "random":
        return RandomSampler(len(dataset), batch_size, seed, drop_last)
    if name == "group-by-label":
        if "label" not in dataset.column_names:
            raise EmbedlossError("E401", "the sampler group-by-label needs data with a class label; type --sampler auto.")
        return GroupByLabelSampler(dataset["label"][:], batch_size, seed, drop_last)
    if name == "no-duplicates":
        ids = "id" if "id" in dataset.column_names else None
        return NoDuplicatesSampler(_text_numbers(dataset, roles, ids), batch_size, seed, drop_last)
    if name == "length-grouped":
        lengths = np.zeros(len(dataset), dtype=np.int64)
        for role in roles:
            lengths += [len(v) if isinstance(v, str) else sum(map(len, v)) for v in dataset[role][:]]
        return LengthGroupedSampler(lengths.tolist(), batch_size, seed, drop_last)
    raise EmbedlossError("E401", f"unknown sampler '{name}'. Samplers: random, no-duplicates, group-by-label, length-grouped.")


def _text_numbers(dataset: Any, roles: Sequence[str], ids: str | None) -> RowTexts:
    """A number for every text of every row, equal for equal texts; ids get numbers of their own.

    Goes through hashes of 64 bits, so that neither all texts nor all distinct ones are held.
    """
    from embedloss.check import is_list, table_of

    table = table_of(dataset)
    hashes, owners = [], []
    begin = 0
    for part in table.select([*roles, *([] if ids is None else [ids])]).to_batches(max_chunksize=RowTexts.BLOCK):
        for name in part.schema.names:
            values, rows = part.column(name), np.arange(part.num_rows)
            if is_list(values.type):
                values, rows = pc.list_flatten(values), pc.list_parent_indices(values).to_numpy()
            keys = ((name, value) for value in values.to_pylist()) if name == ids else values.to_pylist()
            hashes.append(np.fromiter(map(hash, keys), np.int64, len(values)))
            owners.append(begin + rows)
        begin += part.num_rows
    numbers = np.unique(np.concatenate(hashes), return_inverse=True)[1]
    return RowTexts.owned(numbers, np.concatenate(owners), table.num_rows)
