"""One evaluator a data format, and `evaluate`, which picks it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedloss.errors import EmbedlossError
from embedloss.evaluation.embed import Columns, CrossScorer, VectorScorer, similarity_of
from embedloss.evaluation.metrics import (
    Floats,
    binary_metrics,
    class_ids,
    class_metrics,
    correlations,
    kendall,
    probe_accuracy,
    reranking_metrics,
    teacher_metrics,
    translation_metrics,
)
from embedloss.evaluation.search import exact_search, ranking_metrics
from embedloss.formats import DataFormat, get_format

logger = logging.getLogger(__name__)

SIMILARITIES = ("cosine", "dot", "euclidean", "manhattan")
# Rows that a linear probe or a clustering sees; drawn by seed from larger data.
PROBE_ROWS = 10_000


@dataclass
class Job:
    """What an evaluator works on: rows of one format, and scores or vectors of their texts."""

    rows: Sequence[Mapping[str, Any]]
    format: DataFormat
    scorer: VectorScorer | CrossScorer
    similarity: str
    ks: tuple[int, ...] = (10,)
    seed: int = 0
    loss: Any = None
    labels: list[Any] = field(default_factory=list)
    truncated: bool = False

    @property
    def cross(self) -> bool:
        """Whether the scores come from a cross-encoder."""
        return isinstance(self.scorer, CrossScorer)

    @property
    def vectors(self) -> dict[str, Floats]:
        """Role -> embeddings."""
        assert isinstance(self.scorer, VectorScorer)
        return self.scorer.vectors

    def named(self, metrics: Mapping[str, float], similarity: str) -> dict[str, float]:
        """Metrics with the similarity in their names; a cross-encoder has none."""
        return dict(metrics) if self.cross else {f"{name}_{similarity}": value for name, value in metrics.items()}

    def by_row(self, values: NDArray[Any], role: str) -> list[NDArray[Any]]:
        """One value a text -> one array a row."""
        counts = np.bincount(self.scorer.columns.rows[role], minlength=len(self.rows))
        return np.split(values, np.cumsum(counts)[:-1])


def of_pairs(job: Job) -> dict[str, float]:
    """Search every anchor among all distinct positives; relevant are all positives of the same anchor text."""
    anchors, positives = job.scorer.columns.texts["anchor"], job.scorer.columns.texts["positive"]
    first_anchor, first_positive = _first(anchors), _first(positives)
    places = {positives[i]: n for n, i in enumerate(first_positive)}
    relevant: dict[str, dict[int, int]] = {anchors[i]: {} for i in first_anchor}
    for anchor, positive in zip(anchors, positives, strict=True):
        relevant[anchor][places[positive]] = 1
    queries, corpus = job.vectors["anchor"][first_anchor], job.vectors["positive"][first_positive]
    ranked, _ = exact_search(queries, corpus, max(100, *job.ks), job.similarity)
    found = ranking_metrics(ranked.tolist(), list(relevant.values()), job.ks)
    return {**found, "queries": float(len(queries)), "documents": float(len(corpus))}


def of_tuples(job: Job) -> dict[str, float]:
    """How often the positive beats a negative, and of several negatives all."""
    query = job.format.roles[0]
    positive = job.scorer.pairs(job.similarity, query, "positive")
    negative = job.scorer.pairs(job.similarity, query, "negative")
    rows = job.scorer.columns.rows["negative"]
    if not len(rows):
        raise EmbedlossError("E501", "no row has a negative.")
    won = positive[rows] > negative
    found = {"accuracy": float(won.mean())}
    if len(rows) != len(job.rows):
        found["accuracy_all"] = float(np.mean([part.all() for part in job.by_row(won, "negative") if len(part)]))
    return job.named(found, job.similarity)


def of_scores(job: Job) -> dict[str, float]:
    """Correlations of similarity and gold score, for every similarity."""
    found: dict[str, float] = {}
    for name in [""] if job.cross else SIMILARITIES:
        found |= job.named(correlations(job.scorer.pairs(name, "first", "second"), np.array(job.labels, dtype=float)), name)
    return found


def of_binary(job: Job) -> dict[str, float]:
    """Best accuracy and F1 with their thresholds, and average precision."""
    found = binary_metrics(job.scorer.pairs(job.similarity, "first", "second"), np.array(job.labels).astype(int))
    if not job.cross and job.similarity in ("euclidean", "manhattan"):  # thresholds are those of the distance
        found = {name: -value if name.endswith("threshold") else value for name, value in found.items()}
    return job.named(found, job.similarity)


def of_classes(job: Job) -> dict[str, float]:
    """Nearest neighbours, linear probe and clusters."""
    keep = _sample(len(job.rows), job.seed)
    return class_metrics(job.vectors["text"][keep], [job.labels[i] for i in keep], job.seed)


def of_pair_classes(job: Job) -> dict[str, float]:
    """Linear probe on both embeddings and their difference; the loss's own accuracy; a cross-encoder's."""
    if isinstance(job.scorer, CrossScorer):
        from sklearn.metrics import f1_score

        logits = job.scorer.predict("first", "second")
        if logits.ndim == 1:
            raise EmbedlossError("E501", "the cross-encoder gives one score a pair; classes need one logit each.")
        truth, predicted = np.array(job.labels).astype(int), logits.argmax(1)
        return {"accuracy": float((truth == predicted).mean()), "f1_macro": float(f1_score(truth, predicted, average="macro"))}
    u, v = job.vectors["first"], job.vectors["second"]
    keep = _sample(len(job.rows), job.seed)
    features = np.concatenate([u, v, np.abs(u - v)], axis=1)[keep]
    found = {"probe_accuracy": probe_accuracy(features, [job.labels[i] for i in keep], job.seed)}
    if job.loss is not None and all(isinstance(label, (int, np.integer)) for label in job.labels):
        found |= loss_accuracy(job.loss, u, v, np.array(job.labels))
    return found


def loss_accuracy(loss: Any, first: Floats, second: Floats, labels: NDArray[np.int64], step: int = 1024) -> dict[str, float]:
    """Accuracy that a loss with a classifier of its own reports as a metric; empty for other losses."""
    import torch

    from embedloss.embeddings import Embeddings

    device = next((p.device for p in loss.parameters()), torch.device("cpu")) if hasattr(loss, "parameters") else "cpu"
    training = getattr(loss, "training", False)
    right = 0.0
    try:
        if training:
            loss.eval()
        with torch.no_grad():
            for begin in range(0, len(labels), step):
                part = slice(begin, begin + step)
                pair = {"first": torch.from_numpy(first[part]).to(device), "second": torch.from_numpy(second[part]).to(device)}
                metrics = loss(Embeddings.of(**pair), torch.from_numpy(labels[part]).to(device)).metrics
                if "accuracy" not in metrics:
                    return {}
                right += float(metrics["accuracy"]) * len(labels[part])
    finally:
        if training:
            loss.train()
    return {"accuracy": right / len(labels)}


def of_embeddings(job: Job) -> dict[str, float]:
    """Closeness to the teacher; for rows of two texts also how well one finds the other."""
    role = job.format.roles[0]
    rows, student = job.scorer.columns.rows[role], job.vectors[role]
    teacher = []
    for row, label in enumerate(job.labels):
        vectors = np.atleast_2d(np.asarray(label, dtype=np.float32))
        count = int((rows == row).sum()) if role == "texts" else 1
        if len(vectors) not in (1, count):
            raise EmbedlossError("E501", f"row {row + 1} has {count} texts and {len(vectors)} teacher vectors.")
        teacher.append(np.repeat(vectors, count, axis=0) if len(vectors) == 1 else vectors)
    wanted = np.concatenate(teacher)
    if job.truncated:
        wanted = wanted[:, : student.shape[1]]
    found = teacher_metrics(student, wanted, job.seed)
    if role == "texts" and (np.bincount(rows, minlength=len(job.rows)) == 2).all():
        texts = job.scorer.columns.texts[role]
        found |= translation_metrics(student[::2], student[1::2], texts[::2], texts[1::2])
    return found


def of_margins(job: Job) -> dict[str, float]:
    """Kendall's tau of the margins with the teacher's."""
    positive = job.scorer.pairs(job.similarity, "query", "positive")
    negative = job.scorer.pairs(job.similarity, "query", "negative")
    teacher = np.concatenate([np.atleast_1d(np.asarray(label, dtype=float)) for label in job.labels])
    if len(teacher) != len(negative):
        raise EmbedlossError("E501", f"there are {len(negative)} negatives and {len(teacher)} teacher margins.")
    tau = kendall(positive[job.scorer.columns.rows["negative"]] - negative, teacher)
    if tau is None:
        raise EmbedlossError("E501", "all teacher margins are equal, so there is nothing to compare with.")
    return {**job.named({"kendall": tau}, job.similarity), **of_tuples(job)}


def of_candidate_scores(job: Job) -> dict[str, float]:
    """Kendall's tau with the teacher's scores within each row, mean over the rows."""
    positive = job.by_row(job.scorer.pairs(job.similarity, "query", "positive"), "positive")
    negative = job.by_row(job.scorer.pairs(job.similarity, "query", "negative"), "negative")
    taus = []
    for row, (p, n, label) in enumerate(zip(positive, negative, job.labels, strict=True)):
        if len(p) + len(n) != len(label):
            raise EmbedlossError("E501", f"row {row + 1} has {len(p) + len(n)} documents and {len(label)} teacher scores.")
        taus.append(kendall(np.concatenate([p, n]), np.asarray(label, dtype=float)))
    known = [tau for tau in taus if tau is not None]
    if not known:
        raise EmbedlossError("E501", "no row has different teacher scores, so there is nothing to compare with.")
    return {**job.named({"kendall": float(np.mean(known))}, job.similarity), **of_tuples(job)}


def of_lists(job: Job) -> dict[str, float]:
    """nDCG, MRR and MAP of reranking the documents given."""
    scores = job.by_row(job.scorer.pairs(job.similarity, "query", "docs"), "docs")
    grades = [np.asarray(label, dtype=float) for label in job.labels]
    for row, (s, g) in enumerate(zip(scores, grades, strict=True)):
        if len(s) != len(g):
            raise EmbedlossError("E501", f"row {row + 1} has {len(s)} documents and {len(g)} grades.")
    found: dict[str, float] = {}
    for k in job.ks:
        found |= reranking_metrics(list(zip(scores, grades, strict=True)), k)
    return found


@dataclass(frozen=True)
class Evaluator:
    """How a format is evaluated, its most telling metric, and whether it needs vectors rather than scores of pairs."""

    function: Callable[[Job], dict[str, float]]
    primary: str
    vectors: bool = False


EVALUATORS: dict[str, Evaluator] = {
    "pairs": Evaluator(of_pairs, "ndcg@10", vectors=True),
    "triplets": Evaluator(of_tuples, "accuracy_{}"),
    "n-tuples": Evaluator(of_tuples, "accuracy_{}"),
    "pairs+score": Evaluator(of_scores, "spearman_{}"),
    "pairs+binary": Evaluator(of_binary, "ap_{}"),
    "pairs+class": Evaluator(of_pair_classes, "probe_accuracy"),
    "single+class": Evaluator(of_classes, "probe_accuracy", vectors=True),
    "text+embedding": Evaluator(of_embeddings, "pairs_spearman", vectors=True),
    "texts+embedding": Evaluator(of_embeddings, "pairs_spearman", vectors=True),
    "triplets+margin": Evaluator(of_margins, "kendall_{}"),
    "n-tuples+margins": Evaluator(of_margins, "kendall_{}"),
    "n-tuples+scores": Evaluator(of_candidate_scores, "kendall_{}"),
    "listwise": Evaluator(of_lists, "ndcg@10"),
}


def primary_metric(format_name: str, similarity: str = "cosine", kind: str = "bi-encoder") -> str | None:
    """The metric to select checkpoints by, the higher the better; None where the format has none."""
    evaluator = EVALUATORS.get(get_format(format_name).name)
    if evaluator is None or why_nothing(format_name, kind):
        return None
    if kind == "cross-encoder":
        return "accuracy" if format_name == "pairs+class" else evaluator.primary.removesuffix("_{}")
    return evaluator.primary.format(similarity)


def why_nothing(format_name: str, kind: str = "bi-encoder") -> str:
    """Why `evaluate` measures nothing on this format with this kind of encoder; empty where it measures something."""
    name = get_format(format_name).name
    if name not in EVALUATORS:
        return f"'{name}' has neither labels nor texts that belong together, so there is nothing to compare embeddings with."
    if kind == "cross-encoder" and EVALUATORS[name].vectors:
        return f"'{name}' needs embeddings of single texts, which a cross-encoder does not give."
    return ""


def evaluate(
    encoder: Any,
    rows: Iterable[Mapping[str, Any]],
    format: Any,
    *,
    prompts: Mapping[str, str] | None = None,
    similarity: str | None = None,
    truncate_dim: int | None = None,
    dims: Sequence[int] | None = None,
    ks: Sequence[int] = (10,),
    loss: Any = None,
    seed: int = 0,
    chunk_tokens: int | None = None,
) -> dict[str, float]:
    """Measure an encoder on labelled rows; the format says what can be measured.

    Args:
        encoder: a bi-encoder or cross-encoder, or anything with their `encode` or `predict`.
        rows: a list or data set of role -> text (or list of texts), with "label" where the format has one.
        format: a data format, its name, or a binding of columns.
        prompts: role -> text put before every text of that role.
        similarity: cosine, dot, euclidean or manhattan, instead of the encoder's own.
        truncate_dim: keep the first components of the embeddings only.
        dims: measure at several such sizes; their metrics are named "64/...", beside those of the whole embedding.
        ks: cuts of the ranking metrics.
        loss: for pairs with classes, a loss with a classifier, whose accuracy is measured as well.
        seed: of the splits, clusters and samples.
        chunk_tokens: tokens of a chunk of `encode`.

    Returns:
        Metric -> value; empty where the format gives nothing to measure (`why_nothing` says why).

    Raises:
        EmbedlossError: E501 if the rows are empty, or the labels allow no measurement.
    """
    found = format if isinstance(format, (str, DataFormat)) else format.format
    fmt = found if isinstance(found, DataFormat) else get_format(str(found))
    kind = str(getattr(encoder, "kind", "bi-encoder"))
    if reason := why_nothing(fmt.name, kind):
        logger.warning("nothing is measured: %s", reason)
        return {}
    table = list(rows)
    if not table:
        raise EmbedlossError("E501", "the data set has no rows.")
    labels: list[Any] = []
    if fmt.label:
        bare = [i for i, row in enumerate(table) if row.get("label") is None]
        if bare:
            raise EmbedlossError("E501", f"row {bare[0] + 1} has no 'label', which '{fmt.name}' needs.")
        labels = [row["label"] for row in table]
        if fmt.label == "class":
            class_ids(labels)
    columns = Columns(table, fmt.roles)
    options = {"chunk_tokens": chunk_tokens} if chunk_tokens else {}
    make = CrossScorer if kind == "cross-encoder" else VectorScorer
    scorer = make(encoder, columns, prompts or {}, options)
    metrics: dict[str, float] = {}
    for size in (truncate_dim, *(dims or ())):
        view = scorer.truncated(size) if isinstance(scorer, VectorScorer) else scorer
        job = Job(table, fmt, view, similarity_of(encoder, similarity), tuple(ks), seed, loss, labels, size is not None)
        if job.truncated and not job.cross:
            job.loss = None  # a classifier takes whole embeddings
        prefix = f"{size}/" if dims and size is not None and size != truncate_dim else ""
        metrics |= {f"{prefix}{name}": value for name, value in EVALUATORS[fmt.name].function(job).items()}
        if isinstance(scorer, CrossScorer):
            break
    return metrics


def _first(texts: Sequence[str]) -> list[int]:
    """Where each distinct text is first."""
    found: dict[str, int] = {}
    for i, text in enumerate(texts):
        found.setdefault(text, i)
    return list(found.values())


def _sample(count: int, seed: int) -> NDArray[np.int64]:
    """All rows, or `PROBE_ROWS` of them drawn by seed."""
    if count <= PROBE_ROWS:
        return np.arange(count)
    return np.sort(np.random.default_rng(seed).choice(count, PROBE_ROWS, replace=False))
