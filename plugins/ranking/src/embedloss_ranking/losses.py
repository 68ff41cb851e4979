"""The losses of this family: hyper-parameters here, arithmetic in `functional`."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from embedloss.embeddings import Embeddings
from embedloss.errors import EmbedlossError
from embedloss.loss import Loss, LossOutput
from embedloss.similarity import pairwise, similarity_name
from embedloss_ranking import functional as F
from embedloss_ranking import plugin


def _one_of(parameter: str, value: Any, allowed: Sequence[Any]) -> Any:
    if value not in allowed:
        raise ValueError(f"{parameter} must be one of {', '.join(map(str, allowed))}; got {value!r}")
    return value


def _own_rows(emb: Embeddings) -> dict[str, Any]:
    """The arguments by which a process scores its own rows, so that the mean over processes is the mean over all rows."""
    return {"begin": emb.row_offset, "end": emb.row_offset + len(emb), "divisor": emb.pool_size / emb.world_size}


def _output(loss: Tensor, active: Tensor, emb: Embeddings) -> LossOutput:
    return LossOutput.of(loss, active=active / max(len(emb), 1))


class MultipleNegativesRankingLoss(Loss):
    """Score each anchor's positive above all other documents of the batch (InfoNCE, in-batch negatives).

    With several processes each scores its own rows against the texts of all. The sum over own rows is divided by (rows of
    all processes / processes), so that the mean over processes is the mean over all rows, however unevenly they lie.

    Args:
        scale: inverse temperature, above 0.
        similarity_fct: "cosine", "dot", "euclidean" or "manhattan" (the last two are negated distances).
        directions: candidate sets: "query_to_doc" (required), "query_to_query", "doc_to_query", "doc_to_doc".
        partition_mode: "joint" (one softmax over all sets) or "per_direction" (the mean of one softmax a set; only for
            query_to_doc and doc_to_query, because the others lack the positive).
        hardness_mode: None, or which logits of query_to_doc are raised by `hardness_strength` times their own similarity,
            taken as a constant: "in_batch_negatives", "hard_negatives" (the row's own) or "all_negatives".
        hardness_strength: at least 0; 9 and 5 are published for the first two modes.
        negatives: "both"; "own" (only the row's own hard negatives, no other rows); "in-batch" (other rows' documents, not
            the row's own hard negatives).
        mask_same_text: a document whose text is that of the row's positive, or a query whose text is that of the row's
            anchor, is no negative of the row.

    Raises:
        ValueError: a parameter is outside what is said here.
    """

    spec = plugin.MULTIPLE_NEGATIVES_RANKING

    def __init__(
        self,
        scale: float = 20.0,
        similarity_fct: Any = "cosine",
        directions: Sequence[str] = ("query_to_doc",),
        partition_mode: str = "joint",
        hardness_mode: str | None = None,
        hardness_strength: float = 0.0,
        negatives: str = "both",
        mask_same_text: bool = False,
    ) -> None:
        super().__init__()
        if not scale > 0:
            raise ValueError(f"scale must be above 0; got {scale}")
        if not hardness_strength >= 0:
            raise ValueError(f"hardness_strength must be at least 0; got {hardness_strength}")
        chosen = tuple(dict.fromkeys([directions] if isinstance(directions, str) else directions))
        for direction in chosen:
            _one_of("directions", direction, F.DIRECTIONS)
        if "query_to_doc" not in chosen:
            raise ValueError("directions must contain query_to_doc, which holds the positive")
        if partition_mode == "per_direction" and {"query_to_query", "doc_to_doc"} & set(chosen):
            raise ValueError(
                "partition_mode='per_direction' takes query_to_doc and doc_to_query only: the other sets lack the positive"
            )
        if negatives == "own" and (len(chosen) > 1 or mask_same_text):
            raise ValueError("negatives='own' uses no other rows: leave out further directions and mask_same_text")
        if hardness_mode is not None and hardness_strength == 0:
            warnings.warn(f"hardness_mode={hardness_mode!r} has no effect while hardness_strength is 0", stacklevel=2)
        self.scale = scale
        self.similarity_fct = similarity_name(similarity_fct)
        self.directions = chosen
        self.partition_mode = _one_of("partition_mode", partition_mode, ("joint", "per_direction"))
        self.hardness_mode = _one_of("hardness_mode", hardness_mode, (None, *F.HARDNESS_MODES))
        self.hardness_strength = hardness_strength
        self.negatives = _one_of("negatives", negatives, ("both", "own", "in-batch"))
        self.mask_same_text = mask_same_text

    def compute(self, emb: Embeddings, labels: Tensor | None) -> LossOutput:
        """The loss and `active`, the share of rows that have a negative."""
        hard = "negative" in emb
        if self.negatives == "own":
            return self._own_negatives(emb)
        loss, active = F.multiple_negatives_ranking(
            emb.pool("anchor"),
            emb.pool("positive"),
            emb.pool("negative") if hard else None,
            emb.pool_rows_of("negative") if hard else None,
            scale=self.scale,
            similarity=self.similarity_fct,
            directions=self.directions,
            per_direction=self.partition_mode == "per_direction",
            hardness_mode=self.hardness_mode,
            hardness_strength=self.hardness_strength,
            own_negatives_count=self.negatives != "in-batch",
            **{f"{role}_ids": self._ids(emb, role) for role in emb.roles if self.mask_same_text},
            **_own_rows(emb),
        )
        return _output(loss, active, emb)

    def _ids(self, emb: Embeddings, role: str) -> Tensor:
        ids = emb.text_ids(role)
        if ids is None:
            raise EmbedlossError(
                "E206",
                f"mask_same_text needs to know equal texts. Type: embeddings.with_text_ids({role}=ids), or use the trainer.",
            )
        return ids

    def _own_negatives(self, emb: Embeddings) -> LossOutput:
        if "negative" not in emb:
            raise EmbedlossError("E206", "negatives='own' needs hard negatives (role negative); the data has none.")
        texts, mask = emb.lists("negative")
        anchor = emb.own("anchor")
        positive = pairwise(self.similarity_fct, anchor, emb.own("positive"))
        others = pairwise(self.similarity_fct, anchor[:, None].expand_as(texts), texts)
        boosted = others * self.scale
        if self.hardness_mode in ("hard_negatives", "all_negatives"):
            boosted = boosted + self.hardness_strength * others.detach()
        scores = torch.cat([positive[:, None] * self.scale, boosted], 1)
        mask = torch.cat([torch.ones_like(mask[:, :1]) if mask.shape[1] else mask.new_ones(len(mask), 1), mask], 1)
        return _output(*F.listwise_softmax(scores, mask, emb.pool_size / emb.world_size), emb)
