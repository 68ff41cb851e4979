"""Conversions: each against what its source says, the report that accounts for every row, and the same result every time."""

import json
from collections import Counter

import pytest

from embedloss.convert import CONVERSIONS, ConversionReport, convert, convert_file, find
from embedloss.errors import EmbedlossError
from embedloss.formats import FORMATS


def run(rows, source, target, seed=1, **parameters):
    report = ConversionReport(source, target)
    made = list(convert(list(enumerate(rows, start=1)), source, target, seed=seed, report=report, **parameters))
    return made, report


def reasons(report):
    return {reason: (found.count, found.rows) for reason, found in report.dropped.items()}


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


SCORED = [
    {"first": "q1", "second": "a", "label": 0.9},
    {"first": "q1", "second": "b", "label": 0.1},
    {"first": "q2", "second": "c", "label": 0.8},
    {"first": "q1", "second": "d", "label": 0.5},
    {"first": "q3", "second": "e", "label": 0.2},
]


def test_pairs_from_scores_by_threshold():
    made, report = run(SCORED, "pairs+score", "pairs", threshold=0.8)
    assert made == [{"anchor": "q1", "positive": "a"}, {"anchor": "q2", "positive": "c"}]
    assert reasons(report) == {"the grade is below 0.8": (3, [2, 4, 5])}


def test_tuples_from_scores_by_query():
    made, report = run(SCORED, "pairs+score", "n-tuples", threshold=0.8, below=0.3)
    assert made == [{"anchor": "q1", "positive": "a", "negative": ["b"]}]
    assert reasons(report) == {
        "the grade is between --below and --threshold": (1, [4]),
        "the query has no negative": (1, [3]),
        "the query has no positive": (1, [5]),
    }
    made, _ = run(SCORED, "pairs+score", "n-tuples", threshold=0.8)
    assert sorted(made[0]["negative"]) == ["b", "d"]


def test_binary_from_scores():
    made, report = run(SCORED, "pairs+score", "pairs+binary", threshold=0.8, below=0.3)
    assert [(row["second"], row["label"]) for row in made] == [("a", 1), ("b", 0), ("c", 1), ("e", 0)]
    assert reasons(report) == {"the grade is between --below and --threshold": (1, [4])}


def test_lists_from_scores():
    made, report = run(SCORED, "pairs+score", "listwise")
    assert made == [{"query": "q1", "docs": ["a", "b", "d"], "grades": [0.9, 0.1, 0.5]}]
    assert reasons(report) == {"all documents of the query have the same grade: nothing to rank": (2, [3, 5])}


def test_triplets_from_binary_by_query():
    rows = [{"first": q, "second": d, "label": y} for q, d, y in [("q", "a", 1), ("q", "b", 0), ("q", "c", 0), ("r", "a", 1)]]
    made, report = run(rows, "pairs+binary", "triplets", negatives=2)
    assert {(r["anchor"], r["positive"], r["negative"]) for r in made} == {("q", "a", "b"), ("q", "a", "c")}
    assert reasons(report) == {"the query has no negative": (1, [4])}
    made, report = run(rows, "pairs+binary", "triplets")
    assert len(made) == 1
    assert reasons(report)["a negative that was not drawn"][0] == 1


def test_a_document_with_two_labels_is_never_the_negative_of_its_own_query():
    rows = [{"first": "q", "second": d, "label": y} for d, y in [("a", 1), ("a", 0), ("b", 0)]]
    made, report = run(rows, "pairs+binary", "n-tuples")
    assert made == [{"anchor": "q", "positive": "a", "negative": ["b"]}]
    assert reasons(report) == {"the query has the same document twice": (1, [2])}


def test_the_query_is_neither_its_own_positive_nor_its_own_negative():
    rows = [{"first": "q", "second": d, "label": y} for d, y in [("q", 1), ("a", 1), ("b", 0)]]
    made, report = run(rows, "pairs+binary", "triplets")
    assert made == [{"anchor": "q", "positive": "a", "negative": "b"}]
    assert reasons(report) == {"both texts are the same": (1, [1])}


