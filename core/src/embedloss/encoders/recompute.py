"""Chunks that are encoded again in the backward pass, with no graph of them in the meantime."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from embedloss.encoders.lean import lean
from embedloss.encoders.lookup import Lookups, shared_lookups

Chunk = dict[str, Tensor]


class Recomputed:
    """The chunks of one step, from their forward to their backward pass.

    `torch.utils.checkpoint` keeps a graph of every chunk, which is larger than the chunk's embeddings. Here all chunks
    together are one function of the encoder's parameters, and of a chunk stays the state of the random numbers before it. A
    parameter gets its gradient once a step, so its hooks, those of DDP among them, see what they see without recomputation.

    Args:
        encoder: see `suits`.
        encode: embeddings of one chunk, a list of (texts, dimension).
        chunks: the padded chunks, on the encoder's device.
        place: (texts,) the row of each text among all encoded, chunk after chunk; on the same device.
        sizes: of the parts into which the texts are given back, in order.
    """

    def __init__(
        self,
        encoder: nn.Module,
        encode: Callable[[Chunk, Lookups | None], list[Tensor]],
        chunks: list[Chunk],
        place: Tensor,
        sizes: Sequence[int],
    ) -> None:
        self.encoder, self.encode, self.chunks, self.sizes = encoder, encode, chunks, sizes
        self.parameters = [p for p in encoder.parameters() if p.requires_grad]
        # The gradients of a backward pass within the backward pass gather here: somebody may listen to the parameters.
        self.leaves = [nn.Parameter(p.detach()) for p in self.parameters]
        self.places = _places([len(chunk["input_ids"]) for chunk in chunks], place, sizes)
        self.device = place.device.type
        self.precision = {
            kind: (torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in sorted({self.device, "cpu"})
        }
        self.random: list[list[Tensor]] = []
        self.kept: list[Tensor] | None = None

    @staticmethod
    def suits(encoder: nn.Module, chunks: list[Chunk]) -> bool:
        """Whether an encoder's trained weights are plain and whole (not sharded, say), and there is a chunk to encode again."""
        if torch.compiler.is_compiling():
            return False
        trained = [p for p in encoder.parameters() if p.requires_grad]
        plain = all(type(p) is nn.Parameter and p.device.type != "meta" and not hasattr(p, "ds_id") for p in trained)
        padded = all(chunk["input_ids"].ndim == 2 for chunk in chunks)
        return plain and padded and len(chunks) > 1 and bool(trained)

    def embeddings(self) -> list[list[Tensor]]:
        """What `encode` gives, layer by layer for each part of the texts."""
        found: tuple[Tensor, ...] = _Recomputed.apply(self, *self.parameters)  # type: ignore[no-untyped-call]
        layers = len(found) // len(self.sizes)
        return [list(found[begin : begin + layers]) for begin in range(0, len(found), layers)]

    def forward(self) -> tuple[Tensor, ...]:
        """The embeddings, part by part; keeps the graph of the last chunk, whose backward pass comes first."""
        found: list[list[Tensor]] = []
        with self._leaves() as lookups:
            for chunk, places in zip(self.chunks, self.places, strict=True):
                state, last = random_state(self.device), places is self.places[-1]
                same = self.random and all(map(torch.equal, state, self.random[-1]))
                self.random.append(self.random[-1] if same else state)
                if last:  # before torch 2.10, the casts of the weights that autocast kept from the other chunks have no graph
                    torch.clear_autocast_cache()
                made = self._graph(chunk, lookups) if last else self.encode(chunk, lookups)
                if not found:
                    found = [[layer.new_empty(size, *layer.shape[1:]) for layer in made] for size in self.sizes]
                for part, texts, rows in places:
                    for whole, layer in zip(found[part], made, strict=True):
                        whole.index_copy_(0, texts, layer.detach().index_select(0, rows))
        self.kept = made
        return tuple(layer for part in found for layer in part)

    def backward(self, gradients: tuple[Tensor | None, ...]) -> list[Tensor | None]:
        """The parameters' gradients from those of the embeddings, None where a layer was not used."""
        layers = len(gradients) // len(self.sizes)
        by_layer = [gradients[layer::layers] for layer in range(layers)]
        kept, self.kept = self.kept, None
        before = random_state(self.device)
        try:
            with self._leaves() as lookups:
                for number in reversed(range(len(self.chunks))):
                    made = self._again(number, lookups) if kept is None else kept
                    kept = None
                    # A layer below all that is trained has no graph.
                    pairs = [
                        (layer, self._gradient(layer, number, by_part))
                        for layer, by_part in zip(made, by_layer, strict=True)
                        if layer.requires_grad and any(g is not None for g in by_part)
                    ]
                    del made
                    if pairs:
                        torch.autograd.backward([m for m, _ in pairs], [g for _, g in pairs])
                    del pairs
        finally:
            set_random_state(self.device, before)
        found = [leaf.grad for leaf in self.leaves]
        for leaf in self.leaves:
            leaf.grad = None  # the one reference left lets the parameter take it over without a copy
        return found

    def _gradient(self, layer: Tensor, number: int, by_part: Sequence[Tensor | None]) -> Tensor:
        found = torch.zeros_like(layer)
        for part, texts, rows in self.places[number]:
            g = by_part[part]
            if g is not None:
                found.index_add_(0, rows, g.index_select(0, texts))
        return found

    def _again(self, number: int, lookups: Lookups | None) -> list[Tensor]:
        set_random_state(self.device, self.random[number])
        with contextlib.ExitStack() as stack:
            for kind, (enabled, dtype) in self.precision.items():
                stack.enter_context(torch.autocast(kind, dtype, enabled))
            return self._graph(self.chunks[number], lookups)

    def _graph(self, chunk: Chunk, lookups: Lookups | None) -> list[Tensor]:
        with torch.enable_grad(), lean(self.encoder):
            return self.encode(chunk, lookups)

    @contextlib.contextmanager
    def _leaves(self) -> Iterator[Lookups | None]:
        """Within, the encoder computes with the leaves."""
        leaves = {id(p): leaf for p, leaf in zip(self.parameters, self.leaves, strict=True)}
        replaced = [
            (module._parameters, name, parameter)
            for module in self.encoder.modules()
            for name, parameter in module._parameters.items()
            if id(parameter) in leaves
        ]
        for parameters, name, parameter in replaced:
            parameters[name] = leaves[id(parameter)]
        try:
            yield shared_lookups(self.encoder, leaf=True)
        finally:
            for parameters, name, parameter in replaced:
                parameters[name] = parameter


