"""Mined negatives: each choice against a plain loop, no known positive among them, and nothing computed twice."""

import itertools
import json
import random
import sys
from pathlib import Path

import numpy as np
import pytest

import embedloss
from embedloss.check import check_rows, column_kinds
from embedloss.data import load_rows
from embedloss.encoders import new_static_encoder
from embedloss.errors import EmbedlossError
from embedloss.evaluation import search
from embedloss.evaluation.metrics import pairwise_similarity
from embedloss.examine import plain_spec
from embedloss.formats import get_format
from embedloss.mining import MiningSettings, mine
from embedloss.mining.pairs import Row, gather
from embedloss.mining.settings import OUTPUTS

DATA = Path(__file__).parents[3] / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the data sets beside the checkout are not there")
WORDS = [
    "river",
    "stone",
    "cloud",
    "ember",
    "willow",
    "falcon",
    "copper",
    "lantern",
    "meadow",
    "harbor",
    "violin",
    "saddle",
    "thunder",
    "basket",
    "marble",
]


def texts(number, seed):
    rng = random.Random(seed)
    found = {}
    while len(found) < number:
        found[" ".join(rng.sample(WORDS, 5))] = None
    return list(found)


QUERIES, DOCS = texts(25, 1), texts(60, 2)
PAIRS = [{"anchor": QUERIES[i % 20], "positive": DOCS[(7 * i) % 40]} for i in range(35)]  # some queries have two positives


@pytest.fixture(scope="module")
def encoder():
    return new_static_encoder([*QUERIES, *DOCS], dimension=16, vocab_size=200)


@pytest.fixture(scope="module")
def scorer(tmp_path_factory):
    from embedloss.testing.models import tiny_cross_encoder

    return embedloss.load_encoder(tiny_cross_encoder(tmp_path_factory.mktemp("scorer"), sentences=[*QUERIES, *DOCS]))


def oracle(pairs, encoder, corpus, settings, scorer=None):
    """Query -> (text, score) of its negatives, by loops over float64."""
    settings = MiningSettings(**settings)
    positives = {}
    for row in pairs:
        positives.setdefault(row["anchor"], []).append(row["positive"])
    corpus = list(dict.fromkeys(corpus or [row["positive"] for row in pairs]))

    def similarity(query, docs):
        x = encoder.encode([query] * len(docs))
        return pairwise_similarity(encoder.similarity, x, encoder.encode(docs)).tolist()

    def score(query, docs):
        return similarity(query, docs) if scorer is None else scorer.predict([(query, d) for d in docs]).tolist()

    found = {}
    for query, own in positives.items():
        ranked = sorted((-s, i) for i, s in enumerate(similarity(query, corpus)) if corpus[i] not in own)
        kept = [corpus[i] for _, i in ranked][settings.range_min : settings.depth]
        worst = min(score(query, own))
        scored = sorted(zip(score(query, kept), kept, strict=True), reverse=True) if kept else []
        chosen = []
        for value, text in scored:
            if settings.max_score is not None and value > settings.max_score:
                continue
            if settings.min_score is not None and value < settings.min_score:
                continue
            if settings.absolute_margin is not None and value > worst - settings.absolute_margin:
                continue
            if settings.relative_margin is not None and value > worst - abs(worst) * settings.relative_margin:
                continue
            chosen.append((text, value))
        found[query] = chosen[: settings.num_negatives]
    return found


CHOICES = [
    {},
    {"num_negatives": 1, "range_min": 4},
    {"num_negatives": 5, "range_max": 7},
    {"range_min": 2, "range_max": 30, "max_score": 0.6},
    {"range_max": 30, "min_score": 0.5, "max_score": 0.8},
    {"absolute_margin": 0.1, "range_max": 40},
    {"relative_margin": 0.2, "num_negatives": 2, "range_max": 55},
    {"absolute_margin": 0.05, "relative_margin": 0.1, "max_score": 0.7, "range_max": 59},
    {"range_max": 500, "num_negatives": 40},
]