LISTS = [
    {"query": "q", "docs": ["a", "b", "c", "d"], "label": [2.0, 0.0, 1.0, 0.0]},
    {"query": "r", "docs": ["a", "b"], "label": [0.0, 0.0]},
]


def test_tuples_from_lists():
    made, report = run(LISTS, "listwise", "n-tuples")
    assert [(r["anchor"], r["positive"], sorted(r["negative"])) for r in made] == [
        ("q", "a", ["b", "d"]),
        ("q", "c", ["b", "d"]),
    ]
    assert reasons(report) == {"the query has no positive": (1, [2])}
    made, _ = run(LISTS, "listwise", "n-tuples", threshold=2, below=1)
    assert [(r["positive"], sorted(r["negative"])) for r in made] == [("a", ["b", "d"])]


def test_pairs_from_lists():
    assert [r["positive"] for r in run(LISTS, "listwise", "pairs")[0]] == ["a", "c"]
    made = run(LISTS, "listwise", "pairs+score")[0]
    assert [(r["first"], r["second"], r["score"]) for r in made][:3] == [("q", "a", 2), ("q", "b", 0), ("q", "c", 1)]
    made = run(LISTS, "listwise", "pairs+binary", threshold=2)[0]
    assert [r["label"] for r in made] == [1, 0, 0, 0, 0, 0]


def test_tuples_become_lists_and_triplets():
    rows = [{"anchor": "q", "positive": "a", "negative": ["b", "c"]}]
    assert run(rows, "n-tuples", "listwise")[0] == [{"query": "q", "docs": ["a", "b", "c"], "grades": [1, 0, 0]}]
    assert {r["negative"] for r in run(rows, "n-tuples", "triplets", negatives=2)[0]} == {"b", "c"}
    assert run(rows, "n-tuples", "pairs")[0] == [{"anchor": "q", "positive": "a"}]


NLI = [
    {"first": "p", "second": "e1", "label": "entailment"},
    {"first": "p", "second": "n1", "label": "neutral"},
    {"first": "p", "second": "c1", "label": "contradiction"},
    {"first": "s", "second": "e2", "label": "entailment"},
]


def test_inference_by_name_and_by_id():
    made, report = run(NLI, "pairs+class", "triplets")
    assert made == [{"anchor": "p", "positive": "e1", "negative": "c1"}]
    assert reasons(report) == {
        "the class is neither entailment nor contradiction": (1, [2]),
        "the query has no negative": (1, [4]),
    }
    ids = {"entailment": 0, "neutral": 1, "contradiction": 2}
    numbered = [{**row, "label": ids[row["label"]]} for row in NLI]
    assert run(numbered, "pairs+class", "triplets", entailment="0", contradiction="2")[0] == made
    with pytest.raises(EmbedlossError, match="--entailment 0 --contradiction 2"):
        run(numbered, "pairs+class", "triplets")
    with pytest.raises(EmbedlossError, match=r"there is no class 'yes'\. Classes: entailment, neutral"):
        run(NLI, "pairs+class", "triplets", entailment="yes", contradiction="contradiction")


CLASSES = [{"text": f"{name}{i}", "label": name} for name, n in (("a", 30), ("b", 4), ("c", 2), ("d", 1)) for i in range(n)]


def test_classes_are_balanced_and_every_text_is_used():
    made, report = run(CLASSES, "single+class", "pairs", per_class=60)
    assert Counter(row["anchor"][0] for row in made) == {"a": 60, "b": 60, "c": 60}
    assert all(row["anchor"][0] == row["positive"][0] and row["anchor"] != row["positive"] for row in made)
    uses = Counter(row["anchor"] for row in made)
    assert all(uses[f"a{i}"] == 2 for i in range(30))
    assert all(uses[f"b{i}"] == 15 for i in range(4))
    assert reasons(report) == {"its class has no other text": (1, [37])}


