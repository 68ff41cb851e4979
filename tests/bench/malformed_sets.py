"""Malformed data sets: what is wrong with each, and how embedloss must refuse it. Made by code, so that each fits on a line.

`tests/test_malformed.py` holds embedloss to it; `tests/bench/malformed.py` gives the same files to sentence-transformers.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

Row = dict[str, Any]
WORDS = ["river", "stone", "cloud", "ember", "willow", "falcon", "copper", "lantern"]


def some(i: int, *, kind: str = "question") -> str:
    return f"{kind} {i} about the {WORDS[i % 8]} and the {WORDS[(3 * i + 1) % 8]}"


def pairs(n: int = 8, **more: Any) -> list[Row]:
    return [{"anchor": some(i), "positive": some(i, kind="answer"), **more} for i in range(n)]


def triplets(**more: Any) -> list[Row]:
    return [{**row, "negative": some(i + 3, kind="answer"), **more} for i, row in enumerate(pairs())]


def scored(values: list[Any], name: str = "score", **more: Any) -> list[Row]:
    return [{"sentence1": some(i), "sentence2": some(i, kind="answer"), name: value, **more} for i, value in enumerate(values)]


def classes(values: list[Any], **more: Any) -> list[Row]:
    return [{"text": some(i), "label": value, **more} for i, value in enumerate(values)]


def lists(grades: list[Any], docs: int = 3) -> list[Row]:
    return [
        {"query": some(i), "docs": [some(i + d, kind="answer") for d in range(docs)], "labels": g} for i, g in enumerate(grades)
    ]


def vectors(values: list[Any]) -> list[Row]:
    return [{"text": some(i), "label": value} for i, value in enumerate(values)]


def tuples(values: list[Any]) -> list[Row]:
    """Two negatives a row, and the teacher's numbers."""
    return [
        {
            "query": some(i),
            "positive": some(i, kind="answer"),
            "negative_1": some(i + 1, kind="a"),
            "negative_2": some(i + 2, kind="b"),
            "label": value,
        }
        for i, value in enumerate(values)
    ]


def changed(rows: list[Row], number: int, **values: Any) -> list[Row]:
    """The rows, some values of one of them replaced; the first is number 1."""
    return [{**row, **values} if i == number else row for i, row in enumerate(rows, start=1)]


def renamed(rows: list[Row], **names: str) -> list[Row]:
    return [{names.get(key, key): value for key, value in row.items()} for row in rows]


def lines(rows: list[Any]) -> bytes:
    return "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows).encode()


@dataclass(frozen=True)
class Malformed:
    """A data set that must be refused.

    Args:
        what: what is wrong with it, for people.
        loss: expression of the loss that is to be trained.
        content: rows, or the bytes of a file.
        code: of the refusal.
        says: parts of the refusal, row and remedy among them.
        peer: class and arguments of the same loss in sentence-transformers; "CE:" before it: a cross-encoder's.
        suffix: of the file.
        config: further settings of the run.
        peer_config: the same for the peer's training arguments.
    """

    what: str
    loss: str
    content: Any
    code: str
    says: tuple[str, ...]
    peer: str
    suffix: str = ".jsonl"
    config: dict[str, Any] = field(default_factory=dict)
    peer_config: dict[str, Any] = field(default_factory=dict)

    def data(self) -> bytes:
        """The file."""
        return self.content if isinstance(self.content, bytes) else lines(self.content)


MNRL = "MultipleNegativesRankingLoss"
GOOD = [0.1, 0.9, 0.4, 0.2, 0.7, 0.3, 0.8, 0.5]
UP, HALF = [2, 1, 0], [0, 1] * 4

