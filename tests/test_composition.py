"""Every modifier round every registered loss of embeddings, in both orders of nesting.

The reference is written out on plain tensors: cut, normalise, take a layer, call the loss inside, add up. It knows nothing of
views. Gradients are compared for every layer's embeddings, the twin's included, and for the weights of the loss inside.
"""

import functools
import math
import random
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from embedloss import Embeddings, create_loss, list_losses, load_encoder
from embedloss.errors import EmbedlossError
from embedloss.formats import get_format
from embedloss.loss import ModelInfo
from embedloss_modifiers.losses import AdaptiveLayerLoss, Matryoshka2dLoss, MatryoshkaLoss

pytestmark = pytest.mark.filterwarnings("ignore:.*is deprecated:FutureWarning")

ROWS, WIDTH, LAYERS, CLASSES, TEXTS = 8, 8, 3, 3, 2
DIMS, WEIGHTS = [8, 3, 5], [1.0, 0.5, 2.0]
TEMPERATURE = 0.3

# Where a combination has no meaning, and why.
NOT_DEFINED: dict[tuple[str, str], str] = {}

PAIRS = get_format("pairs")
LOSSES = [s for s in list_losses(model_kind="bi-encoder") if not s.modifier]


@dataclass(frozen=True)
class Plain:
    """One step as plain tensors: role -> one (texts, dim) a layer, the final one last."""

    layers: dict[str, list[torch.Tensor]]
    twin: dict[str, list[torch.Tensor]]
    guides: dict[Any, dict[str, torch.Tensor]]
    tokens: dict[str, tuple[torch.Tensor, torch.Tensor]]
    labels: torch.Tensor | None
    vectors: bool
    lists: frozenset[str]
    ids: dict[str, torch.Tensor]

    def of(self, stacks):
        texts = {r: s[-1].unflatten(0, (ROWS, TEXTS)) if r in self.lists else s[-1] for r, s in stacks.items()}
        emb = Embeddings.of(**texts)
        return emb.with_layers(**stacks) if len(next(iter(stacks.values()))) > 1 else emb

    def embeddings(self):
        emb = self.of(self.layers)
        if self.twin:
            emb = emb.with_twin(self.of(self.twin))
        for key, texts in self.guides.items():
            emb = emb.with_guide(self.of({r: [t] for r, t in texts.items()}), key)
        return emb.with_tokens(**self.tokens).with_text_ids(**self.ids)

    def each(self, function):
        change = lambda stacks: {r: function(s) for r, s in stacks.items()}  # noqa: E731
        return replace(self, layers=change(self.layers), twin=change(self.twin))

    def cut(self, dim):
        def unit(x):
            return x[..., :dim] / x[..., :dim].pow(2).sum(-1, keepdim=True).sqrt()

        return replace(self.each(lambda s: [unit(x) for x in s]), labels=unit(self.labels) if self.vectors else self.labels)

    def at(self, layer):
        return self.each(lambda s: [s[layer]])

    def leaves(self):
        return [x for stacks in (self.layers, self.twin) for s in stacks.values() for x in s]


def matryoshka(inside):
    return lambda step: sum(w * inside(step.cut(d)) for w, d in zip(WEIGHTS, DIMS, strict=True))


def adaptive(inside):
    def value(step):
        total = inside(step.at(-1))
        last = torch.cat([s[-1] for s in step.layers.values()]).detach()
        wanted = (last / TEMPERATURE).softmax(1)
        for i in range(LAYERS - 1):
            total = total + inside(step.at(i)) / (1 + math.log(1 + i)) / (LAYERS - 1)
            found = (torch.cat([s[i] for s in step.layers.values()]) / TEMPERATURE).softmax(1)
            total = total + TEMPERATURE * (wanted * (wanted / found).log()).sum(1).mean()
        return total

    return value


def both(inside):
    return adaptive(matryoshka(inside))


LAYERED = {"n_layers_per_step": -1, "layer_weighting": "log"}
MODIFIERS = {
    "matryoshka": (lambda loss: MatryoshkaLoss(loss, DIMS, WEIGHTS), matryoshka),
    "adaptive-layer": (lambda loss: AdaptiveLayerLoss(loss, **LAYERED), adaptive),
    "matryoshka-2d": (lambda loss: Matryoshka2dLoss(loss, DIMS, WEIGHTS, n_dims_per_step=-1, **LAYERED), both),
    "adaptive-layer over matryoshka": (lambda loss: AdaptiveLayerLoss(MatryoshkaLoss(loss, DIMS, WEIGHTS), **LAYERED), both),
    "matryoshka over adaptive-layer": (
        lambda loss: MatryoshkaLoss(AdaptiveLayerLoss(loss, **LAYERED), DIMS, WEIGHTS),
        lambda inside: matryoshka(adaptive(inside)),
    ),
    "matryoshka over a sum": (
        lambda loss: MatryoshkaLoss(0.5 * loss + 2 * loss, DIMS, WEIGHTS),
        lambda inside: matryoshka(lambda step: 2.5 * inside(step)),
    ),
}


@functools.cache
def encoder(folder):
    from embedloss.testing.models import tiny_bert

    return load_encoder(tiny_bert(folder, layers=1, hidden=WIDTH, heads=1))


def make(spec):
    """The loss with its defaults, or as its example where it has none for everything."""
    try:
        return create_loss(spec.name)
    except EmbedlossError:
        return create_loss(spec.example)


def seen(loss, form):
    """The format that the loss sees of rows of this one: it may make others of them in the collator."""
    rows = [{r: ["a b", "c d"] if r in form.lists else f"a b {i}" for r in form.roles} for i in range(ROWS)]
    _, name = loss.transform(rows, form.name, random.Random(0))
    return form if name == form.name else get_format(name)


