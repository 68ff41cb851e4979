"""Which losses suit a data set, and how to train them. Reads specs and facts about the rows; knows no loss by name."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

from embedloss.binding import bind
from embedloss.check import Report, _Checker
from embedloss.chunks import Chunks
from embedloss.convert import CONVERSIONS, Conversion
from embedloss.errors import EmbedlossError
from embedloss.examine import Examination, Reading, examine, plain_spec
from embedloss.formats import DataFormat, get_format
from embedloss.registry import list_losses
from embedloss.spec import LossSpec

MODELS = {
    "bi-encoder": "sentence-transformers/all-MiniLM-L6-v2",
    "cross-encoder": "cross-encoder/ms-marco-MiniLM-L6-v2",
}
"""What a command names as model where the user gives none."""

OTHER_FORMAT = 15  # points less for each format that the loss names before this one
OTHER_READING = 30  # points less for each more likely way to read the columns
OTHER_KIND = 25  # points less for a cross-encoder where the user did not ask for one
TEXTS = 1024  # a batch, at most
MOST_ROWS = 64


@dataclass
class Suggestion:
    """A loss that can be trained.

    Args:
        loss: its name.
        format: the data format it is given.
        score: the higher, the better it suits; comparable within one list only.
        reasons: why, one sentence each.
        sampler: recommended batch sampler.
        batch_size: rows a step.
        command: what to type.
        conversion: what to type before, where the data must be converted.
    """

    loss: str
    format: str
    score: int
    reasons: list[str]
    sampler: str
    batch_size: int
    command: str
    conversion: str | None = None

    def to_json(self) -> dict[str, object]:
        """Plain data for `--json`."""
        return dict(vars(self))


@dataclass
class Suggestions:
    """The answer of `suggest`.

    Args:
        found: what the data set is.
        as_is: losses that take it as it is, the best first.
        converted: losses that take it after one conversion, the best first.
        refused: losses of the same formats that would refuse it -> why.
    """

    found: Examination
    as_is: list[Suggestion] = field(default_factory=list)
    converted: list[Suggestion] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)


def suggest(
    source: str,
    *,
    mapping: Mapping[str, str] | None = None,
    drop: Sequence[str] = (),
    kind: str | None = None,
    model: str | None = None,
    out: str = "runs",
) -> Suggestions:
    """Losses for a data set.

    Args:
        source: file, folder or hub id.
        mapping: role -> column.
        drop: columns to leave out; columns that mean nothing known are left out anyway, and the commands say so.
        kind: "bi-encoder" or "cross-encoder".
        model: for the commands.
        out: folder of the runs, for the commands.

    Raises:
        EmbedlossError: E102 if the columns make no format, else as `chunks.Chunks`; E201 for an unknown kind of model.
    """
    specs = [s for s in list_losses(model_kind=kind) if s.status == "stable" and not s.modifier]
    found = examine(source, mapping=mapping, drop=drop, loosely=True)
    answer = Suggestions(found)
    writer = _Writer(source, mapping or {}, kind, model, out)
    clean = [r for r in found.readings if not r.report.faults] or found.readings[:1]
    reports = _reports(source, clean, specs)
    seen: set[str] = set()
    for place, reading in enumerate(clean):
        fmt = reading.binding.format
        for spec in _taking(specs, fmt.name):
            if spec.name in seen or _bound(found, spec, mapping, reading) != fmt.name:
                continue
            report = reports[fmt.name, _profile(spec)]
            scale = bool(report.faults) and all("--scale-labels" in f.message for f in report.faults)
            if report.faults and not scale:
                answer.refused.setdefault(spec.name, str(report.faults[0]))
                continue
            seen.add(spec.name)
            score = _score(spec, fmt, kind) - OTHER_READING * place - 40 * scale
            size = _batch_size(found, fmt, place)
            command = writer.train(spec, source, reading.left_out, size, scale)
            reasons = _reasons(spec, reading, found, size, scale)
            answer.as_is.append(Suggestion(spec.name, fmt.name, score, reasons, spec.sampler, size, command))
    for name in seen:
        answer.refused.pop(name, None)
    answer.as_is.sort(key=lambda s: (-s.score, s.loss))
    answer.converted = _converted(found, clean[0], specs, kind, writer)
    if not answer.as_is and not answer.converted:
        clean[0].report.raise_if_faulty()
        names = ", ".join(r.binding.format.name for r in clean)
        raise EmbedlossError("E101", f"no installed loss takes {names}. Type: pip install 'embedloss[all]'")
    return answer


def _taking(specs: Sequence[LossSpec], name: str) -> list[LossSpec]:
    return [s for s in specs if not s.any_format and name in s.format_names()]


def _bound(found: Examination, spec: LossSpec, mapping: Mapping[str, str] | None, reading: Reading) -> str:
    """The format that training reads, which has the names and kinds of the columns to go by, not the rows."""
    binding = bind(found.kinds, spec.data_formats(), loss_name=spec.name, mapping=mapping, drop=reading.left_out)
    return binding.format.name


# What a spec says to people, and not to a check of rows. Every other field counts, those to come included.
_IN_WORDS = frozenset(
    (
        *("name", "target", "summary", "family", "formats", "aliases", "field_name", "models", "consumes", "recommended"),
        *("advice", "recompute", "status", "deprecated_by", "citation", "doc", "example", "deviations", "distribution"),
    )
)


def _profile(spec: LossSpec) -> tuple[object, ...]:
    """What a check of rows depends on."""
    return tuple(getattr(spec, field.name) for field in fields(spec) if field.name not in _IN_WORDS)


def _reports(
    source: str, readings: Sequence[Reading], specs: Sequence[LossSpec]
) -> dict[tuple[str, tuple[object, ...]], Report]:
    """What each kind of loss would refuse, in one more pass over the rows."""
    checkers = {
        (r.binding.format.name, _profile(s)): _Checker(r.binding, s, False, "auto")
        for r in readings
        for s in _taking(specs, r.binding.format.name)
    }
    if any(key[1] != _profile(plain_spec(get_format(key[0]))) for key in checkers):
        for table in Chunks(source):
            for checker in checkers.values():
                checker.add(table)
        return {key: checker.finish() for key, checker in checkers.items()}
    known = {r.binding.format.name: r.report for r in readings}
    return {key: known[key[0]] for key in checkers}


def _score(spec: LossSpec, fmt: DataFormat, kind: str | None) -> int:
    score = spec.recommended - OTHER_FORMAT * spec.format_names().index(fmt.name)
    if kind is None and "bi-encoder" not in spec.models:
        score -= OTHER_KIND
    return score


def _batch_size(found: Examination, fmt: DataFormat, place: int = 0) -> int:
    """A power of 2: at most `MOST_ROWS` rows and `TEXTS` texts, and a few batches an epoch."""
    texts = len(fmt.roles) - len(fmt.lists)
    for role in fmt.lists:
        lengths = found.facts.texts_per_row.get(role)
        texts += int(lengths["p95"]) if lengths and not place else 4
    size = MOST_ROWS
    while size > 4 and (size * texts > TEXTS or size * 4 > found.facts.rows):
        size //= 2
    return size


def _reasons(spec: LossSpec, reading: Reading, found: Examination, size: int, scale: bool) -> list[str]:
    fmt, report, facts = reading.binding.format, reading.report, found.facts
    reasons = [spec.advice or spec.summary]
    if fmt.label_kind is not None:
        text = f"the label is {fmt.label_kind.summary}"
        sizes = report.class_sizes
        if fmt.label == "class" and sizes:
            text = f"{sizes['classes']:,} classes of {sizes['smallest']:,} to {sizes['largest']:,} rows"
        elif fmt.label == "binary" and facts.label_values:
            text = f"labels are 0 and 1; {facts.label_values.get(1.0, 0) / max(sum(facts.label_values.values()), 1):.0%} are 1"
        elif report.label_span:
            text += f", {report.label_span[0]:g} to {report.label_span[1]:g}"
        reasons.append(text)
    for role, lengths in facts.texts_per_row.items():
        if role in fmt.lists:
            reasons.append(f"{lengths['min']:,} to {lengths['max']:,} texts in '{role}' (median {lengths['median']:,})")
    if scale and spec.label_range:
        reasons.append(f"it takes labels from {spec.label_range[0]:g} to {spec.label_range[1]:g}: --scale-labels maps them")
    if spec.sampler == "no-duplicates":
        repeated = {
            role: each for role, each in facts.repeats.items() if each.repeated_rows and role in reading.binding.columns
        }
        if repeated:
            parts = [f"{each.repeated_rows:,} rows repeat their '{role}'" for role, each in repeated.items()]
            reasons.append(f"{' and '.join(parts)}: the sampler no-duplicates keeps such rows apart")
        if facts.false_negatives:
            reasons.append(f"{facts.false_negatives:,} negatives are positives of the same query elsewhere")
        if spec.scope == "batch":
            reasons.append(f"{size - 1} other rows are negatives in a batch of {size}; larger batches teach more")
    elif spec.sampler == "group-by-label":
        reasons.append("the sampler group-by-label puts rows of equal and of different classes in every batch")
    if spec.models == ("cross-encoder",):
        reasons.append("trains a cross-encoder (reranker)")
    return reasons


# -- conversions ------------------------------------------------------------------------------------------------------
def _converted(
    found: Examination, reading: Reading, specs: Sequence[LossSpec], kind: str | None, writer: _Writer
) -> list[Suggestion]:
    suggestions = []
    taken = reading.binding.format.name
    conversions = [c for c in CONVERSIONS if c.source == taken and (c.target != taken or reading.report.faults)]
    for conversion in conversions:
        options = _options(conversion, found, reading)
        candidates = _taking(specs, conversion.target)
        if options is None or not candidates:
            continue
        target = get_format(conversion.target)
        best = max(candidates, key=lambda s: (_score(s, target, kind), s.name))
        size = _batch_size(found, target, 1)
        teacher = any(p.name == "teacher" for p in conversion.parameters)
        file = writer.file(conversion.target)
        suggestions.append(
            Suggestion(
                best.name,
                conversion.target,
                _score(best, target, kind) + conversion.worth - 20 * teacher,
                [f"{conversion.source} to {conversion.target}: {conversion.summary}", best.advice or best.summary],
                best.sampler,
                size,
                writer.train(best, file, (), size, False, mapped=False),
                writer.convert(conversion.target, taken, reading.left_out, options),
            )
        )
    return sorted(suggestions, key=lambda s: (-s.score, s.format))


def _options(conversion: Conversion, found: Examination, reading: Reading) -> list[str] | None:
    """Values for the parameters that have no default; None where this data cannot be converted so."""
    facts, report = found.facts, reading.report
    names = {p.name: p for p in conversion.parameters}
    options: list[str] = []
    if "entailment" in names:
        classes = [name.lower() for name in report.classes or ()]
        if not all(any(c.startswith(begin) for c in classes) for begin in ("entail", "contra")):
            return None
    flat = conversion.source in ("pairs+score", "pairs+binary", "pairs+class")
    first = next(iter(facts.repeats), None)
    several = first is not None and facts.repeats[first].shared > 0
    if flat and conversion.target in ("triplets", "n-tuples", "listwise") and not several:
        return None
    if "threshold" in names and names["threshold"].required:
        if report.label_span is None or report.label_span[0] == report.label_span[1]:
            return None
        low, high = report.label_span
        options += ["--threshold", f"{low + 0.75 * (high - low):.4g}"]
    if "teacher" in names:
        options += ["--teacher", MODELS["bi-encoder"]]
    if "per_class" in names:
        sizes = report.class_sizes
        if not sizes or sizes["classes"] - sizes["single"] < 2:
            return None
    return options


# -- commands ---------------------------------------------------------------------------------------------------------
@dataclass
class _Writer:
    """Commands for one data set."""

    source: str
    mapping: Mapping[str, str]
    kind: str | None
    model: str | None
    out: str

    def file(self, target: str) -> str:
        """Name of the converted file."""
        stem = Path(self.source.partition(":")[0]).stem or "data"
        return f"{stem}.{target.replace('+', '-')}.jsonl"

    def _columns(self, left_out: Sequence[str]) -> list[str]:
        parts = [part for role, column in self.mapping.items() for part in ("--map", f"{role}={column}")]
        return parts + [part for column in left_out for part in ("--drop", column)]

    def train(self, spec: LossSpec, data: str, left_out: Sequence[str], size: int, scale: bool, mapped: bool = True) -> str:
        """The command that trains."""
        kind = self.kind or spec.models[0]
        parts = ["embedloss", "train", "--model", self.model or MODELS[kind], "--data", data]
        if mapped:
            parts += self._columns(left_out)
        if len(spec.models) > 1 and self.kind:
            parts += ["--kind", kind]
        parts += ["--loss", spec.example or spec.name]
        if scale:
            parts += ["--scale-labels"]
        parts += ["--sampler", spec.sampler, "--batch-size", str(size), "--out", f"{self.out}/{spec.name}"]
        return shlex.join(parts)

    def convert(self, target: str, source_format: str, left_out: Sequence[str], options: Sequence[str]) -> str:
        """The command that converts."""
        parts = ["embedloss", "convert", self.source, *self._columns(left_out), "--from", source_format, "--to", target]
        return shlex.join([*parts, *options, "--out", self.file(target)])
