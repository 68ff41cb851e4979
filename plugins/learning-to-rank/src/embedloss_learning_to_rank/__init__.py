"""embedloss plugin: listwise and pairwise learning-to-rank losses."""

from embedloss.lazy import exports

__all__ = [
    "ADRMSELoss",
    "LambdaLoss",
    "ListMLELoss",
    "ListNetLoss",
    "PListMLELambdaWeight",
    "PListMLELoss",
    "RankNetLoss",
]
__getattr__ = exports("embedloss_learning_to_rank.losses", __all__)