def make_labels(spec, form, g):
    low, high = spec.label_range or (0.0, 1.0)
    count = TEXTS + ("positive" in form.roles)
    draws = {
        None: lambda: None,
        "class": lambda: torch.arange(ROWS) % CLASSES,
        "binary": lambda: torch.arange(ROWS) % 2,
        "score": lambda: low + (high - low) * torch.rand(ROWS, generator=g, dtype=torch.float64),
        "margin": lambda: torch.randn(ROWS, generator=g, dtype=torch.float64),
        "margins": lambda: torch.randn(ROWS, TEXTS, generator=g, dtype=torch.float64),
        "scores": lambda: torch.randn(ROWS, count, generator=g, dtype=torch.float64),
        "grades": lambda: torch.arange(count).flip(0).double().repeat(ROWS, 1),
        "embedding": lambda: torch.randn(ROWS, WIDTH, generator=g, dtype=torch.float64),
    }
    return draws[form.label]()


def make_step(spec, form, loss, seed=0):
    g = torch.Generator().manual_seed(seed)
    needs = loss.requires()
    roles = [r for r in form.roles if r not in needs.tokens]

    def stack(role, width, gradient):
        shape = ROWS * (TEXTS if role in form.lists else 1), width
        return [torch.randn(shape, generator=g, dtype=torch.float64).requires_grad_(gradient) for _ in range(LAYERS)]

    def texts(width, gradient):
        return {r: stack(r, width, gradient) for r in roles}

    different = ROWS * (torch.arange(ROWS) % 2) * (spec.scope == "row")
    ids = torch.randint(5, 20, (ROWS, 6), generator=g)
    return Plain(
        layers=texts(WIDTH, True),
        twin=texts(WIDTH, True) if needs.twin else {},
        guides={key: {r: s[-1] for r, s in texts(WIDTH + 3, False).items()} for key in needs.guides},
        tokens={r: (ids, torch.ones_like(ids)) for r in needs.tokens},
        labels=make_labels(spec, form, g),
        vectors=form.label == "embedding",
        lists=form.lists,
        # Losses of twins ask which texts are equal: every second row, or all where other rows are the negatives.
        ids={r: torch.arange(ROWS) + i * different for i, r in enumerate(roles)} if needs.twin else {},
    )


CASES = [pytest.param(spec, form, id=f"{spec.name}/{form.name}") for spec in LOSSES for form in spec.data_formats() or [PAIRS]]


@pytest.mark.parametrize("modifier", MODIFIERS)
@pytest.mark.parametrize(("spec", "form"), CASES)
def test_gradients_are_the_weighted_sum_of_single_ones(spec, form, modifier, tmp_path_factory):
    if (spec.name, modifier) in NOT_DEFINED:
        pytest.skip(NOT_DEFINED[spec.name, modifier])
    torch.manual_seed(0)
    loss = make(spec)
    student = encoder(tmp_path_factory.getbasetemp() / "composition") if loss.requires().tokens else None
    loss.prepare(ModelInfo(WIDTH, student, CLASSES, WIDTH))
    loss.double().eval()
    step = make_step(spec, seen(loss, form), loss)
    build, reference = MODIFIERS[modifier]
    modified = build(loss)
    assert modified.requires().twin == loss.requires().twin
    assert modified.spec.format_names() == spec.format_names()
    output = modified(step.embeddings(), step.labels)
    expected = reference(lambda s: loss(s.embeddings(), s.labels).total)(step)
    leaves = [*step.leaves(), *(p for p in loss.parameters() if p.requires_grad)]
    found = torch.autograd.grad(output.total, leaves, allow_unused=True, materialize_grads=True)
    wanted = torch.autograd.grad(expected, leaves, allow_unused=True, materialize_grads=True)
    largest = max(float(g.abs().max()) for g in wanted)
    assert largest > 1e-6
    assert float((output.total - expected).detach().abs()) <= 1e-10 * max(1.0, float(expected.detach().abs()))
    for a, b in zip(found, wanted, strict=True):
        assert float((a - b).abs().max()) <= 1e-9 * largest
    assert all(name.startswith(modified.spec.name) for name in output.terms)


@pytest.mark.parametrize("spec", LOSSES, ids=lambda s: s.name)
def test_expressions_of_modified_losses_read_back(spec):
    inner = make(spec)
    for text in (
        f"matryoshka({inner.to_expression()}, dims=[8, 4])",
        f"adaptive_layer(matryoshka({inner.to_expression()}, dims=[8, 4]), layer_weighting='log')",
        f"matryoshka_2d({inner.to_expression()}, dims=[8, 4]) + 0.1 * matryoshka({inner.to_expression()}, dims=[8])",
    ):
        made = create_loss(text)
        assert create_loss(made.to_expression()).to_expression() == made.to_expression()
        assert made.requires().twin == inner.requires().twin
        assert made.requires().guides == inner.requires().guides
        assert made.requires().recompute == inner.requires().recompute


def test_the_peers_parameter_names_are_read():
    loss = create_loss("matryoshka(cosent(), matryoshka_dims=[8, 4], matryoshka_weights=[1, 2])")
    assert (loss.dims, loss.weights) == ([8, 4], [1, 2])
    loss = create_loss("matryoshka_2d(cosent(), matryoshka_dims=[8, 4])")
    assert (loss.dims, loss.n_layers_per_step, loss.n_dims_per_step) == ([8, 4], 1, 1)
    for arguments in ("dims=[8, 8]", "dims=[]", "dims=[8], weights=[1, 2]"):
        with pytest.raises(EmbedlossError, match="E203"):
            create_loss(f"matryoshka(cosent(), {arguments})")
