"""The modifiers against sentence-transformers: on ready embeddings, and on a small real transformer."""

import random

import pytest
import torch
from torch import nn

from embedloss import Embeddings, LossSpec, create_loss, list_losses
from embedloss.loss import Loss
from embedloss_modifiers.losses import AdaptiveLayerLoss, Matryoshka2dLoss, MatryoshkaLoss

pytest.importorskip("sentence_transformers")
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer import losses as peer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
from transformers import BertConfig, BertModel, BertTokenizerFast

ROLES = {"pairs": ("anchor", "positive"), "pairs+score": ("first", "second"), "triplets": ("anchor", "positive", "negative")}
TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-5}
BITS = {torch.float64: "float64", torch.float32: "float32"}


def spec(name, formats):
    return LossSpec(name=name, target="none:None", summary="for tests", family="test", formats=formats)


class Dots(Loss):
    spec = spec("dots", ["pairs"])

    def compute(self, emb, labels):
        return (emb.own("anchor") * emb.own("positive")).sum(1).sub(0.5).pow(2).mean()


class Distances(Loss):
    spec = spec("distances", ["pairs+score"])

    def compute(self, emb, labels):
        return ((emb.own("first") - emb.own("second")).norm(dim=1) - labels).pow(2).mean()


class PeerDots(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, features, labels):
        a, p = (self.model(f)["sentence_embedding"] for f in features)
        return (a * p).sum(1).sub(0.5).pow(2).mean()


class PeerDistances(PeerDots):
    def forward(self, features, labels):
        a, p = (self.model(f)["sentence_embedding"] for f in features)
        return ((a - p).norm(dim=1) - labels).pow(2).mean()


class Ready(nn.Module):
    """A model whose embeddings are given."""

    def __init__(self, width):
        super().__init__()
        self.width = width

    def forward(self, features):
        return {"sentence_embedding": features["x"]}

    def get_embedding_dimension(self):
        return self.width


def leaf(seed, *shape, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype).requires_grad_()


def compare(ours, theirs, leaves, dtype, record, name):
    tolerance = TOLERANCE[dtype]
    wanted = torch.autograd.grad(theirs, leaves, allow_unused=True, materialize_grads=True)
    found = torch.autograd.grad(ours, leaves, allow_unused=True, materialize_grads=True)
    largest = max(float(g.abs().max()) for g in wanted)
    assert largest > 1e-6
    assert float((ours - theirs).detach().abs()) <= tolerance * float(theirs.detach().abs())
    for a, b in zip(found, wanted, strict=True):
        assert float((a - b).abs().max()) <= tolerance * largest
    record("parity", (name, f"value {BITS[dtype]}"))
    record("parity", (name, f"gradient {BITS[dtype]}"))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("rows", [1, 2, 7, 64])
@pytest.mark.parametrize(("dims", "weights"), [([12], None), ([3, 12, 7], None), ([12, 6, 2], [1.0, 0.5, 2.0]), ([6, 3], None)])
@pytest.mark.filterwarnings("ignore:the full dimension")
def test_matryoshka(dims, weights, rows, dtype, record_property):
    for seed in range(3):
        x, y = leaf(seed, rows, 12, dtype=dtype), leaf(seed + 10, rows, 12, dtype=dtype)
        labels = torch.rand(rows, generator=torch.Generator().manual_seed(seed)).to(dtype)
        model = Ready(12)
        for mine, theirs, roles in (
            (Dots(), PeerDots(model), ROLES["pairs"]),
            (Distances(), PeerDistances(model), ROLES["pairs+score"]),
        ):
            emb = Embeddings.of(**dict(zip(roles, (x, y), strict=True)))
            ours = MatryoshkaLoss(mine, dims, weights)(emb, labels if roles[0] == "first" else None).total
            reference = peer.MatryoshkaLoss(model, theirs, dims, weights)([{"x": x}, {"x": y}], labels)
            compare(ours, reference, [x, y], dtype, record_property, "matryoshka")


NAMED = [
    ("mnrl", "MultipleNegativesRankingLoss", "pairs"), ("cosent", "CoSENTLoss", "pairs+score"),
    ("cosine_similarity", "CosineSimilarityLoss", "pairs+score"), ("angle", "AnglELoss", "pairs+score"),
]  # fmt: skip


def need(expression):
    known = {n for s in list_losses() for n in (s.name, *s.aliases)}
    if expression.split("(")[0].replace("_", "-") not in known:
        pytest.skip(f"{expression} is not installed")


