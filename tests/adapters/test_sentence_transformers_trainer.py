"""Our losses inside the trainers of sentence-transformers: the same steps as their own losses, with one line changed."""

import os

import pytest
import torch

pytest.importorskip("sentence_transformers")
os.environ.setdefault("WANDB_DISABLED", "true")

import embedloss
from embedloss import EmbedlossError
from embedloss.adapters.columns import is_plain, make_chunks
from embedloss.testing.models import SENTENCES, tiny_bert, tiny_cross_encoder

torch.set_num_threads(1)

BI = """
from datasets import Dataset
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.sentence_transformer import losses

model = SentenceTransformer(folder, device="cpu")
train_dataset = Dataset.from_dict(data)
loss = losses.MultipleNegativesRankingLoss(model)
args = SentenceTransformerTrainingArguments(
    output_dir=out, max_steps=20, per_device_train_batch_size=4, learning_rate=1e-3, report_to="none", save_strategy="no",
    disable_tqdm=True, logging_steps=1, use_cpu=True,
)
trainer = SentenceTransformerTrainer(model=model, args=args, train_dataset=train_dataset, loss=loss)
"""
CROSS = """
from datasets import Dataset
from sentence_transformers.cross_encoder import CrossEncoder, CrossEncoderTrainer, CrossEncoderTrainingArguments, losses

model = CrossEncoder(folder, num_labels=1, device="cpu")
train_dataset = Dataset.from_dict(data)
loss = losses.BinaryCrossEntropyLoss(model)
args = CrossEncoderTrainingArguments(
    output_dir=out, max_steps=20, per_device_train_batch_size=4, learning_rate=1e-3, report_to="none", save_strategy="no",
    disable_tqdm=True, logging_steps=1, use_cpu=True,
)
trainer = CrossEncoderTrainer(model=model, args=args, train_dataset=train_dataset, loss=loss)
"""
LISTWISE = CROSS.replace("BinaryCrossEntropyLoss", "LambdaLoss")
PAIRS = {"anchor": list(SENTENCES[::2]), "positive": list(SENTENCES[1::2])}


def run(script, data, folder, out, line=None):
    """The losses of all steps and the trained weights of a script, with its line that makes the loss exchanged."""
    if line is not None:
        assert sum(text.startswith("loss = ") for text in script.splitlines()) == 1
        script = "\n".join(line if text.startswith("loss = ") else text for text in script.splitlines())
    space = {"data": data, "folder": folder, "out": str(out), "embedloss": embedloss}
    exec(script, space)
    trainer = space["trainer"]
    seen = []
    compute = trainer.compute_loss

    def recorded(*args, **kwargs):
        value = compute(*args, **kwargs)
        seen.append(float((value[0] if isinstance(value, tuple) else value).detach()))
        return value

    trainer.compute_loss = recorded
    trainer.train()
    assert len(seen) == 20
    return seen, dict(space["model"].named_parameters()), trainer


def same_run(first, second, tolerance=1e-5):
    assert max(first[0]) - min(first[0]) > 1e-3  # it trained
    assert first[0] == pytest.approx(second[0], rel=tolerance, abs=tolerance)
    for name, parameter in first[1].items():
        # Of a bias that no score depends on (of attention keys, say) the gradient is rounding, which Adam makes full steps of.
        moment = first[2].optimizer.state.get(parameter)
        if moment is not None and float(moment["exp_avg_sq"].max()) < 1e-13:
            assert name.endswith("bias")
            continue
        parameter = parameter.detach()
        assert torch.allclose(parameter, second[1][name].detach(), atol=1e-4), name


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return tiny_bert(tmp_path_factory.mktemp("bert"), dropout=0)


@pytest.fixture(scope="module")
def reranker(tmp_path_factory):
    return tiny_cross_encoder(tmp_path_factory.mktemp("reranker"), dropout=0)


@pytest.fixture(scope="module")
def theirs(bert, tmp_path_factory):
    return run(BI, PAIRS, bert, tmp_path_factory.mktemp("theirs"))


