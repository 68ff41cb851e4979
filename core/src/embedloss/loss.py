"""The loss protocol. A loss is a function of embeddings (or scores) and labels; it never holds, sees or patches a model."""

from __future__ import annotations

import random
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from embedloss.activations import ACTIVATIONS
from embedloss.distributed import sum_over_processes
from embedloss.embeddings import Embeddings, Scores, at_least_float32
from embedloss.errors import EmbedlossError
from embedloss.expression import literal
from embedloss.formats import LABELS, DataFormat
from embedloss.schedules import Schedule
from embedloss.similarity import pairwise
from embedloss.spec import LossSpec, constructor_parameters
from embedloss.validate import COMMON, Check

Row = dict[str, Any]


@dataclass(frozen=True)
class LossOutput:
    """What a loss returns.

    Args:
        total: scalar that is differentiated.
        terms: the parts that add up to it, detached, by name ("loss" for a loss of one part, "192/loss", ...).
        metrics: further numbers that are logged and never enter the total, detached.
    """

    total: Tensor
    terms: Mapping[str, Tensor] = field(default_factory=dict)
    metrics: Mapping[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, result: LossOutput | Tensor | Mapping[str, Tensor], **metrics: Tensor) -> LossOutput:
        """From what `compute` returned: a scalar, named terms that are summed, or a ready output."""
        if isinstance(result, LossOutput):
            return result
        terms = dict(result) if isinstance(result, Mapping) else {"loss": result}
        total = torch.stack([t.reshape(()) for t in terms.values()]).sum() if len(terms) > 1 else next(iter(terms.values()))
        return cls(
            total, {k: t.detach() for k, t in terms.items()}, {k: torch.as_tensor(m).detach() for k, m in metrics.items()}
        )

    @classmethod
    def weighted(cls, parts: Iterable[tuple[float | Tensor, str, LossOutput]]) -> LossOutput:
        """The weighted sum of outputs; each part's terms (unweighted) and metrics are kept under its prefix.

        Args:
            parts: (weight, prefix, output); two equal prefixes get a number, and a name that begins with its prefix already
                (a modifier's, which is the same alone and in a sum) does not get it twice.
        """
        total: Tensor | None = None
        terms: dict[str, Tensor] = {}
        metrics: dict[str, Tensor] = {}
        seen: dict[str, int] = {}
        for weight, prefix, output in parts:
            seen[prefix] = seen.get(prefix, 0) + 1
            name = prefix if seen[prefix] == 1 else f"{prefix}#{seen[prefix]}"
            value = output.total * weight
            total = value if total is None else total + value
            terms.update({f"{name}/{k.removeprefix(prefix + '/')}": t for k, t in output.terms.items()})
            metrics.update({f"{name}/{k.removeprefix(prefix + '/')}": m for k, m in output.metrics.items()})
        if total is None:
            raise ValueError("no parts to sum")
        return cls(total, terms, metrics)


@dataclass(frozen=True)
class Requirements:
    """What a loss needs beside the final embeddings. The training step provides it.

    Args:
        layers: every layer's embeddings.
        twin: embeddings of a trainable copy of the encoder.
        guides: frozen helpers whose embeddings are wanted: folders, hub ids or `Encoder` objects; also the keys of
            `Embeddings.guide`.
        guide_prompts: prompt of each guide, by key.
        tokens: roles whose token ids are wanted (`Embeddings.tokens`) and which are then not encoded.
        recompute: the loss asks for recomputation (the `cached-...` names).
        row_ids: ids of the rows (`Embeddings.row_ids`).
    """

    layers: bool = False
    twin: bool = False
    guides: tuple[Any, ...] = ()
    guide_prompts: Mapping[Any, str] = field(default_factory=dict)
    tokens: frozenset[str] = frozenset()
    recompute: bool = False
    row_ids: bool = False

    def __or__(self, other: Requirements) -> Requirements:
        return Requirements(
            self.layers or other.layers,
            self.twin or other.twin,
            tuple(dict.fromkeys((*self.guides, *other.guides))),
            {**self.guide_prompts, **other.guide_prompts},
            self.tokens | other.tokens,
            self.recompute or other.recompute,
            self.row_ids or other.row_ids,
        )


