"""embedloss plugin: contrastive losses and contrastive tension."""

from embedloss.lazy import exports

__all__ = ["ContrastiveLoss", "ContrastiveTensionLoss", "ContrastiveTensionLossInBatchNegatives", "OnlineContrastiveLoss"]
__getattr__ = exports("embedloss_contrastive.losses", __all__)