def _places(lengths: Sequence[int], place: Tensor, sizes: Sequence[int]) -> list[list[tuple[int, Tensor, Tensor]]]:
    """Of each chunk: the parts that have texts of it, the places of these texts in the part, and their rows in the chunk.

    Args:
        lengths: texts of each chunk.
        place: (texts,) as in `Recomputed`.
        sizes: of the parts.
    """
    of_chunk, of_part = (torch.tensor(counts, device=place.device) for counts in (lengths, sizes))
    ends = of_chunk.cumsum(0)
    chunk = torch.searchsorted(ends, place, right=True)
    part = torch.arange(len(sizes), device=place.device).repeat_interleave(of_part, output_size=len(place))
    row = place - (ends - of_chunk)[chunk]
    text = torch.arange(len(place), device=place.device) - (of_part.cumsum(0) - of_part)[part]
    key = chunk * len(sizes) + part
    order = key.argsort(stable=True)
    counts = torch.bincount(key, minlength=len(lengths) * len(sizes)).tolist()
    found = zip(torch.split(text[order], counts), torch.split(row[order], counts), strict=True)
    of_chunks = [[(i, *next(found)) for i in range(len(sizes))] for _ in lengths]
    return [[(i, texts, rows) for i, texts, rows in places if len(texts)] for places in of_chunks]


class _Recomputed(torch.autograd.Function):
    """All embeddings of a step from the trained parameters."""

    @staticmethod
    def forward(ctx: Any, work: Recomputed, *parameters: Tensor) -> tuple[Tensor, ...]:
        ctx.work = work
        ctx.set_materialize_grads(False)
        return work.forward()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        return None, *ctx.work.backward(gradients)


def random_state(device: str) -> list[Tensor]:
    """The state of the random numbers of the CPU and of a kind of device."""
    return [torch.get_rng_state(), *([] if device == "cpu" else [torch.get_device_module(device).get_rng_state()])]


def set_random_state(device: str, state: list[Tensor]) -> None:
    """Go back to what `random_state` gave."""
    torch.set_rng_state(state[0])
    if device != "cpu":
        torch.get_device_module(device).set_rng_state(state[1])
