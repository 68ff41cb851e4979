"""embedloss plugin: distillation losses: embeddings, scores, margins, distributions."""
