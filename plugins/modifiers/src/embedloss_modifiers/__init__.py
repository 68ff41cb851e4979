"""embedloss plugin: Matryoshka and adaptive-layer training round any loss."""

from embedloss.lazy import exports

__all__ = ["AdaptiveLayerLoss", "Matryoshka2dLoss", "MatryoshkaLoss"]
__getattr__ = exports("embedloss_modifiers.losses", __all__)
