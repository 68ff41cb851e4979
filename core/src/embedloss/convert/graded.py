"""Queries with graded documents -> pairs, triplets, n-tuples, lists. Sources differ only in how they make `Group`s."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from embedloss.convert.job import Job, Numbered, Row
from embedloss.convert.rows import plain
from embedloss.errors import EmbedlossError


@dataclass
class Group:
    """A query and its documents; a document has one grade, the highest where it occurs several times."""

    query: str
    docs: dict[str, float] = field(default_factory=dict)
    rows: dict[str, int] = field(default_factory=dict)  # document -> row of the file
    again: list[int] = field(default_factory=list)  # rows of documents that were there already

    def add(self, text: str, grade: float, row: int) -> None:
        """Add a document."""
        if text in self.docs and self.rows[text] != row:
            self.again.append(row)
        self.docs[text] = max(grade, self.docs.get(text, grade))
        self.rows.setdefault(text, row)


Groups = Callable[[Iterable[Numbered], Job], Iterator[Group]]


# -- sources ----------------------------------------------------------------------------------------------------------
def by_row(rows: Iterable[Numbered], job: Job) -> Iterator[Group]:
    """Rows that are a group each: listwise, triplets, n-tuples."""
    for number, row in rows:
        if "docs" in row:
            group = Group(row["query"])
            for text, grade in zip(row["docs"], row["label"], strict=True):
                group.add(text, grade, number)
        else:
            group = Group(row["anchor"])
            group.add(row["positive"], 1.0, number)
            for text in [row["negative"]] if isinstance(row["negative"], str) else row["negative"]:
                group.add(text, 0.0, number)
        yield group


def each_row(rows: Iterable[Numbered], job: Job) -> Iterator[Group]:
    """Pairs with a label, one group a row: enough where the target is pairs again, and needs no memory."""
    for number, row in rows:
        group = Group(row["first"])
        group.add(row["second"], float(row["label"]), number)
        yield group


def by_query(rows: Iterable[Numbered], job: Job) -> Iterator[Group]:
    """Pairs with a label, collected by their first text."""
    found: dict[str, Group] = {}
    for number, row in rows:
        found.setdefault(row["first"], Group(row["first"])).add(row["second"], float(row["label"]), number)
    yield from found.values()


def _inference(rows: Iterable[Numbered], job: Job) -> Iterator[Numbered]:
    """Entailment as 1, contradiction as 0; other classes are dropped."""
    wanted = {"entailment": job["entailment"], "contradiction": job["contradiction"]}
    names = [name for name, value in wanted.items() if value is not None]
    seen: dict[str, None] = {}
    for number, row in rows:
        label = str(row["label"])
        if label not in seen:
            seen[label] = None
            if label.isdigit() and len(names) < 2:
                raise EmbedlossError(
                    "E107",
                    "classes are ids, and data sets number them differently. Type which is which, such as "
                    "--entailment 0 --contradiction 2.",
                )
        value = next((k for k, v in wanted.items() if label == str(v)), None)
        if value is None and len(names) < 2:
            value = next((k for k in wanted if wanted[k] is None and label.lower().startswith(k[:6])), None)
        if value is None:
            job.report.drop("the class is neither entailment nor contradiction", number)
            continue
        yield number, {**row, "label": 1.0 if value == "entailment" else 0.0}
    missing = [str(v) for v in wanted.values() if v is not None and str(v) not in seen]
    if missing and seen:
        raise EmbedlossError("E107", f"there is no class '{missing[0]}'. Classes: {', '.join(list(seen)[:10])}.")


def inference_rows(rows: Iterable[Numbered], job: Job) -> Iterator[Group]:
    """Natural language inference, one group a row."""
    return each_row(_inference(rows, job), job)


def inference_queries(rows: Iterable[Numbered], job: Job) -> Iterator[Group]:
    """Natural language inference, collected by premise."""
    return by_query(_inference(rows, job), job)


def judged(rows: Iterable[Numbered], job: Job) -> Iterator[Group]:
    """Judgements (query_id, doc_id, label) with the texts of `queries` and `corpus`."""
    queries, corpus = job["queries"], job["corpus"]
    found: dict[str, Group] = {}
    for number, row in rows:
        if row["query_id"] not in queries:
            job.report.drop("the query is not in the file of queries", number)
        elif row["doc_id"] not in corpus:
            job.report.drop("the document is not in the corpus", number)
        else:
            query = row["query_id"]
            found.setdefault(query, Group(queries[query])).add(corpus[row["doc_id"]], row["label"], number)
    yield from found.values()


def judged_and_random(rows: Iterable[Numbered], job: Job) -> Iterator[Group]:
    """As `judged`; where less than `negatives` documents are below the threshold, others are drawn from the corpus."""
    texts = list(dict.fromkeys(job["corpus"].values()))
    for group in judged(rows, job):
        missing = job["negatives"] - sum(grade < job["threshold"] for grade in group.docs.values())
        taken = {group.query, *group.docs}
        if missing > 0 and len(texts) < 4 * (len(taken) + missing):  # too few for trying at random
            rest = [text for text in texts if text not in taken]
            group.docs.update(dict.fromkeys(job.rng.sample(rest, min(missing, len(rest))), 0.0))
        else:
            while missing > 0:
                text = texts[job.rng.randrange(len(texts))]
                if text not in taken:
                    taken.add(text)
                    group.docs[text] = 0.0
                    missing -= 1
        yield group


# -- targets ----------------------------------------------------------------------------------------------------------
def _split(group: Group, job: Job) -> tuple[list[str], list[str]]:
    """Documents at or above the threshold, and those below `below`; a document that is the query itself is neither."""
    threshold = _threshold(job)
    below = job.values.get("below")
    below = threshold if below is None else below
    if below > threshold:
        raise EmbedlossError("E107", f"--below {below:g} is above --threshold {threshold:g}.")
    docs = {text: grade for text, grade in group.docs.items() if text != group.query}
    return [t for t, g in docs.items() if g >= threshold], [t for t, g in docs.items() if g < below]


class _Rows:
    """Counts every row of a group once: as used, or as dropped for one reason."""

    def __init__(self, group: Group, job: Job) -> None:
        self.group, self.job = group, job
        self.left = set(group.rows.values())
        if group.again:
            job.report.drop("the query has the same document twice", *group.again)

    def use(self, texts: Iterable[str]) -> None:
        self.left -= {self.group.rows[text] for text in texts if text in self.group.rows}

    def drop(self, reason: str, texts: Iterable[str] | None = None) -> None:
        own = self.group.rows
        rows = self.left if texts is None else {own[text] for text in texts if text in own} & self.left
        if rows:
            self.job.report.drop(reason, *sorted(rows))
        self.left = self.left - rows


def _threshold(job: Job) -> float:
    return float(job.values.get("threshold", 1.0))  # 1 where labels are 0 and 1 by their kind


def to_pairs(groups: Groups) -> Callable[[Iterable[Numbered], Job], Iterator[Row]]:
    """Query and every document at or above the threshold."""

    def function(rows: Iterable[Numbered], job: Job) -> Iterator[Row]:
        for group in groups(rows, job):
            good, _ = _split(group, job)
            count = _Rows(group, job)
            for text in good:
                yield {"anchor": group.query, "positive": text}
            count.use(good)
            count.drop("both texts are the same", [group.query])
            count.drop(f"the grade is below {_threshold(job):g}")

    return function


def to_binary(groups: Groups) -> Callable[[Iterable[Numbered], Job], Iterator[Row]]:
    """Every document with 1 at or above the threshold, 0 below `below`."""

    def function(rows: Iterable[Numbered], job: Job) -> Iterator[Row]:
        for group in groups(rows, job):
            good, bad = (set(texts) for texts in _split(group, job))
            count = _Rows(group, job)
            for text in group.docs:
                if text in good or text in bad:
                    yield {"first": group.query, "second": text, "label": int(text in good)}
            count.use([*good, *bad])
            count.drop("both texts are the same", [group.query])
            count.drop("the grade is between --below and --threshold")

    return function


def to_scores(groups: Groups) -> Callable[[Iterable[Numbered], Job], Iterator[Row]]:
    """Every document with its grade as score."""

    def function(rows: Iterable[Numbered], job: Job) -> Iterator[Row]:
        for group in groups(rows, job):
            _Rows(group, job)
            for text, grade in group.docs.items():
                yield {"first": group.query, "second": text, "score": plain(grade)}

    return function


def to_tuples(groups: Groups, single: bool) -> Callable[[Iterable[Numbered], Job], Iterator[Row]]:
    """Every document at or above the threshold with up to `negatives` below: one row each (`single`), or all in one row."""

    def function(rows: Iterable[Numbered], job: Job) -> Iterator[Row]:
        for group in groups(rows, job):
            good, bad = _split(group, job)
            count = _Rows(group, job)
            if good and bad:
                for text in good:
                    chosen = job.rng.sample(bad, min(job["negatives"], len(bad)))
                    count.use(chosen)
                    if single:
                        yield from ({"anchor": group.query, "positive": text, "negative": other} for other in chosen)
                    else:
                        yield {"anchor": group.query, "positive": text, "negative": chosen}
                count.use(good)
                count.drop("a negative that was not drawn", bad)
            count.drop("both texts are the same", [group.query])
            if not good:
                count.drop("the query has no positive")
            elif not bad:
                count.drop("the query has no negative")
            count.drop("the grade is between --below and --threshold")

    return function


def to_lists(groups: Groups) -> Callable[[Iterable[Numbered], Job], Iterator[Row]]:
    """A query, all its documents and their grades; at least two documents with different grades."""

    def function(rows: Iterable[Numbered], job: Job) -> Iterator[Row]:
        for group in groups(rows, job):
            count = _Rows(group, job)
            if len(set(group.docs.values())) < 2:
                count.drop("all documents of the query have the same grade: nothing to rank")
                continue
            docs = list(group.docs)
            yield {"query": group.query, "docs": docs, "grades": [plain(group.docs[text]) for text in docs]}

    return function
