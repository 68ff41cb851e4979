"""Training on data that is read as it arrives: blocks of rows are checked, shuffled, cut into batches and forgotten.

The shuffle buffer is a block: `buffer` rows are read, the batch sampler plans them as it would plan a small data set, and what
makes no whole batch waits for the next block. A position is therefore where the block began, how many of its batches were
given, and the rows that waited; returning to it reads one block again and gives exactly the batches that would have come.

Every process reads the stream and takes its share of each joint batch, so no row is seen twice, every process has as many
batches, and the run is the same on any number of data-loader workers, which only tokenise.
"""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
from torch.utils.data import Sampler

from embedloss.binding import NOT_TEXTS, Binding
from embedloss.check import _Checker, bound_dataset, is_text, kind_of
from embedloss.chunks import _union
from embedloss.data import _array, _mixed
from embedloss.distributed import world
from embedloss.errors import EmbedlossError, naming
from embedloss.formats import get_format
from embedloss.loss import Row
from embedloss.mixing import Mix, shares
from embedloss.samplers import make_sampler, text_id
from embedloss.sources import RowSource, State, open_source
from embedloss.spec import LossSpec

BUFFER = 10_000  # rows of a block
KEPT = 4096  # positions kept for batches that workers have in hand


class FirstRows:
    """The first rows of a source: its columns are bound and checked before anything is trained.

    Args:
        source: as `sources.open_source` takes it.
        buffer: rows that are looked at, and later rows of a block.
    """

    def __init__(self, source: Any, buffer: int = BUFFER) -> None:
        self.source = open_source(source)
        self.buffer = buffer
        rows = list(islice(self.source.read(), buffer))
        if not rows:
            raise EmbedlossError("E103", f"{self.source.name} holds no rows.")
        if len(rows) < 2:
            raise EmbedlossError("E106", f"{self.source.name} holds one row; at least two are needed.")
        self.names = list(dict.fromkeys(name for row in rows for name in row))
        self.table = _table(rows, self.names, 0, self.source.name)

    def kinds(self) -> dict[str, str]:
        """Name -> kind of every column, as `check.column_kinds`."""
        return {column.name: kind_of(column.type) for column in self.table.schema}


