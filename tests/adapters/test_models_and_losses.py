"""Models and losses of sentence-transformers in our trainer."""

import copy
import pickle

import pytest
import torch
from torch import nn

pytest.importorskip("sentence_transformers")

from datasets import Dataset
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.sentence_transformer import losses, modules

from embedloss import Embeddings, EmbedlossError, Trainer, TrainingArguments, TrainingStep, create_loss
from embedloss import from_sentence_transformers_loss as from_peer
from embedloss.adapters import wrap_model
from embedloss.collate import Collator
from embedloss.encoders import BiEncoder, load_encoder, new_static_encoder
from embedloss.hookspecs import hookimpl
from embedloss.plugins import plugin_manager
from embedloss.testing.models import SENTENCES, tiny_bert, tiny_cross_encoder

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return tiny_bert(tmp_path_factory.mktemp("bert"), dropout=0)


def dense_model(folder):
    first = SentenceTransformer(folder, device="cpu")
    torch.manual_seed(0)
    after = [
        modules.Pooling(32, ("cls", "mean")),
        modules.Dense(64, 16, activation_function=nn.GELU(), use_residual=True),
        modules.Normalize(),
    ]
    return SentenceTransformer(modules=[first[0], *after], prompts={"query": "q: "}, device="cpu")


def static_model(dimension=8):
    tokenizer = new_static_encoder(SENTENCES, dimension).processor.tokenizer
    torch.manual_seed(0)
    return SentenceTransformer(modules=[modules.StaticEmbedding(tokenizer, embedding_dim=dimension)], device="cpu")


def train(model, loss, rows, folder, steps=4, kind="bi-encoder", form="pairs", rate=1e-3):
    step = TrainingStep(model, create_loss(loss) if isinstance(loss, str) else loss)
    arguments = TrainingArguments(
        output_dir=str(folder), max_steps=steps, per_device_train_batch_size=4, learning_rate=rate, report_to="none",
        save_strategy="no", disable_tqdm=True, use_cpu=True, batch_sampler="random",
    )  # fmt: skip
    collator = Collator(step.encoder.processor, step.loss, form, kind=kind)
    Trainer(step, arguments, train_dataset=Dataset.from_dict(rows), collator=collator).train()
    return step


@pytest.mark.parametrize("name", ["plain", "dense", "static"])
def test_a_wrapped_model_gives_the_same_and_trains_the_object(name, bert, tmp_path):
    model = {
        "plain": lambda: SentenceTransformer(bert, device="cpu"),
        "dense": lambda: dense_model(bert),
        "static": static_model,
    }[name]()
    encoder = wrap_model(model)
    before = model.encode(list(SENTENCES), convert_to_tensor=True).clone()
    assert torch.allclose(torch.from_numpy(encoder.encode(SENTENCES)), before, atol=1e-6)
    assert {id(p) for p in encoder.parameters()} == {id(p) for p in model.parameters()}
    pairs = {"anchor": list(SENTENCES[::2]), "positive": list(SENTENCES[1::2])}
    step = train(model, "mnrl()", pairs, tmp_path / "run", rate=1e-2)
    after = model.encode(list(SENTENCES), convert_to_tensor=True)
    assert float((after - before).abs().max()) > 1e-3
    assert torch.allclose(torch.from_numpy(step.encoder.encode(SENTENCES)), after, atol=1e-6)
    step.encoder.save(tmp_path / "ours")
    again = SentenceTransformer(str(tmp_path / "ours"), device="cpu")
    assert torch.allclose(again.encode(list(SENTENCES), convert_to_tensor=True), after, atol=1e-6)
    assert again.prompts.get("query", "") == model.prompts.get("query", "")


