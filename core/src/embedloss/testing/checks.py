"""The checks. Each is a plain function of a `Case`; it returns if all is well, raises `AssertionError` (or whatever the loss
raises) if not, and `NotApplicable` where the spec says that the question does not arise.
"""

from __future__ import annotations

import copy
import inspect
import io
import math
import pickle
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from embedloss.embeddings import Embeddings, Scores
from embedloss.errors import EmbedlossError
from embedloss.formats import LABELS
from embedloss.loss import Loss, LossOutput, Modifier, WeightedSum
from embedloss.registry import create_loss
from embedloss.spec import constructor_parameters
from embedloss.testing.case import STEP, Batch, Case, NotApplicable, Run, order_matters, registered, run, specs_inside


@dataclass(frozen=True)
class Check:
    """A check and when it is run: once a loss instead of once a format, or only when processes are asked for."""

    name: str
    group: str
    function: Callable[[Case], None]
    once: bool = False
    processes: bool = False

    @property
    def summary(self) -> str:
        """The first line of its docstring."""
        return (self.function.__doc__ or "").strip().split("\n")[0]


CHECKS: dict[str, Check] = {}


def _check(group: str, **options: bool) -> Callable[[Callable[[Case], None]], Callable[[Case], None]]:
    def add(function: Callable[[Case], None]) -> Callable[[Case], None]:
        name = function.__name__.removeprefix("check_")
        CHECKS[name] = Check(name, group, function, **options)
        return function

    return add


# -- comparing -----------------------------------------------------------------------------------------------------------------
def _equal(found: Tensor, wanted: Tensor, what: str, tolerance: float = 1e-9) -> None:
    """Equal to `tolerance` of the larger norm, plus a hundredth of it absolutely."""
    found, wanted = found.detach().double(), wanted.detach().double()
    if found.shape != wanted.shape:
        raise AssertionError(f"{what}: shape {tuple(found.shape)} instead of {tuple(wanted.shape)}")
    difference = float((found - wanted).norm())
    size = max(float(found.norm()), float(wanted.norm()))
    if not difference <= tolerance * size + tolerance * 0.01:
        if found.ndim == 0:
            raise AssertionError(f"{what}: {float(found):.10g} instead of {float(wanted):.10g}")
        raise AssertionError(f"{what}: differs by {difference:.3g} (norm {size:.3g})")


def _equal_runs(found: Run, wanted: Run, what: str, tolerance: float = 1e-9, scale: float = 1.0) -> None:
    _equal(found.value, wanted.value, f"{what}: value", tolerance)
    for name, gradient in wanted.gradients.items():
        _equal(found.gradients[name], gradient * scale, f"{what}: gradient of {name}", tolerance)
    for name, gradient in wanted.parameters.items():
        _equal(found.parameters[name], gradient * scale, f"{what}: gradient of own weight {name}", tolerance)


def _finite(result: Run, what: str, largest: float = math.inf) -> None:
    if not bool(result.value.isfinite()):
        raise AssertionError(f"{what}: the loss is {float(result.value)}")
    for name, gradient in {**result.gradients, **result.parameters}.items():
        if not bool(gradient.isfinite().all()):
            raise AssertionError(f"{what}: the gradient of {name} is not finite")
        if gradient.numel() and float(gradient.abs().max()) > largest:
            raise AssertionError(f"{what}: the gradient of {name} reaches {float(gradient.abs().max()):.3g}")


def _moving(result: Run, what: str = "the test batch") -> None:
    """No check of gradients is worth anything if all of them are zero."""
    if result.norm() == 0:
        raise AssertionError(f"{what}: all gradients are zero")


def _live(case: Case, loss: Loss, **options: Any) -> Batch:
    """A batch with a gradient (a hinge may be satisfied by chance)."""
    for seed in range(8):
        batch = case.batch(seed=seed, **options)
        if run(loss, batch).norm() > 0:
            return batch
    raise AssertionError("all gradients are zero on eight random batches")


# -- spec ----------------------------------------------------------------------------------------------------------------------
@_check("spec", once=True)
def check_spec(case: Case) -> None:
    """The spec is complete: summary, family, formats, scope, citation.

    Where there is no paper, `citation` says what the origin is.
    """
    if isinstance(case.original, WeightedSum):
        raise NotApplicable("a sum is made of losses that have their own specs")
    spec = case.spec
    for name in ("summary", "family", "citation"):
        if not getattr(spec, name).strip():
            raise AssertionError(f"spec.{name} is empty")
    if "\n" in spec.summary:
        raise AssertionError("spec.summary is longer than one line")
    allowed = {
        "models": {"bi-encoder", "cross-encoder"},
        "sampler": {"random", "no-duplicates", "group-by-label"},
        "scope": {"row", "batch"},
        "consumes": {"embeddings", "scores"},
        "status": {"stable", "experimental", "deprecated"},
    }
    for name, values in allowed.items():
        given = getattr(spec, name)
        wrong = set(given if name == "models" else [given]) - values
        if wrong or not given:
            raise AssertionError(f"spec.{name} is {given!r}; allowed: {', '.join(sorted(values))}")
    if spec.status == "deprecated" and not spec.deprecated_by:
        raise AssertionError("a deprecated loss says in spec.deprecated_by what to type instead")
    if spec.label_range and not spec.label_range[0] < spec.label_range[1]:
        raise AssertionError(f"spec.label_range is {spec.label_range}; lowest first")
    if "cross-encoder" in spec.models and spec.consumes != "scores":
        raise AssertionError("a cross-encoder gives scores, so spec.consumes must be 'scores'")


@_check("spec", once=True)
def check_target(case: Case) -> None:
    """The target of the spec can be imported, and it is the class of the loss."""
    if isinstance(case.original, WeightedSum):
        raise NotApplicable("a sum is made of losses that have their own targets")
    loaded = case.spec.load()
    if not (isinstance(loaded, type) and issubclass(loaded, Loss)):
        raise AssertionError(f"{case.spec.target} is no subclass of embedloss.Loss")
    if type(case.original) is not loaded:
        raise AssertionError(f"{case.spec.target} is not {type(case.original).__qualname__}")
    if case.spec.modifier != issubclass(loaded, Modifier):
        raise AssertionError("spec.modifier must be True for subclasses of Modifier, and only for them")