@dataclass(frozen=True)
class Position:
    """Where a stream is: see the module's text.

    Args:
        turn: passes over the source that are done.
        row: rows of this pass before the block.
        source: the source's state before the block; None at its start.
        block: number of the block.
        batch: batches of the block that were given.
        waiting: (turn, row, blocks waited) and the row, of rows that wait.
    """

    turn: int = 0
    row: int = 0
    source: State | None = None
    block: int = 0
    batch: int = 0
    waiting: tuple[tuple[tuple[int, int, int], Row], ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {**vars(self), "waiting": [[list(tag), row] for tag, row in self.waiting]}

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Position:
        """From `to_json`."""
        waiting = tuple((tuple(tag), row) for tag, row in found["waiting"])
        return cls(**{**found, "waiting": waiting})


class Stream:
    """One source of rows, bound to a loss's roles.

    Args:
        first: the first rows.
        binding: their columns by role.
        spec: of the loss.
        sampler: "auto" (what the loss recommends), "random", "no-duplicates", "group-by-label" or "length-grouped", within
            a block.
        batch_size: rows a step on each process; by default the run's.
        weight: share of the steps, relative to the other streams.
    """

    def __init__(
        self,
        first: FirstRows,
        binding: Binding,
        spec: LossSpec,
        *,
        sampler: str = "auto",
        batch_size: int | None = None,
        weight: float | None = None,
    ) -> None:
        self.first, self.binding, self.spec = first, binding, spec
        self.source: RowSource = first.source
        self.kind = str(spec.sampler) if sampler == "auto" else sampler
        self.batch_size, self.weight = batch_size, weight
        used = [column for columns in binding.columns.values() for column in columns]
        self.columns = [*used, *(c for c in (binding.label, binding.id, binding.weight) if c)]
        self.types = {name: first.table.schema.field(name).type for name in self.columns}
        self.checker = _Checker(binding, spec, False, "random")
        self.lonely = False
        self._known = frozenset(first.names)
        self._reader: tuple[tuple[int, int], Iterator[Row]] | None = None
        self.classes: dict[str, int] | None = None
        label = binding.label
        self.compared = binding.format.name == "single+class" and spec.sampler == "group-by-label"
        if binding.format.label == "class" and label and is_text(self.types[label]) and not self.compared:
            names = first.table[label].drop_null().unique().to_pylist()
            self.classes = {name: i for i, name in enumerate(sorted(names))}

    @classmethod
    def of(cls, rows: Any, spec: LossSpec, format_name: str, buffer: int = BUFFER, **settings: Any) -> Stream:
        """A stream whose columns are called as the roles of a format, and "label"; checked like any other."""
        fmt = get_format(format_name)
        first = FirstRows(rows, buffer)
        wanted = [*fmt.roles, *(["label"] if fmt.label else [])]
        missing = [name for name in wanted if name not in first.names]
        if missing:
            found = ", ".join(first.names)
            raise EmbedlossError(
                "E102", f"{first.source.name} has no column '{missing[0]}'; '{fmt.name}' needs it. Found: {found}."
            )
        own_id = "id" if "id" in first.names else None
        binding = Binding(fmt, {role: (role,) for role in fmt.roles}, "label" if fmt.label else None, id=own_id)
        stream = cls(first, binding, spec, **settings)
        stream.checked(first.table.select(stream.columns), 0)
        return stream

    def num_classes(self) -> int | None:
        """Number of classes, where a class is an output of the loss's classifier."""
        label = self.binding.label
        if self.binding.format.label != "class" or label is None or self.compared:
            return None
        if self.classes is not None:
            return len(self.classes)
        return int(max(self.first.table[label].to_pylist())) + 1

    def checked(self, table: pa.Table, row: int) -> pa.Table:
        """Rows that were looked at as in `check`; E104 and E105 with their numbers in the source."""
        self.checker.report.rows = row
        self.checker.lists = self.checker.flat = 0
        self.checker.add(table)
        if self.checker.found:
            self.checker.finish().raise_if_faulty()
        return table

    def bound(self, table: pa.Table, numbers: Sequence[int]) -> Any:
        """A block under the names of the roles."""
        import datasets

        label = self.binding.label
        if label and self.binding.format.label == "class" and not self.binding.label_ignored:
            values = table[label].to_pylist()
            limit = self.num_classes()
            if is_text(table.schema.field(label).type):
                wrong = [] if self.classes is None else [i for i, v in enumerate(values) if v not in self.classes]
                values = [text_id(v) if self.classes is None else self.classes.get(v, -1) for v in values]
            else:
                wrong = [] if limit is None else [i for i, v in enumerate(values) if v >= limit]
            if wrong:
                shown = table[label][wrong[0]].as_py()
                raise EmbedlossError(
                    "E105",
                    f"column '{label}' of {self.source.name}, row {numbers[wrong[0]] + 1}: the class {shown!r} is not among "
                    f"the {limit} of the first {self.first.table.num_rows:,} rows, which the loss was made for.",
                )
            table = table.set_column(table.column_names.index(label), label, pa.array(values, pa.int64()))
        return bound_dataset(datasets.Dataset(table), self.binding)

    def block(self, at: Position) -> tuple[pa.Table, list[tuple[int, int, int]], Position]:
        """The rows of a block, (turn, row, blocks waited) of each, and the position after it without waiting rows."""
        waiting = [row for _, row in at.waiting]
        tags = [tag for tag, _ in at.waiting]
        if self._reader is None or self._reader[0] != (at.turn, at.row):
            self._reader = ((at.turn, at.row), self.source.read(at.source, at.turn))
        reader = self._reader[1]
        wanted = max(self.first.buffer - len(waiting), 1)
        rows = list(islice(reader, wanted))
        for number, row in enumerate(rows):
            if not row.keys() <= self._known:
                new = next(name for name in row if name not in self._known)
                raise EmbedlossError(
                    "E102",
                    f"{self.source.name}, row {at.row + number + 1} has the column '{new}', which none of the first "
                    f"{self.first.table.num_rows:,} rows has. Give all rows the same columns.",
                )
        parts = []
        if waiting:
            parts.append(_table(waiting, self.columns, 0, self.source.name, self.types))
        if rows:
            new_rows = _table(rows, self.columns, at.row, self.source.name, self.types)
            parts.append(self.checked(new_rows, at.row))
        tags += [(at.turn, at.row + i, 0) for i in range(len(rows))]
        if len(rows) < wanted:
            self._reader = None
            after = Position(at.turn + 1, 0, None, at.block + 1)
            if not rows and at.row == 0:
                raise EmbedlossError("E103", f"{self.source.name} gave no rows in its pass {at.turn + 1}.")
        else:
            after = Position(at.turn, at.row + len(rows), self.source.state(), at.block + 1)
            self._reader = ((after.turn, after.row), reader)
        table = pa.concat_tables(parts, promote_options="permissive") if parts else self.first.table.select(self.columns)[:0]
        return table, tags, after

    def batches(self, at: Position, batch_size: int, seed: int) -> Iterator[tuple[list[Row], Position]]:
        """The rows that this process has of every batch, without end, each with the position after it."""
        rank, processes = world()
        size = (self.batch_size or batch_size) * processes
        while True:
            table, tags, after = self.block(at)
            pass_rows = at.row + sum(waited == 0 for *_, waited in tags)
            if len(tags) < size <= pass_rows and after.turn > at.turn:  # the end of a pass: its last rows go to the next
                plan: list[np.ndarray[Any, Any]] = []
                rest = list(range(len(tags)))
            else:
                plan, rest = self.plan(table, tags, size, processes, seed, at.block)
            rows = self.bound(table, [row for _, row, _ in tags])
            for number in range(at.batch, len(plan)):
                share = np.array_split(plan[number], processes)[rank].tolist()
                columns = rows[share]
                batch = [
                    {**{k: v[i] for k, v in columns.items()}, "_row": tags[place][1], "_epoch": tags[place][0]}
                    for i, place in enumerate(share)
                ]
                yield batch, replace(at, batch=number + 1)
            kept = table.take(pa.array(rest, pa.int64())).to_pylist() if rest else []
            old = [(tags[i][0], tags[i][1], tags[i][2] + 1) for i in rest]
            at = replace(after, waiting=tuple(zip(old, kept, strict=True)))

    def plan(
        self, table: pa.Table, tags: Sequence[tuple[int, int, int]], size: int, processes: int, seed: int, block: int
    ) -> tuple[list[np.ndarray[Any, Any]], list[int]]:
        """Joint batches of a block, and the rows that wait for the next: those of batches that are not whole.

        A block without a whole batch gives what it has, so that rows never wait for ever.
        """
        places = np.arange(len(tags))
        lonely: list[int] = []
        if self.kind == "group-by-label":
            places, lonely = self._with_company(table, tags)
        numbers = [tags[i][1] for i in places.tolist()]
        data = self.bound(table.take(pa.array(places)), numbers)
        roles = [c for c in data.column_names if c not in NOT_TEXTS]
        with naming(f"{self.source.name}, block {block + 1}"):
            sampler = make_sampler(self.kind, data, roles, max(size // processes, 1), seed)
            sampler.set_epoch(block)
            made = sampler.joint_batches(size)
        least = size - 2 if self.kind == "group-by-label" else size  # groups of two and three need not fill a batch exactly
        whole = [b for b in made if len(b) >= least]
        use = whole or [b for b in made if len(b) >= processes]
        if not use:
            raise EmbedlossError("E106", f"{self.source.name}: {len(tags)} rows make no batch for {processes} processes.")
        used = {int(i) for batch in use for i in batch}
        rest = [int(places[i]) for i in range(len(places)) if i not in used]
        return [places[batch] for batch in use], [*rest, *lonely]

    def _with_company(self, table: pa.Table, tags: Sequence[tuple[int, int, int]]) -> tuple[np.ndarray[Any, Any], list[int]]:
        """Rows whose class another row of the block has, and those that wait for one; a row waits for one block."""
        values = np.asarray(table[self.binding.label or ""].to_pylist())
        _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
        alone = counts[inverse] < 2
        if (counts >= 2).sum() < 2:
            first, last = tags[0][1] + 1, tags[-1][1] + 1
            raise EmbedlossError(
                "E106",
                f"{self.source.name}, rows {first:,} to {last:,}: two classes with two rows each are needed among the rows "
                "that are shuffled together. Type a larger --shuffle-buffer, or shuffle the file.",
            )
        waits = [i for i in np.flatnonzero(alone).tolist() if tags[i][2] < 1]
        if len(waits) < alone.sum() and not self.lonely:
            self.lonely = True
            warnings.warn(
                f"{self.source.name}: rows whose class no other row of two blocks has are left out; "
                "a larger --shuffle-buffer keeps more of them.",
                stacklevel=2,
            )
        return np.flatnonzero(~alone), waits


def _table(
    rows: Sequence[Row], names: Sequence[str], begin: int, source: str, types: Mapping[str, pa.DataType] | None = None
) -> pa.Table:
    """Rows as a table; E104 for a column whose type is not that of the rows before."""
    arrays = []
    for name in names:
        array = _array([row.get(name) for row in rows], name, begin, source)
        known = types.get(name) if types else None
        if known is not None and known != array.type:
            if pa.types.is_null(array.type):
                array = array.cast(known)
            elif not pa.types.is_null(known) and _union(known, array.type) is None:
                raise _mixed(name, begin + 1, str(array.type), str(known), source)
        arrays.append(array)
    return pa.table(arrays, names=list(names))


@dataclass
class Streams:
    """What `Trainer(train_dataset=...)` takes to train on streams: one called "", or several by name.

    Args:
        parts: name -> stream.
        mix: "round-robin" or "weights"; "auto" is by weights where there are any. Streams have no length to be
            proportional to.
    """

    parts: dict[str, Stream]
    mix: Mix = "auto"
    weights: list[float] = field(init=False)

    def __post_init__(self) -> None:
        given = [part.weight for part in self.parts.values()]
        check_mix(self.mix)
        mix = self.mix if self.mix != "auto" or any(w is not None for w in given) else "round-robin"
        self.weights = shares(mix, [1] * len(given), given)


class HandedOver:
    """A data set for a sampler that gives rows instead of their numbers."""

    def __getitems__(self, rows: list[Row]) -> list[Row]:
        """The rows."""
        return rows

    def __getitem__(self, row: Row) -> Row:
        """The row."""
        return row


def check_mix(mix: Mix) -> None:
    """E401 for a way of mixing that needs the lengths of the data sets."""
    if mix in ("proportional", "temperature"):
        raise EmbedlossError(
            "E401", f"--mix {mix} needs the length of each data set, which a stream does not have. Use weights."
        )


class StreamSampler(Sampler[list[Row]]):
    """Batches of rows from one or several streams; every `weights` steps' worth is exact to one batch at any time.

    Args:
        streams: what is read.
        batch_size: rows a step on each process, where a stream has none of its own.
        total: batches of the whole run.
        seed: of the order within blocks.
        start: what `position` returned, to go on from there; the batches before come as empty lists.
    """

    def __init__(
        self, streams: Streams, batch_size: int, total: int, seed: int = 0, start: Mapping[str, Any] | None = None
    ) -> None:
        self.streams, self.batch_size, self.total, self.seed = streams, batch_size, total, seed
        self.start = start
        for name, part in streams.parts.items():
            size = (part.batch_size or batch_size) * world()[1]
            if size > part.first.buffer:
                with naming(name):
                    raise EmbedlossError(
                        "E401", f"a step takes {size:,} rows, and {part.first.buffer:,} are shuffled together: "
                        f"type --shuffle-buffer {10 * size} (buffer={10 * size} in Python), or a smaller batch size.",
                    )  # fmt: skip
        self._positions: deque[tuple[int, dict[str, tuple[int, Position]]]] = deque(maxlen=KEPT)

    def set_epoch(self, epoch: int) -> None:
        """Nothing: a stream has passes of its own."""

    def __len__(self) -> int:
        return self.total

    def __iter__(self) -> Iterator[list[Row]]:
        names = list(self.streams.parts)
        start = self.start or {"batches": 0, "streams": {}}
        at = {name: (0, Position()) for name in names}
        at |= {name: (s["given"], Position.from_json(s["position"])) for name, s in start["streams"].items()}
        self._positions.clear()
        self._positions.append((start["batches"], dict(at)))
        for _ in range(start["batches"]):
            yield []
        readers = {
            name: part.batches(at[name][1], self.batch_size, self.seed + number)
            for number, (name, part) in enumerate(self.streams.parts.items())
        }
        for number in range(start["batches"], self.total):
            behind = [w * (number + 1) - at[name][0] for name, w in zip(names, self.streams.weights, strict=True)]
            name = names[int(np.argmax(behind))]
            with naming(name):
                rows, position = next(readers[name])
            at[name] = (at[name][0] + 1, position)
            self._positions.append((number + 1, dict(at)))
            if name:
                rows = [{**row, "_dataset": name} for row in rows]
            yield rows

    def position(self, batches: int) -> dict[str, Any]:
        """Plain data from which the batch after that many is the next."""
        while len(self._positions) > 1 and self._positions[0][0] < batches:
            self._positions.popleft()
        number, at = self._positions[0]
        if number != batches:
            raise EmbedlossError("E403", f"the position after {batches} batches of the stream is not known any more.")
        streams = {name: {"given": given, "position": position.to_json()} for name, (given, position) in at.items()}
        return {"batches": batches, "streams": streams}
