"""The denoising auto-encoder on a tiny BERT: against plain loops, tying, saving, damaging, edges."""

import copy
import math
import random
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertModel, DistilBertConfig, DistilBertModel, LlamaConfig, LlamaModel

from embedloss import Embeddings, EmbedlossError, create_loss, list_losses
from embedloss.loss import ModelInfo
from embedloss_reconstruction.functional import delete_words, padding_last, target_loss
from embedloss_reconstruction.losses import DenoisingAutoEncoderLoss

WIDTH, WORDS = 16, 30
IDS = torch.tensor([[2, 7, 8, 9, 3], [2, 11, 3, 0, 0], [2, 3, 0, 0, 0]])
MASK = (IDS != 0).long()


def encoder(seed=0, **more):
    torch.manual_seed(seed)
    sizes = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24, **more}
    backbone = BertModel(BertConfig(vocab_size=WORDS, max_position_embeddings=16, initializer_range=0.4, **sizes))
    return SimpleNamespace(model=backbone.double().eval())


def made(seed=0, **parameters):
    student = encoder(seed)
    loss = DenoisingAutoEncoderLoss(**parameters)
    loss.prepare(ModelInfo(WIDTH, student))
    with torch.no_grad():  # new weights are small; larger ones make the memory matter
        for name, value in loss.decoder.named_parameters():
            if "crossattention" in name and name.endswith("weight"):
                value.normal_(std=0.5)
    return loss.double().eval(), student


def memory(rows=3, seed=5):
    return torch.randn(rows, WIDTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).requires_grad_()


def embeddings(x, ids=IDS, mask=MASK):
    return Embeddings.of(damaged=x).with_tokens(original=(ids, mask))


def test_value_and_gradient_equal_one_token_after_the_other():
    loss, _ = made()
    x = memory()
    output = loss(embeddings(x))
    total, count = 0.0, 0
    for i, row in enumerate(IDS):
        length = int(MASK[i].sum())
        for k in range(1, length):
            prefix = row[:k][None]
            logits = loss.decoder(input_ids=prefix, encoder_hidden_states=x[i : i + 1, None], use_cache=False).logits[0, -1]
            biggest = logits.max().detach()
            total = total - (logits[row[k]] - biggest - sum((v - biggest).exp() for v in logits).log())
            count += 1
    assert count == 4 + 2 + 1
    assert int(output.metrics["tokens"]) == count
    leaves = [x, *[p for p in loss.decoder.parameters()]]
    found = torch.autograd.grad(output.total, leaves, allow_unused=True, materialize_grads=True)
    wanted = torch.autograd.grad(total / count, leaves, allow_unused=True, materialize_grads=True)
    torch.testing.assert_close(output.total, total / count, rtol=1e-12, atol=0)
    assert float(wanted[0].abs().max()) > 1e-3
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