@_check("spec", once=True)
def check_parameters(case: Case) -> None:
    """Every constructor parameter is kept as an attribute of the same name, as a value that an expression can hold."""
    if isinstance(case.original, WeightedSum):
        raise NotApplicable("a sum has terms, not parameters")
    kind = type(case.original)
    own = [vars(c)["__init__"] for c in kind.__mro__[: kind.__mro__.index(Loss)] if "__init__" in vars(c)]
    kinds = [{p.kind for p in inspect.signature(constructor).parameters.values()} for constructor in own]
    last = next((found for found in kinds if inspect.Parameter.VAR_KEYWORD not in found), kinds[-1] if kinds else set())
    if last & {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}:
        raise AssertionError("parameters must be named one by one, not taken by *args or **kwargs")
    for name in constructor_parameters(kind):
        if not hasattr(case.original, name):
            raise AssertionError(f"the parameter '{name}' is not kept as an attribute of that name")
    case.original.to_expression()


@_check("spec", once=True)
def check_expression(case: Case) -> None:
    """The loss can be written as an expression and made again from it, with the same value."""
    text = case.original.to_expression()
    with registered(*specs_inside(case.original)):
        again = create_loss(text)
    if again.to_expression() != text:
        raise AssertionError(f"{text} is read back as {again.to_expression()}")
    here = case.variant(*case.variants()[0])
    batch = here.batch()
    copied = Case(again, dim=here.dim)
    copied.format, copied.kind = here.format, here.kind
    _equal(run(copied.loss(), batch).value, run(here.loss(), batch).value, f"made again from {text}: value", 1e-12)


@_check("spec", once=True)
def check_prepare(case: Case) -> None:
    """`prepare` may be called twice and keeps the own weights it made; all of them are parameters."""
    loss = case.loss()
    before = {name: id(weight) for name, weight in loss.named_parameters()}
    loss.prepare(case.model_info(loss, case.dim))
    if {name: id(weight) for name, weight in loss.named_parameters()} != before:
        raise AssertionError("the second call of prepare made other weights")
    for module in loss.modules():
        for name, value in vars(module).items():
            items = value if isinstance(value, (list, tuple)) else [value]
            if name not in ("_parameters", "_buffers") and any(isinstance(v, Tensor) and v.requires_grad for v in items):
                raise AssertionError(f"'{name}' has a gradient but is no nn.Parameter of the module; it would not be trained")


# -- gradient ------------------------------------------------------------------------------------------------------------------
@_check("gradient")
def check_output(case: Case) -> None:
    """The total is one number with a graph; terms and metrics are detached numbers."""
    loss = case.loss()
    output = loss(case.batch().build(case.batch().leaves()), case.batch().labels)
    if not isinstance(output, LossOutput):
        raise AssertionError(f"the loss returned {type(output).__name__}, not LossOutput; override compute, not forward")
    if output.total.shape != () or not output.total.requires_grad:
        raise AssertionError(f"the total has shape {tuple(output.total.shape)}, requires_grad {output.total.requires_grad}")
    if not output.terms:
        raise AssertionError("there are no terms to log")
    for name, value in {**output.terms, **output.metrics}.items():
        if value.numel() != 1 or value.requires_grad:
            raise AssertionError(f"'{name}' must be one detached number")


@_check("gradient")
def check_every_role(case: Case) -> None:
    """A gradient reaches every role, every layer, the twin and every own weight; none reaches a guide."""
    loss = case.loss()
    missing: set[str] | None = None
    for seed in range(12 if loss.requires().layers else 6):
        result = run(loss, case.batch(seed=seed, step=STEP + seed))
        zero = {name for name, g in result.gradients.items() if not bool(g.any())} | set(result.missing)
        if len(case.format.roles) > 1:  # one encoder for each side is enough
            zero = {name for name in zero if _other_encoder(name) in zero or _other_encoder(name) not in result.gradients}
        missing = zero if missing is None else missing & zero
        if not missing:
            return
    raise AssertionError(f"no gradient reaches {', '.join(sorted(missing or ()))}")


def _other_encoder(name: str) -> str:
    return name.removeprefix("twin/") if name.startswith("twin/") else f"twin/{name}"


@_check("gradient")
def check_finite_differences(case: Case) -> None:
    """The gradient is the derivative (central differences along random directions, float64)."""
    loss = case.loss()
    wrong: list[str] = []
    tries = 4
    for seed in range(tries):
        try:
            _differences(loss, _live(case, loss) if seed == 0 else case.batch(seed=10 + seed, step=STEP + seed), seed)
        except AssertionError as error:
            wrong.append(str(error))
    # A kink within 1e-6 of a random point is possible once, not in half of the batches.
    if len(wrong) > 1:
        raise AssertionError(f"{wrong[0]} (and in {len(wrong)} of {tries} batches)")


def _differences(loss: Loss, batch: Batch, seed: int, step: float = 1e-6) -> None:
    g = torch.Generator().manual_seed(seed)
    result = run(loss, batch)
    tensors = {name: batch.texts[name] for name in result.gradients}

    def value(name: str, shifted: Tensor) -> float:
        leaves = batch.leaves()
        if name in leaves:
            leaves[name] = shifted.clone().requires_grad_()
        return float(loss(batch.build(leaves), batch.labels).total.detach())

    for name, gradient in {**result.gradients, **result.parameters}.items():
        own = dict(loss.named_parameters()).get(name)
        start = tensors[name] if own is None else own.detach().clone()
        for _ in range(3):
            direction = torch.randn(start.shape, generator=g, dtype=start.dtype)
            if "scores" in tensors and batch.mask is not None:
                direction = direction * batch.mask
            direction = direction / direction.norm().clamp(min=1e-12)
            ends = []
            for sign in (step, -step):
                if own is None:
                    ends.append(value(name, start + sign * direction))
                else:
                    with torch.no_grad():
                        own.copy_(start + sign * direction)
                    ends.append(value("", start))
                    with torch.no_grad():
                        own.copy_(start)
            numeric, analytic = (ends[0] - ends[1]) / (2 * step), float((gradient * direction).sum())
            rounding = 1e-15 * max(1.0, abs(ends[0])) / step * 10
            if not abs(numeric - analytic) <= 1e-5 * float(gradient.norm()) + 1e-4 * abs(numeric) + rounding:
                raise AssertionError(f"{name}: the gradient says {analytic:.6g}, differences say {numeric:.6g}")


@_check("gradient")
def check_zero_vectors(case: Case) -> None:
    """Zero vectors (one row, one role, everything): finite, and no gradient of 1e12 that would drown all others."""
    loss = case.loss()
    usual = run(loss, _live(case, loss)).norm()
    for dtype in (torch.float64, torch.float32):
        loss = case.loss(dtype=dtype)
        batch = case.batch().to(dtype)
        bound = 1e6 * max(1.0, usual)
        _finite(run(loss, batch.mapped(torch.zeros_like)), "all vectors are zero", bound)
        for name in batch.texts:
            _finite(run(loss, batch.mapped(torch.zeros_like, lambda n, name=name: n == name)), f"{name} is zero", bound)  # type: ignore[misc]

            def first(value: Tensor) -> Tensor:
                value = value.clone()
                value[0] = 0
                return value

            _finite(run(loss, batch.mapped(first, lambda n, name=name: n == name)), f"one vector of {name} is zero", bound)  # type: ignore[misc]