def test_class_triplets_draw_every_other_class_alike():
    made, _ = run(CLASSES, "single+class", "triplets", per_class=400)
    found = Counter(row["negative"][0] for row in made if row["anchor"][0] == "b")
    assert set(found) == {"a", "c"}
    assert 150 < found["a"] < 250  # by class, not by number of texts


def test_class_pairs_with_labels_are_half_and_half_in_every_class():
    made, _ = run(CLASSES, "single+class", "pairs+binary", per_class=40)
    for name in "abc":
        labels = [row["label"] for row in made if row["first"][0] == name]
        assert Counter(labels) == {0: 20, 1: 20}
    assert all((row["first"][0] == row["second"][0]) == row["label"] for row in made)


def test_a_text_of_two_classes_is_in_no_pair():
    rows = [{"text": t, "label": c} for t, c in [("x", 0), ("x", 1), ("y", 0), ("z", 0), ("u", 1), ("v", 1), ("v", 1)]]
    made, report = run(rows, "single+class", "triplets")
    assert not any("x" in row.values() for row in made)
    assert reasons(report) == {
        "the text has several classes": (2, [1, 2]),
        "the text occurs before in its class": (1, [7]),
    }


def test_texts_are_damaged_but_never_emptied():
    rows = [{"text": " ".join(f"w{i}" for i in range(20))}] * 200 + [{"text": "word"}]
    made, report = run(rows, "single", "source-target", noise=0.6)
    sizes = [len(row["damaged"].split()) for row in made]
    assert min(sizes) >= 1
    assert 7 < sum(sizes) / len(sizes) < 9
    for row in made[:20]:
        words = iter(row["original"].split())
        assert all(word in words for word in row["damaged"].split())  # a subsequence
    assert reasons(report) == {"a text of one word cannot lose one": (1, [201])}


def test_contrastive_tension_pairs():
    rows = [{"text": t} for t in "abcda"]
    made, _ = run(rows, "single", "pairs+binary", negatives=2)
    assert len(made) == 15
    assert all((row["first"] == row["second"]) == row["label"] for row in made)
    made, _ = run(rows, "single", "pairs+binary", negatives=9)  # no more others than there are
    assert Counter(row["label"] for row in made) == {1: 5, 0: 15}


class WordCount:
    """A teacher whose score is the number of words two texts share."""

    def score(self, queries, documents):
        return [float(len(set(q.split()) & set(d.split()))) for q, d in zip(queries, documents, strict=True)]

    def encode(self, texts):
        return [[float(len(text)), 1.0] for text in texts]


def test_a_teacher_labels_tuples():
    rows = [{"anchor": "a b c", "positive": "a b x", "negative": ["c", "z"]}, {"anchor": "a", "positive": "a", "negative": "y"}]
    rows[1]["negative"] = ["y"]
    made, _ = run(rows, "n-tuples", "n-tuples+scores", teacher=WordCount())
    assert [row["scores"] for row in made] == [[2, 1, 0], [1, 0]]
    made, _ = run(rows, "n-tuples", "n-tuples+margins", teacher=WordCount())
    assert [row["margins"] for row in made] == [[1, 2], [1]]
    made, _ = run(rows, "n-tuples", "triplets+margin", teacher=WordCount())
    assert [(row["negative"], row["margin"]) for row in made] == [("c", 1), ("z", 2), ("y", 1)]


def test_a_teacher_gives_vectors_and_pair_scores():
    rows = [{"anchor": "abc", "positive": "xy"}]
    made, _ = run(rows, "pairs", "texts+embedding", teacher=WordCount())
    assert made == [{"texts": ["abc", "xy"], "embedding": [3.0, 1.0]}]
    assert run(rows, "pairs", "pairs+score", teacher=WordCount())[0] == [{"first": "abc", "second": "xy", "score": 0.0}]
    assert run([{"text": "ab"}], "single", "text+embedding", teacher=WordCount())[0] == [
        {"text": "ab", "embedding": [2.0, 1.0]}
    ]


