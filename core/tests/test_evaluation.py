"""Evaluation: metrics against plain loops, every format through `evaluate`, and what is refused."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pytest
import torch

from embedloss.errors import EmbedlossError
from embedloss.evaluation import (
    BM25,
    RandomEncoder,
    baselines,
    evaluate,
    exact_search,
    is_collection,
    load_collection,
    metric_names,
    primary_metric,
    ranking_metrics,
    retrieval,
    why_nothing,
)
from embedloss.evaluation.embed import quantised
from embedloss.evaluation.metrics import (
    binary_metrics,
    class_metrics,
    correlations,
    pairwise_similarity,
    reranking_metrics,
    split,
    teacher_metrics,
    translation_metrics,
)
from embedloss.formats import FORMATS, get_format
from embedloss.loss import LossOutput

torch.set_num_threads(1)


class Fake:
    """Gives every text a vector of its own, or one that the test says."""

    similarity = "cosine"

    def __init__(self, known: dict[str, Any] | None = None, dimension: int = 8) -> None:
        self.known, self.dimension, self.calls = known or {}, dimension, []

    def encode(self, texts: list[str], *, prompt: str = "") -> np.ndarray:
        self.calls.append((list(texts), prompt))
        return np.array([self.vector(prompt + text) for text in texts], dtype=np.float32).reshape(len(texts), -1)

    def vector(self, text: str) -> Any:
        if text in self.known:
            return self.known[text]
        seed = int.from_bytes(hashlib.md5(text.encode()).digest()[:4], "big")
        return np.random.default_rng(seed).normal(size=self.dimension)


class FakeCross:
    """Scores a pair by how much longer the second text is, or gives logits of two classes."""

    kind = "cross-encoder"

    def __init__(self, labels: int = 1) -> None:
        self.labels = labels

    def predict(self, pairs: list[tuple[str, str]], *, prompt: str = "") -> np.ndarray:
        scores = np.array([len(b) - len(prompt + a) for a, b in pairs], dtype=np.float32)
        return scores if self.labels == 1 else np.stack([-scores, scores], axis=1)


# -- search ---------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("similarity", ["cosine", "dot", "euclidean", "manhattan"])
@pytest.mark.parametrize("k", [1, 7, 30, 100])
def test_search_against_a_full_sort(similarity: str, k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("embedloss.evaluation.search.BLOCK_SCORES", 200)  # several blocks
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(23, 4)), rng.normal(size=(30, 4))
    found, scores = exact_search(x, y, k, similarity)
    for row in range(23):
        full = pairwise_similarity(similarity, np.tile(x[row], (30, 1)), y)
        np.testing.assert_array_equal(found[row], np.argsort(-full)[:k])
        np.testing.assert_allclose(scores[row], np.sort(full)[::-1][:k], atol=1e-5)


def test_equal_documents_come_in_the_order_of_the_corpus() -> None:
    y = np.array([[1.0, 0]] * 5 + [[0, 1.0]] + [[1.0, 0]] * 5)
    assert exact_search(np.array([[1.0, 0]]), y, 3)[0].tolist() == [[0, 1, 2]]
    assert exact_search(np.array([[0, 1.0]]), y, 3)[0].tolist() == [[5, 0, 1]]
    assert exact_search(np.zeros((2, 2)), np.zeros((0, 2)), 3)[0].shape == (2, 0)


def test_ranking_metrics_against_plain_loops() -> None:
    rng = np.random.default_rng(1)
    ranked = [rng.permutation(40).tolist() for _ in range(9)]
    relevant = [
        {int(d): int(g) for d, g in zip(rng.choice(40, 5, False), rng.integers(0, 4, 5), strict=True)} for _ in range(9)
    ]
    relevant = [{**docs, 0: 1} for docs in relevant]
    found = ranking_metrics(ranked, relevant, (3, 10), 20)
    expected: dict[str, list[float]] = {name: [] for name in found}
    for docs, gold in zip(ranked, relevant, strict=True):
        good = {d for d, g in gold.items() if g > 0}
        for k in (3, 10):
            top = docs[:k]
            gains = sum(gold.get(d, 0) / np.log2(i + 2) for i, d in enumerate(top))
            ideal = sum(g / np.log2(i + 2) for i, g in enumerate(sorted(gold.values(), reverse=True)[:k]))
            expected[f"ndcg@{k}"].append(gains / ideal)
            expected[f"mrr@{k}"].append(next((1 / (i + 1) for i, d in enumerate(top) if d in good), 0.0))
            expected[f"recall@{k}"].append(len(good & set(top)) / len(good))
        hits = [i for i, d in enumerate(docs[:20]) if d in good]
        expected["map@20"].append(sum((n + 1) / (i + 1) for n, i in enumerate(hits)) / len(good))
    for name, values in expected.items():
        assert 0 < found[name] < 1
        assert found[name] == pytest.approx(np.mean(values), abs=1e-9), name


# -- metrics --------------------------------------------------------------------------------------------------------------
def slow_best(scores: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Best accuracy and F1 over all cuts between different scores."""
    cuts = [np.inf, *np.unique(scores)]
    accuracy = max(float(((scores >= c) == labels).mean()) for c in cuts)
    f1 = 0.0
    for cut in cuts[1:]:
        predicted = scores >= cut
        right = float((predicted & (labels == 1)).sum())
        f1 = max(f1, 2 * right / (predicted.sum() + labels.sum()))
    return accuracy, f1


