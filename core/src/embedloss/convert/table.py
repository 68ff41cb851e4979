"""The table of conversions. A new one is an entry here and a function beside the others."""

from __future__ import annotations

from dataclasses import replace

from embedloss.convert import classes, graded, teacher, texts
from embedloss.convert.job import Conversion, Parameter
from embedloss.errors import EmbedlossError
from embedloss.formats import FORMATS

QRELS = "qrels"
"""Judgements (query_id, doc_id, grade); with the texts of queries and corpus they are a source like a format."""

THRESHOLD = Parameter("threshold", float, "grades from here on make a positive", required=True)
GRADE = Parameter("threshold", float, "grades from here on make a positive", 1.0)
BELOW = Parameter("below", float, "grades below make a negative; the threshold if not given")
PER_CLASS = Parameter("per_class", int, "rows from each class; 0: about as many rows as there are texts", 0)
ONE = Parameter("negatives", int, "negatives drawn for a positive", 1)
FIVE = Parameter("negatives", int, "most negatives of a positive, drawn at random", 5)
FILL = Parameter("negatives", int, "documents below the threshold; random ones of the corpus where fewer are judged", 4)
TENSION = Parameter("negatives", int, "other texts for each text", 7)
NOISE = Parameter("noise", float, "probability with which a word is deleted", 0.6)
ENTAILMENT = Parameter("entailment", str, "name or id of the class; found by name if not given")
CONTRADICTION = Parameter("contradiction", str, "name or id of the class; found by name if not given")
TEACHER = Parameter("teacher", object, "folder or hub id of a bi-encoder or cross-encoder", required=True)
ENCODER = Parameter("teacher", object, "folder or hub id of a bi-encoder", required=True)
CORPUS = Parameter("corpus", dict, "file of documents: doc_id, text and perhaps title", required=True)
QUERIES = Parameter("queries", dict, "file of queries: query_id, text", required=True)
SCALE = Parameter("scale_labels", tuple, "LOW,HIGH: scale linearly from the range in the data to this one")

_INFERENCE = (ENTAILMENT, CONTRADICTION)
_TEXTS = (CORPUS, QUERIES)


# What `embedloss suggest` adds for a conversion: against the habit of the field, or for what it keeps and loses.
_WORTH = {
    ("single", "pairs"): -10,  # dropout alone makes the pairs
    ("single", "source-target"): -5,  # the loss damages texts itself
    ("single", "pairs+binary"): -40,  # only contrastive tension means such pairs, and it makes them itself
    ("pairs+score", "pairs"): -10,
    ("pairs+class", "triplets"): 20,
    ("pairs+class", "n-tuples"): 20,
    ("pairs+class", "pairs"): -10,
    ("triplets", "pairs"): -25,  # the negatives are lost
    ("n-tuples", "pairs"): -25,
    ("listwise", "n-tuples"): 30,
    ("listwise", "triplets"): 10,
}
_TO_LISTS = -40  # lists of two grades, where the source had no lists


