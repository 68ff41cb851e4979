"""Upload of a finished run through huggingface_hub: checked before training, sent after it."""

from __future__ import annotations

from pathlib import Path

from embedloss.encoders.folder import one_line
from embedloss.errors import EmbedlossError

# What only the machine of the run needs; the run's settings and its log go along.
LEFT_OUT = ["checkpoint-*", "checkpoint-*/**", "nonfinite-step-*/**", "*/optimizer.pt", "training_args.bin", "tensorboard/**",
            "before.json", ".saving/**"]  # fmt: skip


def check_hub(name: str) -> None:
    """E401 for a name that is no hub id; E404 where nothing can be uploaded: offline, or without a token."""
    from huggingface_hub import constants, get_token
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as exception:
        raise EmbedlossError(
            "E401", f"'{name}' is no hub id ({one_line(exception)}). Type --push-to-hub owner/name."
        ) from exception
    if constants.HF_HUB_OFFLINE:
        raise EmbedlossError("E404", "the hub is switched off by HF_HUB_OFFLINE; unset it, or leave out --push-to-hub.")
    if get_token() is None:
        raise EmbedlossError("E404", "uploading needs a token of the hub: type hf auth login, or set HF_TOKEN.")


def upload(folder: str | Path, name: str, *, private: bool = False) -> str:
    """Upload a run folder without its checkpoints.

    Args:
        folder: of a finished run.
        name: hub id; the repository is made if it is not there.
        private: make it private when it is made.

    Returns:
        Where it is.

    Raises:
        EmbedlossError: E402 if the hub refuses or cannot be reached; the folder is complete all the same.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        made = api.create_repo(name, private=private or None, exist_ok=True)
        api.upload_folder(
            repo_id=made.repo_id, folder_path=folder, ignore_patterns=LEFT_OUT, commit_message="Model trained with embedloss"
        )
    except Exception as exception:  # the hub client raises many kinds: network, permission, quota
        raise EmbedlossError(
            "E402",
            f"the model is saved in '{folder}' but could not be uploaded ({type(exception).__name__}: {one_line(exception)}). "
            f"Try again: hf upload {name} {folder}",
        ) from exception
    return str(made)
