"""Every registered loss under every combination, as gradients of the encoder and of the loss in float64.

    python tests/composition_table.py        prints the table and writes it into docs/composing.md

The reference knows nothing of collators, chunks, views or processes: it encodes each role in one plain pass, writes sums and
modifiers out as loops, and runs in one process. The gather columns are real gloo processes under DistributedDataParallel, with
different numbers of rows.
"""

from __future__ import annotations

import copy
import functools
import multiprocessing
import random
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
import transformers
from torch import Tensor

from embedloss import Embeddings, LossSpec, TrainingStep, create_loss, list_losses, load_encoder
from embedloss.collate import Collator, labels_tensor
from embedloss.distributed import leave
from embedloss.embeddings import Scores
from embedloss.errors import EmbedlossError
from embedloss.formats import FORMATS, DataFormat, get_format
from embedloss.loss import Loss, WeightedSum
from embedloss.registry import get_spec
from embedloss.samplers import text_id
from embedloss.testing.models import SENTENCES, tiny_bert, tiny_cross_encoder
from embedloss_modifiers.losses import AdaptiveLayerLoss, Matryoshka2dLoss, MatryoshkaLoss

ROOT = Path(__file__).parents[1]
PAGE, BEGIN, END = ROOT / "docs" / "composing.md", "<!-- table: begin -->", "<!-- table: end -->"
ROWS, WIDTH, CLASSES, TOLERANCE = 9, 16, 3, 1e-8
PARTS = {2: [6, 3], 4: [4, 1, 3, 1]}  # rows of each process
CHUNKS = (1, 60, 10**6)  # tokens: a text each, a few texts, everything
REAL_LABELS = {f.name for f in FORMATS.values() if f.label_kind is not None and f.label_kind.real}
Gradients = dict[str, Tensor]


@dataclass(frozen=True)
class Column:
    """What is done to the loss of a row; `{}` in the expression stands for that loss."""

    title: str
    expression: str = "{}"
    needs: tuple[str, ...] = ()  # losses in the expression
    recompute: bool = False
    processes: int = 1
    gather: bool = True


MATRYOSHKA, LAYERS, SUM = (
    "matryoshka({}, dims=[16, 8, 4], weights=[1, 0.5, 2])",
    "adaptive_layer({}, n_layers_per_step=-1, layer_weighting='log')",
    "{} + 0.05 * gor()",
)
COLUMNS = [
    Column("plain"),
    Column("recompute", recompute=True),
    Column("gather x 2", processes=2),
    Column("gather x 4", processes=4),
    Column("matryoshka", MATRYOSHKA, ("matryoshka",)),
    Column("adaptive-layer", LAYERS, ("adaptive-layer",)),
    Column("adaptive-layer over matryoshka", LAYERS.replace("{}", MATRYOSHKA), ("matryoshka", "adaptive-layer")),
    Column("matryoshka over adaptive-layer", MATRYOSHKA.replace("{}", LAYERS), ("matryoshka", "adaptive-layer")),
    Column("sum with GOR", SUM, ("gor",)),
    Column("sum, recompute, gather x 2", SUM, ("gor",), recompute=True, processes=2),
]

# Where the default arguments are not enough, or do not fit the tiny model.
EXPRESSIONS = {
    "adaptive-layer": "adaptive_layer(mnrl(), n_layers_per_step=-1)",
    "matryoshka": "matryoshka(mnrl(), dims=[4, 2])",  # the columns cut to 4
    "matryoshka-2d": "matryoshka_2d(mnrl(), dims=[4, 2], n_layers_per_step=-1, n_dims_per_step=-1)",
    "gist-embed": "gist_embed(guide='guide')",
    "cached-gist-embed": "cached_gist_embed(guide='guide')",
}
ROWS_OF = {"contrastive-tension-in-batch-negatives": "single"}  # its pairs must be of equal texts


@dataclass(frozen=True)
class Row:
    """A loss on one kind of model."""

    spec: LossSpec
    kind: str

    @property
    def title(self) -> str:
        both = len(self.spec.models) > 1 and self.kind == "cross-encoder"
        return self.spec.name + (", cross-encoder" if both else "")

    def expression(self, column: Column) -> str:
        own = EXPRESSIONS.get(self.spec.name, f"{self.spec.name.replace('-', '_')}()")
        return column.expression.replace("{}", own)


