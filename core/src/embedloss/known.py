"""Names of losses that first-party and listed distributions provide, so that an unknown name can say what to install.

A test keeps this equal to the specs of the first-party plugins.
"""

from __future__ import annotations

KNOWN: dict[str, tuple[str, ...]] = {
    "embedloss-triplet": (
        "batch-all-triplet",
        "batch-hard-triplet",
        "batch-hard-soft-margin-triplet",
        "batch-semi-hard-triplet",
        "triplet",
    ),
    "embedloss-contrastive": (
        "contrastive",
        "online-contrastive",
        "contrastive-tension",
        "contrastive-tension-in-batch-negatives",
    ),
    "embedloss-similarity": ("cosine-similarity", "cosent", "angle"),
    "embedloss-classification": ("softmax", "binary-cross-entropy", "cross-entropy"),
    "embedloss-reconstruction": ("denoising-auto-encoder",),
    "embedloss-ranking": (
        "multiple-negatives-ranking",
        "cached-multiple-negatives-ranking",
        "multiple-negatives-symmetric-ranking",
        "cached-multiple-negatives-symmetric-ranking",
        "cross-multiple-negatives-ranking",
        "cached-cross-multiple-negatives-ranking",
        "gist-embed",
        "cached-gist-embed",
        "mega-batch-margin",
    ),
    "embedloss-distillation": ("embed-distill", "mse", "score-mse", "margin-mse", "distill-kl-div"),
    "embedloss-learning-to-rank": ("lambda-loss", "list-mle", "plist-mle", "list-net", "rank-net", "adr-mse"),
    "embedloss-regularization": ("global-orthogonal-regularization",),
    "embedloss-modifiers": ("matryoshka", "adaptive-layer", "matryoshka-2d"),
}

# Short names that people type before they know which distribution has them.
KNOWN_ALIASES: dict[str, str] = {
    "mnrl": "multiple-negatives-ranking",
    "infonce": "multiple-negatives-ranking",
    "gist": "gist-embed",
    "gor": "global-orthogonal-regularization",
    "tsdae": "denoising-auto-encoder",
    "ct": "contrastive-tension",
    "mrl": "matryoshka",
    "2dmse": "matryoshka-2d",
    "bce": "binary-cross-entropy",
    "listnet": "list-net",
    "listmle": "list-mle",
    "lambdaloss": "lambda-loss",
    "ranknet": "rank-net",
}


def distribution_of(name: str) -> str | None:
    """The distribution that provides a loss of that (normalised) name, or None."""
    canonical = KNOWN_ALIASES.get(name, name)
    return next((dist for dist, names in KNOWN.items() if canonical in names), None)