@pytest.mark.parametrize(("expression", "class_name", "form"), NAMED)
def test_matryoshka_round_the_losses_of_other_families(expression, class_name, form, record_property):
    need(expression)
    roles, model = ROLES[form], Ready(12)
    leaves = [leaf(i, 9, 12) for i in range(len(roles))]
    # Rounded to float32, to which the peer's cosine-similarity rounds its labels.
    labels = torch.rand(9, generator=torch.Generator().manual_seed(0)).double() if form == "pairs+score" else None
    ours = create_loss(f"matryoshka({expression}, dims=[12, 6, 3], weights=[1, 0.5, 0.25])")
    theirs = peer.MatryoshkaLoss(model, getattr(peer, class_name)(model), [12, 6, 3], [1, 0.5, 0.25])
    emb = Embeddings.of(**dict(zip(roles, leaves, strict=True)))
    compare(
        ours(emb, labels).total,
        theirs([{"x": x} for x in leaves], labels),
        leaves,
        torch.float64,
        record_property,
        "matryoshka",
    )


def test_matryoshka_teacher_vectors_are_normalised_on_purpose(record_property):
    need("mse")
    labels, model = leaf(1, 40, 12).detach(), Ready(12)
    student = labels.clone().requires_grad_()  # a student that is its teacher
    ours = create_loss("matryoshka(mse(), dims=[12, 4])")(Embeddings.of(text=student), labels).total
    theirs = peer.MatryoshkaLoss(model, peer.MSELoss(model), [12, 4])([{"x": student}], labels)
    assert float(ours.detach()) < 1e-20  # nothing is left to learn
    assert float(theirs.detach()) > 0.5  # unit student against teacher vectors of norm sqrt(12)
    unit = nn.functional.normalize(labels, dim=1)
    once = peer.MatryoshkaLoss(model, peer.MSELoss(model), [12])([{"x": student * 1}], unit)
    assert float(once.detach()) < 1e-20  # equal again where the two rules are
    record_property("parity", ("matryoshka", "differs on purpose"))


def test_matryoshka_does_not_take_scores_for_vectors(record_property):
    need("margin_mse")
    # Twelve teacher margins a row by coincidence: the peer cuts them, and then its own shapes do not fit.
    model, leaves = Ready(12), [leaf(i, 5, 12) for i in range(14)]
    margins = leaf(20, 5, 12).detach()
    emb = Embeddings.of(query=leaves[0], positive=leaves[1], negative=torch.stack(leaves[2:], 1))
    assert torch.isfinite(create_loss("matryoshka(margin_mse(), dims=[12, 6])")(emb, margins).total)
    with pytest.raises(Exception):  # noqa: B017 - whatever the peer raises on shapes that do not fit
        peer.MatryoshkaLoss(model, peer.MarginMSELoss(model), [12, 6])([{"x": x} for x in leaves], margins)
    record_property("parity", ("matryoshka", "differs on purpose"))


# -- a small real transformer -------------------------------------------------------------------------------------------------
TEXTS = [["the cat sat", "a dog runs home", "red"], ["a cat on the mat", "dogs run", "blue green red"]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("bert")
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        "the",
        "a",
        "cat",
        "dog",
        "dogs",
        "sat",
        "on",
        "mat",
        "red",
        "blue",
        "green",
        "runs",
        "run",
        "home",
    ]
    (path / "vocab.txt").write_text("\n".join(words), encoding="utf-8")
    BertTokenizerFast(vocab={w: i for i, w in enumerate(words)}).save_pretrained(path)
    torch.manual_seed(0)
    sizes = dict(hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=24)
    BertModel(BertConfig(vocab_size=len(words), max_position_embeddings=32, initializer_range=0.5, **sizes)).save_pretrained(
        path
    )
    return str(path)


@pytest.fixture(params=[True, False], ids=["normalised", "plain"])
def model(folder, request):
    modules = [Transformer(folder), Pooling(16)] + ([Normalize()] if request.param else [])
    return SentenceTransformer(modules=modules, device="cpu").double().eval()


def features(model):
    return [{k: v for k, v in model.tokenize(texts).items() if isinstance(v, torch.Tensor)} for texts in TEXTS]


def all_layers(model, roles):
    """Every layer through pooling and all later modules, from one pass of the transformer."""
    stacks = {}
    for role, batch in zip(roles, features(model), strict=True):
        inputs = {k: v for k, v in batch.items() if k in ("input_ids", "attention_mask", "token_type_ids")}
        states = model[0].auto_model(**inputs, output_hidden_states=True).hidden_states
        stacks[role] = []
        for state in states:
            out = {**batch, "token_embeddings": state}
            for module in list(model)[1:]:
                out = module(out)
            stacks[role].append(out["sentence_embedding"])
    return Embeddings.of(**{role: stack[-1] for role, stack in stacks.items()}).with_layers(**stacks)


def drawn_layers(output, name):
    return [int(k.split("/")[-1]) for k in output.terms if k.startswith(f"{name}/kl/")]