@pytest.mark.parametrize("kind", ["bi-encoder", "cross-encoder"])
def test_an_encoder_is_a_teacher(tmp_path, kind):
    import numpy as np

    from embedloss import load_encoder
    from embedloss.convert.teacher import load_teacher
    from embedloss.testing.models import tiny_bert, tiny_cross_encoder

    folder = (tiny_bert if kind == "bi-encoder" else tiny_cross_encoder)(tmp_path / "m")
    teacher, encoder = load_teacher(str(folder)), load_encoder(folder)
    queries, documents = ["a cat", "the dog", "a cat"], ["a warm sill", "wet grass", "the park"]
    found = teacher.score(queries, documents)
    if kind == "cross-encoder":
        wanted = encoder.predict(list(zip(queries, documents, strict=True)), activation="Identity")
        with pytest.raises(EmbedlossError, match="has no vectors"):
            teacher.encode(queries)
    else:
        left, right = (encoder.encode(texts, normalize=True) for texts in (queries, documents))
        wanted = (left * right).sum(1)
        assert np.allclose(teacher.encode(queries), encoder.encode(queries), atol=1e-6)
    assert np.ptp(wanted) > 0
    assert np.allclose(found, wanted, atol=1e-5)


def test_numbers_are_scaled_linearly():
    made, _ = run(SCORED, "pairs+score", "pairs+score", scale_labels=(0, 5))
    assert [row["score"] for row in made] == pytest.approx([5, 0, 4.375, 2.5, 0.625])
    made, _ = run(LISTS, "listwise", "listwise", scale_labels=(0, 1))
    assert [row["grades"] for row in made] == [[1, 0, 0.5, 0], [0, 0]]
    with pytest.raises(EmbedlossError, match="all labels are equal"):
        run(SCORED[:1], "pairs+score", "pairs+score", scale_labels=(0, 1))


# -- judgements -------------------------------------------------------------------------------------------------------
CORPUS = {str(i): f"doc {i}" for i in range(10)}
QUERIES = {"1": "first", "2": "second"}
JUDGED = [
    {"query_id": q, "doc_id": d, "label": float(y)}
    for q, d, y in [("1", "0", 2), ("1", "1", 1), ("1", "2", 0), ("2", "3", 1), ("2", "99", 1), ("7", "3", 1)]
]


def test_judgements_to_tuples_with_random_negatives():
    made, report = run(JUDGED, "qrels", "n-tuples", corpus=CORPUS, queries=QUERIES, negatives=4)
    assert [(r["anchor"], r["positive"], len(r["negative"])) for r in made] == [
        ("first", "doc 0", 4),
        ("first", "doc 1", 4),
        ("second", "doc 3", 4),
    ]
    for row in made[:2]:
        assert "doc 2" in row["negative"]  # judged, so taken before random ones
        assert not {"doc 0", "doc 1"} & set(row["negative"])
        assert len(set(row["negative"])) == 4
    assert reasons(report) == {
        "the document is not in the corpus": (1, [5]),
        "the query is not in the file of queries": (1, [6]),
    }


def test_judgements_to_pairs_and_lists():
    made, _ = run(JUDGED, "qrels", "pairs", corpus=CORPUS, queries=QUERIES, threshold=2)
    assert made == [{"anchor": "first", "positive": "doc 0"}]
    made, _ = run(JUDGED, "qrels", "listwise", corpus=CORPUS, queries=QUERIES, negatives=2)
    assert [len(row["docs"]) for row in made] == [4, 3]
    assert made[0]["grades"] == [2, 1, 0, 0]
    assert made[1]["grades"] == [1, 0, 0]


def test_a_corpus_of_two_documents_is_enough():
    two = {"0": "a", "1": "b"}
    rows = [{"query_id": "1", "doc_id": "0", "label": 1.0}]
    made, _ = run(rows, "qrels", "n-tuples", corpus=two, queries=QUERIES, negatives=50)
    assert made == [{"anchor": "first", "positive": "a", "negative": ["b"]}]


