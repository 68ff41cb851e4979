"""Tiny random models for quick tests: real architectures, real tokenizers, a few thousand weights, made in a second."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

SENTENCES: tuple[str, ...] = (
    "How do I open a compressed file in Python?",
    "Use the gzip module to read or write files that are compressed.",
    "The capital of France is Paris, a city on the river Seine.",
    "Which city is the capital of France?",
    "A cat sleeps on the warm window sill in the afternoon sun.",
    "The dog chased a ball across the wet grass of the park.",
    "What are the symptoms of a common cold?",
    "A runny nose, a sore throat and a cough are typical of a cold.",
    "Matrix multiplication is associative but not commutative.",
    "The product of two matrices depends on their order.",
    "Bread is baked from flour, water, salt and yeast.",
    "How long does bread dough have to rest before baking?",
    "The train to Berlin leaves at nine from platform four.",
    "When does the next train to Berlin leave?",
    "Photosynthesis turns light, water and carbon dioxide into sugar.",
    "Plants make sugar from sunlight.",
    "A short one.",
    "The committee decided, after long and at times heated discussion, to postpone the vote until the following spring.",
)


def _tokenizer(sentences: Iterable[str], vocabulary: int, max_length: int) -> Any:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    normalizer, splitter = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
    words = Counter(word for text in sentences for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text)))
    characters = sorted({character for word in words for character in word})
    # The library's own trainer breaks ties in another order every time; this vocabulary is always the same one.
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *characters, *(f"##{c}" for c in characters)]
    frequent = sorted(words, key=lambda word: (-words[word], word))
    pieces += [word for word in frequent if len(word) > 1][: max(vocabulary - len(pieces), 0)]
    tokenizer = Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, splitter
    tokenizer.decoder = decoders.WordPiece()
    ends = [(name, tokenizer.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ends
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        model_max_length=max_length,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )


def _config(tokenizer: Any, layers: int, hidden: int, heads: int, dropout: float, max_length: int, **more: Any) -> Any:
    from transformers import BertConfig

    return BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=2 * hidden,
        max_position_embeddings=max_length,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        initializer_range=0.3,  # at the usual 0.02 a net this narrow maps all texts to nearly the same vector
        pad_token_id=tokenizer.pad_token_id,
        **more,
    )


def _save(model_class: str, config: Any, tokenizer: Any, folder: Path, seed: int) -> None:
    import torch
    import transformers

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = getattr(transformers, model_class)(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def tiny_bert(
    folder: str | os.PathLike[str],
    layers: int = 2,
    hidden: int = 32,
    *,
    sentences: Sequence[str] = SENTENCES,
    heads: int = 2,
    vocabulary: int = 400,
    max_length: int = 64,
    dropout: float = 0.1,
    pooling: str = "mean",
    normalize: bool = False,
    seed: int = 0,
) -> str:
    """Write a random BERT bi-encoder in the folder layout of sentence-transformers.

    Args:
        folder: where; made if it is not there.
        layers: Transformer layers.
        hidden: dimension of the embeddings, divisible by `heads`.
        sentences: texts that give the WordPiece vocabulary; other words are cut into letters.
        heads: attention heads.
        vocabulary: upper bound of the number of tokens.
        max_length: tokens a text at most.
        dropout: of hidden states and attention, active in training mode only.
        pooling: "mean", "cls" or "max".
        normalize: add a module that scales embeddings to length 1.
        seed: of the weights; the global generator is left as it was.

    Returns:
        The folder, for `load_encoder` or `SentenceTransformer`.
    """
    modes = {"mean": "pooling_mode_mean_tokens", "cls": "pooling_mode_cls_token", "max": "pooling_mode_max_tokens"}
    if pooling not in modes:
        raise ValueError(f"pooling must be one of {', '.join(modes)}; got {pooling!r}")
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    tokenizer = _tokenizer(sentences, vocabulary, max_length)
    _save("BertModel", _config(tokenizer, layers, hidden, heads, dropout, max_length), tokenizer, path, seed)
    modules = [("", "Transformer"), ("1_Pooling", "Pooling"), *([("2_Normalize", "Normalize")] if normalize else [])]
    entries = [
        {"idx": i, "name": str(i), "path": where, "type": f"sentence_transformers.models.{kind}"}
        for i, (where, kind) in enumerate(modules)
    ]
    pooled = {"word_embedding_dimension": hidden, **{key: name == pooling for name, key in modes.items()}}
    files = {
        "modules.json": entries,
        "sentence_bert_config.json": {"max_seq_length": max_length, "do_lower_case": False},
        "config_sentence_transformers.json": {"prompts": {}, "default_prompt_name": None, "similarity_fn_name": "cosine"},
        "1_Pooling/config.json": pooled,
    }
    for name, content in files.items():
        (path / name).parent.mkdir(exist_ok=True)
        (path / name).write_text(json.dumps(content, indent=2), encoding="utf-8")
    return str(path)


def tiny_cross_encoder(
    folder: str | os.PathLike[str],
    layers: int = 2,
    hidden: int = 32,
    *,
    num_labels: int = 1,
    sentences: Sequence[str] = SENTENCES,
    heads: int = 2,
    vocabulary: int = 400,
    max_length: int = 64,
    dropout: float = 0.1,
    seed: int = 0,
) -> str:
    """Write a random BERT cross-encoder (a classifier of text pairs with `num_labels` logits). Arguments as in `tiny_bert`."""
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    tokenizer = _tokenizer(sentences, vocabulary, max_length)
    config = _config(tokenizer, layers, hidden, heads, dropout, max_length, num_labels=num_labels)
    _save("BertForSequenceClassification", config, tokenizer, path, seed)
    return str(path)
