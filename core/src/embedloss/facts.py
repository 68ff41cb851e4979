"""What rows have in common: repeated texts, several positives, lengths. Bounded memory, one pass, no torch.

Texts are compared by 64-bit hashes. Up to `CAPACITY` different ones are counted exactly; beyond that a share of them, chosen
by hash, stands for all: a text is followed from its first row to its last or not at all, so rates stay right.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from embedloss.binding import Binding
from embedloss.check import column_of, is_list, is_text

Array = np.ndarray[Any, Any]
CAPACITY = 1 << 20
SAMPLED_TEXTS = 5_000  # a role, whose tokens are counted
BATCH = 64  # rows, for the expected number of false negatives
_WIDEST = 1 << 16  # characters; longer texts count as this long
_ODD = np.uint64(0x9E3779B97F4A7C15)


def text_hashes(texts: pa.Array) -> Array:
    """(texts,) uint64, equal for equal texts; the same in every run."""
    from pandas.util import hash_array

    return np.asarray(hash_array(texts.to_numpy(zero_copy_only=False), categorize=False), dtype=np.uint64)


def mixed(left: Array, right: Array) -> Array:
    """A hash of pairs of hashes; the order matters."""
    with np.errstate(over="ignore"):
        value = (left * _ODD) ^ (right + _ODD + (left << np.uint64(6)) + (left >> np.uint64(2)))
        value ^= value >> np.uint64(31)
        return np.asarray(value * _ODD)


class Bag:
    """Counts of (key, value) pairs; keys are sampled by hash once there are more than `capacity` pairs."""

    def __init__(self, capacity: int = CAPACITY) -> None:
        self.capacity = capacity
        self.limit = np.uint64(2**64 - 1)
        self.factor = 1
        self._parts: list[tuple[Array, Array, Array]] = []
        self._pending = 0

    def add(self, keys: Array, values: Array) -> None:
        """Count pairs, one a row."""
        if self.factor > 1:
            kept = keys <= self.limit
            keys, values = keys[kept], values[kept]
        self._parts.append((keys, values, np.ones(len(keys), dtype=np.int64)))
        self._pending += len(keys)
        if self._pending > 2 * self.capacity:
            self._compact()

    def _compact(self) -> tuple[Array, Array, Array]:
        if not self._parts:
            empty = np.zeros(0, dtype=np.uint64)
            return empty, empty, np.zeros(0, dtype=np.int64)
        keys, values, counts = (np.concatenate(part) for part in zip(*self._parts, strict=True))
        order = np.lexsort((values, keys))
        keys, values, counts = keys[order], values[order], counts[order]
        first = np.ones(len(keys), dtype=bool)
        first[1:] = (keys[1:] != keys[:-1]) | (values[1:] != values[:-1])
        begin = np.flatnonzero(first)
        if len(begin):
            keys, values, counts = keys[begin], values[begin], np.add.reduceat(counts, begin)
        while len(keys) > self.capacity:
            self.limit = np.uint64(self.limit >> np.uint64(1))
            self.factor *= 2
            kept = keys <= self.limit
            keys, values, counts = keys[kept], values[kept], counts[kept]
        self._parts = [(keys, values, counts)]
        self._pending = len(keys)
        return self._parts[0]

    def pairs(self) -> tuple[Array, Array, Array]:
        """Different pairs in order of key and value: keys, values, number of rows."""
        return self._compact()

    def by_key(self) -> tuple[Array, Array, Array]:
        """Different keys, number of different values of each, number of rows of each."""
        keys, _, counts = self._compact()
        if not len(keys):
            return keys, counts, counts
        begin = np.flatnonzero(np.r_[True, keys[1:] != keys[:-1]])
        return keys[begin], np.diff(np.r_[begin, len(keys)]), np.add.reduceat(counts, begin)


class _Lengths:
    """Histogram of whole numbers."""

    def __init__(self) -> None:
        self.counts = np.zeros(0, dtype=np.int64)

    def add(self, values: Array) -> None:
        found = np.bincount(np.minimum(values, _WIDEST), minlength=len(self.counts))
        found[: len(self.counts)] += self.counts
        self.counts = found

    def summary(self) -> dict[str, float] | None:
        total = int(self.counts.sum())
        if not total:
            return None
        upto = np.cumsum(self.counts)
        at = {name: int(np.searchsorted(upto, share * total)) for name, share in (("median", 0.5), ("p95", 0.95))}
        present = np.flatnonzero(self.counts)
        mean = float((np.arange(len(self.counts)) * self.counts).sum() / total)
        return {"min": int(present[0]), "mean": round(mean, 1), **at, "max": int(present[-1])}


class _Sample:
    """Texts drawn at random, the same in every run; bounded."""

    def __init__(self, size: int) -> None:
        self.size, self.rng = size, np.random.default_rng(0)
        self.draws = np.zeros(0)
        self.texts: list[str] = []
        self.bound = 1.0

    def add(self, texts: pa.Array) -> None:
        draws = self.rng.random(len(texts))
        chosen = np.flatnonzero(draws < self.bound)
        self.draws = np.r_[self.draws, draws[chosen]]
        self.texts += texts.take(pa.array(chosen)).to_pylist()
        if len(self.texts) > 2 * self.size:
            keep = np.sort(np.argsort(self.draws, kind="stable")[: self.size])
            self.bound = float(self.draws[keep].max())
            self.draws, self.texts = self.draws[keep], [self.texts[i] for i in keep]


@dataclass
class Repeats:
    """How often the texts of a role occur.

    Args:
        distinct: number of different texts.
        repeated_rows: rows whose text another row has as well, without the first of each.
        shared: different texts that occur with several different partners (a query with several positives, ...).
        in_batch: expected pairs of rows of a random batch of 64 that share the text: false negatives of in-batch losses.
    """

    distinct: int
    repeated_rows: int
    shared: int
    in_batch: float

    def to_json(self) -> dict[str, object]:
        """Plain data for `--json`."""
        return {**vars(self), "in_batch": round(self.in_batch, 4)}


@dataclass
class Facts:
    """What the rows of a data set have in common; `Collector` makes it.

    Args:
        rows: number of rows.
        characters: role -> min, mean, median, p95 and max of the lengths of its texts.
        texts_per_row: list role -> the same of the number of its texts.
        repeats: role -> `Repeats`, of the first two roles.
        duplicate_rows: rows that occur before with the same texts and label.
        conflicting: different rows of texts that occur with several labels.
        same_text: rows whose first two texts are equal.
        false_negatives: rows whose negative is a positive, of the same row or of the same query in another row.
        repeated_docs: rows that hold a document twice.
        label_values: different labels that are numbers -> rows, None where there are more than 1,000.
        label_span: lowest and highest of them.
        overlap_rows, overlap_queries: rows that occur in the other data set, by all texts and by the first text alone.
        estimated: counts of repeats are estimates from a share of the texts.
        tokens: role -> lengths in tokens, where a tokenizer was given, with the share of texts that are cut.
    """

    rows: int
    characters: dict[str, dict[str, float]] = field(default_factory=dict)
    texts_per_row: dict[str, dict[str, float]] = field(default_factory=dict)
    repeats: dict[str, Repeats] = field(default_factory=dict)
    duplicate_rows: int = 0
    conflicting: int = 0
    same_text: int = 0
    false_negatives: int = 0
    repeated_docs: int = 0
    label_values: dict[float, int] | None = None
    label_span: tuple[float, float] | None = None
    overlap_rows: int | None = None
    overlap_queries: int | None = None
    estimated: bool = False
    tokens: dict[str, dict[str, float]] = field(default_factory=dict)

    def to_json(self) -> dict[str, object]:
        """Plain data for `--json`."""
        values = self.label_values
        return {
            **vars(self),
            "repeats": {role: found.to_json() for role, found in self.repeats.items()},
            "label_values": None if values is None or len(values) > 20 else {f"{k:g}": n for k, n in values.items()},
            "label_span": list(self.label_span) if self.label_span else None,
        }


class Hashes:
    """Texts of another data set, to find what two sets share. Eight bytes a row and column."""

    def __init__(self, rows: Array, queries: Array) -> None:
        self.rows, self.queries = np.unique(rows), np.unique(queries)


class Collector:
    """Collects `Facts` chunk by chunk.

    Args:
        binding: columns by role.
        other: texts of the data set whose overlap counts.
        sample: keep texts for `Facts.tokens`.
    """

    def __init__(self, binding: Binding, other: Hashes | None = None, sample: bool = False) -> None:
        self.binding, self.other = binding, other
        self.facts = Facts(0)
        roles = list(binding.columns)
        self._characters = {role: _Lengths() for role in roles}
        self._counts = {role: _Lengths() for role in roles if role in binding.format.lists}
        self._samples = {role: _Sample(SAMPLED_TEXTS) for role in roles} if sample else {}
        self._bags = {role: Bag() for role in roles[:2]}
        self._rows = Bag()
        self._negatives = Bag()
        self._labels: dict[float, int] | None = {}

    def hashes(self, table: pa.Table, numbers: bool = True) -> tuple[dict[str, Array], dict[str, tuple[Array, Array]]]:
        """Role -> a hash a row; list role -> hash and row of every text."""
        roles: dict[str, Array] = {}
        inside: dict[str, tuple[Array, Array]] = {}
        for role, names in self.binding.columns.items():
            values_of, owners_of = [], []
            for name in names:
                values = column_of(table, name)
                if is_list(values.type):
                    owners = pc.list_parent_indices(values).to_numpy(zero_copy_only=False)
                    values = pc.list_flatten(values)
                else:
                    owners = np.arange(len(values))
                valid = np.flatnonzero(values.is_valid().to_numpy(zero_copy_only=False))
                values, owners = values.take(pa.array(valid)), owners[valid]
                values_of.append(text_hashes(values))
                owners_of.append(owners)
                if numbers:
                    self._characters[role].add(pc.utf8_length(values).to_numpy(zero_copy_only=False).astype(np.int64))
                    if self._samples:
                        self._samples[role].add(values)
            hashed, owner = np.concatenate(values_of), np.concatenate(owners_of).astype(np.int64)
            order = np.argsort(owner, kind="stable")
            inside[role] = hashed[order], owner[order]
            row = np.zeros(table.num_rows, dtype=np.uint64)
            if role in self.binding.format.lists:
                with np.errstate(over="ignore"):  # a sum does not depend on the order of the texts
                    np.add.at(row, owner, mixed(hashed, np.uint64(1)))
                if numbers:
                    self._counts[role].add(np.bincount(owner, minlength=table.num_rows))
            else:
                row[owner] = hashed
            roles[role] = row
        return roles, inside

    def add(self, table: pa.Table) -> None:
        """Look at the next rows."""
        facts = self.facts
        facts.rows += table.num_rows
        roles, inside = self.hashes(table)
        names = list(roles)
        first = roles[names[0]]
        row = _row_hash(roles)
        self._rows.add(row, self._label_hash(table))
        if len(names) > 1:
            second = roles[names[1]]
            self._bags[names[0]].add(first, second)
            self._bags[names[1]].add(second, first)
            facts.same_text += int((first == second).sum())
        else:
            self._bags[names[0]].add(first, first)
        if "negative" in names:
            hashed, owner = inside["negative"]
            self._negatives.add(first[owner], hashed)
        for role in self.binding.format.lists:
            hashed, owner = inside[role]
            keys = np.lexsort((hashed, owner))
            twice = (hashed[keys][1:] == hashed[keys][:-1]) & (owner[keys][1:] == owner[keys][:-1])
            facts.repeated_docs += len(np.unique(owner[keys][1:][twice]))
        if self.other is not None:
            facts.overlap_rows = (facts.overlap_rows or 0) + int(np.isin(row, self.other.rows).sum())
            facts.overlap_queries = (facts.overlap_queries or 0) + int(np.isin(first, self.other.queries).sum())

    def _label_hash(self, table: pa.Table) -> Array:
        if self.binding.label is None:
            return np.zeros(table.num_rows, dtype=np.uint64)
        values = column_of(table, self.binding.label)
        if is_text(values.type):
            return text_hashes(values)
        if is_list(values.type):
            return np.zeros(table.num_rows, dtype=np.uint64)
        numbers = values.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
        finite = numbers[np.isfinite(numbers)]
        if len(finite):
            span = self.facts.label_span or (np.inf, -np.inf)
            self.facts.label_span = (min(span[0], float(finite.min())), max(span[1], float(finite.max())))
        if self._labels is not None:
            for value, count in zip(*np.unique(finite, return_counts=True), strict=True):
                self._labels[float(value)] = self._labels.get(float(value), 0) + int(count)
            if len(self._labels) > 1000:
                self._labels = None
        return np.ascontiguousarray(numbers).view(np.uint64)

    def finish(self, tokenizer: Callable[[Sequence[str]], Sequence[int]] | None = None, limit: int = 0) -> Facts:
        """The facts.

        Args:
            tokenizer: number of tokens of each text.
            limit: most tokens that the model reads.
        """
        facts = self.facts
        facts.characters = _summaries(self._characters)
        facts.texts_per_row = _summaries(self._counts)
        _, kinds, counts = self._rows.by_key()
        factor = self._rows.factor
        facts.conflicting = int((kinds > 1).sum()) * factor
        facts.duplicate_rows = int((counts - kinds).sum()) * factor
        facts.estimated = factor > 1
        for role, bag in self._bags.items():
            if role in self.binding.format.lists:
                continue
            _, kinds, counts = bag.by_key()
            pairs = float((counts * (counts - 1.0) / 2).sum()) * bag.factor
            batch = min(BATCH, facts.rows)
            chance = batch * (batch - 1) / (facts.rows * (facts.rows - 1.0)) if facts.rows > 1 else 0.0
            facts.repeats[role] = Repeats(
                len(counts) * bag.factor,
                int((counts - 1).sum()) * bag.factor,
                int((kinds > 1).sum()) * bag.factor if len(self._bags) > 1 else 0,
                pairs * chance,
            )
            facts.estimated = facts.estimated or bag.factor > 1
        roles = list(self._bags)
        if "negative" in self.binding.columns:
            keys, values, _ = self._bags[roles[0]].pairs()
            known = mixed(keys, values)
            keys, values, counts = self._negatives.pairs()
            facts.false_negatives = int(counts[np.isin(mixed(keys, values), known)].sum()) * self._negatives.factor
        facts.label_values = dict(sorted(self._labels.items())) if self._labels else None
        for role, sample in self._samples.items() if tokenizer is not None else ():
            sizes = np.asarray(tokenizer(sample.texts), dtype=np.int64) if sample.texts and tokenizer else np.zeros(0, np.int64)
            lengths = _Lengths()
            lengths.add(sizes)
            summary = lengths.summary()
            if summary:
                facts.tokens[role] = {**summary, "cut": round(float((sizes > limit).mean()), 4) if limit else 0.0}
        return facts


def _summaries(lengths: Mapping[str, _Lengths]) -> dict[str, dict[str, float]]:
    found = {role: each.summary() for role, each in lengths.items()}
    return {role: summary for role, summary in found.items() if summary}


def _row_hash(roles: Mapping[str, Array]) -> Array:
    row = np.zeros(len(next(iter(roles.values()))), dtype=np.uint64)
    for values in roles.values():
        row = mixed(row, values)
    return row


def hashes_of(tables: Any, binding: Binding) -> Hashes:
    """The texts of a data set as hashes.

    Args:
        tables: an iterable of Arrow tables.
        binding: columns by role, in the same format as the data it is compared with.
    """
    collector = Collector(binding)
    rows, queries = [], []
    for table in tables:
        roles, _ = collector.hashes(table, numbers=False)
        rows.append(_row_hash(roles))
        queries.append(next(iter(roles.values())))
    return Hashes(np.concatenate(rows), np.concatenate(queries))