@pytest.mark.parametrize("decimals", [0, 1, 8])
def test_binary_metrics_against_all_cuts(decimals: int) -> None:
    rng = np.random.default_rng(2)
    for _ in range(20):
        scores, labels = rng.normal(size=30).round(decimals), np.append(rng.integers(0, 2, 28), [0, 1])
        found = binary_metrics(scores, labels)
        assert (found["accuracy"], found["f1"]) == pytest.approx(slow_best(scores, labels))
        assert ((scores >= found["accuracy_threshold"]) == labels).mean() == pytest.approx(found["accuracy"])
        predicted = scores >= found["f1_threshold"]
        assert (predicted & (labels == 1)).sum() / predicted.sum() == pytest.approx(found["precision"])


def test_reranking_metrics_by_hand() -> None:
    perfect = (np.array([3.0, 2, 1]), np.array([2.0, 1, 0]))
    worst = (np.array([1.0, 2, 3]), np.array([1.0, 0, 0]))
    dull = (np.array([1.0, 2]), np.array([1.0, 1]))
    assert reranking_metrics([perfect]) == {"ndcg@10": 1, "mrr@10": 1, "map": 1}
    found = reranking_metrics([perfect, worst, dull])
    assert found["mrr@10"] == pytest.approx((1 + 1 / 3) / 2)
    assert found["ndcg@10"] == pytest.approx((1 + 1 / np.log2(4)) / 2)
    assert found["lists_excluded"] == 1
    constant = reranking_metrics([(np.zeros(10), np.array([1.0] + [0] * 9))], k=5)
    assert constant["mrr@5"] == 0  # a constant score earns nothing
    assert constant["map"] == pytest.approx(0.1)


def test_correlations_of_a_constant_prediction() -> None:
    assert correlations(np.ones(4), np.arange(4)) == {"spearman": 0, "pearson": 0}
    assert correlations(np.arange(4.0) ** 3, np.arange(4))["spearman"] == pytest.approx(1)
    with pytest.raises(EmbedlossError, match="E501"):
        correlations(np.arange(4.0), np.ones(4))


def test_split_is_seeded_and_stratified() -> None:
    classes = np.repeat(np.arange(5), 7)
    train, test = split(classes, 0)
    assert not set(train) & set(test)
    assert len(train) + len(test) == 35
    assert np.bincount(classes[train]).tolist() == [4] * 5
    np.testing.assert_array_equal(split(classes, 0)[0], train)
    assert split(classes, 1)[0].tolist() != train.tolist()


def test_class_metrics_tell_good_from_bad_embeddings() -> None:
    rng = np.random.default_rng(3)
    labels = [f"class {i % 4}" for i in range(120)]
    noise = rng.normal(size=(120, 16))
    good = class_metrics(np.eye(16)[[i % 4 for i in range(120)]] * 20 + noise, labels)
    assert min(good.values()) > 0.95
    bad = class_metrics(noise, labels)
    assert max(bad["knn_accuracy"], bad["probe_accuracy"]) < 0.5
    assert bad["v_measure"] < 0.2
    assert class_metrics(noise, labels) == bad


def test_teacher_metrics() -> None:
    rng = np.random.default_rng(4)
    teacher = rng.normal(size=(50, 6))
    same = teacher_metrics(teacher, teacher)
    assert same == pytest.approx({"mse": 0, "cosine": 1, "pairs_spearman": 1})
    turned = teacher @ np.linalg.qr(rng.normal(size=(6, 6)))[0]
    wide = np.concatenate([turned, np.zeros((50, 2))], axis=1)
    assert teacher_metrics(wide, teacher) == pytest.approx({"pairs_spearman": 1})
    other = rng.normal(size=(50, 6))
    assert teacher_metrics(other, teacher)["mse"] == pytest.approx(((other - teacher) ** 2).mean())
    assert abs(teacher_metrics(other, teacher)["pairs_spearman"]) < 0.3


