"""Look at rows before anything is trained: every fault at once, with row numbers. Imports no torch.

`bind` (columns -> roles) is in `embedloss.binding` and can be imported from here as well.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from embedloss.binding import ID_COLUMN, WEIGHT_COLUMN, Binding, bind, losses_for
from embedloss.errors import EmbedlossError
from embedloss.formats import LARGEST_ID
from embedloss.spec import LossSpec

if TYPE_CHECKING:
    import datasets

    from embedloss.facts import Collector

__all__ = [
    "Binding",
    "Fault",
    "Report",
    "bind",
    "bound_dataset",
    "check_rows",
    "check_tables",
    "class_ids",
    "column_kinds",
    "label_scale",
    "losses_for",
]

_SHOWN_ROWS = 5


@dataclass(frozen=True)
class Fault:
    """One thing that stops the training.

    Args:
        code: E104, E105 or E106.
        message: what is wrong and what to do.
        column: where, or None for the data set as a whole.
        rows: numbers of the rows, from 1; at most the first few.
        count: number of rows concerned.
    """

    code: str
    message: str
    column: str | None = None
    rows: tuple[int, ...] = ()
    count: int = 0

    def __str__(self) -> str:
        where = f"column '{self.column}'" if self.column else ""
        if self.rows:
            more = self.count - len(self.rows)
            rows = ", ".join(map(str, self.rows)) + (f" and {more:,} more" if more > 0 else "")
            where = f"{where}, row{'s' * (self.count > 1)} {rows}" if where else f"row{'s' * (self.count > 1)} {rows}"
        return f"{where}: {self.message}" if where else self.message

    def to_json(self) -> dict[str, object]:
        """Plain data for `--json`."""
        return {"code": self.code, "message": self.message, "column": self.column, "rows": list(self.rows), "count": self.count}


@dataclass
class Report:
    """What `check_rows` found.

    Args:
        rows: number of rows looked at.
        faults: what stops the training.
        warnings: what is worth knowing.
        classes: name -> id, where classes are given by name; they are numbered in alphabetical order.
        label_span: lowest and highest label, where labels are numbers.
        class_sizes: number of classes, rows of the smallest, median and largest, number of classes with a single row.
    """

    rows: int
    faults: list[Fault] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    classes: dict[str, int] | None = None
    label_span: tuple[float, float] | None = None
    class_sizes: dict[str, int] | None = None

    def raise_if_faulty(self) -> None:
        """One `EmbedlossError` that lists all faults; its code is the first one's."""
        if len(self.faults) == 1:
            raise EmbedlossError(self.faults[0].code, str(self.faults[0]))
        if self.faults:
            lines = "\n".join(f"  {fault.code} {fault}" for fault in self.faults)
            raise EmbedlossError(self.faults[0].code, f"the data set has {len(self.faults)} faults:\n{lines}")

    def to_json(self) -> dict[str, object]:
        """Plain data for `--json`."""
        return {
            "rows": self.rows,
            "faults": [fault.to_json() for fault in self.faults],
            "warnings": self.warnings,
            "classes": self.classes,
            "label_span": list(self.label_span) if self.label_span else None,
            "class_sizes": self.class_sizes,
        }


# -- columns ----------------------------------------------------------------------------------------------------------
def table_of(dataset: datasets.Dataset) -> pa.Table:
    """The rows of a data set as an Arrow table; nothing is written to a cache."""
    table = dataset.data.table
    return table if dataset._indices is None else table.take(dataset._indices.column(0))


def is_text(kind: pa.DataType) -> bool:
    """Whether an Arrow type holds texts."""
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def is_list(kind: pa.DataType) -> bool:
    """Whether an Arrow type holds lists."""
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def kind_of(kind: pa.DataType) -> str:
    """Kind of a column of that type: text, texts, int, float, floats, vectors, empty or other."""
    if pa.types.is_null(kind):
        return "empty"
    if is_text(kind):
        return "text"
    if pa.types.is_boolean(kind) or pa.types.is_integer(kind):
        return "int"
    if pa.types.is_floating(kind):
        return "float"
    if is_list(kind):
        inner = kind_of(kind.value_type)
        return {"text": "texts", "int": "floats", "float": "floats", "floats": "vectors", "empty": "empty"}.get(inner, "other")
    return "other"


