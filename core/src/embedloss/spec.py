"""What a plugin says about a loss without importing torch."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from embedloss.errors import EmbedlossError
from embedloss.formats import DataFormat, get_format

if TYPE_CHECKING:
    from embedloss.loss import Loss

ModelKind = Literal["bi-encoder", "cross-encoder"]


def normalise(name: str) -> str:
    """Hyphen, underscore and case do not matter in names."""
    return name.strip().lower().replace("_", "-")


def constructor_parameters(made: type) -> dict[str, inspect.Parameter]:
    """A class's constructor parameters by name, `self` aside; a constructor's **kwargs are those of the class above it."""
    found: dict[str, inspect.Parameter] = {}
    for owner in (c for c in made.__mro__ if "__init__" in vars(c)):
        own = list(inspect.signature(vars(owner)["__init__"]).parameters.values())[1:]
        found = {**{p.name: p for p in own if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD) and p.name not in found}, **found}
        if all(p.kind is not p.VAR_KEYWORD for p in own):
            break
    return found


@dataclass(frozen=True, kw_only=True)
class LossSpec:
    """A loss as data. Everything that lists, suggests, checks or documents a loss reads this and nothing else.

    Args:
        name: canonical name, lower case with hyphens.
        target: "module:Class"; imported when the loss is created.
        summary: one line for people.
        family: triplet, contrastive, similarity, ...
        formats: the data formats it takes, by name or as `DataFormat`; empty for a modifier, which takes what its
            inner loss takes, and for a regulariser, which takes any (`any_format`).
        aliases: other names.
        field_name: the class name that papers and other libraries use.
        models: kinds of model it trains.
        consumes: "embeddings", or "scores" of (query, candidate) pairs, which both kinds of model give.
        scope: "row" (rows are independent) or "batch" (other rows matter, e.g. as negatives).
        sampler: recommended batch sampler: "random", "no-duplicates" or "group-by-label".
        label_range: lowest and highest allowed label, or None.
        highest_label: highest allowed label of a loss that sets no lowest one, or None.
        leaves_out: a label of -inf leaves its candidate out of the target; one finite label a row is needed.
        equal_texts: "all": pairs without a label must hold the same text twice; "some": one of them at least; "": any pairs.
        optional: roles of which some rows, but not all, may hold no text.
        row_weights: a row's part of the loss is multiplied by its `weight`, where the data has that column.
        best_first: what to type where grades are not read because the documents of a list are taken as given, best first, such
            as "respect_input_order=False"; data in which a better grade comes later is refused.
        recommended: 0 to 100, how readily `embedloss suggest` names it among the losses that take the same data; 0 is last.
        advice: one sentence for `embedloss suggest`: when it is the right choice. The summary stands in for it.
        modifier: takes a loss as first argument.
        any_format: works on the texts of any format and ignores labels.
        recompute: the name switches recomputation on (the `cached-...` names).
        status: "stable", "experimental" or "deprecated".
        deprecated_by: what to type instead.
        citation: paper, as "author year, title, arXiv or DOI".
        doc: extra text for `embedloss show` and the docs page: formula, when to use it, relations.
        example: an expression that creates it, where the bare name is not enough.
        deviations: checks of the conformance kit that the loss is right to fail -> why.
    """

    name: str
    target: str
    summary: str
    family: str
    formats: Sequence[DataFormat | str] = ()
    aliases: tuple[str, ...] = ()
    field_name: str = ""
    models: tuple[ModelKind, ...] = ("bi-encoder",)
    consumes: Literal["embeddings", "scores"] = "embeddings"
    scope: Literal["row", "batch"] = "row"
    sampler: Literal["random", "no-duplicates", "group-by-label"] = "random"
    label_range: tuple[float, float] | None = None
    highest_label: float | None = None
    leaves_out: bool = False
    equal_texts: Literal["", "some", "all"] = ""
    optional: tuple[str, ...] = ()
    row_weights: bool = False
    best_first: str = ""
    recommended: int = 0
    advice: str = ""
    modifier: bool = False
    any_format: bool = False
    recompute: bool = False
    status: Literal["stable", "experimental", "deprecated"] = "stable"
    deprecated_by: str | None = None
    citation: str = ""
    doc: str = ""
    example: str = ""
    deviations: Mapping[str, str] = field(default_factory=dict, hash=False)
    distribution: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        self._check_types()  # what a stranger got wrong must show here, not in the listing of all losses
        if self.name != normalise(self.name) or not self.name:
            raise ValueError(f"loss name '{self.name}' must be lower case with hyphens: '{normalise(self.name)}'")
        if ":" not in self.target:
            raise ValueError(f"target of '{self.name}' must be 'module:Class', got '{self.target}'")
        resolved = tuple(get_format(f) if isinstance(f, str) else f for f in self.formats)
        object.__setattr__(self, "formats", resolved)
        object.__setattr__(self, "aliases", tuple(normalise(a) for a in self.aliases))
        if not 0 <= self.recommended <= 100:
            raise ValueError(f"'recommended' of '{self.name}' must be from 0 to 100, got {self.recommended}")
        if not resolved and not self.modifier and not self.any_format:
            raise ValueError(f"loss '{self.name}' declares no data format")

    def _check_types(self) -> None:
        for name in ("name", "target", "summary", "family", "field_name", "scope", "sampler", "status", "citation", "doc"):
            if not isinstance(getattr(self, name), str):
                raise ValueError(f"{name} of loss '{self.name}' must be a string, got {getattr(self, name)!r}")
        for name in ("aliases", "models", "formats"):
            value = getattr(self, name)
            if isinstance(value, str) or not isinstance(value, Sequence):
                raise ValueError(f"{name} of loss '{self.name}' must be a list, got {value!r}")
        for name in ("aliases", "models"):
            if not all(isinstance(value, str) for value in getattr(self, name)):
                raise ValueError(f"{name} of loss '{self.name}' must be strings, got {getattr(self, name)!r}")
        if self.label_range is not None and (
            len(self.label_range) != 2 or not all(isinstance(bound, (int, float)) for bound in self.label_range)
        ):
            raise ValueError(f"label_range of loss '{self.name}' must be (lowest, highest), got {self.label_range!r}")

    def allowed_labels(self) -> str:
        """For people: "0 to 1", "at most 60", or "" where any finite number will do."""
        if self.label_range:
            return f"{self.label_range[0]:g} to {self.label_range[1]:g}"
        limits = [f"at most {self.highest_label:g}"] if self.highest_label is not None else []
        return ", ".join([*limits, *["-inf leaves a candidate out"] * self.leaves_out])

    def load(self) -> type[Loss]:
        """Import the class. An `EmbedlossError` (E205) says why it cannot be imported."""
        module, _, attribute = self.target.partition(":")
        try:
            loaded: type[Loss] = getattr(importlib.import_module(module), attribute)
        except Exception as exception:  # a stranger's module may raise anything
            raise EmbedlossError(
                "E205", f"loss '{self.name}' cannot be imported from '{self.target}': {type(exception).__name__}: {exception}"
            ) from exception
        return loaded

    def for_evaluation(self) -> LossSpec:
        """What data must be to be measured: rows need not differ for that, nor lists be in order."""
        return replace(self, best_first="", scope="row", equal_texts="")

    def format_names(self) -> tuple[str, ...]:
        """Names of the formats it takes."""
        return tuple(f.name for f in self.data_formats())

    def data_formats(self) -> tuple[DataFormat, ...]:
        """The formats as objects (`formats` accepts names as well, and holds objects after construction)."""
        return tuple(f for f in self.formats if isinstance(f, DataFormat))

    def to_json(self) -> dict[str, object]:
        """Plain data for `--json`."""
        return {
            "name": self.name,
            "aliases": list(self.aliases),
            "field_name": self.field_name,
            "family": self.family,
            "summary": self.summary,
            "formats": list(self.format_names()),
            "any_format": self.any_format,
            "modifier": self.modifier,
            "models": list(self.models),
            "consumes": self.consumes,
            "scope": self.scope,
            "sampler": self.sampler,
            "label_range": list(self.label_range) if self.label_range else None,
            "highest_label": self.highest_label,
            "leaves_out": self.leaves_out,
            "row_weights": self.row_weights,
            "best_first": self.best_first,
            "recommended": self.recommended,
            "status": self.status,
            "deprecated_by": self.deprecated_by,
            "citation": self.citation,
            "deviations": dict(self.deviations),
            "distribution": self.distribution,
        }
