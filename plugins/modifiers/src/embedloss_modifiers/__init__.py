"""embedloss plugin: Matryoshka and adaptive-layer training round any loss."""