@pytest.mark.parametrize(
    "line",
    [
        'loss = embedloss.for_sentence_transformers(model, "mnrl()")',
        'loss = embedloss.for_sentence_transformers(model, "mnrl()", chunk_tokens=40)',
        'loss = embedloss.for_sentence_transformers(model, "cached_mnrl()", chunk_tokens=40)',
    ],
)
def test_a_bi_encoder_script_trains_the_same_with_one_line_changed(line, theirs, bert, tmp_path):
    same_run(theirs, run(BI, PAIRS, bert, tmp_path, line))


def test_a_modified_loss_trains_the_same_and_is_logged_by_part(bert, tmp_path):
    peer = "loss = losses.MatryoshkaLoss(model, losses.MultipleNegativesRankingLoss(model), matryoshka_dims=[32, 16, 8])"
    ours = 'loss = embedloss.for_sentence_transformers(model, "matryoshka(mnrl(), matryoshka_dims=[32, 16, 8])")'
    first, second = run(BI, PAIRS, bert, tmp_path / "a", peer), run(BI, PAIRS, bert, tmp_path / "b", ours)
    same_run(first, second)
    logged = [entry for entry in second[2].state.log_history if "matryoshka/16/loss" in entry]
    assert len(logged) == 20
    parts = [sum(entry[f"matryoshka/{d}/loss"] for d in (32, 16, 8)) for entry in logged]
    assert parts == pytest.approx(second[0], abs=2e-4)  # logged with four digits


@pytest.mark.parametrize(
    ("data", "script", "line"),
    [
        (
            {"a": SENTENCES[::2], "b": SENTENCES[1::2], "label": [1, 0, 1, 0, 0, 1, 1, 0, 1]},
            CROSS,
            'loss = embedloss.for_sentence_transformers(model, "bce()", chunk_tokens=60, recompute=True)',
        ),
        (
            {
                "query": SENTENCES[:6],
                "docs": [list(SENTENCES[i + 6 : i + 8 + i % 3]) for i in range(6)],
                "labels": [[1.0, 0.0, 2.0, 1.0][: 2 + i % 3] for i in range(6)],
            },
            LISTWISE,
            'loss = embedloss.for_sentence_transformers(model, "lambda_loss()")',
        ),
    ],
    ids=["binary-cross-entropy", "lambda"],
)
def test_a_cross_encoder_script_trains_the_same_with_one_line_changed(data, script, line, reranker, tmp_path):
    data = {name: list(column) for name, column in data.items()}
    same_run(run(script, data, reranker, tmp_path / "a"), run(script, data, reranker, tmp_path / "b", line))


@pytest.mark.parametrize(
    ("data", "peer", "ours"),
    [
        (
            {"a": SENTENCES[:8], "b": SENTENCES[8:16], "score": [i / 7 for i in range(8)]},
            "losses.CoSENTLoss(model)",
            '"cosent()"',
        ),
        (
            {"a": SENTENCES[:6], "b": SENTENCES[6:12], "c": SENTENCES[12:]},
            "losses.TripletLoss(model, triplet_margin=3)",
            '"triplet(triplet_margin=3)"',
        ),
        (
            {"a": SENTENCES[:4], "b": SENTENCES[4:8], "c": SENTENCES[8:12], "d": SENTENCES[12:16]},
            "losses.MultipleNegativesRankingLoss(model)",
            '"mnrl()"',
        ),
        (
            {"a": SENTENCES[:4], "b": SENTENCES[4:8], "c": SENTENCES[8:12], "label": [[1.0, 0.5], [2, 0], [1, 1], [0, 3]]},
            "losses.MarginMSELoss(model)",
            '"margin_mse()"',
        ),
        (
            {"text": SENTENCES[:12], "label": [i % 3 for i in range(12)]},
            "losses.BatchSemiHardTripletLoss(model)",
            '"batch_semi_hard_triplet()"',
        ),
        (
            {"a": SENTENCES[:4], "b": SENTENCES[4:8], "label": [[0.1 * i] * 32 for i in range(4)]},
            "losses.MSELoss(model)",
            '"mse()"',
        ),
    ],
    ids=["cosent", "triplet", "n-tuples", "margin-mse", "single+class", "texts+embedding"],
)
def test_columns_become_roles(data, peer, ours, bert, tmp_path):
    """The first batch gives the value and gradient of their loss."""
    data = {name: list(column) for name, column in data.items()}
    found = []
    for line in (peer, f"embedloss.for_sentence_transformers(model, {ours})"):
        script = "\n".join(f"loss = {line}" if text.startswith("loss = ") else text for text in BI.splitlines())
        space = {"data": data, "folder": bert, "out": str(tmp_path), "embedloss": embedloss}
        exec(script, space)
        trainer, model = space["trainer"], space["model"]
        torch.manual_seed(0)
        batch = next(iter(trainer.get_train_dataloader()))
        value = trainer.compute_loss(trainer.model, batch)
        value.backward()
        gradient = torch.cat([p.grad.reshape(-1) for p in model.parameters() if p.grad is not None])
        found.append((value.detach(), gradient))
    (value, gradient), (ours_value, ours_gradient) = found
    assert gradient.abs().max() > 1e-4
    assert torch.allclose(value, ours_value, rtol=1e-5)
    assert torch.allclose(gradient, ours_gradient, atol=1e-5 * float(gradient.abs().max()))


