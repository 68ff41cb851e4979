"""Encoders: chunks, recomputation, reading and writing folders, and what is said about damaged ones."""

from __future__ import annotations

import contextlib
import gc
import json
import pickle
import random
import shutil
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from embedloss.encoders import (
    BiEncoder,
    CrossEncoder,
    StaticEncoder,
    encode_chunks,
    load_encoder,
    new_static_encoder,
    plan_chunks,
    write_card,
)
from embedloss.encoders.lean import lean
from embedloss.encoders.modules import Dense, Normalize, Pooling
from embedloss.encoders.recompute import Recomputed
from embedloss.encoders.static import train_wordpiece
from embedloss.encoders.text import AT_ONCE
from embedloss.encoders.token_cache import TokenCache
from embedloss.errors import EmbedlossError
from embedloss.training.memory import Saved

torch.set_num_threads(1)
TEXTS = [
    "one",
    "a rather longer text of many words",
    "",
    "two words",
    "unseen zzz",
    "one",
    "words " * 40,
    "many words of one text",
]
SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 40,
}


def tokenizer(closed: bool = True, types: bool = False) -> Any:
    from transformers import PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    inner = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    inner.normalizer = normalizers.BertNormalizer(lowercase=True)
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner.train_from_iterator(TEXTS, trainers.WordPieceTrainer(vocab_size=120, special_tokens=special, show_progress=False))
    if closed:
        ends = [("[CLS]", 2), ("[SEP]", 3)]
        inner.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ends
        )
    names = {"unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]", "pad_token": "[PAD]"}
    inputs = ["input_ids", *(["token_type_ids"] if types else []), "attention_mask"]
    options = names if closed else {"unk_token": "[UNK]"}
    return PreTrainedTokenizerFast(tokenizer_object=inner, model_input_names=inputs, **options)


def transformer(kind: str, **more: Any) -> Any:
    import transformers as t

    torch.manual_seed(3)
    base = {"vocab_size": 120, **SIZES, **more}
    if kind == "bert":
        return t.BertModel(t.BertConfig(**base))
    if kind == "roberta":
        return t.RobertaModel(t.RobertaConfig(**base, type_vocab_size=1, pad_token_id=0))
    if kind == "mpnet":
        return t.MPNetModel(t.MPNetConfig(**base, pad_token_id=0))
    if kind == "distilbert":
        small = {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32, "max_position_embeddings": 40}
        return t.DistilBertModel(t.DistilBertConfig(vocab_size=120, **small))
    if kind == "modernbert":
        ends = {"pad_token_id": 0, "cls_token_id": 2, "sep_token_id": 3, "bos_token_id": 2, "eos_token_id": 3}
        return t.ModernBertModel(t.ModernBertConfig(**base, **ends))
    if kind == "llama":
        return t.LlamaModel(t.LlamaConfig(**base, num_key_value_heads=1))
    if kind == "t5":
        small = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
        return t.T5EncoderModel(t.T5Config(vocab_size=120, **small))
    raise AssertionError(kind)


KINDS = ("bert", "roberta", "mpnet", "distilbert", "modernbert", "llama", "t5")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder of transformers for every kind."""
    folders = {}
    for kind in KINDS:
        folders[kind] = tmp_path_factory.mktemp(kind)
        transformer(kind).save_pretrained(folders[kind])
        tokenizer(closed=kind != "llama", types=kind in ("bert", "distilbert")).save_pretrained(folders[kind])
    return folders


@pytest.fixture
def bert(plain: dict[str, Path], tmp_path: Path) -> Path:
    """A saved bi-encoder that a test may damage."""
    encoder = load_encoder(plain["bert"])
    assert isinstance(encoder, BiEncoder)
    encoder.after.extend([Dense(16, 8), Normalize()])
    encoder.dimension = 8
    encoder.save(tmp_path / "model")
    return tmp_path / "model"


# -- chunks ---------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("budget", [1, 40, 128, 1000, 100_000])
def test_plan_covers_everything_within_the_budget(budget: int) -> None:
    lengths = np.random.default_rng(0).integers(1, 60, 200).tolist()
    plan = plan_chunks(lengths, budget)
    assert sorted(i for chunk in plan for i in chunk) == list(range(200))
    assert [lengths[i] for chunk in plan for i in chunk] == sorted(lengths)
    for chunk in plan:
        assert len(chunk) == 1 or len(chunk) * max(lengths[i] for i in chunk) <= budget
    assert plan == plan_chunks(lengths, budget)


def test_plan_keeps_an_outlier_apart() -> None:
    assert plan_chunks([5, 5, 500, 5], 10_000) == [[0, 1, 3], [2]]
    assert plan_chunks([9, 7, 8], 10_000) == [[1, 2, 0]]
    assert plan_chunks([], 10) == []
    assert plan_chunks([0, 0], 10) == [[0, 1]]


def test_padding_is_bounded() -> None:
    lengths = np.random.default_rng(1).lognormal(3, 1, 2000).astype(int) + 1
    plan = plan_chunks(lengths.tolist(), 8192)
    padded = sum(len(c) * lengths[c].max() for c in plan)
    assert padded <= 1.15 * lengths.sum() + 128 * len(plan)
    assert len(plan) < 60


def encoder_for(plain: dict[str, Path], kind: str) -> Any:
    return load_encoder(plain[kind], pooling="lasttoken" if kind == "llama" else "mean")


@pytest.mark.parametrize("kind", KINDS)
def test_chunks_do_not_change_the_result(plain: dict[str, Path], kind: str) -> None:
    encoder = encoder_for(plain, kind).train()
    alone = np.concatenate([encoder.encode([text]) for text in TEXTS])
    assert encoder.training
    assert np.isfinite(alone).all()
    assert np.ptp(alone, axis=0).max() > 0.01
    for budget in (1, 20, 100, 100_000):
        np.testing.assert_allclose(encoder.encode(TEXTS, chunk_tokens=budget), alone, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_layers_end_with_the_embedding(plain: dict[str, Path], kind: str) -> None:
    encoder = encoder_for(plain, kind).eval()
    features = encoder.processor.pad(encoder.processor.tokenize(TEXTS))
    layers = encoder(features, layers=True)
    assert len(layers) == encoder.n_layers + 1 == 3
    torch.testing.assert_close(layers[-1], encoder(features))
    assert all(layer.shape == (len(TEXTS), encoder.dimension) for layer in layers)
    assert not torch.allclose(layers[0], layers[1])


def chunks_of(encoder: Any, budget: int) -> tuple[list[dict[str, torch.Tensor]], torch.Tensor]:
    items = encoder.processor.tokenize(TEXTS)
    plan = plan_chunks([len(i) for i in items], budget)
    place = torch.argsort(torch.tensor([i for c in plan for i in c]))
    return [encoder.processor.pad([items[i] for i in chunk]) for chunk in plan], place


@pytest.fixture(params=["plain weights", "sharded weights"])
def weights(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways to recompute: the second is for weights that are not whole."""
    if request.param == "sharded weights":
        monkeypatch.setattr(Recomputed, "suits", staticmethod(lambda encoder, chunks: False))
    return str(request.param)


