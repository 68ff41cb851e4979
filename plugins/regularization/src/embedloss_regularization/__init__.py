"""embedloss plugin: regularisers of the embedding space."""

from embedloss.lazy import exports

__all__ = ["GlobalOrthogonalRegularizationLoss"]
__getattr__ = exports("embedloss_regularization.losses", __all__)
