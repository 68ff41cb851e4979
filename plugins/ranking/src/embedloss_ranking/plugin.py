"""The specs of this family. Imports no torch."""

from __future__ import annotations

from embedloss import LossSpec, hookimpl

RANKING_FORMATS = ("pairs", "triplets", "n-tuples")

MULTIPLE_NEGATIVES_RANKING = LossSpec(
    name="multiple-negatives-ranking",
    aliases=("mnrl", "infonce", "in-batch-negatives", "simcse"),
    target="embedloss_ranking.losses:MultipleNegativesRankingLoss",
    field_name="MultipleNegativesRankingLoss",
    summary="score the positive above every other document of the batch (InfoNCE)",
    family="ranking",
    formats=RANKING_FORMATS,
    scope="batch",
    sampler="no-duplicates",
    citation="van den Oord et al. 2018, Representation Learning with Contrastive Predictive Coding, 1807.03748; "
    "Henderson et al. 2017, Efficient Natural Language Response Suggestion for Smart Reply, 1705.00652",
)

SPECS: list[LossSpec] = [MULTIPLE_NEGATIVES_RANKING]


@hookimpl
def embedloss_register_losses() -> list[LossSpec]:
    """The losses of this distribution."""
    return SPECS
