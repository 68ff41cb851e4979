"""Data formats: which roles a row has and what kind of label. Everything here is plain data, no torch."""

from __future__ import annotations

from dataclasses import dataclass

from embedloss.errors import EmbedlossError


@dataclass(frozen=True)
class LabelKind:
    """A kind of label.

    Args:
        name: how specs and messages call it.
        columns: column names that are read as this label without a mapping.
        per_candidate: one value a candidate document rather than one a row.
        real: any real number; otherwise integers.
        summary: one line for people.
    """

    name: str
    columns: tuple[str, ...]
    summary: str
    per_candidate: bool = False
    real: bool = True


_LABEL = ("label", "labels")
_SCORE = ("score", "scores", "similarity", "label", "labels")
LABELS: dict[str, LabelKind] = {
    kind.name: kind
    for kind in (
        LabelKind("class", (*_LABEL, "label_id", "class", "class_id"), "a class id, 0, 1, 2, ...", real=False),
        LabelKind("binary", (*_LABEL, "binary", "is_duplicate", "score"), "0 or 1", real=False),
        LabelKind("score", _SCORE, "a real number"),
        LabelKind("margin", ("margin", *_LABEL), "the teacher's score of positive minus negative"),
        LabelKind("margins", ("margins", "margin", *_LABEL), "one teacher margin a negative", per_candidate=True),
        LabelKind("scores", _SCORE, "one teacher score a candidate, the positive's first", per_candidate=True),
        LabelKind("grades", ("grades", "scores", "labels", "relevance", "label"), "one grade a document", per_candidate=True),
        LabelKind("embedding", ("embedding", "embeddings", "teacher_embedding", *_LABEL), "a teacher's vector, or one a text"),
    )
}

# Column names that stand for a role without a mapping. The first is the role's own name.
ROLE_COLUMNS: dict[str, tuple[str, ...]] = {
    "text": ("text", "sentence", "question", "query"),
    "texts": ("texts", "text", "sentences", "english", "translation"),
    "anchor": ("anchor", "query", "question", "sentence1", "text1", "premise", "english"),
    "positive": (
        *("positive", "pos", "answer", "passage", "document", "context", "sentence2", "text2", "code"),
        "translation",
    ),
    "negative": ("negative", "negatives", "neg", "hard_negative", "hard_negatives"),
    "first": ("first", "sentence1", "text1", "premise", "question1", "query", "anchor"),
    "second": ("second", "sentence2", "text2", "hypothesis", "question2", "document", "passage", "answer", "code", "positive"),
    "query": ("query", "anchor", "question"),
    "docs": ("docs", "documents", "passages", "candidates"),
    "damaged": ("damaged", "noisy", "corrupted"),
    "original": ("original", "clean"),
}

LARGEST_ID = 2**53
"""Of a class; larger whole numbers are not exact where numbers have fractions."""

# Roles that hold one or more texts a row.
LIST_ROLES = frozenset({"negative", "docs", "texts"})


@dataclass(frozen=True)
class DataFormat:
    """A named shape of data rows.

    Args:
        name: such as "pairs+score".
        roles: the texts of a row, by name and in order; the first is the query where there is one.
        label: name of the label kind, or None.
        lists: the roles that may hold several texts a row (then their number may differ from row to row).
        example: one row as JSON.
    """

    name: str
    roles: tuple[str, ...]
    label: str | None
    summary: str
    example: str
    lists: frozenset[str] = frozenset()

    @property
    def base(self) -> str:
        """The name without its label: "pairs+score" -> "pairs"."""
        return self.name.split("+")[0]

    @property
    def label_kind(self) -> LabelKind | None:
        """The declared kind of label, or None."""
        return LABELS[self.label] if self.label else None


def _format(name: str, roles: str, summary: str, example: str, label: str | None = None, lists: str = "") -> DataFormat:
    return DataFormat(name, tuple(roles.split()), label, summary, example, frozenset(lists.split()))


FORMATS: dict[str, DataFormat] = {
    f.name: f
    for f in (
        _format("single", "text", "texts alone", '{"text": "a"}'),
        _format("single+class", "text", "texts with a class", '{"text": "a", "label": 3}', "class"),
        _format("pairs", "anchor positive", "texts that belong together", '{"anchor": "q", "positive": "d"}'),
        _format("pairs+class", "first second", "two texts and a class", '{"first": "a", "second": "b", "label": 2}', "class"),
        _format("pairs+binary", "first second", "two texts and 0 or 1", '{"first": "a", "second": "b", "label": 1}', "binary"),
        _format("pairs+score", "first second", "two texts and a score", '{"first": "a", "second": "b", "score": 0.8}', "score"),
        _format(
            "triplets",
            "anchor positive negative",
            "a query, a good and a bad document",
            '{"anchor": "q", "positive": "d", "negative": "e"}',
        ),
        _format(
            "n-tuples",
            "anchor positive negative",
            "a query, a good document and several bad ones",
            '{"anchor": "q", "positive": "d", "negative": ["e", "f"]}',
            lists="negative",
        ),
        _format(
            "triplets+margin",
            "query positive negative",
            "a triplet and the teacher's margin",
            '{"query": "q", "positive": "d", "negative": "e", "margin": 2.5}',
            "margin",
        ),
        _format(
            "n-tuples+margins",
            "query positive negative",
            "an n-tuple and one teacher margin a negative",
            '{"query": "q", "positive": "d", "negative": ["e", "f"], "margins": [2.5, 3]}',
            "margins",
            "negative",
        ),
        _format(
            "n-tuples+scores",
            "query positive negative",
            "an n-tuple and one teacher score a document",
            '{"query": "q", "positive": "d", "negative": ["e", "f"], "scores": [9, 6.5, 6]}',
            "scores",
            "negative",
        ),
        _format(
            "listwise",
            "query docs",
            "a query, documents and their grades",
            '{"query": "q", "docs": ["d", "e"], "grades": [2, 0]}',
            "grades",
            "docs",
        ),
        _format(
            "text+embedding", "text", "a text and a teacher's vector", '{"text": "a", "embedding": [0.1, 0.2]}', "embedding"
        ),
        _format(
            "texts+embedding",
            "texts",
            "texts and one vector for all, or one for each",
            '{"texts": ["a", "b"], "embedding": [0.1, 0.2]}',
            "embedding",
            "texts",
        ),
        _format(
            "source-target", "damaged original", "a damaged text and the original", '{"damaged": "a c", "original": "a b c"}'
        ),
    )
}


def get_format(name: str) -> DataFormat:
    """The format of that name; an `EmbedlossError` (E101) that lists all names otherwise."""
    key = name.strip().lower().replace("_", "-").replace(" ", "")
    if key not in FORMATS:
        raise EmbedlossError("E101", f"unknown data format '{name}'. Formats: {', '.join(FORMATS)}.")
    return FORMATS[key]


def formats_like(name: str) -> list[DataFormat]:
    """Formats that `--format NAME` means: "pairs" is pairs with any label, "pairs+score" exactly that one."""
    if "+" in name:
        return [get_format(name)]
    base = get_format(name).base
    return [f for f in FORMATS.values() if f.base == base]
