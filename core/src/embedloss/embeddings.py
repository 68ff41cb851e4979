"""What a loss sees: the embeddings of one step by role, or the scores of one step. Both are immutable."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from embedloss.distributed import gather_rows, gather_sizes, world
from embedloss.errors import EmbedlossError

RowWise = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class StepContext:
    """Where a run is. Everything random in a loss is derived from it, so it is equal on every process."""

    seed: int = 0
    step: int = 0


def at_least_float32(x: Tensor) -> Tensor:
    """Half precision lifted to float32; float32 and float64 as they are (house rule R4)."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


@dataclass
class _Leaves:
    """The tensors of one step, shared by all views.

    layers[role] holds (texts, dim) for every layer, the final one last. rows[role] is the own row of each text, or None
    where text i belongs to row i.
    """

    layers: dict[str, list[Tensor]]
    rows: dict[str, Tensor | None]
    count: int
    context: StepContext = field(default_factory=StepContext)
    gather: bool = False
    text_ids: dict[str, Tensor] = field(default_factory=dict)
    row_ids: Tensor | None = None
    row_weights: Tensor | None = None
    tokens: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    twin: _Leaves | None = None
    guides: dict[Any, _Leaves] = field(default_factory=dict)
    cache: dict[Any, Any] = field(default_factory=dict)

    @property
    def device(self) -> torch.device:
        tensor = next(iter(self.layers.values()))[-1] if self.layers else next(iter(self.tokens.values()))[0]
        return tensor.device

    def sizes(self, role: str | None = None) -> list[int]:
        """Texts of a role, or rows, on every process."""
        size = self.count if role is None else len(self.layers[role][-1])
        if not self.gather:
            return [size]
        key = ("sizes", role)
        if key not in self.cache:
            self.cache[key] = gather_sizes(size, self.device)
        result: list[int] = self.cache[key]
        return result


