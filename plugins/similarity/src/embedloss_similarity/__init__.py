"""embedloss plugin: losses on similarity scores: cosine, CoSENT, AnglE."""

from embedloss.lazy import exports

__all__ = ["AnglELoss", "CoSENTLoss", "CosineSimilarityLoss"]
__getattr__ = exports("embedloss_similarity.losses", __all__)