def test_target_loss_equals_the_loop():
    logits = torch.randn(3, 4, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ids, mask = torch.randint(9, (3, 5), generator=torch.Generator().manual_seed(1)), MASK.bool()
    total, counts = target_loss(logits, ids, mask)
    expected = 0.0
    for i in range(3):
        for k in range(1, int(mask[i].sum())):
            row = logits[i, k - 1].tolist()
            expected -= row[int(ids[i, k])] - math.log(sum(math.exp(v) for v in row))
    assert float(total) == pytest.approx(expected, rel=1e-12)
    assert counts.tolist() == [4, 2, 1]


def test_rows_and_side_and_width_of_padding_do_not_matter():
    loss, _ = made()
    x = memory()
    value = loss(embeddings(x)).total
    order = torch.tensor([2, 0, 1])
    torch.testing.assert_close(loss(embeddings(x[order], IDS[order], MASK[order])).total, value)
    wider = nn.functional.pad(IDS, (0, 4)), nn.functional.pad(MASK, (0, 4))
    torch.testing.assert_close(loss(embeddings(x, *wider)).total, value)
    left_ids, left_mask = IDS.clone(), MASK.clone()
    left_ids[1], left_mask[1] = torch.tensor([0, 0, 2, 11, 3]), torch.tensor([0, 0, 1, 1, 1])
    torch.testing.assert_close(loss(embeddings(x, left_ids, left_mask)).total, value)
    assert padding_last(left_ids, left_mask)[0].tolist() == IDS.tolist()


def test_padding_is_known_by_the_mask_and_not_by_the_id():
    loss, _ = made()
    x = memory()
    ids = IDS.clone()
    ids[0, 4] = 0  # the end token is the padding token here, and it is to be learnt
    assert int(loss(embeddings(x, ids, MASK)).metrics["tokens"]) == 7
    other = torch.where(MASK.bool(), ids, 17)
    torch.testing.assert_close(loss(embeddings(x, other, MASK)).total, loss(embeddings(x, ids, MASK)).total)


def test_the_embedding_is_what_is_read():
    loss, _ = made()
    first, second = (loss(embeddings(memory(seed=seed).detach())).total.detach() for seed in (5, 6))
    assert float((first - second).abs()) > 1e-3


@pytest.mark.parametrize(
    ("ids", "mask"), [(IDS[:, :1], MASK[:, :1]), (IDS, torch.zeros_like(MASK)), (IDS, torch.tensor([[1, 0, 0, 0, 0]] * 3))]
)
def test_nothing_to_learn_is_zero_and_connected(ids, mask):
    loss, student = made()
    x = memory()
    output = loss(embeddings(x, ids, mask))
    assert float(output.total.detach()) == 0
    assert int(output.metrics["tokens"]) == 0
    output.total.backward()
    for value in (
        x,
        student.model.embeddings.word_embeddings.weight,
        loss.decoder.bert.encoder.layer[0].crossattention.self.value.weight,
    ):
        assert value.grad is not None
        assert float(value.grad.abs().max()) == 0


def test_nan_in_nan_out_and_half_is_float32():
    loss, _ = made()
    x = memory().detach()
    x[1, 3] = float("nan")
    assert torch.isnan(loss(embeddings(x)).total)
    half = loss.float()(embeddings(memory().detach().half()))
    assert half.total.dtype == torch.float32
    assert torch.isfinite(half.total)
    low = loss.bfloat16()(embeddings(memory().detach().bfloat16()))
    assert low.total.dtype == torch.float32
    assert torch.isfinite(low.total)


# -- tying and saving --------------------
def test_the_decoder_uses_the_encoders_weights_in_memory():
    student = encoder()
    with torch.no_grad():
        for value in student.model.parameters():
            value.add_(0.25)
    before = copy.deepcopy(student.model.state_dict())
    parameters = list(student.model.parameters())
    loss = DenoisingAutoEncoderLoss()
    loss.prepare(ModelInfo(WIDTH, student))
    for name, value in student.model.state_dict().items():
        assert torch.equal(value, before[name])
    assert all(a is b for a, b in zip(parameters, student.model.parameters(), strict=True))
    mine = {id(p) for p in student.model.parameters()}
    own = [name for name, p in loss.decoder.named_parameters() if id(p) not in mine]
    assert own
    assert all("crossattention" in name or name.startswith("cls.") for name in own)
    shared = [name for name, p in student.model.named_parameters() if id(p) in {id(q) for q in loss.decoder.parameters()}]
    assert shared == [name for name, _ in student.model.named_parameters() if not name.startswith("pooler")]
    assert loss.decoder.get_output_embeddings().weight is student.model.get_input_embeddings().weight


def test_each_parameter_is_optimised_once_and_the_encoder_is_no_submodule():
    loss, student = made()
    step = nn.ModuleDict({"encoder": student.model, "loss": loss})
    parameters = list(step.parameters())
    assert len(parameters) == len({id(p) for p in parameters})
    assert all(module is not student.model for module in loss.modules())
    own = {name for name, _ in step.named_parameters() if name.startswith("loss.")}
    assert own
    assert all("crossattention" in name or ".cls." in name for name in own)


def test_decoder_and_encoder_both_move_the_shared_weights():
    loss, student = made()
    hidden = student.model(input_ids=IDS, attention_mask=MASK).last_hidden_state[:, 0]
    through_both = torch.autograd.grad(loss(embeddings(hidden)).total, student.model.embeddings.word_embeddings.weight)[0]
    hidden = hidden.detach()
    through_decoder = torch.autograd.grad(loss(embeddings(hidden)).total, student.model.embeddings.word_embeddings.weight)[0]
    assert float(through_decoder.abs().max()) > 1e-6
    assert float((through_both - through_decoder).abs().max()) > 1e-6


def test_state_holds_only_own_weights_and_is_restored():
    loss, student = made()
    state = {name: value.clone() for name, value in loss.state_dict().items()}
    assert state
    assert all("crossattention" in name or name.startswith("decoder.cls.") for name in state)
    assert "decoder.cls.predictions.decoder.weight" not in state
    storages = [tensor.untyped_storage().data_ptr() for tensor in loss.state_dict().values()]
    assert len(set(storages)) == len(storages)  # safetensors refuses two names of one tensor
    with torch.no_grad():
        loss.decoder.cls.predictions.bias.add_(torch.arange(WORDS) / WORDS)
    state = {name: value.clone() for name, value in loss.state_dict().items()}
    value = loss(embeddings(memory())).total
    again = DenoisingAutoEncoderLoss()
    again.prepare(ModelInfo(WIDTH, student))
    again.double().eval()
    assert float((again(embeddings(memory())).total - value).abs()) > 1e-4
    again.load_state_dict(state)
    assert torch.equal(again(embeddings(memory())).total, value)
    # Inside another module as well.
    outer, other = nn.Module(), nn.Module()
    outer.loss, other.loss = loss, DenoisingAutoEncoderLoss()
    other.loss.prepare(ModelInfo(WIDTH, student))
    other.double().eval()
    assert set(outer.state_dict()) == {f"loss.{name}" for name in state}
    other.load_state_dict(outer.state_dict())
    assert torch.equal(other.loss(embeddings(memory())).total, value)


def test_a_missing_own_weight_is_still_an_error():
    loss, _ = made()
    state = dict(loss.state_dict())
    state.pop(next(name for name in state if "crossattention" in name))
    with pytest.raises(RuntimeError, match="Missing key"):
        loss.load_state_dict(state)


def test_prepare_twice_changes_nothing_and_a_copy_is_tied_to_the_copied_encoder():
    loss, student = made()
    decoder = loss.decoder
    loss.prepare(ModelInfo(WIDTH, student))
    assert loss.decoder is decoder
    step = nn.ModuleDict({"encoder": student.model, "loss": loss})
    twin = copy.deepcopy(step)
    weight = twin["encoder"].embeddings.word_embeddings.weight
    assert weight is twin["loss"].decoder.bert.embeddings.word_embeddings.weight
    assert weight is not student.model.embeddings.word_embeddings.weight
    assert set(twin["loss"].state_dict()) == set(loss.state_dict())


@pytest.fixture
def checkpoint(tmp_path):
    torch.manual_seed(3)
    sizes = {"hidden_size": WIDTH, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    BertModel(BertConfig(vocab_size=WORDS, max_position_embeddings=16, **sizes)).save_pretrained(tmp_path)
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"abcdefghijklmnopqrstuvwxyz"]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]").save_pretrained(tmp_path)
    return tmp_path