def column_kinds(dataset: datasets.Dataset) -> dict[str, str]:
    """Name -> kind of every column, in order: text, texts, int, float, floats, vectors, empty or other."""
    table = dataset.data
    schema = table.schema
    return {name: kind_of(schema.field(name).type) for name in dataset.column_names}


def column_of(table: pa.Table, name: str) -> pa.Array:
    """One column as one array; offsets of 64 bits, so that no size of text overflows."""
    values = table[name]
    kind = values.type
    if is_text(kind):
        values = values.cast(pa.large_string())
    elif is_list(kind):
        inner = kind.value_type
        if is_list(inner):
            inner = pa.large_list(pa.float64())
        elif is_text(inner):
            inner = pa.large_string()
        elif pa.types.is_integer(inner) or pa.types.is_floating(inner) or pa.types.is_boolean(inner):
            inner = pa.float64()
        values = values.cast(pa.large_list(inner), safe=False)  # whole numbers beyond 2**53 lose digits
    combined = values.combine_chunks()
    if isinstance(combined, pa.ChunkedArray):  # no chunk at all
        combined = combined.chunk(0) if combined.num_chunks else pa.array([], values.type)
    return combined


def _where(mask: Any) -> np.ndarray[Any, Any]:
    """Indices of True in an Arrow mask."""
    return np.flatnonzero(np.asarray(pc.fill_null(mask, False).to_numpy(zero_copy_only=False), dtype=bool))


def _blank(texts: pa.Array) -> pa.Array:
    return pc.equal(pc.utf8_length(pc.utf8_trim_whitespace(texts)), 0)


