"""embedloss plugin: contrastive losses and contrastive tension."""