def tokenizer_of(folder):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def test_an_untied_decoder_shares_nothing_and_is_saved_whole(checkpoint):
    student = encoder()
    student.processor = SimpleNamespace(tokenizer=tokenizer_of(checkpoint))
    loss = DenoisingAutoEncoderLoss(str(checkpoint), tie_encoder_decoder=False)
    loss.prepare(ModelInfo(WIDTH, student))
    assert not {id(p) for p in student.model.parameters()} & {id(p) for p in loss.decoder.parameters()}
    assert "decoder.bert.embeddings.word_embeddings.weight" in loss.state_dict()
    assert "decoder.cls.predictions.decoder.weight" not in loss.state_dict()  # the same under another name
    assert torch.isfinite(loss(embeddings(memory())).total)
    kept = loss.decoder.bert.embeddings.word_embeddings.weight
    assert torch.equal(kept, BertModel.from_pretrained(checkpoint).embeddings.word_embeddings.weight)


def test_another_vocabulary_is_tokenised_again(checkpoint):
    student = encoder()
    other = tokenizer_of(checkpoint)
    student.processor = SimpleNamespace(tokenizer=tokenizer_of(checkpoint))
    student.processor.tokenizer.add_tokens(["new"])
    loss = DenoisingAutoEncoderLoss(str(checkpoint), tie_encoder_decoder=False)
    loss.prepare(ModelInfo(WIDTH, student))
    text = ["a c e", "z"]
    ids = student.processor.tokenizer(text, padding=True, return_tensors="pt")
    x = memory(2).float()
    value = loss.eval()(embeddings(x, ids["input_ids"], ids["attention_mask"])).total
    loss._translate = None
    again = other(text, padding=True, return_tensors="pt")
    torch.testing.assert_close(loss(embeddings(x, again["input_ids"], again["attention_mask"])).total, value)