@pytest.fixture
def model(bert):
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(bert, device="cpu")


def features(model, *columns):
    return [dict(model.preprocess(list(column))) for column in columns]


def gradients(module):
    return torch.cat([p.grad.reshape(-1) for p in module.parameters() if p.grad is not None])


def total(result):
    return torch.stack(list(result.values())).sum() if isinstance(result, dict) else result


def test_parts_add_up_to_the_total(model):
    columns = features(model, SENTENCES[:6], SENTENCES[6:12])
    for expression in ("mnrl() + 0.5 * gor() + 2 * gor()", "matryoshka(mnrl(), dims=[32, 8])", "gor()"):
        loss = embedloss.for_sentence_transformers(model, expression)
        parts = loss(columns)
        assert isinstance(parts, dict)
        assert len(parts) > 1
        assert torch.allclose(total(parts), loss.output.total)
    model.zero_grad()
    loss = embedloss.for_sentence_transformers(model, "matryoshka(mnrl(), dims=[32, 8], weights=[1, 3])")
    value = loss(columns)
    assert isinstance(value, torch.Tensor)  # the terms are logged without their weights and do not add up
    value.backward()
    assert gradients(model).abs().max() > 0


@pytest.mark.parametrize("expression", ["mnrl()", "adaptive_layer(mnrl())", "matryoshka_2d(mnrl(), dims=[32, 16])"])
def test_chunks_and_recomputation_change_nothing(expression, model):
    columns = features(model, SENTENCES[:6], SENTENCES[6:12], SENTENCES[12:])
    results = []
    for options in ({}, {"chunk_tokens": 30}, {"chunk_tokens": 30, "recompute": True}, {"recompute": True}):
        loss = embedloss.for_sentence_transformers(model, expression, **options)
        model.zero_grad()
        value = total(loss([dict(column) for column in columns]))
        value.backward()
        results.append((value.detach(), gradients(model)))
    assert results[0][1].abs().max() > 1e-3
    for value, gradient in results[1:]:
        assert torch.allclose(value, results[0][0], rtol=1e-5)
        assert torch.allclose(gradient, results[0][1], atol=1e-6 * float(gradient.abs().max()) * 10)


def test_recomputation_repeats_dropout_and_bounds_the_chunk(tmp_path):
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(tiny_bert(tmp_path, dropout=0.3), device="cpu").train()
    columns = features(model, SENTENCES[:9], SENTENCES[9:])
    results = []
    for recompute in (False, True):
        sizes = []
        hook = model[0].register_forward_pre_hook(lambda m, a, sizes=sizes: sizes.append(a[0]["input_ids"].numel()))
        loss = embedloss.for_sentence_transformers(model, "mnrl()", chunk_tokens=40, recompute=recompute)
        torch.manual_seed(1)
        model.zero_grad()
        total(loss([dict(c) for c in columns])).backward()
        hook.remove()
        results.append((gradients(model), sizes))
    (plain, once), (again, twice) = results
    assert plain.abs().max() > 1e-3
    assert torch.allclose(plain, again, atol=1e-6)
    assert max(once) <= 40
    assert len(once) > 3
    assert len(twice) == 2 * len(once) - 1


