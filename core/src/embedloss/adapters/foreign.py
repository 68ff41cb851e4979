"""Losses written for sentence-transformers inside our trainer."""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Sequence
from typing import Any, Literal

from torch import Tensor, nn

from embedloss.adapters.models import is_peer
from embedloss.embeddings import Embeddings
from embedloss.errors import EmbedlossError
from embedloss.formats import DataFormat
from embedloss.loss import Loss
from embedloss.spec import LossSpec

METHOD = "compute_loss_from_embeddings"


class _NoModel(nn.Module):
    """Stands where a foreign loss expects its model."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """E302: the embeddings are there already."""
        raise EmbedlossError("E302", f"the loss calls a model; only its {METHOD} can be used here.")


class PeerStyleLoss(Loss):
    """A loss that has `compute_loss_from_embeddings(embeddings: list[Tensor], labels)`.

    Its own weights are trained and saved as those of our losses are.

    Args:
        st_loss: the foreign loss, without its model.
        spec: what it takes.
    """

    def __init__(self, st_loss: nn.Module, spec: LossSpec) -> None:
        super().__init__()
        self.st_loss, self.spec = st_loss, spec

    def compute(self, emb: Embeddings, labels: Tensor | None) -> Any:
        """The foreign loss of one tensor a column."""
        columns: list[Tensor] = []
        for role in emb.roles:
            if emb.single(role):
                columns.append(emb.own(role))
                continue
            values, mask = emb.lists(role)
            if not bool(mask.all()):
                raise EmbedlossError(
                    "E206", f"'{self.spec.name}' takes the same number of texts of role '{role}' in every row of a batch."
                )
            columns += list(values.unbind(1))
        return getattr(self.st_loss, METHOD)(columns, labels)

    def to_expression(self) -> str:
        """E203: a loss made from an object has no expression."""
        raise EmbedlossError("E203", f"'{self.spec.name}' was made from an object and has no expression.")

    def extra_repr(self) -> str:
        """The name."""
        return self.spec.name


def from_sentence_transformers_loss(
    st_loss: Any,
    formats: Sequence[str | DataFormat],
    *,
    name: str | None = None,
    scope: Literal["row", "batch"] = "batch",
    sampler: Literal["random", "no-duplicates", "group-by-label"] = "random",
    label_range: tuple[float, float] | None = None,
    **parameters: Any,
) -> Loss:
    """A loss written for sentence-transformers as a loss of ours: in our trainer, in sums, under modifiers.

    It sees the embeddings of its own process only.

    Args:
        st_loss: its class, or an object (left as it is; the loss made of it shares its weights and has no model).
        formats: names of the data formats it takes; the roles in order are its columns.
        name: how messages and logs call it; by default from the name of its class.
        scope: whether rows matter for each other.
        sampler: the batch sampler that suits it.
        label_range: lowest and highest label.
        parameters: of the class's constructor, but for the model.

    Raises:
        EmbedlossError: E206, it has no `compute_loss_from_embeddings`; E203, wrong parameters.
    """
    cls = st_loss if inspect.isclass(st_loss) else type(st_loss)
    if not callable(getattr(st_loss, METHOD, None)):
        raise EmbedlossError(
            "E206",
            f"{cls.__name__} has no {METHOD}(embeddings, labels), so it cannot be used without its model. "
            "Write its arithmetic as a plugin; `embedloss new my-loss` starts one.",
        )
    made: Any
    if inspect.isclass(st_loss):
        wanted = inspect.signature(cls).parameters
        first = {"model": _NoModel()} if "model" in wanted else {}
        try:
            made = cls(**first, **parameters)
        except (TypeError, ValueError, AttributeError) as exception:
            raise EmbedlossError("E203", f"{cls.__name__}: {exception}") from exception
    elif parameters:
        raise EmbedlossError("E203", "parameters go with a class, not with an object that is made already.")
    else:
        made = _without_model(st_loss)
    spec = LossSpec(
        name=name or re.sub(r"(?<=[a-z0-9])(?=[A-Z])|_", "-", cls.__name__).lower(),
        target=f"{cls.__module__}:{cls.__qualname__}",
        summary=f"{cls.__name__} of {cls.__module__.partition('.')[0]}",
        family="foreign",
        field_name=cls.__name__,
        formats=tuple(formats),
        scope=scope,
        sampler=sampler,
        label_range=label_range,
    )
    return PeerStyleLoss(made, spec)


def _without_model(module: nn.Module) -> nn.Module:
    """The same loss with the same weights, but without the models in it."""
    same = copy.copy(module)
    object.__setattr__(same, "_modules", dict(module._modules))
    for name, child in module._modules.items():
        if child is None:
            continue
        models = name == "model" or (is_peer(child) and hasattr(child, "encode"))
        same._modules[name] = _NoModel() if models else _without_model(child)
    return same
