"""Evaluation: `evaluate` measures what the format of the data allows, `retrieval` a search over a corpus."""

from embedloss.evaluation.baselines import RandomEncoder, baselines, list_baselines
from embedloss.evaluation.embed import PRECISIONS, similarity_of
from embedloss.evaluation.evaluators import SIMILARITIES, check_metric, evaluate, metric_names, primary_metric, why_nothing
from embedloss.evaluation.lexical import BM25, bm25_scores
from embedloss.evaluation.retrieval import RetrievalData, is_collection, load_collection, retrieval
from embedloss.evaluation.search import exact_search, ranking_metrics

__all__ = [
    "BM25",
    "PRECISIONS",
    "SIMILARITIES",
    "RandomEncoder",
    "RetrievalData",
    "baselines",
    "bm25_scores",
    "check_metric",
    "evaluate",
    "exact_search",
    "is_collection",
    "list_baselines",
    "load_collection",
    "metric_names",
    "primary_metric",
    "ranking_metrics",
    "retrieval",
    "similarity_of",
    "why_nothing",
]