def table_rows() -> list[Row]:
    return [Row(spec, kind) for spec in list_losses() for kind in spec.models]


# -- data ------------------------------------------------------------------------------------------------------------------
def label_of(kind: str | None, i: int, listed: int, label_range: tuple[float, float], rng: random.Random) -> Any:
    """A label of row i, whose list role holds `listed` texts."""
    if kind in ("class", "binary"):
        return i % (CLASSES if kind == "class" else 2)
    if kind == "score":
        return label_range[0] + (label_range[1] - label_range[0]) * rng.random()
    if kind == "grades":
        return [float(grade) for grade in rng.sample(range(4), listed)]
    count = {"margin": 1, "margins": listed, "scores": listed + 1, "embedding": WIDTH}[str(kind)]
    values = [rng.gauss(0, 1) for _ in range(count)]
    return values[0] if kind == "margin" else values


def data_of(form: DataFormat, label_range: tuple[float, float] | None) -> list[dict[str, Any]]:
    """Rows of a format: texts that all differ, lists of one to three texts, labels that mean something."""
    rng = random.Random(0)
    words = sorted({word for text in SENTENCES for word in text.split()})
    rows = []
    for i in range(ROWS):
        row: dict[str, Any] = {}
        for role in form.roles:
            texts = [" ".join(rng.choice(words) for _ in range(rng.randint(2, 9))) for _ in range(1 + i % 3)]
            row[role] = texts if role in form.lists else texts[0]
        if form.label is not None:
            listed = next((len(row[role]) for role in form.lists), 0)
            row["label"] = label_of(form.label, i, listed, label_range or (0.0, 1.0), rng)
        rows.append(row)
    return rows


def changed_rows(loss: Loss) -> tuple[list[dict[str, Any]], str]:
    """Rows after the loss's own change of them (damaged texts, drawn pairs), which every process makes of its own rows."""
    names = loss.spec.format_names() or ("n-tuples",)
    special = [ROWS_OF[m.spec.name] for m in loss.modules() if isinstance(m, Loss) and m.spec.name in ROWS_OF]
    form = get_format((special or names)[-1])  # the richest format is the last
    return loss.transform(data_of(form, loss.spec.label_range), form.name, random.Random(0))


# -- models ----------------------------------------------------------------------------------------------------------------
@functools.cache
def model(what: str) -> Any:
    """A tiny real model in float64; copied before it is used."""
    with tempfile.TemporaryDirectory() as folder:
        if what == "guide":
            return load_encoder(tiny_bert(folder, layers=1, hidden=8, seed=7)).double()
        if what == "bi-encoder":
            return load_encoder(tiny_bert(folder, layers=2, hidden=WIDTH)).double()
        return load_encoder(
            tiny_cross_encoder(folder, layers=2, hidden=WIDTH, num_labels=int(what)), kind="cross-encoder"
        ).double()


def step_of(row: Row, expression: str, *, recompute: bool = False, gather: bool = False) -> TrainingStep:
    """The training step of a cell; equal arguments give equal weights."""
    loss = create_loss(expression)
    classes = row.kind == "cross-encoder" and any(f.label == "class" for f in row.spec.data_formats())
    what = row.kind if row.kind == "bi-encoder" else str(CLASSES if classes else 1)
    guides = {key: copy.deepcopy(model("guide")) for key in loss.requires().guides}
    torch.manual_seed(0)
    step = TrainingStep(
        copy.deepcopy(model(what)),
        loss,
        recompute=recompute,
        gather=gather,
        guides=guides,
        num_classes=CLASSES,
        label_dimension=WIDTH,
    )
    return step.double().eval()


def collate(step: TrainingStep, rows: list[dict[str, Any]], name: str, chunk_tokens: int) -> dict[str, Any]:
    """A batch of rows that are changed already."""
    changed = SimpleNamespace(transform=lambda rows, name, rng: (rows, name), requires=step.loss.requires)
    guides = {key: (guide.processor, "") for key, guide in step._guides[0].items()}
    batch = Collator(step.encoder.processor, changed, name, chunk_tokens, {}, step.encoder.kind, guides)(rows)
    return {**batch, "label": batch["label"].double()} if name in REAL_LABELS and "label" in batch else batch


def gradients(step: TrainingStep) -> Gradients:
    return {k: torch.zeros_like(p) if p.grad is None else p.grad.clone() for k, p in step.named_parameters() if p.requires_grad}