def parameters(model):
    return [p for name, p in model.named_parameters() if "pooler" not in name]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"n_layers_per_step": -1},
        {"n_layers_per_step": 2, "layer_weighting": "log"},
        {
            "layer_weighting": "linear",
            "last_layer_weight": 0.5,
            "prior_layers_weight": 2.0,
            "kl_div_weight": 3.0,
            "kl_temperature": 0.05,
        },
        {"n_layers_per_step": -1, "kl_temperature": 1.0, "layer_weighting": "log"},
    ],
)
@pytest.mark.parametrize("step", [0, 1, 2])
def test_adaptive_layer(model, options, step, monkeypatch, record_property):
    ours = AdaptiveLayerLoss(Dots(), **options)(all_layers(model, ROLES["pairs"]).with_context(step=step))
    drawn = drawn_layers(ours, "adaptive-layer")
    monkeypatch.setattr(random, "sample", lambda population, k: drawn)
    theirs = peer.AdaptiveLayerLoss(model, PeerDots(model), **options)(features(model), None)
    compare(ours.total, theirs, parameters(model), torch.float64, record_property, "adaptive-layer")


def test_adaptive_layer_without_divergence(model, record_property):
    ours = AdaptiveLayerLoss(Dots(), n_layers_per_step=-1, kl_temperature=0)(all_layers(model, ROLES["pairs"])).total
    theirs = peer.AdaptiveLayerLoss(model, PeerDots(model), n_layers_per_step=-1, kl_temperature=0)(features(model), None)
    compare(ours, theirs, parameters(model), torch.float64, record_property, "adaptive-layer")


def test_adaptive_layer_float32(model, record_property):
    model.float()
    ours = AdaptiveLayerLoss(Dots(), n_layers_per_step=-1)(all_layers(model, ROLES["pairs"])).total
    theirs = peer.AdaptiveLayerLoss(model, PeerDots(model), n_layers_per_step=-1)(features(model), None)
    compare(ours, theirs, parameters(model), torch.float32, record_property, "adaptive-layer")


@pytest.mark.parametrize(
    "options", [{}, {"n_layers_per_step": -1, "n_dims_per_step": -1}, {"n_dims_per_step": 2, "layer_weighting": "log"}]
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_matryoshka_2d(model, options, dtype, monkeypatch, record_property):
    model.to(dtype)
    dims, weights = [16, 8, 4], [1.0, 0.5, 2.0]
    ours = Matryoshka2dLoss(Dots(), dims, weights, **options)(all_layers(model, ROLES["pairs"]).with_context(step=4))
    layers = drawn_layers(ours, "matryoshka-2d")
    named = [k.split("/") for k in ours.terms if "/kl/" not in k]
    wanted = [[dims.index(int(d)) for _, at, d, _ in named if int(at) == layer] for layer in (3, *layers)]

    # The peer draws the dims of the final layer, then the layers, then the dims of each.
    draws = iter([wanted[0], layers, *wanted[1:]])
    monkeypatch.setattr(random, "sample", lambda population, k: next(draws))
    theirs = peer.Matryoshka2dLoss(model, PeerDots(model), dims, weights, **options)(features(model), None)
    compare(ours.total, theirs, parameters(model), dtype, record_property, "matryoshka-2d")


def test_every_combination_the_peer_refuses(model, record_property):
    need("mnrl")
    need("gor")
    emb = all_layers(model, ROLES["pairs"])
    # A loss of several terms inside either modifier, and adaptive-layer inside matryoshka.
    with pytest.raises(TypeError):
        peer.MatryoshkaLoss(model, peer.GlobalOrthogonalRegularizationLoss(model), [16, 8])(features(model), None)
    inner = peer.AdaptiveLayerLoss(model, peer.MultipleNegativesRankingLoss(model))
    with pytest.raises(AttributeError):
        peer.MatryoshkaLoss(model, inner, [16, 8])(features(model), None)
    for text in (
        "matryoshka(gor(), dims=[16, 8])",
        "matryoshka(adaptive_layer(mnrl()), dims=[16, 8])",
        "adaptive_layer(gor())",
    ):
        total = create_loss(text)(emb).total
        grads = torch.autograd.grad(total, parameters(model), retain_graph=True, allow_unused=True, materialize_grads=True)
        assert all(torch.isfinite(g).all() for g in grads)
        assert max(float(g.abs().max()) for g in grads) > 1e-9
    for name in ("matryoshka", "adaptive-layer"):
        record_property("parity", (name, "differs on purpose"))


def test_matryoshka_equals_the_peers_cached_form(model, record_property):
    need("mnrl")
    ours = create_loss("matryoshka(cached_multiple_negatives_ranking(), dims=[16, 8], weights=[1, 0.5])")(
        all_layers(model, ROLES["pairs"])
    )
    own = torch.autograd.grad(ours.total, parameters(model))
    theirs = peer.MatryoshkaLoss(model, peer.CachedMultipleNegativesRankingLoss(model, mini_batch_size=2), [16, 8], [1, 0.5])
    value = theirs(features(model), None)
    value.backward()
    assert float((value - ours.total).detach().abs()) < 1e-8 * float(value)
    assert max(float(g.abs().max()) for g in own) > 1e-6
    for parameter, gradient in zip(parameters(model), own, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-8, atol=1e-9)
    record_property("parity", ("matryoshka", "gradient float64"))