@_check("gradient")
def check_identical_vectors(case: Case) -> None:
    """Equal vectors (all texts, all roles of a row, two rows): finite."""
    for dtype in (torch.float64, torch.float32):
        loss = case.loss(dtype=dtype)
        batch = case.batch(rows=6).to(dtype)
        if case.kind == "scores":
            _finite(run(loss, batch.mapped(torch.ones_like)), "all scores are equal")
            continue
        _finite(run(loss, batch.mapped(lambda v: v[:1].expand_as(v).clone())), "all texts of a role are equal")
        _finite(run(loss, _alike(batch, lambda row: 0)), "all vectors are equal")
        _finite(run(loss, _alike(batch, lambda row: row)), "all texts of a row are equal")
        double = batch.select([0, 0, 1, 1, 2, 3])
        _finite(run(loss, double), "rows appear twice")


def _alike(batch: Batch, source: Callable[[int], int]) -> Batch:
    """All texts of row i, of whatever role, get vector number `source(i)`."""
    widest = max(value.shape[1] for value in batch.texts.values())
    vectors = torch.randn(batch.rows, widest, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    texts = {}
    for name, value in batch.texts.items():
        texts[name] = torch.empty_like(value)
        for row in range(batch.rows):
            texts[name][batch.places(row, name)] = vectors[source(row), : value.shape[1]].to(value.dtype)
    return replace(batch, texts=texts)


@_check("gradient")
def check_norms(case: Case) -> None:
    """Vectors of norm 1e4 and 1e-6 (scores of 1e4 and 1e-6): finite in float32."""
    loss = case.loss(dtype=torch.float32)
    for norm in (1e4, 1e-6):
        batch = case.batch().to(torch.float32)
        if case.kind == "scores":
            scaled = batch.mapped(lambda v, norm=norm: v * norm)  # type: ignore[misc]
        else:
            scaled = batch.mapped(lambda v, norm=norm: torch.nn.functional.normalize(v, dim=1) * norm)  # type: ignore[misc]
        _finite(run(loss, scaled), f"{'scores' if case.kind == 'scores' else 'norms'} of {norm:g}")


@_check("gradient")
def check_inputs_unchanged(case: Case) -> None:
    """Neither embeddings nor labels are changed in place."""
    loss = case.loss()
    batch = case.batch()
    leaves = {name: value.clone() for name, value in batch.texts.items()}
    labels = None if batch.labels is None else batch.labels.clone()
    # Not leaves of the graph: torch itself would refuse to change those in place.
    inputs = {name: value.clone().requires_grad_() * 1 for name, value in leaves.items()}
    versions = {name: value._version for name, value in inputs.items()}
    output = loss(batch.build(inputs), labels)
    for name, value in inputs.items():
        if value._version != versions[name] or not torch.equal(value.detach(), leaves[name]):
            raise AssertionError(f"the embeddings of {name} were changed in place")
    if labels is not None and (not torch.equal(labels, batch.labels) or labels._version):  # type: ignore[arg-type]
        raise AssertionError("the labels were changed in place")
    output.total.backward()


@_check("gradient")
def check_labels_constant(case: Case) -> None:
    """No gradient flows into labels (a teacher's scores or vectors)."""
    loss = case.loss()
    batch = case.batch()
    if batch.labels is None or not batch.labels.is_floating_point():
        raise NotApplicable("the labels are no real numbers")
    labels = batch.labels.clone().requires_grad_()
    result = run(loss, batch, labels=labels)
    if labels.grad is not None and bool(labels.grad.any()):
        raise AssertionError("the labels receive a gradient; detach them")
    _equal_runs(result, run(loss, batch), "labels that require a gradient")


# -- batch ---------------------------------------------------------------------------------------------------------------------
@_check("batch")
def check_row_order(case: Case) -> None:
    """The order of rows does not matter, labels moving with their rows."""
    loss = case.loss()
    batch = _live(case, loss)
    wanted = run(loss, batch)
    for seed in range(3):
        order = torch.randperm(batch.rows, generator=torch.Generator().manual_seed(seed)).tolist()
        found = run(loss, batch.select(order))
        _equal(found.value, wanted.value, "rows in another order: value")
        for name, gradient in wanted.gradients.items():
            places = torch.cat([_row_places(batch, row, name) for row in order])
            _equal(found.gradients[name], gradient[places], f"rows in another order: gradient of {name}")
        for name, gradient in wanted.parameters.items():
            _equal(found.parameters[name], gradient, f"rows in another order: gradient of own weight {name}")


def _row_places(batch: Batch, row: int, name: str) -> Tensor:
    return torch.tensor([row]) if batch.kind == "scores" else batch.places(row, name)


@_check("batch")
def check_scope(case: Case) -> None:
    """The declared scope is true: rows are independent ("row"), or other rows matter ("batch").

    "row": the gradient of a row in a batch is a non-negative factor times its gradient alone, the factors of a mean add up to
    one and those of a sum are one each, the loss is the sum of factor times row loss, and changing one row leaves the
    others' gradients. "batch": changing one row changes the gradient of others.
    """
    if case.kind == "scores" and case.spec.scope == "batch":
        raise NotApplicable("what other rows give is among the scores already")
    loss = case.loss()
    batch = _live(case, loss)
    whole = run(loss, batch)
    last = batch.rows - 1

    def changed(name: str, value: Tensor) -> Tensor:
        value = value.clone()
        places = _row_places(batch, last, name)
        value[places] = value[places].flip(-1) * 1.5 + 0.3
        if batch.mask is not None:
            value = value * batch.mask
        return value

    other = run(loss, replace(batch, texts={name: changed(name, v) for name, v in batch.texts.items()}))
    moved = False
    for name, gradient in whole.gradients.items():
        kept = torch.cat([_row_places(batch, row, name) for row in range(last)])
        difference = float((other.gradients[name][kept] - gradient[kept]).norm())
        moved = moved or difference > 1e-9 * float(gradient.norm()) + 1e-12
    if case.spec.scope == "batch":
        if not moved and not any(_moves(case.variant(*v), loss) for v in case.variants() if v[1] != "scores"):
            raise AssertionError('spec.scope is "batch", but no row changes the gradient of another; say "row"')
        return
    if moved:
        raise AssertionError('spec.scope is "row", but a row changes the gradient of other rows; say "batch"')
    factors, total, idle = [], 0.0, 0
    for row in range(batch.rows):
        alone = run(loss, batch.select([row]))
        mine = torch.cat([whole.gradients[n][_row_places(batch, row, n)].flatten() for n in whole.gradients])
        single = torch.cat([_padded(alone.gradients[n], whole.gradients[n], batch, row, n).flatten() for n in whole.gradients])
        if not bool(single.any()):
            _equal(mine, single, f"row {row + 1} has no gradient alone, but has one in the batch")
            idle += 1
            if float(alone.value) != 0:  # a constant: its factor cannot be seen
                total = math.nan
            continue
        factor = float((mine * single).sum() / (single * single).sum())
        _equal(mine, single * factor, f"row {row + 1}: gradient in the batch against gradient alone")
        if factor <= 0:
            raise AssertionError(f"row {row + 1} enters the batch with factor {factor:.3g}")
        factors.append(factor)
        total += factor * float(alone.value)
    is_sum = all(abs(f - 1) < 1e-9 for f in factors) and batch.rows > 1
    if not is_sum and not (sum(factors) <= 1 + 1e-9 if idle else abs(sum(factors) - 1) < 1e-9):
        raise AssertionError(f"the rows enter with factors that add up to {sum(factors):.6g}: neither a mean nor a sum of rows")
    if not math.isnan(total):
        _equal(whole.value, torch.tensor(total, dtype=torch.float64), "the batch's loss against its rows' losses")


def _padded(alone: Tensor, whole: Tensor, batch: Batch, row: int, name: str) -> Tensor:
    """A single row's gradient of scores, as wide as the batch's."""
    if batch.kind != "scores":
        return alone
    return torch.nn.functional.pad(alone, (0, whole.shape[1] - alone.shape[1]))


def _moves(case: Case, loss: Loss) -> bool:
    """Whether on any of several batches the gradient of a row depends on the rows beside it."""
    for seed in range(1, 8):
        batch = case.batch(seed=seed)
        first, second = run(loss, batch), run(loss, batch.select([0, 1, 0, 1, 0, 1, 0, 1][: batch.rows]))
        for name, gradient in first.gradients.items():
            for row in (0, 1):
                mine, other = first.gradients[name][_row_places(batch, row, name)], second.gradients[name]
                other = other[_row_places(batch.select([0, 1]), row, name)]
                parallel = torch.nn.functional.cosine_similarity(mine.flatten(), other.flatten(), dim=0)
                moved = float((mine - other).norm()) > 1e-9 * float(gradient.norm()) + 1e-12
                if moved and (float(parallel) < 1 - 1e-9 or not bool(mine.any()) or not bool(other.any())):
                    return True
    return False


@_check("batch")
def check_nothing_to_learn(case: Case) -> None:
    """A batch of one, equal or all different labels, lists of one or none: finite, connected, and 0 if there is no gradient."""
    loss = case.loss()
    batch = case.batch()
    for row in range(3):
        _idle(loss, batch.select([row]), "a batch of one row")
    if batch.labels is not None:
        kind = LABELS[case.format.label or ""]
        if kind.name != "embedding":
            label = batch.labels.flatten()[:1]
            _idle(loss, replace(batch, labels=torch.zeros_like(batch.labels) + label), "all labels are equal")
            _idle(loss, replace(batch, labels=torch.zeros_like(batch.labels)), "all labels are zero")
        if kind.name == "class" and case.spec.scope == "batch":
            _idle(loss, replace(batch, labels=torch.arange(batch.rows)), "all labels differ")
        if kind.name == "binary":
            _idle(loss, replace(batch, labels=torch.ones_like(batch.labels)), "all labels are one")
    if case.format.name == "listwise":
        _idle(loss, _shortened(batch, [1] * batch.rows), "lists of one document")
        some = [0, *[2] * (batch.rows - 1)]
        _idle(loss, _shortened(batch, some), "one list is empty")
        _idle(loss, _shortened(batch, [0] * batch.rows), "all lists are empty")


def _idle(loss: Loss, batch: Batch, what: str) -> None:
    result = run(loss, batch)
    _finite(result, what)
    # Roles that take no part for want of anything to learn may be left out of the graph; the whole input may not.
    if all(name in result.missing for name in result.gradients) and result.gradients:
        raise AssertionError(f"{what}: the loss is not connected to its inputs")
    if result.norm() == 0 and float(result.value) != 0:
        raise AssertionError(f"{what}: nothing to learn, yet the loss is {float(result.value):.6g}, not 0")


def _shortened(batch: Batch, sizes: list[int]) -> Batch:
    """The first `sizes[i]` documents of every list."""
    width = max(sizes)
    labels = None if batch.labels is None else batch.labels[:, :width]
    keep = torch.arange(width)[None] < torch.tensor(sizes)[:, None]
    if labels is not None:
        labels = labels * keep
    if batch.kind == "scores":
        return replace(batch, texts={"scores": batch.texts["scores"][:, :width] * keep}, mask=keep, labels=labels)
    texts = dict(batch.texts)
    for name in texts:
        if batch.counts.get(batch.role(name)) is not None:
            index = [batch.places(row, name)[:size] for row, size in enumerate(sizes)]
            texts[name] = texts[name][torch.cat(index)]
    counts = {role: None if found is None else list(sizes) for role, found in batch.counts.items()}
    return replace(batch, texts=texts, counts=counts, labels=labels)


@_check("batch")
def check_nan(case: Case) -> None:
    """A NaN in the embeddings makes the loss non-finite, so that it cannot go unseen."""
    loss = case.loss()
    batch = case.batch()
    used = {name for name, g in run(loss, _live(case, loss)).gradients.items() if bool(g.any())}
    for name, value in batch.texts.items():
        if name not in used and not name.startswith("guide"):  # such as layers that were not drawn
            continue
        for row in (0, len(value) - 1):
            broken = value.clone()
            broken[row, 0] = math.nan
            total = loss(replace(batch, texts={**batch.texts, name: broken}).build(), batch.labels).total
            if bool(total.isfinite()):
                raise AssertionError(f"a NaN in {name}, vector {row + 1}: the loss is {float(total.detach()):.6g}")


@_check("batch")
def check_repeatable(case: Case) -> None:
    """The same input at the same step gives the same value; global random generators are neither read nor moved."""
    loss = case.loss()
    batch = case.batch()
    states = torch.get_rng_state(), random.getstate()
    values = []
    try:
        for seed in (0, 1, 2):
            torch.manual_seed(seed)
            random.seed(seed)
            before = torch.get_rng_state(), random.getstate()
            values.append(run(loss, batch))
            if not torch.equal(before[0], torch.get_rng_state()) or before[1] != random.getstate():
                raise AssertionError("the loss draws from a global random generator; use emb.generator(name)")
    finally:
        torch.set_rng_state(states[0])
        random.setstate(states[1])
    for other in values[1:]:
        _equal_runs(other, values[0], "another global seed", 1e-13)
    loss.eval()
    with torch.no_grad():
        again = loss(batch.build(), batch.labels).total
    _equal(again, values[0].value, "in evaluation mode, without gradients: value", 1e-12)


# -- composition ---------------------------------------------------------------------------------------------------------------
class _TinyNet(nn.Module):
    """Features -> embeddings, with dropout, in chunks as an encoder does it."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(inputs, 16), nn.Tanh(), nn.Dropout(0.3), nn.Linear(16, outputs))

    def forward(self, x: Tensor, *, recompute: bool) -> Tensor:
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
        parts = []
        for chunk in torch.split(x[order], 5):
            parts.append(checkpoint(self.layers, chunk, use_reentrant=False) if recompute else self.layers(chunk))
        return torch.cat(parts)[order.argsort()]


@_check("composition")
def check_recompute(case: Case) -> None:
    """Embeddings from an encoder that recomputes its chunks (with dropout) give its weights the same gradient."""
    if case.kind == "scores":
        raise NotApplicable("covered by the embeddings")
    loss, batch = case.loss(), case.batch()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        net = _TinyNet(12, case.dim).double()
        features = {
            name: torch.randn(len(v), 12, dtype=torch.float64)
            for name, v in batch.texts.items()
            if not name.startswith("guide")
        }

        def gradients(recompute: bool) -> tuple[Tensor, list[Tensor]]:
            torch.manual_seed(7)
            net.zero_grad(set_to_none=True)
            made = {name: net(x, recompute=recompute) for name, x in features.items()}
            total = loss(batch.build({**batch.texts, **made}), batch.labels).total
            total.backward()
            return total.detach(), [w.grad.clone() for w in net.parameters() if w.grad is not None]

        (plain, wanted), (value, found) = gradients(False), gradients(True)
        torch.manual_seed(7)
        with torch.no_grad():
            first = next(iter(features.values()))
            if torch.equal(net(first, recompute=False), net(first, recompute=False)):
                raise AssertionError("the kit's dropout is off")
    if not wanted or not any(bool(g.any()) for g in wanted):
        raise AssertionError("no gradient reaches the encoder")
    _equal(value, plain, "recomputed chunks: value")
    for i, (a, b) in enumerate(zip(found, wanted, strict=True)):
        _equal(a, b, f"recomputed chunks: gradient of the encoder's weight {i}")


@_check("composition")
def check_width(case: Case) -> None:
    """Embeddings of other widths (3, 8, 17) work; a width that cannot work is refused with an `EmbedlossError`."""
    if case.kind == "scores":
        raise NotApplicable("scores have no width")
    if case.original.requires().tokens:
        raise NotApplicable("the width is that of the decoder")
    widths = (case.dim, case.dim + 1, 2 * case.dim) if case.fixed_width else (3, 8, 17)
    for width in widths:
        try:
            loss, batch = case.loss(width), case.batch(dim=width)
            result = run(loss, batch)
            _finite(result, f"width {width}")
            if "row_order" not in case.spec.deviations:  # rows are still rows
                mixed = run(loss, batch.select(range(batch.rows - 1, -1, -1)))
                _equal(mixed.value, result.value, f"width {width}, rows reversed: value")
        except EmbedlossError:
            if not case.fixed_width or width == case.dim:
                raise


@_check("composition")
def check_views(case: Case) -> None:
    """A loss on a view (truncated, or another layer) is the loss on what the view shows; the rest gets no gradient."""
    if case.kind == "scores":
        raise NotApplicable("scores have no views")
    if case.fixed_width or any(isinstance(m, nn.Module) and not isinstance(m, Loss) for m in case.loss().modules()):
        raise NotApplicable("the loss's own parameters fix the width")
    loss, batch, cut = case.loss(), case.batch(), case.dim // 2
    if any(weight.ndim > 1 for weight in loss.parameters()):
        raise NotApplicable("the loss's own weights fix the width")
    labels = batch.labels
    if labels is not None and case.format.label == "embedding":
        labels = labels[..., :cut]
    narrow = batch.mapped(lambda v: v[:, :cut], lambda name: not name.startswith("guide"))
    wanted = run(loss, replace(narrow, labels=labels))
    leaves = batch.leaves()
    emb = batch.build(leaves)
    assert isinstance(emb, Embeddings)
    total = loss(emb.map(lambda v: v[:, :cut]), labels).total
    _equal(total, wanted.value, "on truncated embeddings: value")
    total.backward()
    for name, gradient in wanted.gradients.items():
        found = leaves[name].grad
        found = torch.zeros_like(leaves[name]) if found is None else found
        _equal(found[:, :cut], gradient, f"on truncated embeddings: gradient of {name}")
        if bool(found[:, cut:].any()):
            raise AssertionError(f"on truncated embeddings: the part of {name} that was cut off has a gradient")
    if loss.requires().layers:
        return
    other = case.batch(seed=1)
    layered = emb.with_layers(**{role: [other.texts[role], leaves[role]] for role in batch.roles})
    if loss.requires().twin:
        layered = layered.with_twin(
            emb.twin.with_layers(**{role: [other.texts[f"twin/{role}"], leaves[f"twin/{role}"]] for role in batch.roles})
        )
    guides = {name: value for name, value in batch.texts.items() if name.startswith("guide")}
    wanted_value = run(loss, replace(batch, texts={**other.texts, **guides})).value
    _equal(loss(layered.at_layer(0), batch.labels).total, wanted_value, "at an earlier layer: value")


@_check("composition")
def check_two_forwards(case: Case) -> None:
    """Two forwards before one backward give the gradients of both: nothing is remembered between calls."""
    loss = case.loss()
    batches = [_live(case, loss), case.batch(seed=21)]
    wanted = [run(loss, batch) for batch in batches]
    _moving(wanted[0])
    loss.zero_grad(set_to_none=True)
    leaves = [batch.leaves() for batch in batches]
    totals = [loss(batch.build(leaf), batch.labels).total for batch, leaf in zip(batches, leaves, strict=True)]
    totals[0].backward()
    totals[1].backward()
    for i, (leaf, result) in enumerate(zip(leaves, wanted, strict=True)):
        _equal(totals[i], result.value, f"call {i + 1} of two: value")
        for name, gradient in result.gradients.items():
            found = leaf[name].grad
            _equal(torch.zeros_like(gradient) if found is None else found, gradient, f"call {i + 1} of two: gradient of {name}")


@_check("composition")
def check_upstream(case: Case) -> None:
    """A backward scaled by 1.7 gives 1.7 times the gradient."""
    loss = case.loss()
    batch = _live(case, loss)
    wanted = run(loss, batch)
    _moving(wanted)
    _equal_runs(run(loss, batch, scale=1.7), wanted, "backward scaled by 1.7", scale=1.7)


@_check("composition")
def check_sum(case: Case) -> None:
    """0.5 * loss + 0.5 * loss is the loss."""
    loss = case.loss()
    batch = _live(case, loss)
    wanted = run(loss, batch)
    _moving(wanted)
    total = 0.5 * loss + 0.5 * loss
    found = run(total, batch)
    _equal(found.value, wanted.value, "0.5 * loss + 0.5 * loss: value")
    for name, gradient in wanted.gradients.items():
        _equal(found.gradients[name], gradient, f"0.5 * loss + 0.5 * loss: gradient of {name}")


# -- precision -----------------------------------------------------------------------------------------------------------------
@_check("precision")
def check_float32(case: Case) -> None:
    """float32 agrees with float64 on the same numbers: the value to 1e-4, gradients to 1e-3."""
    batch = _live(case, case.loss(), rows=24).to(torch.float32)
    _close(run(case.loss(dtype=torch.float32), batch), run(case.loss(), batch.to(torch.float64)), "float32", 1e-4, 1e-3)


@_check("precision")
def check_half(case: Case) -> None:
    """bfloat16 and float16 inputs, and autocast: computed in float32 or wider, so only the gradients are rounded."""
    rows = 64 if case.dim <= 64 else 24
    for dtype in (torch.bfloat16, torch.float16):
        batch = _live(case, case.loss(), rows=rows).to(dtype)
        found = run(case.loss(dtype=torch.float32), batch)
        if found.value.dtype in (torch.bfloat16, torch.float16):
            raise AssertionError(f"{dtype}: the loss is {found.value.dtype}")
        _close(found, run(case.loss(), batch.to(torch.float64)), str(dtype), 1e-4, 0.05)
    loss, batch = case.loss(dtype=torch.float32), case.batch().to(torch.float32)
    wanted = run(loss, batch)
    _close(run(loss, batch, autocast=True), wanted, "under autocast", 1e-5, 1e-5)


def _close(found: Run, wanted: Run, what: str, value: float, gradient: float) -> None:
    _finite(found, what)
    error = abs(float(found.value.double() - wanted.value.double()))
    if not error <= value * max(0.1, abs(float(wanted.value))):
        raise AssertionError(f"{what}: value {float(found.value):.8g} instead of {float(wanted.value):.8g}")
    size = max(wanted.norm(), 1e-12)
    for name, exact in wanted.gradients.items():
        error = float((found.gradients[name].double() - exact.double()).norm())
        if not error <= gradient * max(size, 1e-3):
            raise AssertionError(f"{what}: the gradient of {name} is off by {error:.3g} (all gradients: {size:.3g})")


# -- scores --------------------------------------------------------------------------------------------------------------------
@_check("scores")
def check_mask(case: Case) -> None:
    """Padded candidates do not matter, whatever stands there (0, 1e30, NaN); they get gradient 0."""
    if case.kind != "scores" or case.format.label == "class":
        raise NotApplicable("only scores of several candidates have a mask")
    loss = case.loss()
    batch = case.batch()
    assert batch.mask is not None
    wide = nn.functional.pad(batch.texts["scores"], (0, 2))
    mask = nn.functional.pad(batch.mask, (0, 2))
    labels = batch.labels
    if labels is not None and case.format.label_kind is not None and case.format.label_kind.per_candidate:
        labels = nn.functional.pad(labels, (0, 2))
    elif labels is not None:
        raise NotApplicable("a fixed number of candidates a row")
    wanted = run(loss, batch)
    _moving(wanted)
    for filling in (0.0, 1e30, -1e30, math.nan):
        padded = replace(batch, texts={"scores": wide.masked_fill(~mask, filling)}, mask=mask, labels=labels)
        found = run(loss, padded)
        _equal(found.value, wanted.value, f"padding of {filling:g}: value")
        gradient = found.gradients["scores"]
        if bool(gradient[~mask].any()):
            raise AssertionError(f"padding of {filling:g}: padding has a gradient")
        _equal(gradient[:, : batch.mask.shape[1]], wanted.gradients["scores"], f"padding of {filling:g}: gradient")


@_check("scores")
def check_candidate_order(case: Case) -> None:
    """The order of a row's candidates does not matter, labels moving with them (unless `respect_input_order` says so)."""
    loss = case.loss()
    if order_matters(loss):
        raise NotApplicable("reads candidates in the order of the data")
    kind = case.format.label_kind
    first = 1 if kind is not None and kind.name == "scores" else 0  # the positive stays first
    lists = [role for role in case.format.roles if case.batch().counts.get(role) is not None]
    if case.kind == "scores":
        if case.format.name not in ("listwise", "n-tuples", "n-tuples+scores", "n-tuples+margins"):
            raise NotApplicable("no lists of candidates")
    elif not lists:
        raise NotApplicable("no lists of candidates")
    batch = _live(case, loss)
    wanted = run(loss, batch)
    g = torch.Generator().manual_seed(4)
    labels = None if batch.labels is None else batch.labels.clone()
    if case.kind == "scores":
        assert batch.mask is not None
        keep = 0 if case.format.name == "listwise" else 1
        offset = keep - first if kind is not None else 0
        scores, gradient = batch.texts["scores"].clone(), wanted.gradients["scores"].clone()
        for row in range(batch.rows):
            size = int(batch.mask[row].sum())
            order = torch.randperm(size - keep, generator=g)
            places = order + keep
            scores[row, keep:size] = batch.texts["scores"][row, places]
            gradient[row, keep:size] = wanted.gradients["scores"][row, places]
            if labels is not None and batch.labels is not None and labels.ndim == 2:
                labels[row, keep - offset : size - offset] = batch.labels[row, places - offset]
        found = run(loss, replace(batch, texts={"scores": scores}, labels=labels))
        _equal(found.value, wanted.value, "candidates in another order: value")
        _equal(found.gradients["scores"], gradient, "candidates in another order: gradient")
        return
    texts = dict(batch.texts)
    expected = dict(wanted.gradients)
    for role in lists:
        orders = []
        for row in range(batch.rows):
            places = batch.places(row, role)
            order = torch.randperm(len(places), generator=g)
            orders.append(places[order])
            if labels is not None and batch.labels is not None and labels.ndim >= 2 and kind is not None and kind.per_candidate:
                labels[row, first : first + len(places)] = batch.labels[row, first + order]
        index = torch.cat(orders)
        for name in texts:
            if batch.role(name) == role:
                texts[name] = batch.texts[name][index]
                if name in expected:
                    expected[name] = wanted.gradients[name][index]
    found = run(loss, replace(batch, texts=texts, labels=labels))
    _equal(found.value, wanted.value, "texts of a list in another order: value")
    for name, gradient in expected.items():
        _equal(found.gradients[name], gradient, f"texts of a list in another order: gradient of {name}")


# -- data ----------------------------------------------------------------------------------------------------------------------
def _refused(what: str, call: Callable[[], Any]) -> None:
    try:
        call()
    except EmbedlossError:
        return
    except Exception as exception:
        raise AssertionError(f"{what}: {type(exception).__name__} instead of an EmbedlossError: {exception}") from exception
    raise AssertionError(f"{what}: accepted")


@_check("data")
def check_roles(case: Case) -> None:
    """A missing role, a role of another name and a bare tensor are refused with an `EmbedlossError`."""
    loss, batch = case.loss(), case.batch()
    if case.spec.any_format:
        raise NotApplicable("takes any roles")
    _refused("a list instead of embeddings", lambda: loss([[1.0, 2.0]], batch.labels))  # type: ignore[arg-type]
    _refused("a tensor instead of embeddings", lambda: loss(torch.randn(8, 8), batch.labels))  # type: ignore[arg-type]
    if case.kind == "scores":
        return
    if case.spec.consumes != "scores":
        _refused("scores instead of embeddings", lambda: loss(Scores.of(torch.randn(batch.rows, 3)), batch.labels))
    given = {role: batch._listed(role, batch.texts[role]) for role in batch.roles}
    _refused(
        "an unknown role more",
        lambda: loss(Embeddings.of(**given, other=batch.texts[batch.roles[0]][: batch.rows]), batch.labels),
    )
    _refused("roles of other names", lambda: loss(Embeddings.of(**{f"x{k}": v for k, v in given.items()}), batch.labels))
    fewer = {k: v for k, v in list(given.items())[:-1]}
    accepted = {frozenset(f.roles) for f in case.spec.data_formats()}
    if fewer and frozenset(fewer) not in accepted:
        _refused("a role less", lambda: loss(Embeddings.of(**fewer), batch.labels))


@_check("data")
def check_labels(case: Case) -> None:
    """Labels as list, column or another integer type are the same; a wrong number, none, or NaN is refused."""
    loss, batch = case.loss(), case.batch()
    if case.spec.any_format:
        raise NotApplicable("ignores labels")
    labels, kind = batch.labels, case.format.label_kind
    alike = {f.label for f in case.spec.data_formats() if set(f.roles) == set(case.format.roles)}
    if labels is None or kind is None:
        if alike == {None} and case.kind == "embeddings":
            _refused("labels that the loss does not take", lambda: loss(batch.build(), torch.zeros(batch.rows)))
        return
    if None not in alike:
        _refused("no labels", lambda: loss(batch.build(), None))
    _refused("a label too few", lambda: loss(batch.build(), labels[:-1]))
    _refused("one label for all", lambda: loss(batch.build(), labels[0] if labels.ndim == 1 else labels[:1]))
    wanted = run(loss, batch)
    same: dict[str, Any] = {"a list": labels.tolist()}
    if labels.ndim == 1 and not kind.per_candidate:
        same["a column"] = labels[:, None]
    if not labels.is_floating_point():
        same["int32"] = labels.int()
        if kind.name == "binary":
            same["bool"] = labels.bool()
            same["float"] = labels.double()
    for name, given in same.items():
        _equal_runs(run(loss, batch, labels=given), wanted, f"labels as {name}", 1e-6 if name == "a list" else 1e-9)
    if labels.is_floating_point():
        broken = labels.clone()
        broken.view(-1)[0] = math.nan
        _refused("a label that is NaN", lambda: loss(batch.build(), broken))


@_check("data")
def check_labels_matter(case: Case) -> None:
    """Other labels give another loss."""
    loss, batch = case.loss(), _live(case, case.loss())
    if batch.labels is None or case.spec.any_format:
        raise NotApplicable("takes no labels")
    if order_matters(loss):
        raise NotApplicable("reads the order of the data instead of the labels")
    value = run(loss, batch).value
    kind = case.format.label or ""
    low, high = case.spec.label_range or (0.0, 1.0)
    others: dict[str, Callable[[Tensor], Tensor]] = {
        "class": lambda v: (v + torch.arange(len(v)) // 2) % case.classes,
        "binary": lambda v: torch.cat([1 - v[:2], v[2:]]),
        "score": lambda v: low + high - v,
        "margin": torch.neg,
        "margins": torch.neg,
    }
    if kind in others:
        other = others[kind](batch.labels)
    else:
        other = 0.5 * batch.labels - 0.25 * batch.labels.flip(-1)
    if kind == "grades":
        other = 3 - batch.labels
    if float((run(loss, replace(batch, labels=other)).value - value).abs()) <= 1e-9 * float(value.abs()):
        raise AssertionError("other labels give the same loss")


# -- life ----------------------------------------------------------------------------------------------------------------------
@_check("life", once=True)
def check_pickle(case: Case) -> None:
    """A pickled, a copied and a saved loss give the same value, own weights included."""
    case = case.variant(*case.variants()[0])
    loss, batch = case.loss(), case.batch()
    _shift_weights(loss)
    wanted = run(loss, batch)
    for name, other in (("pickled", pickle.loads(pickle.dumps(loss))), ("copied", copy.deepcopy(loss))):
        _equal_runs(run(other, batch), wanted, name, 1e-12)


@_check("life", once=True)
def check_state_dict(case: Case) -> None:
    """A state dict, saved and loaded into a new loss, gives the same value: all of the loss's state is in it."""
    case = case.variant(*case.variants()[0])
    loss, batch = case.loss(), case.batch()
    _shift_weights(loss)
    for seed in range(3):  # whatever a loss keeps from step to step is there now
        run(loss, case.batch(seed=seed, step=STEP + seed))
    file = io.BytesIO()
    torch.save(loss.state_dict(), file)
    file.seek(0)
    other = case.loss()
    if loss.requires().tokens:  # shared weights belong to the encoder; see Loss.prepare
        other = copy.deepcopy(loss)
    other.load_state_dict(torch.load(file))
    _equal_runs(run(other, batch), run(loss, batch), "loaded from a state dict", 1e-12)


def _shift_weights(loss: Loss) -> None:
    g = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for weight in loss.parameters():
            weight.add_(0.1 * torch.randn(weight.shape, generator=g, dtype=weight.dtype))


@_check("life")
def check_learns(case: Case) -> None:
    """Fifty steps on free embeddings lower the loss, and what belongs together comes nearer than what does not."""
    loss = case.loss()
    batch = _live(case, loss, rows=12)
    leaves = batch.leaves()
    trained = [leaf for leaf in leaves.values() if leaf.requires_grad]
    optimizer = torch.optim.Adam([*trained, *loss.parameters()], lr=0.05)

    def value() -> float:
        with torch.no_grad():
            return float(loss(batch.build(leaves), batch.labels).total)

    begin, agreed = value(), _agreement(case, batch, leaves)
    for step in range(50):
        optimizer.zero_grad()
        loss(replace(batch, step=STEP + step).build(leaves), batch.labels).total.backward()
        optimizer.step()
    end, agrees = value(), _agreement(case, batch, leaves)
    if not end < begin - 0.01 * abs(begin):
        raise AssertionError(f"the loss was {begin:.6g} and is {end:.6g} after 50 steps")
    if (
        agreed
        and not order_matters(loss)
        and not any(after > before + 0.01 for before, after in zip(agreed, agrees, strict=True))
    ):
        before, after = ", ".join(f"{v:.3f}" for v in agreed), ", ".join(f"{v:.3f}" for v in agrees)
        raise AssertionError(f"the loss falls, but what belongs together does not come nearer: {before} became {after}")


def _similarities(x: Tensor, y: Tensor) -> list[Tensor]:
    """Cosine, dot product and negative Euclidean distance of every row of x with every row of y."""
    unit = nn.functional.normalize
    return [unit(x, dim=1) @ unit(y, dim=1).T, x @ y.T, -torch.cdist(x, y)]


def _correlation(x: Tensor, y: Tensor) -> float:
    x, y = x - x.mean(), y - y.mean()
    return float((x * y).sum() / (x.norm() * y.norm()).clamp(min=1e-12))


def _agreement(case: Case, batch: Batch, leaves: dict[str, Tensor]) -> list[float]:
    """How well similarities (three kinds) or scores agree with the data; empty where the format does not say."""
    if case.spec.any_format:
        return []
    with torch.no_grad():
        found = {name: leaf.detach() for name, leaf in leaves.items()}
        if case.kind == "scores":
            return _score_agreement(batch, found["scores"])
        return _embedding_agreement(batch, found)


def _score_agreement(batch: Batch, scores: Tensor) -> list[float]:
    labels, mask, label = batch.labels, batch.mask, batch.format.label
    assert mask is not None
    if label in ("binary", "score") and labels is not None:
        return [_correlation(scores[:, 0], labels.double())]
    if label == "margin" and labels is not None:
        return [_correlation(scores[:, 0] - scores[:, 1], labels)]
    if labels is not None and labels.ndim == 2:
        values = []
        for row in range(batch.rows):
            size = int(mask[row].sum())
            mine = scores[row, 0] - scores[row, 1:size] if label == "margins" else scores[row, :size]
            values.append(_correlation(mine, labels[row, : len(mine)]) if len(mine) > 1 else 0.0)
        return [sum(values) / len(values)]
    if label is None and scores.shape[1] > 1:
        others = [float(scores[row, 1:][mask[row, 1:]].mean()) for row in range(batch.rows) if int(mask[row].sum()) > 1]
        return [float(scores[:, 0].mean()) - sum(others) / max(len(others), 1)]
    return []


def _embedding_agreement(batch: Batch, found: dict[str, Tensor]) -> list[float]:
    labels, label, roles = batch.labels, batch.format.label, batch.roles
    own = torch.eye(batch.rows, dtype=torch.bool)
    if label == "embedding":
        if len(roles) != 1 or labels is None or batch.counts[roles[0]] is not None:
            return []
        return [float(s[own].mean() - s[~own].mean()) for s in _similarities(found[roles[0]], labels)]
    if roles == ["text"]:
        if "twin/text" in found:
            return [float(s[own].mean() - s[~own].mean()) for s in _similarities(found["text"], found["twin/text"])]
        if labels is None:
            return []
        alike = labels[:, None] == labels[None]
        return [float(s[alike & ~own].mean() - s[~alike].mean()) for s in _similarities(found["text"], found["text"])]
    if len(roles) < 2 or label == "class":
        return []
    query = found[roles[0]]
    if batch.counts[roles[0]] is not None:
        return []

    twins = "twin/" + roles[0] in found
    if twins and label is None:
        return []  # whether the two texts are equal stands for the label

    def with_row(role: str) -> list[list[Tensor]]:
        pairs = [(query, found[role])]
        if twins:
            pairs = [(query, found[f"twin/{role}"]), (found[f"twin/{roles[0]}"], found[role])]
        matrices = [s for x, y in pairs for s in _similarities(x, y)]
        return [[s[row, batch.places(row, role)] for row in range(batch.rows)] for s in matrices]

    if label in ("binary", "score") and labels is not None:
        return [_correlation(torch.cat(s), labels.double()) for s in with_row(roles[1])]
    candidates = [with_row(role) for role in roles[1:]]
    joined = [[torch.cat([part[kind][row] for part in candidates]) for row in range(batch.rows)] for kind in range(3)]
    result = []
    for kind in range(3):
        values = []
        for row in range(batch.rows):
            scores = joined[kind][row]
            if label is None and len(scores) == 1:  # other rows' positives are the bad ones
                everything = _similarities(query, found[roles[1]])[kind][row]
                values.append(float(scores[0] - (everything.sum() - scores[0]) / max(batch.rows - 1, 1)))
            elif label is None:
                values.append(float(scores[0] - scores[1:].mean()))
            elif label == "margin" and labels is not None:
                values.append(float((scores[0] - scores[1]) * labels[row]))
            elif labels is not None:
                mine = scores[0] - scores[1:] if label == "margins" else scores
                values.append(_correlation(mine, labels[row, : len(mine)]) if len(mine) > 1 else 0.0)
        result.append(sum(values) / len(values))
    return result


@_check("processes", processes=True)
def check_processes(case: Case) -> None:
    """Two processes with different numbers of rows compute together what one computes on all rows."""
    from embedloss.testing.workers import run_on_processes

    if case.kind == "scores":
        raise NotApplicable("scores are not pooled")
    loss = case.loss()
    batch = _live(case, loss, rows=8)
    wanted = run(loss, batch)
    _moving(wanted)
    parts = [list(range(5)), list(range(5, 8))]
    found = run_on_processes(loss, [batch.select(rows) for rows in parts])
    _equal(torch.stack([r.value for r in found]).mean(), wanted.value, "mean over two processes: value")
    for name, gradient in wanted.gradients.items():
        for rows, result in zip(parts, found, strict=True):
            places = torch.cat([_row_places(batch, row, name) for row in rows])
            mine = result.gradients[name] / len(parts)
            if batch.kind == "scores":
                mine = nn.functional.pad(mine, (0, gradient.shape[1] - mine.shape[1]))
            _equal(mine, gradient[places], f"mean over two processes: gradient of {name}")
    for name, gradient in wanted.parameters.items():
        joint = torch.stack([r.parameters[name] for r in found]).mean(0)
        _equal(joint, gradient, f"mean over two processes: gradient of own weight {name}")
