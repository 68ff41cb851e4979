"""What is mined: queries, documents, and which of them belong together. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from embedloss.binding import bind, key_of
from embedloss.check import kind_of, table_of
from embedloss.chunks import Chunks
from embedloss.convert.files import DOC_IDS, QUERY_IDS, judgements, read_texts
from embedloss.convert.rows import NO_TEXT, usable
from embedloss.data import _table
from embedloss.errors import EmbedlossError
from embedloss.formats import get_format

if TYPE_CHECKING:
    from embedloss.convert.job import ConversionReport

POSITIVE_IDS = ("positive_id", *DOC_IDS)
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Row:
    """A query and a document that answers it; ids are None where the data has none."""

    query: str
    positive: str
    query_id: str | None = None
    positive_id: str | None = None


@dataclass
class Pairs:
    """Everything that is encoded, each text once.

    Args:
        queries: different texts.
        documents: different texts; the first `searched` are looked through, the others are positives outside the corpus.
        searched: number of documents that can become negatives.
        query: query of each pair, an index.
        positive: document of each pair, an index; a pair occurs once.
        starts: (queries + 1) where each query's part of `known` begins.
        known: documents that are no negatives of the query: its positives by text and by id, and its own text.
    """

    queries: list[str]
    documents: list[str]
    searched: int
    query: Ints
    positive: Ints
    starts: Ints
    known: Ints


def same_text(text: str) -> str:
    """Texts that differ in case and white space only are the same text."""
    return " ".join(text.split()).casefold()


def gather(rows: Iterable[Row], corpus: Mapping[str, str] | Sequence[str] | None = None) -> Pairs:
    """Number the texts, and note what must not become a negative.

    Rows are of the same query if they have its text or its id. A document is known as positive of a query if one of the query's
    rows has its text (whatever case and white space) or its id.

    Args:
        rows: the pairs.
        corpus: texts to search, by id or without; the positives themselves where there is none.
    """
    queries: dict[str, int] = {}
    documents: dict[str, int] = {}
    keys: dict[tuple[str, str], list[int]] = {}  # identity of a document, by text and by id -> documents

    def number(text: str, identity: str | None) -> int:
        place = documents.get(text)
        if place is None:
            place = documents[text] = len(documents)
            keys.setdefault(("text", same_text(text)), []).append(place)
        if identity is not None:
            owners = keys.setdefault(("id", identity), [])
            if place not in owners:
                owners.append(place)
        return place

    if corpus is not None:
        entries = corpus.items() if isinstance(corpus, Mapping) else ((None, text) for text in corpus)
        for identity, text in entries:
            number(text, identity)
    searched = len(documents)
    found: dict[tuple[int, int], None] = {}
    group_of: dict[tuple[str, str], int] = {}  # identity of a query, by text and by id -> group
    groups: list[int] = []  # group -> the group it was joined to, itself as a rule
    group_of_query: list[int] = []
    named: dict[int, set[tuple[str, str]]] = {}  # query -> identities of its positives

    def root(group: int) -> int:
        while groups[group] != group:
            group = groups[group]
        return group

    for row in rows:
        query = queries.setdefault(row.query, len(queries))
        identities = [("text", same_text(row.query))] + ([("id", row.query_id)] if row.query_id is not None else [])
        roots = {root(group_of[identity]) for identity in identities if identity in group_of}
        group = min(roots, default=len(groups))
        if not roots:
            groups.append(group)
        for other in roots:
            groups[other] = group
        group_of.update(dict.fromkeys(identities, group))
        if query == len(group_of_query):
            group_of_query.append(group)
        positive = number(row.positive, row.positive_id)
        found[query, positive] = None
        own = named.setdefault(query, set())
        own.add(("text", same_text(row.positive)))
        if row.positive_id is not None:
            own.add(("id", row.positive_id))
    if corpus is None:
        searched = len(documents)
    of_group: dict[int, set[tuple[str, str]]] = {}
    for query, own in named.items():
        of_group.setdefault(root(group_of_query[query]), set()).update(own)
    starts, known = [0], []
    for text, query in queries.items():
        taken = {*of_group[root(group_of_query[query])], ("text", same_text(text))}
        places = {place for identity in taken for place in keys.get(identity, ()) if place < searched}
        known.append(np.fromiter(sorted(places), np.int64, len(places)))
        starts.append(starts[-1] + len(places))
    pairs = np.array(list(found), dtype=np.int64).reshape(-1, 2)
    return Pairs(
        list(queries),
        list(documents),
        searched,
        pairs[:, 0],
        pairs[:, 1],
        np.array(starts, dtype=np.int64),
        np.concatenate([*known, np.zeros(0, np.int64)]),
    )


# -- reading ----------------------------------------------------------------------------------------------------------
def read_pairs(
    data: Any, report: ConversionReport, mapping: Mapping[str, str] | None = None, drop: Sequence[str] = ()
) -> Iterator[Row]:
    """Pairs of a file, a data set or a list of rows; columns by name. Rows without a text are dropped and counted.

    Args:
        data: as in `data.load_rows`, a `datasets.Dataset`, or rows as mappings.
        report: gets what was dropped.
        mapping: role -> column.
        drop: columns to leave out.

    Raises:
        EmbedlossError: E101 and E102 if there is no anchor and positive.
    """
    tables: Iterable[Any]
    if isinstance(data, (str, Path)):
        tables = chunks = Chunks(data)
        kinds = chunks.kinds()
    else:
        table = table_of(data) if hasattr(data, "column_names") else _table(map(dict, data), "the rows")
        tables, kinds = [table], {field.name: kind_of(field.type) for field in table.schema}
    try:
        binding = bind(kinds, [get_format("pairs")], loss_name="mine", mapping=mapping, drop=drop)
    except EmbedlossError as error:
        if error.code != "E101":
            raise
        lines = [line for line in error.message.splitlines()[1:] if not line.strip().startswith("Losses that")]
        raise EmbedlossError(
            "E101", "\n".join(["negatives are mined for pairs, which this data set does not hold.", *lines])
        ) from error
    free = [name for name in binding.unused if name not in drop]
    ids = {role: _named(free, names) for role, names in (("query", QUERY_IDS), ("positive", POSITIVE_IDS))}
    for role, name in ids.items():
        if name:
            report.notes.append(f"'{name}' identifies the {role}: known positives are recognised by it as well as by text")
    anchor, positive = binding.columns["anchor"][0], binding.columns["positive"][0]

    def rows() -> Iterator[Row]:
        for table in tables:
            for raw in table.to_pylist():
                report.rows_in += 1
                if usable(raw[anchor]) and usable(raw[positive]):
                    yield Row(raw[anchor], raw[positive], _id(raw, ids["query"]), _id(raw, ids["positive"]))
                else:
                    report.drop(NO_TEXT, report.rows_in)

    return rows()


def read_judgements(source: str, corpus: Mapping[str, str], queries: str, report: ConversionReport) -> Iterator[Row]:
    """Pairs of a file of judgements; every grade above 0 makes a positive.

    Args:
        source: query_id, doc_id, score; or the four columns of TREC.
        corpus: document id -> text.
        queries: file of queries.
        report: gets what was dropped.
    """
    texts = read_texts(queries, QUERY_IDS, report)
    read = judgements(source, report)
    for number, row in read():
        query, doc = row["query_id"], row["doc_id"]
        if row["label"] <= 0:
            report.drop("the grade is not above 0", number)
        elif query not in texts:
            report.drop("the query is not in the file of queries", number)
        elif doc not in corpus:
            report.drop("the document is not in the corpus", number)
        else:
            yield Row(texts[query], corpus[doc], query, doc)


def read_corpus(corpus: Any, report: ConversionReport) -> Mapping[str, str] | list[str] | None:
    """Texts to search: a file with ids, or what is given already; E108 for one that holds no text."""
    if isinstance(corpus, (str, Path)):
        corpus = read_texts(str(corpus), DOC_IDS, report)
    if corpus is None:
        return None
    texts = list(corpus.values() if isinstance(corpus, Mapping) else corpus)
    wrong = next((text for text in texts if not usable(text)), None)
    if not texts or wrong is not None:
        raise EmbedlossError("E108", f"the corpus holds {'an empty text' if texts else 'no texts'}.")
    return corpus if isinstance(corpus, Mapping) else texts


def _named(columns: Iterable[str], names: Sequence[str]) -> str | None:
    return next((column for name in names for column in columns if key_of(column) == name), None)


def _id(row: Mapping[str, Any], column: str | None) -> str | None:
    return None if column is None or row[column] is None else str(row[column])