def test_translation_accuracy() -> None:
    x = np.eye(3)
    y = np.eye(3)[[0, 1, 1]]
    assert translation_metrics(x, y, ["a", "b", "c"], ["d", "e", "f"]) == pytest.approx(
        {"src2trg_accuracy": 2 / 3, "trg2src_accuracy": 2 / 3, "mean_accuracy": 2 / 3}
    )
    assert translation_metrics(x, y, ["a", "b", "b"], ["d", "e", "e"])["trg2src_accuracy"] == 1  # equal texts count as right


# -- evaluate -------------------------------------------------------------------------------------------------------------
def test_pairs_are_a_search() -> None:
    known = {"q1": [1, 0, 0], "q2": [0, 1, 0], "a": [1, 0.1, 0], "b": [1, 0, 0.5], "c": [0.9, 0, 1], "d": [0, 0, 1]}
    rows = [
        {"anchor": "q1", "positive": "a"},
        {"anchor": "q2", "positive": "d"},
        {"anchor": "q1", "positive": "c"},
        {"anchor": "q1", "positive": "a"},
        {"anchor": "q2", "positive": "b"},
    ]
    found = evaluate(Fake(known), rows, "pairs")
    # q1 finds a, b, c, d with a and c relevant; q2 finds a and then the others in the order of the set: d, c, b
    assert (found["queries"], found["documents"]) == (2, 4)
    assert found["mrr@10"] == pytest.approx((1 + 1 / 2) / 2)
    assert found["recall@10"] == 1
    assert found["map@100"] == pytest.approx(((1 + 2 / 3) / 2 + (1 / 2 + 2 / 4) / 2) / 2)


def test_texts_are_encoded_once_per_prompt() -> None:
    encoder = Fake()
    rows = [{"anchor": "a", "positive": "b"}, {"anchor": "b", "positive": "a"}]
    evaluate(encoder, rows, "pairs")
    assert encoder.calls == [(["a", "b"], "")]
    encoder.calls.clear()
    evaluate(encoder, rows, "pairs", prompts={"anchor": "query: "})
    assert encoder.calls == [(["a", "b"], "query: "), (["b", "a"], "")]


def test_tuples() -> None:
    known = {"q": [1, 0], "p": [1, 0.2], "near": [1, 0.1], "far": [0, 1]}
    rows: list[dict[str, Any]] = [{"anchor": "q", "positive": "p", "negative": n} for n in ("near", "far", "far")]
    assert evaluate(Fake(known), rows, "triplets") == {"accuracy_cosine": pytest.approx(2 / 3)}
    rows = [{"anchor": "q", "positive": "p", "negative": n} for n in (["near", "far"], ["far"], [])]
    assert evaluate(Fake(known), rows, "n-tuples") == {"accuracy_cosine": pytest.approx(2 / 3)}
    rows = [{"anchor": "q", "positive": "p", "negative": n} for n in (["near", "far"], ["far", "far"])]
    assert evaluate(Fake(known), rows, "n-tuples", similarity="euclidean") == {
        "accuracy_euclidean": 0.75,
        "accuracy_all_euclidean": 0.5,
    }
    assert evaluate(Fake({**known, "near": [1, 0.2]}), rows[:1], "n-tuples")["accuracy_cosine"] == 0.5  # a tie is not won


def test_scores_and_binary() -> None:
    known = {"a": [1, 0], "b": [1, 0.1], "c": [1, 1], "d": [0, 1]}
    rows = [{"first": "a", "second": s, "label": v} for s, v in (("b", 0.9), ("c", 0.6), ("d", 0.1))]
    found = evaluate(Fake(known), rows, "pairs+score")
    assert set(found) == {f"{m}_{s}" for m in ("spearman", "pearson") for s in ("cosine", "dot", "euclidean", "manhattan")}
    assert found["spearman_cosine"] == pytest.approx(1)
    rows = [{**row, "label": int(row["label"] > 0.5)} for row in rows]
    found = evaluate(Fake(known), rows, "pairs+binary", similarity="euclidean")
    assert (found["accuracy_euclidean"], found["ap_euclidean"]) == (1, 1)
    assert found["accuracy_threshold_euclidean"] == pytest.approx((1 + 2**0.5) / 2)  # of the distance, above 0


def test_classes_of_texts_and_pairs() -> None:
    rng = np.random.default_rng(5)
    known = {f"{c}{i}": np.eye(4)[c] * 9 + rng.normal(size=4) for c in range(4) for i in range(10)}
    rows = [{"text": name, "label": f"class {name[0]}"} for name in known]
    found = evaluate(Fake(known), rows, "single+class")
    assert min(found.values()) > 0.9
    assert found == evaluate(Fake(known), rows, "single+class")
    names = list(known)
    pairs = [{"first": a, "second": b, "label": int(a[0] == b[0])} for a in names[::4] for b in names]
    found = evaluate(Fake(known), pairs, "pairs+class")
    assert set(found) == {"probe_accuracy"}
    assert found["probe_accuracy"] > 0.9

    def loss(embeddings: Any, labels: torch.Tensor) -> LossOutput:
        same = embeddings.own("first").argmax(1) == embeddings.own("second").argmax(1)
        return LossOutput.of(same.float().mean(), accuracy=(same == labels).float().mean())

    assert evaluate(Fake(known), pairs, "pairs+class", loss=loss)["accuracy"] > 0.95
    assert "accuracy" not in evaluate(Fake(known), pairs, "pairs+class", loss=lambda e, y: LossOutput(torch.zeros(())))


