"""The module that is wrapped, optimised and saved: encoder and loss together, one forward and one backward a step."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from embedloss.adapters.models import wrap_model
from embedloss.distributed import world
from embedloss.embeddings import Embeddings, Scores, StepContext, _Leaves
from embedloss.encoders import Encoder, encode_chunks, encode_parts
from embedloss.errors import EmbedlossError
from embedloss.loss import Loss, LossOutput, ModelInfo, Requirements
from embedloss.training.per_dataset import PerDataset
from embedloss.training.scales import mismatch

FIRST_STEPS = 3  # in which labels are compared with what the model can give


class TrainingStep(nn.Module):
    """Encodes a batch once and hands the embeddings to the loss.

    Because the loss is a submodule, its own weights are synchronised, clipped, saved and resumed like the encoder's.

    Args:
        encoder: the model that is trained: an `Encoder`, or an object that `embedloss.adapters.wrap_model` takes (a
            SentenceTransformer, say), whose parameters are then trained; `step.encoder` is the encoder round it.
        loss: any loss or sum; for several data sets a `PerDataset`, whose batches carry "dataset".
        recompute: keep the activations of one chunk only (same value and gradient, less memory, more time).
        gather: pool in-batch candidates over all processes.
        guides: frozen encoders by the key the loss asked for; they are not optimised and not saved. None where the batches
            bring the guide's embeddings (`embedloss.training.guides`).
        seed: of everything random in the loss.
        num_classes: number of classes in the data, for losses with a classifier.
        label_dimension: size of the teacher's vectors, for losses with a projection.
    """

    def __init__(
        self,
        encoder: Encoder | nn.Module,
        loss: Loss,
        *,
        recompute: bool = False,
        gather: bool = False,
        guides: Mapping[Any, Encoder | None] | None = None,
        seed: int = 0,
        num_classes: int | None = None,
        label_dimension: int | None = None,
    ) -> None:
        super().__init__()
        encoder = encoder if isinstance(encoder, Encoder) else wrap_model(encoder)
        if encoder.kind not in loss.spec.models:
            raise EmbedlossError(
                "E302", f"'{loss.spec.name}' trains {' and '.join(loss.spec.models)} models; this is a {encoder.kind}."
            )
        outputs = encoder.dimension if encoder.kind == "cross-encoder" else 1
        for part in [part for _, part in loss.items()] if isinstance(loss, PerDataset) else [loss]:
            if outputs > 1 and all(f.label != "class" for f in part.spec.data_formats()):
                raise EmbedlossError(
                    "E302", f"'{part.spec.name}' needs one score a pair; this cross-encoder has {outputs} outputs, one a class."
                )
        self.encoder, self.loss = encoder, loss
        self.requirements = loss.requires()
        self.recompute, self.gather, self.seed = recompute or self.requirements.recompute, gather, seed
        if self.requirements.layers and encoder.n_layers == 0:
            raise EmbedlossError("E302", f"'{loss.spec.name}' needs all layers; a {type(encoder).__name__} has none.")
        self.twin = copy.deepcopy(encoder) if self.requirements.twin else None
        loss.prepare(ModelInfo(encoder.dimension, encoder, num_classes, label_dimension))
        # In a tuple, so that the guides are no submodules: not optimised, not saved, not moved by DDP.
        self._guides = (dict(guides or {}),)
        for guide in self._guides[0].values():
            if guide is not None:
                guide.eval().requires_grad_(False)
        self.step = 0
        self.scale_note: str | None = None

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """One batch of the collator -> {"loss": scalar, "terms": {...}, "metrics": {...}}."""
        labels = batch.get("label")
        inputs = self.scores(batch) if self.encoder.kind == "cross-encoder" else self.embed(batch)
        loss = self.part(batch)[0]
        output: LossOutput = loss(inputs, labels)
        if self.step < FIRST_STEPS and labels is not None:
            self.scale_note = mismatch(loss, inputs, labels)
        return {"loss": output.total, "terms": dict(output.terms), "metrics": dict(output.metrics)}

    def part(self, batch: Mapping[str, Any]) -> tuple[Loss, Requirements]:
        """The loss of a batch and what it needs: of several data sets, those of the batch's."""
        if isinstance(self.loss, PerDataset):
            loss = self.loss.of(batch["dataset"])
            return loss, loss.requires()
        return self.loss, self.requirements

    def gradient_checkpointing_enable(
        self, gradient_checkpointing_kwargs: dict[str, Any] | None = None, **options: Any
    ) -> None:
        """What `TrainingArguments(gradient_checkpointing=True)` calls: recompute each layer in the backward pass."""
        for encoder in (self.encoder, self.twin):
            if encoder is not None:
                if not encoder.n_layers:
                    raise EmbedlossError("E401", f"a {type(encoder).__name__} has no layers to recompute.")
                enable: Any = encoder.gradient_checkpointing_enable
                enable({"use_reentrant": False, **(gradient_checkpointing_kwargs or {})}, **options)

    def activation_checkpointing_enable(
        self, activation_checkpointing_kwargs: dict[str, Any] | None = None, **options: Any
    ) -> None:
        """The name that newer versions of transformers call."""
        self.gradient_checkpointing_enable(activation_checkpointing_kwargs, **options)

    def embed(self, batch: Mapping[str, Any]) -> Embeddings:
        """The embeddings of a batch by role, with everything the loss requires."""
        needs = self.part(batch)[1]
        leaves = self._leaves(self.encoder, batch, batch, needs.layers)
        if self.twin is not None and needs.twin:
            leaves.twin = self._leaves(self.twin, batch, batch, needs.layers)
        several = isinstance(self.loss, PerDataset)
        guides = {key: guide for key, guide in self._guides[0].items() if not several or key in needs.guides}
        for (key, guide), chunks in zip(guides.items(), batch.get("guides", []), strict=True):
            with torch.no_grad():
                leaves.guides[key] = self._leaves(guide and guide.to(leaves.device), batch, chunks, False)
        leaves.tokens = dict(batch.get("tokens", {}))
        return Embeddings(leaves)

    def _leaves(self, encoder: Encoder | None, batch: Mapping[str, Any], chunks: Mapping[str, Any], layers: bool) -> _Leaves:
        recompute = self.recompute and torch.is_grad_enabled()
        layout = batch["layout"]
        if encoder is None:
            parts = [[chunks["embeddings"][begin:end]] for begin, end in layout.values()]
        else:
            sizes = [end - begin for begin, end in layout.values()]
            parts = encode_parts(encoder, chunks["chunks"], chunks["place"], sizes, recompute=recompute, layers=layers)
        ids = {role: batch["text_ids"][begin:end] for role, (begin, end) in layout.items()}
        return _Leaves(
            dict(zip(layout, parts, strict=True)),
            dict(batch["rows"]),
            batch["count"],
            StepContext(self.seed, self.step),
            self.gather,
            ids,
            batch.get("row_ids"),
            batch.get("row_weights"),
        )

    def scores(self, batch: Mapping[str, Any]) -> Scores:
        """A cross-encoder's scores: (rows, candidates) padded with 0 and a mask, or (rows, classes) for several outputs."""
        recompute = self.recompute and torch.is_grad_enabled()
        logits = encode_chunks(self.encoder, batch["chunks"], batch["place"], recompute=recompute)
        assert isinstance(logits, Tensor)
        scores = Scores.by_row(logits, batch["owners"], batch["count"], StepContext(self.seed, self.step))
        return replace(scores, processes=world()[1] if self.gather else 1)
