"""embedloss plugin: denoising auto-encoder (TSDAE)."""

from embedloss.lazy import exports

__all__ = ["DenoisingAutoEncoderLoss"]
__getattr__ = exports("embedloss_reconstruction.losses", __all__)