def gradients_of(encoder: Any, chunks: Any, place: Any, *, recompute: bool, layers: bool = False) -> dict[str, torch.Tensor]:
    """Parameter name -> gradient of a weighted sum of the embeddings, with the same dropout at every call."""
    encoder.train().zero_grad()
    torch.manual_seed(7)
    output = encode_chunks(encoder, chunks, place, recompute=recompute, layers=layers)
    final = (torch.cat(output) if layers else output).float()
    before = torch.get_rng_state()
    (final * torch.linspace(-1, 1, final.numel()).view_as(final)).sum().backward()
    assert torch.equal(torch.get_rng_state(), before)
    return {n: p.grad.clone() for n, p in encoder.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("layers", [False, True])
def test_recomputation_gives_the_same_gradients_with_dropout(plain: dict[str, Path], layers: bool, weights: str) -> None:
    encoder = load_encoder(plain["bert"])
    chunks, place = chunks_of(encoder, 30)
    assert len(chunks) > 2
    plain_run, again = (gradients_of(encoder, chunks, place, recompute=both, layers=layers) for both in (False, True))
    assert max(g.abs().max() for g in plain_run.values()) > 0.1
    assert plain_run.keys() == again.keys()
    for name, gradient in plain_run.items():
        torch.testing.assert_close(again[name], gradient, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("frozen", [1, 5, 10_000])
def test_recomputation_with_frozen_weights(plain: dict[str, Path], frozen: int) -> None:
    """Of the word embeddings, of all below the layers, and of everything: what is not trained needs no gradient."""
    encoder = load_encoder(plain["bert"])
    for parameter in list(encoder.parameters())[:frozen]:
        parameter.requires_grad_(False)
    chunks, place = chunks_of(encoder, 30)
    if not any(p.requires_grad for p in encoder.parameters()):
        assert not encode_chunks(encoder, chunks, place, recompute=True).requires_grad
        return
    plain_run, again = (gradients_of(encoder, chunks, place, recompute=both, layers=True) for both in (False, True))
    assert max(g.abs().max() for g in plain_run.values()) > 0.1
    assert plain_run.keys() == again.keys()
    for name, gradient in plain_run.items():
        torch.testing.assert_close(again[name], gradient, rtol=1e-6, atol=1e-6)


def test_recomputation_keeps_the_precision_of_autocast(plain: dict[str, Path], weights: str) -> None:
    """The backward pass runs outside of the autocast of the forward pass, which also casts weights once for all chunks."""
    encoder = load_encoder(plain["bert"])
    chunks, place = chunks_of(encoder, 30)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = [encode_chunks(encoder.eval(), chunks, place, recompute=both) for both in (False, True)]
    assert torch.equal(*outputs)
    assert not torch.equal(outputs[0].float(), encode_chunks(encoder, chunks, place).float())
    found = []
    for output in outputs:
        encoder.zero_grad()
        (output.float() * torch.linspace(-1, 1, output.numel()).view_as(output)).sum().backward()
        found.append({n: p.grad.clone() for n, p in encoder.named_parameters() if p.grad is not None})
    assert max(g.abs().max() for g in found[0].values()) > 0.1
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():  # sums over chunks differ by bfloat16's rounding of each chunk's share
        torch.testing.assert_close(found[1][name], gradient, rtol=0.02, atol=0.02 * float(gradient.abs().max()))


def test_a_parameter_gets_its_gradient_once_a_step_when_recomputing(plain: dict[str, Path]) -> None:
    """Hooks see the whole gradient; what was there before is added to, also by a second pass through the same graph."""
    encoder = load_encoder(plain["bert"])
    chunks, place = chunks_of(encoder, 30)
    wanted = gradients_of(encoder, chunks, place, recompute=False)
    seen: dict[str, list[torch.Tensor]] = {name: [] for name in wanted}
    hooks = [p.register_hook(seen[n].append) for n, p in encoder.named_parameters() if n in wanted]
    gradients_of(encoder, chunks, place, recompute=True)
    for hook in hooks:
        hook.remove()
    assert max(g.abs().max() for g in wanted.values()) > 0.1
    for name, gradient in wanted.items():
        assert len(seen[name]) == 1
        torch.testing.assert_close(seen[name][0], gradient, rtol=1e-6, atol=1e-6)
    torch.manual_seed(7)
    output = encode_chunks(encoder, chunks, place, recompute=True)
    loss = (output * torch.linspace(-1, 1, output.numel()).view_as(output)).sum()
    loss.backward(retain_graph=True)
    loss.backward()
    for name, parameter in encoder.named_parameters():
        if name in wanted:
            torch.testing.assert_close(parameter.grad, 3 * wanted[name], rtol=1e-6, atol=1e-6)


def test_a_recomputation_that_fails_leaves_the_encoder_as_it_was(plain: dict[str, Path]) -> None:
    encoder = load_encoder(plain["bert"])
    chunks, place = chunks_of(encoder, 30)
    before = dict(encoder.named_parameters())
    output = encode_chunks(encoder, chunks, place, recompute=True)

    def out_of_memory(*_: Any) -> None:
        raise RuntimeError("no memory left")

    hook = encoder.register_forward_pre_hook(out_of_memory)
    with pytest.raises(RuntimeError, match="no memory left"):
        output.sum().backward()
    with pytest.raises(RuntimeError, match="no memory left"):
        encode_chunks(encoder, chunks, place, recompute=True)
    hook.remove()
    after = dict(encoder.named_parameters())
    assert all(after[name] is parameter and parameter.grad is None for name, parameter in before.items())
    assert "forward" not in vars(encoder.model.get_input_embeddings())


def test_recomputation_keeps_the_activations_of_one_chunk(plain: dict[str, Path], weights: str) -> None:
    encoder = load_encoder(plain["bert"]).train()
    chunks, place = chunks_of(encoder, 30)
    kept = []
    for recompute in (False, True):
        with Saved(encoder.parameters()) as saved:
            encode_chunks(encoder, chunks, place, recompute=recompute)
        kept.append(saved.bytes)
    assert len(chunks) > 1
    with Saved(encoder.parameters()) as saved, lean(encoder):
        last = encoder(chunks[-1])
    assert last.requires_grad
    assert kept[1] < 0.8 * kept[0]
    assert kept[1] == pytest.approx(saved.bytes, rel=0.05)


@pytest.mark.parametrize("recompute", [False, True])
def test_chunks_share_one_gradient_of_the_word_embeddings(
    plain: dict[str, Path], recompute: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Equal to one of `nn.Embedding` a chunk, in one tensor of the table's size, also when the graph is run through twice."""
    encoder = load_encoder(plain["bert"]).double().eval()
    table = encoder.model.get_input_embeddings()
    chunks, place = chunks_of(encoder, 30)
    assert len(chunks) > 2
    assert any((chunk["input_ids"] == table.padding_idx).any() for chunk in chunks)

    class Sizes(TorchDispatchMode):
        made = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            new = func in (torch.ops.aten.embedding_dense_backward.default, torch.ops.aten.zeros_like.default)
            self.made += new and result.shape == table.weight.shape
            return result

    gradients, sizes = [], []
    for shared in (False, True):
        with monkeypatch.context() as patch:
            if not shared:
                patch.setattr("embedloss.encoders.base.shared_lookups", lambda encoder: None)
                patch.setattr("embedloss.encoders.recompute.shared_lookups", lambda encoder, leaf: None)
            encoder.zero_grad()
            output = encode_chunks(encoder, chunks, place, recompute=recompute)
            loss = (output * torch.linspace(-1, 1, output.numel(), dtype=torch.float64).view_as(output)).sum()
            with Sizes() as counted:
                loss.backward(retain_graph=not recompute)
            sizes.append(counted.made)
            if not recompute:
                loss.backward()
            gradients.append({n: p.grad.clone() for n, p in encoder.named_parameters() if p.grad is not None})
    expected, found = gradients
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert gradient.abs().max() > 0
        torch.testing.assert_close(found[name], gradient, rtol=1e-10, atol=1e-12)
    assert sizes == [len(chunks), 1]
    assert "forward" not in vars(table)


def test_activation_functions_are_computed_again_rather_than_kept(plain: dict[str, Path]) -> None:
    encoder = load_encoder(plain["bert"]).train()
    chunks, _ = chunks_of(encoder, 1000)
    gradients, sizes = [], []
    for context in (contextlib.nullcontext(), lean(encoder)):
        encoder.zero_grad()
        torch.manual_seed(3)
        with Saved(encoder.parameters()) as saved, context:
            output = encoder(chunks[0])
        (output * torch.linspace(-1, 1, output.numel()).view_as(output)).sum().backward()
        sizes.append(saved.bytes)
        gradients.append({n: p.grad.clone() for n, p in encoder.named_parameters() if p.grad is not None})
    assert max(gradient.abs().max() for gradient in gradients[0].values()) > 0.1
    assert all(torch.equal(gradients[1][name], gradient) for name, gradient in gradients[0].items())
    texts, length = chunks[0]["input_ids"].shape
    assert sizes[0] - sizes[1] == 4 * texts * length * encoder.n_layers * encoder.model.config.intermediate_size
    assert not any(module._forward_hooks for module in encoder.modules())


def test_an_activation_that_was_changed_in_place_is_kept() -> None:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Hardtanh(0, 0.1, inplace=True), nn.Linear(32, 8))
    texts = torch.randn(5, 8)
    gradients = []
    for context in (contextlib.nullcontext(), lean(layers)):
        layers.zero_grad()
        with context:
            output = layers(texts)
        output.square().sum().backward()
        gradients.append([p.grad.clone() for p in layers.parameters()])
    assert gradients[0][0].abs().max() > 0
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_frozen_word_embeddings_get_no_gradient(plain: dict[str, Path]) -> None:
    encoder = load_encoder(plain["bert"])
    table = encoder.model.get_input_embeddings()
    table.requires_grad_(False)
    chunks, place = chunks_of(encoder, 30)
    encode_chunks(encoder, chunks, place).sum().backward()
    assert table.weight.grad is None
    assert any(p.grad is not None for p in encoder.parameters())


@pytest.mark.parametrize(("recompute", "kind"), [(False, "_LookupBackward"), (True, "Recomputed")])
def test_a_step_without_a_backward_pass_leaves_nothing_behind(plain: dict[str, Path], recompute: bool, kind: str) -> None:
    """No cycle: what the chunks share goes with the last reference, not when garbage is collected."""
    encoder = load_encoder(plain["bert"]).train()
    chunks, place = chunks_of(encoder, 30)
    gc.collect()
    gc.disable()
    try:
        output = encode_chunks(encoder, chunks, place, recompute=recompute)
        alive = [weakref.ref(found) for found in gc.get_objects() if type(found).__name__ == kind]
        assert len(alive) == (1 if recompute else len(chunks))
        assert all(one() is not None for one in alive)
        del output
        assert all(one() is None for one in alive)
    finally:
        gc.enable()


def test_a_lookup_of_someone_else_is_left_alone(plain: dict[str, Path]) -> None:
    encoder = load_encoder(plain["bert"])
    table = encoder.model.get_input_embeddings()
    calls: list[int] = []

    def forward(ids: torch.Tensor) -> torch.Tensor:
        calls.append(len(ids))
        return nn.functional.embedding(ids, table.weight, table.padding_idx)

    table.forward = forward
    chunks, place = chunks_of(encoder, 30)
    encode_chunks(encoder, chunks, place).sum().backward()
    assert calls == [len(chunk["input_ids"]) for chunk in chunks]
    assert table.forward is forward
    assert table.weight.grad.abs().max() > 0


def test_order_is_restored(plain: dict[str, Path]) -> None:
    encoder = load_encoder(plain["bert"]).eval()
    chunks, place = chunks_of(encoder, 30)
    assert place.tolist() != sorted(place.tolist())
    with torch.no_grad():
        found = encode_chunks(encoder, chunks, place)
    np.testing.assert_allclose(found.numpy(), encoder.encode(TEXTS), atol=1e-6)


def test_unused_pooler_waits_for_no_gradient(plain: dict[str, Path]) -> None:
    encoder = load_encoder(plain["bert"])
    chunks, place = chunks_of(encoder, 1000)
    encode_chunks(encoder, chunks, place).sum().backward()
    assert all(p.grad is not None for p in encoder.parameters() if p.requires_grad)


# -- tokens ---------------------------------------------------------------------------------------------------------------
def test_texts_are_tokenised_once_while_their_tokens_fit(plain: dict[str, Path]) -> None:
    processor = load_encoder(plain["bert"]).processor
    calls: list[list[str]] = []

    class Counting:
        def tokenize(self, texts: list[str], prompt: str) -> list[Any]:
            calls.append(texts)
            return processor.tokenize(texts, prompt)

    counting, cache = Counting(), TokenCache()
    texts = [*TEXTS, TEXTS[0]]
    for prompt in ("", "", "many "):
        found = cache.tokenize(counting, texts, prompt)
        assert [i.ids.tolist() for i in found] == [i.ids.tolist() for i in processor.tokenize(texts, prompt)]
    assert calls == [list(dict.fromkeys(TEXTS))] * 2
    copy = pickle.loads(pickle.dumps(cache))
    assert copy.size == 0 < cache.size
    calls.clear()
    full = TokenCache(most=1)  # has room for one text
    for _ in range(2):
        assert [len(i) for i in full.tokenize(counting, texts, "")] == [len(i) for i in processor.tokenize(texts)]
    assert calls == [list(dict.fromkeys(TEXTS)), list(dict.fromkeys(TEXTS))[1:]]


def test_processor_travels_without_weights(plain: dict[str, Path]) -> None:
    processor = load_encoder(plain["bert"]).processor
    again = pickle.loads(pickle.dumps(processor))
    items = again.tokenize(TEXTS, "many ")
    assert [i.ids.tolist() for i in items] == [i.ids.tolist() for i in processor.tokenize([f"many {t}" for t in TEXTS])]
    assert max(len(i) for i in items) == again.max_length == 40
    features = again.pad(items[:2])
    assert features["input_ids"].shape == features["attention_mask"].shape == features["token_type_ids"].shape
    assert features["attention_mask"].sum() == len(items[0]) + len(items[1])
    assert processor.tokenize([]) == []


def test_positions_of_roberta_are_counted_right(plain: dict[str, Path]) -> None:
    encoder = load_encoder(plain["roberta"])
    assert encoder.processor.max_length == 39  # of 40 positions, the one up to the padding index is lost
    assert np.isfinite(encoder.encode(["words " * 100])).all()
    with pytest.raises(EmbedlossError, match=r"E301.*39 positions"):
        load_encoder(plain["roberta"], max_length=40)
    assert max(len(i) for i in load_encoder(plain["roberta"], max_length=7).processor.tokenize(TEXTS)) == 7


def test_lower_case_is_obeyed(bert: Path) -> None:
    settings = json.loads((bert / "tokenizer.json").read_text())
    settings["normalizer"]["lowercase"] = False
    (bert / "tokenizer.json").write_text(json.dumps(settings))
    assert not np.allclose(load_encoder(bert).encode(["ONE"]), load_encoder(bert).encode(["one"]))
    (bert / "sentence_bert_config.json").write_text('{"max_seq_length": 9, "do_lower_case": true}')
    encoder = load_encoder(bert)
    np.testing.assert_array_equal(encoder.encode(["ONE"]), encoder.encode(["one"]))
    assert encoder.processor.max_length == 9


# -- pooling --------------------------------------------------------------------------------------------------------------
def slow_pooling(mode: str, tokens: np.ndarray) -> np.ndarray:
    """Of the tokens of one text."""
    weights = np.arange(1, len(tokens) + 1)
    return {
        "cls": lambda: tokens[0],
        "max": lambda: tokens.max(0),
        "mean": lambda: tokens.mean(0),
        "mean_sqrt_len_tokens": lambda: tokens.sum(0) / len(tokens) ** 0.5,
        "weightedmean": lambda: (tokens * weights[:, None]).sum(0) / weights.sum(),
        "lasttoken": lambda: tokens[-1],
    }[mode]()


@pytest.mark.parametrize(
    "modes", ["cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken", "cls+mean", "mean+cls"]
)
def test_pooling_against_plain_loops(modes: str) -> None:
    lengths = [1, 4, 6]
    tokens = torch.randn(3, 6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[int(i < n) for i in range(6)] for n in lengths])
    pooling = Pooling(modes, 5)
    found = pooling(tokens, mask)
    for row, length in enumerate(lengths):
        slow = np.concatenate([slow_pooling(m, tokens[row, :length].numpy()) for m in modes.split("+")])
        np.testing.assert_allclose(found[row].numpy(), slow, atol=1e-12)
    again = Pooling.from_config(pooling.config())
    assert (again.modes, again.dimension) == (pooling.modes, pooling.dimension)


@pytest.mark.parametrize("mode", ["cls", "max", "mean", "mean_sqrt_len_tokens", "lasttoken"])
def test_prompt_is_left_out(mode: str) -> None:
    tokens, mask = torch.randn(2, 6, 5), torch.tensor([[1] * 6, [1] * 3 + [0] * 3])
    found = Pooling(mode, 5, include_prompt=False)(tokens, mask, torch.tensor([2, 3]))
    torch.testing.assert_close(found[0], Pooling(mode, 5)(tokens[:1, 2:], mask[:1, 2:])[0])
    assert (found[1] == 0).all()  # nothing is left of a text that was cut within the prompt


def test_pooling_of_half_precision_sums_in_float32() -> None:
    tokens = torch.full((1, 512, 4), 3.0, dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = Pooling("weightedmean", 4)(tokens, torch.ones(1, 512, dtype=torch.long))
    assert (found == 3).all()


# -- folders --------------------------------------------------------------------------------------------------------------
def test_normalizing_is_the_users_choice_and_is_saved(bert: Path, tmp_path: Path) -> None:
    as_saved, unit, free = (load_encoder(bert, normalize=choice) for choice in (None, True, False))
    texts = ["a text", "another one"]
    np.testing.assert_allclose(np.linalg.norm(unit.encode(texts), axis=1), 1, atol=1e-6)
    assert abs(np.linalg.norm(free.encode(texts), axis=1) - 1).max() > 0.01
    assert unit.normalizes
    assert not free.normalizes
    unit.save(tmp_path / "unit")
    assert load_encoder(tmp_path / "unit").normalizes
    np.testing.assert_array_equal(load_encoder(tmp_path / "unit", normalize=False).encode(texts), free.encode(texts))
    assert as_saved.normalizes == any(isinstance(module, Normalize) for module in as_saved.after)
    with pytest.raises(EmbedlossError, match="leave out normalize"):
        load_encoder(bert, "cross-encoder", normalize=True)


def test_round_trip(bert: Path, tmp_path: Path) -> None:
    settings = json.loads((bert / "config_sentence_transformers.json").read_text())
    settings |= {"prompts": {"query": "many "}, "default_prompt_name": "query", "similarity_fn_name": "dot", "mine": 1}
    (bert / "config_sentence_transformers.json").write_text(json.dumps(settings))
    encoder = load_encoder(bert)
    assert (encoder.prompts, encoder.similarity, encoder.dimension) == ({"query": "many "}, "dot", 8)
    encoder.save(tmp_path / "again")
    again = load_encoder(str(tmp_path / "again"))
    np.testing.assert_array_equal(again.encode(TEXTS), encoder.encode(TEXTS))
    np.testing.assert_allclose(np.linalg.norm(encoder.encode(TEXTS), axis=1), 1, atol=1e-6)
    saved = json.loads((tmp_path / "again" / "config_sentence_transformers.json").read_text())
    assert {k: saved[k] for k in ("prompts", "default_prompt_name", "similarity_fn_name", "mine")} == {
        k: settings[k] for k in ("prompts", "default_prompt_name", "similarity_fn_name", "mine")
    }
    assert not list((tmp_path / "again").glob("**/*.bin"))
    assert (tmp_path / "again" / "README.md").read_text().startswith("---\n")


def test_encode_options(plain: dict[str, Path]) -> None:
    encoder = load_encoder(plain["bert"])
    full = encoder.encode(TEXTS)
    np.testing.assert_array_equal(encoder.encode(TEXTS, truncate_dim=5), full[:, :5])
    cut = encoder.encode(TEXTS, truncate_dim=5, normalize=True)
    np.testing.assert_allclose(cut, full[:, :5] / np.linalg.norm(full[:, :5], axis=1, keepdims=True), atol=1e-6)
    np.testing.assert_allclose(encoder.encode(["words"], prompt="many "), encoder.encode(["many words"]), atol=1e-6)
    np.testing.assert_array_equal(encoder.encode("one"), encoder.encode(["one"]))
    assert encoder.encode([]).shape == (0, 16)
    assert full.dtype == np.float32
    with pytest.raises(EmbedlossError, match="E104: text 2 is no text but NoneType"):
        encoder.encode(["a", None])  # type: ignore[list-item]


def test_weights_are_float32_unless_asked(plain: dict[str, Path], tmp_path: Path) -> None:
    transformer("bert").bfloat16().save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    assert {p.dtype for p in load_encoder(tmp_path).parameters()} == {torch.float32}
    assert {p.dtype for p in load_encoder(tmp_path, dtype="auto").parameters()} == {torch.bfloat16}
    half = load_encoder(tmp_path, dtype="bfloat16")
    assert half.encode(TEXTS).dtype == np.float32
    with pytest.raises(EmbedlossError, match="E301: unknown dtype 'float3'"):
        load_encoder(tmp_path, dtype="float3")


def damage(folder: Path, name: str) -> None:
    if name == "modules.json is no JSON":
        (folder / "modules.json").write_text("[{")
    elif name == "modules.json is no list":
        (folder / "modules.json").write_text("{}")
    elif name == "weights are gone":
        (folder / "model.safetensors").unlink()
    elif name == "weights are cut":
        content = (folder / "model.safetensors").read_bytes()
        (folder / "model.safetensors").write_bytes(content[: len(content) // 2])
    elif name == "weights miss tensors":
        from safetensors.torch import load_file, save_file

        kept = {k: v for k, v in load_file(folder / "model.safetensors").items() if "layer.1" not in k}
        save_file(kept, folder / "model.safetensors", {"format": "pt"})
    elif name == "dense weights are gone":
        (folder / "2_Dense" / "model.safetensors").unlink()
    elif name == "dense has another size":
        config = json.loads((folder / "2_Dense" / "config.json").read_text())
        (folder / "2_Dense" / "config.json").write_text(json.dumps({**config, "in_features": 17}))
    elif name == "dense config lacks a key":
        (folder / "2_Dense" / "config.json").write_text("{}")
    elif name == "config is gone":
        (folder / "config.json").unlink()
    elif name == "tokenizer is no JSON":
        (folder / "tokenizer.json").write_text("{")
    elif name == "pooling is unknown":
        (folder / "1_Pooling" / "config.json").write_text('{"embedding_dimension": 16, "pooling_mode": "middle"}')
    elif name == "pooling config is gone":
        (folder / "1_Pooling" / "config.json").unlink()
    else:
        raise AssertionError(name)


@pytest.mark.parametrize(
    "name",
    [
        "modules.json is no JSON", "modules.json is no list", "weights are gone", "weights are cut", "weights miss tensors",
        "dense weights are gone", "dense has another size", "dense config lacks a key", "config is gone",
        "tokenizer is no JSON", "pooling is unknown", "pooling config is gone",
    ],
)  # fmt: skip
def test_damaged_folder_is_e301(bert: Path, name: str) -> None:
    load_encoder(bert)
    damage(bert, name)
    with pytest.raises(EmbedlossError, match="E301") as caught:
        load_encoder(bert)
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    "kind", ["sentence_transformers.models.LSTM", "custom.Transformer", "sentence_transformers.base.modules.router.Router"]
)
def test_unknown_module_is_named(bert: Path, kind: str) -> None:
    for position in (0, 1):
        entries = json.loads((bert / "modules.json").read_text())
        entries[position]["type"] = kind
        (bert / "modules.json").write_text(json.dumps(entries))
        with pytest.raises(EmbedlossError, match=f"E301: module '{kind}'"):
            load_encoder(bert)


def test_activation_is_never_imported(bert: Path) -> None:
    file = bert / "2_Dense" / "config.json"
    for name in ("os.system", "torch.nn.modules.activation.MultiheadAttention", "torch.nn.init.Tanhh"):
        file.write_text(json.dumps({**json.loads(file.read_text()), "activation_function": name}))
        with pytest.raises(EmbedlossError, match="E301: activation"):
            load_encoder(bert)


def test_pickled_code_is_never_run(bert: Path) -> None:
    ran = []

    class Evil:
        def __reduce__(self) -> Any:
            return (ran.append, (1,))

    (bert / "2_Dense" / "model.safetensors").unlink()
    torch.save({"linear.weight": Evil()}, bert / "2_Dense" / "pytorch_model.bin")
    with pytest.raises(EmbedlossError, match="E301"):
        load_encoder(bert)
    assert not ran
    linear = nn.Linear(16, 8)
    torch.save({f"linear.{k}": v for k, v in linear.state_dict().items()}, bert / "2_Dense" / "pytorch_model.bin")
    assert load_encoder(bert).encode(TEXTS).shape == (len(TEXTS), 8)


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "~/nowhere-at-all", "a/b/c", "..", "no where"])
def test_missing_folder_asks_no_hub(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub

    def forbidden(*_: Any, **__: Any) -> None:
        raise AssertionError("the hub was asked")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", forbidden)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(EmbedlossError, match="E301"):
        load_encoder(name)
    with pytest.raises(EmbedlossError, match="E301"):
        load_encoder(Path("nowhere"))


def test_hub_id_is_downloaded_once(bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    calls = []

    def snapshot(name: str, revision: str | None, allow_patterns: list[str], ignore_patterns: list[str]) -> str:
        calls.append((name, revision, tuple(allow_patterns)))
        if name == "no/such":
            raise huggingface_hub.errors.LocalEntryNotFoundError("not there\nsecond line")
        return str(bert)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    assert load_encoder("owner/model", revision="main").dimension == 8
    assert [c[:2] for c in calls] == [("owner/model", "main")]
    assert "*.py" not in calls[0][2]
    assert "*.bin" not in calls[0][2]
    with pytest.raises(EmbedlossError, match=r"E301: there is no folder 'no/such'.*Check the name"):
        load_encoder("no/such")


def test_remote_code_is_refused(plain: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(plain["bert"], tmp_path / "m")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "code.C", "AutoModel": "code.M"}}
    (tmp_path / "m" / "config.json").write_text(json.dumps(config))
    (tmp_path / "m" / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(EmbedlossError, match="E301"):
        load_encoder(tmp_path / "m")
    assert not (tmp_path / "ran").exists()


def test_a_missing_pooler_is_not_invented(tmp_path: Path) -> None:
    import transformers as t

    model = t.BertModel(t.BertConfig(vocab_size=120, **SIZES), add_pooling_layer=False)
    model.save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    encoder = load_encoder(tmp_path)
    assert isinstance(encoder, BiEncoder)
    assert not [n for n, _ in encoder.named_parameters() if "pooler" in n]
    encoder.save(tmp_path / "again")
    np.testing.assert_array_equal(load_encoder(tmp_path / "again").encode(TEXTS), encoder.encode(TEXTS))


def test_loading_is_silent(bert: Path, capfd: pytest.CaptureFixture[str]) -> None:
    load_encoder(bert).save(bert / "again")
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""


# -- static ---------------------------------------------------------------------------------------------------------------
def test_static_is_the_mean_of_word_vectors(tmp_path: Path) -> None:
    encoder = new_static_encoder(TEXTS, dimension=8, seed=1)
    table = encoder.embedding.weight.detach().numpy()
    found = encoder.encode(TEXTS)
    for text, vector in zip(TEXTS, found, strict=True):
        ids = encoder.processor.tokenizer.encode(text, add_special_tokens=False).ids
        np.testing.assert_allclose(vector, table[ids].mean(0) if ids else np.zeros(8), atol=1e-6)
    again = new_static_encoder(TEXTS, dimension=8, seed=1)
    np.testing.assert_array_equal(again.encode(TEXTS), found)
    assert not np.allclose(new_static_encoder(TEXTS, dimension=8, seed=2).encode(TEXTS), found)
    encoder.after.append(Normalize())
    encoder.prompts = {"query": "one "}
    encoder.save(tmp_path)
    loaded = load_encoder(tmp_path, max_length=3)
    assert isinstance(loaded, StaticEncoder)
    assert loaded.prompts == {"query": "one "}
    assert [len(i) for i in loaded.processor.tokenize(TEXTS)][1:3] == [3, 0]
    loaded.save(tmp_path / "cut")
    assert load_encoder(tmp_path / "cut").processor.max_length == 3


def test_static_vocabulary_does_not_depend_on_hash_seeds() -> None:
    draw = random.Random(0)
    texts = [" ".join("".join(draw.choices("abcdefgh", k=draw.randint(1, 6))) for _ in range(9)) for _ in range(300)]
    first, *others = [train_wordpiece(texts, 200).get_vocab() for _ in range(4)]
    assert len(first) == 200
    assert all(other == first for other in others)
    tokenizer = train_wordpiece(["ab abc [PAD] ##b"], 40)
    assert tokenizer.encode("##b", add_special_tokens=False).tokens == ["#", "#", "b"]


def test_static_tokenises_many_texts_as_one_by_one() -> None:
    encoder = new_static_encoder(TEXTS, dimension=8)
    texts = [f"{TEXTS[i % len(TEXTS)]} {TEXTS[i // 7 % len(TEXTS)]}" for i in range(2 * AT_ONCE + 3)]
    found = encoder.processor.tokenize(texts, "query ")
    assert len(found) == len(texts)
    assert len({item.ids.tobytes() for item in found}) > 10
    for text, item in list(zip(texts, found, strict=True))[:: AT_ONCE // 8]:
        assert item.ids.tolist() == encoder.processor.tokenizer.encode("query " + text, add_special_tokens=False).ids


def test_static_gradients_and_layers() -> None:
    encoder = new_static_encoder(TEXTS, dimension=8)
    features = encoder.processor.pad(encoder.processor.tokenize(TEXTS))
    assert not encoder.processor.chunked
    output = encode_chunks(encoder, [features], torch.arange(len(TEXTS)), recompute=True, layers=True)
    assert len(output) == encoder.n_layers + 1 == 1
    output[0].square().sum().backward()
    assert encoder.embedding.weight.grad is not None
    assert encoder.embedding.weight.grad.abs().max() > 0
    assert (
        pickle.loads(pickle.dumps(encoder.processor)).tokenize(["one"])[0].ids.tolist()
        == encoder.processor.tokenize(["one"])[0].ids.tolist()
    )
    assert encoder.processor.pad([])["offsets"].shape == (0,)


def test_static_refuses_a_table_that_is_too_small(tmp_path: Path) -> None:
    encoder = new_static_encoder(TEXTS, dimension=8)
    with pytest.raises(EmbedlossError, match="E301"):
        StaticEncoder(torch.zeros(3, 8), encoder.processor)
    encoder.save(tmp_path)
    (tmp_path / "0_StaticEmbedding" / "tokenizer.json").write_text("{")
    with pytest.raises(EmbedlossError, match="E301"):
        load_encoder(tmp_path)


# -- cross-encoder --------------------------------------------------------------------------------------------------------
PAIRS = [("one", "a rather longer text"), ("words " * 50, "two words " * 50), ("", "one"), ("many", "words")]


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert", "llama"])
def test_cross_encoder_from_a_plain_model(plain: dict[str, Path], tmp_path: Path, kind: str) -> None:
    encoder = load_encoder(plain[kind], "cross-encoder", num_labels=2, seed=4)
    assert isinstance(encoder, CrossEncoder)
    scores = encoder.predict(PAIRS)
    assert scores.shape == (4, 2)
    assert np.ptp(scores) > 0
    np.testing.assert_array_equal(load_encoder(plain[kind], "cross-encoder", num_labels=2, seed=4).predict(PAIRS), scores)
    assert not np.allclose(load_encoder(plain[kind], "cross-encoder", num_labels=2, seed=5).predict(PAIRS), scores)
    for budget in (1, 60):
        np.testing.assert_allclose(encoder.predict(PAIRS, chunk_tokens=budget), scores, atol=1e-6)
    encoder.save(tmp_path)
    again = load_encoder(tmp_path)
    assert isinstance(again, CrossEncoder)
    np.testing.assert_allclose(again.predict(PAIRS), scores, atol=1e-6)
    assert load_encoder(tmp_path, num_labels=1).predict(PAIRS).shape == (4,)
    with pytest.raises(EmbedlossError, match="E301"):
        load_encoder(tmp_path, "bi-encoder")
    with pytest.raises(EmbedlossError, match="E302"):
        encoder.encode(["a"])


def test_pairs_are_cut_and_typed(plain: dict[str, Path]) -> None:
    encoder = load_encoder(plain["bert"], "cross-encoder", max_length=20)
    assert isinstance(encoder, CrossEncoder)
    items = encoder.processor.tokenize_pairs(*zip(*PAIRS, strict=True))
    assert [len(i) for i in items][1] == 20
    features = encoder.processor.pad(items)
    first = features["token_type_ids"][0]
    assert first.sum() == len(items[0]) - 3  # all but [CLS], "one" and the first [SEP]
    assert encoder.training is False or encoder.predict(PAIRS).shape == (4,)
    np.testing.assert_allclose(
        encoder.predict(PAIRS), 1 / (1 + np.exp(-encoder.predict(PAIRS, activation="Identity"))), atol=1e-6
    )


def test_static_makes_no_cross_encoder(tmp_path: Path) -> None:
    new_static_encoder(TEXTS, dimension=8).save(tmp_path)
    with pytest.raises(EmbedlossError, match="E301"):
        load_encoder(tmp_path, "cross-encoder")
    with pytest.raises(EmbedlossError, match="E301: kind"):
        load_encoder(tmp_path, "encoder")


# -- card -----------------------------------------------------------------------------------------------------------------
def test_card_says_what_it_was_told(tmp_path: Path) -> None:
    from huggingface_hub import ModelCard

    encoder = new_static_encoder(TEXTS, 8)
    facts: dict[str, Any] = {"base_model": "owner/base", "data": "pairs | of texts", "license": "mit", "training_time": "3 s"}
    write_card(tmp_path, encoder=encoder, loss="mnrl(scale=20)", citation="Someone 2020", metrics={"ndcg@10": 0.5}, **facts)
    card = ModelCard.load(tmp_path / "README.md")
    assert (card.data.base_model, card.data.license, card.data.library_name) == ("owner/base", "mit", "sentence-transformers")
    for part in ("`mnrl(scale=20)`", "Someone 2020", "| ndcg@10 | 0.5 |", "pairs &#124; of texts", "| Training time | 3 s |"):
        assert part in card.text
    write_card(tmp_path, base_model=str(tmp_path))
    assert str(tmp_path.parent) not in (tmp_path / "README.md").read_text()
