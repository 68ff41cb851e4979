"""Evaluation: `evaluate` measures what the format of the data allows, `retrieval` a search over a corpus."""

from embedloss.evaluation.baselines import bm25_scores, list_baselines
from embedloss.evaluation.evaluators import evaluate, primary_metric, why_nothing
from embedloss.evaluation.search import exact_search, ranking_metrics, retrieval

__all__ = [
    "bm25_scores",
    "evaluate",
    "exact_search",
    "list_baselines",
    "primary_metric",
    "ranking_metrics",
    "retrieval",
    "why_nothing",
]
