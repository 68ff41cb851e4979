"""Losses that call another loss on views of the embeddings."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from embedloss.embeddings import Embeddings, at_least_float32
from embedloss.loss import Loss, LossOutput, ModelInfo, Modifier, Requirements, in_one_pass
from embedloss.validate import callable_or, is_whole, must_be, one_of, whole
from embedloss_modifiers.functional import LAYER_WEIGHTINGS, layer_weight, sample, self_distillation, truncate
from embedloss_modifiers.plugin import ADAPTIVE_LAYER, MATRYOSHKA, MATRYOSHKA_2D

_DIMS = must_be(
    "a list of positive integers",
    lambda value: isinstance(value, (list, tuple)) and len(value) > 0 and all(is_whole(dim, 1) for dim in value),
)


class _Dims(Modifier):
    """The inner loss on truncated embeddings; what the two Matryoshka losses share."""

    parameter_aliases: ClassVar[dict[str, str]] = {"matryoshka_dims": "dims", "matryoshka_weights": "weights"}
    _warned = False

    def keep_dims(self, parameters: Mapping[str, Any]) -> None:
        """Keep the constructor's parameters, after checking `dims`, `weights` and `n_dims_per_step`."""
        self.keep(parameters, dims=_DIMS, n_dims_per_step=whole)
        dims, weights = self.dims, self.weights
        repeated = sorted({d for d in dims if list(dims).count(d) > 1})
        if repeated:
            raise ValueError(f"dims repeats {', '.join(map(str, repeated))}; give that dimension a larger weight instead")
        numbers = isinstance(weights, (list, tuple)) and all(type(weight) in (int, float) for weight in weights)
        if weights is not None and not (numbers and len(weights) == len(dims)):
            raise ValueError(f"weights must be a list of one number for each of the {len(dims)} dims, got {weights!r}")

    def _check_width(self, width: int, what: str) -> None:
        if max(self.dims) > width:
            raise self.error("E206", f"has dimension {max(self.dims)}, but {what} {width} dimensions.")
        if width not in self.dims and not self._warned:
            self._warned = True
            missing = f"the full dimension {width} is not among dims {list(self.dims)}"
            warnings.warn(f"{missing}: whole embeddings are not trained. Add {width} to dims.", stacklevel=2)

    def prepare(self, info: ModelInfo) -> None:
        """Compare the dims with the model's (E206), then prepare the inner loss."""
        self._check_width(info.dimension, "the model gives")
        super().prepare(info)

    def _truncated(self, emb: Embeddings, labels: Any) -> LossOutput:
        self._check_width(emb.own(emb.roles[0]).shape[-1], "the embeddings have")
        vectors = self._vectors(emb, labels)
        weights = dict(zip(self.dims, self.weights or [1.0] * len(self.dims), strict=True))
        drawn = sample(len(self.dims), self.n_dims_per_step, emb.generator(f"matryoshka/layer {emb.layer}"))
        dims = [self.dims[i] for i in drawn]
        ascending = sorted(dims)
        found = in_one_pass(self.loss, emb, labels, ascending, [weights[dim] for dim in ascending]) if len(dims) > 1 else None
        if found is not None:
            outputs = dict(zip(ascending, found[1], strict=True))
        else:
            outputs = {
                dim: self.loss(emb.map(partial(truncate, dim=dim)), labels if vectors is None else truncate(vectors, dim))
                for dim in dims
            }
        output = LossOutput.weighted((weights[dim], f"{self.spec.name}/{dim}", outputs[dim]) for dim in dims)
        return output if found is None else replace(output, total=found[0])

    def _vectors(self, emb: Embeddings, labels: Any) -> Tensor | None:
        """The labels if they are declared to be a teacher's vectors, which are truncated as the embeddings are."""
        formats = [f for f in self.spec.data_formats() if set(f.roles) - self.requires().tokens == set(emb.roles)]
        if labels is None or not any(f.label == "embedding" for f in formats):
            return None
        vectors = at_least_float32(torch.as_tensor(labels, device=emb.device))
        if max(self.dims) > vectors.shape[-1]:
            raise self.error("E206", f"has dimension {max(self.dims)}, but the label vectors have {vectors.shape[-1]}.")
        return vectors


class MatryoshkaLoss(_Dims):
    """The weighted sum of a loss over truncated, normalised embeddings, so that prefixes of the vectors are good embeddings.

    Args:
        loss: any loss.
        dims: sizes of the prefixes, each between 1 and the model's dimension, which should be among them.
        weights: one weight a dimension; None: 1 each.
        n_dims_per_step: number of dimensions drawn anew each step, equal on every process and not rescaled; <= 0: all.

    Paper: Kusupati et al. 2022, Matryoshka Representation Learning, arXiv 2205.13147.
    """

    spec = MATRYOSHKA

    def __init__(
        self, loss: Loss, dims: Sequence[int], weights: Sequence[float] | None = None, n_dims_per_step: int = -1
    ) -> None:
        super().__init__(loss)
        self.keep_dims(locals())

    def compute(self, emb: Embeddings, labels: Any) -> LossOutput:
        """The inner loss at every dimension of this step; terms `matryoshka/<dim>/...`."""
        return self._truncated(emb, labels)