def test_padding_is_cut_off_and_made_anew(model):
    columns = features(model, SENTENCES[:5], SENTENCES[13:])
    chunks = make_chunks(columns, 30, model.tokenizer.pad_token_id)
    assert sorted(place for chunk in chunks for place in chunk.places) == list(range(10))
    tokens = [c["input_ids"].numel() for c in (chunk.features for chunk in chunks)]
    assert sum(tokens) < sum(c["input_ids"].numel() for c in columns)
    for chunk in chunks:
        assert int(chunk.features["attention_mask"].sum(1).max()) == chunk.features["input_ids"].shape[1]
        assert bool((chunk.features["input_ids"][chunk.features["attention_mask"] == 0] == model.tokenizer.pad_token_id).all())


def test_padding_on_the_left_stays_there(model):
    plain = features(model, SENTENCES[:5])[0]
    flipped = {k: v.flip(1) if isinstance(v, torch.Tensor) else v for k, v in plain.items()}
    for right, left in zip(make_chunks([plain], 30, 0), make_chunks([flipped], 30, 0), strict=True):
        assert right.places == left.places
        assert torch.equal(right.features["input_ids"], left.features["input_ids"].flip(1))


def test_prompts_of_different_lengths_never_share_a_chunk(bert):
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling

    first = SentenceTransformer(bert, device="cpu")
    model = SentenceTransformer(modules=[first[0], Pooling(32, "mean", include_prompt=False)], device="cpu")
    columns = [
        dict(model.preprocess(list(SENTENCES[:5]), prompt="query: ")),
        dict(model.preprocess(list(SENTENCES[5:10]))),
    ]
    values = [total(embedloss.for_sentence_transformers(model, "mnrl()", chunk_tokens=n)(columns)) for n in (None, 60)]
    assert torch.allclose(values[0], values[1], rtol=1e-5)
    columns[0].pop("prompt_length")
    assert not torch.allclose(total(embedloss.for_sentence_transformers(model, "mnrl()")(columns)), values[0], rtol=1e-3)


def test_static_embeddings_are_one_chunk_a_column():
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding

    tokenizer = embedloss.encoders.new_static_encoder(SENTENCES, 8).processor.tokenizer
    model = SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=8)], device="cpu")
    columns = features(model, SENTENCES[:6], SENTENCES[6:12])
    assert not is_plain(columns[0])
    values = [total(embedloss.for_sentence_transformers(model, "mnrl()", chunk_tokens=n)(columns)) for n in (None, 10)]
    assert torch.equal(values[0], values[1])
    with pytest.raises(EmbedlossError, match=r"E302.*all layers.*StaticEmbedding"):
        embedloss.for_sentence_transformers(model, "adaptive_layer(mnrl())")


def test_adaptive_layer_is_that_of_our_own_trainer(model, bert):
    """Their AdaptiveLayerLoss weights layers differently; the reference is our encoder on the same folder."""
    from embedloss import Embeddings, create_loss, load_encoder

    columns = features(model, SENTENCES[:6], SENTENCES[6:12])
    adapted = embedloss.for_sentence_transformers(model, "adaptive_layer(mnrl(), n_layers_per_step=-1)")
    value = total(adapted(columns))
    value.backward()
    encoder = load_encoder(bert)
    keys = ("input_ids", "attention_mask", "token_type_ids")
    layers = [encoder({k: c[k] for k in keys if k in c}, layers=True) for c in columns]
    emb = Embeddings.of(anchor=layers[0][-1], positive=layers[1][-1]).with_layers(anchor=layers[0], positive=layers[1])
    expected = create_loss("adaptive_layer(mnrl(), n_layers_per_step=-1)")(emb).total
    expected.backward()
    assert torch.allclose(value, expected, rtol=1e-5)
    ours = torch.cat([p.grad.reshape(-1) for p in encoder.model.parameters() if p.grad is not None])
    theirs = torch.cat([p.grad.reshape(-1) for p in model[0].model.parameters() if p.grad is not None])
    assert ours.abs().max() > 1e-3
    assert torch.allclose(ours, theirs, atol=1e-5 * float(ours.abs().max()))
    assert model[0].model.config.output_hidden_states is False