def test_judgements_from_files(tmp_path):
    corpus = write(tmp_path / "corpus.jsonl", [{"_id": k, "title": "T", "text": v} for k, v in CORPUS.items()])
    queries = write(tmp_path / "queries.jsonl", [{"_id": k, "text": v} for k, v in QUERIES.items()])
    (tmp_path / "test.tsv").write_text("query-id\tcorpus-id\tscore\n1\t0\t1\n2\t3\t1\n")
    (tmp_path / "qrels.txt").write_text("1 0 0 1\n2 0 3 1\n")
    out = tmp_path / "out.jsonl"
    for source in ("test.tsv", "qrels.txt"):
        report = convert_file(None, "pairs", out, qrels=str(tmp_path / source), corpus=corpus, queries=queries)
        assert read(out) == [{"anchor": "first", "positive": "T doc 0"}, {"anchor": "second", "positive": "T doc 3"}]
        assert (report.rows_in, report.rows_out) == (2, 2)
    (tmp_path / "qrels.txt").write_text("1 0 0\n")
    with pytest.raises(EmbedlossError, match=r"E103.*line 1 is no judgement"):
        convert_file(None, "pairs", out, qrels=str(tmp_path / "qrels.txt"), corpus=corpus, queries=queries)
    twice = write(tmp_path / "twice.jsonl", [{"_id": "1", "text": "a"}, {"_id": "1", "text": "b"}])
    with pytest.raises(EmbedlossError, match="the id '1' twice"):
        convert_file(str(tmp_path / "test.tsv"), "pairs", out, corpus=twice, queries=queries)


# -- all of them ------------------------------------------------------------------------------------------------------
EXAMPLES = {
    "single": [{"text": f"some text {i}"} for i in range(6)],
    "single+class": CLASSES,
    "pairs": [{"anchor": f"q{i}", "positive": f"d{i}"} for i in range(4)],
    "pairs+class": NLI,
    "pairs+binary": [{"first": "q", "second": d, "label": y} for d, y in [("a", 1), ("b", 0), ("c", 1)]],
    "pairs+score": SCORED,
    "triplets": [{"anchor": "q", "positive": "d", "negative": "e"}] * 2,
    "n-tuples": [{"anchor": "q", "positive": "d", "negative": ["e", "f"]}] * 2,
    "listwise": LISTS,
    "qrels": JUDGED,
    "triplets+margin": [{"query": "q", "positive": "d", "negative": "e", "label": 1.5}],
    "n-tuples+margins": [{"query": "q", "positive": "d", "negative": ["e"], "label": [1.5]}],
    "n-tuples+scores": [{"query": "q", "positive": "d", "negative": ["e"], "label": [1.5, 1.0]}],
    "text+embedding": [{"text": "a", "label": [1.0, 2.0]}],
    "texts+embedding": [{"texts": ["a", "b"], "label": [1.0, 2.0]}],
    "source-target": [{"damaged": "a", "original": "a b"}],
}
GIVEN = {"threshold": 0.5, "teacher": WordCount(), "corpus": CORPUS, "queries": QUERIES}


@pytest.mark.parametrize("conversion", CONVERSIONS, ids=lambda c: f"{c.source}-{c.target}")
def test_every_conversion_gives_rows_of_its_target_and_the_same_again(conversion, tmp_path):
    given = {p.name: GIVEN[p.name] for p in conversion.parameters if p.required}
    rows = EXAMPLES[conversion.source]
    made, report = run(rows, conversion.source, conversion.target, **given)
    assert made
    assert report.rows_out == len(made)
    assert run(rows, conversion.source, conversion.target, **given)[0] == made
    # The result is bound to the target's roles without any mapping.
    from embedloss.examine import examine

    data = write(tmp_path / "made.jsonl", made * 2)
    found = examine(data)
    formats = {r.binding.format.name for r in found.readings if not r.report.faults}
    assert conversion.target in formats
    if any(p.name in ("negatives", "noise", "per_class") for p in conversion.parameters) and len(made) > 10:
        assert run(rows, conversion.source, conversion.target, seed=2, **given)[0] != made


