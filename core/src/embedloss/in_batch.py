"""Losses whose negatives are the texts of other rows, and which of these texts are none."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from embedloss.embeddings import Embeddings
from embedloss.loss import Loss, Requirements
from embedloss.similarity import matrix, pairwise, unit
from embedloss.validate import Check, finite, one_of

Mask = Callable[[int, int], Tensor]
"""(first row, row after the last) -> bool (rows, texts of all processes), True where a text is no negative of that row."""
Masks = Callable[[str, str], Mask | None]
"""(role that stands for the row, role of the texts) -> their mask; None: all are negatives."""


def any_of(*masks: Mask | None) -> Mask | None:
    """The union of masks."""
    given = [mask for mask in masks if mask is not None]
    return (lambda begin, end: functools.reduce(operator.or_, (m(begin, end) for m in given))) if given else None


def equal(left: Tensor, right: Tensor, aligned: bool = True) -> Mask:
    """True where the ids are equal, but for the row's own text where the ids are `aligned` with the rows."""

    def mask(begin: int, end: int) -> Tensor:
        same = left[begin:end, None] == right[None]
        if aligned:
            same.diagonal(begin).fill_(False)
        return same

    return mask


def closer(judge: Mapping[str, Tensor], similarity: str, limit: Callable[[Tensor], Tensor]) -> Masks:
    """What a judge finds closer than a limit.

    Args:
        judge: the judge's embeddings by role: anchor, positive and perhaps negative, of all processes.
        similarity: "cosine", "dot", "euclidean" or "manhattan".
        limit: of the rows, (rows,), from the similarities of their positives.
    """
    name = "dot" if similarity == "cosine" else similarity
    texts = {role: unit(t.detach()) if similarity == "cosine" else t.detach() for role, t in judge.items()}
    limits = limit(pairwise(name, texts["anchor"], texts["positive"]))

    def masks(left: str, right: str) -> Mask:
        def mask(begin: int, end: int) -> Tensor:
            found = matrix(name, texts[left][begin:end], texts[right]) > limits[begin:end, None]
            if right != "negative" and left != right:
                found.diagonal(begin).fill_(False)  # the row's positive itself
            return found

        return mask

    return masks


def _same_row(ids: Tensor, left: str, right: str) -> Mask | None:
    return None if right == "negative" else equal(ids, ids)