def test_teachers() -> None:
    known = {"a": [1, 0, 0], "b": [0, 1, 0], "c": [0, 0, 1], "d": [1, 1, 0]}
    rows: list[dict[str, Any]] = [{"text": t, "label": v} for t, v in known.items()]
    assert evaluate(Fake(known), rows, "text+embedding") == pytest.approx({"mse": 0, "cosine": 1, "pairs_spearman": 1})
    rows = [{"texts": ["a", "b"], "label": [[1, 0, 0], [0, 1, 0]]}, {"texts": ["c", "d"], "label": [0, 0, 1]}]
    found = evaluate(Fake(known), rows, "texts+embedding")
    assert found["mse"] == pytest.approx(3 / 12)
    assert found["src2trg_accuracy"] in (0, 0.5, 1)
    assert evaluate(Fake(known), rows, "texts+embedding", truncate_dim=2)["mse"] == pytest.approx(2 / 8)
    with pytest.raises(EmbedlossError, match="E501: row 1 has 2 texts and 3 teacher vectors"):
        evaluate(Fake(known), [{**rows[0], "label": np.eye(3)}], "texts+embedding")


def test_margins_and_candidate_scores() -> None:
    known = {"q": [1, 0], "p": [1, 0.1], "m": [1, 1], "n": [0, 1]}
    rows: list[dict[str, Any]] = [
        {"query": "q", "positive": "p", "negative": "m", "label": 1.0},
        {"query": "q", "positive": "p", "negative": "n", "label": 3.0},
        {"query": "q", "positive": "p", "negative": "p", "label": 0.0},
    ]
    assert evaluate(Fake(known), rows, "triplets+margin") == pytest.approx({"kendall_cosine": 1, "accuracy_cosine": 2 / 3})
    rows = [{"query": "q", "positive": "p", "negative": ["m", "n"], "label": [1.0, 3.0]}]
    assert evaluate(Fake(known), rows, "n-tuples+margins")["kendall_cosine"] == pytest.approx(1)
    rows = [{"query": "q", "positive": "p", "negative": ["m", "n"], "label": [9.0, 4.0, 5.0]}]
    assert evaluate(Fake(known), rows, "n-tuples+scores")["kendall_cosine"] == pytest.approx(1 / 3)
    for name, label in (("n-tuples+margins", [1.0]), ("n-tuples+scores", [1.0, 2.0])):
        with pytest.raises(EmbedlossError, match="E501"):
            evaluate(Fake(known), [{**rows[0], "label": label}], name)


def test_lists() -> None:
    known = {"q": [1, 0], "p": [1, 0.1], "m": [1, 1], "n": [0, 1]}
    rows = [{"query": "q", "docs": ["n", "m", "p"], "label": [0, 0.5, 2]}, {"query": "q", "docs": ["p", "n"], "label": [0, 1]}]
    found = evaluate(Fake(known), rows, "listwise")
    assert found == pytest.approx({"ndcg@10": (1 + 1 / np.log2(3)) / 2, "mrr@10": 0.75, "map": 0.75})
    with pytest.raises(EmbedlossError, match="E501: row 1 has 3 documents and 2 grades"):
        evaluate(Fake(known), [{**rows[0], "label": [0, 1]}], "listwise")


def test_dims_are_measured_beside_the_whole() -> None:
    rows = [{"anchor": f"q{i}", "positive": f"d{i}", "negative": f"n{i}"} for i in range(40)]
    found = evaluate(Fake(dimension=8), rows, "triplets", dims=[2, 4])
    assert set(found) == {"accuracy_cosine", "2/accuracy_cosine", "4/accuracy_cosine"}
    assert found["2/accuracy_cosine"] == evaluate(Fake(dimension=8), rows, "triplets", truncate_dim=2)["accuracy_cosine"]
    assert len(set(found.values())) > 1