@pytest.mark.parametrize("conversion", CONVERSIONS, ids=lambda c: f"{c.source}-{c.target}")
def test_every_row_is_accounted_for(conversion):
    """Rows dropped and rows used make all rows; a row is dropped for one reason only."""
    given = {p.name: GIVEN[p.name] for p in conversion.parameters if p.required}
    rows = EXAMPLES[conversion.source]
    _, report = run(rows, conversion.source, conversion.target, **given)
    dropped = [row for found in report.dropped.values() for row in found.rows]
    assert len(dropped) == len(set(dropped))
    assert sum(found.count for found in report.dropped.values()) < len(rows)


def test_the_table_names_formats_and_no_conversion_twice():
    keys = [(c.source, c.target) for c in CONVERSIONS]
    assert len(keys) == len(set(keys))
    assert {target for _, target in keys} <= set(FORMATS)
    assert {source for source, _ in keys} == {*FORMATS, "qrels"}


# -- files ------------------------------------------------------------------------------------------------------------
def test_files_are_read_bound_and_cleaned(tmp_path):
    rows = [
        {"sentence1": "a", "sentence2": "b", "score": 5, "note": "x"},
        {"sentence1": "", "sentence2": "b", "score": 5, "note": "x"},
        {"sentence1": "c", "sentence2": None, "score": 5, "note": "x"},
        {"sentence1": "c", "sentence2": "d", "score": None, "note": "x"},
        {"sentence1": "e", "sentence2": "f", "score": 2, "note": "x"},
    ]
    report = convert_file(write(tmp_path / "a.jsonl", rows), "pairs", tmp_path / "o.jsonl", threshold=3)
    assert read(tmp_path / "o.jsonl") == [{"anchor": "a", "positive": "b"}]
    assert (report.rows_in, report.rows_out) == (5, 1)
    assert reasons(report) == {
        "a text is missing or empty": (2, [2, 3]),
        "the label is missing or not finite": (1, [4]),
        "the grade is below 3": (1, [5]),
    }
    assert report.to_json()["parameters"] == {"threshold": 3, "seed": 42}


def test_an_empty_document_leaves_the_list_with_its_grade(tmp_path):
    rows = [{"query": "q", "docs": ["a", "", "b"], "grades": [1, 2, 0]}, {"query": "q", "docs": ["a"], "grades": [1, 2]}]
    report = convert_file(write(tmp_path / "a.jsonl", rows), "listwise", tmp_path / "o.jsonl")
    assert read(tmp_path / "o.jsonl") == [{"query": "q", "docs": ["a", "b"], "grades": [1, 0]}]
    assert reasons(report) == {"not one number for each text": (1, [2])}


def test_parquet_in_and_out(tmp_path):
    import pyarrow.parquet as parquet

    data = write(tmp_path / "a.jsonl", [{"anchor": "q", "positive": "d", "negative": ["e", "f"]}] * 3)
    convert_file(data, "listwise", tmp_path / "b.parquet")
    assert parquet.read_table(tmp_path / "b.parquet").to_pylist()[0] == {
        "query": "q",
        "docs": ["d", "e", "f"],
        "grades": [1.0, 0.0, 0.0],
    }
    convert_file(tmp_path / "b.parquet", "pairs", tmp_path / "c.jsonl")
    assert len(read(tmp_path / "c.jsonl")) == 3


def test_a_seed_gives_the_same_file_and_another_one_another(tmp_path):
    data = write(tmp_path / "a.jsonl", CLASSES)
    for name, seed in (("1", 3), ("2", 3), ("3", 4)):
        convert_file(data, "triplets", tmp_path / f"{name}.jsonl", seed=seed)
    one, two, three = ((tmp_path / f"{n}.jsonl").read_bytes() for n in "123")
    assert one == two != three


