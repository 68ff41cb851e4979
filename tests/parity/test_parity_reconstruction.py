"""The denoising auto-encoder against sentence-transformers, on a small BERT."""

from types import SimpleNamespace

import pytest
import torch

from embedloss import Embeddings, create_loss
from embedloss.loss import ModelInfo

pytest.importorskip("sentence_transformers")
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer import losses as peer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from transformers import BertConfig, BertForMaskedLM, BertTokenizerFast

NAME = "denoising-auto-encoder"
ORIGINAL = ["the cat sat on the mat", "a dog runs home", "red", "", "the red dog sat"]
DAMAGED = ["cat mat", "dog", "red", "", "the dog"]
BITS = {torch.float64: ("float64", 1e-8), torch.float32: ("float32", 1e-5)}


def make_folder(path, seed, hidden=16):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"the a cat dog sat on mat red runs home".split()]  # noqa: SIM905
    BertTokenizerFast(vocab={w: i for i, w in enumerate(words)}).save_pretrained(path)
    torch.manual_seed(seed)
    sizes = {"hidden_size": hidden, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    config = BertConfig(vocab_size=len(words), max_position_embeddings=32, initializer_range=0.4, **sizes)
    BertForMaskedLM(config).save_pretrained(path)
    return str(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("bert"), 0)


def student(folder):
    return SentenceTransformer(modules=[Transformer(folder), Pooling(16, "cls")], device="cpu").eval()


def tokens(model, texts):
    return {k: v for k, v in model.tokenize(texts).items() if isinstance(v, torch.Tensor)}


def ours(model, theirs, dtype, **parameters):
    """Our loss on the same encoder, with the peer's new weights copied."""
    backbone = model[0].auto_model
    loss = create_loss("tsdae", **parameters)
    loss.prepare(ModelInfo(16, SimpleNamespace(model=backbone, processor=SimpleNamespace(tokenizer=model.tokenizer))))
    loss.decoder.load_state_dict(theirs.decoder.state_dict(), strict=False)
    return loss.to(dtype).eval()


def total(loss, model, damaged=DAMAGED, original=ORIGINAL):
    target = tokens(model, original)
    encoded = model(tokens(model, damaged))["sentence_embedding"]
    emb = Embeddings.of(damaged=encoded).with_tokens(original=(target["input_ids"], target["attention_mask"]))
    return loss(emb).total


def named(backbone, decoder):
    """Parameters by name: the encoder's, and those of the decoder that are not the encoder's."""
    found = {f"encoder.{n}": p for n, p in backbone.named_parameters() if not n.startswith("pooler")}
    known = {id(p) for p in found.values()}
    return found | {f"decoder.{n}": p for n, p in decoder.named_parameters() if id(p) not in known}


def gradients(value, leaves):
    found = torch.autograd.grad(value, list(leaves.values()), allow_unused=True, materialize_grads=True)
    return dict(zip(leaves, found, strict=True))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("rows", [[0, 1, 2, 3, 4], [0], [3], [1, 2], [i % 5 for i in range(64)]])
def test_value_and_gradient(folder, tmp_path, dtype, tied, rows, record_property):
    decoder = None if tied else make_folder(tmp_path, 1)
    parameters = {} if tied else {"decoder_name_or_path": decoder, "tie_encoder_decoder": False}
    theirs_model, ours_model = student(folder).to(dtype), student(folder).to(dtype)
    torch.manual_seed(2)
    theirs = peer.DenoisingAutoEncoderLoss(theirs_model, **parameters).to(dtype).eval()
    with torch.no_grad():  # new cross-attention is small; larger weights make the memory matter
        for name, value in theirs.decoder.named_parameters():
            if "crossattention" in name and name.endswith("weight"):
                value.normal_(std=0.5)
    mine = ours(ours_model, theirs, dtype, **parameters)
    damaged, original = [DAMAGED[i] for i in rows], [ORIGINAL[i] for i in rows]
    value = total(mine, ours_model, damaged, original)
    expected = theirs([tokens(theirs_model, damaged), tokens(theirs_model, original)], None)
    found = named(ours_model[0].auto_model, mine.decoder)
    wanted = named(theirs_model[0].auto_model, theirs.decoder)
    assert set(found) == set(wanted)
    a = dict(
        zip(found, torch.autograd.grad(value, list(found.values()), allow_unused=True, materialize_grads=True), strict=True)
    )
    b = dict(
        zip(
            wanted, torch.autograd.grad(expected, list(wanted.values()), allow_unused=True, materialize_grads=True), strict=True
        )
    )
    bits, tolerance = BITS[dtype]
    assert float((value - expected).detach().abs()) <= tolerance * float(expected.detach())
    largest = max(float(g.abs().max()) for g in b.values())
    assert float(b["encoder.embeddings.word_embeddings.weight"].abs().max()) > 1e-4
    assert float(b["encoder.encoder.layer.0.attention.self.value.weight"].abs().max()) > 1e-4
    for name in wanted:
        assert float((a[name] - b[name]).abs().max()) <= tolerance * largest, name
    record_property("parity", (NAME, f"value {bits}"))
    record_property("parity", (NAME, f"gradient {bits}"))


def test_the_encoders_weights_are_kept_on_purpose(folder, record_property):
    theirs_model, ours_model = student(folder), student(folder)
    texts = tokens(ours_model, ORIGINAL)
    loaded = ours_model(dict(texts))["sentence_embedding"].detach()
    for model in (theirs_model, ours_model):
        with torch.no_grad():
            for value in model.parameters():
                value.mul_(1.5)
    changed = ours_model(dict(texts))["sentence_embedding"].detach()
    assert float((changed - loaded).abs().max()) > 0.01
    theirs = peer.DenoisingAutoEncoderLoss(theirs_model)
    torch.testing.assert_close(theirs_model(dict(texts))["sentence_embedding"], loaded)  # the change is undone
    ours(ours_model, theirs, torch.float32)
    loss = create_loss("tsdae")
    fresh = student(folder)
    with torch.no_grad():
        for value in fresh.parameters():
            value.mul_(1.5)
    loss.prepare(ModelInfo(16, SimpleNamespace(model=fresh[0].auto_model)))
    assert torch.equal(fresh(dict(texts))["sentence_embedding"], changed)  # the change is kept
    record_property("parity", (NAME, "differs on purpose"))


def test_a_target_of_one_token(folder, record_property):
    model = student(folder)
    theirs = peer.DenoisingAutoEncoderLoss(model).eval()
    one = {"input_ids": torch.tensor([[2], [2]]), "attention_mask": torch.ones(2, 1, dtype=torch.int64)}
    with pytest.raises(RuntimeError):
        theirs([tokens(model, DAMAGED[:2]), one], None)
    fresh = student(folder)
    mine = ours(fresh, theirs, torch.float32)
    encoded = fresh(tokens(fresh, DAMAGED[:2]))["sentence_embedding"]
    value = mine(Embeddings.of(damaged=encoded).with_tokens(original=(one["input_ids"], one["attention_mask"]))).total
    assert float(value.detach()) == 0
    value.backward()
    assert float(fresh[0].auto_model.embeddings.word_embeddings.weight.grad.abs().max()) == 0
    record_property("parity", (NAME, "edges"))


def test_an_end_token_that_is_also_padding_is_learnt_on_purpose(folder, record_property):
    theirs_model, ours_model = student(folder), student(folder)
    theirs = peer.DenoisingAutoEncoderLoss(theirs_model).eval()
    mine = ours(ours_model, theirs, torch.float32)
    theirs.tokenizer_decoder.pad_token = "[SEP]"  # as for GPT-2, whose padding is its end token
    row = ["the cat sat"]
    ignored = theirs([tokens(theirs_model, row), tokens(theirs_model, row)], None)
    target = tokens(ours_model, row)
    encoded = ours_model(tokens(ours_model, row))["sentence_embedding"]
    with_end = mine(Embeddings.of(damaged=encoded).with_tokens(original=(target["input_ids"], target["attention_mask"])))
    without = torch.ones_like(target["attention_mask"])
    without[:, -1] = 0
    cut = mine(Embeddings.of(damaged=encoded).with_tokens(original=(target["input_ids"], without)))
    assert int(with_end.metrics["tokens"]) == int(cut.metrics["tokens"]) + 1
    torch.testing.assert_close(cut.total, ignored, rtol=1e-5, atol=1e-6)
    assert float((with_end.total - cut.total).detach().abs()) > 1e-3
    record_property("parity", (NAME, "differs on purpose"))
