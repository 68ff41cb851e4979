"""embedloss plugin: losses on similarity scores: cosine, CoSENT, AnglE."""