@dataclass(frozen=True)
class ModelInfo:
    """What a loss may know about the model when it makes its own weights.

    Args:
        dimension: size of the embeddings.
        encoder: the student, for losses whose own weights are tied to it (a decoder); never stored in the loss.
        num_classes: number of classes in the training data, where it has classes.
        label_dimension: size of the teacher's vectors, where the data has them.
    """

    dimension: int
    encoder: Any = None
    num_classes: int | None = None
    label_dimension: int | None = None


class Loss(nn.Module):
    """Base of all losses. A subclass sets `spec`, keeps every constructor parameter as an attribute of the same name, and
    implements `compute`.

    Example:
        >>> class MeanDistance(Loss):  # doctest: +SKIP
        ...     spec = LossSpec(
        ...         name="mean-distance", target="my_loss:MeanDistance", summary="...", family="mine", formats=["pairs"]
        ...     )
        ...     def compute(self, emb, labels):
        ...         return (emb.own("anchor") - emb.own("positive")).norm(dim=1).mean()
    """

    spec: LossSpec
    parameter_aliases: ClassVar[dict[str, str]] = {}

    @abstractmethod
    def compute(self, emb: Any, labels: Any) -> Tensor | Mapping[str, Tensor] | LossOutput:
        """The loss of one step.

        Args:
            emb: `Embeddings` (`Scores` for a `ScoreLoss` that is called with scores).
            labels: (rows,), (rows, candidates) or (rows, dim) tensor, checked and on the embeddings' device; None only where
                the spec has a format without labels.

        Returns:
            A scalar, a mapping of named terms that are summed, or a `LossOutput`.
        """

    def compute_prefixes(
        self, emb: Embeddings, labels: Any, dims: Sequence[int], weights: Sequence[float]
    ) -> tuple[Tensor, Sequence[LossOutput]] | None:
        """The loss on the first coordinates of the embeddings, normalised, for several sizes: what `matryoshka` asks for first.

        Worth writing where all sizes together cost less than one call each. It stands for the `compute` of its class or of a
        base: a subclass that writes its own `compute` has none again until it writes this one, too.

        Args:
            emb: whole embeddings.
            labels: as in `compute`.
            dims: ascending sizes, none above that of the embeddings.
            weights: one a size.

        Returns:
            The weighted sum, which is differentiated, and every size's output, detached; None: call the loss once a size.
        """
        return None

    # -- for subclasses --------------------------------------------------------------------------------------------------
    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            """What `keep` has kept."""

    def keep(self, parameters: Mapping[str, Any], **checks: Check) -> None:
        """Keep the constructor's parameters as attributes of the same names: `self.keep(locals(), margin=not_negative)`.

        Args:
            parameters: the constructor's `locals()`.
            checks: functions of a parameter's name and value that return what to keep, or raise ValueError; see `validate`,
                whose `COMMON` are applied without being named.
        """
        for name, value in parameters.items():
            if name not in ("self", "__class__"):
                check = checks.get(name) or COMMON.get(name)
                setattr(self, name, check(name, value) if check else value)

    def error(self, code: str, message: str) -> EmbedlossError:
        """An error whose message begins with the loss's name."""
        return EmbedlossError(code, f"'{self.spec.name}' {message}")

    def refuse(self, bad: Tensor, message: str, values: Tensor | None = None) -> None:
        """E105 for the first row that is `bad` anywhere.

        Args:
            bad: bool, (rows,) or (rows, k).
            message: begins after the loss's name; {row} is the row's number from 1, {value} the first bad one of its values.
            values: of the shape of `bad`.
        """
        if bool(bad.any()):
            row = int(bad.flatten(1).any(1).nonzero()[0]) if bad.ndim > 1 else int(bad.nonzero()[0])
            value = None if values is None else values[row][bad[row]].flatten()[0].item()
            raise self.error("E105", message.format(row=row + 1, value=f"{value:g}" if isinstance(value, float) else value))

    # -- what the training step asks ----------------------------------------------------------------------------------------
    def requires(self) -> Requirements:
        """What else the encoder must give."""
        return Requirements(recompute=self.spec.recompute)

    def prepare(self, info: ModelInfo) -> None:
        """Make own weights whose size depends on the model. Called once, before the optimizer; must be idempotent."""

    def transform(self, rows: list[Row], format_name: str, rng: random.Random) -> tuple[list[Row], str]:
        """Change a batch of rows before it is tokenised (damage texts, draw pairs). Runs in the collator.

        Args:
            rows: role -> text (or list of texts), "label" -> label.
            format_name: the format of these rows.
            rng: seeded by run, epoch and rows.

        Returns:
            The rows and the name of their format now.
        """
        return rows, format_name

    def forward(self, embeddings: Embeddings | Scores, labels: Any = None) -> LossOutput:
        """Compute the loss in float32 or wider, autocast off, after checking roles, rows and labels (E105, E206)."""
        self.check_inputs(embeddings)
        device = embeddings.values.device if isinstance(embeddings, Scores) else embeddings.device
        with torch.autocast(device.type, enabled=False):
            return LossOutput.of(self.compute(embeddings, self.check_labels(labels, embeddings, device)))

    def check_inputs(self, embeddings: Embeddings | Scores) -> None:
        """E206 unless the roles are those of a format the loss takes."""
        if not isinstance(embeddings, Embeddings):
            raise EmbedlossError(
                "E206",
                f"'{self.spec.name}' takes Embeddings, got {type(embeddings).__name__}. "
                "Type: loss(Embeddings.of(anchor=a, ...))",
            )
        needed = [set(f.roles) - self.requires().tokens for f in self.spec.data_formats()]
        if needed and set(embeddings.roles) not in needed:
            takes = " or ".join(dict.fromkeys(", ".join(f.roles) for f in self.spec.data_formats()))
            raise EmbedlossError("E206", f"'{self.spec.name}' takes {takes}; found {', '.join(embeddings.roles)}.")

    def check_labels(self, labels: Any, embeddings: Embeddings | Scores, device: torch.device) -> Tensor | None:
        """Labels as a tensor of the right shape and kind; E105 or E206 otherwise. None where the loss takes none."""
        formats = self.spec.data_formats()
        if isinstance(embeddings, Embeddings):
            formats = tuple(f for f in formats if set(f.roles) - self.requires().tokens == set(embeddings.roles))
        kinds = {f.label for f in formats}
        if self.spec.any_format or (labels is None and (None in kinds or not kinds)):
            return None
        name = self.spec.name
        if labels is None:
            raise EmbedlossError("E206", f"'{name}' needs labels ({' or '.join(sorted(k for k in kinds if k))}); got none.")
        if kinds == {None}:
            raise EmbedlossError(
                "E206",
                f"'{name}' takes no label on {', '.join(embeddings.roles)}."
                if isinstance(embeddings, Embeddings)
                else f"'{name}' takes no label.",
            )
        try:
            tensor = torch.as_tensor(labels, device=device).detach()
        except (TypeError, ValueError, RuntimeError) as exception:
            raise EmbedlossError("E105", f"the labels of '{name}' are no numbers of one shape: {exception}") from exception
        named = [LABELS[k] for k in kinds if k]
        if tensor.ndim == 2 and tensor.shape[1] == 1 and all(not k.per_candidate and k.name != "embedding" for k in named):
            tensor = tensor[:, 0]
        if tensor.ndim == 0 or len(tensor) != len(embeddings):
            raise EmbedlossError(
                "E206", f"'{name}' got {len(embeddings)} rows but {0 if tensor.ndim == 0 else len(tensor)} labels."
            )
        if tensor.ndim > 1 and self.spec.consumes == "embeddings" and kinds <= {"score", "binary", None}:
            raise EmbedlossError("E206", f"'{name}' takes one label a row, got labels of shape {tuple(tensor.shape)}.")
        if tensor.is_floating_point():
            bad = tensor.isnan() if any(k.per_candidate for k in named) else ~tensor.isfinite()
            if bool(bad.any()):
                row = int(bad.reshape(len(tensor), -1).any(1).nonzero()[0])
                raise EmbedlossError("E105", f"the label of row {row + 1} of this batch is not finite; '{name}' cannot use it.")
            tensor = tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()
        return tensor

    # -- as an expression --------------------------------------------------------------------------------------------------
    def parameters_of_expression(self) -> dict[str, Any]:
        """Constructor parameters that differ from their defaults, by name."""
        found = {}
        for name, parameter in constructor_parameters(type(self)).items():
            value = getattr(self, name)
            if (
                parameter.default is parameter.empty
                or value != parameter.default
                or (type(value) is bool and value is not parameter.default)
            ):
                found[name] = value
        return found

    def to_expression(self) -> str:
        """The text that `create_loss` turns into an equal loss (own weights aside)."""
        arguments = ", ".join(f"{name}={literal(value)}" for name, value in self.parameters_of_expression().items())
        return f"{self.spec.name.replace('-', '_')}({arguments})"

    def bind_spec(self, spec: LossSpec) -> None:
        """Remember under which name the loss was made (two names may share a class)."""
        self.spec = spec

    def extra_repr(self) -> str:
        """The expression, for `print(loss)`."""
        return self.to_expression()

    # -- sums ---------------------------------------------------------------------------------------------------------------
    def __add__(self, other: Loss) -> WeightedSum:
        if not isinstance(other, Loss):
            return NotImplemented
        return WeightedSum([*_terms(self), *_terms(other)])

    def __mul__(self, weight: float | Schedule) -> WeightedSum:
        if isinstance(weight, bool) or not isinstance(weight, (int, float, Schedule)):
            return NotImplemented
        return WeightedSum([(weight, self)])

    __rmul__ = __mul__