def test_own_weights_are_optimised(bert, tmp_path):
    data = {"a": list(SENTENCES[:9]), "b": list(SENTENCES[9:]), "label": [i % 3 for i in range(9)]}
    line = 'loss = embedloss.for_sentence_transformers(model, "softmax(num_labels=3)")'
    *_, trainer = run(BI, data, bert, tmp_path, line)
    weight = trainer.loss.loss.classifier.weight
    assert float(trainer.optimizer.state[weight]["exp_avg"].abs().max()) > 0
    with pytest.raises(EmbedlossError, match="E203"):
        embedloss.for_sentence_transformers(trainer.model, "softmax()")
    assert embedloss.for_sentence_transformers(trainer.model, "softmax()", num_classes=4).loss.classifier.out_features == 4


def test_the_twin_is_a_trained_copy(model):
    loss = embedloss.for_sentence_transformers(model, "contrastive_tension_in_batch_negatives()")
    total(loss(features(model, SENTENCES[:6]))).backward()
    assert loss.twin is not None
    assert gradients(loss.twin).abs().max() > 1e-4
    names = dict(loss.named_parameters())
    assert any(name.startswith("twin.") for name in names)
    assert next(loss.twin.parameters()) is not next(model.parameters())


def test_contrastive_tension_sees_which_pairs_are_equal_texts(model):
    second = list(SENTENCES[:3]) + list(SENTENCES[6:9])
    loss = embedloss.for_sentence_transformers(model, "contrastive_tension()")
    loss(features(model, SENTENCES[:6], second))
    assert float(loss.output.metrics["positives"]) == pytest.approx(0.5)