def test_a_cross_encoder_object_is_trained(tmp_path):
    model = CrossEncoder(tiny_cross_encoder(tmp_path / "m", dropout=0), device="cpu")
    pairs = list(zip(SENTENCES[::2], SENTENCES[1::2], strict=True))
    before = model.predict(pairs, convert_to_tensor=True).clone()
    encoder = wrap_model(model)
    assert torch.allclose(torch.from_numpy(encoder.predict(pairs)), before, atol=1e-6)
    rows = {"first": list(SENTENCES[::2]), "second": list(SENTENCES[1::2]), "label": [i % 2 for i in range(9)]}
    step = train(model, "bce()", rows, tmp_path / "run", kind="cross-encoder", form="pairs+binary")
    after = model.predict(pairs, convert_to_tensor=True)
    assert float((after - before).abs().max()) > 1e-3
    assert torch.allclose(torch.from_numpy(step.encoder.predict(pairs)), after, atol=1e-6)


def test_models_that_cannot_be_wrapped_are_named(bert, tmp_path):
    first = SentenceTransformer(bert, device="cpu")

    class Odd(nn.Module):
        def forward(self, features):
            return features

    cases = {
        "Odd": SentenceTransformer(modules=[first[0], modules.Pooling(32), Odd()], device="cpu"),
        "without a Pooling": SentenceTransformer(modules=[first[0]], device="cpu"),
        "activation Threshold": SentenceTransformer(
            modules=[first[0], modules.Pooling(32), modules.Dense(32, 8, activation_function=nn.Threshold(0, 0))], device="cpu"
        ),
        "Linear": nn.Linear(2, 2),
    }
    for text, model in cases.items():
        with pytest.raises(EmbedlossError, match=f"E301.*{text}"):
            wrap_model(model)


def test_a_plugin_wraps_what_it_knows(bert):
    class Foreign(nn.Module):
        pass

    class Hook:
        answer = None

        @hookimpl
        def embedloss_wrap_model(self, model, kind):
            return self.answer if isinstance(model, Foreign) else None

    hook = Hook()
    plugin = plugin_manager().register(hook, "test-hook")
    try:
        hook.answer = load_encoder(bert)
        assert wrap_model(Foreign()) is hook.answer
        assert TrainingStep(Foreign(), create_loss("mnrl")).encoder is hook.answer
        assert isinstance(wrap_model(SentenceTransformer(bert, device="cpu")), BiEncoder)
        hook.answer = 3
        with pytest.raises(EmbedlossError, match=r"E301.*returned int"):
            wrap_model(Foreign())
    finally:
        plugin_manager().unregister(plugin)


# -- losses ------------------------------------------------------------------------------------------------------------------
def leaves(*names, rows=6, dim=8):
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(rows, dim, generator=generator, dtype=torch.float64).requires_grad_()
        for name in names
    }  # fmt: skip


@pytest.mark.parametrize(
    ("cls", "formats", "roles", "labels", "parameters", "ours"),
    [
        (losses.TripletLoss, ["triplets"], "anchor positive negative", None, {"triplet_margin": 3}, "triplet(margin=3)"),
        (losses.CoSENTLoss, ["pairs+score"], "first second", torch.rand(6), {"scale": 5.0}, "cosent(scale=5)"),
        (losses.MultipleNegativesRankingLoss, ["pairs"], "anchor positive", None, {}, "mnrl()"),
        (losses.GlobalOrthogonalRegularizationLoss, ["pairs"], "anchor positive", None, {}, "gor()"),
        (losses.BatchAllTripletLoss, ["single+class"], "text", torch.tensor([0, 0, 1, 1, 2, 2]), {}, "batch_all_triplet()"),
    ],
)
def test_their_losses_in_our_protocol(cls, formats, roles, labels, parameters, ours, bert):
    names = roles.split()
    given = leaves(*names)
    results = []
    for loss in (
        from_peer(cls, formats, **parameters),
        from_peer(cls(SentenceTransformer(bert, device="cpu"), **parameters), formats),
        create_loss(ours),
    ):
        for leaf in given.values():
            leaf.grad = None
        output = loss(Embeddings.of(**given), labels)
        output.total.backward()
        results.append((output.total.detach(), torch.cat([leaf.grad for leaf in given.values()])))
        assert sum(p.numel() for p in loss.parameters()) == 0
    assert results[0][1].abs().max() > 1e-6
    for value, gradient in results[1:]:
        assert torch.allclose(value, results[0][0], rtol=1e-6)
        assert torch.allclose(gradient, results[0][1], atol=1e-7)