def _terms(loss: Loss) -> list[tuple[float | Schedule, Loss]]:
    return list(loss.terms) if isinstance(loss, WeightedSum) else [(1.0, loss)]


def in_one_pass(
    loss: Loss, emb: Embeddings, labels: Any, dims: Sequence[int], weights: Sequence[float]
) -> tuple[Tensor, Sequence[LossOutput]] | None:
    """`loss.compute_prefixes` if it stands for the loss's `compute`, else None: a subclass may have changed `compute` alone."""
    first = next(c for c in type(loss).__mro__ if {"compute", "compute_prefixes"} & vars(c).keys())
    return loss.compute_prefixes(emb, labels, dims, weights) if "compute_prefixes" in vars(first) else None


def share_of(flags: Tensor) -> Tensor:
    """The share of True in bool flags of any shape, 0 where there are none: for the metric `active`."""
    return flags.sum() / max(flags.numel(), 1)


class ScoreLoss(Loss):
    """A loss of scores (rows, candidates). On a bi-encoder the scores are similarities of the first role with all others,
    on a cross-encoder the logits, so it is written once and trains both.

    A subclass implements `compute_scores`; it may set `similarity_fct` (default "cosine") and `scale` (default 1), which
    are used on embeddings only, and `activation_fn`, which `activated` applies to the scores of either kind of model.
    """

    similarity_fct: str = "cosine"
    scale: float = 1.0
    activation_fn: str | None = None

    def keep_score_parameters(
        self, similarity_fct: Any, scale: float, activation_fn: Any = None, mini_batch_size: int | None = None
    ) -> None:
        """Check and keep the parameters that score losses share. ValueError names what is allowed.

        `mini_batch_size` is what other libraries take; it is kept, has no effect, and is warned about.
        """
        self.keep(locals())

    def activated(self, scores: Tensor, mask: Tensor) -> Tensor:
        """The scores through `activation_fn`, float32 or wider; 0 and without gradient where the mask is False."""
        scores = at_least_float32(scores).masked_fill(~mask, 0.0)
        return scores if self.activation_fn is None else ACTIVATIONS[self.activation_fn](scores)

    def teaches(self, labels: Tensor, mask: Tensor) -> Tensor | None:
        """(rows,) True where a row has something to learn from; its share is logged as `active`. None: not logged."""
        return None

    @abstractmethod
    def compute_scores(self, scores: Tensor, labels: Tensor, mask: Tensor) -> Tensor | Mapping[str, Tensor] | LossOutput:
        """The loss from scores.

        Args:
            scores: (rows, candidates), float32 or wider; undefined where the mask is False.
            labels: (rows, candidates), or (rows, k) as the loss's label kind says.
            mask: (rows, candidates), True where there is a candidate.
        """

    def check_inputs(self, embeddings: Embeddings | Scores) -> None:
        """Scores are taken as they are; embeddings as in `Loss`."""
        if not isinstance(embeddings, Scores):
            super().check_inputs(embeddings)

    def score(self, emb: Embeddings) -> Scores:
        """Similarities (times `scale`) of each row's first role with the texts of its other roles, in order."""
        query, *others = emb.roles
        parts = [emb.lists(role) for role in others]
        candidates = torch.cat([values for values, _ in parts], 1)
        mask = torch.cat([m for _, m in parts], 1)
        values = pairwise(self.similarity_fct, emb.own(query)[:, None].expand_as(candidates), candidates)
        return Scores(values * self.scale, mask, emb.context)

    def compute(self, emb: Embeddings | Scores, labels: Tensor) -> Tensor | Mapping[str, Tensor] | LossOutput:
        """Scores from embeddings where necessary, then `compute_scores`."""
        scores = emb if isinstance(emb, Scores) else self.score(emb)
        values = at_least_float32(scores.values)
        if labels.is_floating_point():
            labels = labels.to(values.dtype)
        processes = scores.processes if isinstance(emb, Scores) else emb.world_size
        result = self.compute_jointly(values, labels, scores.mask, processes)
        taught = self.teaches(labels, scores.mask)
        if taught is None:
            return result
        return LossOutput.of(result, active=taught.sum() / scores.mask.any(1).sum().clamp(min=1))

    def compute_jointly(
        self, scores: Tensor, labels: Tensor, mask: Tensor, processes: int
    ) -> Tensor | Mapping[str, Tensor] | LossOutput:
        """The loss of this process such that the mean over processes is that of one process on all rows.

        `compute_scores` itself, which is right where every process has the same number of items.
        """
        return self.compute_scores(scores, labels, mask)