class _Checker:
    """Looks at a data set chunk by chunk; what a message says about all rows is written in `finish`."""

    def __init__(self, binding: Binding, spec: LossSpec, scaled: bool, sampler: str) -> None:
        self.binding, self.spec, self.scaled = binding, spec, scaled
        self.grouped = (spec.sampler if sampler == "auto" else sampler) == "group-by-label"
        self.report = Report(0)
        self.table: pa.Table = pa.table({})
        self.found: dict[tuple[str, str | None, str], tuple[str, list[int], int]] = {}
        self.classes: dict[Any, list[int]] = {}  # class -> number of rows, first row
        self.vector: tuple[int, int] | None = None  # size and row of the first vector
        # Text roles that hold one and the same text so far, where other rows are what a row is told from.
        compared = spec.scope == "batch" and binding.format.name in ("single", "pairs")
        self.constant: dict[str, Any] = dict.fromkeys(binding.columns) if compared else {}
        self.equal = 0  # rows of two equal texts
        self.weighed = not binding.weight  # whether a weight above 0 was seen
        self.filled: dict[str, int] = {}  # role that may be empty -> rows that hold a text
        self.lists = self.flat = 0  # lists of documents, and those in which all grades are equal

    def fault(self, code: str, message: str, column: str | None = None, where: Any = (), key: str = "") -> None:
        """Note a fault; rows are counted from 0 within the chunk. One message a key, that of the first chunk."""
        rows = np.unique(np.asarray(where, dtype=np.int64)) + self.report.rows + 1
        place = (code, column, key or message)
        text, shown, count = self.found.get(place, (message, [], 0))
        shown += [int(r) for r in rows[: _SHOWN_ROWS - len(shown)]]
        self.found[place] = (text, shown, count + len(rows))

    def add(self, table: pa.Table) -> None:
        """Look at the next rows."""
        self.table = table
        for role, columns in self.binding.columns.items():
            if len(columns) == 1:
                self.texts(role, columns[0])
            else:
                self.several(role, columns)
        self.together()
        if self.binding.label and not self.binding.label_ignored:
            self.label(self.binding.label)
        if self.binding.weight:
            self.weight(self.binding.weight)
        self.report.rows += table.num_rows

    def finish(self) -> Report:
        """The report, with what can only be said about all rows."""
        report = self.report
        if report.rows < 2:
            self.found = {
                ("E106", None, "rows"): (
                    f"the data set has {report.rows} row{'s' * (report.rows != 1)}; at least two are needed.",
                    [],
                    0,
                ),
                **self.found,
            }
        self._finish_texts()
        if not self.weighed and not any(key[1] == self.binding.weight for key in self.found):
            self.found["E105", self.binding.weight, "weights"] = ("every weight is 0; there is nothing to learn from.", [], 0)
        name = self.binding.label
        kind = self.binding.format.label
        if name and not self.binding.label_ignored:
            if kind == "class":
                self._finish_classes(name)
            faulty = any(key[:2] == ("E105", name) for key in self.found)  # the grades are wrong in another way already
            if self.flat and not self.spec.best_first and not faulty:
                if self.flat == self.lists:
                    message = f"every one of the {self.lists:,} lists has equal grades only; there is nothing to learn from."
                    self.found["E105", name, "flat"] = (message, [], 0)
                else:
                    report.warnings.append(
                        f"{self.flat:,} of {self.lists:,} lists have equal grades only; no order can be learnt from them"
                    )
            span = report.label_span
            if span and span[0] == span[1] and kind in ("binary", "score", "margin"):
                what = "to tell apart" if kind == "binary" else "to rank"
                message = f"every label in '{name}' is {span[0]:g}; there is nothing {what}"
                if kind == "score" and self.spec.scope == "batch" and not faulty:  # only differences count
                    self.found["E105", name, "constant"] = (f"{message}, so that '{self.spec.name}' learns nothing.", [], 0)
                else:
                    report.warnings.append(message)
        for (code, column, key), (message, rows, count) in self.found.items():
            if key == "range":
                assert report.label_span is not None
                message = message.format(low=report.label_span[0], high=report.label_span[1])
            report.faults.append(Fault(code, message, column, tuple(rows), count))
        return report

    def together(self) -> None:
        """Compare texts of different rows, and of one row, where the loss depends on it."""
        texts = {role: column_of(self.table, names[0]) for role, names in self.binding.columns.items() if len(names) == 1}
        for role in list(self.constant):
            known = texts[role].drop_null()
            if not len(known):
                continue
            if self.constant[role] is None:
                self.constant[role] = known[0]
            if not pc.all(pc.equal(known, self.constant[role])).as_py():
                del self.constant[role]
        if self.spec.equal_texts and self.binding.format.name == "pairs":
            first, second = texts.values()
            differ = _where(pc.not_equal(first, second))
            self.equal += len(first) - len(differ)
            if self.spec.equal_texts == "all" and len(differ):
                other = list(self.binding.columns.values())[1][0]
                message = (
                    f"its two texts differ; '{self.spec.name}' takes single texts, or pairs of equal texts. "
                    f"Type --drop {other} to take single texts, or use a loss of pairs."
                )
                self.fault("E105", message, None, differ)

    def _finish_texts(self) -> None:
        """What is wrong with the texts of all rows together."""
        if self.report.rows < 2 or any(key[0] == "E104" for key in self.found):
            return
        for role, filled in self.filled.items():
            if not filled:
                columns = ", ".join(self.binding.columns[role])
                message = f"no row holds a text of '{role}'. Type --drop {columns} to train without."
                self.found["E104", columns, "filled"] = (message, [], 0)
            elif filled < self.report.rows:
                self.report.warnings.append(f"{self.report.rows - filled:,} rows hold no text of '{role}'")
        for role, text in self.constant.items():
            if text is not None:
                column = self.binding.columns[role][0]
                message = f"every row has the same '{role}'; '{self.spec.name}' tells the rows of a batch from each other."
                self.found["E106", column, "constant"] = (f"{message} Remove all rows but one, or take another column.", [], 0)
        if self.spec.equal_texts == "some" and self.binding.format.name == "pairs" and not self.equal:
            other = list(self.binding.columns.values())[1][0]
            message = f"no row holds the same text twice, and only such pairs are positive for '{self.spec.name}'."
            self.found["E105", None, "equal"] = (
                f"{message} Type --drop {other} to take single texts, or use a loss of pairs.",
                [],
                0,
            )

    def _finish_classes(self, name: str) -> None:
        report = self.report
        highest = self.spec.highest_label
        names = [value for value in self.classes if isinstance(value, str)]
        if highest is not None and len(names) > highest + 1:
            message = (
                f"{len(names):,} classes; '{self.spec.name}' has {highest + 1:g}. Type num_labels={len(names)} in the loss."
            )
            self.found["E105", name, "number"] = (message, [], 0)
        sizes = [count for count, _ in self.classes.values()]
        if sizes:
            report.class_sizes = {
                "classes": len(sizes),
                "smallest": min(sizes),
                "median": int(np.median(sizes)),
                "largest": max(sizes),
                "single": sum(size == 1 for size in sizes),
            }
        if all(isinstance(value, str) for value in self.classes):
            report.classes = {value: i for i, value in enumerate(sorted(self.classes))} if sizes else None
        elif not any(key[2] in ("whole", "negative") for key in self.found):
            high = max(float(value) for value in self.classes)
            if len(self.classes) != high + 1:
                missing = f"'{name}' holds {len(self.classes)} of the class ids 0 to {high:g}"
                report.warnings.append(f"{missing}; a classifier has one output for each id")
        if not self.grouped:
            return
        large = sum(size >= 2 for size in sizes)
        if large < 2:
            self.found["E106", name, "groups"] = (
                f"'{self.spec.name}' needs two classes with two rows each; {large} of {len(sizes)} have them.",
                [],
                0,
            )
        elif large < len(sizes):
            alone = sorted(row for count, row in self.classes.values() if count == 1)
            self.found["E106", name, "groups"] = (
                "the only row of its class; batches of this loss hold two rows of each class. Remove these rows.",
                [row + 1 for row in alone[:_SHOWN_ROWS]],
                len(alone),
            )

    def texts(self, role: str, name: str) -> None:
        values = column_of(self.table, name)
        optional = role in self.spec.optional
        null = _where(values.is_null())
        if len(null) and not optional:
            self.fault("E104", "no value (null) where a text is needed. Repair or remove these rows.", name, null)
        if not is_list(values.type):
            blank = _where(_blank(values))
            if len(blank):
                self.fault("E104", "empty text. Repair or remove these rows.", name, blank)
            if optional:
                self.filled[role] = self.filled.get(role, 0) + len(values) - len(null)
            return
        lengths = pc.fill_null(pc.list_value_length(values), 0).to_numpy(zero_copy_only=False)
        empty = np.setdiff1d(np.flatnonzero(lengths == 0), null)
        if optional:
            self.filled[role] = self.filled.get(role, 0) + int((lengths > 0).sum())
        elif len(empty):
            self.fault("E104", f"an empty list; '{role}' needs at least one text.", name, empty)
        owner = pc.list_parent_indices(values).to_numpy(zero_copy_only=False)
        inside = pc.list_flatten(values)
        null = _where(inside.is_null())
        if len(null):
            self.fault("E104", "a null in the list of texts. Leave it out of the list.", name, owner[null])
        blank = _where(_blank(inside))
        if len(blank):
            self.fault("E104", "an empty text in the list.", name, owner[blank])

    def several(self, role: str, names: Sequence[str]) -> None:
        """Columns that feed one list role: a missing text shortens the list, but one text must remain."""
        filled = np.zeros(self.table.num_rows, dtype=np.int64)
        for name in names:
            values = column_of(self.table, name)
            blank = _where(_blank(values))
            if len(blank):
                self.fault("E104", "empty text; write null where there is none.", name, blank)
            filled += ~np.asarray(values.is_null().to_numpy(zero_copy_only=False), dtype=bool)
        if role in self.spec.optional:
            self.filled[role] = self.filled.get(role, 0) + int((filled > 0).sum())
        elif len(without := np.flatnonzero(filled == 0)):
            self.fault("E104", f"no text for '{role}' in any of {', '.join(names)}.", None, without)

    def weight(self, name: str) -> None:
        """Weights: finite numbers from 0."""
        numbers = column_of(self.table, name).cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
        bad = np.flatnonzero(~np.isfinite(numbers) | (numbers < 0))
        if len(bad):
            self.fault("E105", "the weight of a row must be a finite number from 0, and not null.", name, bad)
        self.weighed = self.weighed or bool((numbers > 0).any())

    # -- labels -------------------------------------------------------------------------------------------------------
    def label(self, name: str) -> None:
        kind = self.binding.format.label_kind
        assert kind is not None
        values = column_of(self.table, name)
        null = _where(values.is_null())
        if len(null):
            self.fault("E105", f"no label (null); {kind.summary} needed.", name, null)
        if is_list(values.type):
            if kind.name == "embedding":
                self.vectors(name, values)
            else:
                self.candidates(name, values)
        elif is_text(values.type):
            blank = _where(_blank(values))
            if len(blank):
                self.fault("E105", "an empty class name.", name, blank)
            self.count_classes(values)
        else:
            self.numbers(name, kind.name, values)

    def count_classes(self, values: pa.Array) -> None:
        known = values.drop_null()
        if not len(known):
            return
        coded = known.dictionary_encode()
        places = np.flatnonzero(values.is_valid().to_numpy(zero_copy_only=False))
        codes, first, counts = np.unique(coded.indices.to_numpy(zero_copy_only=False), return_index=True, return_counts=True)
        for value, at, count in zip(coded.dictionary.take(pa.array(codes)).to_pylist(), first, counts, strict=True):
            entry = self.classes.setdefault(value, [0, self.report.rows + int(places[at])])
            entry[0] += int(count)

    def widen(self, numbers: Any, finite: Any) -> None:
        low, high = float(numbers[finite].min()), float(numbers[finite].max())
        span = self.report.label_span
        self.report.label_span = (min(low, span[0]), max(high, span[1])) if span else (low, high)

    def numbers(self, name: str, kind: str, values: pa.Array) -> None:
        numbers = values.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
        known = _where(values.is_valid())
        infinite = known[~np.isfinite(numbers[known])]
        if len(infinite):
            self.fault("E105", "the label is not finite (NaN or infinity).", name, infinite)
        finite = np.isfinite(numbers)
        if not finite.any():
            return
        self.widen(numbers, finite)
        loss = self.spec.name
        if kind == "binary":
            bad = np.flatnonzero(finite & (numbers != 0) & (numbers != 1))
            if len(bad):
                found = f"{numbers[bad[0]]:g}"
                hint = " Write 0 instead of -1." if set(numbers[bad]) == {-1.0} else ""
                self.fault("E105", f"the label is {found}; '{loss}' takes 0 or 1.{hint}", name, bad, "binary")
        elif kind == "class":
            broken = np.flatnonzero(finite & ((numbers != np.floor(numbers)) | (np.abs(numbers) > LARGEST_ID)))
            if len(broken):
                message = f"the label is {numbers[broken[0]]:g}; a class id is a whole number: 0, 1, 2, ..."
                self.fault("E105", message, name, broken, "whole")
            negative = np.flatnonzero(finite & (numbers < 0))
            if len(negative):
                message = f"the class id is {numbers[negative[0]]:g}; ids begin at 0 (-1 often means unlabelled)."
                self.fault("E105", message, name, negative, "negative")
            highest = np.inf if self.spec.highest_label is None else self.spec.highest_label
            high = np.flatnonzero(finite & (numbers > highest))
            if len(high):
                message = f"a class id above {highest:g}, the highest of {highest + 1:g} classes. Number the classes from 0."
                self.fault("E105", message, name, high, "number")
            self.count_classes(pa.array(numbers, mask=~finite))
        else:
            self.range(name, numbers, finite)

    def range(self, name: str, numbers: Any, finite: Any, owner: Any = None) -> None:
        if self.scaled:
            return
        low, high = self.spec.label_range or (-np.inf, np.inf)
        advice = "Type --scale-labels to map them linearly, or change the file."
        if self.spec.highest_label is not None and self.spec.highest_label < high:
            high, advice = self.spec.highest_label, "Number the grades 0, 1, 2, ..., or divide them."
        bad = np.flatnonzero(finite & ((numbers < low) | (numbers > high)))
        if len(bad):
            self.fault(
                "E105",
                f"labels from {{low:g}} to {{high:g}}; '{self.spec.name}' takes {self.spec.allowed_labels()}. {advice}",
                name,
                bad if owner is None else owner[bad],
                "range",
            )

    def _count(self, role: str) -> Any:
        """Texts of a role, row by row."""
        names = self.binding.columns[role]
        total = np.zeros(self.table.num_rows, dtype=np.int64)
        for name in names:
            values = column_of(self.table, name)
            if is_list(values.type):
                total += pc.fill_null(pc.list_value_length(values), 0).to_numpy(zero_copy_only=False)
            else:
                total += values.is_valid().to_numpy(zero_copy_only=False)
        return total

    def candidates(self, name: str, values: pa.Array) -> None:
        """One number a candidate: as many as there are texts, all finite but for -inf where the loss gives it a meaning."""
        fmt = self.binding.format
        roles = {"margins": fmt.roles[2:], "scores": fmt.roles[1:], "grades": fmt.roles[1:]}[fmt.label or ""]
        wanted = sum(self._count(role) for role in roles)
        lengths = pc.fill_null(pc.list_value_length(values), -1).to_numpy(zero_copy_only=False)
        wrong = np.flatnonzero((lengths >= 0) & (lengths != wanted))
        if len(wrong):
            i = wrong[0]
            texts = " and ".join(roles)
            message = f"{lengths[i]} numbers for {wanted[i]} texts ({texts}); one number a text is needed."
            self.fault("E105", message, name, wrong, "lengths")
        owner = pc.list_parent_indices(values).to_numpy(zero_copy_only=False)
        inside = pc.list_flatten(values)
        numbers = inside.cast(pa.float64()).to_numpy(zero_copy_only=False)
        finite = np.isfinite(numbers)
        bad, what = ~finite, "null, NaN or infinite"
        if self.spec.leaves_out:
            bad, what = bad & ~(numbers == -np.inf), "null, NaN or +infinity"
            found = np.isin(owner, owner[finite | bad], invert=True)
            if found.any():
                self.fault("E105", "only values of -inf in the list; no candidate is left.", name, owner[found])
        if bad.any():
            self.fault("E105", f"a value that is {what} in the list.", name, owner[bad])
        if finite.any():
            self.widen(numbers, finite)
            self.range(name, numbers, finite, owner)
        if fmt.label == "grades" and len(numbers):
            self.order(name, numbers, owner)

    def order(self, name: str, grades: Any, owner: Any) -> None:
        """Count lists of equal grades; where only the order is read, a better grade that comes later is a fault."""
        begin = np.flatnonzero(np.diff(owner, prepend=-1))
        self.lists += len(begin)
        self.flat += int((np.maximum.reduceat(grades, begin) == np.minimum.reduceat(grades, begin)).sum())
        rises = np.flatnonzero((grades[1:] > grades[:-1]) & (owner[1:] == owner[:-1]))
        if self.spec.best_first and len(rises):
            message = (
                f"a better grade comes later in the list, but '{self.spec.name}' takes the documents as given, best first, and "
                f"reads no grades. To sort them by grade, write {self.spec.best_first} in the loss."
            )
            self.fault("E105", message, name, owner[rises], "order")

    def vectors(self, name: str, values: pa.Array) -> None:
        """Teacher vectors: one dimension in all rows, finite; one a row, or one a text."""
        owner = pc.list_parent_indices(values).to_numpy(zero_copy_only=False)
        inside = pc.list_flatten(values)
        if is_list(inside.type):
            lengths = pc.fill_null(pc.list_value_length(values), -1).to_numpy(zero_copy_only=False)
            wanted = sum(self._count(role) for role in self.binding.columns)
            wrong = np.flatnonzero((lengths >= 0) & (lengths != wanted))
            if len(wrong):
                i = wrong[0]
                message = f"{lengths[i]} vectors for {wanted[i]} texts; one for all, or one for each."
                self.fault("E105", message, name, wrong, "lengths")
            rows = owner
            sizes = pc.fill_null(pc.list_value_length(inside), 0).to_numpy(zero_copy_only=False)
            owner = owner[pc.list_parent_indices(inside).to_numpy(zero_copy_only=False)]
            inside = pc.list_flatten(inside)
        else:
            rows = np.arange(len(values))
            sizes = pc.fill_null(pc.list_value_length(values), -1).to_numpy(zero_copy_only=False)
            rows, sizes = rows[sizes >= 0], sizes[sizes >= 0]
        full = np.flatnonzero(sizes)
        if self.vector is None and len(full):
            self.vector = (int(sizes[full[0]]), self.report.rows + int(rows[full[0]]) + 1)
        if self.vector is None:
            if len(rows):
                self.fault("E105", "an empty vector.", name, rows)
        elif len(other := np.flatnonzero(sizes != self.vector[0])):
            message = f"a vector of {sizes[other[0]]} numbers; row {self.vector[1]} has {self.vector[0]}."
            self.fault("E105", message, name, rows[other], "dimension")
        numbers = inside.cast(pa.float64()).to_numpy(zero_copy_only=False)
        bad = np.flatnonzero(~np.isfinite(numbers))
        if len(bad):
            self.fault("E105", "a value that is null, NaN or infinite in the vector.", name, owner[bad])


