"""embedloss plugin: triplet losses: given triplets and mined in the batch."""
