"""Metrics as functions of scores and labels: numpy in, plain floats out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from embedloss.errors import EmbedlossError

Floats = NDArray[np.floating]
Array = NDArray[np.generic]


def unit(x: Floats) -> Floats:
    """Rows divided by their length; rows of length 0 stay 0. (n, dim)."""
    length = np.linalg.norm(x, axis=-1, keepdims=True)
    return np.asarray(x / np.where(length > 1e-12, length, 1.0))


def pairwise_similarity(name: str, x: Floats, y: Floats) -> Floats:
    """(n,) similarities of the rows of x and y, both (n, dim), in float64; distances are negated."""
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if name == "cosine":
        return np.asarray((unit(x) * unit(y)).sum(-1))
    if name == "dot":
        return np.asarray((x * y).sum(-1))
    if name == "euclidean":
        return np.asarray(-np.linalg.norm(x - y, axis=-1))
    return np.asarray(-np.abs(x - y).sum(-1))


def correlations(predicted: Floats, gold: Floats) -> dict[str, float]:
    """Spearman's and Pearson's correlation; 0 where all predictions are equal, which tells nothing.

    Raises:
        EmbedlossError: E501 if there are fewer than two rows or all gold values are equal.
    """
    from scipy.stats import pearsonr, spearmanr

    gold = np.asarray(gold, dtype=np.float64)
    if len(gold) < 2 or np.ptp(gold) == 0:
        raise EmbedlossError(
            "E501", f"a correlation needs two different gold scores; found {len(set(gold.tolist()))} in {len(gold)} rows."
        )
    if np.ptp(predicted) == 0:
        return {"spearman": 0.0, "pearson": 0.0}
    return {"spearman": float(spearmanr(gold, predicted)[0]), "pearson": float(pearsonr(gold, predicted)[0])}


def kendall(predicted: Floats, gold: Floats) -> float | None:
    """Kendall's tau-b; None where all gold values are equal, 0 where all predictions are."""
    from scipy.stats import kendalltau

    if len(gold) < 2 or np.ptp(np.asarray(gold)) == 0:
        return None
    return 0.0 if np.ptp(predicted) == 0 else float(kendalltau(gold, predicted)[0])


def binary_metrics(scores: Floats, labels: Sequence[int] | Array) -> dict[str, float]:
    """Best accuracy and best F1 with their thresholds, precision, recall and MCC at that of F1, and average precision.

    Args:
        scores: (n,) higher means more similar.
        labels: (n,) 0 or 1.

    Raises:
        EmbedlossError: E501 if other labels occur, or only one.
    """
    from sklearn.metrics import average_precision_score, matthews_corrcoef

    truth = np.asarray(labels)
    if set(np.unique(truth).tolist()) != {0, 1}:
        raise EmbedlossError(
            "E501", f"these metrics need rows of label 0 and of label 1; found {np.unique(truth).tolist()[:5]}."
        )
    order = np.argsort(-scores, kind="stable")
    sorted_scores, sorted_truth = scores[order], truth[order]
    # A threshold lies between two different scores, so that equal scores are predicted alike.
    last = np.append(np.nonzero(np.diff(sorted_scores))[0], len(scores) - 1)
    found = np.cumsum(sorted_truth)[last]
    predicted = last + 1
    following = np.append(sorted_scores[last[:-1] + 1], sorted_scores[-1])
    middle = (sorted_scores[last] + following) / 2
    thresholds = np.where(middle == following, sorted_scores[last], middle)
    total, n = int(truth.sum()), len(truth)

    # Predicting every pair as dissimilar is a choice as well.
    correct = np.concatenate([[n - total], found + (n - total) - (predicted - found)])
    above_all = np.nextafter(sorted_scores[:1], np.inf)
    best = int(np.argmax(correct))
    precision, recall = found / predicted, found / total
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-300)
    at = int(np.argmax(f1))
    return {
        "accuracy": float(correct[best] / n),
        "accuracy_threshold": float(np.concatenate([above_all, thresholds])[best]),
        "f1": float(f1[at]),
        "f1_threshold": float(thresholds[at]),
        "precision": float(precision[at]),
        "recall": float(recall[at]),
        "ap": float(average_precision_score(truth, scores)),
        "mcc": float(matthews_corrcoef(truth, scores >= thresholds[at])),
    }


def reranking_metrics(lists: Sequence[tuple[Floats, Floats]], k: int = 10) -> dict[str, float]:
    """nDCG@k (linear gain), MRR@k and MAP of lists of documents that were given, not searched.

    Args:
        lists: (scores, grades) of each list; a grade above 0 is relevant.
        k: cut of nDCG and MRR.

    Returns:
        The means over the lists that can be ranked right or wrong, and how many others were left out where there are some.
        Equal scores: nDCG and MAP take the mean over their orders; MRR the worst, so that a constant score earns nothing.

    Raises:
        EmbedlossError: E501 for a negative grade, or if no list has two different grades.
    """
    from sklearn.metrics import average_precision_score, ndcg_score

    kept = [(s, g) for s, g in lists if len(g) > 1 and np.ptp(g) > 0]
    if not kept:
        raise EmbedlossError("E501", "no list has documents of different grades, so there is nothing to rank.")
    if min(float(g.min()) for _, g in kept) < 0:
        raise EmbedlossError("E501", "grades below 0 have no nDCG.")
    ndcg, mrr, precision = [], [], []
    for scores, grades in kept:
        relevant = grades > 0
        ndcg.append(ndcg_score(grades[None], scores[None], k=k))
        rank = 1 + int((scores[~relevant] >= scores[relevant].max()).sum())
        mrr.append(1 / rank if rank <= k else 0.0)
        precision.append(average_precision_score(relevant, scores))
    found = {f"ndcg@{k}": float(np.mean(ndcg)), f"mrr@{k}": float(np.mean(mrr)), "map": float(np.mean(precision))}
    return found if len(kept) == len(lists) else {**found, "lists_excluded": float(len(lists) - len(kept))}