def check_rows(
    dataset: datasets.Dataset,
    binding: Binding,
    spec: LossSpec,
    *,
    limit: int | None = None,
    scale_labels: bool = False,
    sampler: str = "auto",
) -> Report:
    """Look at every row for what the loss cannot use. Raises nothing itself: see `Report.raise_if_faulty`.

    Args:
        dataset: the rows as they were read.
        binding: from `bind`.
        spec: of the loss: label range, sampler.
        limit: look at the first rows only.
        scale_labels: labels will be scaled to the loss's range, so any finite one will do.
        sampler: the batch sampler that is asked for; "auto" is the loss's own.
    """
    table = table_of(dataset)
    return check_tables([table if limit is None else table.slice(0, limit)], binding, spec, scale_labels, sampler)


def check_tables(
    tables: Iterable[pa.Table],
    binding: Binding,
    spec: LossSpec,
    scale_labels: bool = False,
    sampler: str = "auto",
    collector: Collector | None = None,
) -> Report:
    """As `check_rows`, for rows that come in chunks of any size; memory does not grow with their number.

    Args:
        tables: such as `chunks.Chunks`.
        binding: from `bind`.
        spec: of the loss.
        scale_labels: labels will be scaled to the loss's range.
        sampler: the batch sampler that is asked for.
        collector: looks at the same rows; call its `finish` afterwards.
    """
    checker = _Checker(binding, spec, scale_labels, sampler)
    for table in tables:
        checker.add(table)
        if collector is not None:
            collector.add(table)
    return checker.finish()


