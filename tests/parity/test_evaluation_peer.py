"""Every metric equals that of sentence-transformers' evaluators on the same embeddings, or with the same model."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from embedloss import create_loss, load_encoder
from embedloss.encoders import CrossEncoder
from embedloss.evaluation import evaluate, retrieval
from embedloss.testing.models import SENTENCES, tiny_bert, tiny_cross_encoder

pytest.importorskip("sentence_transformers")
from sentence_transformers import CrossEncoder as PeerCrossEncoder
from sentence_transformers import InputExample, SentenceTransformer
from sentence_transformers.cross_encoder.evaluation import (
    CrossEncoderClassificationEvaluator,
    CrossEncoderCorrelationEvaluator,
)
from sentence_transformers.sentence_transformer import evaluation as peer
from sentence_transformers.sentence_transformer.losses import SoftmaxLoss
from sentence_transformers.util import quantize_embeddings

torch.set_num_threads(1)
SIMILARITIES = ["cosine", "dot", "euclidean", "manhattan"]


class Model:
    """The same vectors through both interfaces. A text is near the other texts that begin with the same letter."""

    similarity = similarity_fn_name = "cosine"

    def __init__(self) -> None:
        self.model_card_data: Any = None

    def encode(self, texts: Any, *, prompt: str = "", truncate_dim: int | None = None, convert_to_tensor: bool = False,
               convert_to_numpy: bool = True, precision: str | None = None, **_: Any) -> Any:  # fmt: skip
        found = np.array([self.vector(t) for t in texts], dtype=np.float32)[:, :truncate_dim]
        if precision:
            return quantize_embeddings(found / np.linalg.norm(found, axis=1, keepdims=True), precision)
        if convert_to_tensor:
            return torch.from_numpy(found)
        return found if convert_to_numpy else list(torch.from_numpy(found))

    encode_query = encode_document = encode

    @staticmethod
    def vector(text: str) -> np.ndarray:
        def draw(part: str) -> np.ndarray:
            seed = int.from_bytes(hashlib.md5(part.encode()).digest()[:4], "big")
            return np.random.default_rng(seed).normal(size=12)

        return draw(text[0]) + 1.3 * draw(text)


class Padded(Model):
    """Vectors of 16 components, which pack into whole bytes."""

    @staticmethod
    def vector(text: str) -> np.ndarray:
        found = Model.vector(text)
        return np.concatenate([found, found[:4] + found[4:8]])


def names(prefix: str, count: int, letters: str = "abcdefghij") -> list[str]:
    return [f"{letters[i % len(letters)]} {prefix} {i}" for i in range(count)]


def run(evaluator: Any, model: Model, monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    monkeypatch.setattr(type(evaluator), "store_metrics_in_model_card_data", lambda *_: None)
    result: dict[str, float] = evaluator(model)
    return result


@pytest.mark.parametrize("dimension", [None, 5])
def test_similarity(monkeypatch: pytest.MonkeyPatch, dimension: int | None) -> None:
    first, second = names("one", 150), names("two", 150, "abcdefghijk")
    gold = (np.arange(150) % 11 / 10).tolist()
    evaluator = peer.EmbeddingSimilarityEvaluator(
        first, second, gold, similarity_fn_names=SIMILARITIES, truncate_dim=dimension, write_csv=False
    )
    theirs = run(evaluator, Model(), monkeypatch)
    rows = [{"first": a, "second": b, "label": g} for a, b, g in zip(first, second, gold, strict=True)]
    ours = evaluate(Model(), rows, "pairs+score", truncate_dim=dimension)
    assert len(ours) == 8
    for name, value in ours.items():
        assert theirs[name] == pytest.approx(value, abs=1e-6), name


@pytest.mark.parametrize("dimension", [None, 8])
@pytest.mark.parametrize("precision", ["int8", "binary"])
def test_similarity_of_quantised_embeddings(monkeypatch: pytest.MonkeyPatch, precision: Any, dimension: int | None) -> None:
    first, second = names("one", 150), names("two", 150, "abcdefghijk")
    gold = (np.arange(150) % 11 / 10).tolist()
    evaluator = peer.EmbeddingSimilarityEvaluator(
        first, second, gold, similarity_fn_names=SIMILARITIES, truncate_dim=dimension, precision=precision, write_csv=False
    )
    theirs = run(evaluator, Padded(), monkeypatch)
    rows = [{"first": a, "second": b, "label": g} for a, b, g in zip(first, second, gold, strict=True)]
    ours = evaluate(Padded(), rows, "pairs+score", truncate_dim=dimension, precisions=[precision])
    assert len(ours) == 16
    for name, value in theirs.items():
        # Many cosines of bits are equal, and rounding in float32 puts them in an order.
        if (precision, name) == ("binary", "spearman_cosine") or name.endswith("_max"):
            continue
        assert ours[f"{precision}/{name}"] == pytest.approx(value, abs=1e-6), name
        assert ours[f"{precision}/{name}"] != pytest.approx(ours[name], abs=1e-6)


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_binary(monkeypatch: pytest.MonkeyPatch, similarity: str) -> None:
    first, second = names("one", 200), names("two", 200, "abcdefghi")
    labels = [int(a[0] == b[0]) for a, b in zip(first, second, strict=True)]
    labels[:20] = [1 - label for label in labels[:20]]
    evaluator = peer.BinaryClassificationEvaluator(first, second, labels, similarity_fn_names=[similarity], write_csv=False)
    theirs = run(evaluator, Model(), monkeypatch)
    rows = [{"first": a, "second": b, "label": y} for a, b, y in zip(first, second, labels, strict=True)]
    ours = evaluate(Model(), rows, "pairs+binary", similarity=similarity)
    assert len(ours) == len(theirs) == 8
    for name, value in theirs.items():
        assert ours[name.removeprefix(f"{similarity}_") + f"_{similarity}"] == pytest.approx(value, abs=1e-6), name


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_triplets(monkeypatch: pytest.MonkeyPatch, similarity: str) -> None:
    anchors, positives, negatives = names("one", 300), names("two", 300), names("three", 300, "abcdefghijklm")
    evaluator = peer.TripletEvaluator(anchors, positives, negatives, similarity_fn_names=[similarity], write_csv=False)
    theirs = run(evaluator, Model(), monkeypatch)[f"{similarity}_accuracy"]
    rows = [{"anchor": a, "positive": p, "negative": n} for a, p, n in zip(anchors, positives, negatives, strict=True)]
    ours = evaluate(Model(), rows, "triplets", similarity=similarity)[f"accuracy_{similarity}"]
    assert 0.5 < ours < 0.99
    assert ours == pytest.approx(theirs, abs=1e-6)


def compare_search(ours: dict[str, float], theirs: dict[str, float]) -> None:
    compared = {name: value for name, value in ours.items() if "@" in name}
    assert len(compared) == 4
    for name, value in compared.items():
        assert 0.01 < value < 0.99
        assert theirs[f"cosine_{name}"] == pytest.approx(value, abs=1e-6), name


def test_retrieval(monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = {f"d{i}": text for i, text in enumerate(names("doc", 400))}
    queries = {f"q{i}": text for i, text in enumerate(names("query", 60))}
    rng = np.random.default_rng(0)
    near = {q: [d for d, text in corpus.items() if text[0] == query[0]] for q, query in queries.items()}
    qrels = {q: set(rng.choice(near[q], rng.integers(1, 9), False).tolist()) for q in queries}
    evaluator = peer.InformationRetrievalEvaluator(
        queries, corpus, qrels, mrr_at_k=[10], ndcg_at_k=[10], precision_recall_at_k=[10], map_at_k=[100],
        score_functions={"cosine": lambda x, y: torch.nn.functional.normalize(x) @ torch.nn.functional.normalize(y).T},
        write_csv=False,
    )  # fmt: skip
    compare_search(retrieval(Model(), corpus, queries, qrels), run(evaluator, Model(), monkeypatch))


def test_pairs_are_that_retrieval(monkeypatch: pytest.MonkeyPatch) -> None:
    """The corpus are the distinct positives, relevant those of the same anchor."""
    rows = [
        {"anchor": a, "positive": p} for a, p in zip(names("q", 90)[:45] * 2, names("doc", 80) + names("doc", 10), strict=True)
    ]
    corpus = {text: text for text in dict.fromkeys(row["positive"] for row in rows)}
    queries = {text: text for text in dict.fromkeys(row["anchor"] for row in rows)}
    qrels = {q: {row["positive"] for row in rows if row["anchor"] == q} for q in queries}
    assert max(map(len, qrels.values())) == 2
    evaluator = peer.InformationRetrievalEvaluator(
        queries, corpus, qrels, mrr_at_k=[10], ndcg_at_k=[10], precision_recall_at_k=[10], map_at_k=[100],
        score_functions={"cosine": lambda x, y: torch.nn.functional.normalize(x) @ torch.nn.functional.normalize(y).T},
        write_csv=False,
    )  # fmt: skip
    compare_search(evaluate(Model(), rows, "pairs"), run(evaluator, Model(), monkeypatch))


def test_reranking(monkeypatch: pytest.MonkeyPatch) -> None:
    samples, rows = [], []
    for i, query in enumerate(names("query", 40)):
        positive = names(f"good {i}", 2 + i % 3, query[0] + "yz")
        negative = names(f"bad {i}", 25)
        samples.append({"query": query, "positive": positive, "negative": negative})
        rows.append({"query": query, "docs": positive + negative, "label": [1] * len(positive) + [0] * len(negative)})
    theirs = run(peer.RerankingEvaluator(samples, at_k=10, write_csv=False), Model(), monkeypatch)
    ours = evaluate(Model(), rows, "listwise")
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert 0.05 < value < 0.95
        assert ours[name] == pytest.approx(value, abs=1e-6), name


def test_teacher_and_translation(monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = names("source", 120), names("target", 120)
    rows: list[dict[str, Any]] = [
        {"texts": [s, t], "label": Model.vector(s).tolist()} for s, t in zip(source, target, strict=True)
    ]
    ours = evaluate(Model(), rows, "texts+embedding")
    theirs = run(peer.TranslationEvaluator(source, target, write_csv=False), Model(), monkeypatch)
    for name, value in theirs.items():
        assert 0 < value < 1
        assert ours[name] == pytest.approx(value, abs=1e-6), name
    rows = [{"text": t, "label": Model.vector(s).tolist()} for s, t in zip(source, target, strict=True)]
    for dimension in (None, 5):
        evaluator = peer.MSEEvaluator(source, target, teacher_model=Model(), truncate_dim=dimension, write_csv=False)
        theirs = run(evaluator, Model(), monkeypatch)
        ours = evaluate(Model(), rows, "text+embedding", truncate_dim=dimension)
        assert -100 * ours["mse"] == pytest.approx(theirs["negative_mse"], rel=1e-6)


PAIRS = [(SENTENCES[i % len(SENTENCES)], SENTENCES[(3 * i + i // 7) % len(SENTENCES)]) for i in range(120)]


def test_classifier_of_a_loss(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Accuracy of the softmax loss's own classifier on a transformer."""
    folder = tiny_bert(tmp_path / "model")
    labels = [i * i % 3 + i % 2 for i in range(len(PAIRS))]
    classes, model = max(labels) + 1, SentenceTransformer(folder, device="cpu")
    theirs = SoftmaxLoss(model, model.get_embedding_dimension(), num_labels=classes)
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(theirs.classifier.weight.shape, generator=generator)
    theirs.classifier.weight.data, theirs.classifier.bias.data[:] = weight, 0.0
    ours = create_loss(f"softmax({weight.shape[1] // 3}, num_labels={classes})")
    ours.linear.load_state_dict(theirs.classifier.state_dict())
    examples: Any = [InputExample(texts=list(pair), label=label) for pair, label in zip(PAIRS, labels, strict=True)]
    loader: Any = torch.utils.data.DataLoader(examples, batch_size=16)
    evaluator = peer.LabelAccuracyEvaluator(loader, softmax_model=theirs, write_csv=False)
    expected = run(evaluator, model, monkeypatch)["accuracy"]  # type: ignore[arg-type]
    rows = [{"first": a, "second": b, "label": label} for (a, b), label in zip(PAIRS, labels, strict=True)]
    found = evaluate(load_encoder(folder), rows, "pairs+class", loss=ours)["accuracy"]
    assert 0.05 < expected < 0.95
    assert found == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("classes", [1, 3])