# -- the reference ---------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Plain:
    """One step as plain tensors: role -> one (texts, dim) a layer, the final one last."""

    layers: dict[str, list[Tensor]]
    twin: dict[str, list[Tensor]]
    guides: dict[Any, dict[str, list[Tensor]]]
    tokens: dict[str, tuple[Tensor, Tensor]]
    ids: dict[str, Tensor]
    counts: dict[str, list[int]]
    labels: Tensor | None
    vectors: bool
    layer: int = -1

    def _of(self, stacks: Mapping[str, list[Tensor]], layer: int) -> Embeddings:
        texts = {role: stack[layer] for role, stack in stacks.items()}
        return Embeddings.of(**{r: list(x.split(self.counts[r])) if r in self.counts else x for r, x in texts.items()})

    def embeddings(self) -> Embeddings:
        emb = self._of(self.layers, self.layer)
        if self.twin:
            emb = emb.with_twin(self._of(self.twin, self.layer))
        for key, stacks in self.guides.items():
            emb = emb.with_guide(self._of(stacks, -1), key)
        return emb.with_tokens(**self.tokens).with_text_ids(**self.ids)

    def cut(self, dim: int) -> Plain:
        def unit(x: Tensor) -> Tensor:
            return x[..., :dim] / x[..., :dim].pow(2).sum(-1, keepdim=True).sqrt()

        cut = [{role: [unit(x) for x in stack] for role, stack in stacks.items()} for stacks in (self.layers, self.twin)]
        return replace(self, layers=cut[0], twin=cut[1], labels=unit(self.labels) if self.vectors else self.labels)  # type: ignore[arg-type]


def labels_of(rows: list[dict[str, Any]], form: DataFormat) -> Tensor | None:
    if "label" not in rows[0]:
        return None
    labels = labels_tensor([row["label"] for row in rows], str(form.label))
    return labels.double() if form.name in REAL_LABELS else labels


def plain(step: TrainingStep, rows: list[dict[str, Any]], name: str) -> Plain:
    """Each role in one pass of the encoder."""
    form, needs = get_format(name), step.loss.requires()
    texts: dict[str, list[str]] = {}
    counts: dict[str, list[int]] = {}
    for role in form.roles:
        values = [row[role] for row in rows]
        if isinstance(values[0], list):
            counts[role] = [len(v) for v in values]
        texts[role] = [text for v in values for text in ([v] if isinstance(v, str) else v)]
    seen = [role for role in form.roles if role not in needs.tokens]

    def encoded(encoder: Any) -> dict[str, list[Tensor]]:
        return {r: encoder(encoder.processor.pad(encoder.processor.tokenize(texts[r])), True) for r in seen}

    tokens = {}
    for role in needs.tokens:
        features = step.encoder.processor.pad(step.encoder.processor.tokenize(texts[role]))
        tokens[role] = (features["input_ids"], features["attention_mask"])
    labels = labels_of(rows, form)
    return Plain(
        encoded(step.encoder),
        {} if step.twin is None else encoded(step.twin),
        {key: encoded(guide) for key, guide in step._guides[0].items()},
        tokens,
        {role: torch.tensor([text_id(t) for t in texts[role]]) for role in seen},
        counts,
        labels,
        form.label == "embedding",
    )


def written_out(loss: Any, at: Plain) -> Tensor:
    """The value of a loss, sums and modifiers as the loops that they stand for."""
    if isinstance(loss, WeightedSum):
        return sum(weight * written_out(term, at) for weight, term in loss.terms)  # type: ignore[return-value,operator]

    def prefixes(at: Plain) -> Tensor:
        weights = loss.weights or [1.0] * len(loss.dims)
        return sum(w * written_out(loss.loss, at.cut(d)) for w, d in zip(weights, loss.dims, strict=True))  # type: ignore[return-value]

    if isinstance(loss, Matryoshka2dLoss):
        return layered(loss, at, prefixes)
    if isinstance(loss, MatryoshkaLoss):
        return prefixes(at)
    if isinstance(loss, AdaptiveLayerLoss):
        return layered(loss, at, lambda view: written_out(loss.loss, view))
    takes_labels = any(f.label for f in loss.spec.data_formats())
    total: Tensor = loss(at.embeddings(), at.labels if takes_labels else None).total
    return total