def test_guides_from_folders_and_objects(model, tmp_path):
    """With the same tokenizer the guide sees the same tokens; their GISTEmbedLoss is the reference."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import losses

    folder = tiny_bert(tmp_path / "guide", seed=5, dropout=0)
    guide = SentenceTransformer(folder, device="cpu")
    columns = features(model, SENTENCES[:6], SENTENCES[6:12])
    expected = losses.GISTEmbedLoss(model, guide)([dict(c) for c in columns], None)
    by_folder = embedloss.for_sentence_transformers(model, f'gist_embed(guide="{folder}")', chunk_tokens=40)
    by_name = embedloss.for_sentence_transformers(model, 'gist_embed(guide="teacher")', guides={"teacher": guide})
    for loss in (by_folder, by_name):
        value = total(loss(columns))
        assert torch.allclose(value, expected, rtol=1e-5)
        assert not any("guide" in name for name, _ in loss.named_parameters())
    value.backward()
    assert all(p.grad is None for p in guide.parameters())
    own = embedloss.for_sentence_transformers(model, 'gist_embed(guide="self")', guides={"self": model})
    total(own(columns)).backward()
    assert all(p.requires_grad for name, p in model.named_parameters() if "pooler" not in name)


def test_a_guide_with_another_tokenizer_sees_the_text(model, tmp_path):
    from embedloss import load_encoder

    folder = tiny_bert(tmp_path / "guide", seed=5, dropout=0, vocabulary=120)
    loss = embedloss.for_sentence_transformers(model, f'gist_embed(guide="{folder}", guide_prompt="a text ")')
    seen = []
    guide = next(iter(loss._guides[0].values()))
    original = guide.processor.tokenize
    guide.processor.tokenize = lambda texts, prompt="": seen.append((list(texts), prompt)) or original(texts, prompt)
    columns = [dict(model.preprocess(list(SENTENCES[:6]), prompt="cat dog ")), dict(model.preprocess(list(SENTENCES[6:12])))]
    loss(columns)
    texts, prompt = seen[0]
    assert prompt == "a text "
    assert len(texts) == 12
    assert texts[0] == model.tokenizer.decode(model.tokenizer(SENTENCES[0])["input_ids"], skip_special_tokens=True)
    assert load_encoder(folder).processor.tokenizer.get_vocab() != model.tokenizer.get_vocab()


def test_the_denoising_decoder_is_tied_to_the_model(model):
    loss = embedloss.for_sentence_transformers(model, "tsdae()")
    total(loss(features(model, SENTENCES[:4], SENTENCES[4:8]))).backward()
    shared = {id(p) for p in model.parameters()}
    assert any(id(p) in shared for p in loss.loss.decoder.parameters())
    assert gradients(model).abs().max() > 1e-4
    with pytest.raises(EmbedlossError, match=r"E101.*source-target"):
        loss(features(model, SENTENCES[:4]))


def test_faults_are_said(model, reranker):
    from sentence_transformers import CrossEncoder

    columns = features(model, SENTENCES[:4], SENTENCES[4:8])
    make = embedloss.for_sentence_transformers
    with pytest.raises(EmbedlossError, match=r"E101.*2 text columns and a label.*remove_columns"):
        make(model, "mnrl()")(columns, torch.ones(4))
    with pytest.raises(EmbedlossError, match=r"E101.*2 text columns and no label.*triplets"):
        make(model, "triplet()")(columns)
    with pytest.raises(EmbedlossError, match=r"E101.*2 text columns but 1 roles"):
        make(model, "mnrl()", roles=["anchor"])(columns)
    with pytest.raises(EmbedlossError, match=r"E101.*The roles given are query, docs"):
        make(model, "mnrl()", roles=["query", "docs"])(columns)
    with pytest.raises(EmbedlossError, match=r"E302.*cross-encoder"):
        make(model, "cross_entropy()")
    cross = CrossEncoder(reranker, device="cpu")
    with pytest.raises(EmbedlossError, match=r"E302.*bi-encoder"):
        make(cross, "mnrl()")
    with pytest.raises(EmbedlossError, match=r"E105: row 2 of this batch has 2 documents but 3 labels"):
        make(cross, "list_net()")(
            [["q", "r"], [["a", "b"], ["c", "d"]]], [torch.tensor([1.0, 0.0]), torch.tensor([1.0, 0.0, 2.0])]
        )
    with pytest.raises(EmbedlossError, match="E301"):
        make(torch.nn.Linear(2, 2), "mnrl()")
    with pytest.raises(EmbedlossError, match="E401"):
        make(model, "mnrl()", chunk_tokens=0)


def test_roles_say_what_the_number_of_columns_does_not(model):
    from dataclasses import replace

    from embedloss.formats import get_format

    loss = embedloss.create_loss("mnrl()")
    loss.spec = replace(loss.spec, formats=(get_format("pairs"), replace(get_format("pairs"), name="p", roles=("a", "b"))))
    columns = features(model, SENTENCES[:4], SENTENCES[4:8])
    with pytest.raises(EmbedlossError, match=r"E101.*in several ways.*roles="):
        embedloss.for_sentence_transformers(model, loss)(columns)
    assert total(embedloss.for_sentence_transformers(model, loss, roles=["anchor", "positive"])(columns)) > 0


def test_the_missing_package_is_named(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(EmbedlossError, match=r"E404.*pip install 'embedloss\[sentence-transformers\]'"):
        embedloss.for_sentence_transformers(object(), "mnrl()")


def test_schedules_and_draws_follow_the_steps(model):
    loss = embedloss.for_sentence_transformers(model, "mnrl() + linear(0, 1, steps=2) * gor()")
    columns = features(model, SENTENCES[:4], SENTENCES[4:8])
    model.train()
    weights = []
    for _ in range(3):
        parts = loss(columns)
        weights.append(float(parts["global-orthogonal-regularization"].detach()))
    assert weights[0] == 0
    assert weights[1] == pytest.approx(weights[2] / 2)
    model.eval()
    with torch.no_grad():
        loss(columns)
    assert loss.step == 3


def test_the_cross_encoder_draws_negatives_and_takes_prompts(reranker):
    from sentence_transformers import CrossEncoder

    model = CrossEncoder(reranker, device="cpu")
    loss = embedloss.for_sentence_transformers(model, "ce_mnrl(num_negatives=2)")
    inputs = [list(SENTENCES[:5]), list(SENTENCES[5:10])]
    plain, prompted = total(loss(inputs)), total(loss(inputs, None, prompt="find: "))
    assert float(plain) != pytest.approx(float(prompted), abs=1e-6)
    plain.backward()
    assert gradients(model).abs().max() > 0


def test_the_model_card_is_written(theirs, bert, tmp_path):
    line = 'loss = embedloss.for_sentence_transformers(model, "mnrl(scale=10)")'
    *_, trainer = run(BI, PAIRS, bert, tmp_path, line)
    trainer.save_model(str(tmp_path / "saved"))
    card = (tmp_path / "saved" / "README.md").read_text(encoding="utf-8")
    assert "SentenceTransformerLoss" in card
    assert "multiple_negatives_ranking(scale=10)" in card