class StrangersLoss(nn.Module):
    """As a third party writes it, with a weight of its own."""

    def __init__(self, model, size=8, weight=1.0):
        super().__init__()
        self.model, self.weight = model, weight
        self.projection = nn.Linear(size, 1)

    def forward(self, sentence_features, labels):
        return self.compute_loss_from_embeddings([self.model(f)["sentence_embedding"] for f in sentence_features], labels)

    def compute_loss_from_embeddings(self, embeddings, labels):
        first, *others = embeddings
        return {
            "near": self.weight * sum((first - other).square().mean() for other in others),
            "scored": (self.projection(first)[:, 0] - labels).square().mean(),
        }


def test_a_strangers_loss_trains_in_our_trainer_with_its_own_weights(tmp_path):
    loss = from_peer(StrangersLoss, ["pairs+score"], size=32, weight=0.5, label_range=(0, 1))
    assert loss.spec.name == "strangers-loss"
    projection = loss.st_loss.projection.weight.detach().clone()
    rows = {"first": list(SENTENCES[::2]), "second": list(SENTENCES[1::2]), "label": [i / 8 for i in range(9)]}
    step = train(load_encoder(tiny_bert(tmp_path / "m")), loss, rows, tmp_path / "run", form="pairs+score")
    assert float((step.loss.st_loss.projection.weight - projection).abs().max()) > 1e-4
    state = step.loss.state_dict()
    assert set(state) == {"st_loss.projection.weight", "st_loss.projection.bias"}
    pickle.loads(pickle.dumps(step.loss))
    assert copy.deepcopy(step.loss).state_dict().keys() == state.keys()


def test_it_composes():
    loss = 0.5 * from_peer(losses.MultipleNegativesRankingLoss, ["pairs", "triplets", "n-tuples"]) + create_loss("gor()")
    given = leaves("anchor", "positive")
    terms = loss(Embeddings.of(**given)).terms
    assert {name.split("/")[0] for name in terms} == {"multiple-negatives-ranking-loss", "global-orthogonal-regularization"}
    negatives = torch.randn(6, 2, 8, dtype=torch.float64)
    expected = create_loss("mnrl()")(Embeddings.of(**given, negative=negatives)).total
    inside = from_peer(losses.MultipleNegativesRankingLoss, ["n-tuples"])
    assert torch.allclose(inside(Embeddings.of(**given, negative=negatives)).total, expected)
    ragged = [negatives[i, : 1 + i % 2] for i in range(6)]
    with pytest.raises(EmbedlossError, match=r"E206.*same number of texts of role 'negative'"):
        inside(Embeddings.of(**given, negative=ragged))


def test_what_cannot_be_used_is_said(bert):
    model = SentenceTransformer(bert, device="cpu")
    with pytest.raises(EmbedlossError, match=r"E206.*SoftmaxLoss has no compute_loss_from_embeddings"):
        from_peer(losses.SoftmaxLoss, ["pairs+class"])
    with pytest.raises(EmbedlossError, match=r"E203.*TripletLoss.*wrong"):
        from_peer(losses.TripletLoss, ["triplets"], wrong=1)
    with pytest.raises(EmbedlossError, match=r"E203.*parameters go with a class"):
        from_peer(losses.TripletLoss(model), ["triplets"], triplet_margin=1)
    with pytest.raises(EmbedlossError, match=r"E203.*no expression"):
        from_peer(losses.TripletLoss, ["triplets"]).to_expression()

    class Calls(StrangersLoss):
        def compute_loss_from_embeddings(self, embeddings, labels):
            return self.model({})["sentence_embedding"].sum()

    with pytest.raises(EmbedlossError, match=r"E302.*calls a model"):
        from_peer(Calls, ["pairs"])(Embeddings.of(**leaves("anchor", "positive")))


def test_the_object_keeps_its_model(bert):
    model = SentenceTransformer(bert, device="cpu")
    theirs = losses.BatchHardTripletLoss(model)
    from_peer(theirs, ["single+class"])
    assert theirs.sentence_embedder is model
