"""One loss for each data set of a mixture, as one module: every loss's own weights are trained, saved and resumed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

from torch import nn

from embedloss.errors import EmbedlossError
from embedloss.loss import Loss, ModelInfo, Requirements
from embedloss.spec import LossSpec

_SPEC = LossSpec(
    name="per-dataset", target=f"{__name__}:PerDataset", summary="a loss for each data set", family="core", any_format=True
)


def joint_spec(specs: Mapping[str, LossSpec]) -> LossSpec:
    """What several losses have in common; E302 where they train different kinds of model."""
    models = tuple(k for k in ("bi-encoder", "cross-encoder") if all(k in s.models for s in specs.values()))
    if not models:
        lines = "\n".join(f"  {name}: '{s.name}' trains {' and '.join(s.models)}s" for name, s in specs.items())
        raise EmbedlossError("E302", f"the losses of the data sets train different kinds of model:\n{lines}")
    scope = "batch" if any(s.scope == "batch" for s in specs.values()) else "row"
    return replace(_SPEC, models=models, scope=scope)  # type: ignore[arg-type]


class PerDataset(Loss):
    """The losses of the data sets of a mixture. The training step calls the one of the batch's data set.

    Args:
        losses: name of the data set -> loss. Each is a module of its own, also where two expressions are equal.
        num_classes, label_dimension: name -> number of classes in its labels, or size of its teacher's vectors.
    """

    spec: ClassVar[LossSpec] = _SPEC  # type: ignore[misc]

    def __init__(
        self,
        losses: Mapping[str, Loss],
        num_classes: Mapping[str, int | None] | None = None,
        label_dimension: Mapping[str, int | None] | None = None,
    ) -> None:
        super().__init__()
        self.names = list(losses)
        # Under a prefix, because a ModuleDict refuses names such as "keys".
        self.losses = nn.ModuleDict({f"for_{name}": loss for name, loss in losses.items()})
        self.num_classes, self.label_dimension = dict(num_classes or {}), dict(label_dimension or {})
        self.bind_spec(joint_spec({name: loss.spec for name, loss in losses.items()}))

    def of(self, name: str) -> Loss:
        """The loss of a data set."""
        loss = self.losses[f"for_{name}"]
        assert isinstance(loss, Loss)
        return loss

    def items(self) -> list[tuple[str, Loss]]:
        """Names and losses in order."""
        return [(name, self.of(name)) for name in self.names]

    def requires(self) -> Requirements:
        """What any of them needs; the step gives each batch what its own loss needs."""
        combined = Requirements()
        for _, loss in self.items():
            combined = combined | loss.requires()
        return combined

    def prepare(self, info: ModelInfo) -> None:
        """Prepare every loss for its data set."""
        for name, loss in self.items():
            classes, size = self.num_classes.get(name), self.label_dimension.get(name)
            loss.prepare(replace(info, num_classes=classes, label_dimension=size))

    def compute(self, emb: Any, labels: Any) -> Any:
        """Not called: the training step calls the loss of the batch's data set."""
        raise EmbedlossError("E206", "a batch of several data sets must say which one it is from ('dataset').")

    def expressions(self) -> dict[str, str]:
        """Name -> expression."""
        return {name: loss.to_expression() for name, loss in self.items()}

    def to_expression(self) -> str:
        """`nli: mnrl(); sts: cosent()`, for people; `expressions` gives what `create_loss` reads."""
        return "; ".join(f"{name}: {text}" for name, text in self.expressions().items())