@pytest.mark.parametrize("corpus", [None, DOCS], ids=["positives", "corpus"])
@pytest.mark.parametrize("settings", CHOICES, ids=str)
def test_as_a_plain_loop(encoder, settings, corpus):
    wanted = oracle(PAIRS, encoder, corpus, settings)
    assert any(wanted.values())
    mined = mine(PAIRS, encoder, corpus=corpus, output_format="n-tuples+scores", **settings)
    assert mined.report.without == sum(not found for found in wanted.values())
    seen = {}
    for row in mined.rows:
        assert [text for text, _ in wanted[row["query"]]] == row["negative"]
        np.testing.assert_allclose(row["scores"][1:], [s for _, s in wanted[row["query"]]], atol=2e-6)
        own = pairwise_similarity("cosine", *(encoder.encode([row[k]]) for k in ("query", "positive")))
        np.testing.assert_allclose(row["scores"][0], own[0], atol=2e-6)
        seen.setdefault(row["query"], []).append(row["positive"])
    # One row a pair, for the queries that have a negative.
    assert {q: sorted(p) for q, p in seen.items()} == {
        q: sorted({r["positive"] for r in PAIRS if r["anchor"] == q}) for q, found in wanted.items() if found
    }


@pytest.mark.parametrize("settings", [{}, {"absolute_margin": 0.0, "range_max": 20}], ids=str)
def test_scores_of_a_cross_encoder(encoder, scorer, settings):
    wanted = oracle(PAIRS, encoder, DOCS, settings, scorer)
    mined = mine(PAIRS, encoder, corpus=DOCS, cross_encoder=scorer, output_format="n-tuples+scores", **settings)
    plain = mine(PAIRS, encoder, corpus=DOCS, output_format="n-tuples+scores", **settings)
    assert [r["negative"] for r in plain.rows] != [r["negative"] for r in mined.rows]  # it does change the order
    for row in mined.rows:
        np.testing.assert_allclose(row["scores"][1:], [s for _, s in wanted[row["query"]]], atol=2e-6)
        assert sorted(row["negative"]) == sorted(text for text, _ in wanted[row["query"]])


def test_random_draws_from_what_is_left(encoder):
    choice = {"corpus": DOCS, "sampling_strategy": "random", "range_min": 2, "range_max": 22, "num_negatives": 4}
    left = oracle(PAIRS, encoder, DOCS, {"range_min": 2, "range_max": 22, "num_negatives": 20})
    first, again, other = (mine(PAIRS, encoder, seed=seed, **choice).rows for seed in (1, 1, 2))
    assert first == again
    assert first != other
    counts = {}
    for row in first + other:
        order = [text for text, _ in left[row["anchor"]]]
        places = [order.index(text) for text in row["negative"]]
        assert places == sorted(places)  # best first
        assert len(set(places)) == 4
        for place in places:
            counts[place] = counts.get(place, 0) + 1
    assert set(counts) == set(range(20))  # every rank is drawn some time


def test_every_output_is_its_format(encoder, tmp_path):
    from embedloss.binding import bind
    from embedloss.convert import write_rows

    made = {}
    for name in OUTPUTS:
        mined = mine(PAIRS, encoder, output_format=name)
        path = tmp_path / "mined.jsonl"
        write_rows(mined.rows, path)
        dataset = load_rows(path)
        fmt = get_format(name)
        binding = bind(column_kinds(dataset), [fmt], loss_name=name)
        assert not check_rows(dataset, binding, plain_spec(fmt)).faults
        assert len(dataset) == mined.report.rows_out
        made[name] = mined.rows
    negatives = {(r["anchor"], n) for r in made["n-tuples"] for n in r["negative"]}
    positives = {(r["anchor"], r["positive"]) for r in PAIRS}
    assert {(r["anchor"], r["negative"]) for r in made["triplets"]} == negatives
    assert {(r["first"], r["second"]) for r in made["pairs+binary"] if r["label"] == 0} == negatives
    assert {(r["first"], r["second"]) for r in made["pairs+binary"] if r["label"] == 1} == positives
    assert len(made["pairs+binary"]) == len(negatives) + len(positives)  # none twice
    graded = {(r["query"], d, g) for r in made["listwise"] for d, g in zip(r["docs"], r["grades"], strict=True)}
    assert graded == {(*pair, 0) for pair in negatives} | {(*pair, 1) for pair in positives}
    for name, others in OUTPUTS.items():
        assert all(MiningSettings(output_format=other).output_format == name for other in others)