def label_scale(report: Report, spec: LossSpec) -> tuple[tuple[float, float], tuple[float, float]] | None:
    """From which range to which `bound_dataset` maps labels for `--scale-labels`; None where labels are no numbers.

    The lowest and highest label of the data go to the ends of the loss's range. Where no label is negative and the loss
    takes negative ones, they go to 0 and the upper end: a score of 0 says "unrelated", not "opposite".

    Raises:
        EmbedlossError: E105 if the loss takes labels of any range, or all labels are equal.
    """
    if report.label_span is None:
        return None
    if spec.label_range is None:
        raise EmbedlossError("E105", f"'{spec.name}' takes labels of any range; leave out --scale-labels.")
    low, high = report.label_span
    if low == high:
        raise EmbedlossError("E105", f"every label is {low:g}; there is no range to scale from.")
    to_low, to_high = spec.label_range
    return (low, high), (0.0 if low >= 0 > to_low else float(to_low), float(to_high))


# -- the data set that is trained on ----------------------------------------------------------------------------------
def _name_ids(values: pa.Array) -> dict[str, int]:
    names = sorted(name for name in values.unique().to_pylist() if name is not None)
    return {name: i for i, name in enumerate(names)}


def class_ids(dataset: datasets.Dataset, binding: Binding) -> dict[str, int] | None:
    """Name -> id where classes are given by name (alphabetical order), else None.

    Give the training data's to `bound_dataset` for evaluation data, which may lack some classes.
    """
    if binding.format.label != "class" or binding.label is None:
        return None
    values = column_of(table_of(dataset), binding.label)
    return _name_ids(values) if is_text(values.type) else None