class AdaptiveLayerLoss(Modifier):
    """A loss on the final layer and on earlier ones, which also learn the final embeddings, so that layers can be cut off.

    Args:
        loss: any loss.
        n_layers_per_step: number of prior layers drawn anew each step, equal on every process; <= 0: all.
        last_layer_weight: weight of the loss on the final layer.
        prior_layers_weight: weight of the mean of the loss on the drawn prior layers.
        kl_div_weight: weight of the Kullback-Leibler divergence from the final embeddings.
        kl_temperature: temperature of that divergence; 0: without it.
        layer_weighting: "uniform", "log", "linear", or a function of the layer's number; weights the prior layers' losses.

    Paper: Li et al. 2024, 2D Matryoshka Sentence Embeddings, arXiv 2402.14776.
    """

    spec = ADAPTIVE_LAYER

    def __init__(
        self,
        loss: Loss,
        n_layers_per_step: int = 1,
        last_layer_weight: float = 1.0,
        prior_layers_weight: float = 1.0,
        kl_div_weight: float = 1.0,
        kl_temperature: float = 0.3,
        layer_weighting: str | Callable[[int], float] = "uniform",
    ) -> None:
        super().__init__(loss)
        self.keep(
            locals(),
            n_layers_per_step=whole,
            kl_temperature=must_be("at least 0", lambda value: value >= 0),
            layer_weighting=callable_or(one_of(*LAYER_WEIGHTINGS)),
        )

    def requires(self) -> Requirements:
        """All layers, and what the inner loss needs."""
        return Requirements(layers=True) | super().requires()

    def inner(self, emb: Embeddings, labels: Any) -> LossOutput:
        """The loss of one layer."""
        output: LossOutput = self.loss(emb, labels)
        return output

    def compute(self, emb: Embeddings, labels: Any) -> LossOutput:
        """The inner loss on the final and the drawn layers and their divergences.

        Terms are `adaptive-layer/<layer>/...` and `adaptive-layer/kl/<layer>`.
        """
        name, final = self.spec.name, emb.at_layer(-1)
        drawn = sample(emb.n_layers, self.n_layers_per_step, emb.generator("adaptive-layer"))
        parts = [(self.last_layer_weight, f"{name}/{emb.n_layers}", self.inner(final, labels))]
        divergences = {}
        for layer in drawn:
            view, weighting = emb.at_layer(layer), self.layer_weighting
            omega = layer_weight(weighting, layer) if isinstance(weighting, str) else weighting(layer)
            parts.append((self.prior_layers_weight * omega / len(drawn), f"{name}/{layer}", self.inner(view, labels)))
            if self.kl_temperature > 0:
                divergences[str(layer)] = self._divergence(view, final)
        if divergences:
            parts.append((self.kl_temperature * self.kl_div_weight, f"{name}/kl", LossOutput.of(divergences)))
        return LossOutput.weighted(parts)

    def _divergence(self, view: Embeddings, final: Embeddings) -> Tensor:
        # Own texts over all processes' texts, times the processes: their mean is then that of one process on all texts.
        texts = sum(len(view.pool_rows_of(role)) for role in view.roles)
        student, teacher = (torch.cat([e.own(role) for role in e.roles]) for e in (view, final))
        return self_distillation(student, teacher, self.kl_temperature, texts) * view.world_size


class Matryoshka2dLoss(AdaptiveLayerLoss, _Dims):
    """`adaptive_layer(matryoshka(loss, dims))`: embeddings that can be cut in layers and in dimensions.

    Dimensions are drawn anew for every layer; the divergence is taken on embeddings of full width.

    Args:
        loss: any loss.
        dims: as in `MatryoshkaLoss`.
        weights: as in `MatryoshkaLoss`.
        n_layers_per_step: as in `AdaptiveLayerLoss`.
        n_dims_per_step: number of dimensions drawn for each layer; <= 0: all.
        last_layer_weight: as in `AdaptiveLayerLoss`.
        prior_layers_weight: as in `AdaptiveLayerLoss`.
        kl_div_weight: as in `AdaptiveLayerLoss`.
        kl_temperature: as in `AdaptiveLayerLoss`.
        layer_weighting: as in `AdaptiveLayerLoss`.

    Paper: Li et al. 2024, 2D Matryoshka Sentence Embeddings, arXiv 2402.14776.
    """

    spec = MATRYOSHKA_2D

    def __init__(
        self,
        loss: Loss,
        dims: Sequence[int],
        weights: Sequence[float] | None = None,
        n_layers_per_step: int = 1,
        n_dims_per_step: int = 1,
        last_layer_weight: float = 1.0,
        prior_layers_weight: float = 1.0,
        kl_div_weight: float = 1.0,
        kl_temperature: float = 0.3,
        layer_weighting: str | Callable[[int], float] = "uniform",
    ) -> None:
        super().__init__(
            loss, n_layers_per_step, last_layer_weight, prior_layers_weight, kl_div_weight, kl_temperature, layer_weighting
        )
        self.keep_dims(locals())

    def inner(self, emb: Embeddings, labels: Any) -> LossOutput:
        """The loss of one layer at the drawn dimensions."""
        output, prefix = self._truncated(emb, labels), f"{self.spec.name}/"
        terms, metrics = ({k.removeprefix(prefix): t for k, t in d.items()} for d in (output.terms, output.metrics))
        return LossOutput(output.total, terms, metrics)
