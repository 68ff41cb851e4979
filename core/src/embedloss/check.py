"""Look at rows before anything is trained: every fault at once, with row numbers. Imports no torch.

`bind` (columns -> roles) is in `embedloss.binding` and can be imported from here as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from embedloss.binding import ID_COLUMN, Binding, bind, losses_for
from embedloss.errors import EmbedlossError
from embedloss.spec import LossSpec

if TYPE_CHECKING:
    import datasets

__all__ = ["Binding", "Fault", "Report", "bind", "bound_dataset", "check_rows", "class_ids", "column_kinds", "losses_for"]

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
    """

    rows: int
    faults: list[Fault] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    classes: dict[str, int] | None = None
    label_span: tuple[float, float] | None = None

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
        }


# -- columns ----------------------------------------------------------------------------------------------------------
def table_of(dataset: datasets.Dataset) -> pa.Table:
    """The rows of a data set as an Arrow table; nothing is written to a cache."""
    table = dataset.data.table
    return table if dataset._indices is None else table.take(dataset._indices.column(0))


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def kind_of(kind: pa.DataType) -> str:
    """Kind of a column of that type: text, texts, int, float, floats, vectors, empty or other."""
    if pa.types.is_null(kind):
        return "empty"
    if _is_text(kind):
        return "text"
    if pa.types.is_boolean(kind) or pa.types.is_integer(kind):
        return "int"
    if pa.types.is_floating(kind):
        return "float"
    if _is_list(kind):
        inner = kind_of(kind.value_type)
        return {"text": "texts", "int": "floats", "float": "floats", "floats": "vectors", "empty": "empty"}.get(inner, "other")
    return "other"


def column_kinds(dataset: datasets.Dataset) -> dict[str, str]:
    """Name -> kind of every column, in order: text, texts, int, float, floats, vectors, empty or other."""
    table = dataset.data
    schema = table.schema
    return {name: kind_of(schema.field(name).type) for name in dataset.column_names}


