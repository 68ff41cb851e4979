"""Causal decoders with cross-attention, and tying one to the encoder."""

from __future__ import annotations

import copy
import inspect
import warnings
from typing import Any

from torch import nn

from embedloss.errors import EmbedlossError


def _decoder_config(config: Any) -> Any:
    config = copy.deepcopy(config)
    config.is_decoder, config.add_cross_attention, config.use_cache = True, True, False
    return config


def _build(config: Any, path: str | None) -> Any:
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # its report that cross-attention is new says what everyone here expects
    try:
        if path:
            # Another vocabulary than the checkpoint's must not stop the rest of it from being used.
            model = AutoModelForCausalLM.from_pretrained(path, config=config, ignore_mismatched_sizes=True)
        else:
            model = AutoModelForCausalLM.from_config(config)
    except ValueError as exception:
        found = f"a model of type '{config.model_type}' has no decoder form"
        repair = "use BERT, RoBERTa or the like, or tie_encoder_decoder=False with the decoder_name_or_path of such a model"
        raise EmbedlossError("E302", f"{found}; {repair}.") from exception
    finally:
        logging.set_verbosity(verbosity)
    if "encoder_hidden_states" not in inspect.signature(model.forward).parameters:
        kind = f"a decoder of type '{config.model_type}'"
        raise EmbedlossError("E302", f"{kind} has no cross-attention, so it cannot read embeddings.")
    return model


def untied_decoder(name_or_path: str) -> Any:
    """A decoder with weights of its own from a folder or hub id; new cross-attention where it has none."""
    from transformers import AutoConfig

    try:
        return _build(_decoder_config(AutoConfig.from_pretrained(name_or_path)), name_or_path)
    except OSError as exception:
        raise EmbedlossError("E301", f"the decoder '{name_or_path}' could not be loaded: {exception}") from exception


def tied_decoder(backbone: Any) -> Any:
    """A decoder that uses the encoder's own parameters for all it has in common with it.

    The encoder's weights are used as they are in memory. Cross-attention is new, and so is the language model's head unless
    the encoder's checkpoint holds one.
    """
    config = _decoder_config(backbone.config)
    try:
        decoder = _build(config, getattr(backbone.config, "_name_or_path", None))
    except OSError:  # the checkpoint is gone; only the head of it would have been used
        decoder = _build(config, None)
    parameter = next(backbone.parameters())
    decoder.to(device=parameter.device, dtype=parameter.dtype)
    modules = dict(decoder.base_model.named_modules())
    for name, value in backbone.named_parameters():
        owner, _, attribute = name.rpartition(".")
        found = getattr(modules.get(owner), attribute, None)
        if isinstance(found, nn.Parameter) and found.shape == value.shape:
            setattr(modules[owner], attribute, value)
    decoder.tie_weights()  # the head's output matrix is the word embeddings, which are the encoder's now
    if not {id(value) for value in decoder.parameters()} & {id(value) for value in backbone.parameters()}:
        warnings.warn("the decoder shares no weight with the encoder; are they of one kind?", stacklevel=2)
    return decoder


def saved_elsewhere(decoder: nn.Module, backbone: nn.Module) -> list[str]:
    """Names of the decoder's parameters that are the encoder's, or that the decoder itself has under another name."""
    known = {id(value) for value in backbone.parameters()}
    names = []
    for name, value in decoder.named_parameters(remove_duplicate=False):
        if id(value) in known:
            names.append(name)
        known.add(id(value))
    return names