def test_a_failing_conversion_leaves_no_file(tmp_path):
    rows = [{**row, "label": i} for i, row in enumerate(NLI)]
    with pytest.raises(EmbedlossError, match="--entailment"):
        convert_file(write(tmp_path / "a.jsonl", rows), "pairs", tmp_path / "o.jsonl")
    data = write(tmp_path / "b.jsonl", [{"first": "a", "second": "b", "score": s} for s in (1.5, 2, 3, 4)])
    with pytest.raises(EmbedlossError, match=r"no row is left of 4.*the grade is below 9: 4"):
        convert_file(data, "pairs", tmp_path / "o.jsonl", threshold=9)
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(("o.", ".o"))]


@pytest.mark.parametrize(
    ("target", "options", "message"),
    [
        ("source-target", {}, "pairs cannot be converted to source-target"),
        ("triplets", {}, "From this data: pairs"),
        ("nonsense", {}, "E101: unknown data format 'nonsense'"),
        ("pairs+score", {}, "needs --teacher"),
        ("pairs+score", {"teacher": "x", "noise": 0.5}, "does not take --noise. It takes --teacher"),
        ("pairs", {"qrels": "x"}, "give one source"),
        ("pairs", {"corpus": "x"}, "needs --queries"),
        ("pairs", {"source_format": "triplets"}, "the columns do not make triplets; they make pairs"),
    ],
)
def test_a_conversion_that_cannot_be_says_why(tmp_path, target, options, message):
    data = write(tmp_path / "a.jsonl", EXAMPLES["pairs"])
    with pytest.raises(EmbedlossError) as caught:
        convert_file(data, target, tmp_path / "o.jsonl", **options)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("source", "target", "parameters", "message"),
    [
        ("pairs+score", "pairs", {}, "needs --threshold"),
        ("pairs+score", "pairs+binary", {"threshold": 0.5, "below": 0.6}, "--below 0.6 is above --threshold 0.5"),
        ("pairs+score", "n-tuples", {"threshold": 0.5, "negatives": 0}, "--negatives must be a whole number from 1"),
        ("single", "source-target", {"noise": 1.5}, "--noise must be between 0 and 1"),
        ("single+class", "pairs", {"per_class": -1}, "--per-class must be a whole number from 0"),
        ("pairs+score", "pairs+score", {"scale_labels": (1.0, 0.0)}, "--scale-labels must be two numbers"),
        ("single", "pairs", {"threshold": 1}, "does not take --threshold. It takes nothing (and --seed)"),
    ],
)
def test_wrong_parameters_are_refused(source, target, parameters, message):
    with pytest.raises(EmbedlossError) as caught:
        run(EXAMPLES[source], source, target, **parameters)
    assert caught.value.code == "E107"
    assert message in str(caught.value)


def test_a_threshold_is_asked_for_with_the_range_it_lies_in(tmp_path):
    data = write(tmp_path / "a.jsonl", [{"first": "a", "second": "b", "score": s} for s in (0.5, 4.5)])
    with pytest.raises(EmbedlossError, match=r"Scores run from 0\.5 to 4\.5"):
        convert_file(data, "pairs", tmp_path / "o.jsonl")


def test_streaming_conversions_read_no_further_than_they_need():
    """A conversion that says it streams yields a row before the source ends."""
    for conversion in CONVERSIONS:
        given = {p.name: GIVEN[p.name] for p in conversion.parameters if p.required}
        seen = 0

        def endless(rows=EXAMPLES[conversion.source]):
            nonlocal seen
            while True:
                for row in rows:
                    seen += 1
                    yield seen, dict(row)

        if conversion.streams:
            next(convert(endless(), conversion.source, conversion.target, **given))
            assert seen <= 10_000
        else:
            assert find(conversion.source, conversion.target) is conversion