def _column(table: pa.Table, name: str) -> pa.Array:
    """One column as one array; offsets of 64 bits, so that no size of text overflows."""
    values = table[name]
    kind = values.type
    if _is_text(kind):
        values = values.cast(pa.large_string())
    elif _is_list(kind):
        inner = kind.value_type
        if _is_list(inner):
            inner = pa.large_list(pa.float64())
        elif _is_text(inner):
            inner = pa.large_string()
        elif pa.types.is_integer(inner) or pa.types.is_floating(inner) or pa.types.is_boolean(inner):
            inner = pa.float64()
        values = values.cast(pa.large_list(inner))
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
    def __init__(self, table: pa.Table, binding: Binding, spec: LossSpec) -> None:
        self.table, self.binding, self.spec = table, binding, spec
        self.report = Report(table.num_rows)

    def fault(self, code: str, message: str, column: str | None = None, where: Any = ()) -> None:
        rows = np.unique(np.asarray(where, dtype=np.int64)) + 1
        self.report.faults.append(Fault(code, message, column, tuple(int(r) for r in rows[:_SHOWN_ROWS]), len(rows)))

    def run(self, scaled: bool) -> Report:
        rows = self.table.num_rows
        if rows < 2:
            self.fault("E106", f"the data set has {rows} row{'s' * (rows != 1)}; at least two are needed.")
        for role, columns in self.binding.columns.items():
            if len(columns) == 1:
                self.texts(role, columns[0])
            else:
                self.several(role, columns)
        if self.binding.label:
            self.label(self.binding.label, scaled)
        return self.report

    def texts(self, role: str, name: str) -> None:
        values = _column(self.table, name)
        null = _where(values.is_null())
        if len(null):
            self.fault("E104", "no value (null) where a text is needed. Repair or remove these rows.", name, null)
        if not _is_list(values.type):
            blank = _where(_blank(values))
            if len(blank):
                self.fault("E104", "empty text. Repair or remove these rows.", name, blank)
            return
        empty = _where(pc.equal(pc.list_value_length(values), 0))
        if len(empty):
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
            values = _column(self.table, name)
            blank = _where(_blank(values))
            if len(blank):
                self.fault("E104", "empty text; write null where there is none.", name, blank)
            filled += ~np.asarray(values.is_null().to_numpy(zero_copy_only=False), dtype=bool)
        if len(without := np.flatnonzero(filled == 0)):
            self.fault("E104", f"no text for '{role}' in any of {', '.join(names)}.", None, without)

    # -- labels -------------------------------------------------------------------------------------------------------
    def label(self, name: str, scaled: bool) -> None:
        kind = self.binding.format.label_kind
        assert kind is not None
        values = _column(self.table, name)
        null = _where(values.is_null())
        if len(null):
            self.fault("E105", f"no label (null); {kind.summary} needed.", name, null)
        if _is_list(values.type):
            if kind.name == "embedding":
                self.vectors(name, values)
            else:
                self.candidates(name, values)
        elif _is_text(values.type):
            self.class_names(name, values)
        else:
            self.numbers(name, kind.name, values, scaled)

    def class_names(self, name: str, values: pa.Array) -> None:
        blank = _where(_blank(values))
        if len(blank):
            self.fault("E105", "an empty class name.", name, blank)
        self.report.classes = _name_ids(values)
        self.groups(name, values)

    def numbers(self, name: str, kind: str, values: pa.Array, scaled: bool) -> None:
        numbers = values.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
        known = _where(values.is_valid())
        infinite = known[~np.isfinite(numbers[known])]
        if len(infinite):
            self.fault("E105", "the label is not finite (NaN or infinity).", name, infinite)
        finite = np.isfinite(numbers)
        if not finite.any():
            return
        low, high = float(numbers[finite].min()), float(numbers[finite].max())
        self.report.label_span = (low, high)
        loss = self.spec.name
        if kind == "binary":
            bad = np.flatnonzero(finite & (numbers != 0) & (numbers != 1))
            if len(bad):
                found = f"{numbers[bad[0]]:g}"
                hint = " Write 0 instead of -1." if set(numbers[bad]) == {-1.0} else ""
                self.fault("E105", f"the label is {found}; '{loss}' takes 0 or 1.{hint}", name, bad)
            elif low == high:
                self.report.warnings.append(f"every label in '{name}' is {low:g}; there is nothing to tell apart")
        elif kind == "class":
            broken = np.flatnonzero(finite & (numbers != np.floor(numbers)))
            if len(broken):
                self.fault(
                    "E105", f"the label is {numbers[broken[0]]:g}; a class id is a whole number: 0, 1, 2, ...", name, broken
                )
            negative = np.flatnonzero(finite & (numbers < 0))
            if len(negative):
                self.fault(
                    "E105",
                    f"the class id is {numbers[negative[0]]:g}; ids begin at 0 (-1 often means unlabelled).",
                    name,
                    negative,
                )
            present = np.unique(numbers[finite])
            if not len(broken) and not len(negative) and len(present) != high + 1:
                self.report.warnings.append(
                    f"'{name}' holds {len(present)} of the class ids 0 to {high:g}; a classifier has one output for each id"
                )
            self.groups(name, values)
        else:
            self.range(name, numbers, finite, scaled)
            if low == high:
                self.report.warnings.append(f"every label in '{name}' is {low:g}; there is nothing to rank")

    def range(self, name: str, numbers: Any, finite: Any, scaled: bool, owner: Any = None) -> None:
        if self.spec.label_range is None or scaled:
            return
        low, high = self.spec.label_range
        bad = np.flatnonzero(finite & ((numbers < low) | (numbers > high)))
        if len(bad):
            found = f"{float(numbers[finite].min()):g} to {float(numbers[finite].max()):g}"
            self.fault(
                "E105",
                f"labels from {found}; '{self.spec.name}' takes {low:g} to {high:g}. "
                f"Type --scale-labels to map them linearly, or change the file.",
                name,
                bad if owner is None else owner[bad],
            )

    def groups(self, name: str, values: pa.Array) -> None:
        """Batches of `group-by-label` need two classes with two rows each."""
        if self.spec.sampler != "group-by-label":
            return
        counts = pc.value_counts(values.drop_null())
        large = sum(c.as_py() >= 2 for c in counts.field("counts"))
        if large < 2:
            self.fault(
                "E106",
                f"'{self.spec.name}' needs two classes with two rows each; {large} of {len(counts)} have them.",
                name,
            )

    def _count(self, role: str) -> Any:
        """Texts of a role, row by row."""
        names = self.binding.columns[role]
        total = np.zeros(self.table.num_rows, dtype=np.int64)
        for name in names:
            values = _column(self.table, name)
            if _is_list(values.type):
                total += pc.fill_null(pc.list_value_length(values), 0).to_numpy(zero_copy_only=False)
            else:
                total += values.is_valid().to_numpy(zero_copy_only=False)
        return total

    def candidates(self, name: str, values: pa.Array) -> None:
        """One number a candidate: as many as there are texts, all finite."""
        fmt = self.binding.format
        roles = {"margins": fmt.roles[2:], "scores": fmt.roles[1:], "grades": fmt.roles[1:]}[fmt.label or ""]
        wanted = sum(self._count(role) for role in roles)
        lengths = pc.fill_null(pc.list_value_length(values), -1).to_numpy(zero_copy_only=False)
        wrong = np.flatnonzero((lengths >= 0) & (lengths != wanted))
        if len(wrong):
            i = wrong[0]
            texts = " and ".join(roles)
            self.fault(
                "E105", f"{lengths[i]} numbers for {wanted[i]} texts ({texts}); one number a text is needed.", name, wrong
            )
        owner = pc.list_parent_indices(values).to_numpy(zero_copy_only=False)
        inside = pc.list_flatten(values)
        numbers = inside.cast(pa.float64()).to_numpy(zero_copy_only=False)
        bad = np.flatnonzero(~np.isfinite(numbers))
        if len(bad):
            self.fault("E105", "a value that is null, NaN or infinite in the list.", name, owner[bad])
        finite = np.isfinite(numbers)
        if finite.any():
            self.report.label_span = (float(numbers[finite].min()), float(numbers[finite].max()))
            self.range(name, numbers, finite, False, owner)

    def vectors(self, name: str, values: pa.Array) -> None:
        """Teacher vectors: one dimension in all rows, finite; one a row, or one a text."""
        owner = pc.list_parent_indices(values).to_numpy(zero_copy_only=False)
        inside = pc.list_flatten(values)
        if _is_list(inside.type):
            lengths = pc.fill_null(pc.list_value_length(values), -1).to_numpy(zero_copy_only=False)
            wanted = sum(self._count(role) for role in self.binding.columns)
            wrong = np.flatnonzero((lengths >= 0) & (lengths != wanted))
            if len(wrong):
                i = wrong[0]
                self.fault("E105", f"{lengths[i]} vectors for {wanted[i]} texts; one for all, or one for each.", name, wrong)
            rows = owner
            sizes = pc.fill_null(pc.list_value_length(inside), 0).to_numpy(zero_copy_only=False)
            owner = owner[pc.list_parent_indices(inside).to_numpy(zero_copy_only=False)]
            inside = pc.list_flatten(inside)
        else:
            rows = np.arange(len(values))
            sizes = pc.fill_null(pc.list_value_length(values), -1).to_numpy(zero_copy_only=False)
            rows, sizes = rows[sizes >= 0], sizes[sizes >= 0]
        if len(sizes):
            other = np.flatnonzero(sizes != sizes[0])
            if sizes[0] == 0:
                self.fault("E105", "an empty vector.", name, rows[np.flatnonzero(sizes == 0)])
            elif len(other):
                self.fault(
                    "E105", f"a vector of {sizes[other[0]]} numbers; row {rows[0] + 1} has {sizes[0]}.", name, rows[other]
                )
        numbers = inside.cast(pa.float64()).to_numpy(zero_copy_only=False)
        bad = np.flatnonzero(~np.isfinite(numbers))
        if len(bad):
            self.fault("E105", "a value that is null, NaN or infinite in the vector.", name, owner[bad])