# -- what is known ----------------------------------------------------------------------------------------------------
def known_of(rows, corpus=None):
    pairs = gather(rows, corpus)
    return {
        text: {pairs.documents[i] for i in pairs.known[pairs.starts[q] : pairs.starts[q + 1]]}
        for q, text in enumerate(pairs.queries)
    }, pairs


def test_known_by_text_and_by_id():
    corpus = {"1": "alpha", "2": "beta", "3": "Alpha ", "4": "gamma", "5": "q one"}
    rows = [
        Row("q one", "alpha", "a", "1"),
        Row("q two", "delta", "a", "4"),  # the same query by id; its positive by id has another text in the corpus
        Row("Q  TWO", "beta", "b"),  # the same query as the second by text, so also as the first
        Row("other", "beta"),
    ]
    known, pairs = known_of(rows, corpus)
    of_a = {"alpha", "Alpha ", "gamma", "beta"}
    assert known == {"q one": of_a | {"q one"}, "q two": of_a, "Q  TWO": of_a, "other": {"beta"}}
    assert pairs.documents[pairs.searched :] == ["delta"]  # outside the corpus: scored, not searched
    assert known_of([Row("x", "a"), Row("x", "b"), Row("y", "c")])[0] == {"x": {"a", "b"}, "y": {"c"}}


def test_ids_beside_the_texts(encoder):
    """`query_id` and `doc_id` columns say what belongs together."""
    rows = [{**row, "query_id": i % 20, "doc_id": f"d{i % 7}"} for i, row in enumerate(PAIRS)]
    mined = mine(rows, encoder, num_negatives=30)
    assert any("doc_id" in note for note in mined.report.notes)
    ids = {}
    for row in rows:
        ids.setdefault(row["positive"], set()).add(row["doc_id"])
    own = {}
    for row in rows:
        own.setdefault(row["anchor"], set()).add(row["doc_id"])
    assert mined.rows
    for row in mined.rows:
        assert not any(ids[text] & own[row["anchor"]] for text in row["negative"])


def test_judgements(encoder, tmp_path):
    def save(name, rows):
        (tmp_path / name).write_text("".join(json.dumps(r) + "\n" for r in rows))
        return str(tmp_path / name)

    corpus = save("corpus.jsonl", [{"doc_id": i, "text": t} for i, t in enumerate(DOCS)])
    queries = save("queries.jsonl", [{"query_id": i, "text": t} for i, t in enumerate(QUERIES)])
    grades = [{"query_id": i % 9, "doc_id": i, "score": i % 3} for i in range(40)]
    mined = mine(None, encoder, corpus=corpus, queries=queries, qrels=save("qrels.jsonl", grades), num_negatives=40)
    good = {(QUERIES[r["query_id"]], DOCS[r["doc_id"]]) for r in grades if r["score"] > 0}
    assert mined.report.pairs == len(good) == 26
    assert mined.report.dropped["the grade is not above 0"].count == 14
    assert {(r["anchor"], r["positive"]) for r in mined.rows} == good
    assert not {(r["anchor"], n) for r in mined.rows for n in r["negative"]} & good


@needs_data
@pytest.mark.parametrize("name", ["vaswani", "medquad"])
def test_no_known_positive_on_real_data(name):
    def read(file):
        return [json.loads(line) for line in (DATA / name / file).read_text().splitlines()]

    if name == "vaswani":
        corpus = {r["doc_id"]: r["text"] for r in read("corpus.jsonl")}
        queries = {r["query_id"]: r["text"] for r in read("queries.jsonl")}
        files = {k: str(DATA / name / f"{k}.jsonl") for k in ("corpus", "queries", "qrels")}
        good = {(queries[r["query_id"]], corpus[r["doc_id"]]) for r in read("qrels.jsonl")}
        data, more, sample = None, files, list(corpus.values())[:2000]
    else:
        data, more = [{"anchor": r["query"], "positive": r["positive"]} for r in read("train.jsonl")[:5000]], {}
        good = {(r["anchor"], r["positive"]) for r in data}
        sample = [r["positive"] for r in data[:2000]]
    encoder = new_static_encoder(sample, dimension=32, vocab_size=2000)
    mined = mine(data, encoder, num_negatives=10, **more)
    known = {(q.casefold(), " ".join(d.split()).casefold()) for q, d in good}
    found = {(r["anchor"].casefold(), " ".join(n.split()).casefold()) for r in mined.rows for n in r["negative"]}
    assert len(found) > 800
    assert not found & known
    # Without the exclusion there would be some: the test can fail.
    assert mined.report.known >= len(good)


