"""embedloss plugin: regularisers of the embedding space."""