def test_cross_encoders_score_pairs() -> None:
    rows: list[dict[str, Any]] = [{"first": "aa", "second": "b" * n, "label": n / 9} for n in (1, 4, 9)]
    assert evaluate(FakeCross(), rows, "pairs+score") == pytest.approx({"spearman": 1, "pearson": 1})
    found = evaluate(FakeCross(), [{**row, "label": int(row["label"] > 0.3)} for row in rows], "pairs+binary")
    assert found["accuracy"] == found["ap"] == 1
    found = evaluate(FakeCross(2), [{**row, "label": int(row["label"] > 0.3)} for row in rows], "pairs+class")
    assert found == {"accuracy": 1, "f1_macro": 1}
    lists = [{"query": "q", "docs": ["d", "long", "longer"], "label": [0, 1, 2]}]
    assert evaluate(FakeCross(), lists, "listwise") == {"ndcg@10": 1, "mrr@10": 1, "map": 1}
    rows = [{"anchor": "q", "positive": "long", "negative": ["d", "longer"]}]
    assert evaluate(FakeCross(), rows, "n-tuples") == {"accuracy": 0.5, "accuracy_all": 0}
    assert evaluate(FakeCross(), rows, "pairs") == {}
    with pytest.raises(EmbedlossError, match="E501: the cross-encoder gives 2 classes"):
        evaluate(FakeCross(2), rows, "n-tuples")


def test_every_format_is_measured_or_has_a_reason() -> None:
    for name in FORMATS:
        reason = why_nothing(name)
        assert bool(reason) == (name in ("single", "source-target"))
        assert (primary_metric(name) is None) == bool(reason)
    assert evaluate(Fake(), [{"text": "a"}], "single") == {}
    assert why_nothing("pairs", "cross-encoder")
    assert primary_metric("pairs+score", "dot") == "spearman_dot"
    assert primary_metric("pairs+score", kind="cross-encoder") == "spearman"


def test_formats_by_object_and_binding() -> None:
    rows = [{"anchor": "a", "positive": "b"}]
    by_name = evaluate(Fake(), rows, "pairs")

    class Binding:
        format = get_format("pairs")

    assert evaluate(Fake(), rows, get_format("pairs")) == by_name == evaluate(Fake(), rows, Binding())
    import datasets

    assert evaluate(Fake(), datasets.Dataset.from_list(rows), "pairs") == by_name


@pytest.mark.parametrize(
    ("rows", "format_name", "message"),
    [
        ([], "pairs", "no rows"),
        ([{"anchor": "a"}], "pairs", "row 1 has no 'positive'"),
        ([{"first": "a", "second": "b"}], "pairs+score", "row 1 has no 'label'"),
        ([{"first": "a", "second": "b", "label": 1.0}] * 3, "pairs+score", "two different gold scores"),
        ([{"first": "a", "second": "b", "label": 1}] * 3, "pairs+binary", "label 0 and of label 1"),
        ([{"first": "a", "second": "b", "label": 2}, {"first": "a", "second": "b", "label": 0}], "pairs+binary", "label 0"),
        ([{"text": "a", "label": "x"}] * 3, "single+class", "two classes"),
        ([{"text": "a", "label": "x"}, {"text": "b", "label": "y"}], "single+class", "single row"),
        ([{"query": "a", "docs": ["b", "c"], "label": [1, 1]}], "listwise", "nothing to rank"),
        ([{"query": "a", "docs": ["b", "c"], "label": [1, -1]}], "listwise", "below 0"),
        ([{"anchor": "a", "positive": "b", "negative": []}], "n-tuples", "no row has a negative"),
    ],
)
def test_what_cannot_be_measured_is_e501(rows: list[dict[str, Any]], format_name: str, message: str) -> None:
    with pytest.raises(EmbedlossError, match=f"E501: .*{message}"):
        evaluate(Fake(), rows, format_name)


def test_diverged_encoder_and_unknown_similarity_are_e501() -> None:
    rows = [{"anchor": "a", "positive": "b"}]
    with pytest.raises(EmbedlossError, match="E501: the encoder gives NaN"):
        evaluate(Fake({"a": [float("nan")] * 8}), rows, "pairs")
    with pytest.raises(EmbedlossError, match="E501: similarity"):
        evaluate(Fake(), rows, "pairs", similarity="hamming")


# -- retrieval ------------------------------------------------------------------------------------------------------------
def test_retrieval_grades_and_counts() -> None:
    known = {"q": [1, 0], "a": [1, 0.1], "b": [1, 0.5], "c": [1, 1], "r": [0, 1]}
    corpus, queries = {t: t for t in "abc"}, {"1": "q", "2": "r", "3": "q"}
    found = retrieval(Fake(known), corpus, queries, {"1": {"a": 1, "b": 2}, "2": ["c"], "3": {"a": 0}})
    ideal = 2 + 1 / np.log2(3)
    assert found["ndcg@10"] == pytest.approx(((1 + 2 / np.log2(3)) / ideal + 1) / 2)
    assert (found["queries"], found["documents"], found["queries_excluded"]) == (2, 3, 1)
    assert "judgements_excluded" not in found
    assert retrieval(Fake(known), corpus, queries, {"1": ["a"]}, ks=[1, 3])["recall@1"] == 1


