"""Columns -> roles, by name and never by position; or a refusal that says what to type. Imports no torch and no data."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from embedloss.errors import EmbedlossError
from embedloss.formats import FORMATS, LABELS, ROLE_COLUMNS, DataFormat, LabelKind

TEXT, TEXTS = "text", "texts"
# How a kind of column is called in messages.
KIND_NAMES = {
    "text": "text",
    "texts": "list of texts",
    "int": "whole number",
    "float": "number",
    "floats": "list of numbers",
    "vectors": "list of vectors",
    "empty": "no values",
    "other": "neither text nor number",
}
# Kinds of column that a kind of label may have.
LABEL_COLUMN_KINDS: dict[str, tuple[str, ...]] = {
    "class": ("int", "text", "float"),
    "binary": ("int", "float"),
    "score": ("float", "int"),
    "margin": ("float", "int"),
    "margins": ("floats",),
    "scores": ("floats",),
    "grades": ("floats",),
    "embedding": ("floats", "vectors"),
}
# Names under which people keep labels; such a column is never left out silently.
_LABEL_NAMES = frozenset(name for kind in LABELS.values() for name in kind.columns) | frozenset(
    ("target", "targets", "gold", "y", "grade", "rating", "ratings", "relevance_score", "similarity_score", "logit", "logits")
)
# Names under which people keep the weights of rows.
_WEIGHT_NAMES = frozenset(("weight", "weights", "sample_weight", "sample_weights", "row_weight"))
_ROLE_NAMES = frozenset(name for names in ROLE_COLUMNS.values() for name in names)
_ID_NAMES = re.compile(r"(.*_)?(id|ids|idx|guid|uuid)|index")
_NUMBERED = re.compile(r"(.*?[a-z])_?(\d+)")
ID_COLUMN = "id"
WEIGHT_COLUMN = "weight"
NOT_TEXTS = ("label", ID_COLUMN, WEIGHT_COLUMN)
"""Names in bound rows that are no roles of texts."""


@dataclass(frozen=True)
class Binding:
    """Which columns a loss is trained on.

    Args:
        format: the data format they make.
        columns: role -> its columns, in order; several columns (negative_1, negative_2) may feed a list role.
        label: column of the label, or None.
        unused: columns that are left out.
        id: column that identifies a row, or None.
        weight: column by whose numbers the losses of the rows are multiplied, or None.
        label_ignored: the format has a label that this loss does not look at.
    """

    format: DataFormat
    columns: dict[str, tuple[str, ...]]
    label: str | None = None
    unused: tuple[str, ...] = ()
    id: str | None = None
    label_ignored: bool = False
    weight: str | None = None

    def describe(self) -> str:
        """The text that is printed before anything is done with the data."""
        parts = [(role, ", ".join(columns)) for role, columns in self.columns.items()]
        kind = self.format.label_kind
        if self.label and kind:
            meaning = "not used by this loss" if self.label_ignored else f"{kind.name}: {kind.summary}"
            parts.append(("label", f"{self.label} ({meaning})"))
        if self.id:
            parts.append(("id", self.id))
        if self.weight:
            parts.append(("weight", f"{self.weight} (the row's loss is multiplied by it)"))
        width = max(len(name) for name, _ in parts)
        lines = [f"format {self.format.name}", *(f"  {name:<{width}} <- {column}" for name, column in parts)]
        if self.unused:
            lines.append(f"  not used: {', '.join(self.unused)}")
        return "\n".join(lines)

    def to_json(self) -> dict[str, object]:
        """Plain data for `--json`."""
        return {
            "format": self.format.name,
            "columns": {role: list(columns) for role, columns in self.columns.items()},
            "label": self.label,
            "id": self.id,
            "weight": self.weight,
            "unused": list(self.unused),
        }


def key_of(name: str) -> str:
    """Case, hyphen and blank do not matter in names of columns."""
    return name.strip().lower().replace("-", "_").replace(" ", "_")


def _stem(name: str) -> str:
    """The name without its number: "negative_2" and "negative2" -> "negative"."""
    match = _NUMBERED.fullmatch(key_of(name))
    return match[1] if match else key_of(name)


def is_label_name(name: str) -> bool:
    """Whether a column of that name is a label."""
    return key_of(name) in _LABEL_NAMES


def is_known_name(name: str) -> bool:
    """Whether the name of a column stands for a role or a label without a mapping."""
    key = key_of(name)
    return key in _LABEL_NAMES or key in _ROLE_NAMES or _stem(name) in ROLE_COLUMNS["negative"]


@dataclass
class _Attempt:
    """How the columns fit one format."""

    format: DataFormat
    columns: dict[str, tuple[str, ...]] = field(default_factory=dict)
    label: str | None = None
    id: str | None = None
    weight: str | None = None
    missing: list[str] = field(default_factory=list)
    missing_label: bool = False
    wrong: list[str] = field(default_factory=list)
    wrong_code: str = "E104"
    extra_texts: list[str] = field(default_factory=list)
    extra_labels: list[str] = field(default_factory=list)
    extra_weights: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)

    @property
    def fits(self) -> bool:
        extra = self.extra_texts or self.extra_labels or self.extra_weights
        return not (self.missing or self.missing_label or self.wrong or extra)

    @property
    def used(self) -> set[str]:
        found = {c for columns in self.columns.values() for c in columns}
        return found | {c for c in (self.label, self.id, self.weight) if c}

    def order(self, kinds: Mapping[str, str]) -> tuple[int, ...]:
        """Smaller is better: nothing missing, then most columns, then the label that suits the column best."""
        problems = 2 * len(self.missing) + 2 * self.missing_label + 2 * len(self.wrong)
        problems += len(self.extra_texts) + len(self.extra_labels) + len(self.extra_weights)
        affinity = place = 0
        if self.label and self.format.label:
            names = LABELS[self.format.label].columns
            affinity = LABEL_COLUMN_KINDS[self.format.label].index(kinds[self.label])
            place = names.index(key_of(self.label)) if key_of(self.label) in names else len(names)
        single_in_list = sum(
            role in self.format.lists and len(columns) == 1 and kinds[columns[0]] == TEXT
            for role, columns in self.columns.items()
        )
        return problems, -len(self.used), single_in_list, affinity, place


def _label_keys(kind: LabelKind) -> set[str]:
    return {"label", kind.name, *kind.columns}


def _attempt(
    kinds: Mapping[str, str],
    fmt: DataFormat,
    mapping: Mapping[str, tuple[str, ...]],
    any_format: bool,
    weights: bool = False,
) -> _Attempt:
    attempt = _Attempt(fmt)
    taken = {column for columns in mapping.values() for column in columns}
    free = [c for c in kinds if c not in taken]
    for role in fmt.roles:
        columns = mapping.get(role) or _by_name(role, role in fmt.lists, free, kinds)
        if not columns:
            attempt.missing.append(role)
            continue
        attempt.columns[role] = columns
        free = [c for c in free if c not in columns]
        attempt.wrong += _wrong_kinds(role, role in fmt.lists, columns, kinds)
    _bind_label(attempt, kinds, mapping, free, any_format)
    ids = mapping.get(ID_COLUMN) or tuple(c for c in free if key_of(c) == ID_COLUMN and c != attempt.label)[:1]
    if ids and kinds[ids[0]] in ("text", "int"):
        attempt.id = ids[0]
    if weights:
        attempt.weight = _weight(attempt, kinds, mapping, free)
    # With every text role typed by the user, metadata needs no --drop; columns that are known to mean something still do.
    explicit = all(role in mapping for role in fmt.roles)
    for column, kind in kinds.items():
        if column in attempt.used:
            continue
        if key_of(column) in _WEIGHT_NAMES and kind in ("int", "float") and not explicit:
            attempt.extra_weights.append(column)
        elif is_label_name(column) and not any_format:
            attempt.extra_labels.append(column)
        elif kind in (TEXT, TEXTS) and not (is_label_name(column) or _ID_NAMES.fullmatch(key_of(column))):
            if explicit and not is_known_name(column):
                attempt.unused.append(column)
            else:
                attempt.extra_texts.append(column)
        else:
            attempt.unused.append(column)
    return attempt


def _weight(
    attempt: _Attempt, kinds: Mapping[str, str], mapping: Mapping[str, tuple[str, ...]], free: Sequence[str]
) -> str | None:
    """The column of weights; a fault where one that the user typed holds no numbers."""
    typed = mapping.get(WEIGHT_COLUMN)
    if typed is None:
        numbers = (c for c in free if kinds[c] in ("int", "float") and c not in (attempt.label, attempt.id))
        return next((c for c in numbers if key_of(c) in _WEIGHT_NAMES), None)
    if kinds[typed[0]] in ("int", "float"):
        return typed[0]
    found = KIND_NAMES.get(kinds[typed[0]], kinds[typed[0]])
    attempt.wrong.append(f"weight <- '{typed[0]}': found {found} (row 1 on); one number a row needed")
    return None


def _by_name(role: str, several: bool, free: Sequence[str], kinds: Mapping[str, str]) -> tuple[str, ...]:
    names = ROLE_COLUMNS.get(role, (role,))
    exact = sorted((names.index(key_of(c)), i, c) for i, c in enumerate(free) if key_of(c) in names)
    if not several:
        return (exact[0][2],) if exact else ()
    if exact and kinds[exact[0][2]] != TEXT:
        return (exact[0][2],)
    found = [c for _, _, c in exact if kinds[c] == TEXT]
    numbered = []
    for column in free:
        match = _NUMBERED.fullmatch(key_of(column))
        if match and match[1] in names and column not in found:
            numbered.append((names.index(match[1]), int(match[2]), column))
    return (*found, *(c for _, _, c in sorted(numbered)))


def _wrong_kinds(role: str, several: bool, columns: Sequence[str], kinds: Mapping[str, str]) -> list[str]:
    wanted = (TEXT, TEXTS) if several else (TEXT,)
    faults = []
    for column in columns:
        kind = kinds[column]
        if kind in wanted:
            continue
        needs = "texts or a list of texts" if several else "one text a row"
        if kind == "empty":
            faults.append(f"'{role}' <- '{column}': the column holds no values from row 1 on; {needs} needed")
        else:
            faults.append(f"'{role}' <- '{column}': found {KIND_NAMES.get(kind, kind)} (row 1 on); {needs} needed")
    if len(columns) > 1 and any(kinds[c] == TEXTS for c in columns):
        faults.append(f"'{role}' <- {', '.join(columns)}: several columns must hold one text each, not lists")
    return faults


def _bind_label(
    attempt: _Attempt, kinds: Mapping[str, str], mapping: Mapping[str, tuple[str, ...]], free: Sequence[str], any_format: bool
) -> None:
    kind = attempt.format.label_kind
    if kind is None:
        return
    wanted = LABEL_COLUMN_KINDS[kind.name]
    explicit = next((mapping[k][0] for k in mapping if k in _label_keys(kind) and k not in attempt.format.roles), None)
    if explicit is not None:
        attempt.label = explicit if kinds[explicit] in wanted else None
        if attempt.label is None:
            found = KIND_NAMES.get(kinds[explicit], kinds[explicit])
            attempt.wrong.append(f"label <- '{explicit}': found {found} (row 1 on); {kind.summary} needed")
            attempt.wrong_code = "E105"
        return
    named = sorted((kind.columns.index(key_of(c)), i, c) for i, c in enumerate(free) if key_of(c) in kind.columns)
    attempt.label = next((c for _, _, c in named if kinds[c] in wanted), None)
    if attempt.label is None:
        if named:
            column = named[0][2]
            attempt.wrong.append(
                f"label <- '{column}': found {KIND_NAMES.get(kinds[column])} (row 1 on); {kind.summary} needed"
            )
            attempt.wrong_code = "E105"
        attempt.missing_label = not named and not any_format


def _parse_mapping(
    columns: Mapping[str, str], formats: Sequence[DataFormat], mapping: Mapping[str, str], loss_name: str, weights: bool = False
) -> dict[str, tuple[str, ...]]:
    """Explicit mapping with roles and columns checked; "a,b" are two columns for a list role."""
    lists = {role for f in formats for role in f.lists}
    roles = list(dict.fromkeys(role for f in formats for role in f.roles))
    labels = list(dict.fromkeys(k for f in formats if f.label_kind for k in ("label", *sorted(_label_keys(f.label_kind)))))
    parsed: dict[str, tuple[str, ...]] = {}
    faults = []
    for raw, value in mapping.items():
        role = key_of(raw)
        if role not in roles and role not in labels and role != ID_COLUMN and not (weights and role == WEIGHT_COLUMN):
            near = [r for r in roles if role in ROLE_COLUMNS.get(r, ())] or difflib.get_close_matches(
                role, [*roles, "label"], 1
            )
            takes = ", ".join([*roles, *(["label"] if labels else [])])
            hint = f" Did you mean --map {near[0]}={value}?" if near else ""
            if role == "label":
                hint = " It takes no label."
            faults.append(f"--map {raw}={value}: '{loss_name}' has no role '{raw}'.{hint} Roles: {takes}.")
            continue
        names = (value,) if value in columns else tuple(v.strip() for v in value.split(","))
        for name in names:
            if name not in columns:
                faults.append(f"--map {raw}={value}: there is no column '{name}'.{did_you_mean(name, columns)}")
        if len(names) > 1 and role not in lists:
            faults.append(f"--map {raw}={value}: '{raw}' takes one column.")
        parsed[role] = names
    if faults:
        raise EmbedlossError("E102", _listed("a mapping cannot be used", faults, [f"columns: {_data_line(columns)}"]))
    return parsed


def did_you_mean(name: str, columns: Mapping[str, str]) -> str:
    """A hint such as "Did you mean 'query'?", or nothing."""
    by_key = {key_of(c): c for c in columns}
    near = difflib.get_close_matches(key_of(name), by_key, n=1, cutoff=0.6)
    return f" Did you mean '{by_key[near[0]]}'?" if near else ""


def _data_line(columns: Mapping[str, str]) -> str:
    return ", ".join(f"{name} ({KIND_NAMES.get(kind, kind)})" for name, kind in columns.items()) or "none"


def _listed(title: str, faults: Sequence[str], more: Sequence[str] = ()) -> str:
    return "\n  ".join([f"{title}:" if len(faults) > 1 else f"{title}.", *faults, *more])


def bind(
    columns: Mapping[str, str],
    formats: Sequence[DataFormat],
    *,
    loss_name: str,
    any_format: bool = False,
    weights: bool = False,
    mapping: Mapping[str, str] | None = None,
    drop: Sequence[str] = (),
) -> Binding:
    """Bind columns to the roles of one of the formats that a loss takes.

    An explicit mapping wins; else columns are matched by the names in `formats.ROLE_COLUMNS` and `LABELS`. Of several formats
    that fit, the one that uses most columns is taken.

    Args:
        columns: name -> kind: "text", "texts", "int", "float", "floats", "vectors", "empty" or "other".
        formats: formats of the loss.
        loss_name: for messages.
        any_format: take any format, and ignore its label.
        weights: bind a column of weights; without, it is refused.
        mapping: role -> column ("a,b": several columns for a list role); "label", "id" and "weight" are roles too.
        drop: columns to leave out.

    Raises:
        EmbedlossError: E101 if the columns make no format that the loss takes, E102 if a column or role is unknown, missing or
            unused, E104 and E105 if a column holds what its role cannot take.
    """
    candidates = list(FORMATS.values()) if any_format and not formats else list(formats)
    faults = [f"--drop {c}: there is no column '{c}'.{did_you_mean(c, columns)}" for c in drop if c not in columns]
    if faults:
        raise EmbedlossError("E102", _listed("a column to drop does not exist", faults, [f"columns: {_data_line(columns)}"]))
    kept = {name: kind for name, kind in columns.items() if name not in drop}
    explicit = _parse_mapping(kept, candidates, mapping or {}, loss_name, weights)
    attempts = [_attempt(kept, f, explicit, any_format, weights) for f in candidates if _takes_all(f, explicit)]
    if not attempts:
        takes = " or ".join(_takes(f) for f in candidates)
        raise EmbedlossError(
            "E102", f"no format of '{loss_name}' has the roles {', '.join(explicit)} together.\n  It takes {takes}."
        )
    best = min(attempts, key=lambda a: a.order(kept))
    if best.fits:
        fmt = (
            best.format if best.label or not best.format.label else replace(best.format, label=None)
        )  # any format will do, also without its label
        ignored = any_format and best.label is not None
        return Binding(fmt, best.columns, best.label, (*best.unused, *drop), best.id, ignored, best.weight)
    raise _refusal(best, attempts, kept, candidates, loss_name, explicit)


def _takes_all(fmt: DataFormat, mapping: Mapping[str, tuple[str, ...]]) -> bool:
    allowed = {*fmt.roles, ID_COLUMN, WEIGHT_COLUMN, *(_label_keys(fmt.label_kind) if fmt.label_kind else ())}
    return set(mapping) <= allowed and all(len(names) == 1 or role in fmt.lists for role, names in mapping.items())


def _takes(fmt: DataFormat) -> str:
    names = ", ".join(f"{role} (list)" if role in fmt.lists else role for role in fmt.roles)
    return f"{fmt.name} ({names}; label: {fmt.label})" if fmt.label else f"{fmt.name} ({names})"


def _refusal(
    best: _Attempt,
    attempts: Sequence[_Attempt],
    columns: Mapping[str, str],
    formats: Sequence[DataFormat],
    loss_name: str,
    mapping: Mapping[str, tuple[str, ...]],
) -> EmbedlossError:
    data = f"data: {_data_line(columns)}"
    takes = f"'{loss_name}' takes {' or '.join(dict.fromkeys(_takes(f) for f in formats))}"
    free_texts = [c for c in best.extra_texts if not is_known_name(c)] or best.extra_texts
    numbers = [c for c in (*best.extra_labels, *best.unused) if columns[c] in _label_kinds(best.format)]
    refused_label = bool(best.extra_labels) and best.format.label is None
    nameable = len(best.missing) <= len(free_texts) and (bool(numbers) or not best.missing_label) and not refused_label
    if best.extra_weights and not (best.missing or best.missing_label or best.wrong or best.extra_texts or best.extra_labels):
        return weightless(loss_name, best.extra_weights[0], data)
    if best.wrong and not best.missing:
        lines = [*best.wrong, data]
        positive = best.columns.get("positive", ("",))[0]
        if positive and columns[positive] == TEXTS:
            lines.append(f"To make a row of each positive: embedloss convert DATA --to {best.format.name} --out FILE")
        lines.append(f"Type --map {best.wrong[0].split()[0].strip(chr(39))}=COLUMN to take another column.")
        return EmbedlossError(best.wrong_code, "\n  ".join([f"'{loss_name}' cannot use a column.", *lines]))
    lines = [data, takes]
    if (best.missing or best.missing_label) and nameable:
        # All that is needed may be there under other names: say what to type.
        wanted = [*best.missing, *(["label"] if best.missing_label else [])]
        guess = dict(zip(best.missing, free_texts, strict=False))
        if best.missing_label:
            guess["label"] = numbers[0]
        lines.append(f"no column for: {', '.join(wanted)}")
        kept = [f"--map {role}={','.join(names)}" for role, names in mapping.items()]
        line = " ".join([*kept, *(f"--map {role}={_quoted(column)}" for role, column in guess.items())])
        lines.append(f"If this is what you mean, type {line}")
        rest = [c for c in (*best.extra_texts, *best.extra_labels) if c not in guess.values()]
        if rest:
            lines.append(f"and to leave columns out: {' '.join(f'--drop {_quoted(c)}' for c in rest)}")
        return EmbedlossError(
            "E102", "\n  ".join([f"the columns of this data set have no names that '{loss_name}' knows.", *lines])
        )
    if best.missing or best.missing_label or best.extra_labels:
        found = sum(kind == TEXT for kind in columns.values())
        lines += best.wrong
        if best.missing or best.missing_label:
            needs = ", ".join([*best.missing, *(["a label"] if best.missing_label else [])])
            lines.append(f"missing: {needs} (found {_bound(best)}{found} text column{'s' * (found != 1)})")
        if best.extra_labels:
            names = ", ".join(f"'{c}'" for c in best.extra_labels)
            lines.append(f"it takes {'one' if best.format.label else 'no'} label ({names} would be unused)")
            if not best.missing:
                lines.append(f"To train without: {' '.join(f'--drop {_quoted(c)}' for c in best.extra_labels)}")
        if best.extra_texts and not best.missing:
            lines.append(f"To leave out unused texts: {' '.join(f'--drop {_quoted(c)}' for c in best.extra_texts)}")
        others = losses_for(columns)
        if others:
            lines.append(f"Losses that take it as it is: {', '.join(others)}")
        return EmbedlossError("E101", "\n  ".join([f"'{loss_name}' cannot be trained on this data set.", *lines]))
    names = ", ".join(f"'{c}'" for c in best.extra_texts)
    plural = len(best.extra_texts) > 1
    lines = [data, f"bound: {_bound(best).removesuffix('; ')}", takes]
    free = [r for a in attempts for r in a.missing if r not in best.columns and set(best.columns) <= set(a.columns)]
    first = _quoted(best.extra_texts[0])
    if free:
        lines.append(f"To use {'one' if plural else 'it'}: --map {free[0]}={first}")
    else:
        role = next(iter(best.columns))
        lines.append(f"To use {'one' if plural else 'it'} in place of '{'+'.join(best.columns[role])}': --map {role}={first}")
    lines.append(f"To leave {'them' if plural else 'it'} out: {' '.join(f'--drop {_quoted(c)}' for c in best.extra_texts)}")
    if not any(is_known_name(c) for c in best.extra_texts):
        names_used = " ".join(f"--map {role}={_quoted(','.join(used))}" for role, used in best.columns.items())
        lines.append(f"or name those that are used: {names_used}")
    return EmbedlossError(
        "E102", "\n  ".join([f"the column{'s' * plural} {names} would not be used by '{loss_name}'.", *lines])
    )


def _bound(attempt: _Attempt) -> str:
    parts = [f"{role} <- {'+'.join(names)}" for role, names in attempt.columns.items()]
    return ", ".join(parts) + "; " if parts else ""


def _label_kinds(fmt: DataFormat) -> tuple[str, ...]:
    return LABEL_COLUMN_KINDS[fmt.label] if fmt.label else ()


def _quoted(column: str) -> str:
    return column if re.fullmatch(r"[\w.,-]+", column) else f"'{column}'"


def weightless(loss_name: str, column: str, data: str = "") -> EmbedlossError:
    """E102 for a column of weights of a loss that has no loss of each row to multiply."""
    from embedloss.registry import list_losses

    try:
        specs = [s for s in list_losses() if s.row_weights and s.status == "stable" and not s.recompute]
    except EmbedlossError:
        specs = []
    lines = [f"the column '{column}' would not be used: '{loss_name}' gives rows no weights.", data]
    lines.append(f"Losses that do: {', '.join(s.name for s in specs)}" if specs and loss_name not in FORMATS else "")
    lines.append(f"Type --drop {_quoted(column)}. A row that shall count twice may stand in the file twice.")
    return EmbedlossError("E102", "\n  ".join(line for line in lines if line))


def losses_for(columns: Mapping[str, str], limit: int = 5) -> list[str]:
    """Names of installed losses that take these columns as they are, at most `limit`."""
    from embedloss.registry import list_losses

    attempts = [_attempt(columns, f, {}, False) for f in FORMATS.values()]
    # A column of fractions could hold 0 and 1 only, and whole numbers could be scores; name the losses of the usual reading.
    fitting = {a.format.name for a in attempts if a.fits and a.order(columns)[3] == 0}
    try:
        specs = list_losses()
    except EmbedlossError:
        return []
    # A cached name is the same loss with recomputation switched on.
    specs = [s for s in specs if s.status == "stable" and not s.recompute]
    names = [s.name for s in specs if fitting.intersection(s.format_names())]
    return names if len(names) <= limit else [*names[:limit], f"{len(names) - limit} more"]


def fitting(
    columns: Mapping[str, str],
    *,
    mapping: Mapping[str, str] | None = None,
    drop: Sequence[str] = (),
    weights: bool = False,
) -> list[Binding]:
    """Every format that the columns make, the best first. Raises E102 where they make none.

    Args:
        columns: name -> kind.
        weights: bind a column of weights; without, it is refused.
        mapping: role -> column.
        drop: columns to leave out.
    """
    found = []
    for fmt in FORMATS.values():
        try:
            found.append(bind(columns, [fmt], loss_name=fmt.name, weights=weights, mapping=mapping, drop=drop))
        except EmbedlossError:
            continue
    if found:
        kinds = {name: kind for name, kind in columns.items() if name not in drop}
        return sorted(found, key=lambda b: _Attempt(b.format, b.columns, b.label, b.id).order(kinds))
    for name in drop:
        if name not in columns:
            raise EmbedlossError("E102", f"--drop {name}: there is no column '{name}'.{did_you_mean(name, columns)}")
    kept = {name: kind for name, kind in columns.items() if name not in drop}
    explicit = _parse_mapping(kept, list(FORMATS.values()), mapping or {}, "any format")
    attempts = [_attempt(kept, f, explicit, False) for f in FORMATS.values() if _takes_all(f, explicit)]
    best = min(attempts, key=lambda a: a.order(kept), default=None)
    if best is not None and not best.missing and not best.missing_label:
        raise _refusal(best, [best], kept, [best.format], best.format.name, explicit)
    lines = [
        f"data: {_data_line(kept)}",
        "`embedloss formats` lists the formats and the names of columns they know.",
        "Type --map role=column for other names, --drop column to leave one out, or --loss NAME to see what it lacks.",
    ]
    keys = {key_of(name) for name in kept}
    if keys & {"query_id", "qid"} and keys & {"doc_id", "docid", "corpus_id", "pid"}:
        lines.append(
            "These look like judgements: embedloss convert DATA --corpus FILE --queries FILE --to n-tuples --out FILE "
            "makes training data of them."
        )
    raise EmbedlossError("E102", "\n  ".join(["the columns make none of the known formats.", *lines]))


def fitting_loosely(
    columns: Mapping[str, str], *, mapping: Mapping[str, str] | None = None, drop: Sequence[str] = ()
) -> list[tuple[Binding, tuple[str, ...]]]:
    """As `fitting`, but columns that mean nothing known, and second labels, are left out; each with what is left out.

    Args:
        columns: name -> kind.
        mapping: role -> column.
        drop: columns to leave out in any case.
    """
    try:
        return [(binding, tuple(drop)) for binding in fitting(columns, mapping=mapping, drop=drop)]
    except EmbedlossError as error:
        refusal = error
    kept = {name: kind for name, kind in columns.items() if name not in drop}
    explicit = _parse_mapping(kept, list(FORMATS.values()), mapping or {}, "any format")
    found = []
    for fmt in FORMATS.values():
        if not _takes_all(fmt, explicit):
            continue
        attempt = _attempt(kept, fmt, explicit, False)
        if attempt.missing or attempt.missing_label or attempt.wrong or (attempt.extra_labels and not fmt.label):
            continue
        extra = [c for c in attempt.extra_texts if not is_known_name(c)]
        if len(extra) == len(attempt.extra_texts):
            out = (*drop, *extra, *attempt.extra_labels, *attempt.extra_weights)
            found.append((attempt.order(kept), (bind(columns, [fmt], loss_name=fmt.name, mapping=mapping, drop=out), out)))
    if not found:
        raise refusal
    return [entry for _, entry in sorted(found, key=lambda item: item[0])]