SETS = [
    # -- columns that mean something else -----------------------------------------------------------------------------
    Malformed(
        "a 0/1 label beside the pairs of an in-batch loss",
        "mnrl",
        [{**r, "label": i % 2} for i, r in enumerate(pairs())],
        "E101",
        ("takes no label", "--drop label"),
        MNRL,
    ),
    Malformed(
        "a constant text column beside the pairs", "mnrl", pairs(source="wiki"), "E102", ("'source'", "--drop source"), MNRL
    ),
    Malformed(
        "a constant text column, and a batch sampler without duplicates",
        "mnrl",
        pairs(source="wiki"),
        "E102",
        ("'source'", "--drop source"),
        MNRL,
        config={"sampler": "no-duplicates"},
        peer_config={"batch_sampler": "no_duplicates"},
    ),
    Malformed(
        "answers first, questions second, one name unknown",
        "mnrl",
        [{"passage": r["positive"], "q": r["anchor"]} for r in pairs()],
        "E102",
        ("--map anchor=q",),
        MNRL,
    ),
    Malformed(
        "names that mean nothing",
        "mnrl",
        renamed(pairs(), anchor="left", positive="right"),
        "E102",
        ("--map anchor=left --map positive=right",),
        MNRL,
    ),
    Malformed(
        "two texts in a list where one belongs",
        "mnrl",
        [{**r, "positive": [r["positive"], "another"]} for r in pairs()],
        "E104",
        ("'positive'", "row 1", "--map"),
        MNRL,
    ),
    Malformed(
        "a third text for a loss of two",
        "cosine-similarity",
        scored(GOOD, context="some context"),
        "E102",
        ("'context'", "--drop context"),
        "CosineSimilarityLoss",
    ),
    Malformed(
        "a second text for a loss of one",
        "batch-hard-triplet",
        classes(HALF, title="a title"),
        "E102",
        ("'title'", "--drop title"),
        "BatchHardTripletLoss",
    ),
    Malformed(
        "no negative for a triplet loss",
        "triplet",
        pairs(),
        "E101",
        ("missing: negative", "Losses that take it"),
        "TripletLoss",
    ),
    Malformed(
        "no label for a regression",
        "cosent",
        renamed(pairs(), anchor="sentence1", positive="sentence2"),
        "E101",
        ("missing: a label",),
        "CoSENTLoss",
    ),
    Malformed("two columns of scores", "cosent", scored(GOOD, label=1), "E101", ("takes one label", "--drop"), "CoSENTLoss"),
    Malformed("a label called target", "cosent", scored(GOOD, "target"), "E102", ("--map label=target",), "CoSENTLoss"),
    Malformed(
        "scores written as words", "cosent", scored(["high", "low"] * 4), "E105", ("'score'", "row 1", "--map"), "CoSENTLoss"
    ),
    Malformed(
        "numbers in a text column",
        "mnrl",
        [{**r, "anchor": i} for i, r in enumerate(pairs())],
        "E104",
        ("'anchor'", "whole number", "row 1"),
        MNRL,
    ),
    Malformed(
        "objects in a text column",
        "mnrl",
        [{**r, "anchor": {"text": r["anchor"]}} for r in pairs()],
        "E104",
        ("'anchor'", "neither text nor number"),
        MNRL,
    ),
    Malformed("a column without any value", "mnrl", pairs(8, positive=None), "E104", ("'positive'", "no values"), MNRL),
    # -- values -------------------------------------------------------------------------------------------------------
    Malformed(
        "a null among the texts", "mnrl", changed(pairs(), 3, positive=None), "E104", ("row 3", "Repair or remove"), MNRL
    ),
    Malformed(
        "an empty text", "mnrl", changed(pairs(), 4, positive=""), "E104", ("row 4", "empty text", "Repair or remove"), MNRL
    ),
    Malformed("a text of blanks only", "mnrl", changed(pairs(), 5, anchor=" \t "), "E104", ("row 5", "empty text"), MNRL),
    Malformed(
        "an empty list of negatives",
        "triplet",
        changed([{**r, "negative": ["x", "y"]} for r in pairs()], 2, negative=[]),
        "E104",
        ("row 2", "at least one text"),
        "TripletLoss",
    ),
    Malformed(
        "a null in a list of negatives",
        "mnrl",
        changed([{**r, "negative": ["x", "y"]} for r in pairs()], 6, negative=["x", None]),
        "E104",
        ("row 6", "Leave it out"),
        MNRL,
    ),
    Malformed("text here, number there", "mnrl", changed(pairs(), 2, anchor=7), "E104", ("row 2", "Write one type"), MNRL),
    Malformed(
        "a list here, a text there",
        "mnrl",
        changed([{**r, "negative": ["x"]} for r in pairs()], 3, negative="y"),
        "E104",
        ("row 3", "Write one type"),
        MNRL,
    ),
    Malformed(
        "half of a surrogate pair",
        "mnrl",
        changed(pairs(), 7, anchor="broken \ud83d"),
        "E104",
        ("row 7", "not valid Unicode"),
        MNRL,
    ),
    Malformed(
        "the same pair in every row",
        "mnrl",
        [pairs(1)[0]] * 8,
        "E106",
        ("every row has the same 'anchor'", "Remove all rows but one"),
        MNRL,
    ),
    Malformed("one row", "mnrl", pairs(1), "E106", ("1 row", "at least two"), MNRL),
    # -- labels -------------------------------------------------------------------------------------------------------
    Malformed(
        "scores from 0 to 5",
        "cosine-similarity",
        scored([0, 5, 4, 3, 2, 1, 5, 0]),
        "E105",
        ("rows 2", "--scale-labels"),
        "CosineSimilarityLoss",
    ),
    Malformed(
        "-1 and 1 for 0 and 1",
        "contrastive",
        scored([-1, 1] * 4, "label"),
        "E105",
        ("rows 1", "Write 0 instead of -1"),
        "ContrastiveLoss",
    ),
    Malformed(
        "scores for 0 and 1", "contrastive", scored(GOOD, "label"), "E105", ("rows 1", "takes 0 or 1"), "ContrastiveLoss"
    ),
    Malformed(
        "classes numbered from 1",
        "softmax(num_labels=3)",
        scored([1, 2, 3, 1, 2, 3, 1, 2], "label"),
        "E105",
        ("rows 3, 6", "Number the classes from 0"),
        "SoftmaxLoss:3",
    ),
    Malformed(
        "-1 for unlabelled",
        "batch-all-triplet",
        classes([0, 0, 1, 1, -1, -1, 0, 1]),
        "E105",
        ("rows 5, 6", "begin at 0"),
        "BatchAllTripletLoss",
    ),
    Malformed(
        "a class between two classes",
        "batch-all-triplet",
        classes([0, 0, 1, 1, 0.5, 0.5, 0, 1]),
        "E105",
        ("rows 5, 6", "whole number"),
        "BatchAllTripletLoss",
    ),
    Malformed(
        "a score that is NaN",
        "cosent",
        scored([*GOOD[:3], float("nan"), *GOOD[4:]]),
        "E105",
        ("row 4", "not finite"),
        "CoSENTLoss",
    ),
    Malformed(
        "an infinite score",
        "cosine-similarity",
        scored([*GOOD[:5], float("inf"), *GOOD[6:]]),
        "E105",
        ("row 6", "not finite"),
        "CosineSimilarityLoss",
    ),
    Malformed(
        "a score that is missing", "cosent", scored([*GOOD[:1], None, *GOOD[2:]]), "E105", ("row 2", "no label"), "CoSENTLoss"
    ),
    Malformed(
        "a class without a name",
        "softmax(num_labels=3)",
        scored(["a", "b", "", "a", "b", "a", "b", "a"], "label"),
        "E105",
        ("row 3", "empty class name"),
        "SoftmaxLoss:3",
    ),
    Malformed(
        "one class only", "batch-all-triplet", classes([1] * 8), "E106", ("two classes", "1 of 1"), "BatchAllTripletLoss"
    ),
    Malformed(
        "every text a class of its own",
        "batch-all-triplet",
        classes(list(range(8))),
        "E106",
        ("0 of 8",),
        "BatchAllTripletLoss",
        peer_config={"batch_sampler": "group_by_label"},
    ),
    Malformed(
        "a class with one row",
        "batch-hard-triplet",
        classes([0, 0, 1, 1, 2, 0, 1, 0]),
        "E106",
        ("row 5", "only row of its class"),
        "BatchHardTripletLoss",
        peer_config={"batch_sampler": "group_by_label"},
    ),
    Malformed("every score the same", "cosent", scored([0.5] * 8), "E105", ("every label", "learns nothing"), "CoSENTLoss"),
    # -- teachers -----------------------------------------------------------------------------------------------------
    Malformed(
        "one margin for two negatives",
        "margin-mse",
        tuples([[1.0, 2.0]] * 7 + [[1.0]]),
        "E105",
        ("row 8", "1 numbers for 2 texts"),
        "MarginMSELoss",
    ),
    Malformed(
        "scores without the positive's",
        "distill-kl-div",
        tuples([[1.0, 2.0]] * 8),
        "E105",
        ("rows 1", "2 numbers for 3 texts"),
        "DistillKLDivLoss",
    ),
    Malformed(
        "a teacher's score that is NaN",
        "distill-kl-div",
        tuples([[3.0, 2.0, 1.0]] * 4 + [[3.0, float("nan"), 1.0]] * 4),
        "E105",
        ("rows 5", "NaN"),
        "DistillKLDivLoss",
    ),
    Malformed(
        "vectors of two lengths",
        "mse",
        vectors([[0.1] * 32] * 5 + [[0.1] * 16] * 3),
        "E105",
        ("rows 6", "16 numbers"),
        "MSELoss",
    ),
    Malformed(
        "NaN in a vector",
        "mse",
        vectors([[0.1] * 32] * 6 + [[0.1] * 31 + [float("nan")]] * 2),
        "E105",
        ("rows 7", "NaN"),
        "MSELoss",
    ),
    Malformed("an empty vector", "mse", vectors([[0.1] * 32] * 7 + [[]]), "E105", ("row 8",), "MSELoss"),
    # -- lists of documents -------------------------------------------------------------------------------------------
    Malformed(
        "fewer grades than documents",
        "list-net",
        lists([UP] * 6 + [[2, 1]] * 2),
        "E105",
        ("rows 7", "2 numbers for 3 texts"),
        "CE:ListNetLoss",
    ),
    Malformed(
        "a grade that is missing",
        "lambda-loss",
        lists([UP] * 3 + [[2, None, 0]] + [UP] * 4),
        "E105",
        ("row 4", "null"),
        "CE:LambdaLoss",
    ),
    Malformed(
        "a list without documents",
        "list-net",
        changed(lists([UP] * 8), 5, docs=[], labels=[]),
        "E104",
        ("row 5", "at least one text"),
        "CE:ListNetLoss",
    ),
    Malformed(
        "a null among the documents",
        "rank-net",
        changed(lists([UP] * 8), 2, docs=["a", None, "b"]),
        "E104",
        ("row 2", "Leave it out"),
        "CE:RankNetLoss",
    ),
    Malformed("equal grades in every list", "lambda-loss", lists([[1, 1, 1]] * 8), "E105", ("equal grades",), "CE:LambdaLoss"),
    Malformed(
        "grades in another order than the loss reads",
        "list-mle",
        lists([[0, 1, 2]] * 8),
        "E105",
        ("rows 1", "respect_input_order=False"),
        "CE:ListMLELoss",
    ),
    # -- files --------------------------------------------------------------------------------------------------------
    Malformed("an empty file", "mnrl", b"", "E103", ("is empty",), MNRL),
    Malformed(
        "a broken line of JSON",
        "mnrl",
        lines([*pairs(4), '{"anchor": "a", "positive": }']),
        "E103",
        ("line 5", "not JSON"),
        MNRL,
    ),
    Malformed(
        "lists in place of rows",
        "mnrl",
        lines([[r["anchor"], r["positive"]] for r in pairs()]),
        "E103",
        ("line 1", "a list"),
        MNRL,
    ),
    Malformed(
        "Latin-1",
        "mnrl",
        lines(pairs(3)) + '{"anchor": "caf\xe9", "positive": "x"}\n'.encode("latin-1"),
        "E103",
        ("line 4", "iconv -f latin1"),
        MNRL,
    ),
    Malformed(
        "a line of CSV with a cell too many",
        "mnrl",
        b"anchor,positive\n" + b"a b,c d\n" * 3 + b"a, b,c d\n",
        "E103",
        ("line 5", "double quotes"),
        MNRL,
        ".csv",
    ),
    Malformed(
        "semicolons in a CSV file",
        "mnrl",
        b"anchor;positive\n" + b"a b;c d\n" * 8,
        "E103",
        ("separate by commas",),
        MNRL,
        ".csv",
    ),
    Malformed(
        "the same column twice",
        "mnrl",
        b"anchor,positive,anchor\n" + b"a b,c d,e f\n" * 8,
        "E103",
        ("'anchor' twice",),
        MNRL,
        ".csv",
    ),
    Malformed(
        "half of a Parquet file", "mnrl", b"PAR1" + b"\0" * 40, "E103", ("not a Parquet file, or damaged",), MNRL, ".parquet"
    ),
    # -- settings that go with the data -------------------------------------------------------------------------------
    Malformed(
        "a prompt for a role that is not there",
        "mnrl",
        pairs(),
        "E401",
        ("'ancor'", "anchor, positive"),
        MNRL,
        config={"prompts": {"ancor": "query: "}},
        peer_config={"prompts": {"ancor": "query: "}},
    ),
    Malformed(
        "contrastive tension between different texts",
        "contrastive-tension-in-batch-negatives",
        pairs(),
        "E105",
        ("row", "texts differ", "--drop positive"),
        "ContrastiveTensionLossInBatchNegatives",
    ),
]