def _table() -> list[Conversion]:
    found = [
        Conversion("single+class", "pairs", "two texts of a class", classes.to_pairs, (PER_CLASS,), False),
        Conversion("single+class", "triplets", "two of a class, one of another", classes.to_triplets, (PER_CLASS,), False),
        Conversion("single+class", "pairs+binary", "same class or not", classes.to_binary, (PER_CLASS,), False),
        Conversion("single", "source-target", "delete words (denoising)", texts.to_damaged, (NOISE,)),
        Conversion("single", "pairs+binary", "itself or another (contrastive tension)", texts.to_tension, (TENSION,)),
        Conversion("single", "pairs", "each text with itself (dropout differs)", texts.to_twins),
    ]
    graded_sources = [
        # source, groups for pairs, groups for lists, parameters, streams to pairs, streams to lists
        ("pairs+score", graded.each_row, graded.by_query, (THRESHOLD,), True, False),
        ("pairs+binary", graded.each_row, graded.by_query, (), True, False),
        ("pairs+class", graded.inference_rows, graded.inference_queries, _INFERENCE, True, False),
        ("listwise", graded.by_row, graded.by_row, (GRADE,), True, True),
        ("triplets", graded.by_row, graded.by_row, (), True, True),
        ("n-tuples", graded.by_row, graded.by_row, (), True, True),
        (QRELS, graded.judged, graded.judged_and_random, (GRADE, *_TEXTS), False, False),
    ]
    for source, flat, full, more, flat_streams, full_streams in graded_sources:
        low = (BELOW,) if any(p.name == "threshold" for p in more) else ()
        one, several = (FILL, FILL) if source == QRELS else (ONE, FIVE)
        free = tuple(p for p in more if p.name != "threshold")
        fill_grade = (GRADE, FILL, *_TEXTS)  # random documents are added below the threshold
        found += [
            Conversion(source, "pairs", "query and positives", graded.to_pairs(flat), more, flat_streams),
            Conversion(
                source, "triplets", "a row for each negative", graded.to_tuples(full, True), (*more, *low, one), full_streams
            ),
            Conversion(
                source,
                "n-tuples",
                "all negatives in a row",
                graded.to_tuples(full, False),
                (*more, *low, several),
                full_streams,
            ),
            Conversion(
                source,
                "listwise",
                "all documents of a query with their grades",
                graded.to_lists(full),
                fill_grade if source == QRELS else free,
                full_streams,
            ),
            Conversion(source, "pairs+binary", "positive or not", graded.to_binary(flat), (*more, *low), flat_streams),
        ]
        if source in ("listwise", QRELS):
            found.append(Conversion(source, "pairs+score", "grades as scores", graded.to_scores(flat), free, flat_streams))
    found += [
        Conversion("pairs", "pairs+score", "the teacher's score", teacher.to_pair_scores, (TEACHER,)),
        Conversion("single", "text+embedding", "the teacher's vector", teacher.to_vectors("text"), (ENCODER,)),
        Conversion("pairs", "texts+embedding", "the teacher's vector of the first", teacher.to_vectors("anchor"), (ENCODER,)),
    ]
    for source in ("triplets", "n-tuples"):
        found += [
            Conversion(source, "n-tuples+scores", "a teacher's score a document", teacher.to_scores, (TEACHER,)),
            Conversion(source, "n-tuples+margins", "a teacher's margin a negative", teacher.to_margins, (TEACHER,)),
            Conversion(source, "triplets+margin", "a row and margin for each negative", teacher.to_margin, (TEACHER,)),
        ]
    for fmt in FORMATS.values():
        found = [c for c in found if (c.source, c.target) != (fmt.name, fmt.name)]
        scales = fmt.label in ("score", "grades", "scores")
        found.append(
            Conversion(
                fmt.name,
                fmt.name,
                "the same without unusable rows" + ("; numbers scaled if asked" if scales else ""),
                texts.rewrite(fmt.name),
                (SCALE,) if scales else (),
            )
        )
    return [replace(c, worth=_WORTH.get((c.source, c.target), _TO_LISTS if _makes_lists(c) else 0)) for c in found]


def _makes_lists(conversion: Conversion) -> bool:
    return conversion.target == "listwise" and conversion.source not in ("listwise", QRELS)


CONVERSIONS: tuple[Conversion, ...] = tuple(_table())


def find(source: str, target: str) -> Conversion | None:
    """The conversion from one format to another, or None."""
    return next((c for c in CONVERSIONS if (c.source, c.target) == (source, target)), None)


def from_format(source: str) -> list[Conversion]:
    """Conversions of a format to others."""
    return [c for c in CONVERSIONS if c.source == source and c.target != source]


def get(sources: list[str], target: str) -> Conversion:
    """The conversion of the first of these formats that can become the target; E107 otherwise."""
    for source in sources:
        found = find(source, target)
        if found is not None:
            return found
    possible = list(dict.fromkeys(c.target for source in sources for c in from_format(source)))
    origins = list(dict.fromkeys(c.source for c in CONVERSIONS if c.target == target and c.source != target))
    raise EmbedlossError(
        "E107",
        f"{' or '.join(sources)} cannot be converted to {target}.\n"
        f"  From this data: {', '.join(possible) or 'nothing'}.\n"
        f"  To {target}: from {', '.join(origins) or 'nothing'}.",
    )