def bound_dataset(
    dataset: datasets.Dataset,
    binding: Binding,
    *,
    classes: Mapping[str, int] | None = None,
    scale: tuple[tuple[float, float], tuple[float, float]] | None = None,
) -> datasets.Dataset:
    """The rows under the names of their roles; none is dropped or moved. Call `check_rows` first.

    Args:
        dataset: the rows as they were read.
        binding: from `bind`.
        classes: name -> id for classes given by name; by default from this data set in alphabetical order.
        scale: labels are mapped linearly from the first range to the second.

    Returns:
        One column a role (text, or list of texts for a list role and where a text is missing), then "label", "id" and "weight"
        where they are bound. Classes given by name become a `datasets.ClassLabel`, so their names are kept.
    """
    import datasets

    table = table_of(dataset)
    columns: dict[str, pa.Array] = {}
    for role, names in binding.columns.items():
        several = role in binding.format.lists or table[names[0]].null_count  # null: a loss to which a text is optional
        columns[role] = _texts(table, names) if several else table[names[0]]
    feature: Any = None
    if binding.label:
        columns["label"], names_of = _labels(table, binding, classes, scale)
        original = dataset.features[binding.label]
        if isinstance(original, datasets.ClassLabel):
            feature = original
        elif names_of is not None:
            feature = datasets.ClassLabel(names=names_of)
    if binding.id:
        columns[ID_COLUMN] = table[binding.id]
    if binding.weight:
        columns[WEIGHT_COLUMN] = table[binding.weight].cast(pa.float64(), safe=False)
    bound = pa.table(columns)
    features = datasets.Features.from_arrow_schema(bound.schema)
    if feature is not None and pa.types.is_integer(bound.schema.field("label").type):
        features["label"] = feature
    return datasets.Dataset(bound, info=datasets.DatasetInfo(features=features))