def check_rows(
    dataset: datasets.Dataset, binding: Binding, spec: LossSpec, *, limit: int | None = None, scale_labels: bool = False
) -> Report:
    """Look at every row for what the loss cannot use. Raises nothing itself: see `Report.raise_if_faulty`.

    Args:
        dataset: the rows as they were read.
        binding: from `bind`.
        spec: of the loss: label range, sampler.
        limit: look at the first rows only.
        scale_labels: labels will be scaled to the loss's range, so any finite one will do.
    """
    table = table_of(dataset)
    return _Checker(table if limit is None else table.slice(0, limit), binding, spec).run(scale_labels)


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
    values = _column(table_of(dataset), binding.label)
    return _name_ids(values) if _is_text(values.type) else None


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
        One column a role (text, or list of texts for a list role), then "label" and "id" where they are bound. Classes
        given by name become a `datasets.ClassLabel`, so their names are kept.
    """
    import datasets

    table = table_of(dataset)
    columns: dict[str, pa.Array] = {}
    for role, names in binding.columns.items():
        columns[role] = _texts(table, names) if role in binding.format.lists else table[names[0]]
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
    if _is_list(values.type):
        return values.cast(pa.list_(pa.string())) if pa.types.is_fixed_size_list(values.type) else values
    single = _column(table, names[0])
    return pa.LargeListArray.from_arrays(np.arange(len(single) + 1), single)


def _labels(
    table: pa.Table,
    binding: Binding,
    classes: Mapping[str, int] | None,
    scale: tuple[tuple[float, float], tuple[float, float]] | None,
) -> tuple[pa.Array, list[str] | None]:
    assert binding.label is not None
    values = _column(table, binding.label)
    kind = binding.format.label
    if _is_text(values.type):
        ids = dict(classes) if classes is not None else _name_ids(values)
        for i, name in enumerate(values.to_pylist()):
            if name not in ids:
                known = ", ".join(list(ids)[:5]) + (", ..." if len(ids) > 5 else "")
                raise EmbedlossError("E105", f"column '{binding.label}', row {i + 1}: unknown class '{name}'. Known: {known}.")
        names = sorted(ids, key=lambda name: ids[name])
        contiguous = [ids[name] for name in names] == list(range(len(names)))
        return pa.array([ids[name] for name in values.to_pylist()], pa.int64()), names if contiguous else None
    if _is_list(values.type):
        return values, None
    if kind in ("class", "binary"):
        return values.cast(pa.float64(), safe=False).cast(pa.int64()), None
    numbers = values.cast(pa.float64(), safe=False)
    if scale is not None:
        (low, high), (to_low, to_high) = scale
        factor = (to_high - to_low) / (high - low) if high > low else 0.0
        scaled = to_low + (numbers.to_numpy(zero_copy_only=False) - low) * factor
        numbers = pa.array(np.clip(scaled, to_low, to_high))  # rounding must not leave the range
    return numbers, None
