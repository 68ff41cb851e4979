"""embedloss plugin: listwise and pairwise learning-to-rank losses."""
