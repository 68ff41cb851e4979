"""embedloss plugin: distillation losses: embeddings, scores, margins, distributions."""

from embedloss.lazy import exports

__all__ = ["DistillKLDivLoss", "EmbedDistillLoss", "MSELoss", "MarginMSELoss", "ScoreMSELoss"]
__getattr__ = exports("embedloss_distillation.losses", __all__)
