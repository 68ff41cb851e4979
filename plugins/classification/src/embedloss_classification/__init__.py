"""embedloss plugin: classification losses: softmax, binary cross-entropy, cross-entropy."""