class MeanScoreLoss(ScoreLoss):
    """A score loss that is a sum over items (rows, pairs, margins) divided by their number.

    A subclass implements `sums`. Nothing to sum gives 0, connected to the scores; a score that is not finite gives NaN; and
    processes with different numbers of items count by these.
    """

    reduction: str = "mean"

    @abstractmethod
    def sums(self, scores: Tensor, labels: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """(sum over items, number of items).

        Args:
            scores: (rows, candidates) after the activation, 0 where the mask is False.
            labels: as in `compute_scores`, real labels in the dtype of the scores.
            mask: (rows, candidates), True where there is a candidate.
        """

    def compute_scores(self, scores: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
        """The mean over items, or their sum with `reduction = "sum"`; arguments as in `ScoreLoss`."""
        return self.compute_jointly(scores, labels, mask, 1)

    def compute_jointly(self, scores: Tensor, labels: Tensor, mask: Tensor, processes: int) -> Tensor:
        """The same, weighted by the number of items of all processes."""
        activated = self.activated(scores, mask)
        labels = labels.detach().to(activated.dtype) if labels.is_floating_point() else labels.detach()
        total, count = self.sums(activated, labels, mask)
        total = total + (at_least_float32(scores).masked_fill(~mask, 0.0) * 0).sum()
        if self.reduction == "sum":
            return total * processes
        if processes > 1:
            count = sum_over_processes(count)
        return total * (processes / torch.where(count == 0, 1, count).to(total.dtype))  # weighted items may count less than 1


class Modifier(Loss):
    """A loss that calls another one on views of the embeddings. The first constructor parameter is called `loss`."""

    def __init__(self, loss: Loss) -> None:
        super().__init__()
        if not isinstance(loss, Loss):
            raise TypeError(f"the first argument must be a loss, got {type(loss).__name__}")
        self.loss = loss
        self.bind_spec(type(self).spec)

    def bind_spec(self, spec: LossSpec) -> None:
        """A modifier takes the formats of its inner loss, and trains the kinds of model that both train (E101 if none)."""
        inner = self.loss.spec
        models = tuple(kind for kind in inner.models if kind in spec.models)
        if not models:
            raise EmbedlossError(
                "E101",
                f"'{spec.name}' works on {' and '.join(spec.models)} models; "
                f"'{inner.name}' trains {' and '.join(inner.models)} models.",
            )
        self.spec = replace(
            spec,
            formats=inner.formats,
            models=models,
            scope=inner.scope,
            sampler=inner.sampler,
            label_range=inner.label_range,
            highest_label=inner.highest_label,
            leaves_out=inner.leaves_out,
            equal_texts=inner.equal_texts,
            optional=inner.optional,
            row_weights=inner.row_weights,
            best_first=inner.best_first,
            any_format=inner.any_format,
            deviations={**inner.deviations, **spec.deviations},
        )

    def requires(self) -> Requirements:
        """What the inner loss needs."""
        return self.loss.requires()

    def prepare(self, info: ModelInfo) -> None:
        """Prepare the inner loss."""
        self.loss.prepare(info)

    def transform(self, rows: list[Row], format_name: str, rng: random.Random) -> tuple[list[Row], str]:
        """The inner loss's change of rows."""
        return self.loss.transform(rows, format_name, rng)

    def check_inputs(self, embeddings: Embeddings | Scores) -> None:
        """As the inner loss; scores only where the modifier works on cross-encoders."""
        if isinstance(embeddings, Scores) and "cross-encoder" not in self.spec.models:
            raise EmbedlossError(
                "E206", f"'{self.spec.name}' takes Embeddings, got Scores. Type: loss(Embeddings.of(anchor=a, ...))"
            )
        self.loss.check_inputs(embeddings)

    def check_labels(self, labels: Any, embeddings: Embeddings | Scores, device: torch.device) -> Tensor | None:
        """As the inner loss; every inner call checks again at no cost."""
        return self.loss.check_labels(labels, embeddings, device)


class WeightedSum(Loss):
    """`0.7 * a + linear(0, 0.1, steps=1000) * b` on the same embeddings; every term is logged under its own name."""

    SPEC: ClassVar[LossSpec] = LossSpec(
        name="sum", target="embedloss.loss:WeightedSum", summary="weighted sum of losses", family="core", any_format=True
    )

    def __init__(self, terms: Sequence[tuple[float | Schedule, Loss]]) -> None:
        super().__init__()
        self.weights = [weight for weight, _ in terms]
        self.losses = nn.ModuleList(loss for _, loss in terms)
        self.spec = self._sum_spec()

    @property
    def terms(self) -> list[tuple[float | Schedule, Loss]]:
        """Weights and losses in order."""
        return list(zip(self.weights, self.losses, strict=True))  # type: ignore[arg-type]

    def _sum_spec(self) -> LossSpec:
        specs = [loss.spec for _, loss in self.terms]
        bound = [s for s in specs if not s.any_format]
        common: list[DataFormat] = [f for f in bound[0].data_formats()] if bound else []
        for spec in bound[1:]:
            names = set(spec.format_names())
            common = [f for f in common if f.name in names]
        if bound and not common:
            takes = "\n".join(f"  {s.name}: {', '.join(s.format_names())}" for s in bound)
            raise EmbedlossError("E101", f"the terms of the sum share no data format:\n{takes}")
        ranges = [s.label_range for s in bound if s.label_range]
        samplers: set[str] = {str(s.sampler) for s in bound} - {"random"}
        if len(samplers) > 1:
            samplers = {"group-by-label"} & samplers or samplers
        models = tuple(k for k in ("bi-encoder", "cross-encoder") if all(k in s.models for s in specs))
        if not models:
            takes = "; ".join(f"{s.name}: {' and '.join(s.models)}" for s in specs)
            raise EmbedlossError("E101", f"the terms of the sum train different kinds of model ({takes}).")
        return replace(
            self.SPEC,
            formats=tuple(common),
            any_format=not bound,
            models=models,  # type: ignore[arg-type]
            scope="batch" if any(s.scope == "batch" for s in specs) else "row",
            sampler=next(iter(samplers), "random"),  # type: ignore[arg-type]
            label_range=(max(r[0] for r in ranges), min(r[1] for r in ranges)) if ranges else None,
            highest_label=min((s.highest_label for s in bound if s.highest_label is not None), default=None),
            leaves_out=bool(bound) and all(s.leaves_out for s in bound),
            optional=tuple(role for role in (bound[0].optional if bound else ()) if all(role in s.optional for s in bound)),
            row_weights=bool(bound) and all(s.row_weights for s in bound),
            equal_texts=min((s.equal_texts for s in bound if s.equal_texts), default=""),
            best_first=next((s.best_first for s in bound if s.best_first), ""),
        )

    def bind_spec(self, spec: LossSpec) -> None:
        """A sum makes its own spec."""

    def requires(self) -> Requirements:
        """What any term needs."""
        combined = Requirements()
        for _, loss in self.terms:
            combined = combined | loss.requires()
        return combined

    def prepare(self, info: ModelInfo) -> None:
        """Prepare every term."""
        for _, loss in self.terms:
            loss.prepare(info)

    def transform(self, rows: list[Row], format_name: str, rng: random.Random) -> tuple[list[Row], str]:
        """Every term's change of rows, in order."""
        for _, loss in self.terms:
            rows, format_name = loss.transform(rows, format_name, rng)
        return rows, format_name

    def check_inputs(self, embeddings: Embeddings | Scores) -> None:
        """Each term checks its own; E206 for what no loss takes."""
        if not isinstance(embeddings, (Embeddings, Scores)):
            super().check_inputs(embeddings)

    def check_labels(self, labels: Any, embeddings: Embeddings | Scores, device: torch.device) -> Any:
        """Each term checks its own; E206 for labels that no term takes."""
        formats = self.spec.data_formats()
        if labels is not None and formats and all(f.label is None for f in formats):
            super().check_labels(labels, embeddings, device)
        return labels

    def compute(self, emb: Embeddings, labels: Any) -> LossOutput:
        """The weighted sum of all terms on the same embeddings."""
        return LossOutput.weighted(self.weighted_terms(emb, labels))

    def weighted_terms(self, emb: Embeddings | Scores, labels: Any) -> list[tuple[float | Tensor, str, LossOutput]]:
        """(weight at this step, name, output) of every term; labels go to the terms that take any."""
        parts: list[tuple[float | Tensor, str, LossOutput]] = []
        for weight, loss in self.terms:
            value = weight.at(emb.context.step) if isinstance(weight, Schedule) else weight
            takes_labels = any(f.label for f in loss.spec.data_formats())
            parts.append((value, loss.spec.name, loss(emb, labels if takes_labels else None)))
        return parts

    def to_expression(self) -> str:
        """`0.5 * a() + b()`."""
        parts = []
        for weight, loss in self.terms:
            text = loss.to_expression()
            text = f"({text})" if isinstance(loss, WeightedSum) else text
            parts.append(text if weight == 1 else f"{literal(weight)} * {text}")
        return " + ".join(parts)