def layered(loss: Any, at: Plain, inside: Callable[[Plain], Tensor]) -> Tensor:
    """The final layer, the mean of all others, and how far their softmax over coordinates is from the final one's."""
    stacks = list(at.layers.values())
    prior, t = len(stacks[0]) - 1, loss.kl_temperature
    total = inside(replace(at, layer=-1))
    wanted = (torch.cat([s[-1] for s in stacks]).detach() / t).softmax(1)
    for i in range(prior):
        weight = 1 / (1 + torch.log(torch.tensor(1.0 + i, dtype=torch.float64))) if loss.layer_weighting == "log" else 1.0
        total = total + weight / prior * inside(replace(at, layer=i))
        found = (torch.cat([s[i] for s in stacks]) / t).softmax(1)
        total = total + t * (wanted * (wanted / found).log()).sum(1).mean()
    return total


def scores_of(step: TrainingStep, rows: list[dict[str, Any]], name: str) -> tuple[Scores, Tensor | None]:
    """A cross-encoder's scores, row by row."""
    form, processor = get_format(name), step.encoder.processor
    found = []
    for row in rows:
        query, *others = (row[role] for role in form.roles)
        docs = [text for value in others for text in ([value] if isinstance(value, str) else value)]
        found.append(step.encoder(processor.pad(processor.tokenize_pairs([query] * len(docs), docs))))
    labels = labels_of(rows, form)
    if found[0].shape[1] > 1:
        return Scores.of(torch.cat(found)), labels
    width = max(len(f) for f in found)
    values = torch.stack([torch.cat([f[:, 0], f.new_zeros(width - len(f))]) for f in found])
    return Scores.of(values, torch.arange(width) < torch.tensor([len(f) for f in found])[:, None]), labels


def reference(row: Row, expression: str) -> Gradients:
    """The gradients of one process, without anything that the other columns use."""
    step = step_of(row, expression)
    rows, name = changed_rows(step.loss)
    if row.kind == "cross-encoder":
        value = step.loss(*scores_of(step, rows, name)).total
    else:
        value = written_out(step.loss, plain(step, rows, name))
    value.backward()
    return gradients(step)


# -- the columns -----------------------------------------------------------------------------------------------------------
def run_alone(row: Row, expression: str, chunk_tokens: int = 60) -> Gradients:
    """Collator and training step in one process."""
    step = step_of(row, expression)
    step(collate(step, *changed_rows(step.loss), chunk_tokens))["loss"].backward()
    return gradients(step)


def run_recompute(row: Row, expression: str, chunk_tokens: int, recompute: bool) -> Gradients:
    """The same with dropout, with or without keeping all activations."""
    step = step_of(row, expression).train()
    step.recompute = recompute
    batch = collate(step, *changed_rows(step.loss), chunk_tokens)
    torch.manual_seed(1)
    step(batch)["loss"].backward()
    return gradients(step)


def run_process(row: Row, column: Column, rank: int) -> Gradients:
    """This process's share of the rows; DistributedDataParallel takes the mean of the gradients."""
    step = step_of(row, row.expression(column), recompute=column.recompute, gather=column.gather)
    rows, name = changed_rows(step.loss)
    parts = PARTS[column.processes]
    begin = sum(parts[:rank])
    batch = collate(step, rows[begin : begin + parts[rank]], name, 60)
    joint = torch.nn.parallel.DistributedDataParallel(step, find_unused_parameters=True)
    joint(batch)["loss"].backward()
    return gradients(step)