def test_retrieval_refuses_files_that_do_not_belong_together() -> None:
    corpus = {f"d{i}": f"text {i}" for i in range(40)}
    queries = {f"q{i}": f"query {i}" for i in range(40)}
    qrels = {f"q{i}": [f"d{i}"] for i in range(40)}
    few = {**qrels, "q0": ["d0", "gone"]}
    assert retrieval(Fake(), corpus, queries, few)["judgements_excluded"] == 1
    assert "judgements_excluded" not in retrieval(Fake(), corpus, queries, qrels)
    with pytest.raises(EmbedlossError, match=r"E501: 3 of 43 relevance judgements.*'x1'"):
        retrieval(Fake(), corpus, queries, {**qrels, "q0": ["d0", "x1", "x2", "x3"]})
    with pytest.raises(EmbedlossError, match=r"E501: 3 of 43 relevance judgements.*'s1'"):
        retrieval(Fake(), corpus, queries, {**qrels, "s1": ["d1"], "s2": ["d1"], "s3": ["d1"]})
    with pytest.raises(EmbedlossError, match="E501: no query"):
        retrieval(Fake(), corpus, queries, {})
    with pytest.raises(EmbedlossError, match="E501: k is 50, but the corpus has 40"):
        retrieval(Fake(), corpus, queries, qrels, ks=[50])


# -- sizes, layers, precisions ------------------------------------------------------------------------------------------------
def test_quantised_embeddings_by_hand() -> None:
    x, y = np.array([[7.0, 24.0], [0.0, -2.0]]), np.array([[1.0, 0.0]])
    found = quantised({"first": x, "second": y}, "int8")
    # units (0.28, 0.96), (0, -1), (1, 0): the first component goes from 0 to 1, the second from -1 to 0.96
    assert found["first"].tolist() == [[-57, 127], [-128, -128]]  # 0.28 * 255 = 71.4
    assert found["second"].tolist() == [[127, 2]]  # 1 / 1.96 * 255 = 130.1
    assert quantised({"first": x}, "binary")["first"].tolist() == [[1, 1], [0, 0]]
    assert quantised({"first": np.ones((3, 1))}, "int8")["first"].tolist() == [[-128]] * 3  # no range


def test_every_combination_of_size_and_precision() -> None:
    rows = [{"anchor": f"q{i}", "positive": f"p{i}", "negative": f"n{i}"} for i in range(40)]
    found = evaluate(Fake(dimension=16), rows, "triplets", dims=[4, 16], precisions=["int8", "binary"])
    assert list(found) == [
        f"{view}accuracy_cosine"
        for view in ("", "int8/", "binary/", "4/", "4/int8/", "4/binary/", "16/", "16/int8/", "16/binary/")
    ]
    alone = evaluate(Fake(dimension=16), rows, "triplets", truncate_dim=4)
    assert found["4/accuracy_cosine"] == alone["accuracy_cosine"] != found["accuracy_cosine"]
    corpus, qrels = {f"d{i}": f"p{i}" for i in range(40)}, {f"q{i}": [f"d{i}"] for i in range(40)}
    queries = {f"q{i}": f"q{i}" for i in range(40)}
    searched = retrieval(Fake(dimension=16), corpus, queries, qrels, dims=[4], precisions=["int8"])
    assert searched["4/map@100"] == retrieval(Fake(dimension=16), corpus, queries, qrels, truncate_dim=4)["map@100"]
    assert {"int8/ndcg@10", "4/int8/ndcg@10"} <= set(searched)


def test_layers_are_those_of_a_shorter_model(tmp_path: Any) -> None:
    from embedloss import load_encoder
    from embedloss.testing.models import tiny_bert

    encoder: Any = load_encoder(tiny_bert(tmp_path / "bert", layers=3)).eval()
    texts = ["a plain sentence", "the committee decided", "short", "a plain word"]
    rows = [
        {"first": a, "second": b, "label": i / 9} for i, (a, b) in enumerate((a, b) for a in texts for b in texts if a != b)
    ]
    stack = encoder.encode_layers(texts, [None, 0, 1, 3])
    np.testing.assert_allclose(stack[3], encoder.encode(texts), atol=1e-6)
    np.testing.assert_allclose(stack[None], encoder.encode(texts), atol=1e-6)
    found = evaluate(encoder, rows, "pairs+score", layers=[1], dims=[4])
    encoder.model.encoder.layer = encoder.model.encoder.layer[:1]
    encoder.n_layers = encoder.model.config.num_hidden_layers = 1
    np.testing.assert_allclose(stack[1], encoder.encode(texts), atol=1e-6)
    assert np.abs(stack[1] - stack[3]).max() > 0.1
    shorter = evaluate(encoder, rows, "pairs+score", dims=[4])
    for name, value in shorter.items():
        assert found[f"layer1/{name}"] == pytest.approx(value, abs=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dims": [9]}, "dimension 9 is not there: the embeddings have 8"),
        ({"layers": [1]}, "layer 1 is not there: the encoder has 0 layers"),
        ({"precisions": ["int4"]}, "precision 'int4' is unknown; there are float32, int8, binary"),
        ({"ks": [3]}, "k is 3, but the corpus has 2 documents"),
        ({"ks": [0, 1]}, "k is 0, but"),
    ],
)
def test_parts_that_are_not_there_are_e501(options: dict[str, Any], message: str) -> None:
    with pytest.raises(EmbedlossError, match=f"E501: {message}"):
        evaluate(Fake(), [{"anchor": "a", "positive": "b"}, {"anchor": "c", "positive": "d"}], "pairs", **options)
    with pytest.raises(EmbedlossError, match="E501: a cross-encoder gives no embeddings"):
        evaluate(FakeCross(), [{"query": "a", "docs": ["b", "c"], "label": [1, 0]}], "listwise", dims=[2])