# -- search -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("similarity", ["cosine", "dot", "euclidean", "manhattan"])
def test_blocks_change_nothing(monkeypatch, similarity):
    rng = np.random.default_rng(0)
    x, y = (rng.integers(-3, 4, (n, 6)).astype(np.float32) for n in (23, 57))  # whole numbers: many equal scores
    rows, documents = rng.integers(0, 23, 60), rng.integers(0, 57, 60)
    scores = np.stack([pairwise_similarity(similarity, np.repeat(q[None], 57, 0), y) for q in x])
    scores[rows, documents] = -np.inf
    wanted = np.argsort(-scores, axis=1, kind="stable")[:, :9]
    for queries, block in ((1024, 2**24), (5, 2**24), (5, 35), (1, 1)):
        monkeypatch.setattr(search, "BLOCK_QUERIES", queries)
        monkeypatch.setattr(search, "BLOCK_SCORES", block)
        found, best = search.exact_search(x, y, 9, similarity, excluded=(rows, documents))
        np.testing.assert_allclose(best, np.take_along_axis(scores, wanted, 1), atol=2e-5)
        if similarity in ("dot", "manhattan"):  # the others round equal scores differently from place to place
            np.testing.assert_array_equal(found, wanted)


def test_more_wanted_than_there_are():
    x, y = np.eye(2, dtype=np.float32), np.eye(2, dtype=np.float32)
    found, scores = search.exact_search(x, y, 5, excluded=(np.array([0, 0]), np.array([0, 1])))
    assert found.tolist() == [[-1, -1], [1, 0]]
    assert scores[0].tolist() == [-np.inf, -np.inf]


@pytest.mark.parametrize("similarity", ["cosine", "dot", "euclidean", "manhattan"])
def test_faiss_finds_the_same(encoder, similarity):
    pytest.importorskip("faiss")
    encoder.settings["similarity_fn_name"] = similarity
    try:
        for settings in ({}, {"range_min": 3, "num_negatives": 8}, {"relative_margin": 0.1, "range_max": 50}):
            exact, found = (
                mine(PAIRS, encoder, corpus=DOCS, index=index, output_format="n-tuples+scores", **settings).rows
                for index in ("exact", "faiss")
            )
            assert [r["negative"] for r in exact] == [r["negative"] for r in found]
            np.testing.assert_allclose(
                list(itertools.chain(*(r["scores"] for r in exact))),
                list(itertools.chain(*(r["scores"] for r in found))),
                atol=2e-4,  # faiss squares distances
            )
    finally:
        del encoder.settings["similarity_fn_name"]