class Embeddings:
    """One step's embeddings by role and layer. Views (`map`, `at_layer`) share the same leaves and change nothing.

    Use a loss without any trainer by `Embeddings.of(anchor=a, positive=p)`.
    """

    def __init__(self, leaves: _Leaves, layer: int = -1, functions: tuple[RowWise, ...] = ()) -> None:
        self._leaves, self._layer, self._functions = leaves, layer, functions
        self._cache: dict[Any, Tensor] = {}

    @classmethod
    def of(cls, **roles: Tensor | Sequence[Tensor]) -> Embeddings:
        """Wrap ready-made tensors.

        Args:
            roles: each (rows, dim), or (rows, n, dim) for a role with several texts a row, or a list with one (n_i, dim)
                tensor a row where the number of texts differs.
        """
        if not roles:
            raise EmbedlossError("E206", "Embeddings.of needs at least one role, such as anchor=tensor.")
        layers: dict[str, list[Tensor]] = {}
        rows: dict[str, Tensor | None] = {}
        counts: dict[str, int] = {}
        for role, value in roles.items():
            if isinstance(value, Tensor) and value.ndim == 2:
                flat, index, count = value, None, len(value)
            elif isinstance(value, Tensor) and value.ndim == 3:
                flat, count = value.flatten(0, 1), len(value)
                index = torch.arange(count, device=value.device).repeat_interleave(value.shape[1])
            elif not isinstance(value, Tensor) and len(value) and all(isinstance(v, Tensor) and v.ndim == 2 for v in value):
                flat, count = torch.cat(list(value)), len(value)
                lengths = torch.tensor([len(v) for v in value], device=flat.device)
                index = torch.arange(count, device=flat.device).repeat_interleave(lengths)
            else:
                shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
                raise EmbedlossError(
                    "E206", f"role '{role}' must be (rows, dim), (rows, n, dim) or a list of (n, dim), got {shape}."
                )
            layers[role], rows[role], counts[role] = [flat], index, count
        if len(set(counts.values())) > 1:
            found = ", ".join(f"{role} {count}" for role, count in counts.items())
            raise EmbedlossError("E206", f"all roles need the same number of rows, got {found}.")
        return cls(_Leaves(layers, rows, next(iter(counts.values()))))

    # -- what a loss reads ---------------------------------------------------------------------------------------------
    @property
    def roles(self) -> tuple[str, ...]:
        """The roles that have embeddings, in the order of the data format."""
        return tuple(self._leaves.layers)

    def __contains__(self, role: str) -> bool:
        return role in self._leaves.layers

    def __len__(self) -> int:
        """Own rows."""
        return self._leaves.count

    @property
    def context(self) -> StepContext:
        """Seed and step of the run."""
        return self._leaves.context

    @property
    def device(self) -> torch.device:
        """Where the embeddings are."""
        return self._leaves.device

    def own(self, role: str) -> Tensor:
        """(texts, dim): this process's texts of a role, float32 or wider. Row i where the role has one text a row."""
        return self._get(("own", role), lambda: self._leaf(role))

    def pool(self, role: str) -> Tensor:
        """(texts of all processes, dim) in rank order, with gradients; own texts start at `offset(role)`.

        Equal to `own` without gathering. Gathered once a step and layer, whatever number of losses ask.
        """
        return self._get(("pool", role), lambda: self._pooled_leaf(role))

    def offset(self, role: str) -> int:
        """Where this process's texts of the role begin in `pool(role)`."""
        sizes = self._leaves.sizes(role)
        return sum(sizes[: world()[0]]) if len(sizes) > 1 else 0

    @property
    def row_offset(self) -> int:
        """Where this process's rows begin among the rows of all processes."""
        sizes = self._leaves.sizes()
        return sum(sizes[: world()[0]]) if len(sizes) > 1 else 0

    @property
    def pool_size(self) -> int:
        """Rows of all processes that take part."""
        return sum(self._leaves.sizes())

    @property
    def world_size(self) -> int:
        """Number of processes that take part (1 without gathering)."""
        return len(self._leaves.sizes())

    def single(self, role: str) -> bool:
        """True if every row has exactly one text of this role."""
        self._check(role)
        return self._leaves.rows[role] is None

    def rows_of(self, role: str) -> Tensor:
        """(texts,): the own row that each text of `own(role)` belongs to."""
        self._check(role)
        rows = self._leaves.rows[role]
        return torch.arange(len(self), device=self.device) if rows is None else rows

    def pool_rows_of(self, role: str) -> Tensor:
        """(texts of all processes,): the row, counted over all processes, that each text of `pool(role)` belongs to."""
        return self._gathered(("rows", role), self.rows_of(role) + self.row_offset, role)

    def lists(self, role: str) -> tuple[Tensor, Tensor]:
        """(rows, n, dim) padded with zeros and its mask (rows, n), True where there is a text; n is the longest list's."""
        flat, rows = self.own(role), self.rows_of(role)
        if self.single(role):
            return flat[:, None], torch.ones(len(flat), 1, dtype=torch.bool, device=flat.device)
        counts = torch.bincount(rows, minlength=len(self))
        width = int(counts.max()) if len(counts) else 0
        begin = counts.cumsum(0) - counts
        place = rows * width + torch.arange(len(rows), device=flat.device) - begin[rows]
        dense = flat.new_zeros(len(self) * width, flat.shape[-1]).index_copy(0, place, flat)
        mask = torch.zeros(len(self) * width, dtype=torch.bool, device=flat.device).index_fill(0, place, True)
        return dense.view(len(self), width, flat.shape[-1]), mask.view(len(self), width)

    def text_ids(self, role: str) -> Tensor | None:
        """(texts of all processes,) int64, equal for equal texts; None for ready-made tensors. Aligned with `pool(role)`."""
        ids = self._leaves.text_ids.get(role)
        return None if ids is None else self._gathered(("ids", role), ids, role)

    def row_ids(self) -> Tensor | None:
        """(rows of all processes,) ids given by the data set (the `id` role), or None. Aligned with pooled rows."""
        ids = self._leaves.row_ids
        return None if ids is None else self._gathered(("row_ids",), ids, None)

    def tokens(self, role: str) -> tuple[Tensor, Tensor]:
        """(texts, length) token ids and their mask, for the roles named in `Requirements.tokens`."""
        if role not in self._leaves.tokens:
            raise EmbedlossError("E206", f"the token ids of '{role}' are not there; use this loss through the trainer.")
        return self._leaves.tokens[role]

    def gathered(self, rows: Tensor) -> Tensor:
        """A tensor with one entry an own row (labels, say), of all processes; not cached, gradients flow."""
        return gather_rows(rows, self._leaves.sizes())

    def row_weights(self) -> Tensor | None:
        """(rows,) weights of the own rows given by the data set (the `weight` role), or None where all count alike."""
        return self._leaves.row_weights

    def weighted(self, terms: Tensor, role: str | None = None) -> Tensor:
        """Terms, one an own row (or one a text of a role), times the weights of their rows where there are any."""
        weights = self._leaves.row_weights
        if weights is None:
            return terms
        return terms * (weights if role is None else weights[self.rows_of(role)]).to(terms)

    def joint_mean(self, terms: Tensor, role: str | None = None) -> Tensor:
        """The mean of `weighted` terms, one an own row (or one a text of a role); 0 without any.

        The sum of the own terms over the mean number of terms a process, so that the mean over processes is that of all terms,
        however unevenly they lie.
        """
        return self.weighted(terms, role).sum() * (self.world_size / max(sum(self._leaves.sizes(role)), 1))

    def generator(self, name: str) -> torch.Generator:
        """A CPU random generator seeded by run, step and name; equal on every process."""
        mixed = zlib.crc32(f"{self.context.seed}/{self.context.step}/{name}".encode())
        return torch.Generator().manual_seed(mixed)

    # -- views -----------------------------------------------------------------------------------------------------------
    def map(self, function: RowWise) -> Embeddings:
        """A view through a row-wise function (truncation, quantisation). Also maps the twin, never the guides."""
        return Embeddings(self._leaves, self._layer, (*self._functions, function))

    @property
    def n_layers(self) -> int:
        """Number of layers above the embedding layer; 0 if only final embeddings are there."""
        return min((len(v) for v in self._leaves.layers.values()), default=1) - 1

    @property
    def dimension(self) -> int:
        """Size of the model's embeddings, also on a view that truncates them."""
        return int(self._leaves.layers[self.roles[0]][-1].shape[-1])

    @property
    def layer(self) -> int:
        """The layer of this view, 0 to `n_layers`."""
        return self._layer % (self.n_layers + 1)

    def at_layer(self, layer: int) -> Embeddings:
        """A view of another layer: 0 is the embedding layer's output, `n_layers` (or -1) the final one."""
        if self.n_layers == 0:
            raise EmbedlossError("E302", "only final embeddings are there; this loss needs an encoder that gives all layers.")
        if not -1 <= layer <= self.n_layers:
            raise EmbedlossError("E206", f"layer {layer} does not exist; layers are 0 to {self.n_layers}.")
        return Embeddings(self._leaves, layer, self._functions)

    @property
    def twin(self) -> Embeddings:
        """The same texts seen by the trainable copy of the encoder (`Requirements.twin`)."""
        if self._leaves.twin is None:
            raise EmbedlossError("E206", "there is no twin encoder; use .with_twin(Embeddings.of(...)) or the trainer.")
        twin = Embeddings(self._leaves.twin, self._layer, self._functions)
        if self._layer != -1 and twin.n_layers != self.n_layers:
            raise EmbedlossError(
                "E302", f"the twin encoder gives layers 0 to {twin.n_layers}, the student 0 to {self.n_layers}."
            )
        return twin

    def guide(self, key: Any = None) -> Embeddings:
        """The same texts seen by a frozen guide (`Requirements.guides`), without gradient."""
        guides = self._leaves.guides
        found = guides.get(key) if key in guides else guides.get(None)
        if found is None:
            raise EmbedlossError("E206", "there are no guide embeddings; use .with_guide(Embeddings.of(...)) or the trainer.")
        return Embeddings(found)

    # -- for use without the trainer ---------------------------------------------------------------------------------------
    def with_guide(self, guide: Embeddings, key: Any = None) -> Embeddings:
        """The same embeddings with a guide's beside them."""
        leaves = {role: [t.detach() for t in layers] for role, layers in guide._leaves.layers.items()}
        frozen = replace(guide._leaves, layers=leaves, gather=self._leaves.gather, cache={})
        return self._with(guides={**self._leaves.guides, key: frozen})

    def with_twin(self, twin: Embeddings) -> Embeddings:
        """The same embeddings with a twin encoder's beside them."""
        return self._with(twin=replace(twin._leaves, gather=self._leaves.gather, cache={}))

    def with_layers(self, **roles: Sequence[Tensor]) -> Embeddings:
        """The same embeddings with all layers: one list a role, embedding layer first, final layer last."""
        return self._with(layers={role: list(roles.get(role, v)) for role, v in self._leaves.layers.items()})

    def with_text_ids(self, **ids: Tensor) -> Embeddings:
        """The same embeddings with one int64 id a text, equal for equal texts."""
        return self._with(text_ids={**self._leaves.text_ids, **ids})

    def with_row_ids(self, ids: Tensor) -> Embeddings:
        """The same embeddings with one int64 id a row, as the `id` column gives it."""
        return self._with(row_ids=ids)

    def with_row_weights(self, weights: Tensor) -> Embeddings:
        """The same embeddings with one weight a row, as the `weight` column gives it."""
        return self._with(row_weights=weights)

    def with_tokens(self, **tokens: tuple[Tensor, Tensor]) -> Embeddings:
        """The same embeddings with token ids and their mask, each (texts, length), of roles that are not encoded."""
        return self._with(tokens={**self._leaves.tokens, **tokens})

    def with_context(self, seed: int = 0, step: int = 0) -> Embeddings:
        """The same embeddings at another step."""
        return self._with(context=StepContext(seed, step))

    def with_gathering(self) -> Embeddings:
        """The same embeddings, pooled over all processes of torch.distributed. Every process must call the loss."""
        guides = {key: replace(leaves, gather=True, cache={}) for key, leaves in self._leaves.guides.items()}
        twin = self._leaves.twin and replace(self._leaves.twin, gather=True, cache={})
        return self._with(gather=True, guides=guides, twin=twin)

    def _with(self, **changes: Any) -> Embeddings:
        return Embeddings(replace(self._leaves, **changes, cache={}), self._layer, self._functions)

    # -- inside ------------------------------------------------------------------------------------------------------------
    def _check(self, role: str) -> None:
        if role not in self._leaves.layers:
            raise EmbedlossError("E206", f"role '{role}' is missing; found {', '.join(self.roles)}.")

    def _leaf(self, role: str) -> Tensor:
        self._check(role)
        return at_least_float32(self._leaves.layers[role][self._layer])

    def _pooled_leaf(self, role: str) -> Tensor:
        self._check(role)
        layers = self._leaves.layers[role]
        layer = self._layer % len(layers)
        return self._gathered(("leaf", role, layer), at_least_float32(layers[layer]), role)

    def _gathered(self, key: tuple[Any, ...], own: Tensor, role: str | None) -> Tensor:
        if not self._leaves.gather:
            return own
        cache = self._leaves.cache
        if key not in cache:
            cache[key] = gather_rows(own, self._leaves.sizes(role))
        result: Tensor = cache[key]
        return result

    def _get(self, key: tuple[str, str], make: Callable[[], Tensor]) -> Tensor:
        if key not in self._cache:
            tensor = make()
            for function in self._functions:
                tensor = function(tensor)
            self._cache[key] = tensor
        return self._cache[key]


