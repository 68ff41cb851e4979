"""One look at a data set for `check` and `suggest`: its format, faults, and what its rows have in common. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from embedloss.binding import Binding, bind, fitting, fitting_loosely
from embedloss.check import Report, _Checker
from embedloss.chunks import Chunks
from embedloss.errors import EmbedlossError
from embedloss.facts import BATCH, Collector, Facts, hashes_of
from embedloss.formats import DataFormat
from embedloss.spec import LossSpec

Tokenizer = Callable[[Sequence[str]], Sequence[int]]


@dataclass
class Reading:
    """One way to read the columns.

    Args:
        binding: columns by role.
        report: what is wrong with the rows when they are read so.
        left_out: columns that must be dropped.
    """

    binding: Binding
    report: Report
    left_out: tuple[str, ...] = ()


@dataclass
class Examination:
    """A data set, looked at once.

    Args:
        source: as the user typed it.
        readings: ways to read it, the best first; one where the loss is known.
        facts: what its rows have in common, under the first reading.
        spec: of the loss, if known.
        evaluation: the reading of the evaluation data.
        kinds: column -> kind.
    """

    source: str
    readings: list[Reading]
    facts: Facts
    spec: LossSpec | None = None
    evaluation: Reading | None = None
    kinds: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def binding(self) -> Binding:
        """The best reading."""
        return self.readings[0].binding

    @property
    def report(self) -> Report:
        """Faults under the best reading."""
        return self.readings[0].report


def plain_spec(fmt: DataFormat) -> LossSpec:
    """A spec that takes one format and asks nothing else of its labels."""
    return LossSpec(name=fmt.name, target="embedloss:none", summary="", family="", formats=(fmt,))


def examine(
    source: str,
    *,
    spec: LossSpec | None = None,
    mapping: Mapping[str, str] | None = None,
    drop: Sequence[str] = (),
    scale_labels: bool = False,
    sampler: str = "auto",
    eval_data: str | None = None,
    tokenizer: Tokenizer | None = None,
    max_length: int = 0,
    loosely: bool = False,
) -> Examination:
    """Read a data set once (text files twice: their types come first), in constant memory.

    Args:
        source: file, folder or hub id.
        spec: of the loss that will be trained; without, every format that fits is tried.
        mapping: role -> column.
        drop: columns to leave out.
        scale_labels: labels will be scaled to the loss's range.
        sampler: batch sampler that is asked for.
        eval_data: data whose overlap with `source` counts.
        tokenizer: number of tokens of texts.
        max_length: most tokens the model reads.
        loosely: leave out columns that mean nothing known.

    Raises:
        EmbedlossError: E101 to E105 if a file cannot be read or its columns cannot be bound. Faults of rows are in the reports.
    """
    chunks = Chunks(source)
    kinds = chunks.kinds()
    candidates = _bindings(kinds, spec, mapping, drop, loosely)
    other = None
    evaluation = None
    if eval_data is not None:
        eval_chunks = Chunks(eval_data)
        left_out = [c for c in candidates[0][1] if c in eval_chunks.kinds()]
        eval_binding = _bindings(eval_chunks.kinds(), spec, mapping, left_out, loosely)[0][0]
        checker = _Checker(eval_binding, (spec or plain_spec(eval_binding.format)).for_evaluation(), scale_labels, "random")
        for table in eval_chunks:
            checker.add(table)
        evaluation = Reading(eval_binding, checker.finish())
        other = hashes_of(eval_chunks, eval_binding)
    collector = Collector(candidates[0][0], other, sample=tokenizer is not None)
    checkers = [_Checker(b, spec or plain_spec(b.format), scale_labels, sampler) for b, _ in candidates]
    for table in chunks:
        for checker in checkers:
            checker.add(table)
        collector.add(table)
    readings = [
        Reading(binding, checker.finish(), left_out) for checker, (binding, left_out) in zip(checkers, candidates, strict=True)
    ]
    found = Examination(source, _ranked(readings), collector.finish(tokenizer, max_length), spec, evaluation, kinds)
    found.notes = notes(found)
    return found


def _bindings(
    kinds: Mapping[str, str], spec: LossSpec | None, mapping: Mapping[str, str] | None, drop: Sequence[str], loosely: bool
) -> list[tuple[Binding, tuple[str, ...]]]:
    if spec is not None:
        binding = bind(
            kinds,
            spec.data_formats(),
            loss_name=spec.name,
            any_format=spec.any_format,
            weights=spec.row_weights,
            mapping=mapping,
            drop=drop,
        )
        return [(binding, tuple(drop))]
    if loosely:
        return fitting_loosely(kinds, mapping=mapping, drop=drop)
    return [(binding, tuple(drop)) for binding in fitting(kinds, mapping=mapping, drop=drop, weights=True)]


def _ranked(readings: list[Reading]) -> list[Reading]:
    """Fewest rows with faults first; labels that are all 0 or 1 are binary rather than ids or scores."""
    wrong = [sum(max(fault.count, 1) for fault in r.report.faults) for r in readings]
    best = [r for r, faults in zip(readings, wrong, strict=True) if faults == min(wrong)]
    columns = best[0].binding.columns
    binary = [r for r in best if r.binding.format.label == "binary" and r.binding.columns == columns]
    first = (binary or best)[0]
    rest = [r for r in readings if r is not first]
    return [first, *(r for r in rest if r in best), *(r for r in rest if r not in best)]


# -- in words ---------------------------------------------------------------------------------------------------------
def notes(found: Examination) -> list[str]:
    """What is worth knowing about the rows, one sentence each."""
    facts, spec = found.facts, found.spec
    binding, about = found.binding, "about " if found.facts.estimated else ""
    lines = []
    if facts.duplicate_rows:
        lines.append(f"{about}{_n(facts.duplicate_rows, 'row')} repeat an earlier row")
    if facts.conflicting:
        lines.append(f"{about}{_n(facts.conflicting, 'group')} of equal texts with different labels")
    if facts.same_text and binding.format.label is None:
        first, second = list(binding.columns)[:2]
        lines.append(f"{_n(facts.same_text, 'row')} with the same text as {first} and {second}")
    if facts.false_negatives:
        lines.append(f"{about}{_n(facts.false_negatives, 'negative')} that are positives of the same query: false negatives")
    if facts.repeated_docs:
        lines.append(f"{_n(facts.repeated_docs, 'row')} with a text twice in one list")
    lines += _repeats(facts, binding, spec)
    if facts.overlap_queries:
        first = next(iter(binding.columns))
        whole = f" ({facts.overlap_rows:,} of them with all their texts)" if facts.overlap_rows else ""
        lines.append(
            f"the '{first}' of {_n(facts.overlap_queries, 'row')}{whole} occurs in the evaluation data as well: "
            "results will look better than they are"
        )
    sizes = found.report.class_sizes
    if sizes and sizes["classes"] > 1:
        lines.append(f"{sizes['classes']:,} classes of {sizes['smallest']:,} to {sizes['largest']:,} rows")
        if sizes["single"]:
            lines.append(f"{_n(sizes['single'], 'class')} with a single row: nothing in a batch resembles it")
    for role, lengths in facts.tokens.items():
        if lengths["cut"]:
            lines.append(f"{lengths['cut']:.1%} of '{role}' are longer than the model reads, and would be cut")
    return lines


def _n(number: int, what: str) -> str:
    plural = {"class": "classes", "query": "queries"}.get(what, f"{what}s")
    return f"{number:,} {what if number == 1 else plural}"


def _repeats(facts: Facts, binding: Binding, spec: LossSpec | None) -> list[str]:
    if binding.format.label is not None or (len(facts.repeats) < 2 and binding.format.base != "single"):
        return []
    lines = []
    roles = list(facts.repeats)
    for role, other in zip(roles, reversed(roles), strict=True):
        if facts.repeats[role].shared:
            lines.append(f"{facts.repeats[role].shared:,} different texts of '{role}' occur with several of '{other}'")
    in_batch = sum(found.in_batch for found in facts.repeats.values())
    if in_batch >= 0.01:
        text = f"a random batch of {BATCH} holds {in_batch:.2f} pairs of rows with a text in common: false negatives"
        if spec is None or spec.sampler == "no-duplicates":
            text += " of losses with in-batch negatives, which the sampler no-duplicates keeps apart"
        if spec is None or spec.scope == "batch" or spec.sampler == "no-duplicates":
            lines.append(text)
    return lines


def token_counter(model: str, trust_remote_code: bool = False) -> tuple[Tokenizer, int]:
    """A function that counts the tokens of texts for a model, and the most tokens the model reads.

    Raises:
        EmbedlossError: E301 if the model cannot be loaded.
    """
    from embedloss.encoders import load_encoder
    from embedloss.encoders.text import UNLIMITED

    if model.startswith("static"):
        raise EmbedlossError("E301", "a new static encoder has no tokens yet; give a folder or hub id.")
    processor: Any = load_encoder(model, trust_remote_code=trust_remote_code).processor
    limit = int(processor.max_length)
    if hasattr(processor.tokenizer, "no_truncation"):
        processor.tokenizer.no_truncation()
    else:
        processor.max_length = UNLIMITED
    return (lambda texts: [len(item) for item in processor.tokenize(list(texts))]), limit if limit < UNLIMITED else 0
