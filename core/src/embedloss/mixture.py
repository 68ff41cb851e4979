"""Several data sets in one run: whose batch comes next, how long an epoch is, and the rows behind it.

Every batch holds rows of one data set. The order is drawn from a generator of its own, is the same on every process, and
follows from seed and epoch alone, so a resumed run goes on with the next batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch.utils.data import Sampler

from embedloss.binding import NOT_TEXTS
from embedloss.collate import Batch, Collator
from embedloss.errors import naming
from embedloss.loss import Row
from embedloss.mixing import Mix, Stop, counts, shares
from embedloss.samplers import EpochSampler, make_sampler


@dataclass
class Part:
    """One data set of a mixture.

    Args:
        rows: a bound data set: columns named by role, and "label".
        batch_size: rows a step on each process; by default the run's.
        sampler: "auto" is what the loss recommends.
        weight: share of the steps, relative to the other data sets.
    """

    rows: Any
    batch_size: int | None = None
    sampler: str = "auto"
    weight: float | None = None


class MixtureSampler(Sampler[list[int]]):
    """Batches of several samplers, one data set a batch.

    Args:
        samplers: one a data set, by name.
        offsets: what is added to the rows of each data set in the numbering of all rows.
        mix, weights, temperature: see `shares`.
        stop: see `counts`.
        seed: with the epoch it decides the order.
    """

    def __init__(
        self,
        samplers: Mapping[str, EpochSampler],
        offsets: Sequence[int],
        *,
        mix: Mix = "auto",
        weights: Sequence[float | None] = (),
        temperature: float | None = None,
        stop: Stop = "first-exhausted",
        seed: int = 0,
    ) -> None:
        self.samplers, self.offsets, self.seed, self.stop = dict(samplers), list(offsets), seed, stop
        self.rows = sum(s.rows for s in self.samplers.values())
        self.lengths = [len(s) for s in self.samplers.values()]  # of epoch 0; every epoch has as many
        self.shares = shares(mix, self.lengths, weights or [None] * len(self.samplers), temperature)
        self.counts = counts(self.lengths, self.shares, stop)
        self.in_turn = mix == "round-robin"
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose batches are drawn next."""
        self.epoch = int(epoch)

    def __len__(self) -> int:
        return sum(self.counts)

    def order(self) -> list[int]:
        """The number of the data set of every batch of this epoch."""
        if self.in_turn:
            turns = [(turn, number) for number, count in enumerate(self.counts) for turn in range(count)]
            return [number for _, number in sorted(turns)]
        rng = np.random.default_rng([self.seed, self.epoch, len(self.counts)])
        found: list[int] = rng.permutation(np.repeat(np.arange(len(self.counts)), self.counts)).tolist()
        return found

    def __iter__(self) -> Iterator[list[int]]:
        """Keys of rows, `turn * rows + row` over the rows of all data sets; `turn` counts the passes over that data set."""
        samplers = list(self.samplers.values())
        streams = [self._batches(number, sampler) for number, sampler in enumerate(samplers)]
        for number in self.order():
            turn, own = next(streams[number])
            offset = turn * self.rows + self.offsets[number]
            yield [offset + row for row in own]

    def _batches(self, number: int, sampler: EpochSampler) -> Iterator[tuple[int, list[int]]]:
        """(pass, rows) of every batch that this epoch takes from one data set."""
        length, count = self.lengths[number], self.counts[number]
        if self.stop == "first-exhausted":
            turn, skipped = divmod(self.epoch * count, length)
        else:
            turn, skipped = self.epoch * -(-count // length), 0
        while True:
            sampler.set_epoch(turn)
            for keys in sampler.shares(skipped):
                yield turn, keys
            turn, skipped = turn + 1, 0

    @property
    def left_out(self) -> int:
        """Rows that a pass does not use; see the samplers."""
        return sum(s.left_out for s in self.samplers.values())

    @property
    def short(self) -> int:
        """Batches with less than half of the rows asked for."""
        return sum(s.short for s in self.samplers.values())

    def describe(self) -> list[list[str]]:
        """One line a data set: name, rows, rows a batch, batches a pass, batches an epoch, share of the steps, sampler."""
        lines = []
        for (name, s), length, count in zip(self.samplers.items(), self.lengths, self.counts, strict=True):
            share = f"{count / len(self):.1%}"
            kind = type(s).__name__.removesuffix("Sampler")
            lines.append([name, f"{s.rows:,}", str(s.batch_size), f"{length:,}", f"{count:,}", share, kind])
        return lines


class Mixture:
    """Several bound data sets; `Trainer(train_dataset=...)` takes it in place of one.

    Args:
        parts: name -> `Part`, or the bound data set alone.
        mix, temperature: see `shares`.
        stop: see `counts`.

    Raises:
        EmbedlossError: E401 for weights and temperatures that cannot be used.
    """

    def __init__(
        self,
        parts: Mapping[str, Any],
        mix: Mix = "auto",
        *,
        temperature: float | None = None,
        stop: Stop = "first-exhausted",
    ) -> None:
        self.parts = {name: part if isinstance(part, Part) else Part(part) for name, part in parts.items()}
        self.mix, self.temperature, self.stop = mix, temperature, stop
        sizes = [len(part.rows) for part in self.parts.values()]
        self.starts = np.cumsum([0, *sizes])
        shares(mix, [max(size, 1) for size in sizes], self.weights, temperature)

    @property
    def weights(self) -> list[float | None]:
        """The weight of every part."""
        return [part.weight for part in self.parts.values()]

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitems__(self, keys: Sequence[int]) -> list[Row]:
        """The rows of one batch, all of one data set, with "_dataset", "_row" and "_epoch"."""
        places = [key % len(self) for key in keys]
        number = int(np.searchsorted(self.starts, places[0], side="right")) - 1
        name, part = list(self.parts.items())[number]
        start = int(self.starts[number])
        columns = part.rows[[place - start for place in places]]
        return [
            {
                **{column: values[i] for column, values in columns.items()},
                "_dataset": name,
                "_row": places[i] - start,
                "_epoch": key // len(self),
            }
            for i, key in enumerate(keys)
        ]

    def __getitem__(self, key: int) -> Row:
        """One row."""
        return self.__getitems__([key])[0]

    def sampler(self, names: Mapping[str, str], batch_size: int, seed: int, drop_last: bool = False) -> MixtureSampler:
        """The batch sampler.

        Args:
            names: data set -> its sampler where `Part.sampler` is "auto".
            batch_size: of the parts that have none of their own.
        """
        made = {}
        for number, (name, part) in enumerate(self.parts.items()):
            roles = [c for c in part.rows.column_names if c not in NOT_TEXTS]
            kind = names.get(name, "random") if part.sampler == "auto" else part.sampler
            with naming(name):
                made[name] = make_sampler(kind, part.rows, roles, part.batch_size or batch_size, seed + number, drop_last)
        return MixtureSampler(
            made,
            self.starts[:-1].tolist(),
            mix=self.mix,
            weights=self.weights,
            temperature=self.temperature,
            stop=self.stop,
            seed=seed,
        )


@dataclass
class MixtureCollator:
    """Makes the batch of rows of one data set with that data set's collator.

    Args:
        collators: one a data set, by name.
    """

    collators: Mapping[str, Collator]

    @property
    def source(self) -> str:
        """Names of the data sets, for messages."""
        return ", ".join(self.collators)

    def __call__(self, rows: list[Row]) -> Batch:
        """The batch, with the name of the data set under "dataset"."""
        name = rows[0]["_dataset"]
        return {**self.collators[name](rows), "dataset": name}