def run_processes(cells: Sequence[tuple[Row, Column]]) -> list[Gradients]:
    """All cells, on processes that are started once; their groups are as large as the columns ask."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["transformers.models.bert.modeling_bert", "embedloss.training.step", "embedloss.testing"])
    jobs = [(row.spec.name, row.kind, column) for row, column in cells]
    with tempfile.TemporaryDirectory() as folder:
        started = [context.Process(target=_process, args=(jobs, folder, rank)) for rank in range(max(PARTS))]
        try:
            for process in started:
                process.start()
            for process in started:
                process.join(240)
            if any(process.exitcode for process in started):
                raise RuntimeError("a process has failed; what it said is above")
            found: dict[int, Gradients] = {}
            for count in PARTS:
                found |= torch.load(f"{folder}/{count}.pt")
        finally:
            for process in started:
                process.kill()
    return [found[i] for i in range(len(jobs))]


def _process(jobs: Sequence[tuple[str, str, Column]], folder: str, rank: int) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    transformers.logging.disable_progress_bar()
    for what in ("guide", "bi-encoder", "1", str(CLASSES)):
        model(what)  # now, because among processes only the first one saves
    specs = {spec.name: spec for spec in list_losses()}
    for count in PARTS:
        if rank < count:
            dist.init_process_group("gloo", init_method=f"file://{folder}/store{count}", rank=rank, world_size=count)
            found = {}
            for i, (name, kind, column) in enumerate(jobs):
                if column.processes == count:
                    found[i] = run_process(Row(specs[name], kind), column, rank)
            if rank == 0:
                torch.save(found, f"{folder}/{count}.pt")
            dist.barrier()
            leave()


# -- the table -------------------------------------------------------------------------------------------------------------
def distance(found: Gradients, wanted: Gradients) -> float:
    """Largest difference of a gradient, relative to the largest gradient; infinite where there is none or one is missing."""
    largest = max(float(g.abs().max()) for g in wanted.values())
    if set(found) != set(wanted) or not largest > 1e-7:
        return float("inf")
    errors = [float((found[k] - g).abs().max()) for k, g in wanted.items()]
    return max(e if e == e else float("inf") for e in errors) / largest


def why_not(row: Row, column: Column) -> str:
    """Why a combination has no meaning, from the specs; empty where it has one."""
    for spec in map(get_spec, column.needs):
        if row.kind not in spec.models:
            return f"a {row.kind} gives scores, and {spec.name} works on the embeddings of a {' or '.join(spec.models)}"
    return ""


def make_table() -> dict[Row, list[float | str]]:
    """A row's cells: the distance of its gradients from the reference, or why the combination is not defined."""
    cells: dict[tuple[Row, Column], float | str] = {}
    joint: list[tuple[Row, Column]] = []
    rows = table_rows()
    wanted = functools.cache(reference)
    for row in rows:
        for column in COLUMNS:
            expression = row.expression(column)
            try:
                step_of(row, expression)
            except EmbedlossError as refusal:
                cells[row, column] = why_not(row, column)
                if not cells[row, column] or refusal.code not in ("E101", "E302"):
                    raise
                continue
            assert not why_not(row, column), f"{row.title}, {column.title}: not refused"
            if column.processes > 1:
                joint.append((row, column))
            elif column.recompute:
                pairs = [[run_recompute(row, expression, chunk, again) for again in (True, False)] for chunk in CHUNKS]
                cells[row, column] = max(distance(*pair) for pair in pairs)
            else:
                cells[row, column] = distance(run_alone(row, expression), wanted(row, expression))
    for (row, column), found in zip(joint, run_processes(joint), strict=True):
        cells[row, column] = distance(found, wanted(row, row.expression(column)))
    return {row: [cells[row, column] for column in COLUMNS] for row in rows}


def markdown(table: Mapping[Row, list[float | str]]) -> str:
    """The table for the page. Numbers are left out, because their last digits depend on the machine."""
    reasons: list[str] = []

    def shown(cell: float | str) -> str:
        if not isinstance(cell, str):
            return "equal" if cell <= TOLERANCE else "**unequal**"
        if cell not in reasons:
            reasons.append(cell)
        return f"not defined [{reasons.index(cell) + 1}]"

    lines = ["| loss | " + " | ".join(c.title for c in COLUMNS) + " |", "| --- " * (len(COLUMNS) + 1) + "|"]
    lines += [f"| {row.title} | " + " | ".join(map(shown, cells)) + " |" for row, cells in table.items()]
    notes = [f"{i}. {reason}" for i, reason in enumerate(reasons, 1)]
    return "\n".join([*lines, "", "Not defined, and refused before training:", "", *notes])


def main() -> None:
    torch.set_num_threads(1)
    transformers.logging.disable_progress_bar()
    table = make_table()
    worst = max(cell for cells in table.values() for cell in cells if not isinstance(cell, str))
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n\n{markdown(table)}\n\n{END}{rest.partition(END)[2]}", encoding="utf-8")
    for row, cells in table.items():
        print(f"{row.title:60}", *(f"{c:9.1e}" if not isinstance(c, str) else " not def." for c in cells))
    print(f"largest distance {worst:.1e}")


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