# -- names, baselines, collections --------------------------------------------------------------------------------------------
ROWS: dict[str, list[dict[str, Any]]] = {
    "pairs": [{"anchor": f"word{i} cat", "positive": f"word{i} dog"} for i in range(30)],
    "triplets": [{"anchor": f"word{i} cat", "positive": f"word{i} dog", "negative": f"word{i + 1} dog"} for i in range(30)],
    "n-tuples": [
        {"anchor": f"word{i} cat", "positive": f"word{i} dog", "negative": [f"word{i + 1} dog", "none"]} for i in range(30)
    ],
    "pairs+score": [{"first": f"word{i} cat", "second": f"word{i % 3} dog", "label": float(i < 3)} for i in range(30)],
    "pairs+binary": [{"first": f"word{i} cat", "second": f"word{i % 3} dog", "label": int(i < 3)} for i in range(30)],
    "pairs+class": [{"first": f"word{i} cat", "second": f"word{i % 3} dog", "label": i % 3} for i in range(30)],
    "single+class": [{"text": f"word{i}", "label": i % 3} for i in range(30)],
    "text+embedding": [{"text": f"word{i}", "label": [float(i % 7), 1.0, float(i)]} for i in range(30)],
    "texts+embedding": [{"texts": [f"word{i}", f"mot{i}"], "label": [float(i % 7), 1.0, float(i)]} for i in range(30)],
    "triplets+margin": [{"query": f"q{i}", "positive": f"p{i}", "negative": f"n{i}", "label": float(i)} for i in range(30)],
    "n-tuples+margins": [
        {"query": f"q{i}", "positive": f"p{i}", "negative": [f"n{i}", "m"], "label": [float(i), 1.0]} for i in range(30)
    ],
    "n-tuples+scores": [
        {"query": f"q{i}", "positive": f"p{i}", "negative": [f"n{i}", "m"], "label": [float(i), 1.0, 2.0]} for i in range(30)
    ],
    "listwise": [{"query": f"word{i} cat", "docs": ["none", f"word{i} dog"], "label": [0, 1]} for i in range(30)],
}
COUNTS = {"queries", "documents"}


@pytest.mark.parametrize("name", ROWS)
def test_names_are_known_before_anything_is_measured(name: str) -> None:
    assert set(evaluate(Fake(dimension=3), ROWS[name], name)) - COUNTS <= set(metric_names(name))
    assert metric_names(name)[0] == primary_metric(name)
    if not why_nothing(name, "cross-encoder"):
        known = metric_names(name, kind="cross-encoder")
        assert known[0] == primary_metric(name, kind="cross-encoder")
        assert set(evaluate(FakeCross(2 if name == "pairs+class" else 1), ROWS[name], name)) <= set(known)


def test_names_of_every_format_and_cut() -> None:
    assert set(ROWS) == {name for name in FORMATS if not why_nothing(name)}
    assert metric_names("single") == []
    assert metric_names("pairs", ks=[5, 20])[1:4] == ["mrr@5", "mrr@20", "recall@5"]
    assert metric_names("triplets", similarity="dot") == ["accuracy_dot"]


def test_bm25_finds_words() -> None:
    pytest.importorskip("bm25s")
    assert evaluate(BM25(), ROWS["pairs"], "pairs")["mrr@10"] == 1
    assert evaluate(BM25(), ROWS["triplets"], "triplets") == {"accuracy_cosine": 1}
    assert evaluate(BM25(), ROWS["listwise"], "listwise")["mrr@10"] == 1
    assert evaluate(BM25(), ROWS["pairs+score"], "pairs+score")["spearman_cosine"] > 0.9
    corpus = {"a": "the cat sat", "b": "a dog ran", "c": "nothing at all", "d": "the the the"}
    found = retrieval(BM25(), corpus, {"1": "cat", "2": "dogs"}, {"1": ["a"], "2": {"b": 1}})
    assert found["mrr@10"] == pytest.approx((1 + 1 / 2) / 2)  # no word in common: the order of the corpus
    assert evaluate(BM25(), ROWS["single+class"], "single+class") == {}