def test_the_checkpoints_head_is_used_where_it_has_one(tmp_path):
    from transformers import BertForMaskedLM

    torch.manual_seed(7)
    sizes = {"hidden_size": WIDTH, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    model = BertForMaskedLM(BertConfig(vocab_size=WORDS, max_position_embeddings=16, initializer_range=0.7, **sizes))
    model.save_pretrained(tmp_path)
    backbone = BertModel.from_pretrained(tmp_path)
    loss = DenoisingAutoEncoderLoss()
    loss.prepare(ModelInfo(WIDTH, SimpleNamespace(model=backbone)))
    assert torch.equal(loss.decoder.cls.predictions.transform.dense.weight, model.cls.predictions.transform.dense.weight)
    backbone.config._name_or_path = str(tmp_path / "gone")  # still works without it
    without = DenoisingAutoEncoderLoss()
    without.prepare(ModelInfo(WIDTH, SimpleNamespace(model=backbone)))
    assert without.decoder.get_input_embeddings().weight is backbone.get_input_embeddings().weight


def test_a_resized_vocabulary_is_the_decoders_too(tmp_path):
    student = encoder()
    student.model.save_pretrained(tmp_path)
    backbone = BertModel.from_pretrained(tmp_path)
    backbone.resize_token_embeddings(WORDS + 5)
    loss = DenoisingAutoEncoderLoss()
    loss.prepare(ModelInfo(WIDTH, SimpleNamespace(model=backbone)))
    ids = IDS.clone()
    ids[0, 2] = WORDS + 4
    assert torch.isfinite(loss(embeddings(memory().detach().float(), ids)).total)
    assert loss.decoder.get_output_embeddings().weight is backbone.get_input_embeddings().weight


@pytest.mark.parametrize("text", ["tsdae()", "adaptive_layer(tsdae())", "matryoshka(tsdae(), dims=[32, 16])"])
def test_a_run_trains_saves_and_resumes(text, tmp_path):
    from embedloss import load_encoder
    from embedloss.collate import Collator
    from embedloss.testing.models import SENTENCES, tiny_bert
    from embedloss.training.step import TrainingStep
    from embedloss.training.trainer import load_step, save_step

    folder = tiny_bert(tmp_path / "start", dropout=0.0)
    pytest.importorskip("embedloss_modifiers") if text != "tsdae()" else None
    step = TrainingStep(load_encoder(folder), create_loss(text))
    rows = [{"text": s, "_row": i} for i, s in enumerate(SENTENCES[:8])]
    batch = Collator(step.encoder.processor, step.loss, "single")(rows)
    assert set(batch["layout"]) == {"damaged"}  # the original is not encoded
    optimizer = torch.optim.Adam([p for p in step.parameters() if p.requires_grad], lr=3e-3)
    values = []
    for _ in range(20):
        optimizer.zero_grad()
        value = step(batch)["loss"]
        value.backward()
        optimizer.step()
        values.append(float(value.detach()))
    assert values[-1] < 0.8 * values[0]
    save_step(step, tmp_path / "end", training=True)
    again = TrainingStep(load_encoder(folder), create_loss(text))
    load_step(again, tmp_path / "end")
    assert float(again(batch)["loss"]) == pytest.approx(float(step(batch)["loss"]), rel=1e-6)


# -- the damaging step --------------------
def test_words_are_deleted_with_the_given_probability():
    rng, words = random.Random(0), [f"w{i}" for i in range(20_000)]
    kept = delete_words(" ".join(words), 0.6, rng).split()
    assert abs(len(kept) / len(words) - 0.4) < 0.02
    assert kept == [w for w in words if w in set(kept)]  # in order


def test_one_word_stays():
    seen = set()
    for seed in range(50):
        kept = delete_words("one two three", 0.999, random.Random(seed)).split()
        assert len(kept) >= 1
        seen.update(kept)
    assert seen == {"one", "two", "three"}
    assert delete_words("alone", 0.999, random.Random(0)) == "alone"
    assert delete_words("", 0.6, random.Random(0)) == ""
    assert delete_words("  ", 0.6, random.Random(0)) == "  "


def test_transform_is_seeded_and_keeps_other_fields():
    loss = DenoisingAutoEncoderLoss()
    rows = [{"text": "a b c d e f g h", "_row": 4}, {"text": "i j k l m n o p", "_row": 5}]
    first = loss.transform(rows, "single", random.Random(1))
    assert first == loss.transform(rows, "single", random.Random(1))
    assert first != loss.transform(rows, "single", random.Random(2))
    changed, name = first
    assert name == "source-target"
    assert changed[0]["original"] == rows[0]["text"]
    assert changed[0]["_row"] == 4
    assert "text" not in changed[0]
    assert set(changed[0]["damaged"].split()) < set(rows[0]["text"].split())
    pairs = [{"damaged": "a", "original": "a b"}]
    assert loss.transform(pairs, "source-target", random.Random(1)) == (pairs, "source-target")
    assert (
        DenoisingAutoEncoderLoss(noise="none").transform(rows, "single", random.Random(1))[0][0]["damaged"] == rows[0]["text"]
    )
    custom = DenoisingAutoEncoderLoss(noise=lambda text, rng: text[::-1])
    assert custom.transform(rows, "single", random.Random(1))[0][0]["damaged"] == rows[0]["text"][::-1]
    with pytest.raises(EmbedlossError, match="cannot be written"):
        custom.to_expression()


# -- errors --------------------
def test_wrong_parameters():
    with pytest.raises(ValueError, match="needs decoder_name_or_path"):
        DenoisingAutoEncoderLoss(tie_encoder_decoder=False)
    with pytest.warns(UserWarning, match="not used"):
        DenoisingAutoEncoderLoss("bert-base-uncased")
    with pytest.raises(ValueError, match="del_ratio"):
        DenoisingAutoEncoderLoss(del_ratio=1)
    with pytest.raises(ValueError, match="noise"):
        DenoisingAutoEncoderLoss(noise="swap")


def test_encoders_without_a_decoder_are_refused():
    def prepare(backbone, width=WIDTH, **parameters):
        DenoisingAutoEncoderLoss(**parameters).prepare(ModelInfo(width, SimpleNamespace(model=backbone)))

    with pytest.raises(EmbedlossError, match=r"E302.*static"):
        prepare(None)
    with pytest.raises(EmbedlossError, match=r"E302.*8 dimensions.*reads 16"):
        prepare(encoder().model, 8)
    small = {
        "vocab_size": WORDS,
        "hidden_size": WIDTH,
        "intermediate_size": 24,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    with pytest.raises(EmbedlossError, match=r"E302.*no cross-attention"):
        prepare(LlamaModel(LlamaConfig(**small, num_key_value_heads=2)))
    with pytest.raises(EmbedlossError, match=r"E302.*no decoder form"):
        prepare(DistilBertModel(DistilBertConfig(vocab_size=WORDS, dim=WIDTH, hidden_dim=24, n_layers=1, n_heads=2)))
    with pytest.raises(EmbedlossError, match=r"E301.*nowhere"):
        prepare(encoder().model, decoder_name_or_path="/nowhere/at/all", tie_encoder_decoder=False)


def test_use_before_prepare_and_without_tokens():
    with pytest.raises(EmbedlossError, match=r"E206.*prepare"):
        DenoisingAutoEncoderLoss()(embeddings(memory()))
    loss, _ = made()
    with pytest.raises(EmbedlossError, match=r"E206.*token ids of 'original'"):
        loss(Embeddings.of(damaged=memory()))
    with pytest.raises(EmbedlossError, match="E206"):
        loss(Embeddings.of(anchor=memory()))


def test_narrow_views_are_read_through_the_first_columns():
    loss, _ = made()
    x = memory()
    padded = x * (torch.arange(WIDTH) < 6)
    torch.testing.assert_close(loss(embeddings(x).map(lambda v: v[:, :6])).total, loss(embeddings(padded)).total)


def test_listed_with_its_aliases():
    [spec] = list_losses(family="reconstruction")
    assert spec.format_names() == ("source-target", "single")
    for name in ("tsdae", "dae", "denoising_auto_encoder"):
        assert isinstance(create_loss(name), DenoisingAutoEncoderLoss)
    assert create_loss(create_loss("tsdae(del_ratio=0.5)").to_expression()).del_ratio == 0.5
