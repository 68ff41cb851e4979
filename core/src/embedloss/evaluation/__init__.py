"""Evaluation: `evaluate` measures what the format of the data allows, `retrieval` a search over a corpus."""

from embedloss.evaluation.evaluators import evaluate, primary_metric, why_nothing
from embedloss.evaluation.search import exact_search, ranking_metrics, retrieval

__all__ = ["evaluate", "exact_search", "primary_metric", "ranking_metrics", "retrieval", "why_nothing"]
