"""embedloss plugin: triplet losses: given triplets and mined in the batch."""

from embedloss.lazy import exports

__all__ = [
    "BatchAllTripletLoss",
    "BatchHardSoftMarginTripletLoss",
    "BatchHardTripletLoss",
    "BatchSemiHardTripletLoss",
    "TripletLoss",
]
__getattr__ = exports("embedloss_triplet.losses", __all__)