@pytest.mark.parametrize("name", ["pairs", "pairs+score", "single+class", "listwise"])
def test_baselines_know_words_or_nothing(name: str) -> None:
    found = baselines(ROWS[name], name)
    first = metric_names(name)[0]
    assert ("BM25" in found) == (name != "single+class")
    assert found["static, untrained"].keys() == evaluate(RandomEncoder(), ROWS[name], name).keys()
    assert found == baselines(ROWS[name], name)
    if name != "single+class":
        chance = found["random order" if name == "listwise" else "random"][first]
        assert found["static, untrained"][first] > chance + 0.1 < found["BM25"][first]


def write(folder: Any, files: dict[str, list[dict[str, Any]]]) -> Any:
    import json

    for name, rows in files.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.suffix == ".tsv":
            lines = ["\t".join(rows[0]), *("\t".join(map(str, row.values())) for row in rows)]
            file.write_text("\n".join(lines) + "\n")
        else:
            file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


CORPUS = [{"_id": "d1", "title": "Cats", "text": "sleep"}, {"_id": "d2", "title": "", "text": "dogs run"}]
QUERIES = [{"_id": "q1", "text": "sleeping"}, {"_id": "q2", "text": "running"}]
JUDGED = [{"query-id": "q1", "corpus-id": "d1", "score": 2}, {"query-id": "q2", "corpus-id": "d2", "score": 1}]


def test_a_folder_as_beir_has_it(tmp_path: Any) -> None:
    folder = write(
        tmp_path, {"corpus.jsonl": CORPUS, "queries.jsonl": QUERIES, "qrels/test.tsv": JUDGED, "qrels/dev.tsv": JUDGED[:1]}
    )
    assert is_collection(folder)
    found = load_collection(folder, "test")
    assert found.corpus == {"d1": "Cats sleep", "d2": "dogs run"}
    assert found.queries == {"q1": "sleeping", "q2": "running"}
    assert found.qrels == {"q1": {"d1": 2}, "q2": {"d2": 1}}
    assert load_collection(folder, "dev").qrels == {"q1": {"d1": 2}}
    with pytest.raises(EmbedlossError, match=r"E501: .* has the splits dev, test; type --split NAME"):
        load_collection(folder)
    with pytest.raises(EmbedlossError, match=r"E501: .* has no split 'train'; it has dev, test"):
        load_collection(folder, "train")


def test_a_folder_with_numbers_as_ids_and_splits_by_name(tmp_path: Any) -> None:
    files = {
        "corpus.jsonl": [{"doc_id": 1, "text": "a"}, {"doc_id": 2, "text": "b"}],
        "dev_queries.jsonl": [{"query_id": 7, "text": "q"}],
        "dev_qrels.jsonl": [{"query_id": 7, "doc_id": 2}],
    }
    found = load_collection(write(tmp_path, files))
    assert (found.corpus, found.queries, found.qrels) == ({"1": "a", "2": "b"}, {"7": "q"}, {"7": {"2": 1}})


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"qrels.jsonl": []}, "E103: .* is empty"),
        ({"corpus.jsonl": [{"_id": "a", "text": "x"}] * 2}, "E104: .*corpus.jsonl' row 2 repeats the id 'a'"),
        ({"corpus.jsonl": [{"_id": "a", "text": "x"}, {"_id": "b"}]}, "E104: .* row 2 has no text"),
        ({"corpus.jsonl": [{"name": "a", "text": "x"}]}, "E102: .* has none of the columns doc_id, _id"),
        ({"qrels.jsonl": [{"query-id": "q1", "corpus-id": "d1", "score": "high"}]}, "E104: .* row 1: the grade 'high'"),
    ],
)
def test_faulty_collections(tmp_path: Any, files: dict[str, list[dict[str, Any]]], message: str) -> None:
    folder = write(tmp_path, {"corpus.jsonl": CORPUS, "queries.jsonl": QUERIES, "qrels.jsonl": JUDGED, **files})
    with pytest.raises(EmbedlossError, match=message):
        load_collection(folder)


def test_a_collection_without_queries(tmp_path: Any) -> None:
    write(tmp_path, {"corpus.jsonl": CORPUS, "qrels.jsonl": JUDGED})
    with pytest.raises(EmbedlossError, match=r"E103: .* no queries"):
        load_collection(tmp_path)
    assert not is_collection(tmp_path / "qrels.jsonl")