def test_cross_encoders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, classes: int) -> None:
    """Correlations of scores; accuracy and F1 of classes."""
    encoder = load_encoder(tiny_cross_encoder(tmp_path / "model", num_labels=classes))
    assert isinstance(encoder, CrossEncoder)
    encoder.model.classifier.weight.data *= 50  # type: ignore[union-attr,operator]  # far apart beside rounding
    encoder.save(tmp_path / "saved")
    model, pairs = PeerCrossEncoder(str(tmp_path / "saved"), device="cpu"), [list(pair) for pair in PAIRS]
    if classes == 1:
        gold: list[Any] = [i % 11 / 10 for i in range(len(PAIRS))]
        theirs = run(CrossEncoderCorrelationEvaluator(pairs, gold, write_csv=False), model, monkeypatch)  # type: ignore[arg-type]
    else:
        gold = [i * i % 3 for i in range(len(PAIRS))]
        theirs = run(CrossEncoderClassificationEvaluator(pairs, gold, write_csv=False), model, monkeypatch)  # type: ignore[arg-type]
    rows = [{"first": a, "second": b, "label": label} for (a, b), label in zip(PAIRS, gold, strict=True)]
    ours = evaluate(encoder, rows, "pairs+score" if classes == 1 else "pairs+class")
    # With one class a pair, the micro-averaged F1 is the accuracy.
    names = {"pearson": "pearson", "spearman": "spearman"} if classes == 1 else {"accuracy": "f1_micro", "f1_macro": "f1_macro"}
    assert set(ours) == set(names)
    for name, their_name in names.items():
        assert abs(ours[name]) > 0.01
        assert ours[name] == pytest.approx(theirs[their_name], abs=1e-6), name
