"""What the checks work on: a loss, and random inputs made from what its spec and its `requires()` say."""

from __future__ import annotations

import contextlib
import copy
import random
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from embedloss import expression
from embedloss.embeddings import Embeddings, Scores
from embedloss.errors import EmbedlossError
from embedloss.expression import Call, Sum
from embedloss.formats import LIST_ROLES, DataFormat, get_format
from embedloss.hookspecs import hookimpl
from embedloss.loss import Loss, LossOutput, ModelInfo, WeightedSum
from embedloss.plugins import plugin_manager
from embedloss.registry import create_loss, get_spec
from embedloss.spec import LossSpec, normalise

CLASSES = 3
N_LAYERS = 3
WIDTH = 8
STEP = 50  # not 0, where a schedule may give a term no weight


class NotApplicable(Exception):
    """A check does not apply to this loss; the text says why."""


@dataclass(frozen=True)
class Batch:
    """The input of one step as plain tensors, so that checks can change it.

    Args:
        kind: "embeddings", or "scores" where a score loss is called with scores.
        format: the data format.
        texts: name -> (texts, dim). Names are roles, "layer2/role", "twin/role" and "guide0/role"; or "scores",
            (rows, candidates), which may be padded (`mask`).
        counts: role -> texts of each row, None where every row has one.
        labels: what the format says, per-candidate labels padded with 0; or None.
        rows: their number.
        guides: keys of the guides.
        tokens: role -> token ids and mask, for roles that are not encoded.
        step: the step of the run.
        ids: role -> one number a text, equal for equal texts.
    """

    kind: str
    format: DataFormat
    texts: Mapping[str, Tensor]
    counts: Mapping[str, list[int] | None]
    labels: Tensor | None
    rows: int
    mask: Tensor | None = None
    guides: tuple[Any, ...] = ()
    tokens: Mapping[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    step: int = 0
    ids: Mapping[str, Tensor] = field(default_factory=dict)

    def leaves(self) -> dict[str, Tensor]:
        """Copies of the tensors that a gradient can be asked of: all but the guides'."""
        return {name: value.detach().clone().requires_grad_(not name.startswith("guide")) for name, value in self.texts.items()}

    def role(self, name: str) -> str:
        """The role of a tensor: "layer2/anchor" -> "anchor"."""
        return name.rsplit("/", 1)[-1]

    def build(self, leaves: Mapping[str, Tensor] | None = None) -> Embeddings | Scores:
        """What the loss is called with."""
        leaves = self.texts if leaves is None else leaves
        if self.kind == "scores":
            return Scores.of(leaves["scores"], self.mask)

        def group(prefix: str) -> Embeddings:
            return Embeddings.of(**{role: self._listed(role, leaves[prefix + role]) for role in self.roles})

        emb = group("")
        depths = [name for name in leaves if name.startswith("layer")]
        if depths:
            layers = range(len(depths) // len(self.roles))
            emb = emb.with_layers(
                **{role: [*(leaves[f"layer{i}/{role}"] for i in layers), leaves[role]] for role in self.roles}
            )
        if any(name.startswith("twin/") for name in leaves):
            emb = emb.with_twin(group("twin/"))
        for i, key in enumerate(self.guides):
            emb = emb.with_guide(group(f"guide{i}/"), key)
        if self.tokens:
            emb = emb.with_tokens(**self.tokens)
        if self.ids:
            emb = emb.with_text_ids(**self.ids)
        return emb.with_context(seed=0, step=self.step)

    @property
    def roles(self) -> list[str]:
        """The roles that have embeddings, in order."""
        return [role for role in self.format.roles if role in self.texts]

    def _listed(self, role: str, value: Tensor) -> Tensor | Sequence[Tensor]:
        counts = self.counts[role]
        return value if counts is None else torch.split(value, counts)

    def select(self, rows: Sequence[int]) -> Batch:
        """The same input with these rows only, in this order."""
        index = torch.tensor(list(rows), dtype=torch.long)
        texts = {name: value[self._places(self.role(name), rows)] for name, value in self.texts.items()}
        counts = {role: None if found is None else [found[r] for r in rows] for role, found in self.counts.items()}
        labels = None if self.labels is None else self.labels[index]
        mask = None if self.mask is None else self.mask[index]
        narrower = self._width(self.counts) - self._width(counts)
        if labels is not None and narrower and self._per_candidate(labels):
            labels = labels[:, : labels.shape[1] - narrower]
        if mask is not None:
            width = int(mask.sum(1).max()) if len(mask) else 0
            cut = mask.shape[1] - width
            if labels is not None and cut and self._per_candidate(labels):
                labels = labels[:, : labels.shape[1] - cut]
            mask, texts["scores"] = mask[:, :width], texts["scores"][:, :width]
        tokens = {role: (ids[index], found[index]) for role, (ids, found) in self.tokens.items()}
        ids = {role: found[self._places(role, rows)] for role, found in self.ids.items()}
        return replace(self, texts=texts, counts=counts, labels=labels, rows=len(rows), mask=mask, tokens=tokens, ids=ids)

    def _width(self, counts: Mapping[str, list[int] | None]) -> int:
        return sum(max(found, default=0) for found in counts.values() if found is not None)

    def _per_candidate(self, labels: Tensor) -> bool:
        kind = self.format.label_kind
        return kind is not None and (
            (kind.per_candidate and labels.ndim == 2) or (kind.name == "embedding" and labels.ndim == 3)
        )

    def _places(self, role: str, rows: Sequence[int]) -> Tensor:
        counts = self.counts.get(role)
        if counts is None:
            return torch.tensor(list(rows), dtype=torch.long)
        begin = [sum(counts[:i]) for i in range(len(counts))]
        return torch.tensor([begin[r] + k for r in rows for k in range(counts[r])], dtype=torch.long)

    def places(self, row: int, name: str) -> Tensor:
        """Where the texts of a row are in the tensor of that name."""
        return self._places(self.role(name), [row])

    def to(self, dtype: torch.dtype) -> Batch:
        """The same input, rounded."""
        labels = self.labels
        if labels is not None and labels.is_floating_point():
            labels = labels.to(torch.float64 if dtype == torch.float64 else torch.float32)
        return replace(self, texts={k: v.to(dtype) for k, v in self.texts.items()}, labels=labels)

    def mapped(self, function: Callable[[Tensor], Tensor], names: Callable[[str], bool] = lambda name: True) -> Batch:
        """The same input with a function applied to the tensors whose names fit."""
        return replace(self, texts={k: function(v) if names(k) else v for k, v in self.texts.items()})


@dataclass(frozen=True)
class Run:
    """One forward and backward: value, gradients by tensor name and by own weight, and the output."""

    value: Tensor
    gradients: dict[str, Tensor]
    parameters: dict[str, Tensor]
    output: LossOutput
    missing: tuple[str, ...]

    def norm(self) -> float:
        """Norm of all gradients together."""
        found = [g.double().norm() for g in (*self.gradients.values(), *self.parameters.values())]
        return float(torch.stack(found).norm()) if found else 0.0


def run(loss: Loss, batch: Batch, scale: float = 1.0, labels: Any = ..., autocast: bool = False) -> Run:
    """Forward and backward. Gradients that did not come are zeros, and their names are in `missing`."""
    leaves = batch.leaves()
    loss.zero_grad(set_to_none=True)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        output = loss(batch.build(leaves), batch.labels if labels is ... else labels)
    if not output.total.requires_grad:
        raise AssertionError("the loss is not connected to its inputs (total.requires_grad is False)")
    (output.total * scale).backward()
    wanted = {name: leaf for name, leaf in leaves.items() if leaf.requires_grad}
    own = {name: weight for name, weight in loss.named_parameters() if weight.requires_grad}
    return Run(
        output.total.detach(),
        {name: torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for name, leaf in wanted.items()},
        {name: torch.zeros_like(w) if w.grad is None else w.grad.clone() for name, w in own.items()},
        output,
        tuple(name for name, tensor in {**wanted, **own}.items() if tensor.grad is None),
    )


@contextlib.contextmanager
def registered(*specs: LossSpec) -> Iterator[None]:
    """Have specs in the registry for a while, as far as they are not there (a loss that is tested before it is packaged)."""
    manager = plugin_manager()
    known = {name for plugin in manager.plugins for s in plugin.losses for name in (s.name, *s.aliases)}
    missing = [spec for spec in specs if spec.name not in known]
    module = SimpleNamespace(__name__="under test", embedloss_register_losses=hookimpl(lambda: missing))
    plugin = manager.register(module, next((spec.distribution for spec in missing), "") or "under test")
    try:
        yield
    finally:
        manager.unregister(plugin)


def specs_inside(loss: Loss) -> list[LossSpec]:
    """The specs of a loss and of the losses inside it."""
    losses = [m for m in loss.modules() if isinstance(m, Loss) and not isinstance(m, WeightedSum)]
    return list({m.spec.name: m.spec for m in losses}.values())


class _Pull(Loss):
    """Inner loss of a modifier whose example names a loss that is not installed: positives near, other rows far."""

    spec = LossSpec(
        name="kit-pull",
        target="embedloss.testing.case:_Pull",
        summary="softmax over the rows of the batch",
        family="testing",
        formats=["pairs"],
        scope="batch",
    )

    def compute(self, emb: Embeddings, labels: Tensor | None) -> Tensor:
        scores = emb.own("anchor") @ emb.pool("positive").T
        targets = torch.arange(len(scores)) + emb.offset("positive")
        return torch.nn.functional.cross_entropy(scores, targets)


def _installed(node: Any) -> Any:
    """The expression with losses that are not installed replaced by one of the kit's own."""
    if isinstance(node, Call):
        try:
            get_spec(node.name)
        except EmbedlossError:
            return Call("kit-pull")
        return replace(node, args=tuple(map(_installed, node.args)), kwargs={k: _installed(v) for k, v in node.kwargs.items()})
    if isinstance(node, Sum):
        return replace(node, terms=tuple((weight, _installed(term)) for weight, term in node.terms))
    return node


def _text(node: Any) -> str:
    if isinstance(node, Call):
        arguments = [_text(a) for a in node.args] + [f"{k}={_text(v)}" for k, v in node.kwargs.items()]
        return f"{node.name.replace('-', '_')}({', '.join(arguments)})"
    if isinstance(node, Sum):
        return " + ".join(f"{_text(w) if isinstance(w, Call) else w} * {_text(t)}" for w, t in node.terms)
    return expression.literal(node)


@cache
def _tiny_encoder(width: int) -> Any:
    from embedloss.encoders import load_encoder
    from embedloss.testing.models import tiny_bert

    with tempfile.TemporaryDirectory() as folder:
        return load_encoder(tiny_bert(folder, layers=1, hidden=width, heads=1, dropout=0))


class Case:
    """A loss under test.

    Args:
        subject: a spec, a loss object (copied), or a name or expression of an installed loss.
        dim: width of the embeddings; found by trying where it is None (8, or a size named in the loss's parameters).
    """

    def __init__(self, subject: LossSpec | Loss | str, dim: int | None = None) -> None:
        self.subject = subject
        self._loss: Loss | None = None
        self._dim = dim
        self._variants: list[tuple[DataFormat, str]] | None = None
        self.format: DataFormat = get_format("pairs")
        self.kind = "embeddings"
        if isinstance(subject, LossSpec):
            self.name = subject.name
        elif isinstance(subject, Loss):
            self.name = subject.spec.name if subject.spec.name != "sum" else subject.to_expression()
        else:
            self.name = normalise(subject)

    def __repr__(self) -> str:
        return self.name

    # -- the loss ----------------------------------------------------------------------------------------------------------
    @property
    def original(self) -> Loss:
        """The loss as it was made, not prepared. Nothing may change it."""
        if self._loss is None:
            if isinstance(self.subject, Loss):
                self._loss = self.subject
            elif isinstance(self.subject, str):
                self._loss = create_loss(self.subject)
            else:
                with registered(self.subject, _Pull.spec):
                    node = _installed(expression.parse(self.subject.example or self.subject.name))
                    alone = isinstance(node, Call) and get_spec(node.name).name == self.subject.name
                    self._loss = create_loss(_text(node) if alone else self.subject.name)
        return self._loss

    @property
    def spec(self) -> LossSpec:
        """The spec; a modifier's and a sum's only after the loss was made, with the formats of what is inside."""
        if isinstance(self.subject, LossSpec) and not self.subject.modifier:
            return self.subject
        return self.original.spec

    def loss(self, dim: int | None = None, dtype: torch.dtype = torch.float64) -> Loss:
        """A new copy, with own weights made for embeddings of this width, always the same ones."""
        width = self.dim if dim is None else dim
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            loss = copy.deepcopy(self.original)
            loss.prepare(self.model_info(loss, width))
        return loss.to(dtype)

    def model_info(self, loss: Loss, width: int) -> ModelInfo:
        """What `prepare` is given."""
        encoder = copy.deepcopy(_tiny_encoder(width)) if loss.requires().tokens else None
        return ModelInfo(width, encoder, self.classes, width)

    @property
    def classes(self) -> int:
        """Number of classes in the labels: the loss's `num_labels` or `num_classes`, else 3."""
        for module in self.original.modules():
            for name in ("num_labels", "num_classes"):
                if isinstance(getattr(module, name, None), int):
                    return int(getattr(module, name))
        return CLASSES

    @property
    def dim(self) -> int:
        """The width of embeddings that the loss is tried with."""
        if self._dim is None:
            self._dim = self._find_dim()
        return self._dim

    @property
    def fixed_width(self) -> bool:
        """Whether the loss's own parameters bound the width of the embeddings."""
        return self.dim != WIDTH or WIDTH in _integers(self.original)

    def _find_dim(self) -> int:
        here = self.format, self.kind
        self.format, self.kind = self.variants()[0]
        first: Exception | None = None
        try:
            for width in (WIDTH, *sorted(_integers(self.original) - {WIDTH})):
                try:
                    with torch.no_grad():
                        self.loss(width)(self.batch(dim=width).build(), self.batch(dim=width).labels)
                    return width
                except Exception as exception:  # whatever a stranger's loss raises means: not this width
                    first = first or exception
        finally:
            self.format, self.kind = here
        return WIDTH

    def variants(self) -> list[tuple[DataFormat, str]]:
        """(format, kind of input) pairs that the loss is tried with."""
        if self._variants is None:
            spec = self.original.spec
            names = list(spec.format_names()) or ["pairs", "single+class", "n-tuples"]
            found: list[tuple[DataFormat, str]] = []
            for name in names:
                # What the loss makes of such rows in the collator (damaged texts, drawn pairs).
                declared = next((f for f in spec.data_formats() if f.name == name), None) or get_format(name)
                rows = [
                    {role: ["a b", "c d"] if role in declared.lists else f"a b {i}" for role in declared.roles}
                    for i in range(8)
                ]
                _, changed = copy.deepcopy(self.original).transform(rows, name, random.Random(0))
                format_ = declared if changed == name else get_format(changed)
                if "bi-encoder" in spec.models:
                    found.append((format_, "embeddings"))
                if spec.consumes == "scores" and not spec.any_format:
                    found.append((format_, "scores"))
            self._variants = list(dict.fromkeys(found))
        return self._variants

    def variant(self, format_: DataFormat, kind: str) -> Case:
        """The same loss on one format and kind of input."""
        same = copy.copy(self)
        same.format, same.kind = format_, kind
        return same

    # -- its inputs --------------------------------------------------------------------------------------------------------
    def batch(self, rows: int = 8, dim: int | None = None, seed: int = 0, step: int = STEP, ragged: bool = True) -> Batch:
        """A random batch in float64 of the current format."""
        g = torch.Generator().manual_seed(1000 + seed)
        width = self.dim if dim is None else dim
        requires = self.original.requires()
        form = self.format
        lists = [role for role in form.roles if role in (form.lists or frozenset()) & LIST_ROLES]
        pattern = {"docs": [3, 2, 4, 3, 2], "negative": [2, 1, 3, 2], "texts": [2]}
        counts: dict[str, list[int] | None] = {role: None for role in form.roles}
        for role in lists:
            sizes = pattern.get(role, [2, 3]) if ragged else [3]
            counts[role] = [sizes[i % len(sizes)] for i in range(rows)]
        labels = self._labels(form, rows, counts, width, g)
        if self.kind == "scores":
            return self._scores(form, rows, counts, labels, g, step)
        texts: dict[str, Tensor] = {}
        tokens: dict[str, tuple[Tensor, Tensor]] = {}
        for role in form.roles:
            found = counts[role]
            size = rows if found is None else sum(found)
            if role in requires.tokens:
                tokens[role] = self._tokens(size, width)
                continue
            texts[role] = torch.randn(size, width, generator=g, dtype=torch.float64)
            if requires.twin:
                texts[f"twin/{role}"] = torch.randn(size, width, generator=g, dtype=torch.float64)
            if requires.layers:
                for i in range(N_LAYERS):
                    texts[f"layer{i}/{role}"] = torch.randn(size, width, generator=g, dtype=torch.float64)
            for i in range(len(requires.guides)):
                texts[f"guide{i}/{role}"] = torch.randn(size, width + 3, generator=g, dtype=torch.float64)
        ids: dict[str, Tensor] = {}
        for role in form.roles:
            if role in texts:
                begin = 1000 * len(ids)
                ids[role] = torch.arange(begin, begin + len(texts[role]))
        if requires.twin and labels is None and len(ids) == 2:  # two encoders, no label: pairs of equal texts
            first, second = ids
            ids[second] = ids[first]
        guides = tuple(requires.guides)
        return Batch("embeddings", form, texts, counts, labels, rows, None, guides, tokens, step, ids)

    def _scores(
        self,
        form: DataFormat,
        rows: int,
        counts: Mapping[str, list[int] | None],
        labels: Tensor | None,
        g: torch.Generator,
        step: int,
    ) -> Batch:
        if form.label == "class":
            sizes = [self.classes] * rows
        else:
            sizes = [0] * rows
            for role in form.roles[1:]:
                found = counts[role]
                sizes = [n + (1 if found is None else found[i]) for i, n in enumerate(sizes)]
        values = torch.randn(rows, max(sizes), generator=g, dtype=torch.float64)
        mask = torch.arange(max(sizes))[None] < torch.tensor(sizes)[:, None]
        return Batch("scores", form, {"scores": values * mask}, {}, labels, rows, mask, step=step)

    def _labels(
        self, form: DataFormat, rows: int, counts: Mapping[str, list[int] | None], width: int, g: torch.Generator
    ) -> Tensor | None:
        kind = form.label_kind
        if kind is None:
            return None
        low, high = self.spec.label_range or (0.0, 1.0)
        if kind.name in ("class", "binary"):
            classes = self.classes if kind.name == "class" else 2
            return (torch.arange(rows) % classes)[torch.randperm(rows, generator=g)]
        if kind.name == "score":
            return low + (high - low) * torch.rand(rows, generator=g, dtype=torch.float64)
        if kind.name == "embedding":
            return torch.randn(rows, width, generator=g, dtype=torch.float64)
        if not kind.per_candidate:
            return 2 * torch.randn(rows, generator=g, dtype=torch.float64)
        listed = [found for found in counts.values() if found is not None]
        sizes = [sum(found[i] for found in listed) or 1 for i in range(rows)]
        sizes = [n + 1 for n in sizes] if kind.name == "scores" else sizes
        real = torch.arange(max(sizes))[None] < torch.tensor(sizes)[:, None]
        if kind.name == "grades":
            values = torch.rand(rows, max(sizes), generator=g).argsort(1) % 4  # neighbours differ
            values = (values.sort(1, descending=True).values if order_matters(self.original) else values).double()
        else:
            values = 2 * torch.randn(rows, max(sizes), generator=g, dtype=torch.float64)
        return values * real

    def _tokens(self, size: int, width: int) -> tuple[Tensor, Tensor]:
        from embedloss.testing.models import SENTENCES

        sentences = [SENTENCES[i % len(SENTENCES)] for i in range(size)]
        batch = _tiny_encoder(width).processor.tokenizer(sentences, padding=True, return_tensors="pt")
        return batch["input_ids"], batch["attention_mask"]


def order_matters(loss: Loss) -> bool:
    """Whether a loss reads its candidates in the order of the data; it says so by an attribute `respect_input_order`."""
    return any(bool(getattr(module, "respect_input_order", False)) for module in loss.modules())


def _integers(loss: Loss) -> set[int]:
    """Whole numbers above 1 among the parameters of a loss and of what is inside it."""
    found: set[int] = set()

    def look(value: Any) -> None:
        if isinstance(value, int) and not isinstance(value, bool) and value > 1:
            found.add(value)
        elif isinstance(value, (list, tuple)):
            for item in value:
                look(item)

    for module in loss.modules():
        if isinstance(module, Loss):
            for name, value in vars(module).items():
                if not name.startswith("_") and name != "training":
                    look(value)
    return found
