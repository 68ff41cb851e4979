"""Foreign model objects as encoders of ours, with the same parameters in memory."""

from __future__ import annotations

from typing import Any

from torch import nn

from embedloss.adapters.peer import sentence_transformers
from embedloss.encoders import BiEncoder, CrossEncoder, Encoder, PairProcessor, StaticEncoder, StaticProcessor, TextProcessor
from embedloss.encoders.loading import longest
from embedloss.encoders.modules import ACTIVATIONS, Dense, Normalize, Pooling
from embedloss.errors import EmbedlossError


def wrap_model(model: Any, kind: str | None = None) -> Encoder:
    """An encoder round a model object: what a plugin's `embedloss_wrap_model` makes of it, else a SentenceTransformer or
    CrossEncoder of sentence-transformers taken apart into its modules.

    The encoder shares the model's parameters: training the one trains the other.

    Args:
        model: an `Encoder` (returned as it is) or a foreign model.
        kind: "bi-encoder", "cross-encoder" or None; handed to the plugins.

    Raises:
        EmbedlossError: E301, no plugin knows the object, or it has a module that is not supported.
    """
    if isinstance(model, Encoder):
        return model
    from embedloss.plugins import plugin_manager

    try:
        found = plugin_manager().hook.embedloss_wrap_model(model=model, kind=kind)
    except Exception as exception:  # a stranger's hook may raise anything
        raise EmbedlossError(
            "E205", f"a plugin's embedloss_wrap_model failed: {type(exception).__name__}: {exception}"
        ) from exception
    if found is not None:
        if not isinstance(found, Encoder):
            raise EmbedlossError("E301", f"a plugin's embedloss_wrap_model returned {type(found).__name__}, not an Encoder.")
        return found
    if is_peer(model):
        peer = sentence_transformers()
        if isinstance(model, peer.CrossEncoder):
            return _cross_encoder(model)
        if isinstance(model, peer.SentenceTransformer):
            return _bi_encoder(model)
    raise EmbedlossError(
        "E301",
        f"a {type(model).__name__} is no model that can be trained here. Give a SentenceTransformer, a CrossEncoder or "
        f"what load_encoder(folder) returns, or write the hook embedloss_wrap_model.",
    )


def is_peer(model: Any) -> bool:
    """Whether an object's class comes from sentence-transformers, without importing it."""
    return any(c.__module__.partition(".")[0] == "sentence_transformers" for c in type(model).__mro__)


def _kind(module: Any) -> str:
    """The class name of a module of sentence-transformers; the full path of any other, which is then not supported."""
    kind = type(module)
    return kind.__name__ if kind.__module__.startswith("sentence_transformers.") else f"{kind.__module__}.{kind.__name__}"


def _unsupported(what: str) -> EmbedlossError:
    return EmbedlossError(
        "E301", f"{what} is not supported here. Supported: Transformer, Pooling, Dense, Normalize, StaticEmbedding."
    )


def _settings(model: Any) -> dict[str, Any]:
    names = ("prompts", "default_prompt_name", "similarity_fn_name")
    return {name: getattr(model, name) for name in names if getattr(model, name, None) is not None}


def _bi_encoder(model: Any) -> Encoder:
    first, *rest = model.children()
    after = [_after(module) for module in rest]
    if _kind(first) == "StaticEmbedding":
        if any(isinstance(module, Pooling) for module in after):
            raise _unsupported("a Pooling after a StaticEmbedding")
        static = StaticEncoder(first.embedding.weight.detach(), StaticProcessor(first.tokenizer), after, _settings(model))
        static.embedding = first.embedding
        return static
    transformer, text = _transformer(first, "last_hidden_state")
    if not after or not isinstance(after[0], Pooling):
        raise _unsupported("a Transformer without a Pooling right after it")
    length = longest(transformer, first.tokenizer, model.max_seq_length, None)
    processor = TextProcessor(first.tokenizer, length, marks_prompt=not after[0].include_prompt)
    return BiEncoder(transformer, processor, after, _settings(model), text)


def _transformer(module: Any, output: str) -> tuple[nn.Module, bool]:
    """The transformer of a Transformer module, and whether its texts are lower-cased."""
    if _kind(module) != "Transformer":
        raise _unsupported(f"the module {_kind(module)} at the beginning")
    modalities = getattr(module, "modality_config", None) or {"text": {"method": "forward", "method_output_name": output}}
    text = modalities.get("text", {})
    names = text.get("method_output_name")
    plain = text.get("method") == "forward" and (names == output or list(names or ()) == [output])
    if not plain or "message" in modalities or getattr(module, "query_expansion", None):
        raise _unsupported(f"a Transformer that is no plain text encoder ({', '.join(modalities)})")
    return getattr(module, "model", None) or module.auto_model, bool(getattr(module, "do_lower_case", False))


def _after(module: Any) -> nn.Module:
    kind = _kind(module)
    if kind == "Pooling":
        dimension = getattr(module, "embedding_dimension", None) or module.word_embedding_dimension
        modes = getattr(module, "pooling_mode", None) or module.get_pooling_mode_str()
        return Pooling(modes, dimension, module.include_prompt)
    places = {getattr(module, name, None) or "sentence_embedding" for name in ("module_input_name", "module_output_name")}
    if kind not in ("Dense", "Normalize") or places != {"sentence_embedding"}:
        raise _unsupported(f"the module {kind}{' on ' + ', '.join(sorted(places)) if kind in ('Dense', 'Normalize') else ''}")
    if kind == "Normalize":
        return Normalize()
    activation = module.activation_function
    name = type(activation).__name__
    if name not in ACTIVATIONS or not type(activation).__module__.startswith("torch.nn."):
        raise _unsupported(f"a Dense with the activation {name}")
    residual = bool(getattr(module, "use_residual", False))
    dense = Dense(module.in_features, module.out_features, module.linear.bias is not None, name, residual)
    dense.linear, dense.activation = module.linear, activation
    if hasattr(module, "residual"):
        dense.residual = module.residual
    return dense


def _cross_encoder(model: Any) -> Encoder:
    first, *rest = model.children()
    if rest:
        raise EmbedlossError(
            "E301", f"the module {_kind(rest[0])} of a cross-encoder is not supported. Supported: Transformer."
        )
    transformer, _ = _transformer(first, "logits")
    activation = type(model.activation_fn)
    if activation.__name__ not in ACTIVATIONS or not activation.__module__.startswith("torch.nn."):
        raise EmbedlossError("E301", f"activation '{activation.__name__}' is not supported; only those of torch.nn.")
    length = longest(transformer, first.tokenizer, model.max_seq_length, None)
    return CrossEncoder(transformer, PairProcessor(first.tokenizer, length), _settings(model), activation.__name__)