def class_ids(labels: Sequence[object]) -> NDArray[np.int64]:
    """Labels of any kind as 0, 1, 2, ...; E501 unless there are two classes."""
    names = {name: i for i, name in enumerate(dict.fromkeys(labels))}
    if len(names) < 2:
        raise EmbedlossError("E501", f"these metrics need at least two classes; found {len(names)} in {len(labels)} rows.")
    return np.array([names[label] for label in labels])


def split(classes: NDArray[np.int64], seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Half of the rows of each class to learn from, half to test on; a class with one row is learnt from only."""
    rng = np.random.default_rng(seed)
    train: list[int] = []
    test: list[int] = []
    for one in np.unique(classes):
        rows = rng.permutation(np.nonzero(classes == one)[0])
        half = (len(rows) + 1) // 2
        train += rows[:half].tolist()
        test += rows[half:].tolist()
    if not test:
        raise EmbedlossError("E501", "every class has a single row, so nothing is left to test on.")
    return np.array(sorted(train)), np.array(sorted(test))


def probe_accuracy(features: Floats, labels: Sequence[object], seed: int = 0) -> float:
    """Accuracy of a logistic regression learnt on half of the rows and tested on the other."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    classes = class_ids(labels)
    train, test = split(classes, seed)
    # Standardised features make the regularisation mean the same for every encoder.
    scaler = StandardScaler().fit(features[train])
    probe = LogisticRegression(C=0.05, max_iter=300, random_state=seed).fit(scaler.transform(features[train]), classes[train])
    return float(probe.score(scaler.transform(features[test]), classes[test]))


def class_metrics(embeddings: Floats, labels: Sequence[object], seed: int = 0, neighbours: int = 5) -> dict[str, float]:
    """How well embeddings tell classes apart: accuracy of nearest neighbours (cosine) and of a linear probe, both learnt on
    half of the rows and tested on the other, and the V-measure of k-means on all rows.
    """
    from sklearn.cluster import KMeans
    from sklearn.metrics import v_measure_score
    from sklearn.neighbors import KNeighborsClassifier

    classes = class_ids(labels)
    train, test = split(classes, seed)
    units = unit(embeddings)
    nearest = KNeighborsClassifier(min(neighbours, len(train))).fit(units[train], classes[train])
    clusters = KMeans(len(np.unique(classes)), n_init=1, random_state=seed).fit_predict(units)
    return {
        "knn_accuracy": float(nearest.score(units[test], classes[test])),
        "probe_accuracy": probe_accuracy(embeddings, labels, seed),
        "v_measure": float(v_measure_score(classes, clusters)),
    }


def teacher_metrics(student: Floats, teacher: Floats, seed: int = 0, pairs: int = 10_000) -> dict[str, float]:
    """Closeness to a teacher's vectors: mean squared error over all numbers and mean cosine, where the sizes are equal, and
    Spearman's correlation of the cosines of random pairs of texts, which needs no equal sizes.
    """
    student, teacher = np.asarray(student, dtype=np.float64), np.asarray(teacher, dtype=np.float64)
    found: dict[str, float] = {}
    if student.shape == teacher.shape:
        found["mse"] = float(((student - teacher) ** 2).mean())
        found["cosine"] = float(pairwise_similarity("cosine", student, teacher).mean())
    n = len(student)
    if n > 2:
        rng = np.random.default_rng(seed)
        first = rng.integers(0, n, pairs)
        second = (first + rng.integers(1, n, pairs)) % n
        gold = pairwise_similarity("cosine", teacher[first], teacher[second])
        if np.ptp(gold) > 0:
            predicted = pairwise_similarity("cosine", student[first], student[second])
            found["pairs_spearman"] = correlations(predicted, gold)["spearman"]
    return found


def translation_metrics(
    source: Floats, target: Floats, source_texts: Sequence[str], target_texts: Sequence[str]
) -> dict[str, float]:
    """How often the nearest target of a source (cosine) is its own, the reverse, and the mean of both."""
    from embedloss.evaluation.search import exact_search

    def share(x: Floats, y: Floats, texts: Sequence[str]) -> float:
        nearest = exact_search(x, y, 1, "cosine")[0][:, 0]
        return float(np.mean([texts[i] == texts[j] for i, j in enumerate(nearest)]))

    forth, back = share(source, target, target_texts), share(target, source, source_texts)
    return {"src2trg_accuracy": forth, "trg2src_accuracy": back, "mean_accuracy": (forth + back) / 2}
