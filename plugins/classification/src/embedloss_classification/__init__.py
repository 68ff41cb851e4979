"""embedloss plugin: classification losses: softmax, binary cross-entropy, cross-entropy."""

from embedloss.lazy import exports

__all__ = ["BinaryCrossEntropyLoss", "CrossEntropyLoss", "SoftmaxLoss"]
__getattr__ = exports("embedloss_classification.losses", __all__)