def test_faiss_missing(encoder, monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(EmbedlossError, match=r"E404.*pip install faiss-cpu"):
        mine(PAIRS, encoder, index="faiss")


# -- going on ---------------------------------------------------------------------------------------------------------
class StopError(Exception):
    pass


@pytest.mark.parametrize("stage", ["encode queries", "encode documents", "search", "score candidates", "score positives"])
def test_an_interrupted_run_goes_on(encoder, scorer, tmp_path, monkeypatch, stage):
    from embedloss.mining import job

    for name, value in (("ENCODED", 8), ("SCORED", 8), ("BLOCK_QUERIES", 8)):
        monkeypatch.setattr(job, name, value)
    options = {"corpus": DOCS, "cross_encoder": scorer, "relative_margin": 0.01}
    pairs = [{"anchor": q, "positive": d} for q in QUERIES[:20] for d in DOCS[:10]]
    wanted = mine(pairs, encoder, **options).rows

    def stop(name, done, total):
        if name == stage and done >= 8:
            raise StopError

    with pytest.raises(StopError):
        mine(pairs, encoder, work=tmp_path, progress=stop, **options)
    told = []
    again = mine(pairs, encoder, work=tmp_path, progress=lambda *what: told.append(what), **options)
    assert again.rows == wanted
    assert next(done for name, done, _ in told if name == stage) >= 8  # the first word about it: this much is there
    told.clear()
    mine(pairs, encoder, work=tmp_path, progress=lambda *what: told.append(what), **{**options, "relative_margin": 0.1})
    assert all(done == total for _, done, total in told)  # other filters compute nothing anew
    told.clear()
    mine(pairs[1:], encoder, corpus=DOCS[1:], work=tmp_path, progress=lambda *what: told.append(what))
    assert ("encode documents", 0, 60) in told  # the positive that left the corpus comes last: other texts in this order


def test_a_damaged_file_is_made_anew(encoder, tmp_path):
    wanted = mine(PAIRS, encoder, work=tmp_path).rows
    for path in tmp_path.glob("*.npy"):
        path.write_bytes(path.read_bytes()[:50])
    assert mine(PAIRS, encoder, work=tmp_path).rows == wanted


# -- mistakes ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"num_negatives": 0}, "--num-negatives must be a whole number from 1, got 0"),
        ({"num_negatives": 2.5}, "--num-negatives must be a whole number from 1, got 2.5"),
        ({"range_min": -1}, "--range-min must be a whole number from 0"),
        ({"range_min": 5, "range_max": 5}, "--range-max 5 leaves 0 neighbours after --range-min 5"),
        ({"range_max": 2}, "too few for --num-negatives 3"),
        ({"max_score": float("nan")}, "--max-score must be a number"),
        ({"absolute_margin": -0.1}, "--absolute-margin must not be negative"),
        ({"relative_margin": 5}, "--relative-margin is a share"),
        ({"min_score": 0.9, "max_score": 0.1}, "--min-score 0.9 is above --max-score 0.1"),
        ({"sampling_strategy": "best"}, "--sampling-strategy must be top or random, got 'best'"),
        ({"index": "hnsw"}, "--index must be exact or faiss"),
        ({"output_format": "pairs"}, "mining writes n-tuples, n-tuples+scores"),
        ({"num_negatives": 0, "range_min": -1}, "the settings cannot be used:"),
        ({"max_score": -2.0}, "--max-score took out"),
        ({"corpus": ["one"]}, "there is 1 document to search"),
        ({"corpus": []}, "the corpus holds no texts"),
        ({"corpus": ["one", " "]}, "the corpus holds an empty text"),
        ({"qrels": "x.jsonl"}, "give one source"),
        ({"queries": "x.jsonl"}, "go together"),
    ],
    ids=str,
)
def test_settings_out_of_range(encoder, settings, said):
    with pytest.raises(EmbedlossError) as caught:
        mine(PAIRS, encoder, **settings)
    assert caught.value.code == "E108"
    assert said in str(caught.value)


def test_models_of_the_wrong_kind(encoder, scorer):
    with pytest.raises(EmbedlossError, match=r"E302.*--cross-encoder"):
        mine(PAIRS, scorer)
    with pytest.raises(EmbedlossError, match="E302: --cross-encoder is a bi-encoder"):
        mine(PAIRS, encoder, cross_encoder=encoder)


def test_rows_without_texts_are_counted(encoder):
    mined = mine([*PAIRS, {"anchor": "x", "positive": None}, {"anchor": " ", "positive": "y"}], encoder)
    assert mined.report.dropped["a text is missing or empty"].rows == [36, 37]
    with pytest.raises(EmbedlossError, match="E108: no pair is left of 2 rows"):
        mine([{"anchor": "", "positive": "x"}] * 2, encoder)
    with pytest.raises(EmbedlossError, match=r"E102: the column 'negative' would not be used by 'mine'"):
        mine([{"anchor": "a", "positive": "b", "negative": "c"}] * 2, encoder)


def test_the_report_counts(encoder):
    settings = {"relative_margin": 0.5, "num_negatives": 5, "range_max": 50}
    report = mine(PAIRS, encoder, corpus=DOCS, **settings).report
    wanted = oracle(PAIRS, encoder, DOCS, settings)
    assert report.without == sum(not found for found in wanted.values())
    assert report.fewer == sum(0 < len(found) < 5 for found in wanted.values())
    assert report.without > 0
    assert report.fewer > 0
    assert report.passed_over["--relative-margin"] > 0
    scores = report.scores()
    assert scores["difference"]["min"] > 0
    assert report.above == 0
    assert mine(PAIRS, encoder).report.above > 0