def _texts(table: pa.Table, names: Sequence[str]) -> pa.Array:
    if len(names) > 1:
        rows = zip(*(table[name].to_pylist() for name in names), strict=True)
        return pa.array([[text for text in row if text is not None] for row in rows], pa.list_(pa.string()))
    values = table[names[0]]
    if is_list(values.type):
        if values.null_count:  # a loss to which a text is optional
            return pa.array([texts or [] for texts in values.to_pylist()], pa.list_(pa.string()))
        return values.cast(pa.list_(pa.string())) if pa.types.is_fixed_size_list(values.type) else values
    single = column_of(table, names[0])
    ends = np.concatenate([[0], np.cumsum(single.is_valid().to_numpy(zero_copy_only=False))])
    return pa.LargeListArray.from_arrays(ends, single.drop_null())


def _labels(
    table: pa.Table,
    binding: Binding,
    classes: Mapping[str, int] | None,
    scale: tuple[tuple[float, float], tuple[float, float]] | None,
) -> tuple[pa.Array, list[str] | None]:
    assert binding.label is not None
    values = column_of(table, binding.label)
    kind = binding.format.label
    if is_text(values.type):
        ids = dict(classes) if classes is not None else _name_ids(values)
        for i, name in enumerate(values.to_pylist()):
            if name not in ids:
                known = ", ".join(list(ids)[:5]) + (", ..." if len(ids) > 5 else "")
                raise EmbedlossError("E105", f"column '{binding.label}', row {i + 1}: unknown class '{name}'. Known: {known}.")
        names = sorted(ids, key=lambda name: ids[name])
        contiguous = [ids[name] for name in names] == list(range(len(names)))
        return pa.array([ids[name] for name in values.to_pylist()], pa.int64()), names if contiguous else None
    if is_list(values.type):
        if scale is None or kind == "embedding":
            return values, None
        inside = pa.array(_scaled(pc.list_flatten(values), scale))
        return pa.LargeListArray.from_arrays(values.offsets, inside), None  # no null lists after `check_rows`
    if kind in ("class", "binary"):
        return values.cast(pa.float64(), safe=False).cast(pa.int64()), None
    return values.cast(pa.float64(), safe=False) if scale is None else pa.array(_scaled(values, scale)), None


def _scaled(values: pa.Array, scale: tuple[tuple[float, float], tuple[float, float]]) -> Any:
    (low, high), (to_low, to_high) = scale
    numbers = values.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    factor = (to_high - to_low) / (high - low) if high > low else 0.0
    return np.clip(to_low + (numbers - low) * factor, to_low, to_high)  # rounding must not leave the range