class InBatchLoss(Loss):
    """A loss of anchors, positives and perhaps negatives, whose candidates are the texts of other rows.

    A constructor may take these parameters; the masks hold for texts of all processes, where these are gathered.

    Args:
        mask_same_text: a document whose text is that of the row's positive, or a query whose text is that of the row's anchor,
            is no negative of the row.
        mask_same_id: anchors and positives of rows with the same id (the `id` column, which may be a label) are no negatives
            of each other.
        positives: "first" (the row's own); or rows whose anchors are equal texts share their positives: "mean" (none is a
            negative of another's row, and each row scores its own, so that a group learns the mean over its positives) or
            "sum" (their probabilities are added).
        guide: a folder, hub id or `Encoder`, frozen, whose cosines judge candidates; "self": the embeddings that are trained,
            taken as constants, by the similarity of the loss.
        margin: a candidate is dropped if the judge finds it closer than the row's positive less this.
        margin_strategy: "absolute" or "relative" (to the size of the positive's similarity).
        guide_prompt: text put before every text that the guide sees.
    """

    similarity_fct: str = "cosine"
    mask_same_text: bool = False
    mask_same_id: bool = False
    positives: str = "first"
    guide: Any = None
    margin: float = 0.0
    margin_strategy: str = "absolute"
    guide_prompt: str | None = None

    def keep(self, parameters: Mapping[str, Any], **checks: Check) -> None:
        """As in `Loss`; the guide is no submodule, because it is neither trained nor saved."""
        kept = {name: value for name, value in parameters.items() if name != "guide"}
        if "guide" in parameters:
            object.__setattr__(self, "guide", parameters["guide"])
        masks = {
            "margin": finite,
            "margin_strategy": one_of("absolute", "relative"),
            "positives": one_of("first", "mean", "sum"),
        }
        super().keep(kept, **{**masks, **checks})
        if self.guide is None:
            for name in ("margin", "margin_strategy", "guide_prompt"):
                if getattr(self, name) != getattr(InBatchLoss, name):
                    raise ValueError(f"{name} has no effect without a guide")
        elif isinstance(self.guide, Loss) or not (callable(self.guide) or (isinstance(self.guide, str) and self.guide)):
            raise ValueError(f"guide must name a model (a folder or hub id), be an Encoder, or be 'self'; got {self.guide!r}")
        if self.guide == "self" and self.guide_prompt:
            raise ValueError("guide_prompt has no effect with guide='self'")

    def requires(self) -> Requirements:
        """The guide's embeddings, and ids of the rows where they are compared."""
        guides = () if self.guide in (None, "self") else (self.guide,)
        prompts = {guide: self.guide_prompt for guide in guides if self.guide_prompt}
        return super().requires() | Requirements(guides=guides, guide_prompts=prompts, row_ids=self.mask_same_id)

    def judge(self, emb: Embeddings) -> Embeddings | None:
        """The embeddings that judge candidates, if any; E206 if they are not there."""
        if self.guide in (None, "self"):
            return emb if self.guide else None
        guide = emb.guide(self.guide)
        for role in emb.roles:
            mine, other = len(emb.own(role)), len(guide.own(role))
            if mine != other:
                raise self.error(
                    "E206", f"cannot use the guide: the guide has {other} embeddings of role '{role}', the model {mine}."
                )
        return guide

    def limit(self, found: Tensor) -> Tensor:
        """The judge's similarity of the positive less the margin, and less than rounding more."""
        size = found.detach().abs()
        margin = size * self.margin if self.margin_strategy == "relative" else self.margin
        return found.detach() - margin + 16 * torch.finfo(size.dtype).eps * size.clamp(min=1)

    def masks(self, emb: Embeddings) -> Masks:
        """What is no negative, by the parameters above; E206 where the ids that they need are not there."""
        made: list[Masks] = []
        if self.mask_same_text:
            made.append(lambda left, right: self._same_text(emb, right))
        rows = [self._row_ids(emb)] if self.mask_same_id else []
        rows += [self._text_ids(emb, "anchor", f"positives='{self.positives}'")] if self.positives != "first" else []
        made += [functools.partial(_same_row, ids) for ids in rows]
        judge = self.judge(emb)
        if judge is not None:
            name = self.similarity_fct if judge is emb else "cosine"
            pools = {role: judge.pool(role) for role in emb.roles}
            made.append(closer(pools, name, self.limit))
        return lambda left, right: any_of(*(masks(left, right) for masks in made))

    def shared(self, emb: Embeddings) -> Mask | None:
        """True where a positive is one of the row's, its own included, if they are summed."""
        if self.positives != "sum":
            return None
        ids = self._text_ids(emb, "anchor", "positives='sum'")
        return equal(ids, ids, aligned=False)

    def _same_text(self, emb: Embeddings, right: str) -> Mask:
        texts = {role: self._text_ids(emb, role, "mask_same_text") for role in emb.roles}
        return equal(texts["positive" if right == "negative" else right], texts[right], right != "negative")

    def _text_ids(self, emb: Embeddings, role: str, parameter: str) -> Tensor:
        ids = emb.text_ids(role)
        if ids is None:
            repair = f"Type: embeddings.with_text_ids({role}=ids), or use the trainer."
            raise self.error("E206", f"needs to know equal texts for {parameter}. {repair}")
        return ids

    def _row_ids(self, emb: Embeddings) -> Tensor:
        ids = emb.row_ids()
        if ids is None:
            repair = "Type: --map id=COLUMN, or embeddings.with_row_ids(ids)."
            raise self.error("E206", f"needs to know the ids of the rows for mask_same_id. {repair}")
        return ids
