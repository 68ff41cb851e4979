"""One evaluator a data format, and `evaluate`, which picks it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedloss.errors import EmbedlossError
from embedloss.evaluation.embed import Columns, CrossScorer, VectorScorer, similarity_of, views
from embedloss.evaluation.lexical import LexicalScorer
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
from embedloss.evaluation.search import check_cuts, ranking_metrics
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
    scorer: VectorScorer | CrossScorer | LexicalScorer
    similarity: str
    ks: tuple[int, ...] = (10,)
    seed: int = 0
    loss: Any = None
    labels: list[Any] = field(default_factory=list)
    truncated: bool = False
    strict: bool = False

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
    assert not isinstance(job.scorer, CrossScorer)
    if job.strict:
        check_cuts(job.ks, len(first_positive))
    ranked = job.scorer.search(job.similarity, "anchor", "positive", max(100, *job.ks), (first_anchor, first_positive))
    found = ranking_metrics(ranked, list(relevant.values()), job.ks)
    return {**found, "queries": float(len(first_anchor)), "documents": float(len(first_positive))}


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
    names = SIMILARITIES if isinstance(job.scorer, VectorScorer) else [job.similarity]
    for name in names:
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
    """How a format is evaluated, its most telling metric, what else it may give, and what it needs.

    "{}" stands for the similarity, "{k}" for every cut. `needs` is "vectors" of single texts, a "search" among texts, or
    "scores" of pairs; a cross-encoder gives only scores, BM25 scores and searches.
    """

    function: Callable[[Job], dict[str, float]]
    primary: str
    others: str = ""
    needs: str = "scores"


_RANKING = "mrr@{k} recall@{k} map@100 ndcg@{k}"
_TEACHER = "mse cosine src2trg_accuracy trg2src_accuracy mean_accuracy"
_TUPLES = "accuracy_{} accuracy_all_{}"
_BINARY = "accuracy_{} accuracy_threshold_{} f1_{} f1_threshold_{} precision_{} recall_{} mcc_{}"
EVALUATORS: dict[str, Evaluator] = {
    "pairs": Evaluator(of_pairs, "ndcg@10", _RANKING, "search"),
    "triplets": Evaluator(of_tuples, "accuracy_{}"),
    "n-tuples": Evaluator(of_tuples, "accuracy_{}", "accuracy_all_{}"),
    "pairs+score": Evaluator(of_scores, "spearman_{}", "spearman_* pearson_*"),
    "pairs+binary": Evaluator(of_binary, "ap_{}", _BINARY),
    "pairs+class": Evaluator(of_pair_classes, "probe_accuracy", "accuracy f1_macro"),
    "single+class": Evaluator(of_classes, "probe_accuracy", "knn_accuracy v_measure", "vectors"),
    "text+embedding": Evaluator(of_embeddings, "pairs_spearman", "mse cosine", "vectors"),
    "texts+embedding": Evaluator(of_embeddings, "pairs_spearman", _TEACHER, "vectors"),
    "triplets+margin": Evaluator(of_margins, "kendall_{}", _TUPLES),
    "n-tuples+margins": Evaluator(of_margins, "kendall_{}", _TUPLES),
    "n-tuples+scores": Evaluator(of_candidate_scores, "kendall_{}", _TUPLES),
    "listwise": Evaluator(of_lists, "ndcg@10", "ndcg@{k} mrr@{k} map"),
}
_SCORERS: dict[str, Any] = {"bi-encoder": VectorScorer, "cross-encoder": CrossScorer, "bm25": LexicalScorer}
LOWER_IS_BETTER = ("mse",)


def metric_names(
    format_name: str, *, similarity: str = "cosine", kind: str = "bi-encoder", ks: Sequence[int] = (10,)
) -> list[str]:
    """The metrics that `evaluate` may give for a format, the most telling first; empty where it measures nothing."""
    if why_nothing(format_name, kind):
        return []
    evaluator = EVALUATORS[get_format(format_name).name]
    names: list[str] = []
    for pattern in (evaluator.primary, *evaluator.others.split()):
        cuts = [pattern.replace("{k}", str(k)) for k in ks] if "{k}" in pattern else [pattern]
        for name in cuts:
            if kind == "cross-encoder":
                names.append(name.removesuffix("_{}").removesuffix("_*"))
            elif name.endswith("_*"):
                names += [f"{name[:-1]}{each}" for each in dict.fromkeys((similarity, *SIMILARITIES))]
            else:
                names.append(name.replace("{}", similarity))
    if kind == "cross-encoder" and get_format(format_name).name == "pairs+class":
        names.remove("probe_accuracy")
    return list(dict.fromkeys(names))


def check_metric(name: str, names: Sequence[str], what: str) -> None:
    """E501 for a metric that does not fit."""
    if name not in names:
        raise EmbedlossError("E501", f"'{name}' is not measured on {what}. Measured are: {', '.join(names) or 'none'}.")


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
    needs = EVALUATORS[name].needs
    if kind == "cross-encoder" and needs != "scores":
        return f"'{name}' needs embeddings of single texts, which a cross-encoder does not give."
    if kind == "bm25" and (needs == "vectors" or name == "pairs+class"):
        return f"'{name}' needs embeddings of single texts, which BM25 does not give."
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
    layers: Sequence[int] | None = None,
    precisions: Sequence[str] = ("float32",),
    ks: Sequence[int] | None = None,
    loss: Any = None,
    seed: int = 0,
    chunk_tokens: int | None = None,
    show_progress: bool | str = False,
) -> dict[str, float]:
    """Measure an encoder on labelled rows; the format says what can be measured.

    Args:
        encoder: a bi-encoder or cross-encoder, anything with their `encode` or `predict`, or a baseline such as `BM25()`.
        rows: a list or data set of role -> text (or list of texts), with "label" where the format has one.
        format: a data format, its name, or a binding of columns.
        prompts: role -> text put before every text of that role.
        similarity: cosine, dot, euclidean or manhattan, instead of the encoder's own.
        truncate_dim: keep the first components of the embeddings only.
        dims: measure at several such sizes; their metrics are named "64/...", beside those of the whole embedding.
        layers: measure these layers of a transformer as well, 0 being its word embeddings: "layer2/...", "layer2/64/...".
        precisions: measure quantised embeddings as well, "int8" or "binary" (see `quantised`): "int8/...", "64/int8/...".
        ks: cuts of the ranking metrics; None is 10. Cuts that are named may not exceed the documents.
        loss: for pairs with classes, a loss with a classifier, whose accuracy is measured as well.
        seed: of the splits, clusters and samples.
        chunk_tokens: tokens of a chunk of `encode`.
        show_progress: a progress bar on stderr; a text is its name.

    Returns:
        Metric -> value; empty where the format gives nothing to measure (`why_nothing` says why).

    Raises:
        EmbedlossError: E501 if the rows are empty, or the labels allow no measurement.
    """
    given = format if isinstance(format, (str, DataFormat)) else format.format
    fmt = given if isinstance(given, DataFormat) else get_format(str(given))
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
    options: dict[str, Any] = {"chunk_tokens": chunk_tokens} if chunk_tokens else {}
    if show_progress:
        options["show_progress"] = show_progress
    wanted = views(encoder, dims, layers, precisions)
    if kind == "bi-encoder":
        scorer: Any = VectorScorer(encoder, columns, prompts or {}, options, layers or ())
    else:
        scorer = _SCORERS[kind](encoder, columns, prompts or {}, options)
    name = similarity_of(encoder, similarity)
    metrics: dict[str, float] = {}
    for view in wanted:
        seen = scorer.view(view, truncate_dim) if isinstance(scorer, VectorScorer) else scorer
        truncated = bool(view.dim or truncate_dim)
        job = Job(table, fmt, seen, name, tuple(ks or (10,)), seed, loss, labels, truncated, ks is not None)
        if view.name or job.truncated:
            job.loss = None  # a classifier takes whole embeddings
        found = EVALUATORS[fmt.name].function(job)
        if view.precision != "float32":
            found.pop("mse", None)  # codes are on a scale of their own
        metrics |= {f"{view.name}/{key}" if view.name else key: value for key, value in found.items()}
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
