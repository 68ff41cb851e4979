"""embedloss plugin: denoising auto-encoder (TSDAE)."""