@dataclass(frozen=True)
class Scores:
    """Scores of (query, candidate) pairs: values (rows, candidates) and mask (rows, candidates), True where one is.

    `processes`: number of processes that compute this step's loss together; each must call it.
    """

    values: Tensor
    mask: Tensor
    context: StepContext = field(default_factory=StepContext)
    processes: int = 1

    @classmethod
    def of(cls, values: Tensor, mask: Tensor | None = None) -> Scores:
        """Wrap ready-made scores, (rows, candidates), or (rows,) for one candidate a row."""
        if values.ndim == 1:
            values = values[:, None]
        return cls(values, torch.ones_like(values, dtype=torch.bool) if mask is None else mask)

    @classmethod
    def by_row(cls, logits: Tensor, owners: Tensor, rows: int, context: StepContext) -> Scores:
        """Scores from the logits of pairs.

        Args:
            logits: (pairs, 1) or (pairs,), then padded with 0 to (rows, most pairs of a row); or (pairs, classes), kept.
            owners: (pairs,) the row of each pair, ascending.
            rows: number of rows.
            context: of the step.
        """
        if logits.ndim == 2 and logits.shape[1] > 1:
            return cls(logits, torch.ones_like(logits, dtype=torch.bool), context)
        flat = logits.reshape(-1)
        sizes = torch.bincount(owners, minlength=rows)
        width = int(sizes.max()) if len(owners) else 0
        place = owners * width + torch.arange(len(owners), device=flat.device) - (sizes.cumsum(0) - sizes)[owners]
        values = flat.new_zeros(rows * width).index_copy(0, place, flat).view(rows, width)
        mask = torch.zeros(rows * width, dtype=torch.bool, device=flat.device).index_fill(0, place, True).view(rows, width)
        return cls(values, mask, context)

    def __len__(self) -> int:
        return len(self.values)
